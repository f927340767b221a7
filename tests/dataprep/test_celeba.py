"""CelebA as users have it, made from 100 pictures with known lists: attribute j of image i is 1 if 5 divides 7i+3j."""

import io
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataprep.sources.celeba import CelebA, read_list
from dataprep.transform import Transform
from dataprep.writer import prepare
from pipeline.errors import UserError

ATTR, PARTITION, IDENTITY = "list_attr_celeba.txt", "list_eval_partition.txt", "identity_CelebA.txt"
LANDMARKS = "list_landmarks_align_celeba.txt"
NAMES = [f"{i:06d}.jpg" for i in range(1, 101)]


@pytest.fixture
def home(real_images: Path, tmp_path: Path) -> Path:
    """A folder with the zip and the lists, free to be changed."""
    return Path(shutil.copytree(real_images / "native_simulated" / "celeba", tmp_path / "up" / "celeba"))


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """img_align_celeba/ with images 1 to 4 and a partition list; quick to change."""
    folder = tmp_path / "up" / "few" / "img_align_celeba"
    folder.mkdir(parents=True)
    for i in range(1, 5):
        Image.new("RGB", (178, 218), (i, 0, 0)).save(folder / f"{i:06d}.jpg")
    (folder.parent / PARTITION).write_text("000001.jpg 0\n000002.jpg 1\n000003.jpg 2\n000004.jpg 0\n")
    return folder.parent


def listing(source: CelebA) -> list[tuple[str, str | None]]:
    return [(e.name, e.refused and e.refused.reason) for e in source.entries(64)]


def unpack(home: Path, folder: Path) -> Path:
    folder.mkdir(parents=True)
    with zipfile.ZipFile(home / "img_align_celeba.zip") as archive:
        for name in NAMES:
            (folder / name).write_bytes(archive.read(f"img_align_celeba/{name}"))
    return folder


def test_the_zip_and_its_lists_give_every_image_in_the_order_of_its_number(home):
    source = CelebA(home)
    assert listing(source) == [(n, None) for n in NAMES]
    assert (source.classes, source.crop) == ((), "pggan")
    assert all(source.read(e).size == (178, 218) for e in source.entries(64)[::33])


@pytest.mark.parametrize(("split", "first", "last"), [("train", 1, 80), ("val", 81, 90), ("test", 91, 100)])
def test_splits_are_those_of_the_partition_list(home, split, first, last):
    source = CelebA(home, split)
    assert [e.name for e in source.entries(64)] == NAMES[first - 1 : last]
    assert {source.about(e)["partition"] for e in source.entries(64)} == {split}


def test_about_says_what_the_lists_say(home):
    source = pickle.loads(pickle.dumps(CelebA(home)))
    for i, entry in enumerate(CelebA(home).entries(64), 1):
        about = source.about(entry)
        assert list(about["attributes"].values()) == [1 if (7 * i + 3 * j) % 5 == 0 else -1 for j in range(40)]
        assert list(about["attributes"])[::39] == ["5_o_Clock_Shadow", "Young"]
        assert about["identity"] == int((home / IDENTITY).read_text().split()[2 * i - 1])
        assert set(about) == {"attributes", "identity", "partition", "landmarks"}
        assert all(type(v) is int for v in (*about["attributes"].values(), about["identity"]))
    assert about["landmarks"]["lefteye_x"] == int((home / LANDMARKS).read_text().split()[-10])
    for name in (ATTR, LANDMARKS, IDENTITY):
        (home / name).unlink()
    assert CelebA(home).about(entry) == {"partition": "test"}


def test_a_source_pickles_small_and_parses_nothing_to_read_an_image(home):
    source = CelebA(home, "val")
    entries = source.entries(64)
    assert len(pickle.dumps(source)) < 500
    worker = pickle.loads(pickle.dumps(source))
    assert worker.read(entries[0]).size == (178, 218)
    assert not {"_lists", "_listing"} & vars(worker).keys()


