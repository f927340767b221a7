"""From the signal back into the queue, with submitit's real handler, pickle and process, signalled where it hurts.

Only squeue and scontrol are fakes: they say and do what a cluster does at the worst of times.
"""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import cloudpickle
import pytest
from submitit.core.utils import DelayedSubmission

from jobs.preempt import DELAY, NOT_QUEUED, install, requeue, requeue_at_once

cloudpickle.register_pickle_by_value(sys.modules[__name__])
JOB = "import sys; from submitit.core.submission import process_job; process_job(sys.argv[1])"
REQUEUED = 255  # submitit's exit code


class Saved:
    """What TrainJob does after the collective save, without a training."""

    def __init__(self, *signals: int, while_rewriting: int | None = None):
        self.signals, self.while_rewriting = signals, while_rewriting

    def __call__(self) -> str:
        flag = install()
        self.signal()
        requeue(flag, int(os.environ.get("SLURM_PROCID", 0)))
        return "not reached"

    def signal(self) -> None:
        for signum in self.signals:
            os.kill(os.getpid(), signum)

    def checkpoint(self) -> DelayedSubmission:
        return DelayedSubmission(self)

    def __getstate__(self) -> dict:
        if "SUBMITIT_FOLDER" in os.environ and self.while_rewriting:
            os.kill(os.getpid(), self.while_rewriting)  # the temporary file of the rewriting is open
        return self.__dict__


class AtOnce(Saved):
    """What PrepJob does: all of it inside the signal."""

    def __call__(self) -> str:
        requeue_at_once()
        self.signal()
        return "not reached"


@dataclass
class Ended:
    code: int
    out: str
    err: str
    folder: Path

    @property
    def requests(self) -> list[str]:
        path = self.folder / "requests"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def countdown(self) -> int:
        (path,) = self.folder.glob("*_submitted.pkl")
        return DelayedSubmission.load(path)._timeout_countdown

    def wrote_a_result(self) -> bool:
        return bool(list(self.folder.glob("*_result.pkl*")))


