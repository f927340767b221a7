"""Gradient penalties, one value a sample, built with create_graph so that they can be trained on."""

import torch
from jaxtyping import Float
from torch import Tensor


def r1(logits: Float[Tensor, " n"], real: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """1/2 |grad_x D(x)|^2 summed over channels and pixels (Mescheder et al. 2018, Eq. 9, without gamma)."""
    (grad,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
    return grad.float().square().sum(dim=(1, 2, 3)) / 2


def path_lengths(
    img: Float[Tensor, "n c h w"], ws: Float[Tensor, "n num_ws w_dim"], noise: Float[Tensor, "n c h w"]
) -> Float[Tensor, " n"]:
    """|J^T y| with y = noise / sqrt(h w): root of the mean over ws of the sum over w_dim (StyleGAN2, Eq. 4)."""
    h, w = img.shape[2:]
    (grad,) = torch.autograd.grad((img * noise).sum() / (h * w) ** 0.5, ws, create_graph=True)
    return grad.float().square().sum(dim=2).mean(dim=1).sqrt()