def layouts(home: Path, kind: str) -> Path:
    """The PATH to give for one way in which people have the data."""
    images, root = home / "img_align_celeba.zip", home.parent / "other"
    if kind == "the zip":
        return images
    if kind == "the zip with Img, Anno and Eval":
        for name, sub in [(images.name, "Img"), (ATTR, "Anno"), (IDENTITY, "Anno"), (LANDMARKS, "Anno")]:
            (home / sub).mkdir(exist_ok=True)
            (home / name).rename(home / sub / name)
        (home / "Eval").mkdir()
        (home / PARTITION).rename(home / "Eval" / PARTITION)
        return home
    if kind == "the zip in Img":
        return layouts(home, "the zip with Img, Anno and Eval") / "Img" / images.name
    if kind == "Kaggle's archive":
        nested = csv(layouts(home, "Kaggle's nested folder"))
        shutil.make_archive(str(home.parent / "archive"), "zip", nested)
        return home.parent / "archive.zip"
    inside = "img_align_celeba/img_align_celeba" if kind.startswith("Kaggle's") else "img_align_celeba"
    unpack(home, root / inside)
    for name in (ATTR, PARTITION, IDENTITY, LANDMARKS):
        shutil.copy(home / name, root)
    return {"the folder of images": root / inside, "Kaggle's inner folder": root / inside}.get(kind, root)


def csv(root: Path) -> Path:
    """Lists in Kaggle's form."""
    for name, columns in ((ATTR, None), (PARTITION, "partition"), (IDENTITY, "identity"), (LANDMARKS, None)):
        lines = (root / name).read_text().splitlines()
        header = columns or ",".join(lines[1].split())
        rows = [",".join(line.split()) for line in lines[0 if columns else 2 :]]
        (root / name).with_suffix(".csv").write_text("\r\n".join([f"image_id,{header}", *rows]) + "\r\n")
        (root / name).unlink()
    return root


@pytest.mark.parametrize(
    "kind",
    [
        "the zip",
        "the zip with Img, Anno and Eval",
        "the zip in Img",
        "the folder that holds a folder",
        "the folder of images",
        "Kaggle's nested folder",
        "Kaggle's inner folder",
        "Kaggle's archive",
    ],
)
def test_every_layout_gives_the_same_entries_and_the_same_metadata(home, kind):
    plain = CelebA(home, "test")
    expected = [(e.name, plain.about(e), plain.read(e).tobytes()) for e in plain.entries(64)]
    source = CelebA(layouts(home, kind), "test")
    assert [(e.name, source.about(e), source.read(e).tobytes()) for e in source.entries(64)] == expected


def test_csv_lists_are_read_as_the_text_ones_and_have_no_published_sum(home):
    text = CelebA(home)
    expected = [text.about(e) for e in text.entries(64)]
    source = CelebA(csv(home))
    assert [source.about(e) for e in source.entries(64)] == expected
    assert source.notes == ("100 images; all of CelebA are 202599",)


def test_the_png_copy_has_its_own_names_and_the_rows_of_the_jpegs(home):
    jpeg = CelebA(home)
    (home / "img_align_celeba_png").mkdir()
    for entry in jpeg.entries(64)[:99]:
        jpeg.read(entry).save(home / "img_align_celeba_png" / entry.name.replace("jpg", "png"))
    both = CelebA(home)
    both.entries(64)
    assert "img_align_celeba.zip is read, not img_align_celeba_png" in " ".join(both.notes)
    (home / "img_align_celeba.zip").unlink()
    source = CelebA(home, "test")
    assert listing(source) == [(f"{i:06d}.png", None if i < 100 else "missing") for i in range(91, 101)]
    for a, b in zip(source.entries(64)[:-1], jpeg.entries(64)[90:], strict=False):
        assert source.about(a) == jpeg.about(b)
        assert np.array_equal(np.asarray(source.read(a)), np.asarray(jpeg.read(b)))


