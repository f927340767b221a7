"""Files to upright images: what is taken, what is rejected and why. The cases are notes of real data sets."""

import base64
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from dataprep.decode import FORMATS, open_image
from dataprep.rejected import Rejected
from dataprep.transform import Transform
from tests.dataprep.pictures import noise, saved

# 16x16 grey, value 6.12 * (x + y); arithmetic-coded, which Pillow can read but not write
ARITHMETIC = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgMCAgMDAwMEAwMEBQgFBQQEBQoHBwYIDAoMDAsKCwsNDhIQDQ4RDgsLEBYQERMUFRUVDA8XGBYU"
    "GBIUFRT/yQALCAAQABABAREA/8wABgAQEAX/2gAIAQEAAD8A/wDlXnxo14YknwXyNj3wDkw7st7ngrew/9k="
)
NASTY = {  # every file of originals/nasty that is not taken, and the reason
    "LICENSE.MIT-CMU": "not an image",
    "broken.png": "not an image",
    "zero_width.gif": "not an image",
    "truncated_end_chunk.png": "truncated",
    "truncated_image.png": "truncated",
    "truncated_jpeg.jpg": "truncated",
    "broken_data_stream.png": "unreadable",
    "decompression_bomb.gif": "too large",
    "png_decompression_dos.png": "too large",
}


def refused(data: bytes) -> tuple[str, str]:
    with pytest.raises(Rejected) as e:
        open_image(io.BytesIO(data))
    return e.value.reason, e.value.detail


def picture() -> Image.Image:
    """32x16, the top left quarter white: no turn leaves it as it is."""
    out = Image.new("RGB", (32, 16))
    out.paste("white", (0, 0, 16, 8))
    return out


def is_upright(image: Image.Image) -> bool:
    out = np.asarray(image.convert("L")) > 128
    return out.shape == (16, 32) and np.array_equal(out, np.asarray(picture().convert("L")) > 128)


def laid(orientation: int) -> Image.Image:
    """The picture as a camera stores it that notes this orientation."""
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(orientation)
    return picture() if undo is None else picture().transpose(Image.Transpose(undo))


def exif(kind: int, count: int, value: bytes) -> bytes:
    """EXIF with one entry, the orientation, of any TIFF type."""
    return b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHI4sI", 0x0112, kind, count, value, 0)


def xmp(orientation: int) -> bytes:
    body = f'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{orientation}"/>'
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/">{body}</x:xmpmeta>'.encode()


def declared(format: str, side: int) -> bytes:
    """8x8 pixels under a header that says side x side."""
    head = bytearray(saved(noise(), format, **({"lossless": True} if format == "WEBP" else {})).getvalue())
    at, code = {"PNG": (16, ">II"), "BMP": (18, "<ii"), "GIF": (6, "<HH"), "WEBP": (21, "<I")}[format]
    wide = struct.pack(code, *((side - 1) * (1 + (1 << 14)),) if format == "WEBP" else (side, side))
    head[at : at + len(wide)] = wide
    if format == "PNG":
        head[29:33] = struct.pack(">I", zlib.crc32(head[12:29]))
    return bytes(head)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(10))
def test_every_exif_orientation_comes_out_upright(format, orientation):
    note = Image.Exif()
    note[0x0112] = orientation
    assert is_upright(open_image(saved(laid(orientation), format, exif=note)))


@pytest.mark.parametrize("orientation", [3, 6])
def test_xmp_orientation_counts_where_exif_has_none(orientation):
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp(orientation).decode())
    for file in (
        saved(laid(orientation), pnginfo=text),
        saved(laid(orientation), "JPEG", xmp=xmp(orientation)),
        saved(laid(orientation), "WEBP", xmp=xmp(orientation)),
        saved(laid(orientation), "JPEG", xmp=xmp(8), exif=exif(3, 1, bytes([orientation, 0, 0, 0]))),
    ):
        assert is_upright(open_image(file))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "note",
    [
        exif(2, 2, b"6\0\0\0"),  # a string
        exif(3, 1, b"\xff\xff\0\0"),
        exif(5, 1, b"\xff\xff\xff\x7f"),  # points outside
        exif(3, 1, b"\6\0\0\0")[:20],
        b"Exif\0\0II*\0" + b"\xff" * 40,
        b"Exif\0\0" + bytes(range(256)),
        b"Exif\0\0",
    ],
)
def test_an_orientation_that_is_none_or_damaged_exif_leaves_the_picture_as_stored(format, note):
    assert is_upright(open_image(saved(picture(), format, exif=note)))


def test_an_orientation_that_is_a_long_integer_counts():
    assert is_upright(open_image(saved(laid(6), "JPEG", exif=exif(4, 1, b"\6\0\0\0"))))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not an image"),
        (b"\xff", "not an image"),
        (b"<html>Quota exceeded</html>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64), "not an image"),
        (b"\0" + saved(noise(), "JPEG").getvalue(), "not an image"),  # junk before the start
        (saved(noise(64, 64)).getvalue()[:2000], "truncated"),
        (saved(noise(64, 64), "JPEG").getvalue()[:1500], "truncated"),
        (saved(noise(64, 64)).getvalue()[:-6], "truncated"),  # all pixels there, the end chunk cut
    ],
)
def test_bytes_that_are_no_whole_image_are_rejected(data, reason):
    assert refused(data)[0] == reason
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.skipif(".avif" not in Image.registered_extensions(), reason="this Pillow cannot write AVIF")
def test_avif_is_no_image_also_where_pillow_could_read_it():
    assert refused(saved(noise(16, 16), "AVIF").getvalue()) == (
        "not an image",
        "the bytes are none of JPEG, PNG, WEBP, BMP, TIFF, GIF",
    )


