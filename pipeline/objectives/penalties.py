"""Gradient penalties, one value a sample, built with create_graph so that they can be trained on."""

from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.layers.modulated import fp32


def forward_of_penalty(x: Tensor) -> AbstractContextManager:
    """A region for the forward pass that R1 differentiates: float32 where autocast would take float16.

    R1's own gradient comes before any loss scaler: in float16 it underflows as D grows flat. bfloat16 has the range,
    and the gradients of path length are large enough.
    """
    device = x.device.type
    fp16 = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
    return fp32(x) if fp16 else nullcontext()


def r1(logits: Float[Tensor, " n"], real: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """1/2 |grad_x D(x)|^2 summed over channels and pixels (Mescheder et al. 2018, Eq. 9, without gamma)."""
    with fp32(real):  # or autocast would take part in the backward pass
        (grad,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
    return grad.float().square().sum(dim=(1, 2, 3)) / 2


def path_lengths(
    img: Float[Tensor, "n c h w"], ws: Float[Tensor, "n num_ws w_dim"], noise: Float[Tensor, "n c h w"]
) -> Float[Tensor, " n"]:
    """|J^T y| with y = noise / sqrt(h w): root of the mean over ws of the sum over w_dim (StyleGAN2, Eq. 4)."""
    h, w = img.shape[2:]
    with fp32(ws):
        (grad,) = torch.autograd.grad((img * noise).sum() / (h * w) ** 0.5, ws, create_graph=True)
    return grad.float().square().sum(dim=2).mean(dim=1).sqrt()


def gradient_penalty(logits: Float[Tensor, " n"], x: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """(|grad_x D(x)| - 1)^2, the norm over channels and pixels of each sample (Gulrajani et al. 2017, Eq. 3)."""
    with fp32(x):
        (grad,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    # a gradient of exactly zero would otherwise have a derivative that is not finite
    return (grad.float().square().sum(dim=(1, 2, 3)).add(1e-16).sqrt() - 1).square()


def drift(real_logits: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """D(real)^2, which keeps the critic's values near zero (Karras et al. 2018, Appendix A.1)."""
    return real_logits.float().square()


def pixel_gradient_penalty(logits: Float[Tensor, "n 1 ho wo"], x: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Mean over pixels of (|grad_x D(x)| - 1)^2, the norm over the channels of a pixel (SinGAN's WGAN-GP).

    The gradient is that of the sum of D's map of logits.
    """
    with fp32(x):
        (grad,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return (torch.linalg.vector_norm(grad.float(), dim=1) - 1).square().mean(dim=(1, 2))
