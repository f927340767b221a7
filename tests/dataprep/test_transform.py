"""Every kind of picture to stored bytes, against the written rule for it."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin
from pydantic import ValidationError

from dataprep.transform import REASONS, Rejected, Transform, open_image

SAME = Transform(size_px=8, crop="none")


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def saved(image: Image.Image, format: str = "PNG", **options) -> io.BytesIO:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out


def noise(width: int = 8, height: int = 8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_rgb_of_the_right_size_is_stored_as_it_is():
    assert np.array_equal(decoded(SAME(noise())), np.asarray(noise()))


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(mode):
    image = noise().convert(mode)
    assert np.array_equal(decoded(SAME(image)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_alpha_is_laid_on_white(mode):
    image = Image.new("RGBA", (8, 8), (10, 10, 10, 0))
    image.paste((10, 10, 10, 255), (0, 0, 4, 8))
    out = decoded(SAME(image.convert(mode) if mode != "PA" else image.convert("P").convert("PA")))
    assert (out[:, :4] == 10).all() or mode == "PA"
    assert (out[:, 4:] == 255).all() or mode == "PA"


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_transparent_colour_is_white(mode):
    image = Image.new(mode, (8, 8), 0)
    out = decoded(SAME(open_image(saved(image, transparency=(0, 0, 0) if mode == "RGB" else 0))))
    assert (out == 255).all()


def test_16_bit_grey_is_scaled_not_clipped():
    wide = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    out = decoded(SAME(open_image(saved(Image.fromarray(wide)))))
    assert np.abs(out[..., 0] - wide / 257).max() <= 0.5


@pytest.mark.parametrize("mode", ["F", "LAB"])
def test_modes_without_a_rule_are_rejected(mode):
    with pytest.raises(Rejected) as e:
        SAME(Image.new(mode, (8, 8)))
    assert e.value.reason == "unsupported mode"


def test_the_middle_square_is_cut_with_the_odd_pixel_to_the_right():
    wide = noise(13, 8)
    out = decoded(Transform(size_px=8)(wide))
    assert np.array_equal(out, np.asarray(wide)[:, 2:10])
    assert np.array_equal(decoded(Transform(size_px=8)(noise(8, 11))), np.asarray(noise(8, 11))[1:9])


def test_box_halves_by_the_mean_of_four():
    image = noise(16, 16)
    mean = np.asarray(image).reshape(8, 2, 8, 2, 3).mean((1, 3))
    assert np.abs(decoded(Transform(size_px=8, filter="box")(image)) - mean).max() <= 1  # Pillow rounds twice


@pytest.mark.parametrize(
    "change",
    [{"size_px": 9}, {"crop": "none"}, {"filter": "box"}, {"filter": "bicubic"}, {"encoding": "jpg"}],
)
def test_every_setting_has_an_effect(change):
    def outcome(transform: Transform) -> bytes | str:
        try:
            return transform(noise(24, 20))
        except Rejected as e:
            return e.reason

    plain = Transform(size_px=8)
    assert outcome(plain.replace(**change)) != outcome(plain)


def test_jpg_is_stored_at_quality_95_without_chroma_subsampling():
    image = Image.open(io.BytesIO(SAME.replace(encoding="jpg")(noise())))
    assert image.format == "JPEG"
    assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3  # type: ignore[attr-defined]
    assert image.quantization == Image.open(saved(noise(), "JPEG", quality=95)).quantization  # type: ignore[attr-defined]


@pytest.mark.parametrize("field", ["crop", "filter", "encoding"])
def test_an_unknown_word_is_refused_with_the_known_ones(field):
    with pytest.raises(ValidationError, match=r"did you mean|known:"):
        Transform.model_validate({field: "wrong"})


@pytest.mark.parametrize("encoding", ["png", "jpg"])
def test_no_metadata_reaches_the_output(encoding):
    exif = Image.Exif()
    exif[0x010E], exif[0x8298] = "a secret", "a secret"
    source = open_image(saved(noise(), "JPEG", exif=exif, icc_profile=b"a secret", comment=b"a secret", dpi=(7, 7)))
    assert source.info["icc_profile"] == b"a secret"
    data = Transform(size_px=8, encoding=encoding)(source)
    assert b"secret" not in data
    assert not Image.open(io.BytesIO(data)).getexif()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(10))
def test_every_exif_orientation_comes_out_upright(format, orientation):
    upright = Image.new("RGB", (32, 16))
    upright.paste("white", (0, 0, 16, 8))  # the top left quarter
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(orientation)
    stored = upright if undo is None else upright.transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = np.asarray(open_image(saved(stored, format, exif=exif)).convert("L"))
    assert out.shape == (16, 32)
    assert np.array_equal(out > 128, np.asarray(upright.convert("L")) > 128)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not an image"),
        (b"\xff", "not an image"),
        (b"<html>Quota exceeded</html>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (saved(noise(64, 64)).getvalue()[:2000], "truncated"),
        (saved(noise(64, 64), "JPEG").getvalue()[:1500], "truncated"),
    ],
)
def test_bytes_that_are_no_whole_image_are_rejected(data, reason):
    with pytest.raises(Rejected) as e:
        open_image(io.BytesIO(data))
    assert e.value.reason == reason
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_decompression_bombs_are_rejected_before_they_unpack(monkeypatch):
    data = saved(noise(20, 20))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)  # 400 pixels: where Pillow only warns
    with pytest.raises(Rejected) as e:
        open_image(data)
    assert e.value.reason == "too large"
    text = PngImagePlugin.PngInfo()
    text.add_text("bomb", "0" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    monkeypatch.undo()
    with pytest.raises(Rejected) as e:
        open_image(saved(noise(), pnginfo=text))
    assert e.value.reason == "too large"


def test_nothing_is_enlarged_and_none_takes_squares_only():
    with pytest.raises(Rejected) as e:
        Transform(size_px=9)(noise(20, 8))
    assert (e.value.reason, e.value.detail.split(",")[0]) == ("too small", "20x8")
    with pytest.raises(Rejected) as e:
        SAME(noise(9, 8))
    assert e.value.reason == "not square"


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    out = decoded(SAME(open_image(saved(frames[0], "GIF", save_all=True, append_images=frames[1:]))))
    assert (out == (255, 0, 0)).all()


def test_damaged_real_files_are_taken_or_rejected_with_a_known_reason(real_images: Path):
    outcome = {}
    for file in sorted((real_images / "originals" / "nasty").iterdir()):
        try:
            image = decoded(Transform(size_px=32)(open_image(file)))
            assert image.shape == (32, 32, 3)
            outcome[file.name] = "taken"
        except Rejected as e:
            outcome[file.name] = e.reason
    assert set(outcome.values()) <= {"taken", *REASONS}
    expected = {
        "exif_typeerror.jpg": "taken",
        "hopper_bad_exif.jpg": "taken",
        "i_trns.png": "taken",
        "pil_sample_cmyk.jpg": "taken",
        "sugarshack.mpo": "taken",
        "transparent.gif": "taken",
        "truncated_image.png": "truncated",
        "truncated_jpeg.jpg": "truncated",
        "decompression_bomb.gif": "too large",
        "png_decompression_dos.png": "too large",
        "broken_data_stream.png": "unreadable",
        "LICENSE.MIT-CMU": "not an image",
        "padded_idat.png": "too small",
    }
    assert {name: outcome[name] for name in expected} == expected


def test_the_eight_orientations_of_one_real_picture_agree(real_images: Path):
    nasty = real_images / "originals" / "nasty"
    # the files carry their number as a caption, so a small difference remains
    turned = [np.asarray(open_image(nasty / f"hopper_orientation_{i}.jpg")).astype(int) for i in range(2, 9)]
    assert max(np.abs(t - turned[0]).mean() for t in turned) < 4
