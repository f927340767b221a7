"""The nouns everyone shares: what an image is, what a batch is, how uint8 and [-1, 1] relate.

Knows nothing of networks, data sets or training.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from pipeline.errors import UserError as UserError


@dataclass(frozen=True)
class Batch:
    """One microbatch of real images, on the host or a device."""

    img: UInt8[Tensor, "n c h w"]  # decoders write channels last, so its memory may be in that format
    label: Int64[Tensor, " n"]  # class index, -1 where the data set has no classes


def to_float(img: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """uint8 [0, 255] to float32 [-1, 1]: x / 127.5 - 1; contiguous, whatever the memory format of `img`."""
    return img.to(torch.float32, memory_format=torch.contiguous_format) / 127.5 - 1


def to_uint8(img: Float[Tensor, "n c h w"]) -> UInt8[Tensor, "n c h w"]:
    """Float in [-1, 1] to uint8 by clamp(x * 127.5 + 128), the quantisation that the field's metrics use."""
    return (img.to(torch.float32) * 127.5 + 128).clamp(0, 255).to(torch.uint8)
