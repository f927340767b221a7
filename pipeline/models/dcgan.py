"""DCGAN (Radford et al. 2016, 1511.06434) with up-convolutions, as in MS-PIE (2012.05217, Section 4) and GeoPos.

G: a dense layer to 4x4, then x2 and a 3x3 convolution until the resolution; D: strided 4x4 convolutions without batch
norm, as its gradient penalty wants. `padding`, `head` as in models/pggan.py. Knows no loss. `coords` (GeoPos,
2401.01951, Fig. 3): channels before each convolution, not before the two dense layers: D's last one, over the whole
4x4 map, would make of a shift noise on the logit. `num_classes`: w = [z, e(c)] in G, a projection in D (1802.05637).
Differs from reference: the paper names the architecture and nothing more; widths are the original's. Batch norm is
over `bn_group` consecutive samples and keeps no running statistics: in evaluation those of a fixed group of latents,
made at the size asked for, normalise all images, so that an image depends on nothing beside it.
"""

import warnings
from math import log2
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.chance import rng
from pipeline.config import Config, added
from pipeline.layers.coords import CoordChannels, CoordSpec, shifted
from pipeline.layers.norm import GroupBatchNorm2d
from pipeline.layers.posenc import Convention, head_code
from pipeline.models.pggan import HEAD_PX, check_multiples, interpolated
from pipeline.models.stylegan2 import power_of_two

INIT_STD = 0.02


class DCGANGeneratorConfig(Config):
    """Depth, width, padding and the code at the head."""

    kind: Literal["dcgan"] = "dcgan"
    resolution_px: int = Field(default=128)
    channel_base: int = Field(default=64, ge=1)  # before the last convolution; twice as many at each half of the size
    z_dim: int = Field(default=100, ge=1)
    bn_group: int = Field(default=16, ge=1)  # consecutive samples of one batch norm
    padding: bool = True  # False: no zero padding anywhere
    head: Literal["none", "spe", "csg"] = "none"  # at the first map, rebuilt at each size: spe added, csg appended
    convention: Convention = "release"  # Parity: formulas of the StyleGAN2 release, or as printed ("paper")
    coords: CoordSpec = added(CoordSpec())  # channels that each convolution sees
    num_classes: int = added(0, ge=0)  # 0: no labels

    _power_of_two = field_validator("resolution_px")(power_of_two)

    @model_validator(mode="after")
    def _values_agree(self) -> "DCGANGeneratorConfig":
        if self.head == "spe" and self.widths()[0] % 4:
            raise ValueError(f"channel_base={self.channel_base} gives {self.widths()[0]} channels, not a multiple of 4")
        _zero_outside(self.coords)
        return self

    def widths(self) -> list[int]:
        """Channels of the maps from 4x4 on: 1024, 512, 256, 128, 64 at 128 px."""
        return _widths(self.resolution_px, self.channel_base)

    def build(self) -> "DCGANGenerator":
        if self.coords.shifts and (self.coords.draw == "batch" or self.bn_group == 1):
            what = 'coords.draw="batch"' if self.coords.draw == "batch" else "bn_group=1"
            warnings.warn(
                f"family.G: {what}: all that batch norm averages over has one shift, which it cancels but for the "
                'border; use coords.draw="sample" and bn_group > 1',
                stacklevel=2,
            )
        return DCGANGenerator(self)


def _zero_outside(coords: CoordSpec) -> None:
    if coords.padding != "zero":
        raise ValueError(f"coords.padding={coords.padding!r} is not made for this network; use 'zero'")


