"""CIPS against published counts and its defining property: pixels are independent."""

import pytest
import torch

from pipeline.cost import multiply_adds, parameters
from pipeline.layers.posenc import pixel_coordinates
from pipeline.models.cips import CIPSGeneratorConfig
from pipeline.recipes import find
from pipeline.spec import UserError

TINY = CIPSGeneratorConfig(size_px=16, width=12, z_dim=8, w_dim=8, mapping_layers=2)


@pytest.fixture
def G():  # noqa: N802 - the field's name
    net = TINY.build()
    with torch.no_grad():
        for layer in net.layers:
            layer.noise_strength.fill_(0.1)
    return net


def test_main_has_the_published_parameter_count():
    assert parameters(find("cips.table3_main").make().family)["G"] == 45_911_076


def test_without_noise_strengths_it_has_fifteen_parameters_less():
    with torch.device("meta"):
        G = CIPSGeneratorConfig(noise=False).build()
    assert sum(p.numel() for p in G.parameters()) == 45_911_061
    assert (len(G.layers), len(G.to_rgbs), G.num_ws) == (15, 7, 22)


def test_main_has_the_derived_multiply_adds():
    (macs,) = multiply_adds(find("cips.table3_main").make().family, "G").values()
    assert macs / 1e9 == pytest.approx(275.65, rel=5e-4)


def test_a_subset_of_coordinates_gives_the_subset_of_the_image(G):
    ws = torch.randn(2, G.num_ws, 8)
    whole = G.synthesis(ws, (16, 16), None).flatten(2)
    picked = torch.randperm(256)[:40]
    some = G.pixels(ws, pixel_coordinates((16, 16))[picked])
    torch.testing.assert_close(some.mT, whole[:, :, picked], rtol=1e-5, atol=1e-5)


def test_no_pixel_depends_on_another_pixels_coordinates(G):
    ws, coords = torch.randn(1, G.num_ws, 8), pixel_coordinates((4, 4)).clone().requires_grad_()
    out = G.pixels(ws, coords)
    (grad,) = torch.autograd.grad(out[0, 5].sum(), coords)
    assert grad[5].abs().sum() > 0
    grad[5] = 0
    assert grad.abs().sum() == 0


def test_every_second_pixel_of_the_dense_grid_is_the_native_image(G):
    ws = torch.randn(2, G.num_ws, 8)
    dense, native = G.synthesis(ws, (31, 31), None), G.synthesis(ws, (16, 16), None)
    torch.testing.assert_close(dense[:, :, ::2, ::2], native, rtol=1e-4, atol=1e-4)


def test_embeddings_are_exact_on_pixels_and_bilinear_between(G):
    with torch.no_grad():
        table = G.embedding.weight.reshape(16, 16, 12)
        assert torch.equal(G.embedding(pixel_coordinates((16, 16))), G.embedding.weight)
        x = (2 * 3.25 / 15 - 1, 2 * 7.5 / 15 - 1)  # column 3.25, row 7.5
        expected = 0.5 * (0.75 * table[7, 3] + 0.25 * table[7, 4]) + 0.5 * (0.75 * table[8, 3] + 0.25 * table[8, 4])
        torch.testing.assert_close(G.embedding(torch.tensor([x]))[0], expected, rtol=1e-4, atol=1e-5)


def test_the_image_is_the_sum_of_its_blocks_contributions(G):
    ws = torch.randn(2, G.num_ws, 8)
    with torch.no_grad():
        whole = G.synthesis(ws, (16, 16), None)
        parts = []
        for keep in range(len(G.to_rgbs)):
            saved = [t.fc.weight.clone() for t in G.to_rgbs]
            for i, t in enumerate(G.to_rgbs):
                if i != keep:
                    t.fc.weight.zero_()
            parts.append(G.synthesis(ws, (16, 16), None))
            for t, s in zip(G.to_rgbs, saved, strict=True):
                t.fc.weight.copy_(s)
    torch.testing.assert_close(sum(parts), whole, rtol=1e-4, atol=1e-5)  # biases start at zero


def test_noise_is_per_pixel_and_can_be_switched_off(G):
    ws = torch.randn(2, G.num_ws, 8)
    assert not torch.allclose(G.synthesis(ws, (16, 16), (1, 2)), G.synthesis(ws, (16, 16), None))
    quiet = TINY.replace(noise=False).build()
    assert torch.equal(quiet.synthesis(ws, (16, 16), (1, 2)), quiet.synthesis(ws, (16, 16), None))


def test_sides_may_differ_and_rows_are_height(G):
    ws = torch.randn(1, G.num_ws, 8)
    wide, square = G.synthesis(ws, (16, 31), None), G.synthesis(ws, (16, 16), None)
    assert wide.shape == (1, 3, 16, 31)
    torch.testing.assert_close(wide[:, :, :, ::2], square, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="at least 2"):
        G.check_size((1, 8))


def test_fourier_features_are_sines_with_the_released_initialisation():
    fourier = CIPSGeneratorConfig(size_px=8, width=2000).build().fourier
    assert 2.0 < fourier.weight.abs().max() <= (9 / 2) ** 0.5
    assert 0.65 < fourier.bias.abs().max() <= 0.5**0.5
    coords = torch.tensor([[0.3, -0.8]])
    expected = torch.sin(fourier.weight @ coords[0] + fourier.bias)
    torch.testing.assert_close(fourier(coords)[0], expected)
