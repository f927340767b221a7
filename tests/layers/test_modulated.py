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
