"""The nasty cases of native data sets, one test an item: images, files and names.

take(path, source, size, ...) goes the whole way and accounts for every entry by name (outcomes.py). Details of each
rule are tested beside the part that holds it; archives, lists and shards are in test_checklist_stores.py.
"""

import json
import os
import random
import shutil
import struct
import tarfile
import unicodedata
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from dataprep.sources import open_source
from dataprep.transform import Transform
from dataprep.writer import prepare
from pipeline.data.manifest import load_manifest
from tests.dataprep.outcomes import TAKEN, jpg, lay, png, refused
from tests.stress.natives import encoded, picture

# Image bytes


def test_zero_byte_file_1_byte_file_text_or_html_named_as_image_or_zip(take, tmp_path):
    page = b"<html>Google Drive - Quota exceeded</html>"
    bad = {"zero.jpg": b"", "one.png": b"\xff", "text.jpg": b"hello", "page.png": page}
    assert take(lay(tmp_path / "f", {**bad, "a.png": png()})).of == {
        "a.png": TAKEN,
        **dict.fromkeys(bad, "not an image"),
    }
    (tmp_path / "page.zip").write_bytes(page)
    assert "'Quota exceeded' page" in refused(lambda: take(tmp_path / "page.zip"))


def test_truncated_jpeg_and_png_are_not_filled_with_black(take, tmp_path):
    files = {"a.png": png()[:900], "b.jpg": jpg(quality=95)[:900], "c.png": png()}
    assert take(lay(tmp_path / "f", files)).of == {"a.png": "truncated", "b.jpg": "truncated", "c.png": TAKEN}
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_truncated_png_end_chunk_idat_after_end_junk_before_and_after_jpeg(take, tmp_path):
    whole = png()
    files = {
        "end.png": whole[:-6],
        "idat.png": whole + whole[-60:],
        "before.jpg": b"junk" + jpg(),
        "after.jpg": jpg() + b"x",
    }
    assert take(lay(tmp_path / "f", files)).of == {
        **{"end.png": "truncated", "idat.png": TAKEN, "before.jpg": "not an image", "after.jpg": TAKEN},
    }


def test_extension_that_does_not_match_content_none_and_any_case(take, tmp_path):
    names = ["png.jpg", "none", "a.JPG", "b.JPEG", "c.Jpg", "d.jpe", "e.webp", "f.tif"]
    assert take(lay(tmp_path / "f", {n: png(i) for i, n in enumerate(names)})).of == dict.fromkeys(names, TAKEN)


def test_each_mode_has_one_rule(take, tmp_path):
    deep = Image.fromarray(np.full((8, 8), 30000, np.uint16))
    sixteen = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    flat = {
        m: encoded(Image.new(m, (8, 8), v), "PNG")
        for m, v in [("1", 1), ("L", 90), ("LA", (90, 255)), ("RGBA", (9, 8, 7, 255))]
    }
    flat |= {"P": encoded(Image.new("RGB", (8, 8), (9, 8, 7)).quantize(4), "PNG"), "I;16": encoded(deep, "PNG")}
    flat |= {"CMYK": encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=100)}
    flat |= {"F": encoded(Image.new("F", (8, 8), 0.5), "TIFF"), "LAB": encoded(Image.new("LAB", (8, 8)), "TIFF")}
    flat |= {"RGB16": _png16(sixteen, bytes([0x12, 0x34] * 3) * 8)}
    done = take(lay(tmp_path / "f", {f"{m.replace(';', '')}.png": d for m, d in flat.items()}))
    bad = {"F.png": "unsupported mode", "LAB.png": "unsupported mode"}
    assert done.of == {**{f"{m.replace(';', '')}.png": TAKEN for m in flat}, **bad}
    seen = {name: image[4, 4].tolist() for name, image in done.images.items()}
    expected = {"1.png": [255] * 3, "L.png": [90] * 3, "LA.png": [90] * 3, "RGBA.png": [9, 8, 7], "P.png": [9, 8, 7]}
    expected |= {"I16.png": [round(30000 / 257)] * 3, "RGB16.png": [0x12] * 3, "CMYK.png": [0, 255, 255]}
    assert all(np.abs(np.subtract(seen[n], v)).max() <= 1 for n, v in expected.items()), seen


