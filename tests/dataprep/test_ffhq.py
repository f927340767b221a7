"""FFHQ as it lies on disks: real faces in its layout, 100 thumbnails and 5 of 1024 px, with true checksums."""

import hashlib
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataprep.rejected import Rejected
from dataprep.sources import Entries, Source, ffhq, open_source
from dataprep.sources.ffhq import Ffhq
from dataprep.sources.ffhq_json import JSON
from dataprep.transform import Transform
from dataprep.writer import prepare
from pipeline.errors import UserError

THUMBNAILS = [*range(45), *range(1000, 1045), *range(60000, 60010)]
FULL = [0, 1, 1000, 1001, 60000]
Facts = dict[str, dict]


def place(index: int) -> str:
    return f"{index // 1000 * 1000:05d}/{index:05d}.png"


@pytest.fixture(scope="session")
def native(real_images) -> Path:
    return real_images / "native_simulated" / "ffhq"


@pytest.fixture
def root(native, tmp_path) -> Path:
    """Thumbnails and JSON, writable."""
    out = tmp_path / "ffhq"
    shutil.copytree(native / "thumbnails128x128", out / "thumbnails128x128", copy_function=shutil.copyfile)
    shutil.copyfile(native / JSON, out / JSON)
    for folder in [out, *(p for p in out.rglob("*") if p.is_dir())]:
        folder.chmod(0o755)
    return out


@pytest.fixture
def edited(root) -> Callable[[Callable[[Facts], object]], Path]:
    """edited(f): the root after f has changed the JSON in place."""

    def edit(change: Callable[[Facts], object]) -> Path:
        facts = json.loads((root / JSON).read_text())
        change(facts)
        (root / JSON).write_text(json.dumps(facts))
        return root

    return edit


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def assert_same_faces(source: Source, entries: Entries, native: Path, expected: list[int] = THUMBNAILS) -> None:
    """The worker's pixels are those of the thumbnails, in the order of the index, without labels."""
    worker = pickle.loads(pickle.dumps(source))
    assert len(entries) == len(expected)
    assert {e.label for e in entries} == {-1}
    for entry, index in zip(entries, expected, strict=True):
        assert entry.refused is None
        assert np.array_equal(np.asarray(worker.read(entry)), pixels(native / "thumbnails128x128" / place(index)))


def reasons(source: Source, size_px: int = 128) -> dict[str, str]:
    """Name -> reason and detail of all that is not taken."""
    out = {}
    for entry in source.entries(size_px):
        try:
            if entry.refused:
                raise Rejected(*entry.refused)
            source.read(entry)
        except Rejected as e:
            out[entry.name] = f"{e.reason}: {e.detail}"
    return out


def said(source: Source) -> str:
    return "\n".join(source.notes)


# --- parts


def test_the_root_gives_the_1024s_and_says_what_else_lies_there(native):
    source = open_source("ffhq", native)
    entries = source.entries(128)
    assert [e.name for e in entries] == [place(i) for i in FULL]
    assert (source.crop, source.classes, {e.label for e in entries}) == ("none", (), {-1})
    assert reasons(source) == {}  # all checksums hold
    assert source.read(entries[3]).size == (1024, 1024)
    assert "taken: images1024x1024; also there: thumbnails128x128" in source.notes
    assert "5 images; all of FFHQ is 70000" in source.notes


def test_thumbnails_are_taken_if_they_are_all_there_is_and_large_enough(root, native):
    source = Ffhq(root)
    assert_same_faces(source, source.entries(128), native)
    assert [e.at for e in source.entries(64)][:2] == [23673, 16957]
    with pytest.raises(UserError, match=r"size=256.*128 px and nothing is enlarged.*--size 128.*images1024x1024"):
        source.entries(256)


def test_a_part_itself_may_be_given(native):
    source = Ffhq(native / "thumbnails128x128")
    entries = source.entries(32)
    assert [e.name for e in entries] == [place(i) for i in THUMBNAILS]
    assert_same_faces(source, entries, native)
    assert source.about(entries[0]) == {"index": 0, "category": "training", "license": "CC0 1.0 Universal"}
    assert source.about(entries[-1])["category"] == "validation"


