"""Layers with equalised learning rate: weights ~ N(0, 1), scaled by 1 / sqrt(fan_in) at run time.

Karras et al. 2018 (PGGAN, Section 4.1) and 2020 (StyleGAN2). A convolution may see coordinate channels (coords.py)
as further inputs. Knows nothing of styles or networks.
"""

from math import prod, sqrt

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.layers.coords import CoordChannels, CoordSpec

LRELU_GAIN = sqrt(2)
LIMIT = 256.0  # of float16 activations: ten times what training needs, far from the largest float16, 65504


def limited(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """float16 within +-LIMIT, so that what overflows once does not turn into NaN; others as they are."""
    return x.clamp(-LIMIT, LIMIT) if x.dtype == torch.float16 else x


def lrelu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Leaky ReLU of slope 0.2, times sqrt(2); limited in float16."""
    return limited(F.leaky_relu(x, 0.2) * LRELU_GAIN)


def with_coords(
    x: Float[Tensor, "n c h w"], coords: CoordChannels, padding: int
) -> tuple[Float[Tensor, "n ck h2 w2"], int]:
    """x with its coordinate channels, and how many zeros the convolution still has to put at each side.

    Where the ramp goes on beyond the border, that is none: x is padded here, as zeros belong to its own channels alone.
    """
    if coords.spec.padding == "zero" or not padding:
        return coords(x), padding
    g = coords.ramp(x.shape[2:], x.device, [(padding, padding)] * 2)
    s = coords.shift(len(x), x.device)
    g = g.expand(len(x), -1, -1, -1) if s is None else g + s[:, :, None, None]
    return torch.cat([F.pad(x, (padding,) * 4), g.to(x.dtype)], dim=1), 0


class EqualizedLinear(nn.Module):
    """y = x W^T * lr_mul / sqrt(fan_in) + b * lr_mul; W ~ N(0, 1) / lr_mul, b = bias_init."""

    def __init__(self, in_dim: int, out_dim: int, *, lr_mul: float = 1.0, bias_init: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_dim, in_dim) / lr_mul)
        self.bias = nn.Parameter(torch.full((out_dim,), bias_init / lr_mul))
        self.scale, self.lr_mul = lr_mul / sqrt(in_dim), lr_mul

    def forward(self, x: Float[Tensor, "n in_dim"]) -> Float[Tensor, "n out_dim"]:
        return F.linear(x, self.weight * self.scale, self.bias * self.lr_mul)


class EqualizedConv2d(nn.Module):
    """2-D convolution with run-time scale 1 / sqrt(in * k * k); bias starts at zero. Computes in its input's type."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
        coords: CoordSpec = CoordSpec(),
    ):
        super().__init__()
        self.coords = CoordChannels(coords, dims=2)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels + self.coords.count, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.scale = 1 / sqrt(prod(self.weight.shape[1:]))
        self.stride, self.padding = stride, padding

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n o ho wo"]:
        x, padding = with_coords(x, self.coords, self.padding)
        weight = (self.weight * self.scale).to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.conv2d(x, weight, bias, stride=self.stride, padding=padding)
