"""The CIPS generator (2011.13775, Sections 3 and 4.1): every pixel from its coordinates and w alone.

"main" of Table 3: Fourier features and coordinate embeddings, ModFC layers of one width, an RGB skip from each
block. The contract is coordinates in, colours out; no operation mixes pixels.
Differs from reference: embeddings are looked up exactly at their own pixels (the release blurs them by half a
pixel whenever it evaluates), and all layers keep one width (the release narrows the last two blocks).
"""

from math import log2, sqrt
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import Config
from pipeline.layers.equalized import lrelu
from pipeline.layers.modulated import ModFC, fp32
from pipeline.layers.noise import noise_maps
from pipeline.layers.posenc import pixel_coordinates
from pipeline.models.stylegan2 import Mapping, power_of_two
from pipeline.spec import UserError


class CIPSGeneratorConfig(Config):
    """Widths and switches; the number of blocks is log2(size_px) - 1 (seven at 256)."""

    kind: Literal["cips"] = "cips"
    size_px: int = 256
    width: int = Field(default=512, ge=1)
    z_dim: int = Field(default=512, ge=1)
    w_dim: int = Field(default=512, ge=1)
    mapping_layers: int = Field(default=8, ge=1)
    noise: bool = True  # per-pixel noise with a learned strength, as released; the paper's text has none

    _power_of_two = field_validator("size_px")(power_of_two)

    def build(self) -> "CIPSGenerator":
        return CIPSGenerator(self)


class FourierFeatures(nn.Module):
    """sin(B p + b) with trainable B ~ U(-sqrt(9/2), sqrt(9/2)) and b ~ U(-1/sqrt 2, 1/sqrt 2); float32."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, 2).uniform_(-sqrt(9 / 2), sqrt(9 / 2)))
        self.bias = nn.Parameter(torch.empty(dim).uniform_(-1 / sqrt(2), 1 / sqrt(2)))

    def forward(self, coords: Float[Tensor, "p 2"]) -> Float[Tensor, "p dim"]:
        with fp32(coords):
            return torch.sin(F.linear(coords, self.weight, self.bias))


class CoordinateEmbedding(nn.Module):
    """One free vector a pixel of a side x side image, N(0, 1); between pixels bilinear, corners aligned."""

    def __init__(self, side: int, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(side * side, dim))
        self.side = side

    def forward(self, coords: Float[Tensor, "p 2"]) -> Float[Tensor, "p dim"]:
        """Exact at pixel positions: a coordinate within 1e-3 pixel of one reads that pixel alone."""
        last = self.side - 1
        position = ((coords.double() + 1) / 2 * last).clamp(0, last)
        position = torch.where((position - position.round()).abs() < 1e-3, position.round(), position)
        low = position.floor().long()
        high = (low + 1).clamp(max=last)
        part = (position - low).to(self.weight.dtype)
        (x0, y0), (x1, y1), (fx, fy) = low.unbind(1), high.unbind(1), part.unbind(1)
        if not part.any():
            return self.weight[y0 * self.side + x0]
        top = torch.lerp(self.weight[y0 * self.side + x0], self.weight[y0 * self.side + x1], fx[:, None])
        bottom = torch.lerp(self.weight[y1 * self.side + x0], self.weight[y1 * self.side + x1], fx[:, None])
        return torch.lerp(top, bottom, fy[:, None])


class StyledFC(nn.Module):
    """ModFC, noise, bias, leaky ReLU."""

    def __init__(self, in_dim: int, out_dim: int, w_dim: int, *, noise: bool):
        super().__init__()
        self.fc = ModFC(in_dim, out_dim, w_dim)
        if noise:
            self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(out_dim))

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Float[Tensor, "n p o"]:
        x = self.fc(x, w)
        if noise is not None:
            x = x + (noise * self.noise_strength).to(x.dtype)
        return lrelu(x + self.bias.to(x.dtype))


class ToColour(nn.Module):
    """Modulated map to RGB without demodulation, plus bias."""

    def __init__(self, in_dim: int, w_dim: int):
        super().__init__()
        self.fc = ModFC(in_dim, 3, w_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor, w: Tensor) -> Float[Tensor, "n p 3"]:
        return self.fc(x, w).float() + self.bias


class CIPSGenerator(nn.Module):
    """z -> w -> colours of any set of coordinates. 15 ModFC and 7 toRGB at 256 px: 22 styles."""

    def __init__(self, cfg: CIPSGeneratorConfig):
        super().__init__()
        self.cfg, self.z_dim, self.w_dim = cfg, cfg.z_dim, cfg.w_dim
        self.mapping = Mapping(cfg.z_dim, cfg.w_dim, cfg.mapping_layers)
        self.fourier = FourierFeatures(cfg.width)
        self.embedding = CoordinateEmbedding(cfg.size_px, cfg.width)
        num_blocks = int(log2(cfg.size_px)) - 1
        dims = [2 * cfg.width] + [cfg.width] * (2 * num_blocks)
        self.layers = nn.ModuleList(StyledFC(d, cfg.width, cfg.w_dim, noise=cfg.noise) for d in dims)
        self.to_rgbs = nn.ModuleList(ToColour(cfg.width, cfg.w_dim) for _ in range(num_blocks))
        self.num_ws = len(self.layers) + len(self.to_rgbs)
        self.native_size = (cfg.size_px, cfg.size_px)

    def check_size(self, size: tuple[int, int]) -> None:
        """Any size of at least 2 x 2."""
        if min(size) < 2:
            raise UserError(f"size={size[0]}x{size[1]}: sides must be at least 2")

    def pixels(
        self,
        ws: Float[Tensor, "n num_ws w_dim"],
        coords: Float[Tensor, "p 2"],
        noise: list[Float[Tensor, "n p 1"]] | None = None,
    ) -> Float[Tensor, "n p 3"]:
        """Colours at (x, y) coordinates in [-1, 1]; `noise` holds one map for each ModFC."""
        return self._colours(ws, coords, self.embedding(coords), noise)

    def _colours(self, ws: Tensor, coords: Tensor, embedded: Tensor, noise: list[Tensor] | None) -> Tensor:
        x = torch.cat([self.fourier(coords), embedded], dim=1)[None]
        maps = noise if noise is not None else [None] * len(self.layers)
        x = self.layers[0](x, ws[:, 0], maps[0])
        colours = x.new_zeros(()).float()
        for i, to_rgb in enumerate(self.to_rgbs):
            a, b = 2 * i + 1, 2 * i + 2
            x = self.layers[b](self.layers[a](x, ws[:, a], maps[a]), ws[:, b], maps[b])
            colours = colours + to_rgb(x, ws[:, len(self.layers) + i])
        return colours

    def synthesis(
        self, ws: Float[Tensor, "n num_ws w_dim"], size: tuple[int, int], noise: tuple[int, ...] | None
    ) -> Float[Tensor, "n 3 h w"]:
        """Images on an end-inclusive grid of any size; `noise` holds one seed a sample."""
        h, w = size
        maps = None
        if self.cfg.noise and noise is not None:
            maps = noise_maps(noise, [(h * w, 1)] * len(self.layers), ws.device)
        coords = pixel_coordinates(size, ws.device)
        if size == self.native_size:  # every embedding is its own pixel's: no look-up
            colours = self._colours(ws, coords, self.embedding.weight, maps)
        else:
            colours = self.pixels(ws, coords, maps)
        return colours.mT.unflatten(2, (h, w))
