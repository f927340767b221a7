"""RUN/evaluation/report.md: every number of a run by checkpoint, the best ones marked, and how each was taken.

Made anew from the records whenever there are new ones. Knows no metric by name.
"""

import re
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
    better = {name: way for record in records for name, way in record["of"]["better"].items()}
    values = {(record["nimg"], name): value for record in records for name, value in record["metrics"].items()}
    nimgs = sorted({record["nimg"] for record in records})
    lines = [f"# Evaluation of {folder.resolve().name}", ""]
    lines += [
        _row(["", *(f"kimg {nimg / 1000:g}" if nimg else "" for nimg in nimgs)]),
        _row(["---"] * (len(nimgs) + 1)),
    ]
    for name in names:
        cells = [_cell(values.get((nimg, name)), 0 < nimg == best.get(name)) for nimg in nimgs]
        lines.append(_row([f"{_short(name)} {'↑' if better[name] == 'higher' else '↓'}", *cells]))
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


def _cell(value: float | int | None, best: bool) -> str:
    text = "" if value is None else f"{value:.5g}"
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
