"""Runs that are killed, refused, shared or repeated: the folder always ends with the bytes of an undisturbed run."""

import gc
import itertools
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from dataprep.hold import held
from dataprep.plan import make_plan
from dataprep.pool import make_shards
from dataprep.sources.entry import Entries, Entry
from dataprep.sources.folder import Folder
from dataprep.sources.photos import Photos
from dataprep.transform import Transform
from dataprep.verify import verify
from dataprep.writer import prepare, prepare_all
from pipeline.data.manifest import load_manifest
from pipeline.errors import UserError, WorkError

SMALL = Transform(size_px=8)
STORED = Transform(size_px=48)
PREP = """
import sys
from pathlib import Path
from dataprep.sources.folder import Folder
from dataprep.transform import Transform
from dataprep.writer import prepare
if __name__ == "__main__":
    images, out, workers = sys.argv[1:]
    prepare(Folder(Path(images)), Path(out), Transform(size_px=48), workers=int(workers), shard_size=10)
"""


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> Path:
    """Windows of the bundled photographs as files."""
    folder = tmp_path_factory.mktemp("photographs")
    source, cut = Photos(), Transform(size_px=64, encoding="jpg")
    for i, entry in enumerate(list(source.entries(64))[::8]):
        (folder / f"{i:04d}.jpg").write_bytes(cut(source.read(entry)))
    return folder


@pytest.fixture(scope="session")
def undisturbed(photographs, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "set"
    prepare(Folder(photographs), out, STORED, shard_size=10)
    return out


@dataclass
class Listed:
    """Grey images that need no file; the process that reads image `deadly` dies of `death`."""

    count: int
    deadly: int = -1
    death: int = signal.SIGKILL
    sec: float = 0.0  # for each image
    name = "listed"
    crop = "center"
    classes = ()
    notes = ()

    def entries(self, size_px: int) -> Entries:
        return Entries(Entry(b"%09d" % i, at=i) for i in range(self.count))

    def about(self, entry: Entry) -> dict[str, Any]:
        return {}

    def read(self, entry: Entry) -> Image.Image:
        if entry.at == self.deadly:
            os.kill(os.getpid(), self.death)
        time.sleep(self.sec)
        return Image.new("RGB", (8, 8), (entry.at % 256,) * 3)


@pytest.mark.parametrize("workers", [2, 64])
def test_any_number_of_workers_writes_the_bytes_of_one(photographs, undisturbed, tmp_path, contents, workers):
    shard_size = {2: 10, 64: 128}[workers]
    prepare(Folder(photographs), tmp_path / "set", STORED, shard_size=shard_size, workers=workers)
    if workers == 64:  # two shards, two processes
        prepare(Folder(photographs), tmp_path / "one", STORED, shard_size=shard_size)
    assert contents(tmp_path / "set") == contents(undisturbed if workers == 2 else tmp_path / "one")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_continues_to_the_bytes_of_an_undisturbed_one(
    photographs, undisturbed, tmp_path, contents, workers
):
    out = tmp_path / "set"
    process = subprocess.Popen([sys.executable, "-c", PREP, str(photographs), str(out), str(workers)])
    while not list(out.glob("shard-*.tar")):
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.002)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert not psutil.wait_procs(children, timeout=10)[1], "workers outlived their killed parent"
    with pytest.raises(UserError, match="not a prepared data set"):
        load_manifest(out)
    (out / ".shard-00007.tar.1.tmp").write_bytes(b"half a shard")
    seen: list[int] = []
    prepare(Folder(photographs), out, STORED, shard_size=10, progress=lambda done, _: seen.append(done))
    assert seen[0] >= 10, "committed shards were made again"
    assert contents(out) == contents(undisturbed)