def test_a_flipped_byte_in_a_png_is_found_wherever_it_is():
    data = saved(noise(4, 4)).getvalue()
    for at in range(8, len(data) - 12):
        hurt = bytearray(data)
        hurt[at] ^= 1
        assert refused(bytes(hurt))[0] in ("unreadable", "truncated", "not an image", "too large")


def test_a_webp_cut_short_is_rejected():
    data = saved(noise(64, 64), "WEBP").getvalue()
    for cut in (20, 200, len(data) // 2, len(data) - 10):
        assert refused(data[:cut])[0] in ("not an image", "unreadable", "truncated")


@pytest.mark.parametrize("format", FORMATS)
def test_the_content_decides_the_format_and_what_follows_it_does_no_harm(format, tmp_path):
    (tmp_path / "scan.txt").write_bytes(saved(noise(), format).getvalue() + b"trailing junk \xff\xd8\xff")
    image = open_image(tmp_path / "scan.txt")
    if format in ("PNG", "BMP", "TIFF"):
        assert np.array_equal(np.asarray(image), np.asarray(noise()))
    assert image.size == (8, 8)


def test_progressive_and_arithmetic_jpegs_are_read():
    ramp = Image.fromarray((np.add.outer(np.arange(16), np.arange(16)) * 4).astype(np.uint8))
    progressive = open_image(saved(ramp, "JPEG", progressive=True, quality=95))
    assert np.abs(np.asarray(progressive).astype(int) - np.asarray(ramp)).max() <= 3
    grey = np.asarray(open_image(io.BytesIO(base64.b64decode(ARITHMETIC)))).astype(int)
    assert np.abs(grey - np.add.outer(np.arange(16), np.arange(16)) * 6.12).max() < 2.5


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_the_first_frame_of_several_is_taken(format):
    frames = [Image.new("RGB", (16, 16), c) for c in ("red", "blue")]
    file = saved(frames[0], format, save_all=True, append_images=frames[1:])
    red, green, blue = np.asarray(open_image(file).convert("RGB")).reshape(-1, 3).mean(0)
    assert red > 240
    assert max(green, blue) < 15


def test_decompression_bombs_are_rejected_before_they_unpack(monkeypatch):
    data = saved(noise(20, 20)).getvalue()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)  # 400 pixels: where Pillow only warns
    assert refused(data)[0] == "too large"
    monkeypatch.undo()
    text = PngImagePlugin.PngInfo()
    text.add_text("bomb", "0" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    assert refused(saved(noise(), pnginfo=text).getvalue())[0] == "too large"
    for format in ("PNG", "BMP", "GIF", "WEBP"):
        assert refused(declared(format, 16383))[0] == "too large"


@pytest.mark.parametrize("format", ["PNG", "BMP"])
def test_an_image_without_pixels_is_rejected(format):
    assert refused(declared(format, 0))[0] in ("not an image", "truncated", "unreadable")


def test_a_panorama_is_no_bomb():
    wide = Image.new("RGB", (30000, 100), "red")
    assert open_image(saved(wide)).size == (30000, 100)
    data = Transform(size_px=100)(wide)
    assert Image.open(io.BytesIO(data)).size == (100, 100)


def test_a_column_of_single_pixels_is_an_image():
    assert open_image(saved(noise(1, 5000))).size == (1, 5000)


def test_every_damaged_real_file_meets_its_rule(real_images: Path):
    outcome = {}
    files = sorted((real_images / "originals" / "nasty").iterdir())
    for file in files:
        try:
            image = open_image(file)
            image.load()  # detached from the closed file
            square = Transform(size_px=1).square(image)
            assert (square.mode, square.size) == ("RGB", (min(image.size),) * 2)
        except Rejected as e:
            outcome[file.name] = e.reason
    assert len(files) >= 55
    assert outcome == NASTY


def test_the_hoppers_of_all_orientations_come_out_alike(real_images: Path):
    nasty = real_images / "originals" / "nasty"
    names = ["hopper.jpg", *(f"hopper_orientation_{i}.jpg" for i in range(2, 9)), "hopper_orientation_6.webp"]
    upright = [np.asarray(open_image(nasty / n)).astype(int) for n in names]
    stored = [np.asarray(Image.open(nasty / n)).astype(int) for n in names[1:]]
    assert max(np.abs(u - upright[0]).mean() for u in upright) < 5  # compressed each on its own
    assert min(np.abs(s - upright[0]).mean() for s in stored) > 30


def test_a_real_photograph_lying_on_its_side_is_turned(real_images: Path):
    hand = real_images / "originals" / "hands" / "7" / "IMG_5935.JPG"
    stored = Image.open(hand)
    assert stored.getexif()[0x0112] == 6
    turned = np.asarray(stored).swapaxes(0, 1)[:, ::-1]  # a quarter clockwise
    assert np.array_equal(np.asarray(open_image(hand)), turned)


def test_a_real_orientation_in_xmp_is_followed(real_images: Path):
    file = real_images / "originals" / "nasty" / "xmp_tags_orientation_exiftool.png"
    stored = Image.open(file)
    assert stored.getexif()[0x0112] == 3
    assert np.array_equal(np.asarray(open_image(file)), np.asarray(stored)[::-1, ::-1])
