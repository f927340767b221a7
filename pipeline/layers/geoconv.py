"""GeoConv and CoordConv as torch's own convolutions: 1 to 3 dimensions, strided, grouped, transposed.

GeoPos (2401.01951, Fig. 3) puts its channel beside the input of every convolution; CoordConv (1807.03247) likewise.
Convolution is linear, so here the channels have filters of their own, `coord_weight`, and their output is added:
`weight` keeps torch's shape, pretrained ones load, and no input is copied. See coords.py for the channels and their
shifts, geoify.py for converting a model; this file knows neither models nor training.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from math import prod
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from pipeline.layers.coords import CoordChannels, CoordSpec

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class WithCoordinates(_ConvNd):
    """What the layers below add to torch's. Equal to concatenating the channels to the input (of each group).

    Arguments are those of torch's class and `coords`, with a default each class. Channels are padded as the input is
    (with zeros, circularly, ...), but for coords.padding="ramp", where they go on beyond the border. Coordinates are
    those of the input: a strided convolution sees every pixel's, a transposed one those of its small input. They are
    computed in float32 outside of autocast (in float64 for such weights) and take the output's type.
    """

    MODE: ClassVar[str]
    coords: CoordChannels
    coord_weight: nn.Parameter | None  # [out, k, *kernel]; transposed: [k, out, *kernel]; None without channels

    def __init__(self, *args: Any, coords: CoordSpec | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.see(CoordSpec(mode=self.MODE) if coords is None else coords)  # pyright: ignore[reportArgumentType]
        self.reset_parameters()

    def see(self, spec: CoordSpec) -> None:
        """Give the convolution these channels, with filters of zero, whatever it is made of so far."""
        self.coords = CoordChannels(spec, len(self.kernel_size)).train(self.training)
        k, out = self.coords.count, self.out_channels
        if not k:
            self.register_parameter("coord_weight", None)
            return
        shape = (k, out) if self.transposed else (out, k)
        zeros = self.weight.detach().new_zeros(*shape, *self.kernel_size)
        self.coord_weight = nn.Parameter(zeros, self.weight.requires_grad)

    def fan_in(self) -> int:
        """As torch counts it for the weight of a convolution over the input with its channels."""
        channels = 0 if self.transposed else self.coords.count  # there torch counts the outputs
        return (self.weight.shape[1] + channels) * prod(self.kernel_size)

    def reset_parameters(self) -> None:
        """Draw weight, coord_weight and bias as torch would those of a convolution over all channels."""
        if "coords" not in self._modules:
            return  # torch calls this before the channels are known
        if self.coord_weight is None:
            return super().reset_parameters()
        for p in (self.weight, self.bias):
            if p is not None:
                nn.init.uniform_(p, -(self.fan_in() ** -0.5), self.fan_in() ** -0.5)
        self.reset_coord_weight()

    def reset_coord_weight(self) -> None:
        """Draw the filters of the channels alone, as those of a new layer."""
        if self.coord_weight is not None:
            nn.init.uniform_(self.coord_weight, -(self.fan_in() ** -0.5), self.fan_in() ** -0.5)

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[n, in, *shape] or [in, *shape] -> [n, out, *shape'] or [out, *shape'], as torch's; its further arguments."""
        y = cast(Any, super()).forward(input, *args, **kwargs)
        if self.coord_weight is None:
            return y
        dims, one = self.coords.dims, input.dim() == len(self.kernel_size) + 1
        kind = input.device.type
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            more = self._of_channels(1 if one else len(input), input.shape[-dims:], y.shape[-dims:])
        return y + (more[0] if one else more).to(y.dtype)

    def _of_channels(self, n: int, shape: Sequence[int], out_shape: Sequence[int]) -> Tensor:
        """What the channels give: [1, out, *out_shape] unshifted, else [n, out, *out_shape]."""
        k, dims, device = self.coords.count, self.coords.dims, self.weight.device
        assert self.coord_weight is not None
        weight = self.coord_weight.to(torch.promote_types(self.coord_weight.dtype, torch.float32))
        margins = self._margins(out_shape, shape) if self.coords.spec.padding == "ramp" else []
        g = self.coords.ramp(shape, device, margins, weight.dtype)[None]
        s = self.coords.shift(n, device)
        moved = 0 if s is None else k
        ones = torch.eye(k, dtype=weight.dtype, device=device)[:moved].reshape(moved, k, *[1] * dims)
        y = self._convolve(torch.cat([g, ones.expand(-1, -1, *g.shape[2:])]), weight, shape, out_shape, bool(margins))
        total = y[:1]
        for i in range(moved):  # elementwise, so that a sample's result does not depend on how many there are
            assert s is not None
            total = torch.addcmul(total, s[:, i].to(y.dtype).reshape(n, *[1] * (dims + 1)), y[i + 1 : i + 2])
        return total

    def _margins(self, out_shape: Sequence[int], shape: Sequence[int]) -> list[tuple[int, int]]:
        """How far beyond its border the input reaches the output."""
        twice = self._reversed_padding_repeated_twice
        return [(twice[-2 * d - 2], twice[-2 * d - 1]) for d in range(len(shape))]

    def _convolve(
        self, g: Tensor, weight: Tensor, shape: Sequence[int], out_shape: Sequence[int], padded: bool
    ) -> Tensor:
        padding = 0 if padded else self.padding
        if self.padding_mode != "zeros" and not padded:
            g, padding = F.pad(g, self._reversed_padding_repeated_twice, mode=self.padding_mode), 0
        return CONV[self.coords.dims](g, weight, None, self.stride, cast(Any, padding), self.dilation)


