"""The bytes on disk: against the stock webdataset library, in detail, and with images left out."""

import io
import json
import os
import tarfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from dataprep.sources.entry import Entries, Entry
from dataprep.sources.folder import Folder
from dataprep.transform import Transform
from dataprep.verify import verify
from dataprep.writer import prepare
from pipeline.data.reader import ShardReader
from pipeline.errors import UserError

SMALL = Transform(size_px=8)


@dataclass
class Plain:
    """`count` grey images that need no file."""

    count: int
    name = "plain"
    crop = "center"
    classes = ()
    notes = ()

    def entries(self, size_px: int) -> Entries:
        return Entries(Entry(str(i).encode()) for i in range(self.count))

    def about(self, entry: Entry) -> dict[str, Any]:
        return {}

    def read(self, entry: Entry) -> Image.Image:
        return Image.new("RGB", (8, 8), (int(entry.name) % 256,) * 3)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its files open
@pytest.mark.parametrize("encoding", ["png", "jpg"])
def test_stock_webdataset_reads_what_the_reader_reads(images, tmp_path, encoding):
    source = Folder(images("b/one.two.png", "b/\u00fc \u00f8.png", "a/x.png", "a/y.png", "a/z.png"))
    out = tmp_path / "set"
    manifest = prepare(source, out, SMALL.replace(encoding=encoding), shard_size=2)
    shards = [str(out / s.name) for s in manifest.shards]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode("rgb8"))
    reader = ShardReader(out)
    assert len(samples) == len(reader) == 5
    assert [s["json"]["name"] for s in samples] == [
        "a/x.png",
        "a/y.png",
        "a/z.png",
        "b/one.two.png",
        "b/\u00fc \u00f8.png",
    ]
    assert [s["__key__"] for s in samples] == [f"{i:09d}" for i in range(5)]
    for i, sample in enumerate(samples):
        image, label = reader.read(i)
        assert np.array_equal(image, sample[encoding].transpose(2, 0, 1))
        assert (label, manifest.classes[label]) == (sample["json"]["label"], sample["json"]["class"])


def test_stored_images_are_the_transformed_originals(images, tmp_path):
    source = Folder(images("a.png", "b.png"))
    prepare(source, tmp_path / "set", SMALL)
    reader = ShardReader(tmp_path / "set")
    for i, entry in enumerate(source.entries(8)):
        expected = np.asarray(Image.open(io.BytesIO(SMALL(source.read(entry)))))
        assert np.array_equal(reader.read(i)[0], expected.transpose(2, 0, 1))


def test_shards_tell_nothing_of_machine_user_or_time(images, tmp_path):
    prepare(Folder(images("a.png", "b.png")), tmp_path / "set", SMALL)
    with tarfile.open(tmp_path / "set" / "shard-00000.tar") as tar:
        members = tar.getmembers()
    assert [m.name for m in members] == ["000000000.png", "000000000.json", "000000001.png", "000000001.json"]
    facts = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, bool(m.pax_headers)) for m in members}
    assert facts == {(0, 0, 0, "", "", 0o644, False)}
    everything = b"".join(p.read_bytes() for p in (tmp_path / "set").iterdir())
    assert os.fsencode(tmp_path) not in everything


def test_skip_leaves_gaps_in_the_keys_and_names_what_it_left_out(images, tmp_path):
    root, out = images("a.png", "b.png", "c.png", "d.png"), tmp_path / "set"
    (root / "b.png").write_bytes(b"")
    (root / "d.png").write_bytes(b"<html>")
    manifest = prepare(Folder(root), out, SMALL, shard_size=3, on_error="skip")
    assert (manifest.count_in, manifest.count, manifest.rejected) == (4, 2, {"not an image": 2})
    assert [s.count for s in manifest.shards] == [2, 0]
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert [(r["name"], r["reason"]) for r in rejected] == [
        ("b.png", "not an image"),
        ("d.png", "not an image"),
    ]
    with tarfile.open(out / "shard-00000.tar") as tar:
        assert tar.getnames() == ["000000000.png", "000000000.json", "000000002.png", "000000002.json"]
    assert verify(out) == []
    assert ShardReader(out).read(1)[1] == -1


