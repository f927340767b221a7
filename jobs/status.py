"""What runs are doing, from their folders and the queue: state, progress, speed, logs; and how to cancel one.

A torn last line or a missing file is no error. Deliberately does not know what the metrics mean beyond
progress and speed, nor how anything is printed.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jobs import ledger
from pipeline.errors import UserError

State = Literal["queued", "running", "done", "stopped", "failed"]
WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "SUSPENDED"}
LIFE = ("start", "resume", "checkpoint", "preempt", "done")  # events that tell a state
FAILED = "failed"  # the event of a failure
FRESH_SEC = 600  # a run that no job of ours carries counts as running while it writes
TAIL_BYTES = 1 << 16


@dataclass(frozen=True)
class Row:
    """One run; None where nothing is known yet."""

    run: str
    state: State
    kimg: float
    total_kimg: float | None
    sec_per_kimg: float | None
    img_per_sec: float | None
    eta_sec: float | None
    checkpoint_kimg: float | None  # of the newest checkpoint
    attempts: int
    preempted: int  # stops with a checkpoint, by their cause
    time_limits: int
    job_ids: tuple[str, ...]  # oldest first
    evaluation_ids: tuple[str, ...]  # jobs that measure it, queued or running


def status(runs: Path) -> list[Row]:
    """One row for each run folder below `runs`, by name."""
    folders = sorted(path.parent for path in runs.glob("*/config.json"))
    places = [place for folder in folders for place in (folder, folder / ledger.EVALUATION)]
    entries = [entry for place in places for entry in ledger.submissions(place)]
    slurm = ledger.slurm_states() if any(entry.executor == "slurm" for entry in entries) else {}
    return [run_status(folder, slurm) for folder in folders]


def run_status(run: Path, slurm: dict[str, str] | None = None) -> Row:
    """One run. `slurm`: ledger.slurm_states() if known."""
    events, metrics = _read(run / "events.jsonl"), _read(run / "metrics.jsonl", TAIL_BYTES)
    causes = [line.get("cause") for line in events if line.get("event") == "preempt"]
    total = _total_kimg(run)
    saved = [int(p.name) for p in (run / "checkpoints").glob("[0-9]*") if p.name.isdigit()]
    nimg = max([line.get("nimg", 0) for line in (*events, *metrics)], default=0)
    speeds = [line["metrics"].get("Timing/sec_per_kimg") for line in metrics if "metrics" in line]
    speed = next((float(s) for s in reversed(speeds) if s), None)
    state = _state(run, events, slurm)
    left = speed and total and max(0.0, total - nimg / 1000) * speed
    return Row(
        run=run.name,
        state=state,
        kimg=nimg / 1000,
        total_kimg=total,
        sec_per_kimg=speed,
        img_per_sec=1000 / speed if speed else None,
        eta_sec=left if state in ("queued", "running") else None,
        checkpoint_kimg=max(saved) / 1000 if saved else None,
        attempts=max([line.get("attempt", 0) for line in (*events, *metrics)], default=0),
        preempted=causes.count("preemption"),
        time_limits=causes.count("time limit"),
        job_ids=tuple(entry.job_id for entry in ledger.submissions(run)),
        evaluation_ids=tuple(entry.job_id for entry, _ in reversed(ledger.live(run / ledger.EVALUATION, slurm))),
    )


def logs(run: Path) -> list[Path]:
    """Output files of the newest job that has any, by rank, .out before .err."""
    _check_run(run)
    for entry in reversed(ledger.submissions(run)):
        prefix = f"{entry.job_id}_"
        if files := list(entry.folder(run).glob(f"{prefix}*_log.*")):
            return sorted(files, key=lambda p: (int(p.name.removeprefix(prefix).split("_")[0]), p.suffix == ".err"))
    return []


def cancel(run: Path) -> list[str]:
    """End the live jobs of a run and return their ids; the one that runs saves first if the grace time suffices."""
    _check_run(run)
    entries = [entry for entry, _ in ledger.live(run)]  # newest first: no successor may see the end of its predecessor
    if not entries:
        raise UserError(f"run={str(run)!r} has no live job; `graticule status` lists runs and their jobs")
    for entry in entries:
        mark = ledger.cancel_mark(entry.folder(run), entry.job_id)
        mark.touch()  # first, for the job to know
        try:
            _end(entry)
        except UserError as e:
            mark.unlink()
            raise UserError(f"run={str(run)!r}: {e}") from e
    return [entry.job_id for entry in reversed(entries)]


def _end(entry: ledger.Submission) -> None:
    if entry.executor == "local":
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(entry.job_id), signal.SIGTERM)
        return
    try:
        done = subprocess.run(["scancel", entry.job_id], capture_output=True, text=True, timeout=60)
    except (subprocess.SubprocessError, OSError) as e:
        raise UserError(f"scancel {entry.job_id} failed: {e}") from e
    if done.returncode:
        raise UserError(f"scancel {entry.job_id} failed: {done.stderr.strip()}")


def is_done(run: Path) -> bool:
    """Whether the newest attempt trained to the end."""
    return _last_event(_read(run / "events.jsonl", TAIL_BYTES)) == "done"


def _last_event(events: list[dict[str, Any]]) -> str | None:
    return next((line["event"] for line in reversed(events) if line.get("event") in LIFE), None)


def _check_run(run: Path) -> None:
    of = run.parent if run.name == ledger.EVALUATION else run  # the folder of a run's evaluation has jobs of its own
    if not (of / "config.json").is_file():
        raise UserError(f"run={str(run)!r} has no config.json: not a run folder (`graticule status` lists runs)")


def _state(run: Path, events: list[dict[str, Any]], slurm: dict[str, str] | None) -> State:
    live, last = ledger.live(run, slurm), _last_event(events)
    states = [_turn(entry, state, events) for entry, state in live]
    if any(state == FAILED for state in states):
        return "failed"
    if any(state not in WAITING for state in states):
        return "running"
    if last == "done":  # what still waits are its successors, or a job with nothing to do
        return "done"
    if states:
        return "queued"
    if last == "preempt":
        return "stopped"
    if entries := ledger.submissions(run):
        cancelled = ledger.cancel_mark(entries[-1].folder(run), entries[-1].job_id).exists()
        return "stopped" if cancelled or not (events or logs(run)) else "failed"
    if last is None:
        return "stopped"
    return "running" if time.time() - written(run) < FRESH_SEC else "failed"


def _turn(entry: ledger.Submission, state: str, events: list[dict[str, Any]]) -> str:
    """A job's state as this run sees it: one with several runs has not come to it yet, or is past it."""
    if not entry.several or state in WAITING:
        return state
    since = [e["event"] for e in events if e.get("time", 0) >= entry.time and e.get("event") in (*LIFE, FAILED)]
    return FAILED if since[-1:] == [FAILED] else state if since and since[-1] != "done" else "PENDING"


def written(run: Path) -> float:
    """When the run last wrote anything; 0.0: never."""
    files = (run / "events.jsonl", run / "metrics.jsonl")
    return max((path.stat().st_mtime for path in files if path.exists()), default=0.0)


def _total_kimg(run: Path) -> float | None:
    try:
        return float(json.loads((run / "config.json").read_text())["total_kimg"])
    except (OSError, ValueError, KeyError):
        return None


def _read(path: Path, last_bytes: int | None = None) -> list[dict[str, Any]]:
    """The lines of a JSONL file that are whole; those at its end only, if `last_bytes` is given."""
    try:
        with open(path, "rb") as f:
            start = max(0, f.seek(0, os.SEEK_END) - last_bytes) if last_bytes else 0
            f.seek(start)
            lines = f.read().split(b"\n")[1 if start else 0 :]
    except OSError:
        return []
    out = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            out.append(record)
    return out
