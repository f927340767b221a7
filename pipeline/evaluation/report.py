"""RUN/evaluation/report.md: every number of a run by checkpoint, the best ones marked, and how each was taken.

Made anew from the records whenever there are new ones. Knows no metric by name.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path

from pipeline.config import write_atomic
from pipeline.evaluation.ledger import FOLDER, Record, measured
from pipeline.tracking.best import PREFIX, best_of

REPORT = "report.md"


def write_report(folder: Path) -> Path:
    """The file, written as a whole."""
    path = folder / FOLDER / REPORT
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, text_of(folder))
    return path


def text_of(folder: Path) -> str:
    records = [r for _, r in sorted(measured(folder).items())]
    names = sorted({name for record in records for name in record["metrics"]}, key=_by_size)
    best = {name: number.nimg for name, number in best_of(folder).items()}
    rows: dict[int, dict[str, float]] = {}
    for record in records:
        rows.setdefault(record["nimg"], {}).update(record["metrics"])
    better = {name: way for record in records for name, way in record["of"]["better"].items()}
    heads = [f"{_short(name)} {'↑' if better[name] == 'higher' else '↓'}" for name in names]
    lines = [f"# Evaluation of {folder.resolve().name}", "", _row(["kimg", *heads]), _row(["---"] * (len(names) + 1))]
    for nimg, values in rows.items():
        cells = [_cell(values, name, best.get(name) == nimg and nimg > 0) for name in names]
        lines.append(_row([f"{nimg / 1000:g}" if nimg else "", *cells]))
    lines += ["", "Bold: the best of the checkpoints that are there. How each number was taken:", ""]
    return "\n".join([*lines, *_taken(records)]) + "\n"


def _taken(records: list[Record]) -> list[str]:
    """One paragraph for each way in which a metric was taken, with the kimg that it holds for where they differ."""
    ways: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        of = record["of"]
        way = (record["kind"], of["says"], of["detector"], of["data"], of["filter"] or "none", str(of["seed"]))
        ways.setdefault(way, []).append(record)
    several = {kind: sum(way[0] == kind for way in ways) > 1 for kind, *_ in ways}
    out = []
    for (kind, says, detector, data, filter, seed), found in ways.items():
        where = f", kimg {', '.join(_kimg(r) for r in found)}" if several[kind] else ""
        reals = found[0]["of"]["reals"]
        facts = [f"{reals:,} real images of data set {data}", f"filter {filter}", f"seed {seed}"]
        facts += [f"detector {detector}"] if detector else []
        out.append(f"- **{_short(kind)}**{where}: {says} {'; '.join(facts)}.")
        for record in found:
            out += [f"  - kimg {_kimg(record)}: {note}" for note in record["of"]["notes"]]
    return out


def _cell(values: Mapping[str, float], name: str, best: bool) -> str:
    if name not in values:
        return ""
    value = values[name]
    text = f"{value:.5g}" if isinstance(value, int | float) and math.isfinite(value) else str(value)
    return f"**{text}**" if best else text


def _kimg(record: Record) -> str:
    return f"{record['nimg'] / 1000:g}"


def _short(name: str) -> str:
    return name.removeprefix(PREFIX).replace("|", "\\|")


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _by_size(name: str) -> list[tuple[int, str]]:
    """Metrics in the order of their names, sizes in that of numbers."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]
