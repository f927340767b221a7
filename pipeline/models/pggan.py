"""PGGAN's networks (Karras et al. 2018, 1710.10196), as MS-PIE takes padding out of them (2012.05217, Section 4).

Both hold all levels from the start and use those that training has reached, the newest at its share (`fade`).
`padding=False`: the map before each pair of 3x3 convolutions is interpolated to 4 pixels more, and they take those
away again. `head="spe"`: the sinusoidal code is added to the map that feeds the first convolution. `coords` (GeoPos,
2401.01951; no paper crossed the two) are further inputs of G's 3x3 convolutions; our choice: its 1x1 and D have none.
Knows no schedule.
Differs from reference: none of this was released; that the padding-free first map is 6x6 and carries the code is our
reading. The minibatch-std group is configured, never derived from the batch.
"""

from itertools import pairwise
from math import log2, sqrt
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import Config, added
from pipeline.layers.coords import CoordSpec
from pipeline.layers.equalized import EqualizedConv2d, EqualizedLinear
from pipeline.layers.modulated import fp32
from pipeline.layers.norm import minibatch_std, pixel_norm
from pipeline.layers.posenc import Convention, head_code
from pipeline.models.stylegan2 import channels_at, power_of_two
from pipeline.spec import UserError

HEAD_PX = 4  # side of the first level


def levels_of(resolution_px: int) -> int:
    """4, 8 ... resolution_px: so many."""
    return int(log2(resolution_px)) - 1


def widths(resolution_px: int, channel_max: int) -> list[int]:
    """Channels of each level: 512 up to 32 px, 256 at 64, 128 at 128."""
    return [channels_at(HEAD_PX << level, 1, channel_max) for level in range(levels_of(resolution_px))]


