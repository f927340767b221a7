"""DCGAN (Radford et al. 2016, 1511.06434) with up-convolutions, as in MS-PIE (2012.05217, Section 4).

G: a dense layer to 4x4, then x2 and a 3x3 convolution until the resolution; D: strided 4x4 convolutions without batch
norm, as its gradient penalty wants. `padding`, `head` as in models/pggan.py. Knows no loss.
Differs from reference: the paper names the architecture and nothing more; widths are the original's. Batch norm is
over `bn_group` consecutive samples and keeps no running statistics: in evaluation those of a fixed group of latents,
made at the size asked for, normalise all images, so that an image depends on nothing beside it.
"""

from itertools import pairwise
from math import log2
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.chance import rng
from pipeline.config import Config
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
    head: Literal["none", "spe"] = "none"  # added to the first map, rebuilt at each size
    convention: Convention = "release"  # Parity: formulas of the StyleGAN2 release, or as printed ("paper")

    _power_of_two = field_validator("resolution_px")(power_of_two)

    @model_validator(mode="after")
    def _values_agree(self) -> "DCGANGeneratorConfig":
        if self.head == "spe" and self.widths()[0] % 4:
            raise ValueError(f"channel_base={self.channel_base} gives {self.widths()[0]} channels, not a multiple of 4")
        return self

    def widths(self) -> list[int]:
        """Channels of the maps from 4x4 on: 1024, 512, 256, 128, 64 at 128 px."""
        return _widths(self.resolution_px, self.channel_base)

    def build(self) -> "DCGANGenerator":
        return DCGANGenerator(self)


def _widths(resolution_px: int, channel_base: int) -> list[int]:
    doublings = int(log2(resolution_px // HEAD_PX))
    return [channel_base << i for i in reversed(range(doublings))]


def _initialised(net: nn.Module) -> None:
    """N(0, 0.02); weights of batch norm around 1; biases 0."""
    for name, p in net.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(p)
        else:
            nn.init.normal_(p, mean=float(p.ndim == 1), std=INIT_STD)


class DCGANGenerator(nn.Module):
    """z -> image in [-1, 1]. w is z; there is one, and no noise.

    Training mode wants a multiple of bn_group samples. Sizes never trained: the first map is interpolated, the code
    rebuilt, everything else is convolution.
    """

    num_ws = 1

    def __init__(self, cfg: DCGANGeneratorConfig):
        super().__init__()
        self.cfg, self.z_dim, width = cfg, cfg.z_dim, cfg.widths()
        self.native_size = (cfg.resolution_px, cfg.resolution_px)
        self.fc = nn.Linear(cfg.z_dim, width[0] * HEAD_PX**2, bias=False)
        self.norms = nn.ModuleList(GroupBatchNorm2d(channels, cfg.bn_group) for channels in width)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=int(cfg.padding), bias=b == 3) for a, b in pairwise([*width, 3])
        )
        _initialised(self)

    def check_size(self, size: tuple[int, int]) -> None:
        check_multiples(size, 1 << len(self.convs))

    def mapping(self, z: Float[Tensor, "n z_dim"]) -> Float[Tensor, "n z_dim"]:
        return z

    def standing(self, device: torch.device) -> Float[Tensor, "bn_group z_dim"]:
        """The latents whose statistics evaluation uses."""
        z = rng("standing statistics").standard_normal((self.cfg.bn_group, self.z_dim), dtype=np.float32)
        return torch.from_numpy(z).to(device)

    def synthesis(
        self, ws: Float[Tensor, "n 1 w_dim"], size: tuple[int, int], noise: tuple[int, ...] | None
    ) -> Float[Tensor, "n 3 h w"]:
        """Images of any size that `check_size` allows; `noise` has no effect."""
        w = ws[:, 0]
        if self.training:
            return self.images(self.first_map(w, size))
        group = self.cfg.bn_group
        return self.images(self.first_map(torch.cat([self.standing(w.device), w]), size))[group:]

    def first_map(self, w: Float[Tensor, "n z_dim"], size: tuple[int, int]) -> Float[Tensor, "n c h w"]:
        """The first map for an image of this size, the code in it."""
        x = self.fc(w).unflatten(1, (-1, HEAD_PX, HEAD_PX))
        grid = (size[0] >> len(self.convs), size[1] >> len(self.convs))
        x = interpolated(F.relu(self.norms[0](x, leading=not self.training)), grid)
        if self.cfg.head == "spe":
            x = x + head_code("spe", x.shape[1], grid, self.cfg.convention, x.device)
        return x

    def images(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 h2 w2"]:
        """From the first map."""
        more = 0 if self.cfg.padding else 2  # what a 3x3 without padding takes away
        for i, conv in enumerate(self.convs):
            x = conv(interpolated(x, (2 * x.shape[2] + more, 2 * x.shape[3] + more)))
            if i + 1 < len(self.convs):
                x = F.relu(self.norms[i + 1](x, leading=not self.training))
        return torch.tanh(x.float())


class DCGANDiscriminatorConfig(Config):
    """Depth and width."""

    resolution_px: int = Field(default=128)
    channel_base: int = Field(default=64, ge=1)  # of the first convolution; twice as many at each half of the size

    _power_of_two = field_validator("resolution_px")(power_of_two)

    def build(self) -> "DCGANDiscriminator":
        return DCGANDiscriminator(self)


class DCGANDiscriminator(nn.Module):
    """Images of the trained size to logits."""

    def __init__(self, cfg: DCGANDiscriminatorConfig):
        super().__init__()
        width = [3, *reversed(_widths(cfg.resolution_px, cfg.channel_base))]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(width))
        self.last = nn.Conv2d(width[-1], 1, HEAD_PX)
        _initialised(self)

    def forward(self, img: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
        for conv in self.convs:
            img = F.leaky_relu(conv(img), 0.2)
        return self.last(img).flatten()
