"""What is found out about a folder before any of its images is read, and at what cost."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.data import manifest as manifest_module
from pipeline.data.manifest import INDEX, MANIFEST, Manifest, load_manifest, read_index
from pipeline.errors import UserError


def edited(root: Path, **changes) -> Path:
    """The manifest changed, and made to agree with itself again."""
    m = json.loads((root / MANIFEST).read_text()) | changes
    try:
        m["dataset_id"] = Manifest.model_validate(m).identity()
    except ValueError:
        pass
    (root / MANIFEST).write_text(json.dumps(m))
    return root


def test_the_cheap_check_opens_the_manifest_alone(copy, monkeypatch):
    root = copy("png")
    assert load_manifest(root, full=False) == load_manifest(root)
    seen = []
    real = os.stat
    monkeypatch.setattr(manifest_module.os, "stat", lambda path, **k: seen.append(Path(path).name) or real(path, **k))
    load_manifest(root, full=False)
    assert {n for n in seen if n.endswith(".tar")} == set()
    load_manifest(root)
    assert {n for n in seen if n.endswith(".tar")} == {f"shard-{i:05d}.tar" for i in range(3)}


def damaged_index(root: Path) -> None:
    data = bytearray((root / INDEX).read_bytes())
    data[0] ^= 1
    (root / INDEX).write_bytes(data)


def missing_shard(root: Path) -> None:
    (root / "shard-00002.tar").unlink()


def short_shard(root: Path) -> None:
    os.truncate(root / "shard-00002.tar", 512)


def folder_for_shard(root: Path) -> None:
    (root / "shard-00002.tar").unlink()
    (root / "shard-00002.tar").mkdir()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damaged_index, r"index\.bin: does not match"),
        (missing_shard, r"shard-00002\.tar: is missing"),
        (short_shard, r"shard-00002\.tar: has 512 bytes"),
        (folder_for_shard, r"shard-00002\.tar: is missing"),
    ],
)
def test_what_only_the_full_check_finds(copy, damage, said):
    root = copy("png")
    damage(root)
    load_manifest(root, full=False)
    with pytest.raises(UserError, match=said):
        load_manifest(root)


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"count": 11}, "counts do not add up"),
        ({"count_in": 9}, "counts do not add up"),
        ({"rejected": {"too small": 1}}, "counts do not add up"),
        ({"size_px": 0}, "size_px=0"),
        ({"encoding": "bmp"}, "encoding='bmp'"),
        ({"format": 2}, "format=2"),
        ({"shards": []}, "counts do not add up"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused_by_every_rank(copy, changes, said, full):
    with pytest.raises(UserError, match=said) as caught:
        load_manifest(edited(copy("png"), **changes), full=full)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["../shard-00000.tar", "/etc/passwd", "shard-0.tar", "shard-00000.tar\n", "a/b.tar"])
def test_a_shards_name_is_no_path(copy, name):
    root = copy("png")
    m = json.loads((root / MANIFEST).read_text())
    m["shards"][0]["name"] = name
    (root / MANIFEST).write_text(json.dumps(m))
    with pytest.raises(UserError, match=r"shards\.0\.name"):
        load_manifest(root, full=False)


def test_a_path_that_the_system_refuses_gets_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        load_manifest(tmp_path / ("x" * 300))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        load_manifest(tmp_path / "file")


def test_the_index_is_mapped_and_not_copied(prepared):
    index = read_index(prepared("png"))
    assert len(index) == 10
    assert index["label"].tolist() == [0] * 6 + [1] * 4
    base = index
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    assert type(base).__name__ == "mmap"
    with pytest.raises(ValueError, match="read-only"):
        index["label"][0] = 1


def test_a_set_of_no_images_has_an_empty_index(copy):
    root = copy("png")
    (root / INDEX).write_bytes(b"")
    assert len(read_index(root)) == 0
    shutil.rmtree(root)
