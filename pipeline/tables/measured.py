"""What the runs of a table have come to: state, values, images, hours and hardware, from their folders alone.

A run whose folder holds another configuration than the table has now (the recipe changed since) is not taken for it.
Which of a run's values stands in a column is decided in cells.py. Knows nothing of jobs and queues: the report can be
made anywhere.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import UserError
from pipeline.run import read_run
from pipeline.tables.book import Book
from pipeline.tables.table import Asked, Row, Table
from pipeline.tracking import inbox, jsonl

State = Literal["done", "begun", "failed", "not begun", "missing", "other"]
TELLING = ("start", "resume", "checkpoint", "preempt", "done", "failed")  # events that tell a state
WEIGHTS = "G_ema.safetensors"  # in a checkpoint
GPU_HOURS, PROCESS_HOURS = "GPU-hours", "process-hours"  # hours times ranks, by what a rank is


@dataclass(frozen=True)
class Taken:
    """How an evaluation took a number; numbers that differ in it are not averaged."""

    says: str  # detector, resize, quantisation
    data: str  # id of the set it was compared with
    filter: str  # that brought the set to its size; "" where it is stored at that size


@dataclass(frozen=True)
class Point:
    """A value of metrics.jsonl."""

    kimg: float
    value: float
    taken: Taken | None = None  # None: by training itself
    notes: tuple[str, ...] = ()  # what evaluation had to say of this one


@dataclass(frozen=True)
class RunFacts:
    """One run. `curves`: a column's metric -> its values by images seen; `spent`: unit -> hours of all ranks."""

    row: str
    seed: int
    state: State
    said: str = ""  # the error of a failed run, or what is odd
    kimg: float = 0.0
    total_kimg: float = 0.0
    hours: float = 0.0
    spent: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Sequence[Point]] = field(default_factory=dict)
    device: str = ""
    versions: tuple[tuple[str, str], ...] = ()
    dataset_id: str = ""
    folder: str = ""  # several rows may share one
    lacking: tuple[str, ...] = ()  # what the table asks to be evaluated of a run that is done, and is not

    @property
    def words(self) -> str:
        """The state in words."""
        if self.state == "begun":
            return f"at {self.kimg:g} of {self.total_kimg:g} kimg"
        return f"{self.state}: {self.said}" if self.said else self.state


def facts_of(runs: Path, table: Table, rows: Sequence[Row], book: Book) -> list[RunFacts]:
    """Of every row with every seed that was planned; a folder that is gone or was never made is "missing"."""
    wanted = list(dict.fromkeys(m.metric for m in table.columns(book.form) if m.of is None))
    asked = {row.name: table.asked_of(row, book.form) for row in rows}
    return [
        _facts(runs, row, seed, book.folder_of(row, seed), wanted, asked[row.name])
        for row in rows
        for seed in book.seeds()
    ]


