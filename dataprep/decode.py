"""The bytes of one image file to an upright image, and an image of any mode to 8-bit RGB.

`open_image` and `to_rgb` hold the written rules, one test each in tests/dataprep/test_decode.py. Nothing is
repaired and nothing is guessed: what has no rule is Rejected. Pillow does all decoding: its pixels are the
definition. Knows neither where the bytes come from nor what is made of the pixels.
"""

import io
import os
import warnings
import zlib
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageCms

from dataprep.rejected import Reason, Rejected

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # fixed: what an install adds (AVIF) or runs (EPS) stays out
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N")
COLOUR = {  # mode -> the mode that holds its colours, without alpha
    **{"1": "L", "L": "L", "LA": "L", "CMYK": "CMYK"},
    **dict.fromkeys(("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "YCbCr"), "RGB"),
}


def open_image(file: str | bytes | os.PathLike | io.BytesIO) -> Image.Image:
    """Decode all of a file or buffer, upright; raises Rejected.

    Format: by content, never by name; FORMATS only, so HEIC and AVIF are "not an image", and so is anything with
    junk before its first byte. Bytes after the end of the picture do no harm; a JPEG or PNG without its end is
    "truncated", also if all pixels are there; the checksums in a PNG hold.
    Frames: the first of an animation or a multi-picture file.
    Orientation: 1 to 8 in EXIF, or in XMP where EXIF has none; any other value, or damaged EXIF, means as stored.
    Size: what declares over Image.MAX_IMAGE_PIXELS, or a text chunk that unpacks past Pillow's limit, is "too large"
    before it is unpacked.
    """
    opened = file if isinstance(file, io.BytesIO) else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged metadata does not cost us the picture
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with opened or open(file, "rb") as f, Image.open(f, formats=FORMATS) as image:  # type: ignore[arg-type]
                image.load()
                if image.format == "PNG":
                    f.seek(0)
                    _check_png(f.read())
                return _upright(image)
    except (MemoryError, Rejected):
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


def _check_png(data: bytes) -> None:
    """What Pillow lets pass: a wrong checksum over pixels, and a missing end."""
    at, kind = 8, b""
    while kind != b"IEND":
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            raise Rejected("truncated", "PNG without its end")
        kind = data[at + 4 : at + 8]
        if zlib.crc32(memoryview(data)[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise Rejected("unreadable", f"PNG with a wrong checksum of {kind.decode('ascii', 'backslashreplace')}")
        at = end + 4


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = TURNS.get(image.getexif().get(0x0112, 1))
    except Exception:  # a corrupt EXIF block must not lose the picture
        turn = None
    return image if turn is None else image.transpose(turn)


def to_rgb(image: Image.Image, icc: str) -> Image.Image:
    """Opaque 8-bit RGB of the same size; raises Rejected. RGB that needs no change comes back as it is.

    1, L, RGB: their values. P, PA: looked up. CMYK, YCCK, YCbCr: Pillow's formula (JPEG inks inverted, as Adobe
    writes them). I;16: value / 257, rounded; of 16-bit RGB, RGBA and LA the high byte, as Pillow reads them.
    Alpha, and a colour named transparent: laid on white. I, F, LAB and the rest: "unsupported mode", since nothing
    says which of their values is white.

    icc="srgb": colours (before alpha) go through the embedded profile to sRGB: littlecms, relative colorimetric,
    black point compensation. A profile that is damaged or of another colour space counts as none; one that moves
    no colour by more than 1 of 255 is sRGB and changes nothing. icc="drop": as if there were none. Without a
    profile grey and RGB are sRGB.
    """
    try:
        return _to_rgb(image, image.info.get("icc_profile") if icc == "srgb" else None)
    except (MemoryError, Rejected):
        raise
    except Exception as e:  # a palette or a transparent colour can be damaged too
        raise Rejected(*_why(e)) from e


def _to_rgb(image: Image.Image, profile: object) -> Image.Image:
    colour, alpha = _split(image)
    transform = _to_srgb(profile, colour.mode) if isinstance(profile, bytes) else None
    rgb = _through(colour, transform) if transform else _as(colour, "RGB")
    if alpha is None:
        return rgb
    rgba = rgb.copy()
    rgba.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _through(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    out = ImageCms.applyTransform(image, transform)
    assert out is not None  # None is for inPlace=True
    return out


def _as(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)


def _split(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colours in 8-bit L, RGB or CMYK, and alpha (None: opaque)."""
    if image.mode in DEEP_GREY:
        wide = np.asarray(image).astype(np.uint32)  # Pillow's own conversion clips at 255
        grey = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
        clear = image.info.get("transparency")
        return grey, None if clear is None else Image.fromarray(((wide != clear) * 255).astype(np.uint8))
    if image.mode not in COLOUR:
        raise Rejected("unsupported mode", f"{image.mode}; convert it to RGB first")
    colour = COLOUR[image.mode]
    if not image.has_transparency_data:
        return _as(image, colour), None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a palette's transparency given as bytes
        both = _as(image, "RGBA")
    return both.convert(colour), both.getchannel("A")


@lru_cache(maxsize=16)  # a data set has a handful of cameras
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From 8-bit `mode` to RGB in sRGB; None where the profile is unusable or sRGB itself."""
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION | ImageCms.Flags.HIGHRESPRECALC,
        )
    except (OSError, ImageCms.PyCMSError):  # damaged, or of another colour space than `mode`
        return None
    if mode == "CMYK":
        return transform
    levels = np.arange(0, 256, 15 if mode == "RGB" else 1, dtype=np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3) if mode == "RGB" else levels[None]
    probe = Image.fromarray(grid)
    moved = ImageChops.difference(_as(probe, "RGB"), _through(probe, transform))
    return transform if np.asarray(moved).max() > 1 else None
