"""Signals: a handler that only sets a flag, and the way back into the queue once all ranks have saved.

submitit's own handler works inside the signal, on rank 0 alone, where nothing collective can be saved. So it
is remembered, replaced by a flag, and called after the collective save; its bookkeeping (time-outs left,
pickle, requeue) stays submitit's. Deliberately knows nothing of what is saved.
"""

import logging
import os
import signal
import subprocess
from collections.abc import Callable
from typing import Any, NoReturn

log = logging.getLogger(__name__)


class StopFlag:
    """`should_stop`: true once a signal asked for a stop."""

    def __init__(self) -> None:
        self.signals: list[int] = []
        self.requeuer: Callable[[int, Any], Any] | None = None  # submitit's handler, where there is one

    def __call__(self) -> bool:
        return bool(self.signals)

    def raised(self, signum: int, frame: Any = None) -> None:
        self.signals.append(signum)


def install() -> StopFlag:
    """Replace the handlers of USR2 and TERM by a flag. Call it in the main thread, before any long work."""
    flag = StopFlag()
    before = signal.getsignal(signal.SIGUSR2)
    if "SUBMITIT_EXECUTOR" in os.environ and callable(before):
        flag.requeuer = before
    for signum in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(signum, flag.raised)
    return flag


def call_once(requeuer: Callable[[int, Any], Any]) -> None:
    """submitit's handler, which does not return. A second signal does not interrupt its rewriting of the job's pickle,
    and what a kill left of an earlier rewriting does not stop it."""
    for signum in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    paths = getattr(getattr(requeuer, "__self__", None), "_job_paths", None)
    if paths is not None:
        submitted = paths.submitted_pickle
        submitted.with_suffix(f"{submitted.suffix}.save_tmp").unlink(missing_ok=True)
    requeuer(signal.SIGUSR2, None)


def requeue(flag: StopFlag, rank: int) -> None:
    """On every rank, after the collective save. In a submitit job it does not return.

    Rank 0 puts the job back into the queue if that is what the signal means; the others leave without a
    result, which submitit would take for the job's end. Elsewhere there is no queue: it says how to go on.
    """
    if flag.requeuer is None:
        if rank == 0:
            print("stopped after a checkpoint; the same command again resumes", flush=True)
        return
    if rank != 0:
        raise SystemExit(0)
    if os.environ["SUBMITIT_EXECUTOR"] == "local":
        _requeue_local(flag)
    _requeue_slurm(flag)


def _requeue_local(flag: StopFlag) -> NoReturn:
    if signal.SIGUSR2 in flag.signals:
        assert flag.requeuer is not None
        call_once(flag.requeuer)  # exit code 144: the controller starts all ranks again
    log.warning("cancelled: saved, not starting again")
    raise SystemExit(128 + signal.SIGTERM)


def _requeue_slurm(flag: StopFlag) -> NoReturn:
    """TERM may mean preemption or scancel, and Slurm may requeue by itself: its state of the job tells."""
    state = _slurm_state()
    if state not in ("RUNNING", "unknown"):
        log.warning("job is %s: saved, leaving the rest to Slurm", state)
        raise SystemExit(0)
    try:
        assert flag.requeuer is not None
        call_once(flag.requeuer)
    except (subprocess.SubprocessError, OSError) as e:
        log.error("saved, but scontrol requeue failed (%s); submit again to resume", e)
    raise SystemExit(1)


def _slurm_state() -> str:
    command = ["squeue", "--noheader", "--format=%T", f"--jobs={os.environ['SLURM_JOB_ID']}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (subprocess.SubprocessError, OSError):
        return "unknown"
    return done.stdout.strip() or "gone"
