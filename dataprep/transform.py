"""An upright image to the bytes of one stored image: a pure function of its pixels and the Transform.

Crop, colour, size, encoding, each by a name that is part of the data set's identity. Nothing is enlarged but the
shorter side of what is stretched: what does not fit is Rejected.
No EXIF, GPS, XMP, comment or ICC profile reaches the output. Knows nothing of where an image comes from or goes to.
"""

import io
import json
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, features
from pydantic import Field, ValidationInfo, field_validator

from dataprep.decode import open_image, to_rgb
from dataprep.rejected import Rejected
from pipeline.config import Config, nearest
from pipeline.data.filters import FILTERS
from pipeline.errors import UserError

__all__ = ["Transform", "open_image"]

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels, right and bottom exclusive


def _center(width: int, height: int) -> Box:
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2  # an odd pixel too many goes right or below
    return left, top, left + side, top + side


def _square_already(width: int, height: int) -> Box:
    if width != height:
        raise Rejected("not square", f"{width}x{height}; crop 'none' takes square images only")
    return 0, 0, width, height


def _whole(width: int, height: int) -> Box:
    return 0, 0, width, height


def _celeba(left: int, top: int, side: int) -> Callable[[int, int], Box]:
    def window(width: int, height: int) -> Box:
        if (width, height) != (178, 218):
            raise Rejected("wrong size", f"{width}x{height}; this crop is cut from CelebA's aligned 178x218 images")
        return left, top, left + side, top + side

    return window


CROPS: dict[str, Callable[[int, int], Box]] = {
    "center": _center,
    "none": _square_already,
    "stretch": _whole,  # any aspect, squeezed to a square: for families that know the true one (SinGAN)
    "pggan": _celeba(25, 57, 128),  # around (89, 121): PGGAN, StyleGAN, MS-PIE
    "coco-gan": _celeba(25, 50, 128),  # seven rows higher
    "center-140": _celeba(19, 39, 140),  # score SDE, then 64 px
    "center-160": _celeba(9, 29, 160),  # compare_gan
    "center-108": _celeba(35, 55, 108),  # DCGAN, then 64 px
}


