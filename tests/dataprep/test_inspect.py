"""What inspect says of a set, against the files that went in."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from dataprep.inspect import TILE_PX, as_json, as_tables, contact_sheet, report
from dataprep.sources.folder import Folder
from dataprep.transform import Transform
from dataprep.writer import prepare
from pipeline.data.manifest import load_manifest, read_index
from pipeline.errors import UserError, WorkError


def text(root: Path) -> str:
    console = Console(width=160, file=io.StringIO())
    console.print(as_tables(report(root)))
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture
def root(images, tmp_path) -> Path:
    """Four images of class a, two of c; of five files in b, none can be taken."""
    folder = images(*[f"a/{i}.png" for i in range(4)], "c/0.png", "c/1.png", *[f"b/{i}.png" for i in range(5)])
    for i in range(4):
        (folder / f"b/{i}.png").write_bytes(b"")
    (folder / "b/4.png").write_bytes((folder / "a/0.png").read_bytes()[:900])
    prepare(Folder(folder), tmp_path / "set", Transform(size_px=8), shard_size=4, on_error="skip")
    return tmp_path / "set"


def test_counts_classes_bytes_and_names_are_those_of_the_files(root):
    facts, manifest = json.loads(as_json(report(root))), load_manifest(root)
    assert facts["class_counts"] == [4, 0, 2]
    assert facts["labelled"] == 6
    assert facts["shards"] == 3
    assert facts["image_bytes"] == int(read_index(root)["length"].sum())
    assert facts["shard_bytes"] == sum(f.stat().st_size for f in root.glob("*.tar"))
    assert facts["first_rejected"] == {"not an image": ["b/0.png", "b/1.png", "b/2.png"], "truncated": ["b/4.png"]}
    assert facts["manifest"]["dataset_id"] == manifest.dataset_id
    assert facts["manifest"]["count_in"] == 11 == facts["manifest"]["count"] + sum(manifest.rejected.values())


def test_the_tables_say_the_same(root):
    lines = [" ".join(line.replace("\u2502", "").split()) for line in text(root).splitlines()]
    assert "images 6 of 11 in, 5 rejected" in lines
    assert "stored 8 px, crop center, filter lanczos, icc srgb, encoding png" in lines
    assert "labels 3 classes, 100.0% of the images labelled" in lines
    assert "0 a 4 " + 24 * "#" in lines
    assert "1 b 0" in lines
    assert "2 c 2 " + 12 * "#" in lines
    assert "not an image 4 b/0.png, b/1.png, b/2.png" in lines


def test_of_many_classes_the_largest_and_smallest_are_shown(images, tmp_path):
    names = [f"{label:02d}/{i}.png" for label in range(50) for i in range(2 if label == 30 else 1)]
    prepare(Folder(images(*names, size=8)), tmp_path / "set", Transform(size_px=8))
    lines = text(tmp_path / "set").splitlines()
    labels = [line for line in lines if "#" in line]
    assert len(labels) == 40
    assert labels[0].split()[1] == "30"
    assert any("10 more" in line for line in lines)


def test_markup_and_line_breaks_in_names_are_shown_as_they_are(images, tmp_path):
    folder = images("[red]x/1.png", "b\n/1.png")
    (folder / "b\n/2.png").write_bytes(b"")
    prepare(Folder(folder), tmp_path / "set", Transform(size_px=8), on_error="skip")
    shown = text(tmp_path / "set")
    assert "[red]x" in shown
    assert "b\\n/2.png" in shown


def test_a_set_without_classes_has_no_histogram(images, tmp_path):
    prepare(Folder(images("a.png")), tmp_path / "set", Transform(size_px=8))
    assert report(tmp_path / "set").class_counts == ()
    assert "0 classes, 0.0% of the images labelled" in text(tmp_path / "set")
    assert "#" not in text(tmp_path / "set")


@pytest.mark.parametrize("damage", [None, b"{", b"[]\n", b"\xff"])
def test_a_damaged_list_of_rejected_costs_only_its_names(root, damage):
    (root / "rejected.jsonl").unlink() if damage is None else (root / "rejected.jsonl").write_bytes(damage)
    facts = report(root)
    assert facts.first_rejected == {"not an image": [], "truncated": []}
    assert "not an image" in text(root)


@pytest.mark.parametrize("encoding", ["png", "jpg"])
@pytest.mark.parametrize(("images_asked", "columns", "rows"), [(64, 3, 2), (4, 2, 2), (1, 1, 1)])
def test_the_contact_sheet_holds_evenly_spaced_samples_in_order(
    images, tmp_path, encoding, images_asked, columns, rows
):
    folder = images(*[f"{i}.png" for i in range(6)], size=8)
    for i in range(6):
        Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(folder / f"{i}.png")
    prepare(Folder(folder), tmp_path / "set", Transform(size_px=8, encoding=encoding), shard_size=4)
    sheet = Image.open(io.BytesIO(contact_sheet(tmp_path / "set", images_asked)))
    assert (sheet.format, sheet.size) == ("PNG", (8 * columns, 8 * rows))
    reds = np.asarray(sheet)[4::8, 4::8, 0].ravel()[: min(images_asked, 6)]
    expected = {64: range(6), 4: (0, 2, 3, 5), 1: (0,)}[images_asked]
    assert np.abs(reds - 40.0 * np.array(expected)).max() <= 2


def test_large_images_are_reduced_on_the_sheet(images, tmp_path):
    prepare(Folder(images("a.png", "b.png", size=300)), tmp_path / "set", Transform(size_px=300))
    assert Image.open(io.BytesIO(contact_sheet(tmp_path / "set"))).size == (2 * TILE_PX, TILE_PX)


def test_a_damaged_sample_is_named(root):
    shard = root / "shard-00000.tar"
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(WorkError, match=r"shard-00000\.tar: sample 0 cannot be read .*graticule verify"):
        contact_sheet(root)


def test_what_is_no_prepared_set_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="not a prepared data set"):
        report(tmp_path)
