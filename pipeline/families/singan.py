"""SinGAN (1905.01164) and its variants of MS-PIE (2012.05217, Section 4.3): one image, a pyramid of stages.

An iteration is three updates of D and three of G, a fresh fake for each, on the present stage alone; finished stages
stay as they are. WGAN-GP on patches, and a reconstruction of the image from a fixed noise map.
Differs from reference: z* is one map for the whole run (the original redraws that of the first stage); a stage's noise
amplitude is measured on the finished stage before it, as in the original and not as in mmgeneration, from the global
batch. Of a set of several images it learns the patches of all, and a reconstruction of their mean.
"""

from collections.abc import Mapping
from math import inf
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from pipeline.models.singan import SinGANDiscriminatorConfig, SinGANGeneratorConfig
from pipeline.objectives.adversarial import wgan_d, wgan_g
from pipeline.objectives.penalties import forward_of_penalty, pixel_gradient_penalty
from pipeline.phases import AdamSpec, Family, FamilyConfig, Knobs, Nets, Phase, Stages, Step, Terms
from pipeline.spec import to_float

NO_AVERAGE_KIMG = 1e-6  # a half-life so short that G_ema is G: a power of 1/2 that underflows to 0


class SinGANConfig(FamilyConfig):
    """Defaults are the original's; an image of training is one iteration where batch_size is 1, as published."""

    kind: Literal["singan"] = "singan"
    G: SinGANGeneratorConfig = SinGANGeneratorConfig()
    D: SinGANDiscriminatorConfig = SinGANDiscriminatorConfig()
    stage_kimg: float = Field(default=2.0, gt=0)  # of every stage; the last one goes on to the end of the run
    decay_kimg: float = Field(default=1.6, gt=0)  # into a stage: from there on lr * lr_decay
    lr: float = Field(default=0.0005, gt=0)
    lr_decay: float = Field(default=0.1, gt=0, le=1)
    beta1: float = Field(default=0.5, ge=0, lt=1)
    beta2: float = Field(default=0.999, gt=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    D_updates: int = Field(default=3, ge=1)  # of an iteration
    G_updates: int = Field(default=3, ge=1)
    gp_weight: float = Field(default=0.1, ge=0)  # of the gradient penalty
    rec_weight: float = Field(default=10, ge=0)  # of the reconstruction's mean squared error
    noise_scale: float = Field(default=0.1, gt=0)  # a later stage's amplitude is this times the RMSE before it

    @model_validator(mode="after")
    def _values_agree(self) -> "SinGANConfig":
        if self.decay_kimg >= self.stage_kimg and self.lr_decay != 1:
            raise ValueError(
                f"decay_kimg={self.decay_kimg} is not reached in a stage of stage_kimg={self.stage_kimg}; "
                "take a smaller one, or lr_decay=1"
            )
        return self

    @property
    def group(self) -> int:
        return 1

    def sizes(self) -> tuple[tuple[int, int], ...]:
        return self.G.sizes()

    def size_probs(self, total_kimg: float = inf) -> tuple[float, ...]:
        """Stages take turns; `inf` is a run that ends with the last stage."""
        stages, each = len(self.sizes()), self.stage_kimg
        total = stages * each if total_kimg == inf else total_kimg
        spent = [min(max(total - k * each, 0.0), each) for k in range(stages)]
        spent[-1] = max(total - (stages - 1) * each, 0.0)
        return tuple(kimg / total for kimg in spent)

    def passes(self) -> dict[str, float]:
        """D's updates: a fake, then 2 forward and 4 backward, 6 for the penalty; G's: a fake and a reconstruction.

        Finished stages run forward only, so for G this is an upper bound.
        """
        of_d = self.D_updates * (6.0 + (6 if self.gp_weight else 0)) + self.G_updates * 2
        return {"G": self.D_updates + self.G_updates * (6.0 if self.rec_weight else 3.0), "D": of_d}

    def exact_penalties(self) -> dict[str, str]:
        return {"D": "gp_weight"} if self.gp_weight else {}

    def staged(self) -> bool:
        return True

    def tiny(self) -> "SinGANConfig":
        """Three stages of 12 images, up to 17x25 px."""
        small_g = self.G.replace(image_px=(33, 49), min_px=12, max_px=25, channels=4)
        return self.replace(G=small_g, D=self.D.replace(channels=4), stage_kimg=0.012, decay_kimg=0.008)

    def build(self, seed: int) -> Family:
        sizes = self.sizes()
        starts = tuple(round(k * self.stage_kimg * 1000) for k in range(len(sizes)))

        def begin(nets: Nets, nimg: int) -> None:
            for net in nets.values():
                net.at(stages.of(nimg))

        def knobs(nimg: int) -> Knobs:
            stage = stages.of(nimg)
            lr = self.lr * (self.lr_decay if nimg - starts[stage] >= self.decay_kimg * 1000 else 1)
            return Knobs(sizes[stage], {"G": lr, "D": lr})

        stages = Stages(starts, (1,) * len(sizes), _inherit, begin)
        adam = AdamSpec((self.beta1, self.beta2), self.eps)
        return Family(
            nets={"G": self.G.build(), "D": self.D.build(len(sizes))},
            adam={"G": adam, "D": adam},
            phases=self._phases(),
            knobs=knobs,
            resize=resize_whole,
            ema_kimg=NO_AVERAGE_KIMG,
            sizes=sizes,
            feedback={_mse(k): 0.0 for k in range(1, len(sizes))},
            stages=stages,
        )

    def _phases(self) -> tuple[Phase, ...]:
        """The first, of D, also measures: what it learns, all others know."""
        first = Phase("D", "D", self._d_loss, ("adv", "gp"), lazy={"rec_mse": 1}, learn=_keep_first)
        of_d = [Phase(f"D{i + 1}", "D", self._d_loss, ("adv", "gp")) for i in range(1, self.D_updates)]
        of_g = [Phase(f"G{i + 1}" if i else "G", "G", self._g_loss, ("adv", "rec")) for i in range(self.G_updates)]
        return (first, *of_d, *of_g)

    def _d_loss(self, nets: Nets, step: Step) -> Terms:
        D, real = nets["D"], step.real.detach()
        fake, measured = self._fakes(nets, step)
        real_logits, fake_logits = _mean(D(real)), _mean(D(fake))
        terms = {"adv": wgan_d(real_logits, fake_logits)}
        if self.gp_weight:
            share = torch.special.ndtr(step.chance.normal("between", 1))[:, :, None, None]  # uniform
            x = torch.lerp(fake.float(), real, share).requires_grad_()
            with forward_of_penalty(x):
                terms["gp"] = self.gp_weight * pixel_gradient_penalty(D(x), x)
        return terms | measured | {"real_logits": real_logits.detach(), "fake_logits": fake_logits.detach()}

    def _g_loss(self, nets: Nets, step: Step) -> Terms:
        fake, measured = self._fakes(nets, step)
        terms = {"adv": wgan_g(_mean(nets["D"](fake)))}
        if self.rec_weight:
            terms["rec"] = self.rec_weight * _error(nets["G"].reconstruction(step.size), step.real)
        return terms | measured

    def _fakes(self, nets: Nets, step: Step) -> tuple[Float[Tensor, "n 3 h w"], Terms]:
        """Images of the present stage; with the reconstruction's error before it, as long as that is not known."""
        G, no_ws = nets["G"], step.real.new_zeros(len(step.real), 1, 1)
        amplitude, measured, stage = None, {}, G.stage
        if stage and (known := step.feedback[_mse(stage)]):
            G.amplitudes[stage] = self.noise_scale * known**0.5
        elif stage:
            measured = {_mse(stage): _error(G.reconstruction_below(step.size), step.real)}
            amplitude = self.noise_scale * measured[_mse(stage)].sqrt()
        return G.synthesis(no_ws, step.size, step.chance.seeds("noise"), amplitude), measured


def resize_whole(img: UInt8[Tensor, "n c h w"], size: tuple[int, int]) -> Float[Tensor, "n c h2 w2"]:
    """Stored images, squeezed to a square or not, to a stage's size in [-1, 1]: bicubic, antialiased."""
    real = to_float(img)
    if tuple(img.shape[2:]) == size:
        return real
    return F.interpolate(real, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)


def _mse(stage: int) -> str:
    return f"rec_mse_{stage}"


def _error(reconstruction: Tensor, real: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    return (reconstruction.float() - real).square().mean(dim=(1, 2, 3))


def _mean(logits: Float[Tensor, "n 1 h w"]) -> Float[Tensor, " n"]:
    return logits.float().mean(dim=(1, 2, 3))


def _keep_first(feedback: Mapping[str, float], means: Mapping[str, float]) -> dict[str, float]:
    """A stage's error is that of its first iteration; later ones do not measure it."""
    return {name: means[name] for name in feedback if name in means}


def _inherit(nets: Nets, stage: int) -> None:
    for net in nets.values():
        net.inherit(stage)
