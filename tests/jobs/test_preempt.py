"""Signals only set a flag; what they mean, and what follows the save, depends on the executor and on Slurm's word.

squeue and scontrol are fakes here, for answers that a cluster gives only in passing; tests/slurm has the real ones.
"""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from jobs import preempt
from jobs.ledger import cancel_mark


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    """No job around the test, and its handlers afterwards as they were before."""
    for name in os.environ:
        if name.startswith(("SLURM_", "SUBMITIT_", "GRATICULE_")):
            monkeypatch.delenv(name)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    before = {s: signal.getsignal(s) for s in (signal.SIGUSR2, signal.SIGTERM)}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture
def fake(tmp_path):
    """name, shell body -> a command on PATH."""

    def make(name: str, body: str) -> Path:
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return path

    return make


def requeues(signum, frame):
    raise SystemExit(144)


@pytest.fixture
def job(monkeypatch, tmp_path):
    """executor, submitit's handler -> the flag, as submitit leaves a process: its own handler on USR2."""

    def make(executor: str, handler=requeues, successors: int = 0) -> preempt.StopFlag:
        monkeypatch.setenv("SUBMITIT_EXECUTOR", executor)
        monkeypatch.setenv("SUBMITIT_FOLDER", str(tmp_path))
        monkeypatch.setenv("SLURM_JOB_ID" if executor == "slurm" else "SUBMITIT_LOCAL_JOB_ID", "1")
        monkeypatch.setenv(preempt.DELAY, "100")
        signal.signal(signal.SIGUSR2, handler)
        return preempt.install(successors)

    return make


@pytest.mark.parametrize("signum", [signal.SIGUSR2, signal.SIGTERM])
def test_signal_only_sets_the_flag(signum, job):
    flag = job("slurm")
    assert not flag()
    assert flag.why() == ""
    os.kill(os.getpid(), signum)
    os.kill(os.getpid(), signum)
    assert flag()
    assert flag.signals == [signum, signum]


def test_without_a_queue_requeue_says_how_to_go_on(capsys):
    flag = preempt.install()
    os.kill(os.getpid(), signal.SIGTERM)
    assert flag.why() == "cancelled"
    preempt.requeue(flag, rank=1)
    assert capsys.readouterr().out == ""
    preempt.requeue(flag, rank=0)
    assert "the same command again resumes" in capsys.readouterr().out


# Slurm signals up to a minute too early: with 100 s of delay and 15 s to spare, 175 s are left at most.
LEFT = [
    ("RUNNING 2:54 0", "time limit"),
    ("RUNNING 0:00 0", "time limit"),
    ("RUNNING 2:56 0", "preemption"),
    ("RUNNING 1-02:00:00 0", "preemption"),
    ("RUNNING UNLIMITED 0", "preemption"),
    ("COMPLETING 1:00:00 0", "cancelled"),
    ("COMPLETING 0:00 0", "time limit"),
    ("COMPLETING 5:00 1", "preemption"),  # requeued by Slurm, which counts this attempt as over
    ("PENDING 0:10 1", "preemption"),
    ("", "cancelled"),
]


@pytest.mark.parametrize("signum", [signal.SIGUSR2, signal.SIGTERM])
@pytest.mark.parametrize(("squeue", "cause"), LEFT)
def test_cause_is_what_slurm_says_of_the_time_left_whatever_the_signal(squeue, cause, signum, job, fake):
    fake("squeue", f"echo '{squeue}'")
    flag = job("slurm")
    os.kill(os.getpid(), signum)
    assert flag.why() == cause


def test_time_left_counts_from_the_arrival_of_the_signal_and_slurm_is_asked_once(job, fake, tmp_path):
    fake("squeue", f"echo x >> {tmp_path}/asked; echo RUNNING 0:50 0")
    flag = job("slurm")
    os.kill(os.getpid(), signal.SIGUSR2)
    assert flag.arrived
    flag.arrived = flag.arrived[0], flag.arrived[1] - 1000  # as if the save had taken that long
    assert [flag.why(), flag.why()] == ["preemption", "preemption"]
    assert (tmp_path / "asked").read_text() == "x\n"


@pytest.mark.parametrize(("left_sec", "cause"), [(160, "time limit"), (190, "preemption"), (None, "preemption")])
def test_where_squeue_does_not_answer_the_end_time_in_the_environment_decides(left_sec, cause, job, monkeypatch):
    flag = job("slurm")
    if left_sec is not None:
        monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time() + left_sec)))
    flag.raised(signal.SIGUSR2)
    assert flag.why() == cause


