"""A denser grid than the training one, beside Lanczos up-sampling of the native picture (CIPS, 2011.13775, Figure 9).

Grids reach from -1 to 1, both ends included, so a denser one holds the native one where its sides are f (n - 1) + 1:
of 256 px, 511 and not 512. Every f-th pixel then is the native one, of Lanczos too, which is aligned the same way.
Around a cylinder, which has no end, they are f n.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from pipeline.spec import UserError, to_uint8
from pipeline.synthesis.pictures import Row, enlarged
from pipeline.synthesis.pixels import is_ring, per_pixel, styles

REACH = 4  # pixels around a picture that is a ring; more than Lanczos looks at


class Dense(NamedTuple):
    """Of each seed: the native picture, and two of the dense size."""

    native: UInt8[np.ndarray, "n h w 3"]
    dense: UInt8[np.ndarray, "n H W 3"]
    lanczos: UInt8[np.ndarray, "n H W 3"]


@torch.no_grad()
def dense(G: Any, seeds: Sequence[int], factor: int, truncation_psi: float | int = 1.0) -> Dense:
    """The pictures of these seeds on the native grid, and on one `factor` times as dense (an integer from 2)."""
    if factor < 2:
        raise UserError(f"factor={factor}: a denser grid takes at least 2")
    ws, (h, w), ring = styles(per_pixel(G), seeds, truncation_psi), G.native_size, is_ring(G)
    size = (factor * (h - 1) + 1, factor * w if ring else factor * (w - 1) + 1)
    native, densely = (
        np.concatenate([to_uint8(G.synthesis(one, s, None)).permute(0, 2, 3, 1).cpu().numpy() for one in ws.split(1)])
        for s in ((h, w), size)
    )
    return Dense(native, densely, np.stack([lanczos(image, factor, ring=ring) for image in native]))


def lanczos(image: UInt8[np.ndarray, "h w 3"], factor: int, *, ring: bool = False) -> UInt8[np.ndarray, "H W 3"]:
    """Up-sampled to f (n - 1) + 1 pixels a side, end pixels on end pixels, so that every f-th stays as it is.

    The width of a ring becomes f n, and its ends know each other.
    """
    image = np.pad(image, ((0, 0), (REACH, REACH), (0, 0)), mode="wrap") if ring else image
    h, w = image.shape[:2]
    edge = (1 - 1 / factor) / 2  # Pillow counts from the pixels' outer edges, the grid from their centres
    size = (factor * (w - 1) + 1, factor * (h - 1) + 1)
    box = (edge, edge, w - edge, h - edge)
    large = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS, box=box))
    return large[:, REACH * factor :][:, : (w - 2 * REACH) * factor] if ring else large


def detail(image: UInt8[np.ndarray, "h w 3"], zoom: int = 4) -> UInt8[np.ndarray, "H W 3"]:
    """The middle, 1/zoom of each side, enlarged pixel by pixel to about the size of the whole."""
    h, w = (side // zoom for side in image.shape[:2])
    top, left = ((side - part) // 2 for side, part in zip(image.shape, (h, w), strict=False))
    return enlarged(image[top : top + h, left : left + w], zoom)


def rows(found: Dense, seeds: Sequence[int]) -> list[Row]:
    """Both pictures of each seed and the middle of both, for a sheet."""
    h, w = found.dense.shape[1:3]
    return [
        (f"seed {seed}: a grid of {h}x{w}, Lanczos to {h}x{w}, the middle of both", [a, b, detail(a), detail(b)])
        for seed, a, b in zip(seeds, found.dense, found.lanczos, strict=True)
    ]
