"""prep as a job array on two nodes of a real Slurm: undisturbed, with a task killed, cancelled, preempted, left alone.

All make the same small set of real photographs, so all must end with the bytes of one process on this machine.
"""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import jobs.prep
from dataprep.hold import HIDDEN
from dataprep.sources import open_source
from dataprep.sources.photos import Photos
from dataprep.transform import Transform
from dataprep.writer import prepare_all
from jobs import ledger
from jobs.prep import run_on
from pipeline.errors import UserError, WorkError

pytestmark = pytest.mark.slurm
SIZES = (48, 32)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    source, cut = Photos(), Transform(size_px=128, encoding="jpg")
    for i, entry in enumerate(source.entries(128)):  # enough work that a task is met on its way
        (folder / f"{i:04d}.jpg").write_bytes(cut(source.read(entry)))
    return folder


def outs(folder: Path) -> dict[Path, Transform]:
    return {folder / str(size): Transform(size_px=size) for size in SIZES}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def alone(photographs, tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("alone")
    prepare_all(open_source("folder", photographs), outs(folder), shard_size=4)
    return contents(folder)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(jobs.prep, "POLL_SEC", 0.2)
    monkeypatch.setattr(jobs.prep, "ASK_SEC", (1.0, 1.0))
    monkeypatch.setattr(jobs.prep, "GRACE_SEC", 3.0)
    yield
    subprocess.run(["scancel", f"--user={os.getuid()}"], check=True)
    deadline = time.monotonic() + 30
    while ledger.slurm_states() and time.monotonic() < deadline:
        time.sleep(0.2)


class Array:
    """One call of run_on at a time, in `out`."""

    def __init__(self, photographs: Path, out: Path):
        self.photographs, self.out, self.said = photographs, out, []
        self.book = out / str(SIZES[0]) / HIDDEN

    def run(self, progress: Callable[[int, int], None] | None = None) -> None:
        self.said = []
        source = open_source("folder", self.photographs)
        run_on(
            "lab",
            source,
            self.photographs,
            outs(self.out),
            jobs=4,
            shard_size=4,
            progress=progress,
            say=self.said.append,
        )

    def when_under_way(self, part: int, act: Callable[[str, psutil.Process], object]) -> threading.Thread:
        """Run act(job id, process) beside the call, while the task of that part stands still after its first shards."""
        mark = self.out / str(SIZES[0]) / f"shard-{part:05d}.done.json"

        def watch() -> None:
            wait(lambda: len(ledger.submissions(self.book)) == 4)
            task = ledger.submissions(self.book)[part].job_id
            wait(lambda: process_of(task) is not None)
            process = process_of(task)
            assert process
            wait(mark.exists)
            process.suspend()
            act(task, process)

        thread = threading.Thread(target=watch)
        thread.start()
        return thread


def wait(condition: Callable[[], bool], sec: float = 60) -> None:
    deadline = time.monotonic() + sec
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def process_of(task: str) -> psutil.Process | None:
    """The Python process of an array task; from the lab every process of every node is visible."""
    array, _, index = task.partition("_")
    for process in psutil.process_iter():
        try:
            env, command = process.environ(), process.cmdline()
        except psutil.Error:
            continue
        mine = (env.get("SLURM_ARRAY_JOB_ID"), env.get("SLURM_ARRAY_TASK_ID")) == (array, index)
        if mine and "SLURM_STEP_ID" in env and "submitit.core._submit" in command:
            return process
    return None


@pytest.fixture
def array(photographs, tmp_path) -> Array:
    return Array(photographs, tmp_path / "set")


def test_four_tasks_on_two_nodes_make_the_bytes_of_one_process(array, alone):
    seen: list[int] = []
    nodes: set[str] = set()

    def watch(done: int, total: int) -> None:
        seen.append(done)
        command = ["squeue", "--noheader", "--states=running", "--format=%N", f"--user={os.getuid()}"]
        nodes.update(subprocess.run(command, capture_output=True, text=True).stdout.split())

    array.run(watch)
    assert contents(array.out) == alone
    assert array.said[0].startswith("4 jobs on lab (")
    assert nodes == {"node1", "node2"}
    assert seen == sorted(seen)
    assert any(0 < done < seen[-1] for done in seen), "progress came only at the end"


def test_a_killed_task_is_reported_and_the_same_command_continues(array, alone):
    thread = array.when_under_way(2, lambda task, process: process.kill())
    with pytest.raises(WorkError, match=r"^job \d+_2 on lab failed: .*_2_0_log\.err; .*the same command again") as e:
        array.run()
    thread.join()
    assert "\n" not in str(e.value)
    array.run()
    assert contents(array.out) == alone


def test_a_cancelled_task_is_reported_and_the_same_command_continues(array, alone):
    def cancel(task: str, process: psutil.Process) -> None:
        subprocess.run(["scancel", task], check=True)
        with contextlib.suppress(psutil.Error):
            while True:  # scancel wakes it up, and it would be done before it is killed
                process.suspend()
                time.sleep(0.001)

    thread = array.when_under_way(1, cancel)
    with pytest.raises(WorkError, match=r"^job \d+_1 on lab failed: s.*_1_0_log\.err; .*same command"):
        array.run()
    thread.join()
    array.run()
    assert contents(array.out) == alone


def test_a_preempted_task_is_queued_again_and_goes_on_by_itself(array, alone):
    def preempt(task: str, process: psutil.Process) -> None:
        subprocess.run(["scancel", "--signal=USR2", task], check=True)
        process.resume()

    thread = array.when_under_way(0, preempt)
    logs: list[str] = []

    def read(done: int, total: int) -> None:  # they are removed when the set is published
        logs[:] = [path.read_text() for path in array.book.rglob("*_0_0_log.*")]

    array.run(read)
    thread.join()
    assert contents(array.out) == alone
    assert len(array.said) == 1, "submitted twice"
    assert any("Requeued job" in log for log in logs)


def test_ctrl_c_leaves_the_tasks_at_work_and_the_same_command_waits_for_them(array, alone):
    def interrupt(task: str, process: psutil.Process) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
        process.resume()

    thread = array.when_under_way(0, interrupt)
    with pytest.raises(KeyboardInterrupt):
        array.run()
    array_id = ledger.submissions(array.book)[0].job_id.partition("_")[0]
    assert array.said[-1].endswith(f"to stop them: scancel {array_id}")
    with pytest.raises(UserError, match="another `graticule prep` is writing there"):
        prepare_all(open_source("folder", array.photographs), outs(array.out), shard_size=4)
    thread.join()
    array.run()
    assert [line.partition(" jobs ")[2] for line in array.said] == [
        f"are at work on it already ({array_id}); waiting for them"
    ]
    assert contents(array.out) == alone


def test_unknown_partition_is_refused_in_one_line(photographs, tmp_path):
    file = tmp_path / "moon.toml"
    file.write_text('executor = "slurm"\npartition = "moon"\ntimeout_min = 5\n')
    with pytest.raises(UserError, match=r"sbatch refused the job: .*invalid partition") as e:
        run_on(str(file), open_source("folder", photographs), photographs, outs(tmp_path / "set"), jobs=2)
    assert "\n" not in str(e.value)
