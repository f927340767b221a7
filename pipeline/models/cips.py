"""The CIPS generators (2011.13775, Sections 3 and 4.1, Table 3): every pixel from its coordinates and w alone.

The contract is coordinates in, colours out; no operation mixes pixels, so pixels come in any set, order and number.
Differs from reference: embeddings are looked up exactly at their own pixels (the release blurs them by half a
pixel whenever it evaluates; `lookup`), and all layers keep one width (the release narrows the last blocks; `taper`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from math import log2, sqrt
from typing import Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pipeline.config import Config, added
from pipeline.layers.modulated import BiasLeakyReLU, ModFC
from pipeline.layers.noise import noise_maps
from pipeline.layers.posenc import pixel_coordinates
from pipeline.models.cips_input import CoordinateEmbedding, FourierFeatures, Lookup, cylinder_coordinates
from pipeline.models.stylegan2 import Mapping, power_of_two
from pipeline.spec import UserError

PIXELS_AT_ONCE = 1 << 16  # of one forward without gradients, over all its samples
HALVINGS = {"skips": (0, 0, 0, 0, 0, 1, 2, 3, 4), "residual": (0, 0, 0, 0, 0, 1, 2, 2, 3)}  # of widths, as released

Variant = Literal["skips", "base", "ne", "no_fourier", "residual", "sine"]


class CIPSGeneratorConfig(Config):
    """Widths and switches. The number of blocks, two ModFC each, is log2 of the embeddings' side - 1 (seven at 256).

    `variant`, a row of Table 3. Its columns leave open what an input without embeddings or Fourier features is:
    "ne" has 1024 Fourier features, so that every layer is as wide as in "base" (10.2 M, as published);
    "no_fourier" and "sine" have embeddings alone; "sine" has sin, gain 1, for every activation and no other change.
    """

    kind: Literal["cips"] = "cips"
    size_px: int = 256
    width: int = Field(default=512, ge=1)
    z_dim: int = Field(default=512, ge=1)
    w_dim: int = Field(default=512, ge=1)
    mapping_layers: int = Field(default=8, ge=1)
    noise: bool = True  # per-pixel noise with a learned strength, as released; the paper's text has none
    variant: Variant = added("skips")
    taper: bool = added(False)  # Parity: the last blocks 1/2, 1/4 ... as wide; 256 and 128 at 256 px
    lookup: Lookup = added("exact")
    embedding_px: int | None = added(None)  # side of the grid of embeddings; None: size_px
    cylinder_px: int | None = added(None, ge=2)  # panoramas: width of the cylindrical grid, size_px high; None: plane

    _power_of_two = field_validator("size_px")(power_of_two)

    @field_validator("embedding_px")
    @classmethod
    def _embedding_power_of_two(cls, value: int | None) -> int | None:
        return value if value is None else power_of_two(value)

    @model_validator(mode="after")
    def _agrees(self) -> "CIPSGeneratorConfig":
        if self.cylinder_px is not None and self.cylinder_px < self.size_px:
            raise ValueError(f"cylinder_px={self.cylinder_px} must be at least size_px={self.size_px}, or null")
        if self.cylinder_px is not None and self.lookup != "exact":
            raise ValueError(f"lookup={self.lookup!r} has no cylinder, as the release has none; use lookup=exact")
        if self.variant == "ne" and (self.lookup != "exact" or self.embedding_px is not None):
            raise ValueError("variant='ne' has no embeddings; leave lookup and embedding_px as they are")
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the grid of coordinates that is trained."""
        return (self.size_px, self.cylinder_px or self.size_px)

    @property
    def embedding_grid(self) -> tuple[int, int]:
        side = self.embedding_px or self.size_px
        return (side, self.cylinder_px or side)

    @property
    def num_blocks(self) -> int:
        return int(log2(self.embedding_grid[0])) - 1

    def block_width(self, i: int) -> int:
        halvings = HALVINGS["residual" if self.variant == "residual" else "skips"]
        return max(1, self.width >> halvings[min(i, 8)]) if self.taper else self.width

    def build(self) -> "CIPSGenerator":
        return CIPSGenerator(self)