def _png16(header: bytes, row: bytes) -> bytes:
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress((b"\0" + row) * 8)), (b"IEND", b"")]
    body = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def test_what_is_transparent_is_white_whatever_colour_lies_under_it(take, tmp_path):
    clear = Image.new("RGBA", (8, 8), (200, 0, 0, 0))
    palette = Image.new("RGB", (8, 8), (200, 0, 0)).quantize(4)
    keyed = encoded(Image.new("L", (8, 8), 7), "PNG", transparency=7)
    files = {"rgba.png": encoded(clear, "PNG"), "webp.webp": encoded(clear, "WEBP", lossless=True, exact=True)}
    files |= {"p.png": encoded(palette, "PNG", transparency=palette.getpixel((0, 0))), "l.png": keyed}
    done = take(lay(tmp_path / "f", files))
    assert {n: (i == 255).all() for n, i in done.images.items()} == dict.fromkeys(files, True)


def test_exif_orientation_1_to_8_and_values_that_are_none(take, tmp_path):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = 255  # the top left quarter
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    files = {}
    for turn in range(10):
        stored, exif = Image.fromarray(upright), Image.Exif()
        if turn in undo:
            stored = stored.transpose(Image.Transpose(undo[turn]))
        exif[0x0112] = turn
        for form in ("JPEG", "PNG", "WEBP"):
            files[f"{turn}.{form.lower()}"] = encoded(stored, form, exif=exif)
    exif[0x0112] = 6
    unturned = encoded(Image.fromarray(upright), "JPEG", exif=exif)
    number = b"\x01\x12\0\x03\0\0\0\x01\0\x06"
    files["text.jpeg"] = unturned.replace(number, b"\x01\x12\0\x02\0\0\0\x026\0")
    files["damaged.jpeg"] = unturned.replace(b"Exif\0\0MM\0*", b"Exif\0\0MM\0\xff")
    assert unturned not in (files["text.jpeg"], files["damaged.jpeg"])
    done = take(lay(tmp_path / "f", files), size=16)
    assert done.of == dict.fromkeys(files, TAKEN)
    expected = upright[:, 8:24].astype(int)  # the middle square
    assert {n for n, i in done.images.items() if np.abs(expected - i).mean() > 12} == set()


def test_the_real_files_of_every_orientation_come_out_alike(take, real_images, tmp_path):
    (tmp_path / "f").mkdir()
    for file in [
        *(real_images / "originals" / "nasty").glob("hopper_orientation_*.*"),
        *real_images.rglob("hopper.jpg"),
    ]:
        shutil.copy(file, tmp_path / "f")
    images = take(tmp_path / "f", size=128).images
    upright = images["hopper.jpg"].astype(int)
    assert len(images) == 9
    assert max(np.abs(i - upright).mean() for i in images.values()) < 5  # each compressed on its own, with a caption


@pytest.mark.parametrize("encoding", ["png", "jpg", "webp", "raw"])
def test_exif_gps_xmp_thumbnails_comments_and_profiles_do_not_reach_the_shard(take, tmp_path, encoding):
    exif = Image.Exif()
    exif[0x010E] = "a secret"
    exif.get_ifd(0x8825)[29] = "a secret"
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "a secret")
    more = {"exif": exif, "icc_profile": b"a secret" * 20}
    files = {
        "a.jpg": jpg(comment=b"a secret", xmp=b"a secret", **more),
        "b.png": encoded(picture(1), "PNG", pnginfo=text, **more),
    }
    assert all(b"a secret" in data for data in files.values())
    take(lay(tmp_path / "f", files), encoding=encoding)
    assert not any(b"a secret" in f.read_bytes() for f in (tmp_path / "set0").iterdir())


def test_progressive_jpeg_mpo_animations_and_formats_without_a_plugin(take, tmp_path):
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    many = {"save_all": True, "append_images": frames[1:]}
    files = {"p.jpg": encoded(frames[0], "JPEG", progressive=True), "m.jpg": encoded(frames[0], "MPO", **many)}
    files |= {"g.gif": encoded(frames[0], "GIF", **many), "a.png": encoded(frames[0], "PNG", **many)}
    files |= {"w.webp": encoded(frames[0], "WEBP", lossless=True, **many)}
    heic = {"h.jpg": b"\0\0\0\x18ftypheic" + bytes(40), "v": b"\0\0\0\x1cftypavif" + bytes(40)}
    done = take(lay(tmp_path / "f", files | heic))
    assert done.of == {**dict.fromkeys(files, TAKEN), **dict.fromkeys(heic, "not an image")}
    assert all(np.abs(i.astype(int) - (255, 0, 0)).max() <= 2 for i in done.images.values())


