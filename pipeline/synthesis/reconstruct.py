"""Images through an autoencoder and back: each as the decoder makes it of the encoder's mean (1312.6114).

Takes any generator that has an encoder. Knows nothing of pictures on disk.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import nn

from pipeline.spec import UserError, to_float, to_uint8


def autoencoder(G: Any) -> nn.Module:
    """G itself; UserError unless it reconstructs images."""
    if not hasattr(G, "encode"):
        raise UserError(f"model={type(G).__name__} has no encoder; this takes an autoencoder (kind='vae')")
    return G


@torch.no_grad()
def reconstructed(G: nn.Module, images: UInt8[np.ndarray, "n h w 3"]) -> UInt8[np.ndarray, "n h w 3"]:
    """Of images of the size that G was trained at."""
    real = to_float(torch.from_numpy(images).permute(0, 3, 1, 2)).to(next(G.parameters()).device)
    return to_uint8(G(real)).permute(0, 2, 3, 1).cpu().numpy()
