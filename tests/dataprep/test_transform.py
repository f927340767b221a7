"""Upright images to stored bytes: crops, filters, sizes and encodings against what they are defined to be."""

import hashlib
import importlib.util
import io
from fractions import Fraction
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image, features
from pydantic import ValidationError

from dataprep.rejected import Rejected
from dataprep.transform import CROPS, Transform, open_image
from pipeline.config import complaint
from tests.dataprep.pictures import noise, saved

SAME = Transform(size_px=8, crop="none")
LOSSLESS = ("png", "webp", "raw")
GOLDEN = {  # sha256 of the pixels of a cat of 451x300, middle square to 96 px
    "box": "b68e1cf23c21971c",
    "lanczos": "a3ca7da54ae4809e",
    "bicubic": "15817b3433036b08",
    "area": "e29e252e2e79bddf",
}


def decoded(data: bytes) -> np.ndarray:
    if data.startswith(b"\x93NUMPY"):
        return np.load(io.BytesIO(data), allow_pickle=False)
    return np.asarray(Image.open(io.BytesIO(data)))


def refusal(transform: Transform, image: Image.Image) -> tuple[str, str]:
    with pytest.raises(Rejected) as e:
        transform(image)
    return e.value.reason, e.value.detail


def wrong(**words) -> str:
    with pytest.raises(ValidationError) as e:
        Transform.model_validate(words)
    return complaint(e.value, Transform)


@pytest.mark.parametrize("encoding", LOSSLESS)
def test_rgb_of_the_right_size_is_stored_as_it_is(encoding):
    assert np.array_equal(decoded(SAME.replace(encoding=encoding)(noise())), np.asarray(noise()))


def test_the_middle_square_is_cut_with_the_odd_pixel_to_the_right_and_below():
    for size, left, top in (((13, 8), 2, 0), ((8, 11), 0, 1), ((9, 8), 0, 0), ((8, 9), 0, 0), ((8, 8), 0, 0)):
        image = noise(*size)
        expected = np.asarray(image)[top : top + 8, left : left + 8]
        assert np.array_equal(decoded(Transform(size_px=8)(image)), expected)


@pytest.mark.parametrize("size", [(1023, 1025), (1025, 1023), (1025, 1024)])
def test_a_nearly_square_image_loses_a_row_or_a_column(size):
    image, side = noise(*size), min(size)
    square = Transform().square(image)
    assert square.size == (side, side)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    assert np.array_equal(np.asarray(square), np.asarray(image)[top : top + side, left : left + side])
    assert refusal(Transform(crop="none"), image)[0] == "not square"


@pytest.mark.parametrize(
    ("crop", "left", "right", "top", "bottom"),  # inclusive, as papers and tools give them
    [
        ("pggan", 25, 152, 57, 184),
        ("coco-gan", 25, 152, 50, 177),
        ("center-140", 19, 158, 39, 178),
        ("center-160", 9, 168, 29, 188),
        ("center-108", 35, 142, 55, 162),
    ],
)
def test_celeba_windows_are_cut_at_their_pixels(crop, left, right, top, bottom):
    x, y = np.meshgrid(np.arange(178), np.arange(218))
    place = Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))
    side = right - left + 1
    for filter in ("lanczos", "area"):  # nothing is resized
        out = decoded(Transform(crop=crop, size_px=side, filter=filter)(place))
        assert np.array_equal(out, np.asarray(place)[top : bottom + 1, left : right + 1])
    for size in ((177, 218), (178, 219), (218, 178), (512, 512)):
        reason, detail = refusal(Transform(crop=crop, size_px=8), noise(*size))
        assert reason == "wrong size"
        assert detail.startswith(f"{size[0]}x{size[1]}")


