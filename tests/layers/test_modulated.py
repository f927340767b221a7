"""Modulated convolution and ModFC against the explicit expression with one weight a sample."""

import pytest
import torch
from torch.nn import functional as F

from pipeline.layers.modulated import ModFC, ModulatedConv2d


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("kernel", [1, 3])
def test_modulated_conv_equals_the_explicit_expression(kernel, demodulate):
    layer = ModulatedConv2d(5, 7, kernel, 6, demodulate=demodulate)
    x, w = torch.randn(3, 5, 4, 6), torch.randn(3, 6)
    s = w @ layer.affine.weight.T / 6**0.5 + layer.affine.bias
    for n in range(3):
        weight = layer.weight / (5 * kernel * kernel) ** 0.5 * s[n][None, :, None, None]
        if demodulate:
            weight = weight / (weight.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        expected = F.conv2d(x[n : n + 1], weight, padding=kernel // 2)
        torch.testing.assert_close(layer(x, w)[n : n + 1], expected, rtol=1e-4, atol=1e-5)


def of_one_sample(layer: ModulatedConv2d, w: torch.Tensor) -> torch.Tensor:
    """The weight of a sample with this w: modulated, then normalised."""
    _, i, k, _ = layer.weight.shape
    s = w @ layer.affine.weight.T / w.numel() ** 0.5 + layer.affine.bias
    weight = layer.weight / (i * k * k) ** 0.5 * s[None, :, None, None]
    return weight / (weight.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt() if layer.demodulate else weight


@pytest.mark.parametrize("demodulate", [True, False])
def test_modulated_deconv_scatters_each_samples_weights_and_blurs(demodulate):
    """Every pixel adds its multiple of the sample's weights at twice its place; [1, 3, 3, 1] follows, pads 1."""
    layer = ModulatedConv2d(5, 7, 3, 6, demodulate=demodulate, deconv=True)
    x, w = torch.randn(2, 5, 3, 4), torch.randn(2, 6)
    seen = layer(x, w)
    assert seen.shape == (2, 7, 6, 8)
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    for n in range(2):
        weight, wide = of_one_sample(layer, w[n]), torch.zeros(7, 7, 9)
        for i in range(3):
            for j in range(4):
                wide[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3] += torch.einsum("ocab,c->oab", weight, x[n, :, i, j])
        by_library = F.conv_transpose2d(x[n : n + 1], weight.transpose(0, 1), stride=2)[0]
        torch.testing.assert_close(wide, by_library, rtol=1e-4, atol=1e-5)
        blur = (4 * torch.outer(taps, taps) / 64).expand(7, 1, 4, 4)
        expected = F.conv2d(F.pad(wide[None], (1, 1, 1, 1)), blur, groups=7)
        torch.testing.assert_close(seen[n : n + 1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("deconv", [True, False])
def test_what_path_length_differentiates_twice_is_the_explicit_expression(deconv):
    """The gradient of a gradient by w, as path length takes it, against that through one weight a sample."""
    layer = ModulatedConv2d(4, 3, 3, 5, deconv=deconv)
    x, w = torch.randn(2, 4, 4, 4), torch.randn(2, 5, requires_grad=True)
    blur = (torch.outer(*2 * [torch.tensor([1.0, 3.0, 3.0, 1.0])]) / 16).expand(3, 1, 4, 4)

    def explicit(n: int) -> torch.Tensor:
        weight = of_one_sample(layer, w[n])
        if not deconv:
            return F.conv2d(x[n : n + 1], weight, padding=1)
        wide = F.conv_transpose2d(x[n : n + 1], weight.transpose(0, 1), stride=2)
        return F.conv2d(wide, blur, padding=1, groups=3)

    found = []
    for y in (layer(x, w), torch.cat([explicit(n) for n in range(2)])):
        (grad,) = torch.autograd.grad(y.square().sum(), w, create_graph=True)
        found.append((grad, *torch.autograd.grad(grad.square().sum(), list(layer.parameters()))))
    for ours, naive in zip(*found, strict=True):
        torch.testing.assert_close(ours, naive, rtol=1e-3, atol=1e-3 * naive.abs().max().item())


def test_modulated_conv_without_padding_is_the_inside_of_the_padded_one():
    padded, valid = ModulatedConv2d(5, 7, 3, 6), ModulatedConv2d(5, 7, 3, 6, padding=0)
    valid.load_state_dict(padded.state_dict())
    x, w = torch.randn(2, 5, 6, 7), torch.randn(2, 6)
    torch.testing.assert_close(valid(x, w), padded(x, w)[:, :, 1:-1, 1:-1])


@pytest.mark.parametrize("demodulate", [True, False])
def test_modfc_equals_the_explicit_expression(demodulate):
    layer = ModFC(5, 7, 6, demodulate=demodulate)
    x, w = torch.randn(3, 11, 5), torch.randn(3, 6)
    s = w @ layer.affine.weight.T / 6**0.5 + layer.affine.bias
    out = layer(x, w)
    for n in range(3):
        for p in range(11):
            for i in range(7):
                row = torch.stack([s[n, j] * layer.weight[i, j] / 5**0.5 for j in range(5)])
                if demodulate:
                    row = row / (1e-8 + sum(r * r for r in row)).sqrt()
                torch.testing.assert_close(out[n, p, i], (row * x[n, p]).sum(), rtol=1e-4, atol=1e-5)


def test_modfc_rows_have_norm_one_whatever_the_scale_of_the_style():
    layer, w = ModFC(64, 16, 8), torch.randn(2, 8)
    weights = layer.weights(w)
    torch.testing.assert_close(weights.norm(dim=2), torch.ones(2, 16), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        layer.affine.weight *= 3
        layer.affine.bias *= 3
    torch.testing.assert_close(layer.weights(w), weights, rtol=1e-4, atol=1e-5)


def test_an_input_shared_by_the_batch_gives_each_sample_its_own_output():
    layer, x, w = ModFC(5, 7, 6), torch.randn(1, 9, 5), torch.randn(3, 6)
    torch.testing.assert_close(layer(x, w), layer(x.repeat(3, 1, 1), w))


def test_style_bias_starts_at_one_and_weights_are_equalised():
    layer = ModFC(400, 500, 6)
    assert torch.equal(layer.affine.bias, torch.ones(400))
    assert abs(layer.weight.std().item() - 1) < 0.01
