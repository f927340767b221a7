"""A U-Net (Ronneberger et al. 2015, 1505.04597) from a photograph to its depth, for GeoPos (2401.01951, version 2).

Version 2 has such an experiment; its network is unknown to us, so all of this is our choice. Two 3x3 convolutions a
level, the first with stride 2 on the way down; nearest up-sampling and the skip on the way up. Every convolution sees
the coordinate channels of `coords`. There is no norm: one over space (group, instance, layer norm) right behind a
GeoConv takes its shift, a constant in each channel, away again but for the border. Knows no loss.
"""

from math import log
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import Config
from pipeline.layers.coords import CoordChannels, CoordSpec

SLOPE = 0.2  # of the leaky ReLU


class UNetConfig(Config):
    """Size, widths, coordinates, and the range of depths."""

    kind: Literal["unet"] = "unet"
    image_px: int = Field(default=128, ge=4)
    levels: int = Field(default=5, ge=2)  # resolutions; the last has image_px / 2^(levels - 1)
    channel_base: int = Field(default=64, ge=1)  # of the first level; twice as many at each half of the size
    channel_max: int = Field(default=512, ge=1)
    coords: CoordSpec = CoordSpec()
    min_m: float = Field(default=0.5, gt=0)  # the network's depths lie between these, and no others are measured
    max_m: float = Field(default=10.0, gt=0)

    @model_validator(mode="after")
    def _values_agree(self) -> "UNetConfig":
        least = 1 << (self.levels - 1)
        if self.image_px % least:
            raise ValueError(f"image_px={self.image_px}: with levels={self.levels} it must be a multiple of {least}")
        if self.min_m >= self.max_m:
            raise ValueError(f"min_m={self.min_m} must be below max_m={self.max_m}")
        if self.coords.padding != "zero":
            raise ValueError(
                f"coords.padding={self.coords.padding!r}: these convolutions pad with 'zero'; leave it out"
            )
        return self

    def widths(self) -> list[int]:
        """Channels of each level: 64, 128, 256, 512, 512."""
        return [min(self.channel_base << i, self.channel_max) for i in range(self.levels)]

    def build(self) -> "UNet":
        return UNet(self)


class CoordinateConv(nn.Module):
    """3x3 convolution of x and its coordinate channels, zero padding; weights keep the variance of what they see."""

    def __init__(self, channels: int, out: int, spec: CoordSpec, stride: int = 1):
        super().__init__()
        self.coords = CoordChannels(spec)
        self.conv = nn.Conv2d(channels + self.coords.count, out, 3, stride, padding=1)
        nn.init.kaiming_normal_(self.conv.weight, a=SLOPE)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        return self.conv(self.coords(x))


class UNet(nn.Module):
    """Photographs in [-1, 1] to depths in metres between min_m and max_m; sides are multiples of 2^(levels - 1)."""

    img_channels = 3

    def __init__(self, cfg: UNetConfig):
        super().__init__()
        self.cfg, widths, made = cfg, cfg.widths(), 0

        def conv(channels: int, out: int, stride: int = 1) -> CoordinateConv:
            nonlocal made
            made += 1
            return CoordinateConv(channels, out, cfg.coords.at(made - 1), stride)

        ways = zip([self.img_channels, *widths], widths, strict=False)
        self.down = nn.ModuleList(
            nn.ModuleList([conv(before, width, 1 if i == 0 else 2), conv(width, width)])
            for i, (before, width) in enumerate(ways)
        )
        self.up = nn.ModuleList(
            nn.ModuleList([conv(below + width, width), conv(width, width)])
            for below, width in reversed(list(zip(widths[1:], widths, strict=False)))
        )
        self.head = conv(widths[0], 1)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1 h w"]:
        maps = []
        for level in self.down:
            x = _through(level, x)
            maps.append(x)
        for level, skip in zip(self.up, reversed(maps[:-1]), strict=True):
            x = _through(level, torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skip], dim=1))
        low, high = log(self.cfg.min_m), log(self.cfg.max_m)
        return torch.exp(low + (high - low) * torch.sigmoid(self.head(x).float()))


def _through(level: nn.Module, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
    for conv in level.children():
        x = F.leaky_relu(conv(x), SLOPE)
    return x
