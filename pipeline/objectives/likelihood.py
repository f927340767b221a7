"""Terms of the evidence lower bound of a variational autoencoder (Kingma and Welling, 1312.6114).

Images are in [-1, 1]; every formula is in nats and a sum over all channels and pixels, or over all dimensions of z,
never a mean over them: reconstruction and divergence are then in the bound's own proportion. One value a sample.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def gaussian_kl(mean: Float[Tensor, "n d"], logvar: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """KL(N(mean, exp(logvar)) || N(0, 1)): half the sum of mean^2 + var - 1 - log var."""
    mean, logvar = mean.float(), logvar.float()
    return (mean.square() + torch.expm1(logvar) - logvar).sum(dim=1) / 2


def gaussian_nll(logits: Float[Tensor, "n c h w"], real: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """-log N(real; tanh(logits), 1) without its constant: half the sum of squared differences."""
    return (torch.tanh(logits.float()) - real).square().sum(dim=(1, 2, 3)) / 2


def bernoulli_nll(logits: Float[Tensor, "n c h w"], real: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Binary cross entropy of (real + 1) / 2 against (tanh(logits) + 1) / 2, which is sigmoid(2 logits)."""
    pixels = F.binary_cross_entropy_with_logits(2 * logits.float(), (real + 1) / 2, reduction="none")
    return pixels.sum(dim=(1, 2, 3))
