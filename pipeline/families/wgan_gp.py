"""What the families trained by WGAN-GP share (Gulrajani et al. 2017, 1704.00028): optimizers and both phases.

D's critic loss, gradient penalty between reals and fakes and, where wanted, drift; then G, every so many iterations.
Each iteration updates D with fresh reals. Knows no network.
"""

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from pipeline.families.logistic import plain_fakes
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

    def adam(self) -> dict[str, AdamSpec]:
        return dict.fromkeys(("G", "D"), AdamSpec((self.beta1, self.beta2), self.eps))

    def passes(self) -> dict[str, float]:
        """D's phase: a fake, 2 forward, 4 backward, 6 for the penalty; G's: 3 through G, 2 through the frozen D."""
        return {"G": 1 + 3 / self.G_every, "D": 6 + 2 / self.G_every + (6 if self.gp_weight else 0)}

    def exact_penalties(self) -> dict[str, str]:
        return {"D": "gp_weight"} if self.gp_weight else {}

    def phases(self) -> tuple[Phase, ...]:
        d_phase = Phase("D", "D", self._d_loss, ("adv", "gp", "drift"))
        return d_phase, Phase("G", "G", _g_loss, ("adv",), every=self.G_every)

    def reals(self, nets: Nets, step: Step) -> Float[Tensor, "n c h w"]:
        """What D is shown as real."""
        return step.real

    def _d_loss(self, nets: Nets, step: Step) -> Terms:
        real, fake = self.reals(nets, step), plain_fakes(nets["G"], step)
        real_logits, fake_logits = nets["D"](real), nets["D"](fake)
        terms = {"adv": wgan_d(real_logits, fake_logits)}
        if self.gp_weight:
            between = between_them(real, fake, step).requires_grad_(True)
            with forward_of_penalty(between):
                logits = nets["D"](between)
            terms["gp"] = self.gp_weight * gradient_penalty(logits, between)
        if self.drift_weight:
            terms["drift"] = self.drift_weight * drift(real_logits)
        return terms | {"real_logits": real_logits.detach(), "fake_logits": fake_logits.detach()}


def between_them(
    real: Float[Tensor, "n c h w"], fake: Float[Tensor, "n c h w"], step: Step
) -> Float[Tensor, "n c h w"]:
    """real + u (fake - real), u uniform in [0, 1] and one for each sample."""
    u = torch.special.ndtr(step.chance.normal("between", 1))
    return torch.lerp(real, fake.detach(), u[:, :, None, None])


def _g_loss(nets: Nets, step: Step) -> Terms:
    return {"adv": wgan_g(nets["D"](plain_fakes(nets["G"], step)))}
