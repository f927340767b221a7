"""What the families trained by WGAN-GP share (Gulrajani et al. 2017, 1704.00028): optimizers and both phases.

D's critic loss, gradient penalty between reals and fakes and, where wanted, drift; then G, every so many iterations.
Each iteration updates D with fresh reals. Where there are classes, fakes and what lies between have the labels of the
reals of their sample. Reported where wanted: how far apart fakes are, and reals (see tracking/collapse.py). Knows no
network.
"""

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from pipeline.config import added
from pipeline.families.logistic import fakes_of, plain_fakes
from pipeline.objectives.adversarial import wgan_d, wgan_g
from pipeline.objectives.penalties import drift, forward_of_penalty, gradient_penalty
from pipeline.phases import AdamSpec, FamilyConfig, Nets, Phase, Step, Terms


class WGANGPConfig(FamilyConfig):
    """Fields of every WGAN-GP family."""

    lr: float = Field(default=1e-4, gt=0)
    beta1: float = Field(default=0.5, ge=0, lt=1)
    beta2: float = Field(default=0.9, gt=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    gp_weight: float = Field(default=10, ge=0)
    drift_weight: float = Field(default=0, ge=0)
    G_every: int = Field(default=5, ge=1)  # G is updated in every so many-th iteration, D in each
    ema_kimg: float = Field(default=10, gt=0)  # half-life of G_ema
    diversity_interval: int = added(0, ge=0)  # every how many iterations distances are measured; 0: never

    @model_validator(mode="after")
    def _distances_need_two(self) -> "WGANGPConfig":
        if self.diversity_interval and self.group < 2:
            raise ValueError(
                f"diversity_interval={self.diversity_interval} compares the reals of a group; set "
                f"{self.group_field.removeprefix('family.')}={self.group} to 2 or more"
            )
        return self

    def adam(self) -> dict[str, AdamSpec]:
        return dict.fromkeys(("G", "D"), AdamSpec((self.beta1, self.beta2), self.eps))

    def passes(self) -> dict[str, float]:
        """D's phase: a fake, 2 forward, 4 backward, 6 for the penalty; G's: 3 through G, 2 through the frozen D."""
        second = 1 / self.diversity_interval if self.diversity_interval else 0
        return {"G": 1 + 3 / self.G_every + second, "D": 6 + 2 / self.G_every + (6 if self.gp_weight else 0)}

    def exact_penalties(self) -> dict[str, str]:
        return {"D": "gp_weight"} if self.gp_weight else {}

    def phases(self) -> tuple[Phase, ...]:
        lazy = {"diversity": self.diversity_interval} if self.diversity_interval else {}
        d_phase = Phase("D", "D", self._d_loss, ("adv", "gp", "drift"), lazy=lazy)
        return d_phase, Phase("G", "G", _g_loss, ("adv",), every=self.G_every)

    def reals(self, nets: Nets, step: Step) -> Float[Tensor, "n c h w"]:
        """What D is shown as real."""
        return step.real

    def _d_loss(self, nets: Nets, step: Step) -> Terms:
        real, fake = self.reals(nets, step), plain_fakes(nets["G"], step)
        real_logits, fake_logits = logits_of(nets, real, step), logits_of(nets, fake, step)
        terms = {"adv": wgan_d(real_logits, fake_logits)}
        if self.gp_weight:
            between = between_them(real, fake, step).requires_grad_(True)
            with forward_of_penalty(between):
                logits = logits_of(nets, between, step)
            terms["gp"] = self.gp_weight * gradient_penalty(logits, between)
        if self.drift_weight:
            terms["drift"] = self.drift_weight * drift(real_logits)
        if "diversity" in step.due:
            terms |= self._distances(nets, step, real, fake)
        return terms | {"real_logits": real_logits.detach(), "fake_logits": fake_logits.detach()}

    @torch.no_grad()
    def _distances(self, nets: Nets, step: Step, real: Tensor, fake: Tensor) -> Terms:
        """Of each fake from another of its label, and of each real from the next one of its group."""
        other = fakes_of(nets["G"], step, step.chance.normal("z_other", nets["G"].z_dim))
        following = real.unflatten(0, (-1, self.group)).roll(-1, dims=1).flatten(0, 1)
        return {"fake_distance": rms(fake - other), "real_distance": rms(real - following)}


def logits_of(nets: Nets, img: Float[Tensor, "n c h w"], step: Step) -> Float[Tensor, " n"]:
    """D's, by the labels of this step where G has classes."""
    return nets["D"](img, step.c) if getattr(nets["G"], "num_classes", 0) else nets["D"](img)


def rms(difference: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Root of the mean square over channels and pixels."""
    return difference.float().square().mean(dim=(1, 2, 3)).sqrt()


def between_them(
    real: Float[Tensor, "n c h w"], fake: Float[Tensor, "n c h w"], step: Step
) -> Float[Tensor, "n c h w"]:
    """real + u (fake - real), u uniform in [0, 1] and one for each sample."""
    u = torch.special.ndtr(step.chance.normal("between", 1))
    return torch.lerp(real, fake.detach(), u[:, :, None, None])


def _g_loss(nets: Nets, step: Step) -> Terms:
    return {"adv": wgan_g(logits_of(nets, plain_fakes(nets["G"], step), step))}
