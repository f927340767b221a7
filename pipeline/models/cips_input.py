"""What a CIPS generator is fed (2011.13775, Section 3): coordinates, Fourier features, coordinate embeddings.

On the plane both axes run from -1 to 1, end pixels exactly there. On a cylinder (panoramas) x is an angle in half
turns, -1 + 2 i / w for column i, so that x and x + 2 are one place. Knows no styles and no colours.
"""

from functools import lru_cache
from math import pi, sqrt
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.layers.modulated import fp32
from pipeline.layers.posenc import CPU

Lookup = Literal["exact", "half_pixel"]


@lru_cache(maxsize=8)
def cylinder_coordinates(size: tuple[int, int], device: torch.device = CPU) -> Float[Tensor, "p 2"]:
    """(x, y) of every pixel, row by row: x in [-1, 1) half turns, y in [-1, 1] with both ends."""
    h, w = size
    x = torch.arange(w, dtype=torch.float64) * 2 / w - 1
    y = torch.linspace(-1, 1, h, dtype=torch.float64)
    return torch.stack([x.expand(h, w), y[:, None].expand(h, w)], dim=2).flatten(0, 1).float().to(device)


class FourierFeatures(nn.Module):
    """sin(B p + b) with trainable B ~ U(-sqrt(9/d), sqrt(9/d)) and b ~ U(-1/sqrt d, 1/sqrt d); float32.

    p is (x, y), d = 2; on a cylinder (y, cos pi x, sin pi x), d = 3 (as COCO-GAN codes panoramas, 1904.00284).
    """

    def __init__(self, dim: int, *, cylinder: bool = False):
        super().__init__()
        d = 3 if cylinder else 2
        self.weight = nn.Parameter(torch.empty(dim, d).uniform_(-sqrt(9 / d), sqrt(9 / d)))
        self.bias = nn.Parameter(torch.empty(dim).uniform_(-1 / sqrt(d), 1 / sqrt(d)))
        self.cylinder = cylinder

    def forward(self, coords: Float[Tensor, "*p 2"]) -> Float[Tensor, "*p dim"]:
        with fp32(coords):
            if self.cylinder:
                angle, y = coords[..., 0] * pi, coords[..., 1]
                coords = torch.stack([y, angle.cos(), angle.sin()], dim=-1)
            return torch.sin(F.linear(coords, self.weight, self.bias))


class CoordinateEmbedding(nn.Module):
    """One free vector a pixel of an h x w grid, N(0, 1); bilinear between pixels, the last column next to the first
    on a cylinder.

    Parity: `lookup="half_pixel"` places the grid half a pixel off its own coordinates, as the release does whenever
    it does not train on exactly this grid: its coordinates end on pixel centres, its grid_sample takes them for the
    pixels' outer edges.
    """

    def __init__(self, size: tuple[int, int], dim: int, *, lookup: Lookup = "exact", cylinder: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size[0] * size[1], dim))
        self.size, self.lookup, self.cylinder = size, lookup, cylinder

    def rows(self, rows: Tensor, cols: Tensor) -> Tensor:
        """The vectors of whole positions of the grid, [..., dim] of int64 [...] each."""
        return self.weight[rows * self.size[1] + cols]

    def forward(self, coords: Float[Tensor, "*p 2"]) -> Float[Tensor, "*p dim"]:
        """Exact at pixel positions: a coordinate within 1e-3 pixel of one reads that pixel alone."""
        h, w = self.size
        x0, x1, fx = self._axis(coords[..., 0], w, self.cylinder)
        y0, y1, fy = self._axis(coords[..., 1], h, False)
        top = torch.lerp(self.rows(y0, x0), self.rows(y0, x1), fx)
        bottom = torch.lerp(self.rows(y1, x0), self.rows(y1, x1), fx)
        return torch.lerp(top, bottom, fy)

    def _axis(self, c: Tensor, n: int, wraps: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The two neighbours of coordinates along an axis of n, and the weight of the second, [..., 1]."""
        unit = (c.double() + 1) / 2
        if wraps:
            position = (unit * n).remainder(n)
        elif self.lookup == "half_pixel":
            position = (unit * n - 0.5).clamp(0, n - 1)
        else:
            position = (unit * (n - 1)).clamp(0, n - 1)
        position = torch.where((position - position.round()).abs() < 1e-3, position.round(), position)
        low = position.floor().long()
        part = (position - low).to(self.weight.dtype).unsqueeze(-1)
        return (low % n, (low + 1) % n, part) if wraps else (low, (low + 1).clamp(max=n - 1), part)