def test_a_folder_of_a_thousand_asks_for_no_others(native):
    source = Ffhq(native / "thumbnails128x128" / "01000")
    assert_same_faces(source, source.entries(128), native, list(range(1000, 1045)))


@pytest.mark.parametrize("where", ["in-the-wild-images", "."])
def test_unaligned_faces_are_refused_with_advice(tmp_path, images, where):
    images("x.png").rename(tmp_path / "in-the-wild-images")
    with pytest.raises(UserError, match=r"not aligned.*images1024x1024") as e:
        Ffhq(tmp_path / where).entries(256)
    assert "\n" not in str(e.value)


def test_in_the_wild_images_beside_the_aligned_ones_are_left_alone(root, native):
    shutil.copytree(root / "thumbnails128x128", root / "in-the-wild-images")
    source = Ffhq(root)
    assert_same_faces(source, source.entries(128), native)
    assert "also there: in-the-wild-images" in said(source)


def test_one_face_twice_is_refused(root, tmp_path):
    shutil.copytree(root / "thumbnails128x128", root / "thumbnails128x128" / "copy")
    with pytest.raises(UserError, match=r"image 0 is there twice \('00000/00000.png' and 'copy/00000/00000.png'\)"):
        Ffhq(root).entries(128)


@pytest.mark.parametrize("what", [None, "missing", "an empty folder", "a text", "a cut zip"])
def test_a_path_without_faces_is_a_user_error_of_one_line(tmp_path, what):
    path = tmp_path / "x"
    if what == "an empty folder":
        path.mkdir()
    elif what != "missing":
        path.write_text("PK\3\4" if what == "a cut zip" else "text")
    with pytest.raises(UserError, match="PATH") as e:
        Ffhq(path if what else None).entries(128)
    assert "\n" not in str(e.value)


# --- splits and metadata


def test_splits_are_those_of_the_json(edited):
    path = edited(lambda facts: facts["3"].update(category="validation"))
    names = {s: [e.name for e in Ffhq(path, s).entries(128)] for s in ("training", "validation")}
    assert names["validation"] == [place(3), *(place(i) for i in range(60000, 60010))]
    assert len(names["training"]) == 89
    assert not set(names["training"]) & set(names["validation"])


def test_without_the_json_the_index_tells_the_split_and_a_note_says_so(root, native):
    (root / JSON).unlink()
    source = Ffhq(root, "validation")
    entries = source.entries(128)
    assert_same_faces(source, entries, native, list(range(60000, 60010)))
    assert source.about(entries[0]) == {"index": 60000, "category": "validation"}
    assert f"no {JSON} beside the images: checksums not checked, category by index" in source.notes


def test_an_unknown_split_is_refused(native):
    with pytest.raises(UserError, match=r"split='train'.*did you mean 'training'"):
        Ffhq(native, "train")


def test_a_split_without_images_is_a_user_error(native):
    with pytest.raises(UserError, match="no images of it"):
        Ffhq(native / "thumbnails128x128" / "00000", "validation").entries(128)


# --- checksums


def test_a_flipped_byte_is_found_and_named(root):
    path = root / "thumbnails128x128" / place(7)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # in the checksum of the last chunk, which says nothing of pixels
    path.write_bytes(data)
    assert list(found := reasons(Ffhq(root))) == [place(7)]
    published = json.loads((root / JSON).read_text())["7"]["thumbnail"]["file_md5"]
    assert found[place(7)] == f"checksum: file_md5 {hashlib.md5(data).hexdigest()}, published {published}"


def test_a_file_of_another_length_is_found_and_named(root):
    path = root / "thumbnails128x128" / place(1001)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-20])
    assert reasons(Ffhq(root)) == {place(1001): f"checksum: file_size {size - 20}, published {size}"}


