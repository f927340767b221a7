"""What the families without an adversary share: one network, called G, one phase, Adam, measures on held-out images.

Samples do not meet in a forward, so `microbatch` is a matter of speed. Knows neither networks nor losses.
"""

from abc import abstractmethod
from collections.abc import Callable
from math import inf
from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from pipeline.families.logistic import resize_reals
from pipeline.phases import AdamSpec, Family, FamilyConfig, Knobs, LossFn, Phase

NO_AVERAGE_KIMG = 1e-6  # a half-life so short that G_ema is G: a power of 1/2 that underflows to 0


class OneNetworkConfig(FamilyConfig):
    """Fields of every such family."""

    group_field: ClassVar[str] = "family.microbatch"
    validates: ClassVar[bool] = True
    lr: float = Field(default=1e-3, gt=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, gt=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    microbatch: int = Field(default=16, ge=1)  # images of one forward, and what exec.batch_gpu is a multiple of

    @abstractmethod
    def side_px(self) -> int:
        """Of the square images that G is trained on."""

    @property
    def group(self) -> int:
        return self.microbatch

    def sizes(self) -> tuple[tuple[int, int], ...]:
        return ((self.side_px(), self.side_px()),)

    def size_probs(self, total_kimg: float = inf) -> tuple[float, ...]:
        return (1.0,)

    def passes(self) -> dict[str, float]:
        """Forward, and twice as much backward."""
        return {"G": 3.0}

    def exact_penalties(self) -> dict[str, str]:
        return {}

    def family_of(
        self,
        G: nn.Module,
        loss: LossFn,
        terms: tuple[str, ...],
        validate: LossFn,
        resize: Callable[..., Any] = resize_reals,
    ) -> Family:
        """G trained by the sum of these terms of `loss`, measured by `validate`."""
        knobs = Knobs(self.sizes()[0], {"G": self.lr})
        return Family(
            nets={"G": G},
            adam={"G": AdamSpec((self.beta1, self.beta2), self.eps)},
            phases=(Phase("G", "G", loss, terms),),
            knobs=lambda nimg: knobs,
            resize=resize,
            ema_kimg=NO_AVERAGE_KIMG,
            sizes=self.sizes(),
            validate=validate,
        )