@pytest.mark.parametrize("filter", ["box", "lanczos", "bicubic"])
@pytest.mark.parametrize("size", [(48, 36), (36, 48), (60, 20), (40, 40)])
def test_stretch_squeezes_the_whole_image_and_only_the_shorter_side_may_grow(filter, size):
    image, transform = noise(*size), Transform(size_px=40, crop="stretch", filter=filter)
    expected = image.resize((40, 40), Image.Resampling[filter.upper()])
    assert np.array_equal(decoded(transform(image)), np.asarray(expected))
    reason, detail = refusal(transform.replace(size_px=61), image)
    assert (reason, detail.split()[0]) == ("too small", f"{size[0]}x{size[1]}")


@pytest.mark.parametrize("size", [(12, 20), (20, 12), (30, 10), (8, 16), (7, 13)])
def test_a_stretched_area_is_the_mean_of_the_pixels_covered(size):
    """Of a square whose every pixel is a whole number of pixels of the image repeated until both sides divide."""
    image, side = noise(*size), 8 if min(size) >= 8 else 7
    fine = np.asarray(image).astype(int).repeat(side, axis=0).repeat(side, axis=1)  # every side is a multiple now
    h, w = fine.shape[0] // side, fine.shape[1] // side
    means = fine.reshape(side, h, side, w, 3).mean(axis=(1, 3))
    out = decoded(Transform(size_px=side, crop="stretch", filter="area")(image))
    assert np.array_equal(out, np.floor(means + 0.5 + 1e-9))


def test_every_crop_has_a_test():
    assert list(CROPS) == ["center", "none", "stretch", "pggan", "coco-gan", "center-140", "center-160", "center-108"]


@pytest.mark.parametrize("filter", ["box", "lanczos", "bicubic"])
def test_reduction_is_pillows_on_the_crop_alone(filter):
    image = noise(61, 45)
    for side in (16, 15, 44):
        crop = image.crop((8, 0, 53, 45))
        expected = crop.resize((side, side), Image.Resampling[filter.upper()])
        assert np.array_equal(decoded(Transform(size_px=side, filter=filter)(image)), np.asarray(expected))


@pytest.mark.parametrize("filter", GOLDEN)
def test_the_pixels_of_a_real_photograph_do_not_drift(filter):
    folders = getattr(importlib.util.find_spec("skimage"), "submodule_search_locations", None) or []
    cat = open_image(Path(folders[0], "data", "chelsea.png"))
    data = Transform(size_px=96, filter=filter, icc="drop", encoding="raw")(cat)
    assert hashlib.sha256(data[128:]).hexdigest()[:16] == GOLDEN[filter], f"Pillow {PIL.__version__}"


@pytest.mark.parametrize(("side", "out"), [(7, 3), (10, 7), (9, 9 - 1), (12, 4), (16, 4), (6, 1)])
def test_area_is_the_mean_of_what_a_pixel_covers_rounded_once(side, out):
    image = noise(side, side)
    got = decoded(Transform(size_px=out, filter="area")(image))
    step = Fraction(side, out)

    def cover(i: int, pixel: int) -> Fraction:
        return max(Fraction(0), min(Fraction(pixel + 1), step * (i + 1)) - max(Fraction(pixel), step * i))

    weight = [[cover(i, pixel) for pixel in range(side)] for i in range(out)]
    for (y, x), value in np.ndenumerate(got[..., 0]):
        total = sum(weight[y][a] * weight[x][b] * int(v) for (a, b), v in np.ndenumerate(np.asarray(image)[..., 0]))
        assert value == int(total / step**2 + Fraction(1, 2))  # halves up


