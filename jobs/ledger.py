"""What was submitted for a run and which of it is alive: <run>/jobs/submitted.jsonl, squeue, local processes.

Every submission owns a numbered folder below <run>/jobs, so no job can read files of an earlier one, whatever
ids the scheduler hands out; those of an array share one below <runs>/.arrays, to which the numbers are links.
Jobs that measure a run are written down in the same way below <run>/evaluation.
Deliberately knows nothing of submitit and of what the jobs do.
"""

import getpass
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

ARRAYS = ".arrays"  # below the folder of the runs
EVALUATION = "evaluation"  # below a run: jobs that measure it are submitted for this folder, not for the run's


@dataclass(frozen=True)
class Submission:
    """One line of submitted.jsonl."""

    number: int  # its folder below <run>/jobs
    job_id: str  # Slurm's, or the pid of submitit's local controller
    executor: str  # local, slurm
    cluster: str
    host: str  # where it was submitted; a local job runs there
    time: float
    nodes: int
    gpus: int
    after: Sequence[str] = ()  # jobs whose end it waits for
    several: bool = False  # it trains other runs too, one after the other

    def folder(self, run: Path) -> Path:
        return number_folder(run, self.number)


def number_folder(run: Path, number: int) -> Path:
    return run / "jobs" / f"{number:03d}"


def next_number(run: Path) -> int:
    return _next(run / "jobs")


def claim(run: Path, shared: Path | None = None) -> int:
    """Make the folder of the next submission, or a link to `shared`; of two at the same time each gets its own."""
    if shared is None:
        return _claim(run / "jobs", Path.mkdir)
    return _claim(run / "jobs", lambda link: link.symlink_to(os.path.relpath(shared, link.parent)))


def array_folder(runs: Path) -> Path:
    """Where the next array's files would go."""
    return runs / ARRAYS / f"{_next(runs / ARRAYS):03d}"


def claim_array(runs: Path) -> Path:
    """Make the folder of the next array."""
    return runs / ARRAYS / f"{_claim(runs / ARRAYS, Path.mkdir):03d}"


def _next(folder: Path) -> int:
    return max((int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit()), default=0) + 1


def _claim(folder: Path, make: Callable[[Path], None]) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        number = _next(folder)
        try:
            make(folder / f"{number:03d}")
            return number
        except FileExistsError:
            continue


def cancel_mark(folder: Path, job_id: str) -> Path:
    """A file in the folder of a submission: this job was cancelled on purpose."""
    return folder / f"{job_id}_cancelled"


def record(run: Path, entry: Submission) -> None:
    """Append to submitted.jsonl."""
    with open(run / "jobs" / "submitted.jsonl", "a") as f:
        f.write(json.dumps(asdict(entry)) + "\n")


def submissions(run: Path) -> list[Submission]:
    """All of them, oldest first."""
    path = run / "jobs" / "submitted.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [Submission(**json.loads(line)) for line in lines if line.strip()]


def queue() -> dict[str, str] | None:
    """State of each of this user's jobs and array tasks that Slurm has not ended; None if it does not answer."""
    if shutil.which("squeue") is None:
        return None
    command = ["squeue", "--noheader", "--array", "--format=%i %T", f"--user={getpass.getuser()}"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (subprocess.SubprocessError, OSError):
        return None
    return dict(line.split(maxsplit=1) for line in text.splitlines() if " " in line)


def slurm_states() -> dict[str, str]:
    """The queue as far as it is known: PENDING, RUNNING, COMPLETING, ..."""
    return queue() or {}


def live(run: Path, slurm: dict[str, str] | None = None) -> list[tuple[Submission, str]]:
    """Submissions that are queued or running, newest first, with their states. `slurm`: slurm_states() if known."""
    entries = submissions(run)
    if slurm is None:
        slurm = slurm_states() if any(e.executor == "slurm" for e in entries) else {}
    states = ((e, slurm.get(e.job_id) if e.executor == "slurm" else _local_state(e, run)) for e in reversed(entries))
    return [(entry, state) for entry, state in states if state]


def alive(run: Path, slurm: dict[str, str] | None = None) -> tuple[Submission, str] | None:
    """The oldest of them, behind which the others wait."""
    return next(reversed(live(run, slurm)), None)


def _local_state(entry: Submission, run: Path) -> str | None:
    """RUNNING while the controller of this submission lives, PENDING while it waits for its turn."""
    if not is_here(entry) or not is_controller(entry.job_id, entry.folder(run)):
        return None
    return "PENDING" if any(is_controller(job_id, entry.folder(run)) for job_id in entry.after) else "RUNNING"


def is_here(entry: Submission) -> bool:
    """Was it submitted on this machine?"""
    return entry.host == socket.gethostname()


def is_controller(pid: str, folder: Path) -> bool:
    """Whether this process is a controller of jobs in that folder; pids are reused, folders are not."""
    try:
        process = psutil.Process(int(pid))
        return str(folder.resolve()) in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
