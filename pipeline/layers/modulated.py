"""Style modulation: the modulated convolution of StyleGAN2 (Karras et al. 2020, Eq. 1-3) and ModFC of CIPS.

Both scale the input features of a weight by a style s and normalise each output row. Knows neither where
styles come from nor which network asks. Demodulation is computed in float32 under any autocast.
"""

from contextlib import AbstractContextManager, nullcontext
from math import sqrt
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.layers.coords import CoordChannels, CoordSpec
from pipeline.layers.equalized import LRELU_GAIN, EqualizedLinear, lrelu, with_coords
from pipeline.layers.resample import fir

TINY = 1e-30  # instead of dividing by a maximum of zero


def fp32(x: Tensor) -> AbstractContextManager:
    """A region without autocast on x's device."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


class ModulatedConv2d(nn.Module):
    """y = conv(x * s, W) * d with d_o = 1 / sqrt(sum_{i,k} (s_i W_oik)^2 + 1e-8), W scaled by 1 / sqrt(fan_in).

    Scaling activations rather than weights is the same function (the convolution is linear in each) and lets
    the batch share one ordinary convolution. `demodulate=False` leaves d out (toRGB). No bias.
    `deconv`: transposed with stride 2 and without padding (h -> 2h + 1), then [1, 3, 3, 1] with gain 4, pads 1 (2h).
    On float16 input s and the rows of W are divided by their largest magnitudes, so that no sum overflows: from
    activations within +-256 it stays below 256 sqrt(fan_in). d takes the factor up; without d the output, then
    float32, is multiplied by it (2006.06676, appendix).
    `coords`: coordinate channels are further inputs, each with a style of its own, and take part in d. They are
    computed in float32 and rounded to x's type.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        w_dim: int,
        *,
        demodulate: bool = True,
        padding: int | None = None,
        deconv: bool = False,
        coords: CoordSpec = CoordSpec(),
    ):
        """`padding`: zeros at each side of an ordinary convolution; None keeps the size."""
        super().__init__()
        self.coords = CoordChannels(coords, dims=2)
        in_channels += self.coords.count
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel))
        self.affine = EqualizedLinear(w_dim, in_channels, bias_init=1.0)
        self.scale = 1 / sqrt(in_channels * kernel * kernel)
        self.padding, self.deconv = kernel // 2 if padding is None else padding, deconv
        self.demodulate = demodulate

    def forward(self, x: Float[Tensor, "n i h w"], w: Float[Tensor, "n w_dim"]) -> Float[Tensor, "n o ho wo"]:
        with fp32(x):
            s, scale, eps, d, factor = self.affine(w.float()), self.scale, 1e-8, None, None
            if x.dtype == torch.float16:
                s_max = s.detach().abs().amax(dim=1, keepdim=True).clamp_min(TINY)
                w_max = self.weight.detach().abs().amax(dim=(1, 2, 3)).clamp_min(TINY)
                s, scale, factor = s / s_max, self.scale / w_max[:, None, None, None], s_max * w_max
                eps = eps / factor.square()
            if self.demodulate:
                energy = (self.weight * scale).square().sum(dim=(2, 3))
                d = torch.rsqrt(s.square() @ energy.T + eps)
        x, padding = with_coords(x, self.coords, 0 if self.deconv else self.padding)
        x, weight = x * s.to(x.dtype)[:, :, None, None], (self.weight * scale).to(x.dtype)
        if self.deconv:
            y = fir(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2), pad=1, gain=4)
        else:
            y = F.conv2d(x, weight, padding=padding)
        if d is not None:
            return y * d.to(y.dtype)[:, :, None, None]
        return y if factor is None else y.float() * factor[:, :, None, None]


class ModFC(nn.Module):
    """Fully connected layer on pixels with per-sample weights (CIPS, Section 3): rows s_j B_ij, each of norm 1.

    y = x W'^T, W'_ij = s_j B_ij / sqrt(sum_k (s_k B_ik)^2 + 1e-8); B ~ N(0, 1) scaled by 1 / sqrt(in_dim).
    Pixels are rows, so a layer is one batched matrix product. `demodulate=False` leaves the norm out (toRGB).
    """

    def __init__(self, in_dim: int, out_dim: int, w_dim: int, *, demodulate: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_dim, in_dim))
        self.affine = EqualizedLinear(w_dim, in_dim, bias_init=1.0)
        self.scale, self.demodulate = 1 / sqrt(in_dim), demodulate

    def weights(self, w: Float[Tensor, "n w_dim"]) -> Float[Tensor, "n out_dim in_dim"]:
        """The modulated (and demodulated) weight of each sample, in float32."""
        with fp32(w):
            m = (self.weight * self.scale) * self.affine(w.float())[:, None, :]
            return m * torch.rsqrt(m.square().sum(dim=2, keepdim=True) + 1e-8) if self.demodulate else m

    def forward(self, x: Float[Tensor, "m p i"], w: Float[Tensor, "n w_dim"]) -> Float[Tensor, "n p o"]:
        """m is n, or 1 where all samples share their input."""
        device = x.device.type
        if not x.is_meta and torch.is_autocast_enabled(device):
            x = x.to(
                torch.get_autocast_dtype(device)
            )  # before a shared input is expanded: autocast would copy it n times
        return torch.matmul(x.expand(len(w), -1, -1), self.weights(w).to(x.dtype).mT)


class BiasLeakyReLU(torch.autograd.Function):
    """lrelu(x + shift + bias), written over x, with its output alone kept for backward: two tensors less than eager."""

    @staticmethod
    def of(
        x: Float[Tensor, "n p o"], shift: Float[Tensor, "n p 1"] | None, bias: Float[Tensor, " o"]
    ) -> Float[Tensor, "n p o"]:
        """x may be overwritten. float16 has a limit of its own in `lrelu`; a compiler fuses plain operations better."""
        if x.dtype == torch.float16 or torch.compiler.is_compiling():
            return lrelu((x if shift is None else x + shift) + bias)
        return BiasLeakyReLU.apply(x, shift, bias)  # pyright: ignore[reportReturnType]

    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor | None, bias: Tensor) -> Tensor:
        if shift is not None:
            x.add_(shift)
        F.leaky_relu_(x.add_(bias), 0.2).mul_(LRELU_GAIN)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        (y,) = ctx.saved_tensors  # of the sign of what went in
        grad = torch.ops.aten.leaky_relu_backward(grads[0] * LRELU_GAIN, y, 0.2, True)
        _, shift, bias = ctx.needs_input_grad
        return grad, grad.sum(2, keepdim=True) if shift else None, grad.sum((0, 1)) if bias else None
