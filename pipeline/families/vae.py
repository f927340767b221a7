"""A variational autoencoder on the one training loop (1312.6114; GeoPos trains three, 2401.01951): no adversary.

One network, called G, and one phase: reconstruction of each image from a z drawn of its posterior, and the posterior's
divergence from N(0, 1). Unverified: GeoPos names CelebA, the sizes of z and the seeds; likelihood, weight of the
divergence, optimizer and length are ours. Knows no architecture.
"""

from typing import Literal

import torch
from pydantic import Field

from pipeline.families.one_network import OneNetworkConfig
from pipeline.models.vae import VAEGeneratorConfig
from pipeline.objectives.likelihood import bernoulli_nll, gaussian_kl, gaussian_nll
from pipeline.phases import Family, Nets, Step, Terms


class VAEConfig(OneNetworkConfig):
    """The bound on log likelihood in nats an image; with kl_weight other than 1 no bound."""

    kind: Literal["vae"] = "vae"
    G: VAEGeneratorConfig = VAEGeneratorConfig()
    reconstruction: Literal["mse", "bce"] = "mse"  # mse: half the squared error, a Gaussian of variance 1 a pixel
    kl_weight: float = Field(default=1.0, ge=0)
    lr: float = Field(default=5e-4, gt=0)

    def side_px(self) -> int:
        return self.G.resolution_px

    def tiny(self) -> "VAEConfig":
        return self.replace(G=self.G.replace(resolution_px=16, channel_base=8, z_dim=16), microbatch=4)

    def build(self, seed: int) -> Family:
        return self.family_of(self.G.build(), self._loss, ("reconstruction", "kl"), self._loss)

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
