"""Positional codes against the closed forms of the paper and of the release (0-based loops below)."""

import math

import pytest
import torch
from torch.nn import functional as F

from pipeline.layers.posenc import cartesian, pixel_coordinates, positions, sinusoidal


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (6, 5)])
def test_released_spe_is_the_closed_form(size):
    h, w = size
    code, half = sinusoidal(512, size, "release"), 128
    for i in range(h):
        for j in range(w):
            for k in (0, 1, 64, 127):
                omega = 10000 ** (-k / 127)
                seen = [code[c, i, j].item() for c in (k, half + k, 2 * half + k, 3 * half + k)]
                x, y = (j + 1) * omega, (i + 1) * omega
                assert seen == pytest.approx([math.sin(x), math.cos(x), math.sin(y), math.cos(y)], abs=1e-6)


def test_released_frequencies_are_those_of_the_weights():
    code = sinusoidal(512, (1, 1), "release")
    assert code[[0, 1, 127], 0, 0].asin().tolist() == pytest.approx([1.0, 0.930045, 1e-4], abs=1e-5)


def test_paper_spe_interleaves_height_first_and_is_centred():
    code = sinusoidal(16, (4, 6), "paper")
    for k in range(4):
        omega = 10000 ** (-k / 4)
        assert code[2 * k, 1, 0].item() == pytest.approx(math.sin(100 * omega), abs=1e-6)  # row 2 of 4 is at 100
        assert code[2 * k + 1, 1, 0].item() == pytest.approx(math.cos(100 * omega), abs=1e-6)
        assert code[8 + 2 * k, 0, 2].item() == pytest.approx(math.sin(100 * omega), abs=1e-6)  # column 3 of 6


@pytest.mark.parametrize(
    ("n", "ends"), [(4, (99, 102)), (6, (98, 103)), (8, (97, 104)), (14, (94, 107)), (5, (98, 102))]
)
def test_paper_positions_keep_the_centre_at_100(n, ends):
    p = positions(n, "paper")
    assert (p[0].item(), p[-1].item(), len(p)) == (*ends, n)


def test_expand_keeps_the_top_left_in_the_release_and_the_centre_in_the_paper():
    small, large = (4, 4), (8, 8)
    assert torch.equal(sinusoidal(64, small), sinusoidal(64, large)[:, :4, :4])
    assert torch.equal(sinusoidal(64, small, "paper"), sinusoidal(64, large, "paper")[:, 2:6, 2:6])
    wide = (6, 10)
    assert torch.equal(sinusoidal(64, small), sinusoidal(64, wide)[:, :4, :4])
    assert torch.equal(sinusoidal(64, small, "paper"), sinusoidal(64, wide, "paper")[:, 1:5, 3:7])


def pairs_of(code: torch.Tensor, convention: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(sine, cosine) pairs of the x and of the y half, each [half, 2, h, w]."""
    halves = code.double().chunk(2)
    if convention == "release":
        x, y = (half.unflatten(0, (2, -1)).transpose(0, 1) for half in halves)
    else:
        y, x = (half.unflatten(0, (-1, 2)) for half in halves)
    return x, y


@pytest.mark.parametrize("size", [(1, 9), (6, 6), (7, 4)])
@pytest.mark.parametrize(("convention", "divisor"), [("release", 7), ("paper", 8)])
def test_neighbours_are_rotations_of_each_other(convention, divisor, size):
    """Equation 9: a step by one pixel turns each (sin, cos) pair by its frequency, wherever the step is made."""
    x, y = pairs_of(sinusoidal(32, size, convention), convention)
    for k in range(8):
        omega = 10000 ** (-k / divisor)
        turn = torch.tensor([[math.cos(omega), math.sin(omega)], [-math.sin(omega), math.cos(omega)]]).double()
        to_the_right = torch.einsum("ab,bhw->ahw", turn, x[k, :, :, :-1])
        downwards = torch.einsum("ab,bhw->ahw", turn, y[k, :, :-1])
        torch.testing.assert_close(to_the_right, x[k, :, :, 1:], rtol=0, atol=1e-6)
        torch.testing.assert_close(downwards, y[k, :, 1:], rtol=0, atol=1e-6)
        assert torch.equal(x[k], x[k][:, :1].expand_as(x[k]))  # along the other axis nothing changes
        assert torch.equal(y[k], y[k][:, :, :1].expand_as(y[k]))


@pytest.mark.parametrize("convention", ["release", "paper"])
def test_each_pair_has_amplitude_one(convention):
    for pairs in pairs_of(sinusoidal(512, (5, 7), convention), convention):
        torch.testing.assert_close(pairs.square().sum(dim=1), torch.ones(128, 5, 7).double())


def test_released_csg_has_corners_at_one_and_its_centre_at_zero():
    grid = cartesian((5, 7))
    assert grid[:, 0, 0].tolist() == [-1, -1]
    assert grid[:, -1, -1].tolist() == [1, 1]
    assert grid[:, 2, 3].tolist() == [0, 0]
    assert grid[:, 0, -1].tolist() == [1, -1]  # channel 0 is x
    torch.testing.assert_close(cartesian((4, 4))[0, 0], torch.tensor([-1, -1 / 3, 1 / 3, 1]))


@pytest.mark.parametrize(("base", "size"), [((4, 4), (9, 6)), ((6, 6), (10, 10)), ((4, 5), (16, 4))])
def test_csg_regenerated_equals_csg_interpolated_in_the_release_but_not_in_the_paper(base, size):
    def off(convention) -> float:
        small = cartesian(base, convention)[None]
        interpolated = F.interpolate(small, size=size, mode="bilinear", align_corners=True)[0]
        return (cartesian(size, convention) - interpolated).abs().max().item()

    assert off("release") < 1e-6
    assert off("paper") > 0.1  # its last entry moves from 1 - 2/n of one size to that of the other


def test_paper_csg_is_row_then_column_over_n():
    assert cartesian((4, 4), "paper")[0, :, 0].tolist() == [-1, -0.5, 0, 0.5]
    assert cartesian((4, 4), "paper")[1, 0].tolist() == [-1, -0.5, 0, 0.5]


def test_pixel_coordinates_run_row_by_row_from_minus_one_to_one():
    coords = pixel_coordinates((2, 3))
    assert coords.tolist() == [[-1, -1], [0, -1], [1, -1], [-1, 1], [0, 1], [1, 1]]
