"""Labels, signers and copies of hand-sign data sets in the layouts that users have."""

import pickle
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataprep.sources.asl import Asl
from dataprep.transform import Transform
from dataprep.writer import prepare
from pipeline.errors import UserError

SIGNS = tuple("0123456789abcdefghijklmnopqrstuvwxyz")


def massey(signer: int, sign: str, lighting: str = "bot", repetition: int = 1, suffix: str = "jpeg") -> str:
    return f"hand{signer}_{sign}_{lighting}_seg_{repetition}_cropped.{suffix}"


def labels(source: Asl) -> dict[str, str]:
    """Class name of each entry that is not refused."""
    return {e.name: source.classes[e.label] for e in source.entries(8) if not e.refused}


def refused(source: Asl) -> dict[str, tuple[str, str]]:
    return {e.name: tuple(e.refused) for e in source.entries(8) if e.refused}


def refusal(path: Path | None, split: str | None = None) -> str:
    with pytest.raises(UserError) as e:
        Asl(path, split).entries(8)
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.fixture(scope="module")
def part1(real_images: Path) -> Path:
    return real_images / "native_simulated" / "asl" / "handgesturedataset_part1.zip"


def test_the_massey_zip_gives_labels_from_names_and_its_signer_lighting_and_repetition(part1):
    source = Asl(part1)
    entries = source.entries(8)
    assert len(entries) == 250
    assert source.classes == SIGNS
    assert Counter(e.label for e in entries) == dict.fromkeys(range(10), 25)
    assert all(e.name.split("_")[1] == source.classes[e.label] for e in entries)
    assert {e.refused for e in entries} == {None}
    assert source.about(entries[0]) == {"signer": "hand1", "lighting": "bot", "repetition": 1}
    assert {tuple(source.about(e).values()) for e in entries} == {
        ("hand1", lighting, n) for lighting in ("bot", "dif", "left", "right", "top") for n in range(1, 6)
    }
    assert {source.read(e).size for e in entries[::25]} == {(100, 100)}
    assert source.notes == (
        "read as Massey's 36 signs",
        "images by signer: hand1 250",
        f"no images of 26 of 36 classes: {' '.join(SIGNS[10:])}",
    )


def test_a_zip_its_folder_and_the_unpacked_files_agree_on_names_labels_and_pixels(part1, tmp_path):
    with zipfile.ZipFile(part1) as z:
        z.extractall(tmp_path / "flat")
    shutil.copyfile(part1, tmp_path / "part5.ZIP")
    seen = set()
    for path in (part1, part1.parent, tmp_path / "flat"):
        source = Asl(path)
        worker = pickle.loads(pickle.dumps(source))
        entries = source.entries(8)
        first = hash(tuple(worker.read(e).tobytes() for e in entries[:20]))
        seen.add((*((e.name.rpartition("/")[2], e.label) for e in entries), first))
    assert len(seen) == 1
    source = Asl(tmp_path)
    assert len(source.entries(8)) == 250
    assert any("'part5.ZIP'" in n for n in source.notes), "zips beside the images made of them are passed over"


def test_several_zips_in_a_folder_are_one_set_and_copies_between_them_are_found(part1, tmp_path):
    with zipfile.ZipFile(part1) as z:
        names = z.namelist()
        for part, chosen in {1: names[:10], 2: names[5:20]}.items():
            with zipfile.ZipFile(tmp_path / f"handgesturedataset_part{part}.zip", "w") as out:
                for name in chosen:
                    out.writestr(name, z.read(name))
    source = Asl(tmp_path)
    assert len(source.entries(8)) == 25
    assert refused(source) == {
        f"handgesturedataset_part2.zip/{n}": ("duplicate", f"the bytes of 'handgesturedataset_part1.zip/{n}'")
        for n in names[5:10]
    }


def test_the_real_class_folders_are_ten_digits(real_images):
    source = Asl(real_images / "originals" / "hands")
    entries = source.entries(8)
    assert source.classes == SIGNS[:10]
    assert Counter(e.label for e in entries) == {d: 26 if d == 7 else 25 for d in range(10)}
    assert all(e.name[0] == source.classes[e.label] for e in entries)
    assert source.notes == (
        "read as the 10 digits",
        "passed over: 1 other files, the first is 'LICENSE.Apache-2.0'",
    )
    assert source.about(entries[0]) == {}


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_the_nested_kaggle_copy_costs_exactly_the_second_half(part1, tmp_path, form):
    root, names = tmp_path / "archive" / "asl_dataset", []
    with zipfile.ZipFile(part1) as z:
        for name in z.namelist():
            sign = name.split("_")[1]
            names.append(f"asl_dataset/{sign}/{name}")
            for folder in (root / sign, root / "asl_dataset" / sign):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(z.read(name))
    path = root.parent
    if form == "zip":
        path = tmp_path / "archive.zip"
        with zipfile.ZipFile(path, "w") as z:
            for file in root.rglob("*.png"):
                z.write(file, file.relative_to(root.parent))
    source = Asl(path)
    assert len(source.entries(8)) == 500
    assert sorted(labels(source)) == sorted(names), "the outer copy is kept"
    assert {reason for reason, _ in refused(source).values()} == {"duplicate"}
    assert all(
        detail == f"the bytes of {name.replace('asl_dataset/', '', 1)!r}"
        for name, (_, detail) in refused(source).items()
    )
    if form == "folder":
        manifest = prepare(source, tmp_path / "out", Transform(size_px=16), shard_size=300, on_error="stop")
        assert (manifest.count_in, manifest.count, manifest.rejected) == (500, 250, {"duplicate": 250})


