"""Which images a source offers, under which names and labels, against folders made by hand."""

import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dataprep.rejected import Rejected
from dataprep.sources import SOURCES, open_source
from dataprep.sources import photos as photos_module
from dataprep.sources.folder import Folder
from dataprep.sources.photos import PHOTOS, Photos, windows
from dataprep.transform import Transform
from dataprep.writer import prepare
from pipeline.errors import UserError


def names(folder: Path) -> list[str]:
    return [e.name for e in Folder(folder).entries(8)]


def test_first_level_folders_are_classes_in_sorted_order(images):
    source = Folder(images("b/1.png", "a/2.png", "a/10.png"))
    assert source.classes == ("a", "b")
    assert [(e.name, e.label) for e in source.entries(8)] == [("a/10.png", 0), ("a/2.png", 0), ("b/1.png", 1)]


@pytest.mark.parametrize("tree", [("a.png", "b.png"), ("a/1.png", "2.png"), ("a/1.png", "a/a/1.png")])
def test_flat_and_mixed_depths_have_no_classes(images, tree):
    source = Folder(images(*tree))
    assert source.classes == ()
    assert {e.label for e in source.entries(8)} == {-1}


def test_every_image_extension_counts_whatever_its_case(images):
    root = images("a.JPG", "b.jpeg", "c.Png", "d.webp", "e.bmp", "f.TIFF", "g.gif", "h.tif")
    (root / "i.jpe").write_bytes((root / "a.JPG").read_bytes())
    (root / "j.jfif").write_bytes(b"")
    assert names(root) == ["a.JPG", "b.jpeg", "c.Png", "d.webp", "e.bmp", "f.TIFF", "g.gif", "h.tif", "i.jpe", "j.jfif"]


def test_other_files_are_entries_if_they_begin_as_images_and_are_noted_if_not(images):
    root = images("b.png", "c.webp")
    (root / "b.png").rename(root / "b")
    (root / "c.webp").rename(root / "c.orig")
    (root / "a.avif").write_bytes(b"\0\0\0\x1cftypavif\0\0\0\0")
    for other in ("README.md", "list.csv", "empty"):
        (root / other).write_text("" if other == "empty" else "text of more than sixteen bytes")
    source = Folder(root)
    assert names(root) == ["a.avif", "b", "c.orig"]
    assert source.read(source.entries(8)[1]).size == (24, 24)
    assert source.notes == ("passed over: 3 other files, the first is 'README.md'",)


def test_names_equal_but_for_case_are_two_images(images):
    root = images("a.png", "A.png", "d/x.jpg", "D/x.jpg")
    assert names(root) == ["A.png", "D/x.jpg", "a.png", "d/x.jpg"]


def test_litter_of_desktops_is_passed_over(images):
    root = images("a.png", "._a.png", ".hidden/b.png", "__MACOSX/c.png")
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store"):
        (root / name).write_bytes(b"litter")
    assert names(root) == ["a.png"]


def test_names_of_any_bytes_are_offered_in_byte_order(images):
    root = images("z.png", "\u00e9.png", "a.b.c.png", "with space\n.png")
    os.rename(os.fsencode(root) + b"/z.png", os.fsencode(root) + b"/\xff.png")
    source = Folder(root)
    assert [e.name for e in source.entries(8)] == ["a.b.c.png", "with space\n.png", "\u00e9.png", "\\xff.png"]
    assert all(source.read(e).size == (24, 24) for e in source.entries(8))


def test_links_to_folders_are_not_followed_and_links_to_nothing_are_rejected_by_name(images, tmp_path):
    root = images("a.png")
    (root / "loop").symlink_to(root)
    (root / "b.png").symlink_to(root / "a.png")
    (root / "gone.png").symlink_to(tmp_path / "nothing")
    os.mkfifo(root / "pipe.png")
    source = Folder(root)
    assert names(root) == ["a.png", "b.png", "gone.png", "pipe.png"]
    for entry, reason in zip(source.entries(8)[2:], ("missing", "unreadable"), strict=True):
        with pytest.raises(Rejected, match=reason):
            source.read(entry)


def test_the_content_decides_the_format_not_the_name(images):
    root = images("a.png")
    (root / "a.png").rename(root / "a.jpg")
    source = Folder(root)
    assert source.read(source.entries(8)[0]).size == (24, 24)