def test_eight_kills_at_random_moments_leave_no_trace():
    script = Path(__file__).parents[1] / "stress" / "kill_prep.py"
    command = [sys.executable, script, "--kills", "8", "--seed", str(int(time.time()))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all bytes equal" in done.stdout


def test_a_run_killed_between_manifest_and_index_is_finished(images, tmp_path, contents, monkeypatch):
    source, out = Folder(images("a.png", "b.png", "c.png")), tmp_path / "set"
    monkeypatch.setattr("dataprep.writer.fsync_folder", lambda folder: (_ for _ in ()).throw(KeyboardInterrupt))
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
    monkeypatch.setattr("dataprep.writer.make_shards", lambda *a: pytest.fail("made a shard"))
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


def test_stop_does_not_continue_over_images_that_a_killed_skip_left_out(images, tmp_path, monkeypatch):
    root, out = images("a.png", "b.png"), tmp_path / "set"
    (root / "a.png").write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr("dataprep.writer._publish", lambda *a: None)
        prepare(Folder(root), out, SMALL, shard_size=1, on_error="skip")
    with pytest.raises(UserError, match=r"^a\.png: not an image"):
        prepare(Folder(root), out, SMALL, shard_size=1)
    assert prepare(Folder(root), out, SMALL, shard_size=1, on_error="skip").count == 1


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGBUS])
def test_a_worker_killed_by_a_signal_is_named_with_its_shard_and_not_waited_for(tmp_path, contents, death):
    out, began = tmp_path / "set", time.monotonic()
    with pytest.raises(WorkError, match=rf"killed by {death.name} at shard-00002\.tar, images 000000004 to") as e:
        prepare(Listed(60, deadly=5, death=death), out, SMALL, shard_size=2, workers=2)
    assert "\n" not in str(e.value)
    assert "run the same command again to continue" in str(e.value)
    assert time.monotonic() - began < 15
    assert not list(out.glob(".*")), "temporary files or locks are left"
    prepare(Listed(60), out, SMALL, shard_size=2)
    prepare(Listed(60), tmp_path / "other", SMALL, shard_size=2)
    assert contents(out) == contents(tmp_path / "other")


def test_signals_to_the_whole_group_do_not_reach_the_workers(tmp_path):
    plan, sent = make_plan(Listed(10, sec=0.05), {tmp_path: SMALL}, shard_size=2), []

    def tell(done: int) -> None:
        if not sent:  # at the first report the workers are still starting
            workers = (p for p in psutil.Process().children() if "resource_tracker" not in " ".join(p.cmdline()))
            sent.extend(workers)
        for child in sent:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
                child.send_signal(number)

    make_shards((plan.job(n, plan.targets) for n in range(plan.shards)), 2, tell)
    assert len(sent) >= 2
    assert len(list(tmp_path.glob("shard-*.tar"))) == 5


# --- progress


def test_progress_counts_images_and_starts_with_what_an_earlier_run_has_done(tmp_path):
    out, told = tmp_path / "set", []
    prepare_all(Listed(60), {out: SMALL}, shard_size=20, part=(0, 3))

    def tell(done: int, total: int) -> None:
        told.append((time.monotonic(), done, total))

    prepare(Listed(60, sec=0.1), out, SMALL, shard_size=20, workers=2, progress=tell)
    done = [d for _, d, _ in told]
    assert done[0] == 20
    assert done[-1] == 60
    assert done == sorted(done)
    assert {t for _, _, t in told} == {60}
    assert any(d % 20 for d in done), "the bar moves within a shard"
    calls = [when for when, _, _ in told[1:-1]]
    assert all(b - a > 0.45 for a, b in itertools.pairwise(calls)), "twice a second at most"


# --- parts


def test_parts_make_the_shards_of_one_run_and_the_last_call_publishes(photographs, undisturbed, tmp_path, contents):
    out, source = tmp_path / "set", Folder(photographs)
    for i in (2, 0, 1):
        assert prepare_all(source, {out: STORED}, shard_size=10, part=(i, 3)) == []
        made = {int(p.name[6:11]) % 3 for p in out.glob("*.tar")}
        assert made == {2: {2}, 0: {0, 2}, 1: {0, 1, 2}}[i]
        assert not (out / "manifest.json").exists()
    seen: list[int] = []
    prepare_all(source, {out: STORED}, shard_size=10, progress=lambda done, total: seen.append(total - done))
    assert set(seen) == {0}, "the publishing call made images"
    assert contents(out) == contents(undisturbed)


def test_a_part_leaves_the_unfinished_files_of_other_parts_alone(tmp_path):
    out = tmp_path / "set"
    prepare_all(Listed(8), {out: SMALL}, shard_size=2, part=(0, 2))
    for number in (0, 1):
        (out / f".shard-0000{number}.tar.1.tmp").touch()
    prepare_all(Listed(8), {out: SMALL}, shard_size=2, part=(0, 2))
    assert [p.name for p in out.glob(".shard*")] == [".shard-00001.tar.1.tmp"]


def test_parts_run_side_by_side_but_not_twice_nor_beside_a_whole_run(tmp_path):
    out, source = tmp_path / "set", Listed(8)
    with held(out, part=(0, 2)):
        prepare_all(source, {out: SMALL}, shard_size=2, part=(1, 2))
        for part in ((0, 2), None):
            with pytest.raises(UserError, match="another `graticule prep` is writing there"):
                prepare_all(source, {out: SMALL}, shard_size=2, part=part)
    with held(out), pytest.raises(UserError, match="another `graticule prep` is writing there"):
        prepare_all(source, {out: SMALL}, shard_size=2, part=(0, 2))
    assert prepare(source, out, SMALL, shard_size=2).count == 8
    assert sorted(p.name for p in out.iterdir())[:2] == ["index.bin", "manifest.json"], "locks are left"