def test_of_equal_bytes_the_least_deep_rightly_placed_one_is_kept(images):
    root = images(f"z/{massey(1, 'z')}", f"b/{massey(1, 'b')}")
    (root / "a" / "z").mkdir(parents=True)
    shutil.copyfile(root / "z" / massey(1, "z"), root / "a" / "z" / massey(1, "z"))
    shutil.copyfile(root / "b" / massey(1, "b"), root / "a" / massey(1, "b"))
    source = Asl(root)
    assert labels(source) == {f"z/{massey(1, 'z')}": "z", f"b/{massey(1, 'b')}": "b"}
    assert [reason for reason, _ in refused(source).values()] == ["two labels", "duplicate"]


def test_class_folders_count_in_either_case_at_any_depth_and_labels_do_not_depend_on_what_is_there(images):
    deep = [f"x/y/{s.upper()}/{massey(2, s)}" for s in "a9z"]
    source = Asl(images(*deep, f"b/{massey(3, 'b')}"))
    assert source.classes == SIGNS
    assert labels(source) == {**{d: d[4].lower() for d in deep}, f"b/{massey(3, 'b')}": "b"}


@pytest.mark.parametrize(
    ("names", "classes", "said"),
    [
        (["0/a.png", "z/b.png"], SIGNS, "36 signs, 0-9 then a-z"),
        (["A/a.png", "B/b.png"], SIGNS, "36 signs, 0-9 then a-z"),
        (["3/a.png", "0/b.png"], SIGNS[:10], "the 10 digits"),
        (["A/1.png", "space/1.png"], (*SIGNS[10:], "del", "nothing", "space"), "the 29 classes"),
        (["A/A1.jpg", "Z/Z3000.jpg"], (*SIGNS[10:], "del", "nothing", "space"), "the 29 classes"),
        (["00/a.png", "35/b.png"], SIGNS, "assumed to be 0-9, then a-z"),
    ],
)
def test_the_whole_class_table_of_each_known_set_is_pinned(images, names, classes, said):
    source = Asl(images(*names))
    assert source.classes == classes
    assert said in source.notes[0]
    expected = {"00": "0", "35": "z"}
    assert labels(source) == {n: expected.get(f := n.split("/")[0].lower(), f) for n in names}
    assert f"no images of {len(classes) - 2} of {len(classes)} classes" in source.notes[-1]


def test_the_table_goes_to_workers_without_listing_again(images, monkeypatch):
    source = Asl(images("00/a.png", "35/b.png"))
    source.entries(8)
    sent = pickle.dumps(source)
    assert len(sent) < 600
    worker = pickle.loads(sent)
    monkeypatch.setattr(worker._tree, "files", lambda: pytest.fail("listed"))
    assert worker.classes == SIGNS
    assert worker.read(source.entries(8)[1]).size == (24, 24)


def test_a_name_that_contradicts_its_folder_is_two_labels(images):
    good, bad = f"a/{massey(1, 'a')}", f"b/{massey(2, 'A')}"
    source = Asl(images(good, bad))
    assert labels(source) == {good: "a"}
    assert refused(source) == {bad: ("two labels", "lies in folder 'b', and its name says 'a'")}


def test_equal_bytes_are_refused_after_the_first_by_the_label_of_the_first(images):
    root = images("a/1.png", "a/2.png", "o/9.png", "0/9.png")
    shutil.copyfile(root / "a/1.png", root / "A-copy.png")
    for copy in ("a/3.png", "o/1.png"):
        shutil.copyfile(root / "a/1.png", root / copy)
    (root / "a/4.png").write_bytes(b"")
    (root / "a/5.png").write_bytes(b"")
    same_size = bytearray((root / "a/2.png").read_bytes())
    same_size[-20] ^= 1
    (root / "a/6.png").write_bytes(same_size)
    source = Asl(root)
    assert refused(source) == {
        "a/3.png": ("duplicate", "the bytes of 'a/1.png'"),
        "o/1.png": ("two labels", "the bytes of 'a/1.png'"),
    }
    assert "passed over: 1 images in no class folder, the first is 'A-copy.png'" in source.notes
    manifest = prepare(source, root.parent / "out", Transform(size_px=8), on_error="skip")
    assert (manifest.count_in, manifest.count) == (9, 4)
    assert manifest.rejected == {"duplicate": 1, "not an image": 2, "two labels": 1, "unreadable": 1}