def nearest_up(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c 2*h 2*w"]:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def interpolated(x: Float[Tensor, "n c h w"], size: tuple[int, int]) -> Float[Tensor, "n c h2 w2"]:
    """Bilinear with aligned corners; as it is at its own size."""
    if tuple(x.shape[2:]) == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def check_multiples(size: tuple[int, int], unit: int) -> None:
    """UserError unless height and width are positive multiples of `unit`, what one pixel of the head grid becomes."""
    for side in size:
        if side < unit or side % unit:
            raise UserError(
                f"size={size[0]}x{size[1]} must be multiples of {unit} for this generator; "
                f"the nearest is {max(unit, round(side / unit) * unit)}"
            )


class Growing(nn.Module):
    """A network of which levels 0..level are in use. Also kept as a buffer, so that weights know where they stand.

    The buffer is written without waiting for the device and read when a state dict is loaded, never in training.
    """

    grown: Tensor

    def __init__(self, levels: int):
        super().__init__()
        self.levels, self.level, self.fade = levels, 0, 1.0
        self.register_buffer("grown", torch.tensor([0.0, 1.0], dtype=torch.float64))
        self.register_load_state_dict_post_hook(_take_from_buffer)

    def grow(self, level: int, fade: float | int = 1.0) -> None:
        """Use levels up to this one; it has the share `fade` in [0, 1], the level below the rest."""
        if not (0 <= level < self.levels and 0 <= fade <= 1):
            raise ValueError(f"level={level} of {self.levels}, fade={fade}")
        self.level, self.fade = level, float(fade)
        self.grown[0].fill_(level)
        self.grown[1].fill_(self.fade)


def _take_from_buffer(net: Any, _keys: Any) -> None:
    level, fade = net.grown.tolist()
    net.level, net.fade = int(level), fade


def _with_gain(layer: Any, gain: float) -> Any:
    layer.scale *= gain
    return layer


def _conv(
    in_channels: int, out_channels: int, kernel: int, padding: int = 0, coords: CoordSpec = CoordSpec()
) -> EqualizedConv2d:
    return _with_gain(EqualizedConv2d(in_channels, out_channels, kernel, padding=padding, coords=coords), sqrt(2))


def _lrelu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


def _normed(x: Tensor) -> Tensor:
    """Leaky ReLU, then each pixel to unit mean square, in float32."""
    return pixel_norm(_lrelu(x).float()).to(x.dtype)


class PGGANGeneratorConfig(Config):
    """Depth, width, padding and the code at the head."""

    kind: Literal["pggan"] = "pggan"
    resolution_px: int = Field(default=128)  # of the last level
    channel_max: int = Field(default=512, ge=4)
    z_dim: int = Field(default=512, ge=1)
    padding: bool = True  # False: no zero padding anywhere
    head: Literal["none", "spe"] = "none"  # added to the first map, rebuilt at each size
    convention: Convention = "release"  # Parity: formulas of the StyleGAN2 release, or as printed ("paper")
    coords: CoordSpec = added(CoordSpec())  # coordinate channels of all 3x3 convolutions, or of the first one

    _power_of_two = field_validator("resolution_px")(power_of_two)

    @model_validator(mode="after")
    def _values_agree(self) -> "PGGANGeneratorConfig":
        if self.head == "spe" and self.channel_max % 4:
            raise ValueError(f"channel_max={self.channel_max} must be a multiple of 4 for the sinusoidal code")
        if not self.padding and self.coords.padding == "ramp":
            raise ValueError("coords.padding='ramp' has no effect with padding=false; leave it out")
        return self

    def build(self) -> "PGGANGenerator":
        return PGGANGenerator(self)


class UpBlock(nn.Module):
    """To twice the size, then two 3x3: nearest and zero-padded, or bilinear to 4 pixels more and unpadded."""

    def __init__(self, in_channels: int, out_channels: int, *, padding: bool, coords: CoordSpec):
        super().__init__()
        self.conv0 = _conv(in_channels, out_channels, 3, int(padding), coords)
        self.conv1 = _conv(out_channels, out_channels, 3, int(padding), coords)
        self.padding = padding

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n o 2*h 2*w"]:
        h, w = x.shape[2:]
        x = nearest_up(x) if self.padding else interpolated(x, (2 * h + 4, 2 * w + 4))
        return _normed(self.conv1(_normed(self.conv0(x))))


class PGGANGenerator(Growing):
    """z -> image at the present level. w is z of unit mean square; there is one, and no noise.

    Sizes never trained: the first map is interpolated, the code rebuilt, everything else is convolution.
    """

    num_ws = 1

    def __init__(self, cfg: PGGANGeneratorConfig):
        width = widths(cfg.resolution_px, cfg.channel_max)
        super().__init__(len(width))
        self.cfg, self.z_dim, self.side = cfg, cfg.z_dim, HEAD_PX if cfg.padding else HEAD_PX + 2
        self.fc = _with_gain(EqualizedConv2d(cfg.z_dim, width[0] * self.side**2, 1, bias=False), sqrt(2) / 4)
        self.bias = nn.Parameter(torch.zeros(width[0]))  # one a channel, as in the original
        self.conv = _conv(width[0], width[0], 3, int(cfg.padding), cfg.coords.at(0))
        later = cfg.coords.at(1)
        self.blocks = nn.ModuleList(UpBlock(a, b, padding=cfg.padding, coords=later) for a, b in pairwise(width))
        self.to_rgbs = nn.ModuleList(EqualizedConv2d(channels, 3, 1) for channels in width)

    @property
    def native_size(self) -> tuple[int, int]:
        return (HEAD_PX << self.level, HEAD_PX << self.level)

    def check_size(self, size: tuple[int, int]) -> None:
        check_multiples(size, 1 << self.level)

    def mapping(self, z: Float[Tensor, "n z_dim"]) -> Float[Tensor, "n z_dim"]:
        return pixel_norm(z)

    def first_map(self, w: Float[Tensor, "n z_dim"], size: tuple[int, int]) -> Float[Tensor, "n c h w"]:
        """The first map for an image of this size, the code in it."""
        x = self.fc(w[:, :, None, None]).unflatten(1, (-1, self.side, self.side)).squeeze((-2, -1))
        around = self.side - HEAD_PX
        grid = ((size[0] >> self.level) + around, (size[1] >> self.level) + around)
        x = interpolated(_normed(x + self.bias[:, None, None]), grid)
        if self.cfg.head == "spe":
            x = x + head_code("spe", x.shape[1], grid, self.cfg.convention, x.device)
        return x

    def synthesis(
        self, ws: Float[Tensor, "n 1 w_dim"], size: tuple[int, int], noise: tuple[int, ...] | None
    ) -> Float[Tensor, "n 3 h w"]:
        """Images of any size that `check_size` allows; `noise` has no effect."""
        return self.images(self.first_map(ws[:, 0], size))

    def images(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 h2 w2"]:
        """From the first map."""
        x, below = _normed(self.conv(x)), None
        for level in range(1, self.level + 1):
            if level == self.level and self.fade < 1:
                below = nearest_up(self.to_rgbs[level - 1](x))
            x = self.blocks[level - 1](x)
        img = self.to_rgbs[self.level](x)
        return (img if below is None else torch.lerp(below, img, self.fade)).float()


class PGGANDiscriminatorConfig(Config):
    """Depth and width, and the minibatch statistic."""

    resolution_px: int = Field(default=128)
    channel_max: int = Field(default=512, ge=1)
    mbstd_group: int = Field(default=4, ge=1)  # consecutive samples of one minibatch-std statistic

    _power_of_two = field_validator("resolution_px")(power_of_two)

    def build(self) -> "PGGANDiscriminator":
        return PGGANDiscriminator(self)


class DownBlock(nn.Module):
    """Two zero-padded 3x3, then half the size by averaging."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv0 = _conv(in_channels, in_channels, 3, 1)
        self.conv1 = _conv(in_channels, out_channels, 3, 1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n o h2 w2"]:
        return F.avg_pool2d(_lrelu(self.conv1(_lrelu(self.conv0(x)))), 2)


class PGGANDiscriminator(Growing):
    """Square images of the present level to logits. Zero-padded in every row of the tables."""

    def __init__(self, cfg: PGGANDiscriminatorConfig):
        width = widths(cfg.resolution_px, cfg.channel_max)
        super().__init__(len(width))
        self.cfg = cfg
        self.from_rgbs = nn.ModuleList(_conv(3, channels, 1) for channels in width)
        self.blocks = nn.ModuleList(DownBlock(b, a) for a, b in pairwise(width))
        self.conv = _conv(width[0] + 1, width[0], 3, 1)
        self.fc0 = _with_gain(EqualizedLinear(width[0] * HEAD_PX**2, width[0]), sqrt(2))
        self.fc1 = EqualizedLinear(width[0], 1)

    def forward(self, img: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
        """ValueError for a size that is not the level's."""
        side = HEAD_PX << self.level
        if tuple(img.shape[2:]) != (side, side):
            raise ValueError(f"D is at {side} px, images are {img.shape[2]}x{img.shape[3]}")
        x = _lrelu(self.from_rgbs[self.level](img))
        for level in range(self.level, 0, -1):
            x = self.blocks[level - 1](x)
            if level == self.level and self.fade < 1:
                x = torch.lerp(_lrelu(self.from_rgbs[level - 1](F.avg_pool2d(img, 2))), x, self.fade)
        with fp32(x):
            x = _lrelu(self.conv(minibatch_std(x.float(), self.cfg.mbstd_group)))
            return self.fc1(_lrelu(self.fc0(x.flatten(1)))).squeeze(1)