def _saved(image: Image.Image, format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def _raw(image: Image.Image) -> bytes:
    """.npy version 1.0: a header of 128 bytes, then uint8 [h, w, 3]."""
    out = io.BytesIO()
    np.lib.format.write_array(out, np.asarray(image), version=(1, 0))
    return out.getvalue()


def _stacked(images: Sequence[Image.Image]) -> Image.Image:
    """Of one size, from top to bottom; a single one as it is."""
    if len(images) == 1:
        return images[0]
    w, h = images[0].size
    out = Image.new("RGB", (w, h * len(images)))
    for i, image in enumerate(images):
        out.paste(image, (0, i * h))
    return out


class Encoding(NamedTuple):
    extension: str
    lossy: bool  # takes a quality
    encode: Callable[[Image.Image, int | None], bytes]


ENCODINGS: dict[str, Encoding] = {
    # runs alone compress filtered rows almost as well as all of deflate, in a quarter of the time
    "png": Encoding("png", False, lambda image, _: _saved(image, "PNG", compress_type=zlib.Z_RLE)),
    "jpg": Encoding("jpg", True, lambda image, q: _saved(image, "JPEG", quality=95 if q is None else q, subsampling=0)),
    "webp": Encoding(
        "webp",
        True,
        lambda image, q: (
            _saved(image, "WEBP", lossless=True, method=0, quality=0)  # least effort, smaller than png all the same
            if q is None
            else _saved(image, "WEBP", quality=q)
        ),
    ),
    "raw": Encoding("npy", False, lambda image, _: _raw(image)),
}
ICC = ("srgb", "drop")
NEEDS = {"srgb": "littlecms2", "webp": "webp"}  # parts that a Pillow built by hand may lack


class Transform(Config):
    """How a decoded image becomes a stored one; part of the data set's identity."""

    size_px: int = Field(default=256, ge=1, le=16384)  # stored side
    # center: the middle square; none: must be square; stretch: all of it, squeezed; others: of CelebA's 178x218
    crop: str = "center"
    filter: str = "lanczos"  # box, lanczos, bicubic: Pillow's, antialiased; area: exact mean of the pixels covered
    icc: str = "srgb"  # embedded colour profiles: srgb: pixels are converted; drop: they are taken as they are
    encoding: str = "png"  # png: lossless; jpg: 4:4:4; webp: lossless unless a quality is set; raw: .npy
    quality: int | None = Field(default=None, ge=1, le=100)  # of jpg (None: 95) and of lossy webp
    planes: int = Field(default=1, ge=1, le=2)  # images stacked in a stored one; the source says how many

    @field_validator("crop", "filter", "icc", "encoding")
    @classmethod
    def _known(cls, value: str, info: ValidationInfo) -> str:
        table = {"crop": CROPS, "filter": FILTERS, "icc": ICC, "encoding": ENCODINGS}[str(info.field_name)]
        if value not in table:
            raise ValueError(f"not one of the {info.field_name}s; {nearest(value, table)}")
        if value in NEEDS and not features.check(NEEDS[value]):
            raise ValueError(f"this Pillow was built without {NEEDS[value]}; install the pillow wheel from PyPI")
        return value

    @field_validator("quality")
    @classmethod
    def _of_lossy(cls, value: int | None, info: ValidationInfo) -> int | None:
        encoding = info.data.get("encoding")
        if value is not None and encoding in ENCODINGS and not ENCODINGS[encoding].lossy:
            raise ValueError(f"{encoding} keeps every pixel and takes no quality; leave it out, or take jpg or webp")
        return value

    @property
    def extension(self) -> str:
        """Of the stored files, without the dot."""
        return ENCODINGS[self.encoding].extension

    def __call__(self, image: Image.Image) -> bytes:
        """The bytes to store; raises Rejected."""
        return self.store(self.square(image))

    def of_planes(self, planes: int) -> "Transform":
        """For a source of so many; UserError where the encoding would spoil what is coded."""
        if planes > 1 and self.encoding not in ("png", "raw"):
            raise UserError(f"encoding={self.encoding!r}: depth is stored bit by bit, as png or raw; leave it out")
        return self if planes == self.planes else self.replace(planes=planes)

    def named(self) -> str:
        """JSON for the hash of a plan; of one plane it is what it was before there were several."""
        tree = self.model_dump(mode="json", exclude={"planes"} if self.planes == 1 else None)
        return json.dumps(tree, indent=2, sort_keys=True) + "\n"

    def square(self, image: Image.Image, *coded: Image.Image) -> Image.Image:
        """The cropped picture in 8-bit RGB, free of metadata: the part that does not depend on the stored size.

        Of "stretch" it is the whole, not square yet. Below it come the same crops of what is coded.
        """
        box = CROPS[self.crop](*image.size)
        part = image if box == (0, 0, *image.size) else image.crop(box)
        rgb = to_rgb(part, self.icc)
        rgb = rgb.copy() if rgb is image else rgb
        rgb.info = {}  # Pillow's writers copy ICC and comments from there
        return _stacked([rgb, *(one.crop(box) for one in coded)])

    def store(self, square: Image.Image) -> bytes:
        """What `square` gave, reduced to `size_px` and encoded; raises Rejected.

        Of what is to be stretched the longer side must reach `size_px`; the shorter one may be enlarged.
        """
        w, h = square.width, square.height // self.planes
        if max(w, h) < self.size_px:
            raise Rejected("too small", f"{w}x{h} after the crop, needs {self.size_px} px; nothing is enlarged")
        same = (w, h) == (self.size_px, self.size_px)
        reduced = square if same else self._reduced(square, h)
        return ENCODINGS[self.encoding].encode(reduced, self.quality)

    def _reduced(self, square: Image.Image, h: int) -> Image.Image:
        """Pictures by the filter; what is coded by nearest neighbour, as means over edges and holes mean nothing."""
        parts = [square.crop((0, i * h, square.width, (i + 1) * h)) for i in range(self.planes)]
        side = (self.size_px, self.size_px)
        coded = [part.resize(side, Image.Resampling.NEAREST) for part in parts[1:]]
        return _stacked([FILTERS[self.filter](parts[0], self.size_px), *coded])
