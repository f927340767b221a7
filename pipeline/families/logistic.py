"""What the families trained by the non-saturating logistic loss share: configuration, optimizers, D's phase.

MS-PIE and CIPS both update D by logistic loss plus lazy R1 and then G, each with Adam corrected for lazy
regularisation (StyleGAN2, Appendix B). Knows neither generator.
Differs from reference: a due regulariser joins the main loss (one backward, one Adam step), as in mmgeneration.
"""

from abc import abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from math import inf

from jaxtyping import Float, UInt8
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from pipeline.models.stylegan2 import DiscriminatorConfig, broadcast_w
from pipeline.objectives.adversarial import logistic_d, logistic_g
from pipeline.objectives.penalties import forward_of_penalty, r1
from pipeline.phases import AdamSpec, FamilyConfig, Generator, Nets, Phase, Step, Terms
from pipeline.spec import to_float

FakeFn = Callable[[Generator, Step], Tensor]
"""Images of one microbatch, with latents of the step's own draws."""


class LogisticConfig(FamilyConfig):
    """Fields of every logistic family."""

    D: DiscriminatorConfig
    lr: float = Field(default=0.002, gt=0)  # before the lazy correction
    beta2: float = Field(default=0.99, gt=0, lt=1)  # before the lazy correction; beta1 is 0
    eps: float = Field(default=1e-8, gt=0)
    r1_gamma: float = Field(default=10, ge=0)  # penalty: gamma / 2 * |grad|^2
    r1_interval: int = Field(default=16, ge=1)  # every how many iterations R1 is due, weighted by as many
    G_interval: int = Field(default=4, ge=1)  # likewise of G's regulariser; corrects G's Adam even where there is none
    ema_kimg: float = Field(default=10, gt=0)  # half-life of G_ema

    @property
    def group(self) -> int:
        return self.D.mbstd_group

    @abstractmethod
    def tiny(self) -> "LogisticConfig": ...

    def lrs(self) -> dict[str, float]:
        """Learning rates with the lazy correction: lr * k / (k + 1), k the interval."""
        return {net: self.lr * ratio for net, ratio in self._ratios().items()}

    def adam(self) -> dict[str, AdamSpec]:
        return {net: AdamSpec((0.0, self.beta2**ratio), self.eps) for net, ratio in self._ratios().items()}

    def size_probs(self, total_kimg: float = inf) -> tuple[float, ...]:
        return (1.0,)

    def passes(self) -> dict[str, float]:
        """D's phase: a fake, then 2 forward and 4 backward; G's: 3 through G, 2 through the frozen D; R1 when due."""
        return {"G": 1.0 + 3, "D": 6.0 + 2 + (6 / self.r1_interval if self.r1_gamma else 0)}

    def exact_penalties(self) -> dict[str, str]:
        return {"D": "r1_gamma"} if self.r1_gamma else {}

    def _ratios(self) -> dict[str, float]:
        intervals = {"G": self.G_interval, "D": self.r1_interval}
        return {net: k / (k + 1) for net, k in intervals.items()}

    def d_phase(self, fake: FakeFn, *, with_r1: bool = True) -> Phase:
        """D against G (whose weights the runner freezes); R1 when due, unless it has a phase of its own."""

        def loss(nets: Nets, step: Step) -> Terms:
            real = step.real.detach().requires_grad_("r1" in step.due)
            with forward_of_penalty(real) if "r1" in step.due else nullcontext():
                real_logits = nets["D"](real)
            fake_logits = nets["D"](fake(nets["G"], step))
            terms = {"adv": logistic_d(real_logits, fake_logits)}
            if "r1" in step.due:
                terms["r1"] = self.r1_gamma * r1(real_logits, real)
            return terms | {"real_logits": real_logits.detach(), "fake_logits": fake_logits.detach()}

        lazy = {"r1": self.r1_interval} if self.r1_gamma and with_r1 else {}
        return Phase("D", "D", loss, ("adv", "r1"), lazy=lazy)

    def r1_phase(self) -> Phase:
        """R1 in an optimizer step of its own."""

        def loss(nets: Nets, step: Step) -> Terms:
            real = step.real.detach().requires_grad_()
            with forward_of_penalty(real):
                logits = nets["D"](real)
            return {"r1": self.r1_gamma * r1(logits, real)}

        return Phase("D_reg", "D", loss, ("r1",), lazy={"r1": self.r1_interval}, every=self.r1_interval)


def plain_fakes(G: Generator, step: Step) -> Float[Tensor, "n c h w"]:
    """One z for all layers, fresh noise; the labels of the reals, for a generator with classes."""
    return fakes_of(G, step, step.chance.normal("z", G.z_dim))


def fakes_of(G: Generator, step: Step, z: Float[Tensor, "n z_dim"]) -> Float[Tensor, "n c h w"]:
    """`plain_fakes` of these latents."""
    w = G.mapping(z, step.c) if getattr(G, "num_classes", 0) else G.mapping(z)
    return G.synthesis(broadcast_w(w, G.num_ws), step.size, step.chance.seeds("noise"))


def g_adversarial(nets: Nets, step: Step, fake: FakeFn) -> Terms:
    """G's own term."""
    return {"adv": logistic_g(nets["D"](fake(nets["G"], step)))}


def resize_reals(
    img: UInt8[Tensor, "n c h w"], size: tuple[int, int], mode: str = "antialias"
) -> Float[Tensor, "n c h2 w2"]:
    """Stored images to this iteration's size in [-1, 1]; bilinear, antialiased or with aligned corners."""
    real = to_float(img)
    if tuple(img.shape[2:]) == size:
        return real
    if mode == "antialias":
        return F.interpolate(real, size=size, mode="bilinear", antialias=True, align_corners=False)
    return F.interpolate(real, size=size, mode="bilinear", align_corners=True)
