"""FIR resampling against naive loops over zero-inserted, zero-padded signals; bilinear against its definition."""

import pytest
import torch
from torch.nn import functional as F

from pipeline.layers.resample import bilinear_up, fir, fir_up

TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8


def naive_fir(x, up, pad, gain, stride):
    n, c, h, w = x.shape
    wide = torch.zeros(n, c, h * up, w * up)
    for i in range(h):
        for j in range(w):
            wide[:, :, i * up, j * up] = x[:, :, i, j]
    wide = F.pad(wide, (pad[0], pad[1], pad[0], pad[1]))
    rows, cols = (wide.shape[2] - 4) // stride + 1, (wide.shape[3] - 4) // stride + 1
    out = torch.zeros(n, c, rows, cols)
    for i in range(rows):
        for j in range(cols):
            for a in range(4):
                for b in range(4):
                    out[:, :, i, j] += gain * TAPS[a] * TAPS[b] * wide[:, :, i * stride + a, j * stride + b]
    return out


def test_fir_equals_a_naive_loop_with_and_without_stride():
    x = torch.randn(2, 3, 6, 8)
    torch.testing.assert_close(fir(x, pad=2), naive_fir(x, 1, (2, 2), 1, 1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fir(x, pad=1, stride=2), naive_fir(x, 1, (1, 1), 1, 2), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fir(x, pad=1, gain=4), naive_fir(x, 1, (1, 1), 4, 1), rtol=1e-5, atol=1e-6)


def test_fir_up_inserts_zeros_pads_2_1_and_has_gain_4():
    x = torch.randn(2, 3, 5, 4)
    torch.testing.assert_close(fir_up(x), naive_fir(x, 2, (2, 1), 4, 1), rtol=1e-5, atol=1e-6)


def test_a_constant_keeps_its_value_inside_after_either_resampling():
    x = torch.full((1, 2, 8, 8), 0.7)
    torch.testing.assert_close(fir_up(x)[:, :, 4:-4, 4:-4], torch.full((1, 2, 8, 8), 0.7))
    torch.testing.assert_close(bilinear_up(x), torch.full((1, 2, 16, 16), 0.7))


def test_bilinear_up_aligns_corners():
    x = torch.randn(1, 1, 3, 4)
    y = bilinear_up(x)
    corners = [(0, 0), (0, -1), (-1, 0), (-1, -1)]
    assert all(torch.isclose(x[0, 0, i, j], y[0, 0, i, j]) for i, j in corners)
    at = 1 * (3 - 1) / (6 - 1)  # where output row 1 reads: between input rows 0 and 1
    torch.testing.assert_close(y[0, 0, 1, 0], x[0, 0, 0, 0] * (1 - at) + x[0, 0, 1, 0] * at)


@pytest.mark.parametrize("margin", [0, 4])
def test_bilinear_up_reads_each_pixel_at_its_share_of_the_way_between_the_corners(margin):
    """A ramp stays a ramp, whose ends are where they were."""
    rows, cols = torch.arange(5.0), torch.arange(3.0)
    y = bilinear_up((10 * rows[:, None] + cols)[None, None], margin)[0, 0]
    h, w = 10 + margin, 6 + margin
    expected = 10 * torch.linspace(0, 4, h)[:, None] + torch.linspace(0, 2, w)
    torch.testing.assert_close(y, expected)


def test_fir_is_smooth_enough_to_differentiate_twice():
    x = torch.randn(1, 2, 6, 6, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda v: fir(v, pad=1, stride=2).square(), x)
    assert torch.autograd.gradgradcheck(lambda v: fir_up(v).square(), x)