def test_wrong_pixels_in_the_published_file_are_found_and_named(edited):
    path = edited(lambda facts: facts["60003"]["thumbnail"].update(pixel_md5="0" * 32))
    assert list(found := reasons(Ffhq(path))) == [place(60003)]
    assert found[place(60003)].startswith("checksum: pixel_md5 ")


def test_listed_images_of_the_part_that_are_not_there_are_counted_as_missing(root, native):
    for index in (5, 60004):
        (root / "thumbnails128x128" / place(index)).unlink()
    source = Ffhq(root)
    assert len(source.entries(128)) == 100
    assert reasons(source) == {place(i): f"missing: listed in {JSON}" for i in (5, 60004)}
    assert source.entries(128)[5].name == place(5)  # the others keep their numbers
    assert len(Ffhq(root, "training").entries(128)) == 90


def test_a_face_that_is_there_as_jpeg_is_neither_missing_nor_checked(root):
    path = root / "thumbnails128x128" / place(6)
    Image.open(path).save(path.with_suffix(".jpg"))
    path.unlink()
    source = Ffhq(root)
    assert source.entries(128)[6].name == "00000/00006.jpg"
    assert reasons(source) == {}
    assert "1 files are not PNG but a copy (JPEG: a lossy one): checksums not checked" in source.notes


def test_files_that_the_json_does_not_know_are_taken_and_counted(edited, native):
    path = edited(lambda facts: [facts.pop(i) for i in ("8", "9", "60000")])
    source = Ffhq(path)
    entries = source.entries(128)
    assert_same_faces(source, entries, native)
    assert f"3 files are not in {JSON}: taken, checksums not checked" in source.notes
    assert source.about(entries[90]) == {"index": 60000, "category": "validation"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "JSON"),
        ("{}", "no images"),
        ("[]", "no images"),
        ("[0]", "JSON"),
        ("{", "JSON"),
        ('{"0": 1}', "JSON"),
        ('{"0": {}}', "category"),
        ('{"0": {"category": 3}}', "3"),
        ('{"0": {"category": "x", "thumbnail": {"file_size": 1, "file_md5": "zz", "pixel_md5": ""}}}', "JSON"),
        ('{"0": {"category": "x", "thumbnail": {"file_size": 1, "file_md5": "00", "pixel_md5": "00"}}}', "no MD5"),
        ('{"0": {"category": "x", "thumbnail": {"file_size": "1"}}}', "JSON"),
        ('{"99999999999999999999": {"category": "training"}}', "JSON"),
        ("[" * 100_000, "RecursionError"),
        ("<!DOCTYPE html><html>Quota exceeded</html>", "Quota exceeded"),
        ("\ud800", "decode"),
    ],
)
def test_a_damaged_json_is_refused_in_one_line_and_not_passed_over(root, text, said):
    (root / JSON).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match=JSON) as e:
        Ffhq(root).entries(128)
    assert said in str(e.value)
    assert "\n" not in str(e.value)
    assert len(str(e.value)) < 500 + len(str(root))


def test_what_goes_to_workers_is_small_and_does_not_hold_the_json(root):
    entry = json.loads((root / JSON).read_text())["0"]
    entry["image"]["face_landmarks"] = [[1.5, 2.5]] * 68
    (root / JSON).write_text(json.dumps({str(i): entry for i in range(5000)}))
    source = Ffhq(root)
    assert len(source.entries(128)) == 5000 + 10
    assert len(pickle.dumps(source)) < 5000 * 60
    again = pickle.loads(pickle.dumps(source))
    (root / JSON).unlink()
    assert again.read(source.entries(128)[0]).size == (128, 128)


def test_count_in_is_count_out_and_rejected(root, tmp_path):
    (root / "thumbnails128x128" / place(3)).unlink()
    (root / "thumbnails128x128" / place(4)).write_bytes(b"")
    source = Ffhq(root)
    manifest = prepare(source, tmp_path / "out", Transform(size_px=32, crop=source.crop), on_error="skip")
    assert (manifest.count_in, manifest.count, manifest.rejected) == (100, 98, {"checksum": 1, "missing": 1})
    assert manifest.classes == ()


