"""Resampling with fixed filters: the [1, 3, 3, 1] FIR of StyleGAN2 and align-corners bilinear.

Plain torch operators, so every derivative (R1, path length) exists on every device. No parameters.
"""

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


@lru_cache(maxsize=16)
def fir_kernel(device: torch.device, dtype: torch.dtype) -> Float[Tensor, "4 4"]:
    """The outer product of [1, 3, 3, 1], summing to one; kept, as making it would wait for the device."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], device=device, dtype=dtype)
    return torch.outer(taps, taps) / 64


def fir(x: Float[Tensor, "n c h w"], pad: int, stride: int = 1, gain: int = 1) -> Float[Tensor, "n c ho wo"]:
    """Zero-pad every side by `pad`, filter, keep every `stride`-th sample; a constant comes out `gain` times."""
    c = x.shape[1]
    return F.conv2d(x, gain * fir_kernel(x.device, x.dtype).expand(c, 1, 4, 4), stride=stride, padding=pad, groups=c)


def fir_up(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c 2*h 2*w"]:
    """Insert zeros, pad (2, 1), filter with gain 4: the up-sampler of the RGB skip path."""
    c = x.shape[1]
    return F.conv_transpose2d(x, 4 * fir_kernel(x.device, x.dtype).expand(c, 1, 4, 4), stride=2, padding=1, groups=c)


def bilinear_up(x: Float[Tensor, "n c h w"], margin: int = 0) -> Float[Tensor, "n c ho wo"]:
    """Bilinear to twice the size plus `margin` with aligned corners, as the MS-PIE release does in every block."""
    h, w = x.shape[2:]
    return F.interpolate(x, size=(2 * h + margin, 2 * w + margin), mode="bilinear", align_corners=True)