@pytest.mark.parametrize("factor", [2, 3, 4, 5, 8, 16, 32])
def test_area_at_whole_factors_is_the_block_mean_for_every_sum(factor):
    n = factor * factor
    sums = np.arange(255 * n + 1)
    sums = sums[(sums % n < 3) | (np.abs(sums % n - n // 2) < 3) | (sums % n > n - 3)]  # where rounding could slip
    sums = np.resize(sums, int(np.ceil(np.sqrt(len(sums)))) ** 2)
    side = int(np.sqrt(len(sums)))
    block = (sums[:, None] // n + (np.arange(n) < sums[:, None] % n)).astype(np.uint8)
    image = block.reshape(side, side, factor, factor).swapaxes(1, 2).reshape(side * factor, -1)
    got = decoded(Transform(size_px=side, filter="area")(Image.fromarray(image)))[..., 0]
    assert np.array_equal(got.ravel(), (2 * sums + n) // (2 * n))  # halves up


@pytest.mark.parametrize(
    "change",
    [
        {"size_px": 9},
        {"crop": "none"},
        {"filter": "box"},
        {"filter": "bicubic"},
        {"filter": "area"},
        {"icc": "drop"},
        {"encoding": "jpg"},
        {"encoding": "webp"},
        {"encoding": "raw"},
    ],
)
def test_every_setting_has_an_effect(change):
    image = noise(24, 20)
    image.info["icc_profile"] = open_image(odd_colours()).info["icc_profile"]

    def outcome(transform: Transform) -> bytes | str:
        try:
            return transform(image)
        except Rejected as e:
            return e.reason

    plain = Transform(size_px=8)
    assert outcome(plain.replace(**change)) != outcome(plain)


def odd_colours() -> io.BytesIO:
    """A picture with an embedded profile: sRGB with red and blue changed over."""
    from PIL import ImageCms

    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = data.index(b"rXYZ"), data.index(b"bXYZ")
    data[red : red + 4], data[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return saved(noise(24, 20), icc_profile=bytes(data))


def test_several_sizes_from_one_square_are_those_made_one_by_one():
    image = noise(40, 30)
    square = Transform().square(image)
    before = square.tobytes()
    for side, filter, encoding in ((30, "lanczos", "png"), (16, "area", "jpg"), (7, "box", "raw"), (15, "box", "webp")):
        transform = Transform(size_px=side, filter=filter, encoding=encoding)
        assert transform.store(square) == transform(image)
        assert decoded(transform(image)).shape == (side, side, 3)
    assert square.tobytes() == before


def test_the_image_given_is_left_alone():
    image = open_image(odd_colours())
    info, pixels = dict(image.info), image.tobytes()
    for crop in ("center", "none"):
        Transform(size_px=20, crop=crop)(image if crop == "center" else image.crop((0, 0, 20, 20)))
    square = image.crop((0, 0, 20, 20))
    SAME.replace(size_px=20, icc="drop")(square)
    assert (image.info, image.tobytes(), square.info) == (info, pixels, info)


def test_jpg_is_stored_without_chroma_subsampling_at_its_quality_95_by_default():
    for quality, expected in ((None, 95), (95, 95), (60, 60), (100, 100)):
        image = Image.open(io.BytesIO(SAME.replace(encoding="jpg", quality=quality)(noise())))
        assert image.format == "JPEG"
        assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3  # type: ignore[attr-defined]
        like = Image.open(saved(noise(), "JPEG", quality=expected))
        assert image.quantization == like.quantization  # type: ignore[attr-defined]


def test_webp_is_lossless_unless_a_quality_is_set():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    webp = Transform(size_px=64, encoding="webp")
    assert np.array_equal(decoded(webp(image)), np.asarray(image))
    sizes = [len(webp.replace(quality=q)(image)) for q in (10, 50, 100)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[1] < sizes[2] < len(webp(image))


@pytest.mark.parametrize("side", [1, 9, 256, 1024])
def test_raw_is_npy_with_a_header_of_128_bytes(side):
    image = noise(side, side)
    data = Transform(size_px=side, encoding="raw")(image)
    assert data[:8] == b"\x93NUMPY\x01\x00"
    assert data[128:] == image.tobytes()
    assert np.array_equal(decoded(data), np.asarray(image))


def test_stock_webdataset_decodes_every_encoding():
    from webdataset.autodecode import Decoder, imagehandler

    for encoding in ("png", "jpg", "webp", "raw"):
        transform = SAME.replace(encoding=encoding)
        sample = {"__key__": "0", transform.extension: transform(noise())}
        out = Decoder([imagehandler("rgb8")])(sample)[transform.extension]
        assert out.dtype == np.uint8
        assert np.array_equal(out, decoded(transform(noise())))


def test_encodings_have_their_usual_extension():
    names = {e: Transform.model_validate({"encoding": e}).extension for e in ("png", "jpg", "webp", "raw")}
    assert names == {"png": "png", "jpg": "jpg", "webp": "webp", "raw": "npy"}


@pytest.mark.parametrize("field", ["crop", "filter", "icc", "encoding"])
def test_an_unknown_word_is_refused_with_the_known_ones(field):
    line = wrong(**{field: "wrong"})
    assert line.startswith(f"{field}='wrong'")
    assert "did you mean" in line or "known:" in line


def test_quality_is_refused_where_nothing_is_lost():
    for encoding in ("png", "raw"):
        line = wrong(encoding=encoding, quality=90)
        assert line.startswith("quality=90")
        assert encoding in line
    for quality in (0, 101):
        assert wrong(encoding="jpg", quality=quality).startswith(f"quality={quality}")


@pytest.mark.parametrize(("part", "words"), [("littlecms2", {}), ("webp", {"icc": "drop", "encoding": "webp"})])
def test_a_pillow_that_lacks_a_part_is_named_before_work_begins(part, words, monkeypatch):
    monkeypatch.setattr(features, "check", lambda name: name != part)
    line = wrong(**words)
    assert part in line
    assert "\n" not in line


@pytest.mark.parametrize("encoding", ["png", "jpg", "webp", "raw"])
@pytest.mark.parametrize("size", [(8, 8), (11, 9)])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_no_metadata_reaches_the_output(encoding, size, format):
    exif = Image.Exif()
    exif[0x010E], exif[0x8298] = "a secret", "a secret"
    options = {"exif": exif, "icc_profile": b"a secret"}
    options |= {"JPEG": {"comment": b"a secret", "xmp": b"a secret"}, "WEBP": {"xmp": b"a secret"}}.get(format, {})
    source = open_image(saved(noise(*size), format, **options))
    assert {"exif", "icc_profile"} <= set(source.info)
    source.info["comment"] = b"a secret"
    data = Transform(size_px=8, encoding=encoding)(source)
    assert b"secret" not in data
    if encoding != "raw":
        out = Image.open(io.BytesIO(data))
        assert not out.getexif()
        assert not {"exif", "xmp", "XML:com.adobe.xmp", "icc_profile", "comment"} & set(out.info)


def test_the_place_where_a_real_photograph_was_taken_does_not_reach_the_output(real_images: Path):
    city = open_image(real_images / "originals" / "scenes" / "singaporean-cityscape.jpg")
    assert city.getexif().get_ifd(0x8825)  # GPS
    for encoding in ("png", "jpg", "webp"):
        assert not Image.open(io.BytesIO(Transform(size_px=64, encoding=encoding)(city))).getexif()


def test_nothing_is_enlarged_and_none_takes_squares_only():
    reason, detail = refusal(Transform(size_px=9), noise(20, 8))
    assert (reason, detail.split()[0]) == ("too small", "8x8")
    assert refusal(SAME, noise(9, 8))[0] == "not square"
    assert refusal(Transform(size_px=2), noise(1, 5000))[0] == "too small"
    assert decoded(Transform(size_px=1)(noise(1, 5000))).shape == (1, 1, 3)


def test_an_animation_and_a_palette_go_all_the_way():
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    out = decoded(SAME(open_image(saved(frames[0], "GIF", save_all=True, append_images=frames[1:]))))
    assert (out == (255, 0, 0)).all()
