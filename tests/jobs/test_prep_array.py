"""prep in several jobs on this machine, really submitted: the bytes of one process, failures named, no job twice."""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

import jobs.prep
from dataprep.hold import HIDDEN
from dataprep.sources import open_source
from dataprep.transform import Transform
from dataprep.writer import prepare, prepare_all
from jobs import ledger
from jobs.cluster import Cluster
from jobs.executors import executor_for
from jobs.prep import run_on
from pipeline.errors import UserError, WorkError

pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
STORED = Transform(size_px=8)


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(12):
        noise = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(jobs.prep, "POLL_SEC", 0.1)
    monkeypatch.setattr(jobs.prep, "ASK_SEC", (0.2, 0.2))
    monkeypatch.setattr(jobs.prep, "GRACE_SEC", 1.0)


@pytest.fixture
def cluster(tmp_path) -> str:
    """This machine; jobs wait in `setup` while the file `hold` is there."""
    file, hold = tmp_path / "here.toml", tmp_path / "hold"
    lines = [f"while [ -e {hold} ]; do sleep 0.05; done", f"echo $FLAVOUR >> {tmp_path}/flavours"]
    file.write_text(f'executor = "local"\ncpus_per_task = 1\nsetup = {lines!r}\n[env]\nA = "b"\n')
    file.write_text(file.read_text().replace("$FLAVOUR", "up"))
    return str(file)


def start(cluster: str, images: Path, outs: dict[Path, Transform], **words):
    said: list[str] = []
    made = run_on(cluster, open_source("folder", images), images, outs, jobs=2, shard_size=2, say=said.append, **words)
    return made, said


def test_two_jobs_make_the_bytes_of_one_process_in_all_sizes(images, tmp_path, cluster):
    outs, seen = {tmp_path / "8": STORED, tmp_path / "4": STORED.replace(size_px=4)}, []
    made, said = start(cluster, images, outs, progress=lambda done, total: seen.append((done, total)))
    assert [(m.size_px, m.count) for m in made] == [(8, 12), (4, 12)]
    assert said[0].startswith("2 jobs on here (")
    assert (tmp_path / "flavours").read_text() == "up\nup\n", "setup ran in each job"
    assert seen[0] == (0, 12)
    assert seen[-1] == (12, 12)
    assert seen == sorted(seen)
    for out, transform in outs.items():
        prepare(open_source("folder", images), tmp_path / "alone" / out.name, transform, shard_size=2)
        assert contents(out) == contents(tmp_path / "alone" / out.name)


def contents(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in out.iterdir()}


def test_an_image_that_cannot_be_taken_is_one_line_with_the_log(images, tmp_path, cluster):
    (images / "05.png").write_bytes(b"")
    out = tmp_path / "set"
    with pytest.raises(WorkError, match=r"failed: 05\.png: not an image .*; log: .*_0_log\.err; ") as e:
        start(cluster, images, {out: STORED})
    assert "\n" not in str(e.value)
    assert "run the same command again to continue" in str(e.value)
    log = Path(str(e.value).split("log: ")[1].split(";")[0])
    assert "graticule: 05.png: not an image" in log.read_text()
    made, _ = start(cluster, images, {out: STORED}, on_error="skip")
    assert (made[0].count, made[0].rejected) == (11, {"not an image": 1})
    assert not (out / HIDDEN).exists()


def test_only_parts_that_lack_shards_are_submitted(images, tmp_path, cluster):
    out = tmp_path / "set"
    prepare_all(open_source("folder", images), {out: STORED}, shard_size=2, part=(0, 2))
    _, said = start(cluster, images, {out: STORED})
    assert said[0].startswith("1 jobs on here")


def test_a_finished_set_starts_no_job(images, tmp_path, cluster):
    first, _ = start(cluster, images, {tmp_path / "set": STORED})
    again, said = start(cluster, images, {tmp_path / "set": STORED})
    assert (again, said) == (first, [])


