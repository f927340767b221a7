"""StyleGAN2's mapping network and residual discriminator (Karras et al. 2020, 1912.04958).

Both methods of this project train against this discriminator. Pure torch operators; no compiled extension.
Differs from reference: the minibatch-std group is configured, never derived from the batch (layers/norm.py).
"""

from itertools import pairwise
from math import log2, sqrt

import torch
from jaxtyping import Float
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import Config, added
from pipeline.layers.equalized import EqualizedConv2d, EqualizedLinear, limited, lrelu
from pipeline.layers.modulated import fp32
from pipeline.layers.norm import minibatch_std, pixel_norm
from pipeline.layers.resample import fir


def channels_at(side: int, multiplier: int, channel_max: int) -> int:
    """Feature maps at a resolution: 512 up to 32 px, then 256 C, 128 C, 64 C ... (C = 2 is "config F")."""
    return min(channel_max, channel_max if side <= 32 else 16384 * multiplier // side)


def power_of_two(value: int) -> int:
    if value < 8 or value & (value - 1):
        raise ValueError("must be a power of two, at least 8")
    return value


class Mapping(nn.Module):
    """z -> w: pixel norm, then `layers` fully connected layers with lr multiplier 0.01. float32 throughout."""

    def __init__(self, z_dim: int, w_dim: int, layers: int):
        super().__init__()
        dims = [z_dim] + [w_dim] * layers
        self.layers = nn.ModuleList(EqualizedLinear(a, b, lr_mul=0.01) for a, b in pairwise(dims))

    def forward(self, z: Float[Tensor, "n z_dim"]) -> Float[Tensor, "n w_dim"]:
        with fp32(z):
            x = pixel_norm(z.float())
            for layer in self.layers:
                x = lrelu(layer(x))
            return x


class DownBlock(nn.Module):
    """3x3, blurred 3x3 of stride 2, and a blurred 1x1 shortcut; sum / sqrt(2)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv0 = EqualizedConv2d(in_channels, in_channels, 3, padding=1)
        self.conv1 = EqualizedConv2d(in_channels, out_channels, 3, stride=2)
        self.skip = EqualizedConv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n o ho wo"]:
        y = lrelu(self.conv1(fir(lrelu(self.conv0(x)), pad=2)))
        return limited((y + self.skip(fir(x, pad=1, stride=2))) / sqrt(2))


class DiscriminatorConfig(Config):
    """Residual D. `resolution_px` sets its depth; it runs fully convolutionally on other sizes when pooled."""

    resolution_px: int = Field(default=256)
    channel_multiplier: int = Field(default=2, ge=1)  # C: 2 is NVlabs' "config F", 1 half of it above 32 px
    channel_max: int = Field(default=512, ge=1)
    mbstd_group: int = Field(default=4, ge=1)  # consecutive samples of one minibatch-std statistic
    pool: int | None = Field(
        default=None, ge=1
    )  # adaptive average pool to pool x pool before the head; None: one size only
    fp16_blocks: int = added(0, ge=0)  # residual blocks in float16, from the largest down

    _power_of_two = field_validator("resolution_px")(power_of_two)

    @model_validator(mode="after")
    def _enough_blocks(self) -> "DiscriminatorConfig":
        blocks = len(self.sides()) - 1
        if self.fp16_blocks > blocks:
            raise ValueError(
                f"fp16_blocks={self.fp16_blocks} is more than the {blocks} blocks at {self.resolution_px} px"
            )
        return self

    def sides(self) -> list[int]:
        """resolution_px, half of it ... 4."""
        return [self.resolution_px >> i for i in range(int(log2(self.resolution_px)) - 1)]

    def build(self) -> "Discriminator":
        return Discriminator(self)


class Discriminator(nn.Module):
    """Images to logits.

    Parity: `fp16_blocks` as in StyleGAN2-ADA (2006.06676, appendix; it runs 4): the largest blocks, fromRGB among
    them, with activations in float16 within +-256 and no loss scaler. Weights and all that follows stay float32.
    """

    def __init__(self, cfg: DiscriminatorConfig, img_channels: int = 3):
        super().__init__()
        self.cfg, self.img_channels = cfg, img_channels
        width = [channels_at(side, cfg.channel_multiplier, cfg.channel_max) for side in cfg.sides()]
        self.from_rgb = EqualizedConv2d(img_channels, width[0], 1)
        self.blocks = nn.ModuleList(DownBlock(a, b) for a, b in pairwise(width))
        self.conv = EqualizedConv2d(width[-1] + 1, width[-1], 3, padding=1)
        self.fc0 = EqualizedLinear(width[-1] * (cfg.pool or 4) ** 2, width[-1])
        self.fc1 = EqualizedLinear(width[-1], 1)

    def forward(self, img: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
        return self.enter(img, self.from_rgb, 0)

    def enter(self, img: Float[Tensor, "n c h w"], from_rgb: nn.Module, first: int) -> Float[Tensor, " n"]:
        """Logits by the blocks from `first` on, which stand for half the side of the one before."""
        half = self.cfg.fp16_blocks
        x = lrelu(from_rgb(img.half() if first < half else img))
        for i in range(first, len(self.blocks)):
            x = self.blocks[i](x.float() if i == half > 0 else x)
        with fp32(x):
            x = lrelu(self.conv(minibatch_std(x.float(), self.cfg.mbstd_group)))
            if self.cfg.pool:
                x = F.adaptive_avg_pool2d(x, self.cfg.pool)
            return self.fc1(lrelu(self.fc0(x.flatten(1)))).squeeze(1)


def broadcast_w(w: Float[Tensor, "n w_dim"], num_ws: int) -> Float[Tensor, "n num_ws w_dim"]:
    """The same w for every layer."""
    return w[:, None, :].expand(-1, num_ws, -1)


def mix_styles(
    w: Float[Tensor, "n w_dim"], other: Float[Tensor, "n w_dim"], num_ws: int, crossover: int
) -> Float[Tensor, "n num_ws w_dim"]:
    """w up to layer `crossover`, `other` from there on (style mixing)."""
    first = torch.arange(num_ws, device=w.device)[None, :, None] < crossover
    return torch.where(first, broadcast_w(w, num_ws), broadcast_w(other, num_ws))
