"""Adversarial losses on logits, one value a sample. Weights and schedules are the family's business."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def logistic_d(real_logits: Float[Tensor, " n"], fake_logits: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """softplus(-D(real)) + softplus(D(fake)) (Goodfellow et al. 2014)."""
    return F.softplus(-real_logits.float()) + F.softplus(fake_logits.float())


def logistic_g(fake_logits: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The non-saturating loss softplus(-D(fake))."""
    return F.softplus(-fake_logits.float())


def wgan_d(real_logits: Float[Tensor, " n"], fake_logits: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The critic's loss D(fake) - D(real) (Arjovsky et al. 2017)."""
    return fake_logits.float() - real_logits.float()


def wgan_g(fake_logits: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """-D(fake)."""
    return -fake_logits.float()