def test_a_row_without_a_file_is_missing_and_a_file_without_a_row_is_kept_with_a_note(few):
    (few / "img_align_celeba" / "000002.jpg").unlink()
    Image.new("RGB", (178, 218)).save(few / "img_align_celeba" / "000009.jpg")
    source = CelebA(few)
    kept = [f"00000{i}.jpg" for i in (1, 3, 4, 9)]
    assert listing(source) == sorted([("000002.jpg", "missing"), *[(n, None) for n in kept]])
    assert "1 images have no row in the lists and are kept; the first is '000009.jpg'" in source.notes
    source = CelebA(few, "train")
    assert listing(source) == [("000001.jpg", None), ("000004.jpg", None)]
    assert "1 images have no row in list_eval_partition and are left out; the first is '000009.jpg'" in source.notes
    assert listing(CelebA(few, "val")) == [("000002.jpg", "missing")]


def test_rows_of_the_attribute_list_alone_count_too(few):
    (few / ATTR).write_text("2\nBald \n000001.jpg -1\n000007.jpg  1\n\n")
    assert ("000007.jpg", "missing") in listing(CelebA(few))
    assert CelebA(few).about(CelebA(few).entries(64)[0]) == {"attributes": {"Bald": -1}, "partition": "train"}


def test_no_lists_no_metadata_and_a_split_names_the_list_it_needs(few):
    (few / PARTITION).unlink()
    source = CelebA(few)
    assert len(source.entries(64)) == 4
    assert source.about(source.entries(64)[0]) == {}
    with pytest.raises(UserError, match=r"split='val': needs list_eval_partition\.txt or \.csv"):
        CelebA(few, "val").entries(64)
    with pytest.raises(UserError, match="did you mean 'val'"):
        CelebA(few, "valid")


LINES = ["000001.jpg 0", "000002.jpg 1", "000003.jpg 2", "000004.jpg 0"]


FORMS = {
    "CRLF": "\r\n".join(LINES),
    "BOM": "\ufeff" + "\n".join(LINES),
    "blank lines": "\n\n".join(LINES) + "\n \n\n",
    "another order": "\n".join(reversed(LINES)),
    "runs of blanks": "  \n".join(line.replace(" ", "  \t ") for line in LINES),
    "a header": "image_id,partition\n" + "\n".join(LINES),
}


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_the_form_of_a_list_does_not_matter(few, text):
    (few / PARTITION).write_bytes(text.encode())
    source = CelebA(few)
    assert [source.about(e)["partition"] for e in source.entries(64)] == ["train", "val", "test", "train"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("000001.jpg 0\n000002.jpg 3\n", r"line 2: value '3', allowed are 0, 1, 2"),
        ("000001.jpg 0\n000002.jpg\n", r"line 2: 0 values, not 1"),
        ("000001.jpg 0 0\n", r"line 1: 2 values, not 1"),
        ("000001.jpg 0\n\n<br>\n", r"line 3: '<br>' is no row"),
        ("000001.jpg 0\n000001.png 0\n", "two rows for image 000001"),
        (f"{'0' * 300}.jpg 0\n", "a file name of 304 bytes"),
        ("", "has no rows"),
        ("text\n", "has no rows"),
        ("<!DOCTYPE html><html><title>Google Drive - Quota exceeded</title>", "Quota exceeded.*download it again"),
    ],
)
@pytest.mark.parametrize("split", [None, "train"])
def test_a_damaged_list_is_a_user_error_that_names_file_and_line(few, text, said, split):
    (few / PARTITION).write_text(text)
    with pytest.raises(UserError, match=said) as e:
        CelebA(few, split).entries(64)
    assert "\n" not in str(e.value)
    assert PARTITION in str(e.value)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("list_attr_celeba", "1\nBald Male\n000001.jpg -1 2\n", "line 3: value '2', allowed are -1, 1"),
        ("list_attr_celeba", "000001.jpg -1 1\n", "line 1: no line of column names"),
        ("list_attr_celeba", "1\nBald Male\n000001.jpg -1\n", "line 3: 1 values, not 2"),
        ("identity_CelebA", "000001.jpg x\n", "line 1: not all of 'x' are whole numbers"),
        ("identity_CelebA", "000001.jpg 99999999999\n", "whole numbers"),
    ],
)
def test_values_that_no_list_has_are_refused(name, text, said):
    with pytest.raises(UserError, match=said):
        read_list(name, f"{name}.txt", text.encode())


