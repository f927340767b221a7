"""Phase, Family, Knobs: the types in which training and families meet.

A family is data: networks, a list of phases, and pure functions of progress. A phase names the network it
updates and a short loss function; the engine alone reduces gradients and steps. Knows no family and no engine.
"""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, ClassVar, Protocol, runtime_checkable

from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from pipeline.chance import Chance
from pipeline.config import Config

Terms = dict[str, Float[Tensor, " n"]]  # named per-sample values


@dataclass(frozen=True)
class Knobs:
    """Everything about this iteration that is a pure function of (seed, nimg); equal on all ranks."""

    size: tuple[int, int]  # height and width of the images of this iteration
    lr: Mapping[str, float]  # network -> learning rate


@dataclass(frozen=True)
class Step:
    """What a loss function may see of one microbatch."""

    real: Float[Tensor, "n c h w"]  # in [-1, 1], at this iteration's size
    size: tuple[int, int]
    chance: Chance
    due: frozenset[str]  # lazy terms to include now
    feedback: Mapping[str, float]  # state that training feeds back, such as the mean path length
    c: Int64[Tensor, " n"]  # class of each real image, -1 where the set has none


Nets = Mapping[str, Any]  # name -> network; Any, as torch's attributes have no types

LossFn = Callable[[Nets, Step], Terms]
"""Terms of one microbatch. Names in the phase's `terms` are summed into the loss; others are reported."""


@dataclass(frozen=True)
class Phase:
    """One optimizer step on one network: mean over the global batch of the sum of its terms."""

    name: str
    net: str
    loss: LossFn
    terms: tuple[str, ...]
    lazy: Mapping[str, int] = field(default_factory=dict)  # term -> every how many iterations; weight times that
    every: int = 1  # the phase takes place in every so many-th iteration, the first among them
    learn: Callable[[Mapping[str, float], Mapping[str, float]], dict[str, float]] | None = None
    """(feedback, means over the global batch) -> new feedback, after the step."""

    def due(self, iteration: int) -> frozenset[str]:
        """The lazy terms that this iteration (nimg // batch_size) includes."""
        return frozenset(name for name, every in self.lazy.items() if iteration % every == 0)


@dataclass(frozen=True)
class AdamSpec:
    """Adam without its learning rate, which `Knobs` sets."""

    betas: tuple[float, float]
    eps: float


@dataclass(frozen=True)
class Stages:
    """The one door for networks that change on the way (progressive growing, pyramids): one entry a stage.

    A stage begins with the first iteration that starts at or beyond its image number; optimizers then start anew.
    """

    starts: tuple[int, ...]  # image numbers, ascending from 0
    factors: tuple[int, ...]  # images of one iteration, in batch sizes
    enter: Callable[[Nets, int], None]  # (networks and G_ema, stage): once, before its first iteration; not of stage 0
    begin: Callable[[Nets, int], None]  # (networks and G_ema, nimg): before each iteration

    def of(self, nimg: int) -> int:
        """The stage of the iteration that starts at nimg."""
        return bisect_right(self.starts, nimg) - 1

    def first(self, stage: int, batch_size: int) -> int:
        """Where the first iteration of a stage starts."""
        nimg = 0
        for start, factor in zip(self.starts[1 : stage + 1], self.factors, strict=False):
            nimg += -(-max(0, start - nimg) // (factor * batch_size)) * factor * batch_size
        return nimg

    def before(self, nimg: int, batch_size: int) -> int:
        """The stage of the networks when nimg images were consumed and the next iteration has not begun."""
        stage = self.of(nimg)
        while stage and self.first(stage, batch_size) >= nimg:
            stage -= 1
        return stage


Present = Callable[[UInt8[Tensor, "n c h w"], Sequence[int], tuple[int, int]], Float[Tensor, "n c h2 w2"]]
"""Stored images, their numbers in the run, this iteration's size -> reals in [-1, 1] of that size."""


@dataclass(frozen=True)
class Family:
    """A method as data. `nets` are fresh networks; everything else is a pure function."""

    nets: Mapping[str, nn.Module]
    adam: Mapping[str, AdamSpec]
    phases: tuple[Phase, ...]
    knobs: Callable[[int], Knobs]  # of nimg
    resize: Callable[[UInt8[Tensor, "n c h w"], tuple[int, int]], Float[Tensor, "n c h w"]]  # stored -> this size
    ema_kimg: float  # half-life of G_ema
    sizes: tuple[tuple[int, int], ...]  # trained sizes, for sample grids; with stages, that of each
    feedback: Mapping[str, float] = field(default_factory=dict)  # initial values
    stages: Stages | None = None
    present: Present | None = None  # in place of `resize`, where an image's number matters: random crops
    validate: LossFn | None = None  # per-sample values of held-out images; `nets` are those in training, G being G_ema


class FamilyConfig(Config, ABC):
    """The configuration of a method: what a recipe holds and KINDS lists."""

    kind: str
    group_field: ClassVar[str] = "family.D.mbstd_group"  # what a user sets `group` by
    recomputes: ClassVar[bool] = False  # may G's blocks be computed again for the backward pass (exec.recompute)?
    classes_fields: ClassVar[tuple[str, ...]] = ()  # what a user sets `num_classes` by
    planes: ClassVar[int] = 1  # of a stored sample: 1: a picture, 2: a photograph above its coded depth
    validates: ClassVar[bool] = False  # does it measure anything on held-out images (--validation)?

    @property
    @abstractmethod
    def group(self) -> int:
        """Samples that must share a forward: batch_gpu is a multiple of it."""

    @abstractmethod
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Trained (height, width)s."""

    @abstractmethod
    def size_probs(self, total_kimg: float = inf) -> tuple[float, ...]:
        """The share of images that each of `sizes` is trained with, in a run of this length."""

    @abstractmethod
    def passes(self) -> dict[str, float]:
        """Network -> what an image costs in training, in forward passes of that network."""

    @abstractmethod
    def exact_penalties(self) -> dict[str, str]:
        """Networks that a penalty now in use differentiates twice -> the field that takes it away when 0."""

    def stored_px(self) -> int:
        """The side that stored images must have at least."""
        return max(max(size) for size in self.sizes())

    def num_classes(self) -> int:
        """Classes that the data set must have; 0: labels are not looked at."""
        return 0

    def part(self, size: tuple[int, int]) -> tuple[int, int]:
        """Of an image of this trained size, the (height, width) that G makes and D sees at a time."""
        return size

    def staged(self) -> bool:
        """Do the networks change on the way (Stages)?"""
        return False

    @abstractmethod
    def tiny(self) -> "FamilyConfig":
        """The same method, small enough for two CPU cores."""

    @abstractmethod
    def build(self, seed: int) -> Family:
        """Fresh networks and the pure functions around them; `seed` keys the draws, not the weights."""


@runtime_checkable
class Generator(Protocol):
    """What sampling needs of a generator, whatever its family.

    One that has classes says so by `num_classes` > 0, and its mapping takes a label of each sample: without, class 0.
    """

    z_dim: int
    num_ws: int
    native_size: tuple[int, int]  # height and width made when none is asked for

    def check_size(self, size: tuple[int, int]) -> None:
        """Raise UserError when this height and width cannot be made."""
        ...

    def mapping(
        self, z: Float[Tensor, "n z_dim"], c: Int64[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n w_dim"]: ...

    def synthesis(
        self, ws: Float[Tensor, "n num_ws w_dim"], size: tuple[int, int], noise: tuple[int, ...] | None
    ) -> Float[Tensor, "n c h w"]: ...