def test_a_killed_job_is_reported_and_the_same_command_continues(images, tmp_path, cluster):
    out, hold = tmp_path / "set", tmp_path / "hold"
    hold.touch()

    def kill() -> None:
        tasks = []
        while not tasks:
            time.sleep(0.05)
            if len(live := ledger.live(out / HIDDEN)) == 2:
                tasks = psutil.Process(int(live[0][0].job_id)).children(recursive=True)
        for task in tasks:
            task.kill()
        hold.unlink()

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(WorkError, match=r"^job \d+ on here failed: .*run the same command again to continue") as e:
        start(cluster, images, {out: STORED})
    thread.join()
    assert "\n" not in str(e.value)
    made, _ = start(cluster, images, {out: STORED})
    assert made[0].count == 12
    assert not (out / HIDDEN).exists()
    prepare(open_source("folder", images), tmp_path / "alone", STORED, shard_size=2)
    assert contents(out) == contents(tmp_path / "alone")


def test_ctrl_c_leaves_the_jobs_at_work_and_the_same_command_waits_for_them(images, tmp_path, cluster):
    out, hold, said = tmp_path / "set", tmp_path / "hold", []
    hold.touch()

    def interrupt(done: int, total: int) -> None:
        if ledger.live(out / HIDDEN):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run_on(
            cluster,
            open_source("folder", images),
            images,
            {out: STORED},
            jobs=2,
            shard_size=2,
            progress=interrupt,
            say=said.append,
        )
    assert "the jobs go on; the same command again waits for them and finishes; to stop them: kill" in said[-1]
    before = ledger.submissions(out / HIDDEN)
    assert len(ledger.live(out / HIDDEN)) == 2
    with pytest.raises(UserError, match=r"^out=.*jobs are at work there with other words"):
        start(cluster, images, {out: STORED.replace(filter="box")})
    threading.Timer(1.0, hold.unlink).start()
    told: list[list[ledger.Submission]] = []
    made, said = start(
        cluster, images, {out: STORED}, progress=lambda *_: told.append(ledger.submissions(out / HIDDEN))
    )
    assert said[0].startswith("2 jobs are at work on it already (")
    assert len(said) == 1, "jobs were submitted twice"
    assert told[0] == before
    assert made[0].count == 12


def test_kill_of_a_local_job_ends_it(images, tmp_path, cluster):
    out = tmp_path / "set"
    for i in range(100, 700):
        os.link(images / "00.png", images / f"{i}.png")

    def kill() -> None:
        while not list(out.glob("shard-*0.tar")):
            time.sleep(0.002)
        os.kill(int(ledger.submissions(out / HIDDEN)[0].job_id), signal.SIGTERM)

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(WorkError, match=r"^job \d+ on here failed: .*; log: "):
        start(cluster, images, {out: STORED})
    thread.join()
    made, _ = start(cluster, images, {out: STORED})
    assert made[0].count == 612


def test_mistakes_are_told_before_anything_is_submitted(images, tmp_path, cluster):
    out = tmp_path / "set"
    out.mkdir()
    (out / "notes.txt").touch()
    with pytest.raises(UserError, match=r"holds notes\.txt"):
        start(cluster, images, {out: STORED})
    assert [p.name for p in out.iterdir()] == ["notes.txt"]
    with pytest.raises(UserError, match=r"^jobs=0"):
        run_on(cluster, open_source("folder", images), images, {tmp_path / "x": STORED}, jobs=0)
    with pytest.raises(UserError, match="unknown"):
        start("nowhere", images, {tmp_path / "x": STORED})
    assert not (tmp_path / "x").exists()


def test_no_gpu_is_asked_for(tmp_path):
    for request in ("gres", "gpus_per_node"):
        site = Cluster(executor="slurm", timeout_min=5, gpu_request=request, cpus_per_task=8)
        executor = executor_for(tmp_path / request, site, nodes=1, gpus=0, name="x", code=tmp_path)
        text = executor._make_submission_file_text("run", uid="").replace(str(tmp_path), "")
        assert "gpu:" not in text
        assert "--gpus" not in text
        assert "--ntasks-per-node=1" in text
        assert "--cpus-per-task=8" in text
