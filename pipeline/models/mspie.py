"""The multi-scale StyleGAN2 generator of MS-PIE (2012.05217, Section 4.1, Tables 2 and 5).

A positional code at the head replaces the learned constant, so one set of weights makes every size whose sides
are multiples of 2^num_upblocks. All up-sampling blocks but the stock one use align-corners bilinear; without padding
a block is 2h + 4 -> 2h + 2 -> 2h. `coords` (GeoPos, 2401.01951; no paper crossed the two) are further inputs of every
3x3 convolution, at the resolution of its input; our choice: toRGB's 1x1 have none. Knows neither scales'
probabilities nor losses.
"""

from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import Config, added
from pipeline.layers.coords import CoordSpec
from pipeline.layers.equalized import lrelu
from pipeline.layers.modulated import ModulatedConv2d
from pipeline.layers.noise import noise_maps
from pipeline.layers.posenc import Convention, head_code
from pipeline.layers.resample import bilinear_up, fir_up
from pipeline.models.stylegan2 import Mapping, channels_at
from pipeline.spec import UserError

HEAD_PX = 4  # side of the first feature map at the base size; the head grid's, too, where it is padded
Block = Literal["conv_up", "up_conv", "deconv"]
Padding = Literal["zero", "none"]


class MSPIEGeneratorConfig(Config):
    """Widths, depth and the code at the head."""

    kind: Literal["mspie"] = "mspie"
    head: Literal["const", "csg", "spe"] = "spe"  # learned constant, Cartesian grid, sinusoidal code
    resize: Literal["expand", "interp"] = "expand"  # how the head reaches other sizes: rebuilt, or interpolated
    convention: Convention = "release"  # Parity: formulas of the published weights, or as printed ("paper")
    num_upblocks: int = Field(default=6, ge=1, le=8)  # base size = 4 * 2^num_upblocks = 256
    channel_multiplier: int = Field(default=2, ge=1)
    channel_max: int = Field(default=512, ge=4)
    z_dim: int = Field(default=512, ge=1)
    w_dim: int = Field(default=512, ge=1)
    mapping_layers: int = Field(default=8, ge=1)
    fp16_blocks: int = added(0, ge=0)  # up-sampling blocks in float16, from the largest down
    block: Block = added("conv_up")  # Parity: the release convolves, then up-samples; deconv: StyleGAN2's own
    padding: Padding = added("zero")  # none: a head larger by 2, and convolutions that only see what there is
    padded_skip: bool = added(False)  # Parity: the release, without padding, still zero-pads the RGB skip path
    coords: CoordSpec = added(CoordSpec())  # coordinate channels of all 3x3 convolutions, or of the first one

    @model_validator(mode="after")
    def _values_agree(self) -> "MSPIEGeneratorConfig":
        if self.padding == "none" and self.block != "up_conv":
            raise ValueError(
                f"padding='none' needs block='up_conv', not {self.block!r}: only that makes up for the pixels that "
                "convolutions then take away"
            )
        if self.padded_skip and self.padding == "zero":
            raise ValueError(
                "padded_skip=true needs padding='none'; with padding='zero' the skip path is padded anyway"
            )
        if self.head == "const" and self.resize == "expand":
            raise ValueError("resize='expand' needs a code that can be rebuilt; a learned constant is 'interp'")
        if self.head == "spe" and self.channel_max % 4:
            raise ValueError(f"channel_max={self.channel_max} must be a multiple of 4 for the sinusoidal code")
        if self.padding == "none" and self.coords.padding == "ramp":
            raise ValueError("coords.padding='ramp' has no effect with padding='none'; leave it out")
        if self.fp16_blocks > self.num_upblocks:
            raise ValueError(f"fp16_blocks={self.fp16_blocks} is more than num_upblocks={self.num_upblocks}")
        return self

    def base_px(self) -> int:
        return HEAD_PX << self.num_upblocks

    def build(self) -> "MSPIEGenerator":
        return MSPIEGenerator(self)


