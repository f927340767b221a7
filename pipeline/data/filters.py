"""Reducing an image, by filters that have a name: what `prep` stores and what metrics compare with.

Every pixel of box, lanczos and bicubic is Pillow's, antialiased and rounded to bytes; area is the exact mean of the
pixels covered, rounded once. The names are part of a data set's identity. Knows nothing of crops or encodings.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image

from pipeline.config import nearest
from pipeline.errors import UserError


def _pillow(resample: Image.Resampling) -> Callable[[Image.Image, int], Image.Image]:
    return lambda image, side: image.resize((side, side), resample)


def _area(image: Image.Image, side: int) -> Image.Image:
    factor, rest = divmod(image.width, side)
    if image.width == image.height and not rest and factor in (2, 4, 8, 16, 32):
        return image.reduce(factor)  # exact for these factors; for others Pillow puts halves on either side
    x = np.asarray(image)
    h, w = x.shape[:2]
    rows = _covered(x.reshape(h, -1), side).reshape(side, w, 3)
    sums = _covered(rows.swapaxes(0, 1).reshape(w, -1), side).reshape(side, side, 3).swapaxes(0, 1)
    return Image.fromarray(((2 * sums + h * w) // (2 * h * w)).astype(np.uint8))


def _covered(x: np.ndarray, n: int) -> np.ndarray:
    """Sums over n equal parts of the first axis, where every element of x weighs n: [m, k] -> int64 [n, k], exact."""
    m = len(x)
    out = np.empty((n, x.shape[1]), np.int64)
    for i in range(n):
        first, last = i * m // n, -(-(i + 1) * m // n)  # elements touched; the outer two may stick out
        before, after = i * m - first * n, last * n - (i + 1) * m
        out[i] = (
            n * x[first:last].sum(0, dtype=np.int64) - before * x[first].astype(int) - after * x[last - 1].astype(int)
        )
    return out


FILTERS: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "box": _pillow(Image.Resampling.BOX),
    "lanczos": _pillow(Image.Resampling.LANCZOS),
    "bicubic": _pillow(Image.Resampling.BICUBIC),
    "area": _area,
}


def find_filter(name: str) -> Callable[[Image.Image, int], Image.Image]:
    """RGB image and side in pixels -> the square of that side. UserError with the nearest name."""
    if name not in FILTERS:
        raise UserError(f"filter={name!r}: not one of the filters; {nearest(name, FILTERS)}")
    return FILTERS[name]


def resized(img: np.ndarray, side_px: int, filter: str) -> np.ndarray:
    """uint8 [h, w, 3] -> [side, side, 3] by a named filter."""
    return np.asarray(find_filter(filter)(Image.fromarray(img), side_px))
