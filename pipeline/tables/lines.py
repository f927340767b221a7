"""The part of a report with a line for each row: published, measured, their difference, images seen, what it cost.

A cell without a measurement is empty. A difference is measured less published, where what is published is a number.
Below it stands how the numbers were taken, once for each way. Knows no paper.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from pipeline.cost import parameters
from pipeline.tables.cells import Results
from pipeline.tables.intervals import Interval, interval
from pipeline.tables.measured import GPU_HOURS, PROCESS_HOURS, Taken
from pipeline.tables.page import Block, Grid, Heading, Items
from pipeline.tables.table import Measure, Row

MOST_MEASURES = 4  # in one grid
STATES = ("begun", "not begun", "failed", "missing", "other")


def lines(rows: Sequence[Row], results: Results, group: str) -> list[Block]:
    """Of some of a table's rows; the label `group` is the same in all of them and left out.

    One grid, or where there are many columns several with the same labels, and what it took to make them in the last.
    """
    names = [name for name in dict.fromkeys(k for r in rows for k in r.labels) if name != group]
    labels = Part(names, [[str(row.labels.get(name, "")) for name in names] for row in rows])
    measures, trained = results.measures, any(m.of is None for m in results.measures)
    counts = Part(["parameters"], [[_parameters(row)] for row in rows]) if trained else Part([], [[] for _ in rows])
    made = _made(rows, results) if trained else Part([], [[] for _ in rows])
    if len(measures) <= MOST_MEASURES:
        return [_side_by_side(labels, counts, _numbers(rows, results, measures), made)]
    parts = [measures[i : i + MOST_MEASURES] for i in range(0, len(measures), MOST_MEASURES)]
    return [
        *(_side_by_side(labels, _numbers(rows, results, part)) for part in parts),
        _side_by_side(labels, counts, made),
    ]


@dataclass(frozen=True)
class Part:
    """Columns of a grid: their titles, and the cells of each row."""

    head: Sequence[str]
    cells: Sequence[Sequence[str]]


def _side_by_side(*parts: Part) -> Grid:
    rows = zip(*(part.cells for part in parts), strict=True)
    return Grid([title for part in parts for title in part.head], [[c for cells in row for c in cells] for row in rows])


def _numbers(rows: Sequence[Row], results: Results, measures: Sequence[Measure]) -> Part:
    """Published, measured and their difference; where not all seeds of a row are in a cell, it says so."""
    printed = {m.key: any(m.key in row.published for row in rows) for m in measures}
    differ = {m.key: any(published(row, m) is not None for row in rows) for m in measures}
    head = []
    for m in measures:
        head += [f"{m.title}, published"] * printed[m.key]
        head += [f"{m.title}{', %' if m.percent else ''}", *["difference"] * differ[m.key]]
    lines = []
    for row in rows:
        cells, seeds = [], _seeds(row, results)
        for m in measures:
            found = interval(list(results.values(row, m).values()))
            fewer = f" ({found.n} of {seeds} seeds)" if found and m.of is None and found.n < seeds else ""
            cells += [row.published.get(m.key, "")] * printed[m.key]
            cells += [measured(found, m, row) + fewer, *[difference(found, row, m)] * differ[m.key]]
        lines.append(cells)
    return Part(head, lines)


def _seeds(row: Row, results: Results) -> int:
    """As many as the column that has most."""
    return max((len(results.values(row, m)) for m in results.measures if m.of is None), default=0)


def _parameters(row: Row) -> str:
    counts = parameters(row.run.family)
    return " + ".join(f"{n:,}" + f" ({net})" * (len(counts) > 1) for net, n in counts.items())


# --- numbers


def published(row: Row, m: Measure) -> float | None:
    """What is published, in the units that the column is printed in; None where it is no number."""
    try:
        value = float(row.published.get(m.key, "").replace(",", ""))
    except ValueError:
        return None
    return value if isfinite(value) else None


def measured(found: Interval | None, m: Measure, row: Row) -> str:
    """Mean -+ half of the interval, with the decimals of what is published at least; empty without a measurement."""
    if found is None:
        return ""
    scale = 100 if m.percent else 1
    mean = _shown(scale * found.mean, m, row)
    return mean if found.high is None else f"{mean} ± {scale * (found.high - found.mean):.2g}"


def difference(found: Interval | None, row: Row, m: Measure) -> str:
    """Measured less published, with its sign and with their decimals; empty where one of them is none."""
    if found is None or (paper := published(row, m)) is None:
        return ""
    mean = (100 if m.percent else 1) * found.mean
    texts = (row.published[m.key], _shown(mean, m, row))
    if any("e" in text.lower() for text in texts):
        return f"{mean - paper:+.{m.digits}g}"
    return f"{mean - paper:+,.{max(map(_decimals, texts))}f}"


def _shown(value: float, m: Measure, row: Row) -> str:
    """Counts whole, all else with the column's digits."""
    text = f"{value:,.0f}" if m.of and value.is_integer() else f"{value:.{m.digits}g}"
    decimals = _decimals(row.published[m.key]) if published(row, m) is not None else 0
    return text if "e" in text or _decimals(text) >= decimals else f"{value:,.{decimals}f}"


