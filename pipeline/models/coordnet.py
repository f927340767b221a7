"""A plain convolutional network whose convolutions may see coordinates: the synthetic tasks of GeoPos (2401.01951).

3x3 convolutions with ReLU, stride 2 while the map's side is above 4, then one dense layer. Only the coordinate channels
differ between convolution, CoordConv and GeoConv. The paper sweeps layers and filters (Fig. 4) and names nothing more:
strides, kernel and head are our choice. Knows neither task nor loss.
"""

from itertools import product
from typing import Literal

from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import Config
from pipeline.layers.coords import CoordChannels, CoordSpec

KERNEL, LEAST_PX = 3, 4  # maps of that side or less keep it


class CoordNetConfig(Config):
    """Depth, width, coordinates and head."""

    kind: Literal["coordnet"] = "coordnet"
    image_px: int = Field(default=32, ge=4)  # side of the images
    img_channels: int = Field(default=3, ge=1)
    layers: int = Field(default=3, ge=1)  # convolutions
    filters: int = Field(default=16, ge=1)  # of each
    extra: int = Field(default=0, ge=0)  # so many of the last convolutions have one filter more
    coords: CoordSpec = CoordSpec()
    # flatten: the dense layer sees every place of the last map, and so knows where it is; mean: the map's mean alone
    pool: Literal["flatten", "mean"] = "flatten"
    outputs: int = Field(default=2, ge=1)

    @model_validator(mode="after")
    def _values_agree(self) -> "CoordNetConfig":
        if self.extra >= self.layers:
            raise ValueError(f"extra={self.extra} must be below layers={self.layers}; use filters={self.filters + 1}")
        if self.coords.padding != "zero":
            raise ValueError(
                f"coords.padding={self.coords.padding!r}: these convolutions pad with 'zero'; leave it out"
            )
        return self

    def widths(self) -> list[int]:
        """Filters of each convolution."""
        return [self.filters + (i >= self.layers - self.extra) for i in range(self.layers)]

    def sides(self) -> list[int]:
        """Sides of the maps, the image first."""
        out = [self.image_px]
        for _ in range(self.layers):
            out.append(-(-out[-1] // 2) if out[-1] > LEAST_PX else out[-1])
        return out

    def parameters(self) -> int:
        """How many numbers are trained."""
        total, before = 0, self.img_channels
        for i, width in enumerate(self.widths()):
            total += ((before + self.coords.at(i).channels(2)) * KERNEL**2 + 1) * width
            before = width
        return total + (before * (self.sides()[-1] ** 2 if self.pool == "flatten" else 1) + 1) * self.outputs

    def build(self) -> "CoordNet":
        return CoordNet(self)


def match_parameters(config: CoordNetConfig, target: int) -> CoordNetConfig:
    """The network with as many layers whose parameters come nearest to `target`, by filters and extra; of two, the
    smaller."""

    def of(filters: int, extra: int = 0) -> CoordNetConfig:
        return config.replace(filters=filters, extra=extra)

    low, high = 0, 1  # of() grows with its filters: the last one below the target, and the first that is not
    while of(high).parameters() < target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if of(middle).parameters() < target else (low, middle)
    near = [of(filters, extra) for filters, extra in product((max(low, 1), high), range(config.layers))]
    return min(near, key=lambda one: (abs(one.parameters() - target), one.parameters()))


class CoordNet(nn.Module):
    """Images to numbers."""

    def __init__(self, cfg: CoordNetConfig):
        super().__init__()
        self.cfg, self.img_channels = cfg, cfg.img_channels
        self.coords = nn.ModuleList(CoordChannels(cfg.coords.at(i)) for i in range(cfg.layers))
        sides, before, convs = cfg.sides(), cfg.img_channels, []
        for i, width in enumerate(cfg.widths()):
            stride = 2 if sides[i] > LEAST_PX else 1
            seen = before + cfg.coords.at(i).channels(2)
            convs.append(nn.Conv2d(seen, width, KERNEL, stride, padding=KERNEL // 2))
            before = width
        self.convs = nn.ModuleList(convs)
        self.dense = nn.Linear(before * (sides[-1] ** 2 if cfg.pool == "flatten" else 1), cfg.outputs)

    def forward(self, img: Float[Tensor, "n c h w"]) -> Float[Tensor, "n outputs"]:
        """Of images in 0..1, where 0 is also what lies around them."""
        x = img
        for coords, conv in zip(self.coords, self.convs, strict=True):
            x = F.relu(conv(coords(x)))
        x = x.flatten(1) if self.cfg.pool == "flatten" else x.mean((2, 3))
        return self.dense(x).float()
