"""DCGAN with up-convolutions, trained by WGAN-GP, as in MS-PIE (2012.05217, Section 4 and Tables 3, 4, 6) and GeoPos.

Differs from reference: the paper states architecture style and loss alone. Everything else is that of WGAN-GP
(1704.00028): Adam, five updates of D for one of G, each with fresh reals, no average of G; so ema_kimg is that short.
"""

from math import inf
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.families.logistic import resize_reals
from pipeline.families.wgan_gp import WGANGPConfig
from pipeline.models.dcgan import DCGANDiscriminatorConfig, DCGANGeneratorConfig
from pipeline.phases import Family, Knobs


class DCGANConfig(WGANGPConfig):
    """Defaults are row a: padded, no code, 128 px."""

    kind: Literal["dcgan"] = "dcgan"
    group_field: ClassVar[str] = "family.G.bn_group"
    classes_fields: ClassVar[tuple[str, ...]] = ("family.G.num_classes", "family.D.num_classes")
    G: DCGANGeneratorConfig = DCGANGeneratorConfig()
    D: DCGANDiscriminatorConfig = DCGANDiscriminatorConfig()
    ema_kimg: float = Field(default=1e-6, gt=0)  # next to nothing: G_ema is G

    @model_validator(mode="after")
    def _same_size(self) -> "DCGANConfig":
        if self.D.resolution_px != self.G.resolution_px:
            raise ValueError(
                f"D.resolution_px={self.D.resolution_px} must equal G.resolution_px={self.G.resolution_px}"
            )
        return self

    @model_validator(mode="after")
    def _same_classes(self) -> "DCGANConfig":
        if self.D.num_classes != self.G.num_classes:
            raise ValueError(f"D.num_classes={self.D.num_classes} must equal G.num_classes={self.G.num_classes}")
        return self

    @property
    def group(self) -> int:
        return self.G.bn_group

    def num_classes(self) -> int:
        return self.G.num_classes

    def sizes(self) -> tuple[tuple[int, int], ...]:
        return ((self.G.resolution_px, self.G.resolution_px),)

    def size_probs(self, total_kimg: float = inf) -> tuple[float, ...]:
        return (1.0,)

    def tiny(self) -> "DCGANConfig":
        small_g = self.G.replace(resolution_px=16, channel_base=8, z_dim=16, bn_group=4)
        return self.replace(G=small_g, D=self.D.replace(resolution_px=16, channel_base=8))

    def build(self, seed: int) -> Family:
        knobs = Knobs(self.sizes()[0], dict.fromkeys(("G", "D"), self.lr))
        return Family(
            nets={"G": self.G.build(), "D": self.D.build()},
            adam=self.adam(),
            phases=self.phases(),
            knobs=lambda nimg: knobs,
            resize=resize_reals,
            ema_kimg=self.ema_kimg,
            sizes=self.sizes(),
        )