def _decimals(text: str) -> int:
    return len(text.partition(".")[2])


def hours(value: float) -> str:
    """Two digits, or whole hours; empty where there are none."""
    return "" if not value else f"{value:.2g}" if value < 100 else f"{value:,.0f}"


# --- what became of the runs


def _made(rows: Sequence[Row], results: Results) -> Part:
    """Seeds, thousands of images seen, hardware, hours of all ranks, and how many runs are in which state."""
    units = [unit for unit in (GPU_HOURS, PROCESS_HOURS) if any(unit in f.spent for f in results.facts)]
    head = ["seeds", "images seen, kimg", "hardware", *[f"{unit}, all seeds" for unit in units], "runs"]
    lines = []
    for row in rows:
        own = results.runs(row)
        counted = [f for f in own if f.state == "done" or any(results.cell(f, m) for m in results.measures)]
        kimg = sorted({f.kimg for f in counted})
        seen = " to ".join(f"{k:g}" for k in (kimg if len(kimg) < 2 else (kimg[0], kimg[-1])))
        hardware = "; ".join(dict.fromkeys(f.device for f in own if f.device))
        spent = [hours(sum(f.spent.get(unit, 0.0) for f in own)) for unit in units]
        lines.append([str(_seeds(row, results) or ""), seen, hardware, *spent, _states(row, results)])
    return Part(head, lines)


def _states(row: Row, results: Results) -> str:
    own = results.runs(row)
    done = sum(f.state == "done" for f in own)
    states = [f"{done} of {len(own)} done" if done < len(own) else f"{done} done"]
    for state in STATES:
        if count := sum(f.state == state for f in own):
            states.append(f"{count} {'of another configuration' if state == 'other' else state}")
    bad = max((results.not_finite(row, m) for m in results.measures), default=0)
    return ", ".join([*states, *([f"{bad} ended not finite, not counted"] if bad else [])])


def not_counted(results: Results, runs: Path) -> list[Block]:
    """Runs that are not done or not evaluated, with what became of them; numbers that were not taken alike."""
    texts = []
    for f in results.facts:
        if f.state != "done":
            counted = ", ".join(m.title for m in results.measures if results.cell(f, m))
            words = f.words.replace(f"{runs.absolute()}/", "") + (
                f"; counted all the same: {counted}" if counted else ""
            )
            texts.append(f"`{f.row}`, seed {f.seed}: {words}")
        elif f.lacking:
            texts.append(f"`{f.row}`, seed {f.seed}: trained, not evaluated: lacking {', '.join(f.lacking)}")
    for row in results.rows:
        for m in results.measures:
            if len(ways := results.taken(row, m)) > 1:
                told = "; or ".join(sorted(_way(t) for t in ways))
                texts.append(f"`{row.name}`, {m.title}: left empty, as its numbers were not taken alike: {told}")
    return [Heading(2, "Not counted"), Items(texts)] if texts else []


# --- how numbers were taken


def taken(results: Results) -> list[Block]:
    """A sentence for each way, with its columns and rows; and by which rule the columns choose among values."""
    found: dict[Taken, tuple[dict[str, None], dict[str, None], dict[str, None]]] = {}
    for row in results.rows:
        for m in results.measures:
            for cell in results.cells(row, m).values():
                if cell.point is None or cell.point.taken is None:
                    continue
                titles, rows, notes = found.setdefault(cell.point.taken, ({}, {}, {}))
                titles[m.title], rows[row.name] = None, None
                notes |= dict.fromkeys(cell.point.notes)
    texts = []
    for way, (titles, rows, notes) in found.items():
        of = "" if len(rows) == len(results.rows) else f" ({', '.join(rows)})"
        remarks = f" Noted: {'; '.join(notes)}." if notes else ""
        texts.append(f"{', '.join(titles)}{of}: {_way(way)}.{remarks}")
    texts += [rule for m in results.measures if (rule := _rule(m, results))]
    return [Heading(2, "How the numbers were taken"), Items(texts)] if texts else []


def _way(way: Taken | None) -> str:
    if way is None:
        return "by training itself"
    return f"{way.says.rstrip('.')}; data set {way.data}" + (f", filter {way.filter}" if way.filter else "")


def _rule(m: Measure, results: Results) -> str:
    """How a column chooses among a run's values; empty for the last one of a finished run, as most do."""
    if m.of is not None or not (m.best or m.at_best_of or m.until_kimg is not None):
        return ""
    until = f" up to {m.until_kimg:g} kimg, of runs that have trained so far" if m.until_kimg is not None else ""
    if m.at_best_of:
        other = next(one.title for one in results.measures if one.key == m.at_best_of)
        return f"{m.title}: of the checkpoint with the best {other}{until}."
    among = {cell.among for row in results.rows for cell in results.cells(row, m).values()}
    if not m.best:
        return f"{m.title}: the last value{until}."
    return f"{m.title}: the best of a run's values{until}{_counts(among)}."


def _counts(among: Iterable[int]) -> str:
    counts = sorted(among)
    if not counts:
        return ""
    span = f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
    return f"; there were {span} in a run"