def _facts(runs: Path, row: Row, seed: int, name: str | None, wanted: Sequence[str], asked: Asked | None) -> RunFacts:
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
    records, kept = _records(folder), _kept(folder)
    curves = {m: _points(records, row.metrics.get(m, m), kept) for m in wanted}
    stretches = list(_stretches(folder, records))
    spent: dict[str, float] = {}
    for environment, sec in stretches:
        spent[_unit(environment)] = spent.get(_unit(environment), 0.0) + sec * _world(environment) / 3600
    newest = _environment(folder / "environment.json")
    devices = [_device(e) for e in (*(e for e, _ in stretches), *([] if stretches else [newest])) if e]
    return RunFacts(
        row=row.name,
        seed=seed,
        state=state,
        said=said,
        kimg=max((r["nimg"] / 1000 for r in records), default=0.0),
        total_kimg=run.total_kimg,
        hours=sum(sec for _, sec in stretches) / 3600,
        spent=spent,
        curves=curves,
        device=", then ".join(dict.fromkeys(devices)),
        versions=tuple((n, str(newest[n])) for n in ("python", "torch", "numpy", "code") if n in newest),
        dataset_id=run.data.dataset_id,
        folder=name,
        lacking=_lacking(folder, row, asked, curves, kept) if state == "done" and asked else (),
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


def _records(folder: Path) -> list[dict[str, Any]]:
    """Of metrics, by nimg; with those that the trainer has not taken over yet."""
    latest = {jsonl.key_of(r): r for r in (*jsonl.read(folder / jsonl.METRICS), *inbox.pending(folder))}
    return sorted(latest.values(), key=lambda record: record["nimg"])


def _kept(folder: Path) -> dict[int, str]:
    """nimg -> hash of the weights of each checkpoint that is there, as its manifest says."""
    found = {}
    for path in sorted((folder / "checkpoints").glob("[0-9]" * 12)):
        try:
            found[int(path.name)] = json.loads((path / "manifest.json").read_bytes())["files"][WEIGHTS]["sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # being pruned, or damaged
    return found


def _lacking(
    folder: Path, row: Row, asked: Asked, curves: Mapping[str, Sequence[Point]], kept: Mapping[int, str]
) -> tuple[str, ...]:
    """Columns of a finished run that are asked for and not evaluated, or of some checkpoints only; and why, if told."""
    sizes = asked.sizes or tuple(str(h) for h, w in row.run.family.sizes() if h == w)
    roots = [f"Metrics/{metric}/{size.replace('of', 'px_of_')}px" for metric in asked.metrics for size in sizes]
    wanted = list(kept) if asked.checkpoints == "all" else sorted(kept)[-1:]
    out = []
    for metric, points in curves.items():
        name, there = row.metrics.get(metric, metric), {p.kimg for p in points}
        left = [nimg for nimg in wanted if nimg / 1000 not in there]
        if not any(name == root or name.startswith(f"{root}/") for root in roots) or (there and not left):
            continue
        some = f" of {len(left)} of {len(wanted)} checkpoints" if there else ""
        out.append(name + some)
    told = [e for e in jsonl.read(folder / jsonl.EVENTS) if e.get("event") == jsonl.UNMEASURED]
    if out and told:
        out.append(f"the last evaluation failed: {' '.join(str(told[-1].get('error', '')).split())}")
    return tuple(out)


def _points(records: Iterable[Mapping[str, Any]], name: str, kept: Mapping[int, str]) -> list[Point]:
    """Values of a metric; not of weights that a rollback has replaced since."""
    found = []
    for record in records:
        if name not in (values := record.get("metrics", {})):
            continue
        of = record.get("of")
        if of is not None and kept.get(record["nimg"], of.get("weights")) != of.get("weights"):
            continue
        taken = Taken(*(str(of.get(k, "")) for k in ("says", "data", "filter"))) if of is not None else None
        notes = tuple(map(str, (of or {}).get("notes", ())))
        found.append(Point(record["nimg"] / 1000, float(values[name]), taken, notes))
    return found


def _stretches(folder: Path, records: Iterable[Mapping[str, Any]]) -> Iterable[tuple[dict[str, Any], float]]:
    """Environment and seconds of training between two records: a run may go on with another number of ranks.

    Training that a kill took back is in no record and not counted.
    """
    known: dict[int, dict[str, Any]] = {}
    before = 0.0
    for record in records:
        if (sec := record.get("metrics", {}).get("Timing/train_sec")) is None:
            continue
        attempt = record.get("attempt", 0)
        if attempt not in known:
            path = folder / "environment" / f"{attempt:03d}.json"
            known[attempt] = _environment(path if path.is_file() else folder / "environment.json")
        yield known[attempt], max(0.0, sec - before)
        before = sec


def _environment(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _world(environment: Mapping[str, Any]) -> int:
    return int(environment.get("world", 1))


def _unit(environment: Mapping[str, Any]) -> str:
    return GPU_HOURS if environment.get("device") else PROCESS_HOURS


def _device(environment: Mapping[str, Any]) -> str:
    """Ranks and what they were; nothing that names a machine."""
    return f"{_world(environment)} x {environment.get('device') or 'CPU process'}"
