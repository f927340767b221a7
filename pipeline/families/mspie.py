"""MS-PIE on StyleGAN2 (2012.05217, Section 4.1, Tables 2 and 5): one generator trained at one size or several.

Each iteration draws its size from `scale_probs` as a function of (seed, nimg), the same on all ranks.
Differs from reference: the release's scale probabilities have no effect, its path length sees one size, its EMA
constant is that of batch 32; here the paper's probabilities hold, path length is taken at the drawn size, and
ema_kimg is the half-life. Path length compares with the mean before this iteration's update.
"""

from collections.abc import Mapping
from functools import partial
from math import inf
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from pipeline.chance import rng
from pipeline.config import added
from pipeline.families.logistic import LogisticConfig, g_adversarial, resize_reals
from pipeline.layers.coords import shifted_by
from pipeline.models.mspie import HEAD_PX, MSPIEGeneratorConfig
from pipeline.models.stylegan2 import DiscriminatorConfig, broadcast_w, mix_styles
from pipeline.objectives.penalties import path_lengths
from pipeline.phases import Family, Generator, Knobs, Nets, Phase, Step, Terms


class MSPIEConfig(LogisticConfig):
    """Table 5: defaults are row f (sinusoidal code, expand, zero padding, C2)."""

    kind: Literal["mspie"] = "mspie"
    G: MSPIEGeneratorConfig = MSPIEGeneratorConfig()
    D: DiscriminatorConfig = DiscriminatorConfig(mbstd_group=3, pool=2)
    scales: tuple[int, ...] = Field(default=(0, 2, 4), min_length=1)  # head side is 4 + s: 256, 384, 512 px
    scale_probs: tuple[float, ...] = (0.5, 0.25, 0.25)
    real_resize: Literal["antialias", "align_corners"] = "antialias"  # Parity: align_corners is the release's
    style_mixing_prob: float = Field(default=0.9, ge=0, le=1)  # one crossover for the global batch
    pl_weight: float = Field(default=2, ge=0)
    pl_decay: float = Field(default=0.01, gt=0, le=1)  # of the running mean of path lengths
    pl_batch_shrink: int = Field(default=2, ge=1)  # of each mbstd_group samples, max(1, group // this) take part
    reg_step: Literal["merged", "separate"] = added("merged")  # of due regularisers: the main one, or StyleGAN2's own

    @model_validator(mode="after")
    def _probabilities(self) -> "MSPIEConfig":
        if len(self.scale_probs) != len(self.scales):
            raise ValueError(f"scale_probs has {len(self.scale_probs)} entries for {len(self.scales)} scales")
        if min(self.scale_probs) < 0 or abs(sum(self.scale_probs) - 1) > 1e-6:
            raise ValueError(f"scale_probs={self.scale_probs} must be non-negative and sum to 1")
        if min(self.scales) < 0 or len(set(self.scales)) != len(self.scales):
            raise ValueError(f"scales={self.scales} must be distinct and non-negative")
        if self.D.resolution_px != self.G.base_px():
            raise ValueError(
                f"D.resolution_px={self.D.resolution_px} must be the base size {self.G.base_px()} of G "
                "(4 * 2^num_upblocks)"
            )
        if self.D.pool is None and self.scales != (0,):
            raise ValueError("D.pool must be set to train at several sizes")
        return self

    def sizes(self) -> tuple[tuple[int, int], ...]:
        sides = [(HEAD_PX + s) << self.G.num_upblocks for s in self.scales]
        return tuple((side, side) for side in sides)

    def size_probs(self, total_kimg: float = inf) -> tuple[float, ...]:
        return self.scale_probs

    def passes(self) -> dict[str, float]:
        """Path length adds 6 for each image that takes part: forward, its gradient, and the backward of both."""
        plain, share = super().passes(), self._taking_part() / self.group / self.G_interval
        return plain | {"G": plain["G"] + (6 * share if self.pl_weight else 0)}

    def exact_penalties(self) -> dict[str, str]:
        return super().exact_penalties() | ({"G": "pl_weight"} if self.pl_weight else {})

    def _taking_part(self) -> int:
        return max(1, self.group // self.pl_batch_shrink)

    def tiny(self) -> "MSPIEConfig":
        depth = 3 if max(self.scales) <= 4 else 2  # 64 px at most
        small_g = self.G.replace(num_upblocks=depth, channel_max=32, z_dim=32, w_dim=32, mapping_layers=2)
        small_d = self.D.replace(resolution_px=small_g.base_px(), channel_max=32)
        return self.replace(G=small_g, D=small_d, ema_kimg=0.5)

    def size_at(self, seed: int, nimg: int) -> tuple[int, int]:
        """The size of the iteration that starts at nimg."""
        return self.sizes()[rng(seed, "scale", nimg).choice(len(self.scales), p=self.scale_probs)]

    def build(self, seed: int) -> Family:
        lrs = self.lrs()
        return Family(
            nets={"G": self.G.build(), "D": self.D.build()},
            adam=self.adam(),
            phases=self._phases(),
            knobs=lambda nimg: Knobs(self.size_at(seed, nimg), lrs),
            resize=partial(resize_reals, mode=self.real_resize),
            ema_kimg=self.ema_kimg,
            sizes=self.sizes(),
            feedback={"pl_mean": 0.0},
        )

    def _phases(self) -> tuple[Phase, ...]:
        """D, G; between and after them, the regularisers that take a step of their own (StyleGAN2, Appendix B)."""
        due = {"pl": self.G_interval} if self.pl_weight else {}
        learn = partial(_update_pl_mean, decay=self.pl_decay)
        if self.reg_step == "merged":
            return self.d_phase(self._fakes), Phase("G", "G", self._g_loss, ("adv", "pl"), lazy=due, learn=learn)
        d_reg = (self.r1_phase(),) if self.r1_gamma else ()
        g_reg = Phase("G_reg", "G", self._g_penalty, ("pl",), lazy=due, every=self.G_interval, learn=learn)
        g_phase = Phase("G", "G", self._g_loss, ("adv",))
        return self.d_phase(self._fakes, with_r1=False), *d_reg, g_phase, *((g_reg,) if due else ())

    def _fakes(self, G: Generator, step: Step) -> Float[Tensor, "n c h w"]:
        """Images with style mixing: with probability style_mixing_prob, two latents and one crossover."""
        w = G.mapping(step.chance.normal("z", G.z_dim))
        ws = broadcast_w(w, G.num_ws)
        draw = step.chance.shared("mixing")
        if draw.random() < self.style_mixing_prob:
            other = G.mapping(step.chance.normal("z_mix", G.z_dim))
            ws = mix_styles(w, other, G.num_ws, int(draw.integers(1, G.num_ws)))
        return G.synthesis(ws, step.size, step.chance.seeds("noise"))

    def _g_loss(self, nets: Nets, step: Step) -> Terms:
        terms = g_adversarial(nets, step, self._fakes)
        if "pl" in step.due:
            terms |= self._path_length(nets["G"], step)
        return terms

    def _g_penalty(self, nets: Nets, step: Step) -> Terms:
        return self._path_length(nets["G"], step)

    def _path_length(self, G: Generator, step: Step) -> Terms:
        """Of each group of samples the first few take part, weighted so that the mean is theirs alone."""
        n = len(step.real)
        picked = [i for i in range(n) if i % self.group < self._taking_part()]
        chance = step.chance.of(picked)
        ws = broadcast_w(G.mapping(chance.normal("pl_z", G.z_dim)), G.num_ws).contiguous()
        with shifted_by([G], chance, "pl_shift"):  # pyright: ignore[reportArgumentType]
            img = G.synthesis(ws, step.size, chance.seeds("pl_noise"))
        lengths = path_lengths(img, ws, chance.maps("pl_y", tuple(img.shape[1:])))
        share = n / len(picked)
        index = torch.tensor(picked, device=lengths.device)
        spread = lengths.new_zeros(n).index_copy(0, index, share * (lengths - step.feedback["pl_mean"]).square())
        length = lengths.new_zeros(n).index_copy(0, index, share * lengths.detach())
        return {"pl": self.pl_weight * spread, "pl_length": length}


def _update_pl_mean(feedback: Mapping[str, float], means: Mapping[str, float], decay: float) -> dict[str, float]:
    old = feedback["pl_mean"]
    return {"pl_mean": old + decay * (means["pl_length"] - old)} if "pl_length" in means else {}
