"""Which images a source offers, under which names and labels, against folders made by hand."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dataprep.sources import SOURCES, open_source
from dataprep.sources import photos as photos_module
from dataprep.sources.folder import Folder
from dataprep.sources.photos import PHOTOS, Photos, windows
from dataprep.transform import Rejected
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
    (root / "notes.txt").write_text("not an image")
    assert names(root) == ["a.JPG", "b.jpeg", "c.Png", "d.webp", "e.bmp", "f.TIFF", "g.gif", "h.tif", "i.jpe"]


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
    assert names(root) == ["a.png", "b.png", "gone.png"]
    with pytest.raises(Rejected, match="unreadable"):
        source.read(source.entries(8)[2])


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
    with pytest.raises(UserError, match=r"PATH.*folder|PATH.*no images") as e:
        Folder(path if what else None).entries(8)
    assert "\n" not in str(e.value)


def test_sources_pickle_small_and_an_unknown_name_gets_a_hint(images):
    source = Folder(images(*[f"{i}.png" for i in range(50)]))
    source.entries(8)
    assert len(pickle.dumps(source)) < 500
    assert {type(open_source(n, images("a.png"))) for n in SOURCES} == {Folder, Photos}
    with pytest.raises(UserError, match="did you mean 'photos'"):
        open_source("photo")


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
    photos_module._photo.cache_clear()
    monkeypatch.setattr(photos_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install scikit-image"):
        Photos().entries(64)


def test_a_size_above_every_photograph_is_refused():
    with pytest.raises(UserError, match="size=2000"):
        Photos().entries(2000)