# --- other forms


def test_the_json_is_found_beside_a_link_to_the_images(native, tmp_path):
    (tmp_path / "thumbnails128x128").symlink_to(native / "thumbnails128x128")
    facts = json.loads((native / JSON).read_text())
    facts["2"]["thumbnail"]["pixel_md5"] = "0" * 32  # so that this file and not the one at the target is seen
    (tmp_path / JSON).write_text(json.dumps(facts))
    assert list(reasons(Ffhq(tmp_path / "thumbnails128x128"))) == [place(2)]


def test_a_flat_copy_gives_the_same_faces_in_the_same_order(native, tmp_path):
    for index in THUMBNAILS:
        shutil.copyfile(native / "thumbnails128x128" / place(index), tmp_path / f"{index:05d}.png")
    source = Ffhq(tmp_path)
    assert_same_faces(source, source.entries(128), native)
    shutil.copyfile(native / JSON, tmp_path / JSON)
    data = bytearray((tmp_path / "00004.png").read_bytes())
    data[-1] ^= 1
    (tmp_path / "00004.png").write_bytes(data)
    assert list(reasons(Ffhq(tmp_path))) == ["00004.png"]  # checked: the size says which part it is


def as_dataset_tool_writes(path: Path, faces: list[Path]) -> None:
    names = [f"{n // 1000:05d}/img{n:08d}.png" for n in range(len(faces))]
    with zipfile.ZipFile(path, "w") as z:
        for name, face in zip(names, faces, strict=True):
            with z.open(name, "w") as f:
                Image.fromarray(pixels(face)).save(f, "png", compress_level=0)
        z.writestr("dataset.json", json.dumps({"labels": [[n, i % 7] for i, n in enumerate(names)]}))


def test_an_nvlabs_zip_gives_the_same_faces_and_no_labels(native, tmp_path):
    path = tmp_path / "ffhq.zip"
    shutil.copyfile(native / JSON, tmp_path / JSON)
    as_dataset_tool_writes(path, [native / "thumbnails128x128" / place(i) for i in THUMBNAILS])
    source = Ffhq(path)
    entries = source.entries(128)
    assert_same_faces(source, entries, native)
    assert "dataset.json: labels are not read, FFHQ has none" in source.notes
    assert "numbered by dataset_tool.py" in said(source)  # not FFHQ's numbers: index 45 is not face 45
    assert source.about(entries[50]) == {}
    with pytest.raises(UserError, match=r"split='training'.*index"):
        Ffhq(path, "training").entries(128)


def test_an_nvlabs_zip_of_all_images_has_their_index_and_only_its_pixels_are_checked(native, tmp_path, monkeypatch):
    faces = [native / "thumbnails128x128" / place(i) for i in range(45)]
    monkeypatch.setattr(ffhq, "COUNT", 45)
    as_dataset_tool_writes(tmp_path / "ffhq.zip", [*faces[:30], faces[3], *faces[31:]])
    facts = json.loads((native / JSON).read_text())
    (tmp_path / JSON).write_text(json.dumps({str(i): facts[str(i)] for i in range(45)}))
    source = Ffhq(tmp_path / "ffhq.zip")
    assert source.about(source.entries(128)[17])["index"] == 17
    assert list(found := reasons(source)) == ["00000/img00000030.png"]
    assert found["00000/img00000030.png"].startswith("checksum: pixel_md5")


@pytest.mark.parametrize("inner", ["00000/", ""])
def test_zips_of_a_thousand_are_read_together_and_alone(native, tmp_path, inner):
    for thousand in ("00000", "01000", "60000"):
        with zipfile.ZipFile(tmp_path / f"{thousand}.zip", "w", zipfile.ZIP_DEFLATED) as z:
            for file in sorted((native / "thumbnails128x128" / thousand).iterdir()):
                z.write(file, f"{inner and thousand + '/'}{file.name}")
    shutil.copyfile(native / JSON, tmp_path / JSON)
    source = Ffhq(tmp_path)
    entries = source.entries(128)
    assert_same_faces(source, entries, native)
    assert entries[0].name == f"00000.zip/{inner}00000.png"
    assert "not checked" not in said(source)
    alone = Ffhq(tmp_path / "60000.zip")
    assert_same_faces(alone, alone.entries(128), native, list(range(60000, 60010)))


