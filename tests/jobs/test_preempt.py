"""Signals only set a flag; what follows the save depends on the executor, the signal and Slurm's word."""

import os
import signal
import subprocess

import pytest

from jobs import preempt


@pytest.fixture(autouse=True)
def handlers(monkeypatch):
    monkeypatch.delenv("SUBMITIT_EXECUTOR", raising=False)
    before = {s: signal.getsignal(s) for s in (signal.SIGUSR2, signal.SIGTERM)}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


def submitted(monkeypatch, executor: str, handler) -> preempt.StopFlag:
    """As submitit leaves a process: its own handler on USR2."""
    monkeypatch.setenv("SUBMITIT_EXECUTOR", executor)
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    signal.signal(signal.SIGUSR2, handler)
    return preempt.install()


def requeues(signum, frame):
    raise SystemExit(144)


@pytest.mark.parametrize("signum", [signal.SIGUSR2, signal.SIGTERM])
def test_signal_only_sets_the_flag(signum, monkeypatch):
    flag = submitted(monkeypatch, "slurm", requeues)
    assert not flag()
    os.kill(os.getpid(), signum)
    os.kill(os.getpid(), signum)
    assert flag()
    assert flag.signals == [signum, signum]


def test_without_a_queue_requeue_says_how_to_go_on(capsys):
    flag = preempt.install()
    os.kill(os.getpid(), signal.SIGTERM)
    preempt.requeue(flag, rank=1)
    assert capsys.readouterr().out == ""
    preempt.requeue(flag, rank=0)
    assert "the same command again resumes" in capsys.readouterr().out


def test_other_ranks_leave_without_a_word_to_the_queue(monkeypatch):
    flag = submitted(monkeypatch, "slurm", requeues)
    with pytest.raises(SystemExit) as e:
        preempt.requeue(flag, rank=1)
    assert e.value.code == 0


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGUSR2, 144), (signal.SIGTERM, 143)])
def test_local_starts_again_on_usr2_and_not_on_a_cancel(signum, code, monkeypatch):
    flag = submitted(monkeypatch, "local", requeues)
    flag.raised(signum)
    with pytest.raises(SystemExit) as e:
        preempt.requeue(flag, rank=0)
    assert e.value.code == code


@pytest.mark.parametrize(
    ("state", "code"), [("RUNNING", 144), ("unknown", 144), ("COMPLETING", 0), ("PENDING", 0), ("gone", 0)]
)
def test_slurm_is_asked_whether_the_job_is_still_to_be_requeued(state, code, monkeypatch):
    flag = submitted(monkeypatch, "slurm", requeues)
    monkeypatch.setattr(preempt, "_slurm_state", lambda: state)
    flag.raised(signal.SIGTERM)
    with pytest.raises(SystemExit) as e:
        preempt.requeue(flag, rank=0)
    assert e.value.code == code


@pytest.mark.parametrize("problem", [subprocess.CalledProcessError(1, "scontrol"), FileNotFoundError("scontrol")])
def test_failing_scontrol_leaves_without_a_result(problem, monkeypatch, caplog):
    def fails(signum, frame):
        raise problem

    flag = submitted(monkeypatch, "slurm", fails)
    monkeypatch.setattr(preempt, "_slurm_state", lambda: "RUNNING")
    with pytest.raises(SystemExit) as e:
        preempt.requeue(flag, rank=0)
    assert e.value.code == 1, "SystemExit: submitit writes no result for it"
    assert "submit again to resume" in caplog.text


def test_missing_squeue_is_an_unknown_state(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert preempt._slurm_state() == "unknown"
