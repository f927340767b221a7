"""Depth from one photograph, learned from pairs: GeoPos (2401.01951, version 2) has it; how, is unknown to us.

One network, one loss in the logarithm of depth, three measures on held-out pairs: means over images of what is a mean
over an image's measured pixels. Reals have four channels: the photograph in [-1, 1], and metres, 0 where there are
none. Knows no architecture.
"""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float, UInt8
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from pipeline.families.logistic import resize_reals
from pipeline.families.one_network import OneNetworkConfig
from pipeline.models.unet import UNetConfig
from pipeline.objectives.depth import l1_log, measured, measures, silog, unstacked
from pipeline.phases import Family, Nets, Step, Terms


class DepthConfig(OneNetworkConfig):
    """All of it our choice; Adam's figures are its usual ones."""

    kind: Literal["depth"] = "depth"
    planes: ClassVar[int] = 2
    G: UNetConfig = UNetConfig()
    loss: Literal["silog", "l1_log"] = "silog"
    silog_weight: float = Field(default=0.5, ge=0, le=1)  # Eigen's lambda; 1: a common factor of all depths is free
    lr: float = Field(default=1e-4, gt=0)

    @model_validator(mode="after")
    def _every_value_has_an_effect(self) -> "DepthConfig":
        default = type(self).model_fields["silog_weight"].default
        if self.loss != "silog" and self.silog_weight != default:
            raise ValueError(f"silog_weight={self.silog_weight} has no effect with loss={self.loss!r}; leave it out")
        return self

    def side_px(self) -> int:
        return self.G.image_px

    def tiny(self) -> "DepthConfig":
        small = self.G.replace(image_px=32, levels=min(self.G.levels, 3), channel_base=8, channel_max=16)
        return self.replace(G=small, microbatch=4)

    def build(self, seed: int) -> Family:
        return self.family_of(self.G.build(), self._loss, (self.loss,), self._measures, resize_pairs)

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
