"""Signals: a handler that only sets a flag, and the way back into the queue once all ranks have saved.

submitit's own handler works inside the signal, on rank 0 alone, where nothing collective can be saved. So it
is remembered, replaced by a flag, and called after the collective save; its bookkeeping (time-outs left,
pickle, requeue) stays submitit's. Whether a signal means the time limit is decided here. Deliberately knows
nothing of what is saved.

Differs from submitit: there, every signal late in a job, or in one of ten minutes or less, counts as a time-out.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from jobs.ledger import cancel_mark

Cause = Literal["", "time limit", "preemption", "cancelled"]
DELAY = "GRATICULE_SIGNAL_DELAY_S"  # how long before the time limit the scheduler is asked to warn
LOCAL_END = "GRATICULE_JOB_END_TIME"  # a local job's time limit, as SLURM_JOB_END_TIME is Slurm's (from 23.02)
EARLY_SEC = 60  # Slurm's documented imprecision of the warning
SLACK_SEC = 15
NOT_QUEUED = 75  # exit code of rank 0: saved, but nobody put the job back into the queue
OURS = ("RUNNING", "SIGNALING", "unknown")  # states of a job that Slurm has no other plans with


class StopFlag:
    """`should_stop`: true once a signal asked for a stop."""

    def __init__(self, successors: int = 0) -> None:
        self.signals: list[int] = []
        self.arrived: tuple[float, float] | None = None  # the first one: time.time(), time.monotonic()
        self.requeuer: Callable[[int, Any], Any] | None = None  # submitit's handler, where there is one
        self.successors = successors  # jobs of the same run that wait for this one to fail
        self._cause: Cause = ""

    def __call__(self) -> bool:
        return bool(self.signals)

    def raised(self, signum: int, frame: Any = None) -> None:
        if self.arrived is None:
            self.arrived = time.time(), time.monotonic()
        self.signals.append(signum)

    def why(self) -> Cause:
        """What the stop is about; "" while no signal has reached this rank.

        The first call may ask Slurm, which takes a while: call it after the save, on rank 0.
        """
        if self.arrived and not self._cause:
            self._cause = _cause(self.signals, *self.arrived)
        return self._cause


def install(successors: int = 0) -> StopFlag:
    """Replace the handlers of USR2 and TERM by a flag. Call it in the main thread, before any long work."""
    flag = StopFlag(successors)
    before = signal.getsignal(signal.SIGUSR2)
    if "SUBMITIT_EXECUTOR" in os.environ and callable(before):
        flag.requeuer = before
        _forget_half("result_pickle", before)
    for signum in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(signum, flag.raised)
    return flag


def requeue_at_once() -> None:
    """For work that may be cut off anywhere, in one process: USR2 puts its job back into the queue, without a save."""
    flag, before = StopFlag(), signal.getsignal(signal.SIGUSR2)
    if callable(before):
        flag.requeuer = before
        signal.signal(signal.SIGUSR2, lambda signum, _: (flag.raised(signum), call_once(flag)))


def call_once(flag: StopFlag) -> None:
    """submitit's handler, which does not return; whether time-outs count down is the flag's word.

    A second signal does not interrupt its rewriting of the job's pickle.
    """
    for signum in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    assert flag.requeuer is not None
    _forget_half("submitted_pickle", flag.requeuer)
    if handler := getattr(flag.requeuer, "__self__", None):
        handler.has_timed_out = lambda: flag.why() == "time limit"
    flag.requeuer(signal.SIGUSR2, None)


def _forget_half(name: str, requeuer: Callable[[int, Any], Any]) -> None:
    """What a kill left of an earlier writing of this file, which submitit takes for an error."""
    if handler := getattr(requeuer, "__self__", None):
        path = getattr(handler._job_paths, name)
        path.with_suffix(f"{path.suffix}.save_tmp").unlink(missing_ok=True)


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
    local = os.environ["SUBMITIT_EXECUTOR"] == "local"
    if _cancel_asked() or (local and flag.why() == "cancelled"):
        _leave("cancelled: saved, not starting again", 128 + signal.SIGTERM)
    if local:
        _call(flag)  # exit code 144: the controller starts all ranks again
    _requeue_slurm(flag)


def _requeue_slurm(flag: StopFlag) -> NoReturn:
    """Slurm may requeue or end the job by itself: its state tells. What cannot be requeued fails, for a successor."""
    if (state := _state()) not in OURS:
        _leave(f"saved; the job is {state}: Slurm sees to the rest", 0)
    if shutil.which("scontrol") is None:
        instead = "submit again, or set successors in the cluster file"
        _leave(f"saved; scontrol is not on this node: {_next_in_line(flag) or instead}", NOT_QUEUED)
    try:
        _call(flag)
    except (subprocess.SubprocessError, OSError) as e:
        if (state := _state()) not in OURS:
            _leave(f"saved; the job is {state} already: Slurm sees to the rest", 0)
        _leave(f"saved; scontrol requeue failed ({e}): {_next_in_line(flag) or 'submit again to resume'}", NOT_QUEUED)


def _call(flag: StopFlag) -> NoReturn:
    from submitit.core.utils import UncompletedJobError

    try:
        call_once(flag)
    except UncompletedJobError:
        instead = "submit again to resume, or raise max_num_timeout in the cluster file"
        _leave(f"saved; this job has used up its time limits: {_next_in_line(flag) or instead}", NOT_QUEUED)
    raise SystemExit(1)


def _next_in_line(flag: StopFlag) -> str:
    return f"the next of {flag.successors} queued successors goes on" if flag.successors else ""


def _leave(line: str, code: int) -> NoReturn:
    """SystemExit: submitit writes no result for it."""
    print(line, flush=True)
    raise SystemExit(code)


def _cause(signals: list[int], wall: float, monotonic: float) -> Cause:
    """`wall`, `monotonic`: when the first signal arrived."""
    if _cancel_asked():
        return "cancelled"
    local, job = os.environ.get("SUBMITIT_EXECUTOR") == "local", None
    if local or "SLURM_JOB_ID" not in os.environ:
        if signal.SIGUSR2 not in signals:
            return "cancelled"
    elif job := _ask_slurm():
        if job.restarts > int(os.environ.get("SLURM_RESTART_COUNT", 0)):
            return "preemption"  # requeued by Slurm: the rest of what it tells is of the next attempt
    if job and job.left_sec is not None:
        left = job.left_sec + time.monotonic() - monotonic
    else:
        left = float(os.environ.get(LOCAL_END if local else "SLURM_JOB_END_TIME", "inf")) - wall
    if left <= float(os.environ.get(DELAY, 120)) + (0 if local else EARLY_SEC) + SLACK_SEC:
        return "time limit"
    return "cancelled" if job and job.state not in OURS else "preemption"


def _cancel_asked() -> bool:
    if "SUBMITIT_FOLDER" not in os.environ:
        return False
    import submitit

    return cancel_mark(Path(os.environ["SUBMITIT_FOLDER"]), submitit.JobEnvironment().job_id).exists()


@dataclass(frozen=True)
class _Told:
    """What Slurm says of this job."""

    state: str
    left_sec: float | None  # until the time limit
    restarts: int


def _ask_slurm() -> _Told | None:
    """None: no answer."""
    array, job_id = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ["SLURM_JOB_ID"]
    if array is not None:  # one of its tasks has the array's own id as SLURM_JOB_ID
        job_id = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    command = ["squeue", "--noheader", "--Format=State:20,TimeLeft:20,RestartCnt:20", f"--jobs={job_id}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        if not done.stdout.strip():
            return _Told("gone", None, 0)
        state, left, restarts = done.stdout.split()
        return _Told(state, _seconds(left), int(restarts))
    except (subprocess.SubprocessError, OSError, ValueError):
        return None


def _state() -> str:
    told = _ask_slurm()
    return told.state if told else "unknown"


def _seconds(text: str) -> float | None:
    """Slurm's [days-][[hours:]minutes:]seconds; None: it has no number."""
    days, _, rest = text.rpartition("-")
    try:
        parts = [0, 0, *map(int, rest.split(":"))][-3:]
        return int(days or 0) * 86400.0 + parts[0] * 3600 + parts[1] * 60 + parts[2]
    except ValueError:
        return None