class StyledConv(nn.Module):
    """Modulated 3x3 with its up-sampling (`up`), noise, bias, leaky ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        padding: Padding,
        *,
        up: Block | None = None,
        coords: CoordSpec = CoordSpec(),
    ):
        super().__init__()
        pad, deconv = int(padding == "zero"), up == "deconv"
        self.conv = ModulatedConv2d(in_channels, out_channels, 3, w_dim, padding=pad, deconv=deconv, coords=coords)
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.up, self.margin = up, 0 if padding == "zero" else 4  # what this convolution and the next take away

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Float[Tensor, "n o h w"]:
        if self.up == "up_conv":
            x = bilinear_up(x, self.margin)
        x = self.conv(x, w)
        if self.up == "conv_up":
            x = bilinear_up(x)
        if noise is not None:
            x = x + (noise * self.noise_strength).to(x.dtype)
        return lrelu(x + self.bias.to(x.dtype)[:, None, None])


class ToRGB(nn.Module):
    """Modulated 1x1 without demodulation, plus bias, onto the upsampled image so far."""

    def __init__(self, in_channels: int, w_dim: int, *, padded: bool):
        super().__init__()
        self.conv = ModulatedConv2d(in_channels, 3, 1, w_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(3))
        self.up = fir_up if padded else bilinear_up

    def forward(self, x: Tensor, w: Tensor, img: Tensor | None) -> Float[Tensor, "n 3 h w"]:
        rgb = self.conv(x, w).float() + self.bias[:, None, None]
        return rgb if img is None else rgb + self.up(img)


class MSPIEGenerator(nn.Module):
    """z -> w -> image. 13 noise maps and 14 styles at six up-sampling blocks.

    Parity: `fp16_blocks` is StyleGAN2-ADA's mixed precision (2006.06676, appendix; it runs 4): activations of the
    largest blocks in float16 within +-256, modulation that cannot overflow, no loss scaler. Weights, styles, the
    image and its skip path stay float32. Differs from reference: a resolution is a block of up-sampling here, and
    the head never is one.
    """

    def __init__(self, cfg: MSPIEGeneratorConfig):
        super().__init__()
        self.cfg, self.z_dim, self.w_dim = cfg, cfg.z_dim, cfg.w_dim
        sides = [HEAD_PX << i for i in range(cfg.num_upblocks + 1)]
        width = [channels_at(side, cfg.channel_multiplier, cfg.channel_max) for side in sides]
        self.mapping = Mapping(cfg.z_dim, cfg.w_dim, cfg.mapping_layers)
        head_channels = 2 if cfg.head == "csg" else width[0]
        self.margin = 0 if cfg.padding == "zero" else 2  # of the head grid, which the first convolution takes away
        if cfg.head == "const":
            self.const = nn.Parameter(torch.randn(head_channels, *self.base_grid()))
        self.head_channels = head_channels
        skip_is_padded = cfg.padding == "zero" or cfg.padded_skip
        first, later = cfg.coords.at(0), cfg.coords.at(1)
        self.convs = nn.ModuleList([StyledConv(head_channels, width[0], cfg.w_dim, cfg.padding, coords=first)])
        self.to_rgbs = nn.ModuleList([ToRGB(width[0], cfg.w_dim, padded=skip_is_padded)])
        for a, b in pairwise(width):
            self.convs += [
                StyledConv(a, b, cfg.w_dim, cfg.padding, up=cfg.block, coords=later),
                StyledConv(b, b, cfg.w_dim, cfg.padding, coords=later),
            ]
            self.to_rgbs.append(ToRGB(b, cfg.w_dim, padded=skip_is_padded))
        self.num_ws = len(self.convs) + 1
        self.native_size = (cfg.base_px(), cfg.base_px())

    def check_size(self, size: tuple[int, int]) -> None:
        """Sides must be multiples of 2^num_upblocks; otherwise raises UserError with the nearest sizes that are."""
        unit = 1 << self.cfg.num_upblocks
        if min(size) >= unit and not any(side % unit for side in size):
            return
        below = [max(unit, side // unit * unit) for side in size]
        above = [max(unit, -(-side // unit) * unit) for side in size]
        near = dict.fromkeys(f"{h}x{w}" for h, w in (below, above))
        raise UserError(
            f"size={size[0]}x{size[1]}: sides must be multiples of {unit}, at least {unit}, for this generator; "
            f"use {' or '.join(near)}"
        )

    def base_grid(self) -> tuple[int, int]:
        """(height, width) of the head grid at the base size: 4, or 6 without padding."""
        return HEAD_PX + self.margin, HEAD_PX + self.margin

    def head_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the head grid for an image of this size: sides / 2^num_upblocks, without padding + 2."""
        h, w = (side >> self.cfg.num_upblocks for side in size)
        return h + self.margin, w + self.margin

    def head(self, size: tuple[int, int]) -> Float[Tensor, "c h w"]:
        """The code that enters the first convolution, for an image of this size."""
        grid = self.head_size(size)
        if self.cfg.head == "const":
            code = self.const
        else:
            build_at = grid if self.cfg.resize == "expand" else self.base_grid()
            device = self.to_rgbs[0].get_parameter("bias").device
            code = head_code(self.cfg.head, self.head_channels, build_at, self.cfg.convention, device)
        if code.shape[1:] == grid:
            return code
        return F.interpolate(code[None], size=grid, mode="bilinear", align_corners=True)[0]

    def noise_shapes(self, size: tuple[int, int]) -> list[tuple[int, int, int]]:
        """(1, h, w) of the noise map of each convolution; a block's first one, unpadded, is larger by 2."""
        (h, w), shapes = (side >> self.cfg.num_upblocks for side in size), []
        for i in range(len(self.convs)):
            level, more = (i + 1) // 2, self.margin * (i % 2)
            shapes.append((1, (h << level) + more, (w << level) + more))
        return shapes

    def synthesis(
        self, ws: Float[Tensor, "n num_ws w_dim"], size: tuple[int, int], noise: tuple[int, ...] | None
    ) -> Float[Tensor, "n 3 h w"]:
        """Images of any allowed size; `noise` holds one seed a sample, None leaves the noise out."""
        maps: list[Tensor | None] = [None] * len(self.convs)
        if noise is not None:
            maps = list(noise_maps(noise, self.noise_shapes(size), ws.device))
        x = self.head(size).expand(len(ws), -1, -1, -1)
        x = self.convs[0](x, ws[:, 0], maps[0])
        img = self.to_rgbs[0](x, ws[:, 1], None)
        for i in range(1, len(self.to_rgbs)):
            if i == len(self.to_rgbs) - self.cfg.fp16_blocks:
                x = x.half()
            x = self.convs[2 * i - 1](x, ws[:, 2 * i - 1], maps[2 * i - 1])
            x = self.convs[2 * i](x, ws[:, 2 * i], maps[2 * i])
            img = self.to_rgbs[i](x, ws[:, 2 * i + 1], img)
        return img