def test_bombs_panoramas_single_columns_no_pixels_and_what_is_too_small(take, tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("bomb", "0" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    bomb = bytearray(png())
    bomb[16:24] = struct.pack(">II", 20_000, 20_000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    files = {"bomb.png": bytes(bomb), "text.png": encoded(picture(0), "PNG", pnginfo=text)}
    files |= {"panorama.png": encoded(Image.new("L", (30_000, 8)), "PNG"), "column.png": png(width=1, height=9)}
    files |= {
        "none.gif": b"GIF89a\0\0\x08\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\0\0\x08\0\0\x02\x02\x44\x01\0;",
        "small.png": png(width=7),
    }
    assert take(lay(tmp_path / "f", files)).of == {
        **{"bomb.png": "too large", "text.png": "too large", "panorama.png": TAKEN, "column.png": "too small"},
        **{"none.gif": "not an image", "small.png": "too small"},
    }


def test_near_square_odd_crops_and_grey_stored_as_rgb(take, tmp_path):
    files = {
        "wide.png": png(1, width=13, height=8),
        "tall.png": png(2, width=8, height=11),
        "grey.png": png(3, mode="L"),
    }
    done = take(lay(tmp_path / "f", files))
    assert np.array_equal(done.images["wide.png"], np.asarray(picture(1, 13, 8))[:, 2:10])
    assert np.array_equal(done.images["tall.png"], np.asarray(picture(2, 8, 11))[1:9])
    assert (np.ptp(done.images["grey.png"], axis=2) == 0).all()
    (tmp_path / "f" / "square.png").write_bytes(png(width=8, height=8))
    assert take(tmp_path / "f", crop="none").of == {**dict.fromkeys(files, "not square"), "square.png": TAKEN}


def test_exact_duplicates_equal_bytes_under_two_labels_leaks_and_same_pixels(take, tmp_path):
    files = {"a/1.png": png(1), "a/2.png": png(1), "b/3.png": png(2), "c/4.png": png(2), "c/5.png": png(3)}
    files["c/6.png"] = encoded(picture(3), "PNG", compress_level=1)
    assert take(lay(tmp_path / "f", files), "asl").of == {
        **{"a/1.png": TAKEN, "a/2.png": "duplicate", "b/3.png": TAKEN, "c/4.png": "two labels"},
        **{"c/5.png": TAKEN, "c/6.png": TAKEN},  # other bytes are other files
    }
    leak = {f"hand{s}_a_bot_seg_1_cropped.png": png(1) for s in (1, 2)} | {"hand2_b_top_seg_1_cropped.png": png(2)}
    assert take(lay(tmp_path / "leak", leak), "asl", split="hand2").of["hand2_a_bot_seg_1_cropped.png"] == "duplicate"


# The 55 damaged, odd and valid files of Pillow's own tests

NASTY = {
    "broken.png": "not an image",
    "broken_data_stream.png": "unreadable",
    "decompression_bomb.gif": "too large",
    "no_palette.gif": "too small",
    "orientation_rectangle.jpg": "too small",
    "png_decompression_dos.png": "too large",
    "truncated_end_chunk.png": "truncated",
    "truncated_image.png": "truncated",
    "truncated_jpeg.jpg": "truncated",
    "zero_width.gif": "not an image",
    **dict.fromkeys(
        """16bit.cropped.tif 1_trns.png anim_frame1.webp broken_exif_dpi.jpg exif_typeerror.jpg flower.webp
        hopper-XYZ.png hopper.jpg hopper.webp hopper_16bit_qtables.jpg hopper_bad_exif.jpg
        hopper_bw_500.png hopper_gray.jpg hopper_idat_after_image_end.png hopper_orientation_2.jpg
        hopper_orientation_3.jpg hopper_orientation_4.jpg hopper_orientation_5.jpg
        hopper_orientation_6.jpg hopper_orientation_6.webp hopper_orientation_7.jpg
        hopper_orientation_8.jpg i_trns.png icc_profile.png invalid-exif.jpg jpeg_ff00_header.jpg
        junk_jpeg_header.jpg l_trns.png p_16.png p_trns_single.png padded_idat.png pil123p.png
        pil123rgba.png pil_sample_cmyk.jpg rgb_trns.png sugarshack.mpo tiff_16bit_RGB.tiff
        tiff_16bit_RGBa.tiff tiff_strip_cmyk_jpeg.tif transparent.gif transparent.png transparent.webp
        truncated_app14.jpg uncompressed_la.png xmp_tags_orientation_exiftool.png""".split(),
        TAKEN,
    ),
}


def test_each_of_the_55_real_nasty_files_meets_its_rule(take, real_images):
    done = take(real_images / "originals" / "nasty")
    assert done.of == NASTY
    assert (done.manifest.count_in, done.manifest.count) == (55, 45)
    assert done.notes == ("passed over: 1 other files, the first is 'LICENSE.MIT-CMU'",)


# Files and names


def test_names_of_any_bytes(take, tmp_path):
    composed = "\u00e9.png"
    names = [composed, unicodedata.normalize("NFD", composed), "a b.png", "a\nb.png", "'\".png", "-rf.png", "12:30.png"]
    names += ["dot.png.", "blank.png ", "x" * 251 + ".png"]
    root = lay(tmp_path / "f", {n: png(i) for i, n in enumerate(names)})
    (root / "a b.png").rename(os.fsdecode(os.fsencode(root) + b"/\xff.png"))
    expected = {n.replace("a b", "\\xff") for n in names}
    assert take(root).of == dict.fromkeys(expected, TAKEN)


def test_names_equal_but_for_case_folder_or_extension_and_dots_in_stems(take, tmp_path):
    names = ["A.png", "a.png", "x/1.png", "y/1.png", "s.jpg", "s.png", "hand1.v2_x.png"]
    done = take(lay(tmp_path / "f", {n: png(i) for i, n in enumerate(names)}))
    assert done.of == dict.fromkeys(names, TAKEN)
    with tarfile.open(tmp_path / "set0" / "shard-00000.tar") as tar:
        assert [m.name for m in tar] == [f"{i:09d}.{e}" for i in range(7) for e in ("png", "json")]


def test_class_folders_in_any_case_and_order_nested_empty_and_with_stray_files(take, tmp_path):
    litter = {"10/README": b"about", "10/.DS_Store": b"x", "2/Thumbs.db": b"x", "2/._1.png": b"x", "desktop.ini": b"x"}
    root = lay(tmp_path / "f", {"10/1.png": png(1), "2/1.png": png(2), "B/1.png": png(3), "a/1.png": png(4), **litter})
    (root / "empty").mkdir()
    done = take(root)
    assert done.manifest.classes == ("10", "2", "B", "a")
    assert done.of == dict.fromkeys(["10/1.png", "2/1.png", "B/1.png", "a/1.png"], TAKEN)
    nested = {f"{p}{c}/{i}.png": png(i) for p in ("", "asl_dataset/") for i, c in enumerate("AB")}
    done = take(lay(tmp_path / "n", nested), "asl")
    assert (done.manifest.count, done.manifest.rejected, done.manifest.classes[:2]) == (2, {"duplicate": 2}, ("0", "1"))


def test_links_loops_devices_unreadable_and_vanishing_files(take, tmp_path):
    root = lay(tmp_path / "f", {"a.png": png(), "sub/b.png": png(1), "gone.png": png(2)})
    outside = lay(tmp_path / "outside", {"o.png": png(3)})
    links = {
        "file.png": root / "a.png",
        "out.png": outside / "o.png",
        "dangling.png": "nothing",
        "loop.png": "loop.png",
    }
    for name, target in {**links, "sub/up": root, "folder": root / "sub"}.items():
        (root / name).symlink_to(target)
    os.link(root / "a.png", root / "hard.png")
    os.mkfifo(root / "pipe.png")
    source = open_source("folder", root)
    source.entries(8)
    (root / "gone.png").unlink()
    prepare(source, tmp_path / "set0", Transform(size_px=8), on_error="skip")
    rows = [json.loads(line) for line in (tmp_path / "set0" / "rejected.jsonl").read_text().splitlines()]
    assert {r["name"]: r["reason"] for r in rows} == {
        **{"dangling.png": "missing", "gone.png": "missing", "loop.png": "unreadable", "pipe.png": "unreadable"},
    }
    assert load_manifest(tmp_path / "set0").count == 5


def test_the_order_does_not_depend_on_the_disk(take, tmp_path, monkeypatch):
    root = lay(tmp_path / "f", {f"{c}/{i}.png": png(i) for c in "ab" for i in range(9)})
    scandir = os.scandir

    class Shuffled(list):
        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    def shuffled(path):
        with scandir(path) as items:
            return Shuffled(random.Random(1).sample(found := list(items), len(found)))

    first = take(root)
    monkeypatch.setattr(os, "scandir", shuffled)
    assert take(root).manifest == first.manifest