class StyledFC(nn.Module):
    """ModFC, noise, bias, leaky ReLU (or sine)."""

    def __init__(self, in_dim: int, out_dim: int, w_dim: int, *, noise: bool, sine: bool = False):
        super().__init__()
        self.fc = ModFC(in_dim, out_dim, w_dim)
        if noise:
            self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(out_dim))
        self.sine = sine

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Float[Tensor, "n p o"]:
        x = self.fc(x, w)
        shift = None if noise is None else (noise * self.noise_strength).to(x.dtype)
        bias = self.bias.to(x.dtype)
        if self.sine:
            return torch.sin((x if shift is None else x + shift) + bias)
        return BiasLeakyReLU.of(x, shift, bias)


class ToColour(nn.Module):
    """Modulated map to RGB without demodulation, plus bias."""

    def __init__(self, in_dim: int, w_dim: int):
        super().__init__()
        self.fc = ModFC(in_dim, 3, w_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor, w: Tensor) -> Float[Tensor, "n p 3"]:
        return self.fc(x, w).float() + self.bias


class Shortcut(nn.Module):
    """Linear map of equalised learning rate past a residual pair that changes the width; no bias."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_dim, in_dim))

    def forward(self, x: Float[Tensor, "n p i"]) -> Float[Tensor, "n p o"]:
        return F.linear(x, self.weight / sqrt(self.weight.shape[1]))


class CIPSGenerator(nn.Module):
    """z -> w -> colours of any set of coordinates. "skips" has 15 ModFC and 7 toRGB at 256 px: 22 styles.

    Without gradients and in eval mode, work is done PIXELS_AT_ONCE pixels at a time, which bounds memory.
    `recompute`, an attribute: keep only what enters each block for backward and compute the block again there.
    """

    def __init__(self, cfg: CIPSGeneratorConfig):
        super().__init__()
        self.cfg, self.z_dim, self.w_dim = cfg, cfg.z_dim, cfg.w_dim
        self.mapping = Mapping(cfg.z_dim, cfg.w_dim, cfg.mapping_layers)
        cylinder, features = cfg.cylinder_px is not None, 0
        if cfg.variant not in ("no_fourier", "sine"):
            features += cfg.width * (2 if cfg.variant == "ne" else 1)
            self.fourier = FourierFeatures(features, cylinder=cylinder)
        if cfg.variant != "ne":
            features += cfg.width
            self.embedding = CoordinateEmbedding(cfg.embedding_grid, cfg.width, lookup=cfg.lookup, cylinder=cylinder)
        self.first = 1 if cfg.variant in ("skips", "residual") else 0  # layers before the first block
        widths = [cfg.block_width(i) for i in range(cfg.num_blocks)]
        dims = [features] + [cfg.width] * self.first + [d for d in widths for _ in range(2)]
        sine = cfg.variant == "sine"
        self.layers = nn.ModuleList(StyledFC(a, b, cfg.w_dim, noise=cfg.noise, sine=sine) for a, b in pairwise(dims))
        rgb_dims = widths if cfg.variant == "skips" else widths[-1:]
        self.to_rgbs = nn.ModuleList(ToColour(d, cfg.w_dim) for d in rgb_dims)
        if cfg.variant == "residual":
            pairs = zip([cfg.width, *widths], widths, strict=False)
            self.shortcuts = nn.ModuleList(nn.Identity() if a == b else Shortcut(a, b) for a, b in pairs)
        self.num_ws = len(self.layers) + len(self.to_rgbs)
        self.native_size = cfg.grid
        self.recompute = False
        self._zero: frozenset[str] = frozenset()

    def check_size(self, size: tuple[int, int]) -> None:
        """Any size of at least 2 x 2."""
        if min(size) < 2:
            raise UserError(f"size={size[0]}x{size[1]}: sides must be at least 2")

    def coordinates(self, size: tuple[int, int], device: torch.device) -> Float[Tensor, "p 2"]:
        """(x, y) of every pixel of a grid of this size, row by row; see cips_input."""
        return (pixel_coordinates if self.cfg.cylinder_px is None else cylinder_coordinates)(size, device)

    def pixels(
        self,
        ws: Float[Tensor, "n num_ws w_dim"],
        coords: Float[Tensor, "*m p 2"],
        noise: list[Float[Tensor, "n p 1"]] | None = None,
    ) -> Float[Tensor, "n p 3"]:
        """Colours at (x, y) coordinates, [p, 2] for all samples or [n, p, 2]; `noise` has one map for each ModFC."""
        coords = coords if coords.ndim == 3 else coords[None]

        def code(part: slice) -> Tensor:
            return self._joined(*self._codes(coords[:, part]))

        return self._in_parts(ws, coords.shape[1], code, noise, _total)

    def at(
        self,
        ws: Float[Tensor, "n num_ws w_dim"],
        rows: Int64[Tensor, "k h"],
        cols: Int64[Tensor, "l w"],
        noise: tuple[int, ...] | None = None,
    ) -> Float[Tensor, "n 3 h w"]:
        """Colours at whole positions of the trained grid: k and l are n, or 1 for all samples. Columns wrap on a
        cylinder. `noise` holds one seed a sample; a pixel's noise is that of `synthesis`, wherever it is asked for.
        """
        height, width = self.native_size
        rows, cols = rows[:, :, None], cols[:, None, :]
        cols = cols % width if self.cfg.cylinder_px is not None else cols
        h, w = rows.shape[1], cols.shape[2]
        place = (rows * width + cols).flatten(1)  # [k or l, p]
        own = self.cfg.embedding_grid == self.native_size and self.cfg.lookup == "exact"
        grid = self.coordinates(self.native_size, ws.device)

        def code(part: slice) -> Tensor:
            return self._joined(*self._codes(grid[place[:, part]], place[:, part] if own else None))

        maps = None
        if self.cfg.noise and noise is not None:
            seeds = {seed: i for i, seed in enumerate(dict.fromkeys(noise))}
            which = torch.tensor([seeds[seed] for seed in noise], device=ws.device)[:, None]
            maps = noise_maps(tuple(seeds), [(height * width, 1)] * len(self.layers), ws.device)
            maps = [m[which, place] for m in maps]
        return self._in_parts(ws, h * w, code, maps, _total).mT.unflatten(2, (h, w))

    def synthesis(
        self, ws: Float[Tensor, "n num_ws w_dim"], size: tuple[int, int], noise: tuple[int, ...] | None
    ) -> Float[Tensor, "n 3 h w"]:
        """Images on the grid of a size, any; `noise` holds one seed a sample."""
        return self._on_grid(ws, size, noise, _total).mT.unflatten(2, size)

    def contributions(
        self, ws: Float[Tensor, "n num_ws w_dim"], size: tuple[int, int], noise: tuple[int, ...] | None = None
    ) -> list[Float[Tensor, "n 3 h w"]]:
        """The image as its summands: one of each toRGB."""
        return list(self._on_grid(ws, size, noise, _stacked).mT.unflatten(3, size))

    def codes(self, size: tuple[int, int]) -> tuple[Float[Tensor, "p f"], Float[Tensor, "p e"]]:
        """Fourier features and embeddings of every pixel of a grid, row by row; width 0 where the variant has none."""
        device = next(self.parameters()).device
        fourier, embedded = self._codes(self.coordinates(size, device)[None], self._own(size))
        return fourier[0], embedded[0]

    @contextmanager
    def zeroed(self, *, fourier: bool = False, embedding: bool = False) -> Iterator[None]:
        """A region in which one of the codes is zero (Figure 6); UserError where the variant has no such code."""
        named = frozenset(name for name, on in (("fourier", fourier), ("embedding", embedding)) if on)
        for name in named:
            if not hasattr(self, name):
                raise UserError(f"variant={self.cfg.variant!r} has no {name} code that could be zero")
        before, self._zero = self._zero, named
        try:
            yield
        finally:
            self._zero = before

    def _own(self, size: tuple[int, int]) -> slice | None:
        """All embeddings in order where a grid of this size is theirs, which needs no look-up; else None."""
        own = size == self.native_size == self.cfg.embedding_grid
        return slice(None) if own and (self.training or self.cfg.lookup == "exact") else None

    def _codes(self, coords: Tensor, place: Tensor | slice | None = None) -> tuple[Tensor, Tensor]:
        """Fourier features and embeddings, [m, p, .] each; `place`: where the embeddings lie, if that is known."""
        none = coords.new_zeros(*coords.shape[:-1], 0)
        fourier = self.fourier(coords) if hasattr(self, "fourier") else none
        embedded = none
        if hasattr(self, "embedding"):
            table = self.embedding.weight
            if isinstance(place, slice):
                embedded = (table if place == slice(None) else table[place])[None]
            else:
                embedded = self.embedding(coords) if place is None else table[place]
        return fourier, embedded

    def _joined(self, fourier: Tensor, embedded: Tensor) -> Tensor:
        fourier = torch.zeros_like(fourier) if "fourier" in self._zero else fourier
        embedded = torch.zeros_like(embedded) if "embedding" in self._zero else embedded
        return torch.cat([fourier, embedded], dim=2)

    def _on_grid(
        self,
        ws: Tensor,
        size: tuple[int, int],
        noise: tuple[int, ...] | None,
        of: Callable[[Iterator[Tensor]], Tensor],
    ) -> Tensor:
        pixels, maps = size[0] * size[1], None
        if self.cfg.noise and noise is not None:
            maps = noise_maps(noise, [(pixels, 1)] * len(self.layers), ws.device)
        coords, own = self.coordinates(size, ws.device)[None], self._own(size)

        def code(part: slice) -> Tensor:
            return self._joined(*self._codes(coords[:, part], None if own is None else part))

        return self._in_parts(ws, pixels, code, maps, of)

    def _in_parts(
        self,
        ws: Tensor,
        pixels: int,
        code: Callable[[slice], Tensor],
        noise: list[Tensor] | None,
        of: Callable[[Iterator[Tensor]], Tensor],
    ) -> Tensor:
        """[..., n, p, 3]: `of` the blocks' colours of these pixels, a bounded number at a time where that is free."""
        at_once = max(1, PIXELS_AT_ONCE // max(1, len(ws)))
        if self.training or torch.is_grad_enabled() or pixels <= at_once:
            return of(self._colours(ws, code(slice(None)), noise))
        done = []
        for i in range(0, pixels, at_once):
            part = slice(i, i + at_once)
            done.append(of(self._colours(ws, code(part), noise and [m[:, part] for m in noise])))
        return torch.cat(done, dim=-2)

    def _colours(self, ws: Tensor, x: Tensor, noise: list[Tensor] | None) -> Iterator[Tensor]:
        """The summands of the colours, block by block."""
        maps: Sequence[Tensor | None] = noise if noise is not None else [None] * len(self.layers)
        for i in range(self.cfg.num_blocks):
            if self.recompute and torch.is_grad_enabled():
                x, rgb = checkpoint(self._block, i, x, ws, maps, use_reentrant=False, preserve_rng_state=False)
            else:
                x, rgb = self._block(i, x, ws, maps)
            if rgb is not None:
                yield rgb

    def _block(self, i: int, x: Tensor, ws: Tensor, maps: Sequence[Tensor | None]) -> tuple[Tensor, Tensor | None]:
        a = self.first + 2 * i
        if i == 0 and self.first:
            x = self.layers[0](x, ws[:, 0], maps[0])
        y = self.layers[a](x, ws[:, a], maps[a])
        y = self.layers[a + 1](y, ws[:, a + 1], maps[a + 1])
        if self.cfg.variant == "residual":
            y = (y + self.shortcuts[i](x)) / sqrt(2)
        k = i if self.cfg.variant == "skips" else i - self.cfg.num_blocks + 1
        return y, self.to_rgbs[k](y, ws[:, len(self.layers) + k]) if k >= 0 else None


def _total(colours: Iterator[Tensor]) -> Float[Tensor, "n p 3"]:
    total = next(colours)
    for one in colours:
        total = total + one
    return total


def _stacked(colours: Iterator[Tensor]) -> Float[Tensor, "b n p 3"]:
    return torch.stack(list(colours))