@pytest.mark.parametrize("what", ["missing", "empty", "without images", "a file", None])
def test_a_path_without_images_is_a_user_error_of_one_line(tmp_path, what):
    path = tmp_path / "x"
    if what in ("empty", "without images"):
        path.mkdir()
    if what in ("without images", "a file"):
        (path / "notes.txt" if path.is_dir() else path).write_text("text")
    said = r"it holds 1 other files, the first is 'notes.txt'" if what == "without images" else "PATH.*folder|no images"
    with pytest.raises(UserError, match=said) as e:
        Folder(path if what else None).entries(8)
    assert "\n" not in str(e.value)


def test_sources_pickle_small_and_an_unknown_name_gets_a_hint(images):
    source = Folder(images(*[f"{i}.png" for i in range(50)]))
    source.entries(8)
    assert len(pickle.dumps(source)) < 500
    assert all(SOURCES[n].name == n for n in SOURCES)  # type: ignore[attr-defined]
    assert type(open_source("folder", images("a.png"))) is Folder
    with pytest.raises(UserError, match="did you mean 'photos'"):
        open_source("photo")


def zipped(root: Path) -> Path:
    """The folder as a zip, out of order, half of it deflated, with entries for its folders."""
    path = root.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for i, file in enumerate(sorted(root.rglob("*"), reverse=True)):
            archive.write(file, file.relative_to(root), zipfile.ZIP_DEFLATED if i % 2 else zipfile.ZIP_STORED)
    return path


@pytest.mark.parametrize("labels", [None, [["a/1.png", 1], ["b/\u00e9.png", 0], ["b/2.JPG", 1]]])
def test_a_zip_gives_the_shards_of_the_unpacked_folder(images, tmp_path, contents, labels):
    root = images("b/\u00e9.png", "a/1.png", "b/2.JPG")
    (root / ".hidden.png").write_bytes(b"x")
    if labels:
        (root / "dataset.json").write_text(json.dumps({"labels": labels}))
    for path, out in ((root, "from_folder"), (zipped(root), "from_zip")):
        manifest = prepare(Folder(path), tmp_path / out, Transform(size_px=16))
        assert (manifest.count, manifest.classes) == (3, ("0", "1") if labels else ("a", "b"))
    one, other = contents(tmp_path / "from_folder"), contents(tmp_path / "from_zip")
    del one["manifest.json"], other["manifest.json"]  # the plan in it covers sizes or CRCs
    assert one == other


def test_hands_from_their_folder_and_from_a_zip_are_the_same_entries(real_images, tmp_path):
    root = real_images / "originals" / "hands"
    with zipfile.ZipFile(tmp_path / "hands.zip", "w") as archive:
        for file in root.rglob("*"):
            archive.write(file, file.relative_to(root))
    folder, archive = Folder(root), Folder(tmp_path / "hands.zip")
    entries = [(e.key, e.label) for e in folder.entries(64)]
    assert entries == [(e.key, e.label) for e in archive.entries(64)]
    assert folder.classes == archive.classes == tuple("0123456789")
    assert len(entries) == 251