def test_a_folder_of_which_nothing_can_be_taken_is_an_error(images, tmp_path):
    with pytest.raises(UserError, match=r"none of 2 images can be taken.*too small"):
        prepare(Folder(images("a.png", "b.png", size=7)), tmp_path / "set", SMALL, on_error="skip")
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("words", [{"workers": 0}, {"shard_size": 0}, {"on_error": "ignore"}])
def test_words_that_make_no_sense_are_refused(images, tmp_path, words):
    with pytest.raises(UserError, match=f"^{next(iter(words))}="):
        prepare(Folder(images("a.png")), tmp_path / "set", SMALL, **words)
    assert not (tmp_path / "set").exists()


def test_real_damaged_files_are_counted_to_the_last(real_images, tmp_path):
    source = Folder(real_images / "originals" / "nasty")
    manifest = prepare(source, tmp_path / "set", Transform(size_px=32), on_error="skip")
    assert manifest.count_in == len(source.entries(32)) == 55
    assert manifest.count == manifest.count_in - sum(manifest.rejected.values()) == len(ShardReader(tmp_path / "set"))
    assert verify(tmp_path / "set") == []


def test_the_place_where_a_real_photograph_was_taken_is_not_in_the_shard(real_images, tmp_path):
    (tmp_path / "images").mkdir()
    photograph = real_images / "originals" / "scenes" / "singaporean-cityscape.jpg"
    with Image.open(photograph) as image:
        assert image.getexif().get_ifd(0x8825), "the test needs a picture with a GPS position"
    (tmp_path / "images" / photograph.name).symlink_to(photograph)
    for encoding in ("png", "jpg"):
        out = tmp_path / encoding
        prepare(Folder(tmp_path / "images"), out, Transform(size_px=64, encoding=encoding))
        with tarfile.open(out / "shard-00000.tar") as tar:
            data = tar.extractfile(f"000000000.{encoding}").read()  # type: ignore[union-attr]
        image = Image.open(io.BytesIO(data))
        assert not image.getexif()
        assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


def test_real_class_folders_become_the_class_table(real_images, tmp_path):
    source = Folder(real_images / "originals" / "hands")
    manifest = prepare(source, tmp_path / "set", Transform(size_px=32), workers=2, shard_size=128)
    assert manifest.classes == tuple("0123456789")
    labels = [ShardReader(tmp_path / "set").read(i)[1] for i in range(manifest.count)]
    assert np.bincount(labels).tolist() == [25] * 7 + [26] + [25] * 2


@pytest.mark.parametrize(
    ("count", "shard_size", "counts"),
    [(6, 3, [3, 3]), (7, 3, [3, 3, 1]), (1, 1000, [1]), (3, 1, [1, 1, 1])],
    ids=["ends exactly at the limit", "last shard small", "fewer images than a shard", "one image a shard"],
)
def test_a_shard_holds_as_many_images_as_asked_and_the_last_the_rest(tmp_path, count, shard_size, counts):
    manifest = prepare(Plain(count), tmp_path / "set", SMALL, shard_size=shard_size)
    assert [s.count for s in manifest.shards] == counts
    assert sorted(p.name for p in (tmp_path / "set").glob("*.tar")) == [s.name for s in manifest.shards]
    assert [ShardReader(tmp_path / "set").read(i)[0][0, 0, 0] for i in range(count)] == list(range(count))
    assert verify(tmp_path / "set") == []


def test_more_workers_than_shards_and_than_images_write_the_same(images, tmp_path, contents):
    root = images("a.png", "b.png", "c.png")
    prepare(Folder(root), tmp_path / "one", SMALL, shard_size=1)
    prepare(Folder(root), tmp_path / "many", SMALL, shard_size=1, workers=8)
    assert contents(tmp_path / "one") == contents(tmp_path / "many")


def test_a_source_without_images_is_the_users_mistake_and_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match=r"^PATH: source 'plain' finds no images"):
        prepare(Plain(0), tmp_path / "set", SMALL)
    assert not (tmp_path / "set").exists()


def test_an_image_larger_than_many_others_is_one_sample_all_the_same(images, tmp_path):
    root = images("b.png", size=700)
    images("a.png", "c.png", size=300)
    manifest = prepare(Folder(root), tmp_path / "set", Transform(size_px=300, encoding="raw"), shard_size=1)
    assert [s.count for s in manifest.shards] == [1, 1, 1]
    assert verify(tmp_path / "set") == []