@pytest.mark.parametrize(("left_sec", "cause"), [(110, "time limit"), (120, "preemption")])
def test_a_local_job_knows_its_own_end(left_sec, cause, job, monkeypatch):
    flag = job("local")
    monkeypatch.setenv(preempt.LOCAL_END, str(time.time() + left_sec))
    flag.raised(signal.SIGUSR2)
    assert flag.why() == cause
    cancelled = job("local")
    cancelled.raised(signal.SIGTERM)
    assert cancelled.why() == "cancelled"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("59", 59), ("1:01", 61), ("2:00:00", 7200), ("3-00:00:01", 259201), ("INVALID", None), ("NOT_SET", None)],
)
def test_slurms_way_to_write_a_time(text, seconds):
    assert preempt._seconds(text) == seconds


def leave(flag: preempt.StopFlag, rank: int = 0) -> int:
    with pytest.raises(SystemExit) as e:  # and no other way out: submitit writes no result for it
        preempt.requeue(flag, rank)
    return e.value.code


def test_other_ranks_leave_without_a_word_to_the_queue(job):
    assert leave(job("slurm"), rank=1) == 0


@pytest.mark.parametrize(("signals", "code"), [([signal.SIGUSR2], 144), ([signal.SIGTERM], 143), ([], 144)])
def test_local_starts_again_unless_it_is_cancelled(signals, code, job):
    flag = job("local")
    for signum in signals:  # none: another rank was told
        flag.raised(signum)
    assert leave(flag) == code


@pytest.mark.parametrize("executor", ["local", "slurm"])
def test_a_job_that_is_cancelled_does_not_start_again_even_if_it_was_preempted_before(executor, job, tmp_path):
    flag = job(executor)
    flag.raised(signal.SIGUSR2)
    assert flag.why() == "preemption"
    flag.raised(signal.SIGTERM)
    cancel_mark(tmp_path, "1").touch()
    assert leave(flag) == 143


@pytest.mark.parametrize(("state", "code"), [("RUNNING", 144), ("SIGNALING", 144), ("COMPLETING", 0), ("PENDING", 0)])
def test_slurm_is_asked_whether_the_job_is_still_to_be_requeued(state, code, job, fake):
    fake("scontrol", "exit 0")
    fake("squeue", f"echo {state} 1:00:00 0")
    flag = job("slurm")
    flag.raised(signal.SIGTERM)
    assert leave(flag) == code


def test_without_an_answer_the_job_is_requeued_and_when_it_is_gone_it_is_not(job, fake):
    fake("scontrol", "exit 0")
    assert leave(job("slurm")) == 144
    fake("squeue", "exit 0")
    assert leave(job("slurm")) == 0


@pytest.mark.parametrize(
    ("successors", "said"),
    [
        (0, "saved; scontrol is not on this node: submit again, or set successors in the cluster file"),
        (2, "saved; scontrol is not on this node: the next of 2 queued successors goes on"),
    ],
)
def test_without_scontrol_the_job_fails_for_its_successor(successors, said, job, fake, capsys):
    fake("squeue", "echo RUNNING 1:00:00 0")
    flag = job("slurm", successors=successors)
    flag.raised(signal.SIGUSR2)
    assert leave(flag) == preempt.NOT_QUEUED
    assert capsys.readouterr().out == said + "\n"


def refused(signum, frame):
    subprocess.check_call(["scontrol", "requeue", "1"])


def test_failing_scontrol_is_one_line_and_a_failed_job(job, fake, capsys):
    fake("scontrol", "exit 1")
    flag = job("slurm", refused)
    flag.raised(signal.SIGUSR2)
    assert leave(flag) == preempt.NOT_QUEUED
    out = capsys.readouterr().out
    assert "scontrol requeue failed (Command '['scontrol', 'requeue', '1']' returned non-zero" in out
    assert out.endswith("submit again to resume\n")
    assert out.count("\n") == 1


def test_scontrol_that_comes_too_late_leaves_the_job_to_slurm(job, fake, capsys):
    """Slurm requeues between the question and the request."""
    squeue = fake("squeue", "echo RUNNING 1:00:00 0")
    fake("scontrol", f"printf '#!/bin/sh\\necho COMPLETING 1:00:00 1\\n' > {squeue}; exit 1")
    flag = job("slurm", refused)
    flag.raised(signal.SIGUSR2)
    assert leave(flag) == 0
    assert capsys.readouterr().out == "saved; the job is COMPLETING already: Slurm sees to the rest\n"
