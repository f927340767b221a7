"""Small pictures, and how they lie in a file."""

import io

import numpy as np
from PIL import Image


def saved(image: Image.Image, format: str = "PNG", **options) -> io.BytesIO:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out


def noise(width: int = 8, height: int = 8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