def table(root: Path, content) -> Folder:
    (root / "dataset.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return Folder(root)


def test_dataset_json_decides_the_labels(images):
    root = images("00000/img0.png", "00000/img1.png", "x.png")
    source = table(root, {"labels": [["x.png", 3], ["00000/img1.png", 0], ["00000\\img0.png", 1]]})
    assert source.classes == ("0", "1", "2", "3")
    assert [(e.name, e.label) for e in source.entries(8)] == [
        ("00000/img0.png", 1), ("00000/img1.png", 0), ("x.png", 3)
    ]  # fmt: skip
    onehot = table(
        root, {"labels": [["x.png", [0, 1, 0]], ["00000/img0.png", [1, 0, 0]], ["00000/img1.png", [1.0, 0, 0]]]}
    )
    assert onehot.classes == ("0", "1", "2")
    assert [e.label for e in onehot.entries(8)] == [0, 0, 1]


def test_null_labels_are_none_and_a_json_without_labels_is_noted(images):
    root = images("a/1.png", "b/2.png")
    source = table(root, {"labels": None})
    assert (source.classes, [e.label for e in source.entries(8)], source.notes) == ((), [-1, -1], ())
    other = table(root, {"title": "mine"})
    assert other.classes == ("a", "b")
    assert other.notes == ("passed over: dataset.json, which has no 'labels'",)


def test_a_labelled_file_that_is_not_there_is_missing(images):
    source = table(images("b.png"), {"labels": [["b.png", 0], ["c.png", 2], ["a.png", 1]]})
    entries = source.entries(8)
    assert [(e.name, e.label, e.refused and e.refused.reason) for e in entries] == [
        ("a.png", 1, "missing"), ("b.png", 0, None), ("c.png", 2, "missing")
    ]  # fmt: skip
    assert source.classes == ("0", "1", "2")


def test_a_labelled_file_that_is_no_image_is_still_an_entry(images):
    root = images("b.png")
    (root / "a.bin").write_text("no image")
    source = table(root, {"labels": [["b.png", 0], ["a.bin", 0]]})
    assert [(e.name, e.refused) for e in source.entries(8)] == [("a.bin", None), ("b.png", None)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"labels": [["b.png", 0]]}, "no label to 2 of 3 images, the first is 'a.png'"),
        ({"labels": [["a.png", [0.1, 0.7]]]}, r"'a.png' is \[0.1, 0.7\]; supported are class numbers"),
        ({"labels": [["a.png", [0, 1, 1]]]}, "one-hot"),
        ({"labels": [["a.png", []]]}, "one-hot"),
        ({"labels": [["a.png", -1]]}, "class numbers from 0"),
        ({"labels": [["a.png", True]]}, "class numbers from 0"),
        ({"labels": [["a.png", 1.0]]}, "class numbers from 0"),
        ({"labels": [["a.png", 10**9]]}, "class numbers from 0"),
        ({"labels": [["a.png", 0], ["b.png", [1, 0]], ["c.png", 0]]}, "mixes class numbers and lists"),
        ({"labels": [["a.png", [1]], ["b.png", [1, 0]], ["c.png", [1]]]}, "lists of several lengths"),
        ({"labels": [["a.png", 0], ["a.png", 0]]}, "lists 'a.png' twice"),
        ({"labels": [["a.png", 0, 1]]}, r"row 0 of 'labels' is not \[file, label\]"),
        ({"labels": {"a.png": 0}}, "must be null or a list"),
        ({"labels": []}, "must be null or a list"),
        ({"labels": [["\ud800.png", 0]]}, "no label to 3 of 3"),
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_a_dataset_json_that_is_off_is_a_user_error_of_one_line(images, content, said):
    source = table(images("a.png", "b.png", "c.png"), content)
    with pytest.raises(UserError, match=said) as e:
        source.entries(8)
    assert "\n" not in str(e.value)
    assert "dataset.json" in str(e.value)


def test_photos_are_a_thousand_real_crops_of_ten_classes():
    source = Photos()
    entries = source.entries(64)
    assert 1000 <= len(entries) <= 3000
    assert 300 <= len(source.entries(256)) <= 1000
    assert {source.classes[e.label] for e in entries} == set(PHOTOS)
    assert len({e.name for e in entries}) == len(entries)
    for entry in entries[::97]:
        image = source.read(entry)
        assert image.mode == "RGB"
        assert image.width == image.height >= 64
    first = {e.label: source.read(e) for e in reversed(source.entries(256))}
    assert all(np.asarray(i).std() > 10 for i in first.values()), "a blank picture"
    assert all(np.ptp(np.asarray(i).astype(int), axis=2).max() > 30 for i in first.values()), "a grey picture"


def test_windows_stay_inside_touch_the_borders_and_are_never_enlarged():
    for width, height, size_px in [(640, 427, 64), (300, 451, 150), (64, 64, 64), (65, 64, 64)]:
        found = windows(width, height, size_px)
        assert len(set(found)) == len(found)
        assert all(side >= size_px and x >= 0 and y >= 0 for x, y, side in found)
        assert max(x + side for x, _, side in found) == width
        assert max(y + side for _, y, side in found) == height
    assert windows(63, 100, 64) == []


def test_photos_do_not_import_their_packages():
    code = "import sys; from dataprep.sources import Photos; Photos().entries(64); print(sorted(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"skimage", "sklearn", "torch", "jaxtyping"} & set(eval(result.stdout))


def test_a_missing_package_is_named_with_its_pip_command(monkeypatch):
    photos_module.photograph.cache_clear()
    monkeypatch.setattr(photos_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install scikit-image"):
        Photos().entries(64)


def test_a_size_above_every_photograph_is_refused():
    with pytest.raises(UserError, match="size=2000"):
        Photos().entries(2000)
