"""Every mode to 8-bit RGB against the written rule; ICC profiles against the formulas they stand for."""

import io
import itertools
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from dataprep.decode import open_image, to_rgb
from dataprep.rejected import Rejected
from tests.dataprep.pictures import noise, saved

SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])  # to XYZ, D50
P3 = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])


def rgb(image: Image.Image, icc: str = "srgb") -> np.ndarray:
    out = to_rgb(image, icc)
    assert out.mode == "RGB"
    return np.asarray(out).astype(int)


def png16(pixels: np.ndarray) -> io.BytesIO:
    """16-bit PNG of [h, w, channels]: 1 grey, 2 with alpha, 3 RGB, 4 with alpha."""
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    out = b"\x89PNG\r\n\x1a\n"
    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        out += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return io.BytesIO(out)


def profile(space: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A version 2 ICC profile, illuminant D50."""
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4xI4s4s4s12x4s28x", start + len(body), 0x02100000, b"mntr", space, pcs, b"acsp")
    return head + struct.pack(">III", 0xF6D6, 0x10000, 0xD32D) + bytes(48) + table + body


def fixed(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(f">{len(values)}i", *(round(v * 65536) for v in values))


def gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256))


def rgb_profile(matrix: np.ndarray, exponent: float) -> bytes:
    tags = {b"wtpt": fixed(0.9642, 1, 0.8249)}
    for i, channel in enumerate((b"r", b"g", b"b")):
        tags |= {channel + b"XYZ": fixed(*matrix[:, i]), channel + b"TRC": gamma(exponent)}
    return profile(b"RGB ", b"XYZ ", tags)


def grey_profile(exponent: float) -> bytes:
    return profile(b"GRAY", b"XYZ ", {b"wtpt": fixed(0.9642, 1, 0.8249), b"kTRC": gamma(exponent)})


def ink_profile() -> bytes:
    """CMYK by a table: cyan halves the lightness, black takes 9/10 of it, magenta and yellow do nothing."""
    same = bytes(range(256))
    nodes = [(round(255 * (1 - 0.9 * k) * (1 - c / 2)), 128, 128) for c, _, _, k in itertools.product((0, 1), repeat=4)]
    unit = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    table = b"mft1\0\0\0\0\x04\x03\x02\0" + unit + same * 4 + bytes(itertools.chain(*nodes)) + same * 3
    return profile(b"CMYK", b"Lab ", {b"wtpt": fixed(0.9642, 1, 0.8249), b"A2B0": table, b"A2B1": table})


def encoded(linear: np.ndarray) -> np.ndarray:
    """The sRGB curve, 0 to 255."""
    v = np.clip(linear, 0, 1)
    return 255 * np.where(v <= 0.0031308, 12.92 * v, 1.055 * v ** (1 / 2.4) - 0.055)


def from_p3(values: np.ndarray, exponent: float = 2.2) -> np.ndarray:
    return encoded((values / 255) ** exponent @ P3.T @ np.linalg.inv(SRGB).T)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "RGBX"])
def test_other_modes_become_rgb(mode):
    image = noise().convert(mode)
    assert np.array_equal(rgb(image), np.asarray(image.convert("RGB")))


def test_rgb_that_needs_no_change_is_not_copied():
    image = noise()
    assert to_rgb(image, "srgb") is image


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "P"])
def test_alpha_is_laid_on_white(mode):
    image = Image.new("RGBA", (8, 8), (200, 10, 10, 0))  # any colour under alpha 0
    image.paste((10, 10, 10, 255), (0, 0, 4, 8))
    if mode in ("PA", "P"):
        image = Image.new(mode, (8, 8), 1)
        image.putpalette([10, 10, 10, 200, 10, 10])
        if mode == "P":
            image.paste(0, (0, 0, 4, 8))
            image.info["transparency"] = 1
        else:
            image.paste((0, 255), (0, 0, 4, 8))
            image.paste((1, 0), (4, 0, 8, 8))
    out = rgb(image if mode in ("PA", "P") else image.convert(mode))
    assert (out[:, :4] == 10).all()
    assert (out[:, 4:] == 255).all()


def test_half_transparent_is_half_white():
    out = rgb(Image.new("RGBA", (1, 1), (100, 0, 255, 128)))[0, 0]
    assert np.abs(out - [177.2, 127, 255]).max() <= 1


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "1"])
def test_a_transparent_colour_is_white(mode):
    image = Image.new(mode, (8, 8), 0)
    file = saved(image, transparency=(0, 0, 0) if mode == "RGB" else 0)
    assert (rgb(open_image(file)) == 255).all()


def test_a_palette_with_an_alpha_for_each_colour_is_laid_on_white():
    image = Image.new("P", (3, 1))
    image.putpalette([0, 0, 0, 100, 100, 100, 0, 0, 0])
    image.putdata([0, 1, 2])
    out = rgb(open_image(saved(image, transparency=bytes([255, 255, 0]))))
    assert out[0, :, 0].tolist() == [0, 100, 255]


def test_a_damaged_transparent_colour_is_a_rejection():
    image = noise()
    image.info["transparency"] = b"\0"
    with pytest.raises(Rejected) as e:
        to_rgb(image, "srgb")
    assert e.value.reason == "unreadable"


def test_16_bit_grey_is_scaled_not_clipped():
    wide = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    for file in (saved(Image.fromarray(wide)), saved(Image.fromarray(wide), "TIFF"), png16(wide[..., None])):
        assert np.abs(rgb(open_image(file))[..., 0] - wide / 257).max() <= 0.5
    big_endian = io.BytesIO()
    tifffile.imwrite(big_endian, wide, byteorder=">")
    assert np.abs(rgb(open_image(io.BytesIO(big_endian.getvalue())))[..., 0] - wide / 257).max() <= 0.5


def test_16_bit_colour_and_alpha_keep_the_high_byte():
    wide = np.random.default_rng(0).integers(0, 65536, (8, 8, 4)).astype(np.uint16)
    wide[..., 3] = 65535
    assert np.array_equal(rgb(open_image(png16(wide[..., :3]))), wide[..., :3] >> 8)
    assert np.array_equal(rgb(open_image(png16(wide))), wide[..., :3] >> 8)
    assert np.array_equal(rgb(open_image(png16(wide[..., [0, 3]]))), (wide[..., [0, 0, 0]] >> 8))
    wide[..., 3] = 0
    assert (rgb(open_image(png16(wide))) == 255).all()


def test_real_16_bit_files_follow_the_rules(real_images: Path):
    nasty = real_images / "originals" / "nasty"
    colour = nasty / "tiff_16bit_RGB.tiff"
    assert np.array_equal(rgb(open_image(colour)), tifffile.imread(colour) >> 8)
    grey = tifffile.imread(nasty / "16bit.cropped.tif")
    out = rgb(open_image(nasty / "16bit.cropped.tif"))
    assert grey.min() > 255  # Pillow's own conversion makes all of it white
    assert np.abs(out[..., 0] - grey / 257).max() <= 0.5
    marked = Image.open(nasty / "i_trns.png")
    clear = np.asarray(marked) == marked.info["transparency"]
    assert clear.any()
    assert (rgb(open_image(nasty / "i_trns.png"))[clear] == 255).all()


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_modes_that_do_not_say_what_is_white_are_rejected(mode):
    with pytest.raises(Rejected) as e:
        to_rgb(open_image(saved(Image.new(mode, (8, 8)), "TIFF")), "srgb")
    assert (e.value.reason, e.value.detail.split(";")[0]) == ("unsupported mode", mode)


def test_inks_of_jpegs_are_inverted_as_adobe_writes_them():
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    out = rgb(open_image(saved(red, "JPEG", quality=95)))
    assert np.abs(out - [255, 0, 0]).max() <= 3
    out = rgb(open_image(saved(red, "TIFF")))
    assert (out == [255, 0, 0]).all()


def test_real_ycck_and_cmyk_show_the_same_picture(real_images: Path):
    nasty = real_images / "originals" / "nasty"
    ycck, cmyk = (rgb(open_image(nasty / n)) for n in ("pil_sample_cmyk.jpg", "tiff_strip_cmyk_jpeg.tif"))
    assert np.abs(ycck - cmyk).mean() < 1
    assert ycck[0, 0].tolist() == pytest.approx([255, 13, 25], abs=3)  # a red frame around black


def test_a_profile_of_other_primaries_is_converted_to_srgb():
    levels = np.stack(np.meshgrid(*[np.arange(0, 256, 51)] * 3), -1).reshape(1, -1, 3).astype(np.uint8)
    image = open_image(saved(Image.fromarray(levels), icc_profile=rgb_profile(P3, 2.2)))
    assert np.abs(rgb(image) - from_p3(levels)).max() <= 1.5
    assert np.array_equal(rgb(image, "drop"), levels)


def test_a_real_display_p3_photograph_is_converted(real_images: Path):
    image = open_image(real_images / "originals" / "hands" / "7" / "IMG_5935.JPG").crop((1000, 1000, 1200, 1200))
    stored = np.asarray(image) / 255
    linear = np.where(stored <= 0.04045, stored / 12.92, ((stored + 0.055) / 1.055) ** 2.4)
    expected = encoded(linear @ P3.T @ np.linalg.inv(SRGB).T)
    assert np.abs(expected - np.asarray(image)).max() > 3  # it is not sRGB
    assert np.abs(rgb(image) - expected).max() <= 1


def test_srgb_itself_changes_no_pixel(real_images: Path):
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    cameras = open_image(real_images / "originals" / "nasty" / "truncated_app14.jpg").info["icc_profile"]
    levels = np.stack(np.meshgrid(*[np.arange(0, 256, 5)] * 3), -1).reshape(52, -1, 3).astype(np.uint8)
    for srgb in (own, cameras):  # of the second littlecms would move a few pixels by 1
        assert np.array_equal(rgb(open_image(saved(Image.fromarray(levels), icc_profile=srgb))), levels)


def test_what_is_nearly_srgb_is_converted():
    levels = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, 2)
    out = rgb(open_image(saved(Image.fromarray(levels), icc_profile=rgb_profile(SRGB, 2.2))))
    assert 2 < np.abs(out - levels).max() < 10
    assert np.abs(out - encoded((levels / 255) ** 2.2)).max() <= 1.5


@pytest.mark.parametrize("exponent", [1.8, 2.6])
def test_grey_goes_through_a_grey_profile(exponent):
    ramp = np.arange(256, dtype=np.uint8)[None]
    out = rgb(open_image(saved(Image.fromarray(ramp), icc_profile=grey_profile(exponent))))
    assert np.abs(out - encoded((ramp / 255) ** exponent)[..., None]).max() <= 1.5


def test_inks_go_through_their_profile():
    inks = Image.new("CMYK", (4, 1))
    inks.putdata([(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 255, 0), (255, 255, 255, 255)])
    image = open_image(saved(inks, "TIFF", icc_profile=ink_profile()))
    out = rgb(image)[0]
    # lightness 100, 50, 100, 5; the darkest is taken for black
    assert np.abs(out - np.array([255, 118, 255, 0])[:, None]).max() <= 2
    assert rgb(image, "drop")[0, 1].tolist() == [0, 255, 255]


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"junk",
        b"junk" * 100,
        rgb_profile(P3, 2.2)[:120],
        rgb_profile(P3, 2.2)[:200] + b"\xff" * 300,
        grey_profile(1.0),
        ink_profile(),
        profile(b"RGB ", b"XYZ ", {b"wtpt": fixed(0.9642, 1, 0.8249)}),
    ],
)
def test_a_damaged_or_foreign_profile_counts_as_none(damaged):
    image = noise()
    image.info["icc_profile"] = damaged
    assert np.array_equal(rgb(image), np.asarray(noise()))
    grey = noise().convert("L")
    grey.info["icc_profile"] = rgb_profile(P3, 2.2)
    assert np.array_equal(rgb(grey), np.asarray(noise().convert("L").convert("RGB")))


def test_colours_are_converted_before_they_are_laid_on_white():
    image = Image.new("RGBA", (1, 1), (0, 255, 0, 128))
    image.info["icc_profile"] = rgb_profile(P3, 2.2)
    expected = from_p3(np.array([0.0, 255, 0])) * 128 / 255 + 127
    assert np.abs(rgb(image)[0, 0] - expected).max() <= 2
    palette = noise().convert("P")
    palette.info["icc_profile"] = rgb_profile(P3, 2.2)
    assert np.abs(rgb(palette) - from_p3(np.asarray(palette.convert("RGB")))).max() <= 1.5
    grey = Image.new("LA", (2, 1), (64, 255))
    grey.putpixel((1, 0), (64, 0))
    grey.info["icc_profile"] = grey_profile(1.8)
    assert np.abs(rgb(grey)[0, :, 0] - [encoded(np.array((64 / 255) ** 1.8)), 255]).max() <= 1.5