def test_a_list_cut_short_and_one_of_other_bytes_are_noted_and_read(few):
    (few / ATTR).write_text("202599\nBald\n000001.jpg -1\n")
    source = CelebA(few)
    assert len(source.entries(64)) == 4
    assert source.notes == (
        f"{few / ATTR} says 202599 images and has 1 rows",
        f"{few / ATTR}: not the published bytes (MD5)",
        f"{few / PARTITION}: not the published bytes (MD5)",
        "4 images; all of CelebA are 202599",
    )


def test_lists_of_the_whole_set_are_small_in_memory():
    names = " ".join(f"a{j}" for j in range(40))
    rows = "".join(f"{i:06d}.jpg {' '.join(['-1'] * 40)}\n" for i in range(20_000, 0, -1))
    table = read_list("list_attr_celeba", "x.csv", f"20000\n{names}\n{rows}".encode())
    assert table.stems.nbytes + table.values.nbytes == 20_000 * (6 + 4 * 40)
    assert table.of(b"000017") == {f"a{j}": -1 for j in range(40)}
    assert table.of(b"0") is table.of(b"020001") is table.of(b"99") is None


def test_several_folders_of_images_or_two_files_of_one_number_are_refused(few):
    images = few / "img_align_celeba"
    shutil.copy(images / "000001.jpg", images / "000001.png")
    with pytest.raises(UserError, match=r"holds 000001\.jpg and 000001\.png; keep one"):
        CelebA(few).entries(64)
    (images / "000001.png").unlink()
    (few / "img_celeba").mkdir()
    images.rename(few / "img_aligned")
    shutil.copy(few / "img_aligned" / "000001.jpg", few / "img_celeba")
    with pytest.raises(UserError, match=r"several folders \(img_aligned/ and img_celeba\); give one"):
        CelebA(few).entries(64)
    assert len(CelebA(few / "img_aligned", "train").entries(64)) == 2


@pytest.mark.parametrize("content", [b"<html>Quota exceeded</html>", b"", b"PK\3\4 cut", None])
def test_a_page_or_a_cut_zip_in_place_of_the_images_is_refused_with_advice(home, content):
    (home / "img_align_celeba.zip").unlink()
    if content is not None:
        (home / "img_align_celeba.zip").write_bytes(content)
    said = "no images.*unpack img_align_celeba_png.7z" if content is None else "download|empty file"
    with pytest.raises(UserError, match=said) as e:
        CelebA(home).entries(64)
    assert "\n" not in str(e.value)


def test_shards_from_the_zip_and_from_the_folder_are_the_same_bytes(home, tmp_path, contents):
    root = layouts(home, "Kaggle's nested folder")
    transform = Transform(size_px=64, crop=CelebA.crop, encoding="jpg")
    for path, out, workers in ((home, "one", 1), (root, "two", 2)):
        prepare(CelebA(path, "val"), tmp_path / out, transform, workers=workers, shard_size=6)
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    del one["manifest.json"], two["manifest.json"]
    assert one == two
    assert len(one) == 3


def test_a_truncated_image_of_the_zip_is_rejected_by_name(home, tmp_path):
    with zipfile.ZipFile(home / "img_align_celeba.zip") as archive:
        data = {n: archive.read(f"img_align_celeba/{n}") for n in NAMES}
    with zipfile.ZipFile(home / "img_align_celeba.zip", "w") as archive:
        for n in NAMES:
            archive.writestr(f"img_align_celeba/{n}", data[n][: 4000 if n == "000085.jpg" else None])
    Image.open(io.BytesIO(data["000085.jpg"])).load()
    manifest = prepare(CelebA(home, "val"), tmp_path / "set", Transform(size_px=64), on_error="skip")
    assert (manifest.count_in, manifest.count, manifest.rejected) == (10, 9, {"truncated": 1})
