"""A variational autoencoder on the one training loop (1312.6114; GeoPos trains three, 2401.01951): no adversary.

One network, called G, and one phase: reconstruction of each image from a z drawn of its posterior, and the posterior's
divergence from N(0, 1). Unverified: GeoPos names CelebA, the sizes of z and the seeds; likelihood, weight of the
divergence, optimizer and length are ours. Knows no architecture.
"""

from math import inf
from typing import ClassVar, Literal

import torch
from pydantic import Field

from pipeline.families.logistic import resize_reals
from pipeline.models.vae import VAEGeneratorConfig
from pipeline.objectives.likelihood import bernoulli_nll, gaussian_kl, gaussian_nll
from pipeline.phases import AdamSpec, Family, FamilyConfig, Knobs, Nets, Phase, Step, Terms

NO_AVERAGE_KIMG = 1e-6  # a half-life so short that G_ema is G: a power of 1/2 that underflows to 0


class VAEConfig(FamilyConfig):
    """The bound on log likelihood in nats an image; with kl_weight other than 1 no bound."""

    kind: Literal["vae"] = "vae"
    group_field: ClassVar[str] = "family.microbatch"
    validates: ClassVar[bool] = True
    G: VAEGeneratorConfig = VAEGeneratorConfig()
    reconstruction: Literal["mse", "bce"] = "mse"  # mse: half the squared error, a Gaussian of variance 1 a pixel
    kl_weight: float = Field(default=1.0, ge=0)
    lr: float = Field(default=5e-4, gt=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, gt=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    microbatch: int = Field(default=16, ge=1)  # images of one forward, and what exec.batch_gpu is a multiple of

    @property
    def group(self) -> int:
        return self.microbatch

    def sizes(self) -> tuple[tuple[int, int], ...]:
        return ((self.G.resolution_px, self.G.resolution_px),)

    def size_probs(self, total_kimg: float = inf) -> tuple[float, ...]:
        return (1.0,)

    def passes(self) -> dict[str, float]:
        """One forward of the encoder and one of the decoder, and twice that backward."""
        return {"G": 3.0}

    def exact_penalties(self) -> dict[str, str]:
        return {}

    def tiny(self) -> "VAEConfig":
        return self.replace(G=self.G.replace(resolution_px=16, channel_base=8, z_dim=16), microbatch=4)

    def build(self, seed: int) -> Family:
        knobs = Knobs(self.sizes()[0], {"G": self.lr})
        return Family(
            nets={"G": self.G.build()},
            adam={"G": AdamSpec((self.beta1, self.beta2), self.eps)},
            phases=(Phase("G", "G", self._loss, ("reconstruction", "kl")),),
            knobs=lambda nimg: knobs,
            resize=resize_reals,
            ema_kimg=NO_AVERAGE_KIMG,
            sizes=self.sizes(),
            validate=self._loss,
        )

    def _loss(self, nets: Nets, step: Step) -> Terms:
        """Training and validation alike: `loss` is the sum of the others, so that both curves have the same name."""
        G = nets["G"]
        mean, logvar = G.encode(step.real)
        z = mean + torch.exp(logvar / 2) * step.chance.normal("z", G.z_dim)
        nll = {"mse": gaussian_nll, "bce": bernoulli_nll}[self.reconstruction]
        terms = {
            "reconstruction": nll(G.logits(z, step.size), step.real),
            "kl": self.kl_weight * gaussian_kl(mean, logvar),
        }
        return terms | {"loss": (terms["reconstruction"] + terms["kl"]).detach()}
