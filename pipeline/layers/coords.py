"""Coordinate channels of convolutions: GeoPos (2401.01951, Fig. 3), CoordConv (1807.03247) and modes between them.

GeoConv's one channel is g(i) = sum over dimensions of i_d / (r_d - 1), plus one random shift s; CoordConv has a channel
a dimension and no shift. The paper says neither how s is distributed nor when it is drawn: each is a field. Draws are a
function of (seed, image, layer, forward) where training says so (`shifted`), so resumed runs and all numbers of ranks
agree. Knows no convolution: see geoconv.py for layers, models for networks.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.chance import Chance, key, rng
from pipeline.config import Config

Mode = Literal["none", "geo", "axes", "unshifted", "coord", "coord_shifted"]
SHIFTED = ("geo", "axes", "coord_shifted")
AXES = ("axes", "coord", "coord_shifted")  # a channel each dimension


class CoordSpec(Config):
    """Which coordinate channels a convolution sees beside its input. All but `mode` is unknown of GeoPos: our choice.

    geo: the sum of the dimensions, shifted (the paper). axes: a channel and a shift each dimension. unshifted: the sum.
    coord: CoordConv. coord_shifted: CoordConv, all channels shifted alike. none: an ordinary convolution.
    """

    mode: Mode = "none"
    layers: Literal["all", "first"] = "all"  # of a network: which convolutions have the channels
    shift: Literal["uniform", "normal"] = "uniform"
    shift_range: tuple[float, float] = (-1.0, 1.0)  # of a uniform shift; of a normal one, mean -+ standard deviation
    draw: Literal["sample", "batch"] = "sample"  # a shift each sample, or one for the whole global batch
    per_layer: bool = True  # False: all convolutions of a network share the shift
    stochastic_eval: bool = False  # draw in evaluation too; False: s = 0 there, and the network is deterministic
    coord_range: tuple[float, float] | None = None  # of a dimension; None: 0..1 of a sum, -1..1 of CoordConv
    padding: Literal["zero", "ramp"] = "zero"  # outside of the input: nothing, or the ramp goes on
    radius: bool = False  # CoordConv's further channel sqrt(sum of squares), unshifted

    @model_validator(mode="after")
    def _every_value_has_an_effect(self) -> "CoordSpec":
        default = type(self).model_fields
        shifting = ("shift", "shift_range", "draw", "per_layer", "stochastic_eval")
        off = shifting if self.mode not in SHIFTED else ()
        off += () if self.mode != "none" else ("layers", "coord_range", "padding")
        off += () if self.mode in AXES else ("radius",)
        for name in off:
            if getattr(self, name) != default[name].default:
                raise ValueError(f"{name}={getattr(self, name)!r} has no effect with mode={self.mode!r}; leave it out")
        for name in ("shift_range", "coord_range"):
            low, high = getattr(self, name) or (0.0, 1.0)
            if low >= high:
                raise ValueError(f"{name}=[{low}, {high}]: the first must be the smaller one")
        return self

    @property
    def shifts(self) -> bool:
        """Is anything random?"""
        return self.mode in SHIFTED

    def channels(self, dims: int) -> int:
        """How many channels, over so many dimensions."""
        return {"none": 0, "geo": 1, "unshifted": 1}.get(self.mode, dims) + self.radius

    def at(self, layer: int) -> "CoordSpec":
        """That of a network's layer-th convolution, from 0."""
        return self if layer == 0 or self.layers == "all" else CoordSpec()

    def span(self) -> tuple[float, float]:
        """First and last coordinate of a dimension."""
        return self.coord_range or ((-1.0, 1.0) if self.mode in ("coord", "coord_shifted") else (0.0, 1.0))


MAX_DIMS = 3
TINY = 1e-12  # draws stay so far from 0 and 1, where a normal shift would be infinite


class Shifts:
    """The draws of one network for one microbatch: functions of a seed a sample, or of one for all."""

    def __init__(self, net: int, seeds: Sequence[int], batch_seed: int, layers: int, device: torch.device):
        self.net, self.layers, self.device = net, layers, device
        self.seeds = {"sample": tuple(seeds), "batch": (batch_seed,)}
        self._tables: dict[tuple[str, int], Float[Tensor, "n l k"]] = {}

    def of(self, layer: int, forward: int, draw: str) -> Float[Tensor, "n k"]:
        """Uniform in (0, 1), float64: what `layer` has in its forward of this number."""
        if (draw, forward) not in self._tables:
            rows = [rng(s, "shift", self.net, forward).random((self.layers, MAX_DIMS)) for s in self.seeds[draw]]
            self._tables[draw, forward] = torch.from_numpy(np.stack(rows)).to(self.device)
        return self._tables[draw, forward][:, layer].expand(len(self.seeds["sample"]), MAX_DIMS)


