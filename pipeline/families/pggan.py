"""PGGAN (1710.10196) as MS-PIE trains it (2012.05217, Section 4 and Tables 3, 4, 6): WGAN-GP, level by level.

A stage is a level: 4 px for stage_kimg, then each next one fades in over fade_kimg and stays for stage_kimg, the last
to the end. Reals fade along. Optimizers start anew with each level.
Differs from reference: EMA is 0.999 a minibatch there, a half-life of 693 minibatches, which is 22 kimg at the batch
of 64 and 128 px; ema_kimg is that at all levels, where batches of 512 at 4 px would give 355. Its optimizers start
anew at the end of a fade as well, to our reading.
"""

from bisect import bisect_right
from functools import partial
from math import inf
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from pipeline.families.logistic import resize_reals
from pipeline.families.wgan_gp import WGANGPConfig
from pipeline.models.pggan import HEAD_PX, PGGANDiscriminatorConfig, PGGANGeneratorConfig, levels_of, nearest_up
from pipeline.phases import Family, Knobs, Nets, Stages, Step
from pipeline.spec import to_float


class PGGANConfig(WGANGPConfig):
    """Defaults are row a: padded, no code, 128 px."""

    kind: Literal["pggan"] = "pggan"
    G: PGGANGeneratorConfig = PGGANGeneratorConfig()
    D: PGGANDiscriminatorConfig = PGGANDiscriminatorConfig()
    lr: float = Field(default=1e-3, gt=0)
    beta1: float = Field(default=0, ge=0, lt=1)
    beta2: float = Field(default=0.99, gt=0, lt=1)
    drift_weight: float = Field(default=1e-3, ge=0)
    G_every: int = Field(default=1, ge=1)
    ema_kimg: float = Field(default=22.2, gt=0)
    stage_kimg: float = Field(default=600, gt=0)  # a level by itself
    fade_kimg: float = Field(default=600, ge=0)  # before that, its fading in
    batch_factors: tuple[int, ...] = (16, 8, 4, 2, 1, 1)  # 4 px first: images of an iteration, in batch sizes
    lr_factors: tuple[float, ...] = (1, 1, 1, 1, 1, 1.5)  # 4 px first: times lr

    @model_validator(mode="after")
    def _levels_agree(self) -> "PGGANConfig":
        if self.D.resolution_px != self.G.resolution_px:
            raise ValueError(
                f"D.resolution_px={self.D.resolution_px} must equal G.resolution_px={self.G.resolution_px}"
            )
        levels = levels_of(self.G.resolution_px)
        for name, factors in (("batch_factors", self.batch_factors), ("lr_factors", self.lr_factors)):
            if len(factors) != levels or min(factors) <= 0:
                raise ValueError(
                    f"{name}={list(factors)} must be {levels} positive numbers, for 4 to {self.G.resolution_px} px"
                )
        return self

    @property
    def group(self) -> int:
        return self.D.mbstd_group

    def sizes(self) -> tuple[tuple[int, int], ...]:
        return tuple((HEAD_PX << level, HEAD_PX << level) for level in range(levels_of(self.G.resolution_px)))

    def starts(self) -> tuple[int, ...]:
        """Where each level begins to fade in, in images."""
        ends = [self.stage_kimg + level * (self.stage_kimg + self.fade_kimg) for level in range(len(self.sizes()) - 1)]
        return 0, *(round(1000 * end) for end in ends)

    def size_probs(self, total_kimg: float = inf) -> tuple[float, ...]:
        if total_kimg == inf:
            return (*(0.0 for _ in self.sizes()[1:]), 1.0)
        total = 1000 * total_kimg
        ends = [min(start, total) for start in (*self.starts()[1:], total)]
        return tuple(max(0.0, end - start) / total for start, end in zip(self.starts(), ends, strict=True))

    def staged(self) -> bool:
        return True

    def tiny(self) -> "PGGANConfig":
        return self.replace(
            G=self.G.replace(resolution_px=16, channel_max=32, z_dim=32),
            D=self.D.replace(resolution_px=16, channel_max=32),
            stage_kimg=0.1,
            fade_kimg=0.1,
            batch_factors=self.batch_factors[-3:],
            lr_factors=self.lr_factors[-3:],
            ema_kimg=0.5,
        )

    def level_at(self, nimg: int) -> tuple[int, float]:
        """The level of the iteration that starts at nimg, and its share."""
        starts = self.starts()
        level = bisect_right(starts, nimg) - 1
        faded = (nimg - starts[level]) / (1000 * self.fade_kimg) if level and self.fade_kimg else 1.0
        return level, min(1.0, faded)

    def reals(self, nets: Nets, step: Step) -> Float[Tensor, "n c h w"]:
        return faded_reals(step.real, nets["D"].fade)

    def knobs_at(self, nimg: int) -> Knobs:
        level, _ = self.level_at(nimg)
        return Knobs(self.sizes()[level], dict.fromkeys(("G", "D"), self.lr * self.lr_factors[level]))

    def build(self, seed: int) -> Family:
        return Family(
            nets={"G": self.G.build(), "D": self.D.build()},
            adam=self.adam(),
            phases=self.phases(),
            knobs=self.knobs_at,
            resize=averaged_reals,
            ema_kimg=self.ema_kimg,
            sizes=self.sizes(),
            stages=Stages(self.starts(), self.batch_factors, enter=_nothing, begin=partial(_grow, self)),
        )


def _nothing(nets: Nets, stage: int) -> None:
    """All levels are there from the start."""


def _grow(config: PGGANConfig, nets: Nets, nimg: int) -> None:
    for net in nets.values():
        net.grow(*config.level_at(nimg))


def averaged_reals(img: UInt8[Tensor, "n c h w"], size: tuple[int, int]) -> Float[Tensor, "n c h2 w2"]:
    """Stored images to the level's size by averaging, as in the original; other ratios bilinear, antialiased."""
    kernel, rest = divmod(img.shape[2], size[0])
    return F.avg_pool2d(to_float(img), kernel) if rest == 0 else resize_reals(img, size)


def faded_reals(real: Float[Tensor, "n c h w"], fade: float) -> Float[Tensor, "n c h w"]:
    """The share 1 - fade is what the level below could show."""
    if fade == 1:
        return real
    return torch.lerp(nearest_up(F.avg_pool2d(real, 2)), real, fade)
