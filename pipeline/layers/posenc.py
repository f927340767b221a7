"""Positional codes: the sinusoidal encoding (SPE) and the Cartesian grid (CSG) of MS-PIE (2012.05217, Section 3.3).

Each code exists in two conventions. "release": what the published weights were trained with (mmgeneration).
"paper": the formulas as printed. Parity: the release shifts its indices so that the centre sits at 100, but
its look-up renumbers them, so its positions always are 1..n from the top left; "paper" does centre them.
"""

from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

CPU = torch.device("cpu")
Convention = Literal["release", "paper"]


def frequencies(axis_dim: int, convention: Convention) -> Float[Tensor, " half"]:
    """omega_k = 10000^(-k / d), d = half - 1 ("release": the last is 1e-4) or half ("paper")."""
    half = axis_dim // 2
    divisor = max(half - 1, 1) if convention == "release" else half
    return 10000.0 ** (-torch.arange(half, dtype=torch.float64) / divisor)


def positions(n: int, convention: Convention, centre: int = 100) -> Float[Tensor, " n"]:
    """Indices of n pixels along an axis: 1..n, or with pixel number n/2 (rounded up) at `centre` ("paper")."""
    index = torch.arange(1, n + 1, dtype=torch.float64)
    return index if convention == "release" else index + (centre - (n + 1) // 2)


def axis_code(n: int, axis_dim: int, convention: Convention) -> Float[Tensor, "axis_dim n"]:
    """Sines and cosines of one axis: all sines then all cosines ("release") or interleaved ("paper")."""
    angle = frequencies(axis_dim, convention)[:, None] * positions(n, convention)
    if convention == "release":
        return torch.cat([angle.sin(), angle.cos()])
    return torch.stack([angle.sin(), angle.cos()], dim=1).flatten(0, 1)


def sinusoidal(
    channels: int, size: tuple[int, int], convention: Convention = "release"
) -> Float[Tensor, "channels h w"]:
    """SPE grid, amplitude 1. Half the channels code the width, half the height: width first in "release"."""
    h, w = size
    x = axis_code(w, channels // 2, convention)[:, None, :].expand(-1, h, w)
    y = axis_code(h, channels // 2, convention)[:, :, None].expand(-1, h, w)
    first, second = (x, y) if convention == "release" else (y, x)
    return torch.cat([first, second]).float()


def cartesian(size: tuple[int, int], convention: Convention = "release") -> Float[Tensor, "2 h w"]:
    """CSG grid: "release": (x, y) with both ends at -1 and 1; "paper": (row, column) as 2 (i / n - 1/2)."""
    h, w = size

    def axis(n: int) -> Tensor:
        divisor = max(n - 1, 1) if convention == "release" else n
        return 2 * torch.arange(n, dtype=torch.float64) / divisor - 1

    y, x = torch.meshgrid(axis(h), axis(w), indexing="ij")
    return torch.stack([x, y] if convention == "release" else [y, x]).float()


@lru_cache(maxsize=8)
def pixel_coordinates(size: tuple[int, int], device: torch.device = CPU) -> Float[Tensor, "p 2"]:
    """(x, y) of every pixel, row by row, end pixels exactly at -1 and 1 (CIPS, Section 3)."""
    return cartesian(size).flatten(1).T.contiguous().to(device)


@lru_cache(maxsize=32)
def head_code(
    kind: Literal["csg", "spe"], channels: int, size: tuple[int, int], convention: Convention, device: torch.device
) -> Float[Tensor, "c h w"]:
    """A code on its device; kept, as each iteration asks for it again."""
    return (cartesian(size, convention) if kind == "csg" else sinusoidal(channels, size, convention)).to(device)