class CoordChannels(nn.Module):
    """The coordinate channels of one convolution over `dims` dimensions: no parameters, and no state but its draws."""

    def __init__(self, spec: CoordSpec, dims: int = 2):
        super().__init__()
        self.spec, self.dims, self.count = spec, dims, spec.channels(dims)
        self.layer, self.forwards = 0, 0
        self.shifts: Shifts | None = None

    def extra_repr(self) -> str:
        return f"{self.spec.mode}, {self.count} over {self.dims} dimensions"

    def ramp(
        self,
        shape: Sequence[int],
        device: torch.device,
        margins: Sequence[tuple[int, int]] = (),
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "k ..."]:
        """Unshifted channels; `margins` go beyond either end of each dimension, at the same slope.

        A dimension of length 1 has the coordinate of its first end.
        """
        low, high = self.spec.span()
        axes = []
        for d, length in enumerate(shape):
            before, after = margins[d] if margins else (0, 0)
            at = torch.arange(-before, length + after, dtype=dtype, device=device)
            axes.append(low + (high - low) * at / max(1, length - 1))
        grids = torch.meshgrid(*axes, indexing="ij")
        if self.spec.mode not in AXES:
            return torch.stack(grids).sum(0, keepdim=True)
        radius = [torch.stack(grids).square().sum(0).sqrt()] if self.spec.radius else []
        return torch.stack([*grids, *radius])

    def shift(self, n: int, device: torch.device) -> Float[Tensor, "n k"] | None:
        """What this forward adds to each channel of each sample; None: nothing.

        Outside of `shifted` draws are torch's own, as of any random layer. ValueError for n samples that are not those
        of `shifted`.
        """
        spec = self.spec
        if not spec.shifts or not (self.training or spec.stochastic_eval):
            return None
        if self.shifts is None:
            u = torch.rand(n if spec.draw == "sample" else 1, MAX_DIMS, dtype=torch.float64, device=device)
            u = u.expand(n, MAX_DIMS)
        else:
            if n != len(self.shifts.seeds["sample"]):
                raise ValueError(f"{n} samples, but shifts were drawn for {len(self.shifts.seeds['sample'])}")
            u = self.shifts.of(self.layer if spec.per_layer else 0, self.forwards, spec.draw)
            self.forwards += 1
        if spec.shift == "normal":
            u = 0.5 + 0.5 * torch.special.ndtri(u.clamp(TINY, 1 - TINY))  # mean and deviation: half of the range
        low, high = spec.shift_range
        s = (low + (high - low) * u).float()
        s = s[:, : self.dims] if spec.mode == "axes" else s[:, :1].expand(n, self.count - spec.radius)
        return F.pad(s, (0, int(spec.radius)))

    def forward(self, x: Float[Tensor, "n c *shape"]) -> Float[Tensor, "n ck *shape"]:
        """x with the channels behind its own. They are computed in float32, or in x's type if that is finer.

        What a convolution then puts around them is its own affair: `spec.padding` has no effect here.
        """
        if not self.count:
            return x
        g = self.ramp(x.shape[2:], x.device, dtype=torch.promote_types(x.dtype, torch.float32)).expand(
            len(x), self.count, *x.shape[2:]
        )
        s = self.shift(len(x), x.device)
        if s is not None:
            g = g + s.reshape(*s.shape, *[1] * self.dims)
        return torch.cat([x, g.to(x.dtype)], dim=1)


def coord_layers(net: nn.Module) -> list[CoordChannels]:
    """Those of a network that hold channels, in the order of `modules()`; their place is their number."""
    return [m for m in net.modules() if isinstance(m, CoordChannels) and m.count]


@contextmanager
def shifted(nets: Iterable[nn.Module], seeds: Sequence[int], batch_seed: int) -> Iterator[None]:
    """Within it the shifts of these networks follow from a seed a sample (or batch_seed), layer and forward.

    The k-th forward of a layer has draws of its own, so the order of forwards is part of the result.
    """
    before = []
    try:
        for i, net in enumerate(nets):
            layers = [c for c in coord_layers(net) if c.spec.shifts]
            shifts = Shifts(i, seeds, batch_seed, len(layers), _device_of(net)) if layers else None
            for number, layer in enumerate(layers):
                before.append((layer, layer.layer, layer.forwards, layer.shifts))
                layer.layer, layer.forwards, layer.shifts = number, 0, shifts
        yield
    finally:
        for layer, *state in reversed(before):  # a layer of two networks stands there twice
            layer.layer, layer.forwards, layer.shifts = state


def shifted_by(nets: Iterable[nn.Module], chance: Chance, name: str = "shift") -> AbstractContextManager[None]:
    """`shifted` by the draws of a microbatch under this name; draws nothing where no network wants it."""
    nets = list(nets)
    if not any(c.spec.shifts for net in nets for c in coord_layers(net)):
        return nullcontext()
    return shifted(nets, chance.seeds(name), key(chance.seed, chance.scope, name, chance.nimg))


def _device_of(net: nn.Module) -> torch.device:
    return next((p.device for p in net.parameters()), torch.device("cpu"))