def _widths(resolution_px: int, channel_base: int) -> list[int]:
    doublings = int(log2(resolution_px // HEAD_PX))
    return [channel_base << i for i in reversed(range(doublings))]


def _initialised(net: nn.Module) -> None:
    """N(0, 0.02); weights of batch norm around 1; biases 0; G's embedding N(0, 1), as z."""
    for name, p in net.named_parameters():
        if name == "embedding.weight":
            nn.init.normal_(p)
        elif name.endswith("bias"):
            nn.init.zeros_(p)
        else:
            nn.init.normal_(p, mean=float(p.ndim == 1), std=INIT_STD)


def _seen(coords: CoordSpec, channels: list[int]) -> tuple[nn.ModuleList, list[int]]:
    """The coordinate channels of each convolution, and how many channels it has with them."""
    made = nn.ModuleList(CoordChannels(coords.at(i)) for i in range(len(channels)))
    return made, [n + coords.at(i).channels(2) for i, n in enumerate(channels)]


class DCGANGenerator(nn.Module):
    """z, and a label where there are classes -> image in [-1, 1]. There is one w, and no noise.

    Training mode wants a multiple of bn_group samples. Sizes never trained: the first map is interpolated, the code
    rebuilt, everything else is convolution.
    """

    num_ws = 1

    def __init__(self, cfg: DCGANGeneratorConfig):
        super().__init__()
        self.cfg, self.z_dim, width = cfg, cfg.z_dim, cfg.widths()
        self.native_size, self.num_classes = (cfg.resolution_px, cfg.resolution_px), cfg.num_classes
        w_dim = 2 * cfg.z_dim if cfg.num_classes else cfg.z_dim
        self.fc = nn.Linear(w_dim, width[0] * HEAD_PX**2, bias=False)
        self.norms = nn.ModuleList(GroupBatchNorm2d(channels, cfg.bn_group) for channels in width)
        code = 2 if cfg.head == "csg" else 0
        self.coords, seen = _seen(cfg.coords, [width[0] + code, *width[1:]])
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=int(cfg.padding), bias=b == 3)
            for a, b in zip(seen, [*width[1:], 3], strict=True)
        )
        self.embedding = nn.Embedding(cfg.num_classes, cfg.z_dim) if cfg.num_classes else None
        _initialised(self)

    def check_size(self, size: tuple[int, int]) -> None:
        check_multiples(size, 1 << len(self.convs))

    def mapping(self, z: Float[Tensor, "n z_dim"], c: Int64[Tensor, " n"] | None = None) -> Float[Tensor, "n w_dim"]:
        """z itself, or [z, embedding of c]; without c that of class 0."""
        if self.embedding is None:
            return z
        c = torch.zeros(len(z), dtype=torch.int64, device=z.device) if c is None else c
        return torch.cat([z, self.embedding(c)], dim=1)

    def standing(self, device: torch.device) -> Float[Tensor, "bn_group z_dim"]:
        """The latents whose statistics evaluation uses; of the classes in turn."""
        z = rng("standing statistics").standard_normal((self.cfg.bn_group, self.z_dim), dtype=np.float32)
        return torch.from_numpy(z).to(device)

    def synthesis(
        self, ws: Float[Tensor, "n 1 w_dim"], size: tuple[int, int], noise: tuple[int, ...] | None
    ) -> Float[Tensor, "n 3 h w"]:
        """Images of any size that `check_size` allows; `noise` seeds shifts in evaluation (coords.stochastic_eval)."""
        w = ws[:, 0]
        if self.training:
            return self.images(self.first_map(w, size))
        group = self.cfg.bn_group
        c = torch.arange(group, device=w.device) % max(1, self.num_classes)
        standing = self.mapping(self.standing(w.device), c)
        with shifted([self], (*range(group), *(noise or [0] * len(w))), 0):
            return self.images(self.first_map(torch.cat([standing, w]), size))[group:]

    def first_map(self, w: Float[Tensor, "n w_dim"], size: tuple[int, int]) -> Float[Tensor, "n c h w"]:
        """The first map for an image of this size, the code in it."""
        x = self.fc(w).unflatten(1, (-1, HEAD_PX, HEAD_PX))
        grid = (size[0] >> len(self.convs), size[1] >> len(self.convs))
        x = interpolated(F.relu(self.norms[0](x, leading=not self.training)), grid)
        if self.cfg.head == "spe":
            x = x + head_code("spe", x.shape[1], grid, self.cfg.convention, x.device)
        elif self.cfg.head == "csg":
            code = head_code("csg", 2, grid, self.cfg.convention, x.device)
            x = torch.cat([x, code.to(x.dtype).expand(len(x), -1, -1, -1)], dim=1)
        return x

    def images(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 h2 w2"]:
        """From the first map."""
        more = 0 if self.cfg.padding else 2  # what a 3x3 without padding takes away
        for i, conv in enumerate(self.convs):
            x = conv(self.coords[i](interpolated(x, (2 * x.shape[2] + more, 2 * x.shape[3] + more))))
            if i + 1 < len(self.convs):
                x = F.relu(self.norms[i + 1](x, leading=not self.training))
        return torch.tanh(x.float())


class DCGANDiscriminatorConfig(Config):
    """Depth, width, and what G has too."""

    resolution_px: int = Field(default=128)
    channel_base: int = Field(default=64, ge=1)  # of the first convolution; twice as many at each half of the size
    coords: CoordSpec = added(CoordSpec())  # channels that each strided convolution sees
    num_classes: int = added(0, ge=0)  # 0: no labels

    _power_of_two = field_validator("resolution_px")(power_of_two)

    @model_validator(mode="after")
    def _values_agree(self) -> "DCGANDiscriminatorConfig":
        _zero_outside(self.coords)
        return self

    def build(self) -> "DCGANDiscriminator":
        return DCGANDiscriminator(self)


class DCGANDiscriminator(nn.Module):
    """Images of the trained size, and their labels where there are classes, to logits."""

    def __init__(self, cfg: DCGANDiscriminatorConfig):
        super().__init__()
        width = [3, *reversed(_widths(cfg.resolution_px, cfg.channel_base))]
        self.coords, seen = _seen(cfg.coords, width[:-1])
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in zip(seen, width[1:], strict=True)
        )
        self.last = nn.Conv2d(width[-1], 1, HEAD_PX)
        self.project = nn.Embedding(cfg.num_classes, width[-1]) if cfg.num_classes else None
        _initialised(self)

    def forward(self, img: Float[Tensor, "n 3 h w"], c: Int64[Tensor, " n"] | None = None) -> Float[Tensor, " n"]:
        """Without c the logits of class 0. With classes: + <e(c), features summed over the last map>."""
        for coords, conv in zip(self.coords, self.convs, strict=True):
            img = F.leaky_relu(conv(coords(img)), 0.2)
        logits = self.last(img).flatten()
        if self.project is None:
            return logits
        c = torch.zeros(len(img), dtype=torch.int64, device=img.device) if c is None else c
        return logits + (self.project(c) * img.sum(dim=(2, 3))).sum(dim=1)