def test_only_files_that_may_be_equal_are_read(images, monkeypatch):
    root = images("a/1.png", "a/2.png", "b/1.png")
    shutil.copyfile(root / "a/1.png", root / "b/copy.png")
    (root / "b/1.png").write_bytes((root / "b/1.png").read_bytes() + b"longer")
    (root / "a/2.png").write_bytes((root / "a/2.png").read_bytes() + b"longest")
    source, read = Asl(root), []
    whole = source._tree.read
    monkeypatch.setattr(source._tree, "read", lambda key: read.append(key) or whole(key))
    source.entries(8)
    assert read == [b"a/1.png", b"b/copy.png"]


def test_litter_is_passed_over_and_images_without_extension_are_found(images):
    root = images("a/1.png", "b/._1.png", "b/.hidden.png", "__MACOSX/a/1.png", "b/2.png")
    (root / "a/1.png").rename(root / "a/1")
    for name in ("a/README", "b/Thumbs.db", "b/desktop.ini"):
        (root / name).write_bytes(b"litter of some length")
    source = Asl(root)
    assert labels(source) == {"a/1": "a", "b/2.png": "b"}
    assert "passed over: 1 other files, the first is 'a/README'" in source.notes


def test_split_keeps_signers_whole_and_labels_as_they_are(images):
    root = images(*(f"{s}/{massey(n, s)}" for n in (1, 2, 5) for s in "ab"), f"a/{massey(10, 'a')}", "a/other.png")
    whole = labels(Asl(root))
    parts = [labels(Asl(root, s)) for s in ("hand1", " HAND5,hand2", "hand10")]
    assert [len(p) for p in parts] == [2, 4, 1]
    assert {n: c for p in parts for n, c in p.items()} == {n: c for n, c in whole.items() if "other" not in n}
    source = pickle.loads(pickle.dumps(Asl(root, "hand5,hand2")))
    assert labels(source) == parts[1]
    assert "left out by split='hand2,hand5': 1 images whose names tell no signer" in source.notes
    assert source.classes == SIGNS


def test_a_picture_that_leaks_from_one_signer_to_another_is_refused_in_the_second(images):
    root = images(f"a/{massey(1, 'a')}", f"a/{massey(2, 'a', 'top')}")
    leak = f"a/{massey(2, 'a')}"
    shutil.copyfile(root / "a" / massey(1, "a"), root / leak)
    assert refused(Asl(root, "hand2")) == {leak: ("duplicate", f"the bytes of {'a/' + massey(1, 'a')!r}")}
    assert refused(Asl(root, "hand1")) == {}


def test_wrong_splits_say_what_there_is(images):
    root = images(f"a/{massey(1, 'a')}", f"b/{massey(2, 'b')}")
    for split in ("train", "hand1,", "", "1"):
        assert "expected hand1, or several as hand1,hand2" in refusal(root, split)
    assert "no images of hand4; signers here: hand1 1, hand2 1" in refusal(root, "hand1,hand4")
    shutil.rmtree(root)
    assert "no signers are known here" in refusal(images("a/1.png"), "hand1")


def test_what_is_no_asl_is_refused_with_what_is_there(images, tmp_path):
    assert "PATH is missing" in refusal(None)
    assert "no such file or folder" in refusal(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "no images in it" in refusal(tmp_path / "empty")
    root = images("cat/1.png", "dog/1.png")
    assert "but 'cat', 'dog'; other classes are read by source 'folder'" in refusal(root)
    shutil.rmtree(root)
    assert "but no folders" in refusal(images("1.png"))
    shutil.rmtree(root)
    assert "class folders of two data sets (3 are not of the 29 classes" in refusal(images("del/1.png", "3/1.png"))
    shutil.rmtree(root)
    assert "class folders of two data sets" in refusal(images("0/1.png", "07/1.png"))
    (tmp_path / "quota").mkdir()
    (tmp_path / "quota" / "handgesturedataset_part1.zip").write_text("<!DOCTYPE html><html>Quota exceeded")
    assert "Quota exceeded" in refusal(tmp_path / "quota")


def test_pixels_are_those_of_the_file(images):
    root = images("a/1.png")
    source = Asl(root)
    assert np.array_equal(np.asarray(source.read(source.entries(8)[0])), np.asarray(Image.open(root / "a/1.png")))
