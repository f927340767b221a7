"""The bytes on disk: against the stock webdataset library, for any worker count, after kills and refusals."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import webdataset
from PIL import Image

from dataprep.sources.entry import Entry
from dataprep.sources.folder import Folder
from dataprep.sources.photos import Photos
from dataprep.transform import Transform
from dataprep.verify import verify
from dataprep.writer import prepare
from pipeline.data.manifest import load_manifest
from pipeline.data.reader import ShardReader
from pipeline.errors import UserError

SMALL = Transform(size_px=8)
PREP_PHOTOS = """
import sys
from pathlib import Path
from dataprep.sources.photos import Photos
from dataprep.transform import Transform
from dataprep.writer import prepare
if __name__ == "__main__":
    prepare(Photos(), Path(sys.argv[1]), Transform(size_px=64), workers=int(sys.argv[2]), shard_size=250)
"""


@pytest.fixture(scope="session")
def photos_set(tmp_path_factory) -> Path:
    """The bundled photographs, written by one process and undisturbed."""
    out = tmp_path_factory.mktemp("photos") / "set"
    prepare(Photos(), out, Transform(size_px=64), shard_size=250)
    return out


@dataclass
class Deadly:
    """A source whose third image kills the process that reads it, as a truncated LMDB does."""

    name = "deadly"
    classes = ()

    def entries(self, size_px: int) -> list[Entry]:
        return [Entry(str(i), -1) for i in range(6)]

    def read(self, entry: Entry) -> Image.Image:
        if entry.name == "2":
            os.kill(os.getpid(), signal.SIGKILL)
        return Image.new("RGB", (8, 8))


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


def test_two_workers_write_the_bytes_of_one(photos_set, tmp_path, contents):
    prepare(Photos(), tmp_path / "set", Transform(size_px=64), shard_size=250, workers=2)
    assert contents(tmp_path / "set") == contents(photos_set)
    assert verify(photos_set) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_continues_to_the_bytes_of_an_undisturbed_one(photos_set, tmp_path, contents, workers):
    out = tmp_path / "set"
    process = subprocess.Popen([sys.executable, "-c", PREP_PHOTOS, str(out), str(workers)], start_new_session=True)
    while not list(out.glob("shard-*.tar")):
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.005)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert not psutil.wait_procs(children, timeout=10)[1], "workers outlived their killed parent"
    with pytest.raises(UserError, match="not a prepared data set"):
        load_manifest(out)
    (out / ".shard-00007.tar.1.tmp").write_bytes(b"half a shard")
    seen: list[int] = []
    prepare(Photos(), out, Transform(size_px=64), shard_size=250, progress=lambda done, _: seen.append(done))
    assert seen[0] > 250, "committed shards were made again"
    assert contents(out) == contents(photos_set)


def test_a_run_killed_between_manifest_and_index_is_finished(images, tmp_path, contents, monkeypatch):
    source, out = Folder(images("a.png", "b.png", "c.png")), tmp_path / "set"
    monkeypatch.setattr("dataprep.writer._sync", lambda folder: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare(source, out, SMALL, shard_size=2)
    assert (out / "manifest.json").exists()
    assert not (out / "index.bin").exists()
    monkeypatch.undo()
    prepare(source, out, SMALL, shard_size=2)
    prepare(source, tmp_path / "other", SMALL, shard_size=2)
    assert contents(out) == contents(tmp_path / "other")


def test_a_shard_lost_or_cut_after_its_commit_is_made_again(images, tmp_path, contents, monkeypatch):
    source, out = Folder(images("a.png", "b.png", "c.png")), tmp_path / "set"
    with monkeypatch.context() as patch:
        patch.setattr("dataprep.writer._publish", lambda *a: None)  # as if killed there
        prepare(source, out, SMALL, shard_size=1)
    (out / "shard-00000.tar").unlink()
    (out / "shard-00001.tar").write_bytes(b"cut")
    prepare(source, out, SMALL, shard_size=1)
    assert verify(out) == []
    assert load_manifest(out).count == 3


def test_a_finished_set_is_returned_without_work(images, tmp_path, monkeypatch):
    source, out = Folder(images("a.png", "b.png")), tmp_path / "set"
    first = prepare(source, out, SMALL)
    (out / "shard-00000.done.json").write_text("{}")  # killed while tidying up
    monkeypatch.setattr("dataprep.writer.make_shard", lambda job: pytest.fail("made a shard"))
    assert prepare(source, out, SMALL, workers=2) == first
    assert sorted(p.name for p in out.iterdir()) == ["index.bin", "manifest.json", "shard-00000.tar"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transform": SMALL.replace(size_px=9)}, "size_px 8, not 9"),
        ({"transform": SMALL.replace(filter="box")}, "filter lanczos, not box"),
        ({"shard_size": 1}, "another shard size"),
        ({"more": "c.png"}, "other images"),
    ],
)
@pytest.mark.parametrize("state", ["finished", "killed"])
def test_other_parameters_never_mix_into_a_folder(images, tmp_path, contents, monkeypatch, change, message, state):
    root, out = images("a.png", "b.png"), tmp_path / "set"
    with monkeypatch.context() as patch:
        if state == "killed":
            patch.setattr("dataprep.writer._publish", lambda *a: None)
        prepare(Folder(root), out, SMALL)
    before = contents(out)
    if "more" in change:
        images(change["more"])
    with pytest.raises(UserError, match=message if state == "finished" else "is not from a run with these"):
        prepare(Folder(root), out, change.get("transform", SMALL), shard_size=change.get("shard_size", 1000))
    assert contents(out) == before


@pytest.mark.parametrize("name", ["notes.txt", "shard-00000.tar", "index.bin", "manifest.json"])
def test_foreign_files_are_named_and_left_alone(images, tmp_path, name):
    out = tmp_path / "set"
    out.mkdir()
    (out / name).write_text("mine")
    with pytest.raises(UserError, match=name):
        prepare(Folder(images("a.png")), out, SMALL)
    assert [(p.name, p.read_text()) for p in out.iterdir()] == [(name, "mine")]


def test_an_out_that_cannot_be_written_is_the_users_mistake(images, tmp_path):
    (tmp_path / "file").write_text("mine")
    source = Folder(images("a.png"))
    for out in (tmp_path / "file", tmp_path / "file" / "set", Path("/proc/set"), tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match=r"^out="):
            prepare(source, out, SMALL)


def test_two_runs_do_not_write_into_one_folder(images, tmp_path):
    root, out = images("a.png", "b.png"), tmp_path / "set"

    def second(done: int, total: int) -> None:
        with pytest.raises(UserError, match="another `graticule prep` is writing"):
            prepare(Folder(root), out, SMALL)

    assert prepare(Folder(root), out, SMALL, progress=second).count == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_bad_image_stops_the_run_and_nothing_is_left(images, tmp_path, workers):
    root = images("a.png", "b.png", "c.png", "d.png")
    (root / "c.png").write_bytes((root / "c.png").read_bytes()[:900])
    with pytest.raises(UserError, match=r"^c\.png: truncated .*--on-error skip") as e:
        prepare(Folder(root), tmp_path / "new" / "set", SMALL, shard_size=1, workers=workers)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "new" / "set").exists()
    (tmp_path / "set").mkdir()
    with pytest.raises(UserError):
        prepare(Folder(root), tmp_path / "set", SMALL, shard_size=1, workers=workers)
    assert list((tmp_path / "set").iterdir()) == []


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


def test_stop_does_not_continue_over_images_that_a_killed_skip_left_out(images, tmp_path, monkeypatch):
    root, out = images("a.png", "b.png"), tmp_path / "set"
    (root / "a.png").write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr("dataprep.writer._publish", lambda *a: None)
        prepare(Folder(root), out, SMALL, shard_size=1, on_error="skip")
    with pytest.raises(UserError, match=r"^a\.png: not an image"):
        prepare(Folder(root), out, SMALL, shard_size=1)
    assert prepare(Folder(root), out, SMALL, shard_size=1, on_error="skip").count == 1


def test_a_folder_of_which_nothing_can_be_taken_is_an_error(images, tmp_path):
    with pytest.raises(UserError, match=r"none of 2 images can be taken.*too small"):
        prepare(Folder(images("a.png", "b.png", size=7)), tmp_path / "set", SMALL, on_error="skip")
    assert not (tmp_path / "set").exists()


def test_a_dead_worker_is_reported_and_its_folder_can_be_continued(tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match="a worker process died"):
        prepare(Deadly(), tmp_path / "set", SMALL, shard_size=1, workers=2)
    monkeypatch.setattr(Deadly, "read", lambda self, entry: Image.new("RGB", (8, 8)))
    assert prepare(Deadly(), tmp_path / "set", SMALL, shard_size=1).count == 6


@pytest.mark.parametrize("words", [{"workers": 0}, {"shard_size": 0}, {"on_error": "ignore"}])
def test_words_that_make_no_sense_are_refused(images, tmp_path, words):
    with pytest.raises(UserError, match=f"^{next(iter(words))}="):
        prepare(Folder(images("a.png")), tmp_path / "set", SMALL, **words)
    assert not (tmp_path / "set").exists()


def test_real_damaged_files_are_counted_to_the_last(real_images, tmp_path):
    source = Folder(real_images / "originals" / "nasty")
    manifest = prepare(source, tmp_path / "set", Transform(size_px=32), on_error="skip")
    assert manifest.count_in == len(source.entries(32)) == 54
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