@pytest.fixture
def run(tmp_path):
    def run(job: Saved, squeue: str = "RUNNING 1:00:00 0", scontrol: str = "", countdown: int = 3, **env: str) -> Ended:
        delayed = DelayedSubmission(job)
        delayed.set_timeout(5, countdown)  # submitit itself takes any signal for a time-out in a job that short
        delayed.dump(tmp_path / f"{'5_2' if 'SLURM_ARRAY_JOB_ID' in env else '7'}_submitted.pkl")
        (tmp_path / "bin").mkdir()
        asked = '[ "$3" = --jobs=7 ] || [ "$3" = --jobs=5_2 ] || exit 1'
        bodies = {"squeue": f"{asked}; echo {squeue}", "scontrol": f"echo $* >> {tmp_path}/requests\n{scontrol}"}
        for name, body in bodies.items():
            (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
            (tmp_path / "bin" / name).chmod(0o755)
        bare = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SUBMITIT_"))}
        bare |= {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "7"}
        command = [sys.executable, "-c", JOB, str(tmp_path)]
        done = subprocess.run(
            command, env={**bare, DELAY: "100", **env}, capture_output=True, text=True, timeout=60, check=False
        )
        return Ended(done.returncode, done.stdout, done.stderr, tmp_path)

    return run


KINDS = [Saved, AtOnce]


@pytest.mark.parametrize("kind", KINDS)
def test_a_preemption_is_requeued_and_leaves_the_time_outs_alone(kind, run):
    ended = run(kind(signal.SIGUSR2))
    assert (ended.code, ended.requests, ended.countdown) == (REQUEUED, ["requeue 7"], 3), ended.err
    assert not ended.wrote_a_result()


@pytest.mark.parametrize("kind", KINDS)
def test_a_time_limit_counts_down(kind, run):
    ended = run(kind(signal.SIGUSR2), squeue="RUNNING 1:30 0")
    assert (ended.code, ended.requests, ended.countdown) == (REQUEUED, ["requeue 7"], 2), ended.err


def test_a_term_alone_is_a_preemption_while_slurm_lets_the_job_run(run):
    ended = run(Saved(signal.SIGTERM))
    assert (ended.code, ended.requests, ended.countdown) == (REQUEUED, ["requeue 7"], 3), ended.err


def test_an_array_task_requeues_itself_and_not_its_array(run):
    env = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2", "SLURM_JOB_ID": "5"}  # so it is for one task of each
    ended = run(Saved(signal.SIGUSR2), squeue="RUNNING 1:30 0", **env)
    assert (ended.code, ended.requests, ended.countdown) == (REQUEUED, ["requeue 5_2"], 2), ended.err


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("second", [signal.SIGUSR2, signal.SIGTERM])
def test_a_second_signal_does_not_interrupt_the_rewriting_of_the_job(kind, second, run):
    ended = run(kind(signal.SIGUSR2, while_rewriting=second))
    assert (ended.code, ended.requests, ended.countdown) == (REQUEUED, ["requeue 7"], 3), ended.err


def test_two_signals_in_a_row_are_one(run):
    ended = run(Saved(signal.SIGTERM, signal.SIGUSR2, signal.SIGUSR2), squeue="RUNNING 1:30 0")
    assert (ended.code, ended.requests, ended.countdown) == (REQUEUED, ["requeue 7"], 2), ended.err


@pytest.mark.parametrize("kind", KINDS)
def test_signals_during_the_requeue_do_not_requeue_twice(kind, run):
    ended = run(kind(signal.SIGUSR2), scontrol="kill -USR2 $PPID; kill -TERM $PPID; sleep 0.2")
    assert (ended.code, ended.requests) == (REQUEUED, ["requeue 7"]), ended.err


def test_a_requeue_that_slurm_was_faster_with_is_no_error(run, tmp_path):
    squeue = tmp_path / "bin" / "squeue"
    ended = run(Saved(signal.SIGUSR2), scontrol=f"printf '#!/bin/sh\\necho COMPLETING 1:00:00 1\\n' > {squeue}; exit 1")
    assert (ended.code, ended.requests) == (0, ["requeue 7"]), ended.err
    assert "saved; the job is COMPLETING already: Slurm sees to the rest" in ended.out
    assert not ended.wrote_a_result(), "a poller would see a failure"


def test_a_requeue_that_fails_is_one_line_and_a_failed_job(run):
    ended = run(Saved(signal.SIGUSR2), scontrol="exit 1")
    assert ended.code == NOT_QUEUED
    assert "scontrol requeue failed" in ended.out
    assert "Traceback" not in ended.err
    assert not ended.wrote_a_result()


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_kill_left_of_an_earlier_rewriting_is_no_obstacle(kind, run, tmp_path):
    (tmp_path / "7_submitted.pkl.save_tmp").write_bytes(b"half")
    ended = run(kind(signal.SIGUSR2))
    assert (ended.code, ended.requests, ended.countdown) == (REQUEUED, ["requeue 7"], 3), ended.err


class Finished(Saved):
    def __call__(self) -> str:
        install()
        return "done"


def test_nor_is_what_it_left_of_a_result(run, tmp_path):
    (tmp_path / "7_0_result.pkl.save_tmp").write_bytes(b"half")
    ended = run(Finished())
    assert ended.code == 0, ended.err
    assert [path.name for path in tmp_path.glob("*_result*")] == ["7_0_result.pkl"]


def test_a_job_without_time_outs_left_ends_with_a_word_and_not_with_a_traceback(run):
    ended = run(Saved(signal.SIGUSR2), squeue="RUNNING 1:30 0", countdown=0)
    assert (ended.code, ended.requests) == (NOT_QUEUED, [])
    assert "saved; this job has used up its time limits: submit again to resume, or raise max_num_timeout" in ended.out
    assert "Traceback" not in ended.err
    assert not ended.wrote_a_result()


def test_without_time_outs_left_a_preemption_is_still_requeued(run):
    ended = run(Saved(signal.SIGUSR2), countdown=0)
    assert (ended.code, ended.requests, ended.countdown) == (REQUEUED, ["requeue 7"], 0), ended.err


def test_other_ranks_leave_without_a_result(run):
    ended = run(Saved(signal.SIGUSR2), SLURM_PROCID="1")
    assert (ended.code, ended.requests) == (0, []), ended.err
    assert not ended.wrote_a_result()
