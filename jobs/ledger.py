"""What was submitted for a run and which of it is alive: <run>/jobs/submitted.jsonl, squeue, local processes.

Every submission owns a numbered folder below <run>/jobs, so no job can read files of an earlier one, whatever
ids the scheduler hands out. Deliberately knows nothing of submitit and of what the jobs do.
"""

import getpass
import json
import shutil
import socket
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil


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

    def folder(self, run: Path) -> Path:
        return number_folder(run, self.number)


def number_folder(run: Path, number: int) -> Path:
    return run / "jobs" / f"{number:03d}"


def next_number(run: Path) -> int:
    taken = [int(path.name) for path in (run / "jobs").glob("[0-9]*") if path.name.isdigit()]
    return max(taken, default=0) + 1


def claim(run: Path) -> int:
    """Make the folder of the next submission; of two at the same time each gets its own."""
    while True:
        number = next_number(run)
        try:
            number_folder(run, number).mkdir(parents=True)
            return number
        except FileExistsError:
            continue


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
    """The newest of them."""
    return next(iter(live(run, slurm)), None)


def _local_state(entry: Submission, run: Path) -> str | None:
    """RUNNING while submitit's controller of this submission lives; pids are reused, its folder is not."""
    if entry.host != socket.gethostname():
        return None
    try:
        process = psutil.Process(int(entry.job_id))
        mine = str(entry.folder(run).resolve()) in process.cmdline()
        return "RUNNING" if mine and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None