@pytest.mark.parametrize("part", [(2, 2), (-1, 2), (0, 0)])
def test_a_part_that_there_cannot_be_is_refused(tmp_path, part):
    with pytest.raises(UserError, match=r"^part="):
        prepare_all(Listed(1), {tmp_path / "set": SMALL}, part=part)


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_anew(tmp_path):
    """The holder removes the file at its end; who opened it before must not hold a lock that nobody sees."""
    program = """
import sys
from pathlib import Path
from dataprep.hold import held
from pipeline.errors import UserError
inside = Path(sys.argv[1]).with_name("inside")
for i in range(150):
    try:
        with held(Path(sys.argv[1])):
            inside.mkdir()
            inside.rmdir()
    except UserError:
        pass
"""
    crew = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "set")]) for _ in range(3)]
    assert [process.wait(60) for process in crew] == [0, 0, 0], "two were inside at a time"
    assert not list((tmp_path / "set").glob("*"))


# --- memory


def test_jobs_of_200000_images_are_built_one_at_a_time(tmp_path, monkeypatch):
    source, seen = Listed(200_000), []
    entries = source.entries(8)
    monkeypatch.setattr(Listed, "entries", lambda self, size_px: entries)

    def take(jobs: Iterator[Any], workers: int, report: Any) -> None:
        seen.append(sum(len(job.entries) for job in jobs))
        seen.append(tracemalloc.get_traced_memory()[1] - before)

    monkeypatch.setattr("dataprep.writer.make_shards", take)
    monkeypatch.setattr("dataprep.writer._publish", lambda *a: None)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        prepare(source, tmp_path / "set", SMALL, shard_size=100)
    finally:
        tracemalloc.stop()
    assert seen[0] == 200_000
    assert seen[1] < 5 << 20, f"{seen[1]} bytes; the list alone has {200_000 * (9 + 8 + 4 + 8)}"


def test_a_pool_takes_jobs_as_workers_become_free(tmp_path):
    plan, taken = make_plan(Listed(64), {tmp_path: SMALL}, shard_size=1), []

    def jobs() -> Iterator[Any]:
        for n in range(plan.shards):
            taken.append(n)
            yield plan.job(n, plan.targets)

    made: list[int] = []
    make_shards(jobs(), 2, lambda done: made.append(len(taken) - done))
    assert len(taken) == 64
    assert max(made) <= 4, "jobs pile up"


# --- old and foreign files


@pytest.mark.parametrize("state", ["finished", "killed"])
def test_shards_left_over_from_a_larger_run_are_refused_and_named(images, tmp_path, contents, monkeypatch, state):
    root, out = images("a.png", "b.png", "c.png"), tmp_path / "set"
    with monkeypatch.context() as patch:
        if state == "killed":
            patch.setattr("dataprep.writer._publish", lambda *a: None)
        prepare(Folder(root), out, SMALL, shard_size=1)
    before = contents(out)
    (root / "c.png").unlink()
    with pytest.raises(UserError, match="other images" if state == "finished" else "holds shard-0000"):
        prepare(Folder(root), out, SMALL, shard_size=1)
    assert contents(out) == before


def test_the_last_shard_of_a_larger_run_is_refused_also_where_the_others_are_gone(images, tmp_path, monkeypatch):
    root, out = images("a.png", "b.png", "c.png"), tmp_path / "set"
    with monkeypatch.context() as patch:
        patch.setattr("dataprep.writer._publish", lambda *a: None)
        prepare(Folder(root), out, SMALL, shard_size=1)
    for number in (0, 1):
        (out / f"shard-0000{number}.tar").unlink()
        (out / f"shard-0000{number}.done.json").unlink()
    (root / "c.png").unlink()
    with pytest.raises(UserError, match=r"holds shard-00002\.done\.json"):
        prepare(Folder(root), out, SMALL, shard_size=1)


def test_an_error_in_one_shard_stops_the_work_on_the_others(images, tmp_path):
    source, began = Listed(200, deadly=0, sec=0.2), time.monotonic()
    with pytest.raises(WorkError, match=r"SIGKILL at shard-00000\.tar"):
        prepare(source, tmp_path / "set", SMALL, shard_size=100, workers=2)
    assert time.monotonic() - began < 15, "the other shard was made to its end"
    assert not (tmp_path / "set").exists()
