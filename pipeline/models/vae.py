"""A convolutional VAE (1312.6114), each of its convolutions ordinary, CoordConv or GeoConv (GeoPos, 2401.01951).

Encoder: strided 4x4 convolutions down to 4x4 and a dense layer to mean and log variance of z; decoder: a dense layer to
4x4, then x2 and a 3x3 convolution until the resolution. Unverified: GeoPos names CelebA and the sizes of z alone.
There is no norm: one over space takes away what a shift adds to all pixels alike, and one over the batch couples the
images of a forward. Knows no loss.
"""

from itertools import pairwise
from math import log2
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import Config
from pipeline.layers.coords import CoordChannels, CoordSpec
from pipeline.models.pggan import HEAD_PX, check_multiples, interpolated, nearest_up
from pipeline.models.stylegan2 import power_of_two

SLOPE = 0.2  # of leaky ReLU below zero


class VAEGeneratorConfig(Config):
    """Depth, width, the size of z, and what each convolution sees beside its input."""

    kind: Literal["vae"] = "vae"
    resolution_px: int = Field(default=64)
    channel_base: int = Field(default=64, ge=1)  # at half the resolution; twice as many at each half of that
    z_dim: int = Field(default=256, ge=1)
    coords: CoordSpec = CoordSpec()  # layers="first": the first of the encoder and the first of the decoder

    _power_of_two = field_validator("resolution_px")(power_of_two)

    @model_validator(mode="after")
    def _values_agree(self) -> "VAEGeneratorConfig":
        if self.coords.padding != "zero":
            raise ValueError(
                f"coords.padding={self.coords.padding!r}: the VAE's convolutions pad with zero; use 'zero'"
            )
        return self

    def widths(self) -> list[int]:
        """Channels of the maps from half the resolution to 4x4: 64, 128, 256, 512 at 64 px."""
        return [self.channel_base << i for i in range(int(log2(self.resolution_px // HEAD_PX)))]

    def build(self) -> "VAE":
        return VAE(self)


class VAE(nn.Module):
    """Images to mean and log variance of z, and z to images in [-1, 1]. w is z; there is one, and no noise.

    `forward` reconstructs: the image of the mean. Decoded sizes never trained: the first map is interpolated.
    """

    num_ws = 1

    def __init__(self, cfg: VAEGeneratorConfig):
        super().__init__()
        self.cfg, self.z_dim, width = cfg, cfg.z_dim, cfg.widths()
        self.native_size = (cfg.resolution_px, cfg.resolution_px)
        head = width[-1] * HEAD_PX**2
        self.down = _convolutions([3, *width], cfg.coords, kernel=4, stride=2)
        self.to_z = nn.Linear(head, 2 * cfg.z_dim)
        self.from_z = nn.Linear(cfg.z_dim, head)
        self.up = _convolutions([*reversed(width), 3], cfg.coords, kernel=3, stride=1)

    def encode(self, img: Float[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        """Mean and log variance of z, of images of the trained size. ValueError for any other."""
        if tuple(img.shape[2:]) != self.native_size:
            raise ValueError(f"{tuple(img.shape[2:])} px images, the encoder was made for {self.native_size}")
        x = img
        for conv in self.down:
            x = F.leaky_relu(conv(x), SLOPE)
        mean, logvar = self.to_z(x.flatten(1)).float().chunk(2, dim=1)
        return mean, logvar

    def logits(self, z: Float[Tensor, "n d"], size: tuple[int, int]) -> Float[Tensor, "n 3 h w"]:
        """What tanh makes an image of."""
        x = F.leaky_relu(self.from_z(z), SLOPE).unflatten(1, (-1, HEAD_PX, HEAD_PX))
        x = interpolated(x, (size[0] >> len(self.up), size[1] >> len(self.up)))
        for i, conv in enumerate(self.up):
            x = conv(nearest_up(x))
            if i + 1 < len(self.up):
                x = F.leaky_relu(x, SLOPE)
        return x.float()

    def forward(self, img: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        return torch.tanh(self.logits(self.encode(img)[0], self.native_size))

    def check_size(self, size: tuple[int, int]) -> None:
        check_multiples(size, 1 << len(self.up))

    def mapping(self, z: Float[Tensor, "n z_dim"]) -> Float[Tensor, "n z_dim"]:
        return z

    def synthesis(
        self, ws: Float[Tensor, "n 1 w_dim"], size: tuple[int, int], noise: tuple[int, ...] | None
    ) -> Float[Tensor, "n 3 h w"]:
        """Images of any size that `check_size` allows; `noise` has no effect."""
        return torch.tanh(self.logits(ws[:, 0], size))


def _convolutions(widths: list[int], coords: CoordSpec, kernel: int, stride: int) -> nn.ModuleList:
    """Convolutions of one half, each behind its coordinate channels; weights keep the variance of what they see."""
    convs = nn.ModuleList()
    for i, (a, b) in enumerate(pairwise(widths)):
        channels = CoordChannels(coords.at(i))
        conv = nn.Conv2d(a + channels.count, b, kernel, stride, padding=1)
        nn.init.kaiming_normal_(conv.weight, SLOPE)
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        convs.append(nn.Sequential(channels, conv))
    return convs
