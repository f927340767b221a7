"""Several sizes in one pass: the bytes of each size made alone, every image read once, rejections by size."""

import io
import json
import os
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataprep.plan import make_plan
from dataprep.sources.folder import Folder
from dataprep.sources.photos import Photos
from dataprep.transform import Transform
from dataprep.verify import verify
from dataprep.writer import prepare, prepare_all
from pipeline.data.manifest import load_manifest, read_index
from pipeline.errors import UserError

SMALL = Transform(size_px=8)
NAMES = ("a.png", "b.png", "c.png", "d.png", "e.png")


class Counting(Folder):
    """Counts how often each image is read."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.reads: Counter[str] = Counter()

    def read(self, entry):
        self.reads[entry.name] += 1
        return super().read(entry)


def three(tmp_path: Path) -> dict[Path, Transform]:
    return {
        tmp_path / "s8": SMALL,
        tmp_path / "s16": Transform(size_px=16, encoding="jpg"),
        tmp_path / "s12": Transform(size_px=12, filter="box"),
    }


@pytest.mark.parametrize("workers", [1, 2])
def test_a_set_made_in_a_pass_of_several_sizes_has_the_bytes_of_one_made_alone(images, tmp_path, contents, workers):
    root, transforms = images(*NAMES), three(tmp_path)
    (root / "broken.png").write_bytes(b"")
    made = prepare_all(Folder(root), transforms, workers=workers, shard_size=2, on_error="skip")
    assert [m.size_px for m in made] == [8, 16, 12]
    for out, transform in transforms.items():
        alone = prepare(Folder(root), tmp_path / "alone" / out.name, transform, shard_size=2, on_error="skip")
        assert contents(out) == contents(tmp_path / "alone" / out.name)
        assert load_manifest(out) == alone
        assert verify(out) == []


def test_real_photographs_in_two_sizes_are_those_made_alone(real_images, tmp_path, contents):
    source = Folder(real_images / "originals" / "hands")
    outs = {tmp_path / "64": Transform(size_px=64), tmp_path / "32": Transform(size_px=32)}
    prepare_all(source, outs, workers=2, shard_size=100)
    prepare(source, tmp_path / "alone", Transform(size_px=32), shard_size=100)
    assert contents(tmp_path / "32") == contents(tmp_path / "alone")


def test_every_image_is_read_once_for_all_sizes(images, tmp_path):
    source = Counting(images(*NAMES))
    prepare_all(source, three(tmp_path), shard_size=2)
    assert source.reads == dict.fromkeys(NAMES, 1)


def test_an_image_too_small_for_one_size_is_taken_at_another(images, tmp_path):
    images("big.png", size=300)
    root = images("small.png", size=200)
    large, small = tmp_path / "256", tmp_path / "128"
    made = prepare_all(
        Folder(root), {large: Transform(size_px=256), small: Transform(size_px=128)}, on_error="skip", shard_size=1
    )
    assert [(m.count, m.rejected) for m in made] == [(1, {"too small": 1}), (2, {})]
    (line,) = (large / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["name"] == "small.png"
    assert not (small / "rejected.jsonl").exists()


def test_stop_at_an_image_too_small_for_one_size_leaves_nothing_in_any_folder(images, tmp_path):
    images("big.png", size=300)
    root = images("small.png", size=200)
    outs = {tmp_path / "128": Transform(size_px=128), tmp_path / "256": Transform(size_px=256)}
    with pytest.raises(UserError, match=r"^small\.png: too small"):
        prepare_all(Folder(root), outs, shard_size=1)
    assert not any(out.exists() for out in outs)


def test_sources_that_offer_other_images_at_another_size_take_one_size_at_a_time(tmp_path):
    outs = {tmp_path / "512": Transform(size_px=512), tmp_path / "64": Transform(size_px=64)}
    with pytest.raises(UserError, match=r"^size=512, 64: source 'photos' .*one --size at a time"):
        prepare_all(Photos(), outs)
    assert not any(out.exists() for out in outs)


def test_sizes_of_one_pass_share_the_crop(images, tmp_path):
    outs = {tmp_path / "a": SMALL, tmp_path / "b": SMALL.replace(size_px=9, crop="none")}
    with pytest.raises(UserError, match=r"^crop: sizes made in one pass share it"):
        prepare_all(Folder(images("a.png")), outs)


def test_two_sizes_do_not_go_into_one_folder(images, tmp_path):
    root = images("a.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "link").symlink_to("set")
    with pytest.raises(UserError, match="one folder twice"):
        prepare_all(Folder(root), {tmp_path / "set": SMALL, tmp_path / "link": SMALL.replace(size_px=9)})


def test_a_finished_size_is_left_as_it_is_and_the_other_is_made(images, tmp_path, contents):
    root, transforms = images(*NAMES), three(tmp_path)
    prepare(Folder(root), tmp_path / "s8", SMALL, shard_size=2)
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "s8").iterdir()}
    made = prepare_all(Folder(root), transforms, shard_size=2)
    assert [m.count for m in made] == [5, 5, 5]
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "s8").iterdir()} == times


def test_a_pass_killed_between_the_commits_of_two_sizes_makes_only_what_lacks(images, tmp_path, contents, monkeypatch):
    source, transforms = Counting(images(*NAMES)), three(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("dataprep.writer._publish", lambda *a: None)  # as if killed there
        prepare_all(source, transforms, shard_size=2)
    (tmp_path / "s16" / "shard-00001.tar").unlink()
    (tmp_path / "s16" / "shard-00001.done.json").unlink()
    before = (tmp_path / "s8" / "shard-00001.tar").stat().st_mtime_ns
    source.reads.clear()
    prepare_all(source, transforms, shard_size=2)
    assert source.reads == {"c.png": 1, "d.png": 1}
    assert (tmp_path / "s8" / "shard-00001.tar").stat().st_mtime_ns == before
    for out, transform in transforms.items():
        prepare(source, tmp_path / "alone" / out.name, transform, shard_size=2)
        assert contents(out) == contents(tmp_path / "alone" / out.name)


def test_the_index_of_raw_shards_points_at_the_pixels_behind_the_npy_header(images, tmp_path):
    root, out = images("a.png", "b.png", size=(10, 8)), tmp_path / "set"
    raw = SMALL.replace(encoding="raw", quality=None) if "quality" in Transform.model_fields else SMALL
    prepare(Folder(root), out, raw.replace(encoding="raw"))
    shard = (out / "shard-00000.tar").read_bytes()
    with tarfile.open(out / "shard-00000.tar") as tar:
        members = [m for m in tar if m.name.endswith(".npy")]
        arrays = [np.load(io.BytesIO(tar.extractfile(m).read())) for m in members]  # type: ignore[union-attr]
    assert [m.name for m in members] == ["000000000.npy", "000000001.npy"]
    for row, member, array in zip(read_index(out), members, arrays, strict=True):
        assert array.shape == (8, 8, 3)
        assert (row["offset"], row["length"]) == (member.offset_data + 128, 8 * 8 * 3)
        assert shard[row["offset"] : row["offset"] + row["length"]] == array.tobytes()
    expected = np.asarray(Image.open(io.BytesIO(SMALL(Folder(root).read(Folder(root).entries(8)[0])))))
    assert np.array_equal(arrays[0], expected)


def test_a_plan_lists_the_source_once_for_equal_lists(images, tmp_path):
    plan = make_plan(Folder(images(*NAMES)), three(tmp_path), shard_size=2)
    assert (plan.shards, plan.count(range(3)), plan.count([2])) == (3, 5, 1)
    assert len({target.plan for target in plan.targets}) == 3
    assert not any(os.path.exists(t.out) for t in plan.targets)
