"""Damage done to a prepared folder, each kind found and named by load_manifest or verify."""

import hashlib
import json
import tarfile
from pathlib import Path

import pytest

from dataprep.sources.folder import Folder
from dataprep.transform import Transform
from dataprep.verify import verify
from dataprep.writer import prepare
from pipeline.data.manifest import INDEX, MANIFEST, RECORD, Manifest, load_manifest, read_index
from pipeline.errors import UserError


@pytest.fixture
def root(images, tmp_path) -> Path:
    source = Folder(images(*[f"{c}/{i}.png" for c in "ab" for i in range(4)], size=8))
    prepare(source, tmp_path / "set", Transform(size_px=8), shard_size=3)
    return tmp_path / "set"


def test_a_sound_set_has_no_problems_and_progress_counts_bytes(root):
    seen = []
    assert verify(root, lambda done, total: seen.append((done, total))) == []
    total = sum(f.stat().st_size for f in root.glob("*.tar"))
    assert seen[-1] == (total, total)


def test_a_flipped_byte_in_a_shard_is_found_by_verify_alone(root):
    shard = root / "shard-00001.tar"
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    load_manifest(root)
    (problem,) = verify(root)
    assert "shard-00001.tar" in problem
    assert "sha256" in problem


def test_a_shard_cut_at_a_tar_block_is_named(root):
    shard = root / "shard-00000.tar"
    shard.write_bytes(shard.read_bytes()[: -3 * 512])
    with pytest.raises(UserError, match=r"shard-00000\.tar: has \d+ bytes"):
        load_manifest(root)
    (problem,) = verify(root)
    assert "shard-00000.tar" in problem


def test_swapped_shards_are_both_named(root):
    a, b = root / "shard-00000.tar", root / "shard-00001.tar"
    a.rename(root / "x"), b.rename(a), (root / "x").rename(b)
    problems = verify(root)
    assert [Path(p.split(":")[0]).name for p in problems] == [a.name, b.name]


def test_missing_and_foreign_shards_are_named(root):
    (root / "shard-00001.tar").rename(root / "shard-00009.tar")
    with pytest.raises(UserError, match=r"shard-00001\.tar: is missing"):
        load_manifest(root)
    problems = verify(root)
    assert len(problems) == 2
    assert "shard-00001.tar: is missing" in problems[0]
    assert "shard-00009.tar: not in manifest.json" in problems[1]


def test_several_damaged_shards_are_all_named(root):
    for shard in root.glob("*.tar"):
        shard.write_bytes(b"")
    assert len(verify(root)) == 3


def test_a_stale_index_is_refused(root):
    data = bytearray((root / INDEX).read_bytes())
    data[0] ^= 1
    (root / INDEX).write_bytes(data)
    with pytest.raises(UserError, match=r"index\.bin: does not match"):
        load_manifest(root)
    (problem,) = verify(root)
    assert "index.bin" in problem


@pytest.mark.parametrize("field", ["offset", "length", "label"])
def test_an_index_that_fits_its_hash_but_not_the_images_is_found(root, field):
    index = read_index(root)
    index[4][field] = index[4][field] + (1 if field != "label" else -1)
    (root / INDEX).write_bytes(index.astype(RECORD).tobytes())
    manifest = load_manifest_unchecked(root).replace(index_sha256=hashlib.sha256(index.tobytes()).hexdigest())
    (root / MANIFEST).write_text(manifest.replace(dataset_id=manifest.identity()).to_json())
    load_manifest(root)
    (problem,) = verify(root)
    assert "shard-00001.tar: index row" in problem


def load_manifest_unchecked(root: Path) -> Manifest:
    return Manifest.from_json((root / MANIFEST).read_text())


def test_a_shard_with_an_image_more_than_the_index_is_found(root):
    shard = root / "shard-00002.tar"
    with tarfile.open(shard, "a") as tar:
        tar.add(__file__, "000000099.png")
    manifest = load_manifest_unchecked(root)
    content = {"bytes": shard.stat().st_size, "sha256": hashlib.sha256(shard.read_bytes()).hexdigest()}
    manifest = manifest.replace(shards=(*manifest.shards[:2], manifest.shards[2].replace(**content)))
    (root / MANIFEST).write_text(manifest.replace(dataset_id=manifest.identity()).to_json())
    (problem,) = verify(root)
    assert "holds 3 images and 2 labels, the index says 2" in problem


@pytest.mark.parametrize("damage", ["size_px", "count", "not json", "not text"])
def test_an_edited_or_damaged_manifest_is_refused(root, damage):
    content = json.loads((root / MANIFEST).read_text())
    text = {
        "size_px": json.dumps({**content, "size_px": 9}).encode(),
        "count": json.dumps({**content, "count_in": 9}).encode(),
        "not json": b"{",
        "not text": b"\xff\xfe",
    }[damage]
    (root / MANIFEST).write_bytes(text)
    with pytest.raises(UserError, match=r"manifest\.json"):
        load_manifest(root)
    assert "manifest.json" in verify(root)[0]


def test_a_folder_that_is_no_set_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="not a prepared data set"):
        verify(tmp_path)
