"""CIPS (2011.13775): the per-pixel generator against StyleGAN2's discriminator, full images.

Fresh z for D and for G, no style mixing, no path length, R1 every 16 iterations.
Parity: G's Adam keeps the lazy correction of an interval of 4 although G has no regulariser.
"""

from typing import Literal

from pydantic import model_validator

from pipeline.families.logistic import LogisticConfig, g_adversarial, plain_fakes, resize_reals
from pipeline.models.cips import CIPSGeneratorConfig
from pipeline.models.stylegan2 import DiscriminatorConfig
from pipeline.phases import Family, Knobs, Nets, Phase, Step, Terms


class CIPSConfig(LogisticConfig):
    """Table 3: defaults are "main" (Fourier and embeddings, RGB skips) at 256 px."""

    kind: Literal["cips"] = "cips"
    G: CIPSGeneratorConfig = CIPSGeneratorConfig()
    D: DiscriminatorConfig = DiscriminatorConfig(mbstd_group=4)

    @model_validator(mode="after")
    def _same_size(self) -> "CIPSConfig":
        if self.D.resolution_px != self.G.size_px:
            raise ValueError(f"D.resolution_px={self.D.resolution_px} must equal G.size_px={self.G.size_px}")
        return self

    def sizes(self) -> tuple[tuple[int, int], ...]:
        return ((self.G.size_px, self.G.size_px),)

    def tiny(self) -> "CIPSConfig":
        small_g = self.G.replace(size_px=32, width=32, z_dim=32, w_dim=32, mapping_layers=2)
        return self.replace(G=small_g, D=self.D.replace(resolution_px=32, channel_max=32), ema_kimg=0.5)

    def build(self, seed: int) -> Family:
        knobs = Knobs(self.sizes()[0], self.lrs())
        return Family(
            nets={"G": self.G.build(), "D": self.D.build()},
            adam=self.adam(),
            phases=(self.d_phase(plain_fakes), Phase("G", "G", self._g_loss, ("adv",))),
            knobs=lambda nimg: knobs,
            resize=resize_reals,
            ema_kimg=self.ema_kimg,
            sizes=self.sizes(),
        )

    def _g_loss(self, nets: Nets, step: Step) -> Terms:
        return g_adversarial(nets, step, plain_fakes)
