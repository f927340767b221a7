"""One image of any kind to the bytes of one stored image: a pure function of its pixels and the Transform.

Rules: EXIF orientation is applied; the first frame of an animation is taken; grey, palette and CMYK become
RGB; alpha is laid on white; 16-bit grey is scaled by 1/257 (16-bit RGB keeps its high byte, as Pillow reads
it); ICC profiles are ignored; no metadata reaches the output; nothing is enlarged or repaired: what does not
fit is Rejected.
Knows nothing of where an image comes from or goes to.
"""

import io
import os
import warnings
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image
from pydantic import Field, field_validator

from pipeline.config import Config, nearest

Reason = Literal["not an image", "truncated", "too small", "too large", "not square", "unsupported mode", "unreadable"]
REASONS: tuple[str, ...] = get_args(Reason)
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # a list, as Pillow's EPS reader runs a program
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
OPAQUE = ("RGB", "L", "1", "P", "CMYK", "YCbCr")
ALPHA = ("RGBA", "LA", "PA", "RGBa")
DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N")


class Rejected(Exception):  # noqa: N818 - an outcome, not a fault of the program
    """An image that cannot be taken: one of REASONS, and what exactly is wrong with it."""

    def __init__(self, reason: Reason, detail: str):
        super().__init__(reason, detail)
        self.reason: Reason = reason
        self.detail = detail


def open_image(file: str | bytes | os.PathLike | io.BytesIO) -> Image.Image:
    """Decode all of a file or buffer, upright. The content decides the format, never the name."""
    opened = file if isinstance(file, io.BytesIO) else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged metadata does not cost us the picture
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with opened or open(file, "rb") as f, Image.open(f, formats=FORMATS) as image:  # type: ignore[arg-type]
                image.load()
                return _upright(image)
    except MemoryError:
        raise
    except Exception as e:  # on damaged bytes Pillow raises anything from struct.error to SyntaxError
        raise Rejected(*_why(e)) from e


def _why(e: Exception) -> tuple[Reason, str]:
    detail = " ".join(f"{type(e).__name__}: {getattr(e, 'strerror', None) or e}".split())
    if isinstance(e, Image.UnidentifiedImageError):
        return "not an image", f"the bytes are none of {', '.join(FORMATS)}"
    bomb = isinstance(e, Image.DecompressionBombError | Image.DecompressionBombWarning)
    if bomb or "too large" in detail.lower():
        return "too large", detail
    return ("truncated" if "truncated" in detail.lower() else "unreadable"), detail


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = TURNS.get(image.getexif().get(0x0112, 1))
    except Exception:  # a corrupt EXIF block must not lose the picture
        turn = None
    # copy: detached from the file and from the lazy reader
    return image.transpose(turn) if turn is not None else image.copy()


def _center(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _square_already(image: Image.Image) -> Image.Image:
    if image.width != image.height:
        raise Rejected("not square", f"{image.width}x{image.height}; crop 'none' takes square images only")
    return image


CROPS: dict[str, Callable[[Image.Image], Image.Image]] = {"center": _center, "none": _square_already}
FILTERS = {
    "box": Image.Resampling.BOX,
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
}
ENCODINGS: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG"},
    "jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
}


class Transform(Config):
    """How a decoded image becomes a stored one; part of the data set's identity."""

    size_px: int = Field(default=256, ge=1, le=16384)  # stored side
    crop: str = "center"  # center: the middle square; none: the image must be square
    filter: str = "lanczos"  # antialiased reduction: box, lanczos, bicubic
    encoding: str = "png"  # png: lossless; jpg: quality 95, 4:4:4

    @field_validator("crop", "filter", "encoding")
    @classmethod
    def _known(cls, value: str, info: Any) -> str:
        table = {"crop": CROPS, "filter": FILTERS, "encoding": ENCODINGS}[info.field_name]
        if value not in table:
            raise ValueError(f"not one of the {info.field_name}s; {nearest(value, table)}")
        return value

    def __call__(self, image: Image.Image) -> bytes:
        """The bytes to store; raises Rejected."""
        square = CROPS[self.crop](image)
        if square.width < self.size_px:
            raise Rejected("too small", f"{image.width}x{image.height}, needs {self.size_px} px; nothing is enlarged")
        square = to_rgb(square)
        if square.width != self.size_px:
            square = square.resize((self.size_px, self.size_px), FILTERS[self.filter])
        clean = Image.new("RGB", square.size)  # Pillow's writers copy ICC and comments from `info`
        clean.paste(square)
        out = io.BytesIO()
        clean.save(out, **ENCODINGS[self.encoding])
        return out.getvalue()


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB by the rules in the head of this file."""
    if image.mode in DEEP_GREY:
        return _from_16_bit(image)
    if image.mode not in OPAQUE + ALPHA:
        raise Rejected("unsupported mode", f"{image.mode}; convert it to RGB first")
    if not image.has_transparency_data:
        return image.convert("RGB")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a palette's transparency given as bytes
        rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    wide = np.asarray(image).astype(np.uint32)  # Pillow's own conversion clips at 255
    grey = ((wide + 128) // 257).astype(np.uint8)
    if "transparency" in image.info:
        grey[wide == image.info["transparency"]] = 255
    return Image.fromarray(grey).convert("RGB")
