"""Normalisations: pixel norm of latents and the minibatch standard deviation of D (Karras et al. 2018).

Differs from reference: a group of the minibatch statistic is `group` consecutive samples, never derived from
the size of the forward, so results do not depend on how a global batch is cut into microbatches and ranks.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def pixel_norm(z: Float[Tensor, "n dim"]) -> Float[Tensor, "n dim"]:
    """z / sqrt(mean(z^2) + 1e-8) over the last dimension."""
    return z * torch.rsqrt(z.square().mean(dim=1, keepdim=True) + 1e-8)


def minibatch_std(x: Float[Tensor, "n c h w"], group: int) -> Float[Tensor, "n c+1 h w"]:
    """Append one channel: the standard deviation over each `group` consecutive samples, averaged over c, h, w.

    Raises ValueError when n is not a multiple of group.
    """
    n, _, h, w = x.shape
    if n % group:
        raise ValueError(f"minibatch_std: {n} samples do not form groups of {group}")
    groups = x.unflatten(0, (-1, group))
    std = (groups.var(dim=1, correction=0) + 1e-8).sqrt().mean(dim=(1, 2, 3))
    channel = std.repeat_interleave(group).reshape(n, 1, 1, 1).expand(n, 1, h, w)
    return torch.cat([x, channel.to(x.dtype)], dim=1)
