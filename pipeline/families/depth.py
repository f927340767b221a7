"""Depth from one photograph, learned from pairs: GeoPos (2401.01951, version 2) has it; how, is unknown to us.

One network, one loss in the logarithm of depth, three measures on held-out pairs: means over images of what is a mean
over an image's measured pixels. Reals have four channels: the photograph in [-1, 1], and metres, 0 where there are
none. Knows no architecture.
"""

from math import inf
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, UInt8
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from pipeline.families.logistic import resize_reals
from pipeline.models.unet import UNetConfig
from pipeline.objectives.depth import l1_log, measured, measures, silog, unstacked
from pipeline.phases import AdamSpec, Family, FamilyConfig, Knobs, Nets, Phase, Step, Terms


class DepthConfig(FamilyConfig):
    """All of it our choice; Adam's figures are its usual ones."""

    kind: Literal["depth"] = "depth"
    group_field: ClassVar[str] = "family.together"
    planes: ClassVar[int] = 2
    validates: ClassVar[bool] = True
    G: UNetConfig = UNetConfig()
    loss: Literal["silog", "l1_log"] = "silog"
    silog_weight: float = Field(default=0.5, ge=0, le=1)  # Eigen's lambda; 1: a common factor of all depths is free
    together: int = Field(default=16, ge=1)  # images of one forward where nothing else is asked for; speed alone
    lr: float = Field(default=1e-4, gt=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, gt=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    ema_kimg: float = Field(default=1e-6, gt=0)  # next to nothing: G_ema is G

    @model_validator(mode="after")
    def _every_value_has_an_effect(self) -> "DepthConfig":
        default = type(self).model_fields["silog_weight"].default
        if self.loss != "silog" and self.silog_weight != default:
            raise ValueError(f"silog_weight={self.silog_weight} has no effect with loss={self.loss!r}; leave it out")
        return self

    @property
    def group(self) -> int:
        return self.together

    def sizes(self) -> tuple[tuple[int, int], ...]:
        return ((self.G.image_px, self.G.image_px),)

    def size_probs(self, total_kimg: float = inf) -> tuple[float, ...]:
        return (1.0,)

    def passes(self) -> dict[str, float]:
        """Forward, and twice as much backward."""
        return {"G": 3.0}

    def exact_penalties(self) -> dict[str, str]:
        return {}

    def tiny(self) -> "DepthConfig":
        small = self.G.replace(image_px=32, levels=min(self.G.levels, 3), channel_base=8, channel_max=16)
        return self.replace(G=small, together=4)

    def build(self, seed: int) -> Family:
        knobs = Knobs(self.sizes()[0], {"G": self.lr})
        return Family(
            nets={"G": self.G.build()},
            adam={"G": AdamSpec((self.beta1, self.beta2), self.eps)},
            phases=(Phase("G", "G", self._loss, (self.loss,)),),
            knobs=lambda nimg: knobs,
            resize=resize_pairs,
            ema_kimg=self.ema_kimg,
            sizes=self.sizes(),
            validate=self._measures,
        )

    def _loss(self, nets: Nets, step: Step) -> Terms:
        depth = step.real[:, 3:]
        mask, predicted = measured(depth, self.G.min_m, self.G.max_m), nets["G"](step.real[:, :3])
        if self.loss == "silog":
            return {"silog": silog(predicted, depth, mask, self.silog_weight)}
        return {"l1_log": l1_log(predicted, depth, mask)}

    def _measures(self, nets: Nets, step: Step) -> Terms:
        """Predictions lie in the range that counts by construction, so nothing is clipped."""
        depth = step.real[:, 3:]
        return measures(nets["G"](step.real[:, :3]), depth, measured(depth, self.G.min_m, self.G.max_m))


def resize_pairs(stored: UInt8[Tensor, "n 3 h2 w2"], size: tuple[int, int]) -> Float[Tensor, "n 4 h w"]:
    """Stored pairs to the reals of this size; from a larger set depths are picked, not averaged."""
    photograph, depth = unstacked(stored)
    if depth.shape[2:] != size:
        depth = F.interpolate(depth, size, mode="nearest-exact")
    return torch.cat([resize_reals(photograph, size), depth], dim=1)