class WithCoordinatesTransposed(WithCoordinates):
    """The same of a transposed convolution."""

    def _reach(self) -> list[int]:
        return [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]

    def _extra(self, shape: Sequence[int], out_shape: Sequence[int]) -> list[int]:
        """Output padding, from what torch has made of `output_size`."""
        reach, pad = self._reach(), cast(tuple[int, ...], self.padding)
        return [out_shape[d] - ((n - 1) * self.stride[d] - 2 * pad[d] + reach[d] + 1) for d, n in enumerate(shape)]

    def _margins(self, out_shape: Sequence[int], shape: Sequence[int]) -> list[tuple[int, int]]:
        extra = self._extra(shape, out_shape)
        far = [(r + e) // s for r, e, s in zip(self._reach(), extra, self.stride, strict=True)]
        return [(m, m) for m in far]

    def _convolve(
        self, g: Tensor, weight: Tensor, shape: Sequence[int], out_shape: Sequence[int], padded: bool
    ) -> Tensor:
        pad = list(cast(tuple[int, ...], self.padding))
        if padded:
            pad = [p + m * s for p, (m, _), s in zip(pad, self._margins(out_shape, shape), self.stride, strict=True)]
        extra = self._extra(shape, out_shape)
        return CONV_TRANSPOSE[self.coords.dims](g, weight, None, self.stride, pad, extra, 1, self.dilation)


class GeoConv1d(WithCoordinates, nn.Conv1d):
    """nn.Conv1d that sees GeoPos' channel."""

    MODE = "geo"


class GeoConv2d(WithCoordinates, nn.Conv2d):
    """nn.Conv2d that sees GeoPos' channel."""

    MODE = "geo"


class GeoConv3d(WithCoordinates, nn.Conv3d):
    """nn.Conv3d that sees GeoPos' channel."""

    MODE = "geo"


class GeoConvTranspose1d(WithCoordinatesTransposed, nn.ConvTranspose1d):
    """nn.ConvTranspose1d that sees GeoPos' channel."""

    MODE = "geo"


class GeoConvTranspose2d(WithCoordinatesTransposed, nn.ConvTranspose2d):
    """nn.ConvTranspose2d that sees GeoPos' channel."""

    MODE = "geo"


class GeoConvTranspose3d(WithCoordinatesTransposed, nn.ConvTranspose3d):
    """nn.ConvTranspose3d that sees GeoPos' channel."""

    MODE = "geo"


class CoordConv1d(WithCoordinates, nn.Conv1d):
    """nn.Conv1d that sees CoordConv's channel."""

    MODE = "coord"


class CoordConv2d(WithCoordinates, nn.Conv2d):
    """nn.Conv2d that sees CoordConv's channels."""

    MODE = "coord"


class CoordConv3d(WithCoordinates, nn.Conv3d):
    """nn.Conv3d that sees CoordConv's channels."""

    MODE = "coord"


class CoordConvTranspose1d(WithCoordinatesTransposed, nn.ConvTranspose1d):
    """nn.ConvTranspose1d that sees CoordConv's channel."""

    MODE = "coord"


class CoordConvTranspose2d(WithCoordinatesTransposed, nn.ConvTranspose2d):
    """nn.ConvTranspose2d that sees CoordConv's channels."""

    MODE = "coord"


class CoordConvTranspose3d(WithCoordinatesTransposed, nn.ConvTranspose3d):
    """nn.ConvTranspose3d that sees CoordConv's channels."""

    MODE = "coord"