@pytest.mark.parametrize("name", ["thumbnails128x128.zip", "zips/thumbnails128x128.zip", "all.zip"])
def test_a_zip_of_a_part_or_of_the_root_is_read(native, tmp_path, name):
    (tmp_path / "zips").mkdir()
    shutil.copyfile(native / JSON, tmp_path / JSON)
    with zipfile.ZipFile(tmp_path / name, "w") as z:
        for index in THUMBNAILS:
            z.write(native / "thumbnails128x128" / place(index), f"ffhq/thumbnails128x128/{place(index)}")
        if name == "all.zip":
            for i in (3, 4):
                z.write(native / "thumbnails128x128" / place(i), f"ffhq/in-the-wild-images/{place(i)}")
            z.write(native / "thumbnails128x128" / place(9), "ffhq/ffhq-teaser.png")
    source = Ffhq(tmp_path / name if name == "all.zip" else tmp_path)
    assert_same_faces(source, source.entries(128), native)
    assert "taken: thumbnails128x128" in said(source)
    if name == "all.zip":
        assert "also there: in-the-wild-images, 1 images outside it" in said(source)


def test_a_lossy_copy_is_taken_without_checksums_and_said_to_be_one(native, tmp_path):
    for index in THUMBNAILS[:20]:
        face = Image.open(native / "thumbnails128x128" / place(index))
        face.resize((64, 64)).save(tmp_path / f"{index:05d}.jpg", quality=95)
    shutil.copyfile(native / JSON, tmp_path / JSON)
    source = Ffhq(tmp_path)
    entries = source.entries(64)
    assert [e.name for e in entries] == [f"{i:05d}.jpg" for i in THUMBNAILS[:20]]  # and nothing is missing
    assert reasons(source, 64) == {}
    assert "20 files are not PNG but a copy (JPEG: a lossy one): checksums not checked" in source.notes
    assert source.about(entries[4])["index"] == 4


def test_reduced_pngs_are_taken_without_checksums_and_said_to_be_so(native, tmp_path):
    folder = tmp_path / "images1024x1024" / "00000"  # the name is not the size
    folder.mkdir(parents=True)
    for index in range(3):
        Image.open(native / "thumbnails128x128" / place(index)).resize((32, 32)).save(folder / f"{index:05d}.png")
    shutil.copyfile(native / JSON, tmp_path / JSON)
    source = Ffhq(tmp_path)
    assert reasons(source, 32) == {}
    assert "PNGs not of the published 1024 or 128 px: checksums not checked" in source.notes


def test_files_without_a_number_are_taken_last_and_counted(native, tmp_path):
    for name in ("2.png", "10.png", "1 face.png", "b.png"):
        shutil.copyfile(native / "thumbnails128x128" / place(0), tmp_path / name)
    source = Ffhq(tmp_path)
    assert [e.name for e in source.entries(8)] == ["2.png", "10.png", "1 face.png", "b.png"]
    assert "2 files without a number in the name: index, category, checksums unknown" in source.notes
    assert source.about(source.entries(8)[2]) == {}
    with pytest.raises(UserError, match=r"'1 face\.png' is unknown"):
        Ffhq(tmp_path, "training").entries(8)


def test_tfrecords_in_a_zip_are_refused_with_advice(tmp_path):
    with zipfile.ZipFile(tmp_path / "tfrecords.zip", "w") as z:
        z.writestr("ffhq/ffhq-r05.tfrecords", b"x")
    for path in (tmp_path, tmp_path / "tfrecords.zip"):
        with pytest.raises(UserError, match="unpack it"):
            Ffhq(path).entries(32)
