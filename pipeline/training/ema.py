"""The exponential moving average of G. Half-life in thousands of images, so the batch size does not matter."""

import torch
from torch import nn


@torch.no_grad()
def update_ema(G_ema: nn.Module, G: nn.Module, batch_size: int, ema_kimg: float) -> None:
    """G_ema <- beta G_ema + (1 - beta) G with beta = 0.5^(batch_size / (1000 ema_kimg)); buffers are copied."""
    beta = 0.5 ** (batch_size / (1000 * ema_kimg))
    for ema, now in zip(G_ema.parameters(), G.parameters(), strict=True):
        ema.lerp_(now, 1 - beta)
    for ema, now in zip(G_ema.buffers(), G.buffers(), strict=True):
        ema.copy_(now)
