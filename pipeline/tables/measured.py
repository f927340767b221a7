"""What the runs of a table have come to: state, measures, images, hours and hardware, from their folders alone.

Only runs that are done count as measured. A run whose folder holds another configuration than the table has now
(the recipe changed since) is not taken for it. Knows nothing of jobs and queues: the report can be made anywhere.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.errors import UserError
from pipeline.run import read_run
from pipeline.tables.book import Book
from pipeline.tables.table import Row, Table
from pipeline.tracking import jsonl

State = Literal["done", "begun", "failed", "not begun", "missing", "other"]
TELLING = ("start", "resume", "checkpoint", "preempt", "done", "failed")  # events that tell a state


@dataclass(frozen=True)
class RunFacts:
    """One run. `measures`: metric -> its last value, of a run that is done; `curves`: metric -> (kimg, value)s."""

    row: str
    seed: int
    state: State
    said: str = ""  # the error of a failed run, or what is odd
    kimg: float = 0.0
    total_kimg: float = 0.0
    hours: float = 0.0
    measures: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    device: str = ""
    versions: tuple[tuple[str, str], ...] = ()
    dataset_id: str = ""
    folder: str = ""  # several rows may share one

    @property
    def words(self) -> str:
        """The state in words."""
        if self.state == "begun":
            return f"at {self.kimg:g} of {self.total_kimg:g} kimg"
        return f"{self.state}: {self.said}" if self.said else self.state


def facts_of(runs: Path, table: Table, rows: Sequence[Row], book: Book) -> list[RunFacts]:
    """Of every row with every seed that was planned; a folder that is gone or was never made is "missing"."""
    wanted = [m.metric for m in table.measures]
    return [_facts(runs, row, seed, book.folder_of(row, seed), wanted) for row in rows for seed in book.seeds()]


def _facts(runs: Path, row: Row, seed: int, name: str | None, wanted: Sequence[str]) -> RunFacts:
    if name is None or not (runs / name / "config.json").is_file():
        return RunFacts(row.name, seed, "missing", "no run folder" if name else "never planned")
    folder = runs / name
    try:
        run = read_run(folder)
    except UserError as e:
        return RunFacts(row.name, seed, "other", str(e))
    if run.replace(data=run.data.replace(dataset_id="")) != row.run.replace(seed=seed):
        return RunFacts(row.name, seed, "other", "made with another configuration than the table has now")
    state, said = state_of(folder)
    records = jsonl.metrics(folder / jsonl.METRICS)
    values = [(r["nimg"] / 1000, r.get("metrics", {})) for r in records]
    names = {m: row.metrics.get(m, m) for m in wanted}
    curves = {m: [(kimg, float(v[name])) for kimg, v in values if name in v] for m, name in names.items()}
    last = max((kimg for kimg, _ in values), default=0.0)
    measures = {m: points[-1][1] for m, points in curves.items() if points} if state == "done" else {}
    seconds = [v["Timing/train_sec"] for _, v in values if "Timing/train_sec" in v]
    device, versions = _environment(folder)
    return RunFacts(
        row=row.name,
        seed=seed,
        state=state,
        said=said,
        kimg=last,
        total_kimg=run.total_kimg,
        hours=max(seconds, default=0.0) / 3600,
        measures=measures,
        curves=curves,
        device=device,
        versions=versions,
        dataset_id=run.data.dataset_id,
        folder=name,
    )


def state_of(folder: Path) -> tuple[State, str]:
    """By the newest event that tells; with the error if it is a failure."""
    events = [e for e in jsonl.read(folder / jsonl.EVENTS) if e.get("event") in TELLING]
    if not events:
        return "not begun", ""
    newest = events[-1]
    if newest["event"] == "failed":
        return "failed", " ".join(str(newest.get("error", "")).split())
    return ("done" if newest["event"] == "done" else "begun"), ""


def _environment(folder: Path) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Device and versions of the newest attempt; nothing that names a machine."""
    try:
        facts = json.loads((folder / "environment.json").read_text())
    except (OSError, ValueError):
        return "", ()
    world = facts.get("world", 1)
    device = f"{world} x {facts.get('device') or 'CPU process'}"
    known = ("python", "torch", "numpy", "code")
    return device, tuple((name, str(facts[name])) for name in known if name in facts)


def values_of(facts: Sequence[RunFacts], row: str, metric: str) -> dict[int, float]:
    """Seed -> measured, of the runs of a row that are done and finite there."""
    found = {f.seed: f.measures[metric] for f in facts if f.row == row and metric in f.measures}
    return {seed: value for seed, value in found.items() if math.isfinite(value)}


def not_finite(facts: Sequence[RunFacts], row: str, metric: str) -> int:
    """Runs of a row that ended with NaN or infinity there."""
    return sum(f.row == row and metric in f.measures and not math.isfinite(f.measures[metric]) for f in facts)
