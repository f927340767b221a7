"""Normalisations: pixel norm, the minibatch standard deviation of D (Karras et al. 2018), batch norm over groups.

Differs from reference: statistics over samples are those of `group` consecutive samples, never derived from the
size of the forward, so results do not depend on how a global batch is cut into microbatches and ranks; and batch
norm keeps no running statistics.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def pixel_norm(z: Float[Tensor, "n dim *hw"]) -> Float[Tensor, "n dim *hw"]:
    """z / sqrt(mean(z^2) + 1e-8), the mean over dimension 1: of a latent, or of each pixel."""
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


class GroupBatchNorm2d(nn.Module):
    """Batch norm whose mean and biased variance are of each `group` consecutive samples, in training and evaluation.

    y = (x - mean) / sqrt(var + 1e-5) * weight + bias, statistics in float32; weight starts at 1, bias at 0. With
    group=1 a sample is normalised by itself.
    """

    def __init__(self, channels: int, group: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.group = group

    def forward(self, x: Float[Tensor, "n c h w"], *, leading: bool = False) -> Float[Tensor, "n c h w"]:
        """`leading`: the statistics of the first `group` samples normalise all. ValueError where groups do not form."""
        n = len(x)
        if n < self.group or (n % self.group and not leading):
            raise ValueError(f"GroupBatchNorm2d: {n} samples do not form groups of {self.group}")
        y = x.float()
        if self.group == 1 and not leading:
            return F.instance_norm(y, weight=self.weight, bias=self.bias).to(x.dtype)  # the same, in half the time
        of = (y[: self.group] if leading else y).unflatten(0, (-1, self.group))
        var, mean = torch.var_mean(of, dim=(1, 3, 4), correction=0, keepdim=True)
        gain = torch.rsqrt(var + 1e-5) * self.weight[:, None, None]
        grouped = y[None] if leading else of
        return ((grouped - mean) * gain + self.bias[:, None, None]).flatten(0, 1).to(x.dtype)
