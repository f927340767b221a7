"""A table's report: published beside measured, variants compared seed by seed, plots, samples, how it was run.

Written from run folders alone, while they train or years later. Knows no paper.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.config import write_atomic
from pipeline.errors import UserError
from pipeline.tables import book, plots, sheets
from pipeline.tables.cells import Results
from pipeline.tables.compared import comparisons
from pipeline.tables.lines import hours, lines, not_counted, taken
from pipeline.tables.measured import GPU_HOURS, PROCESS_HOURS, RunFacts, facts_of
from pipeline.tables.page import Block, Heading, Items, Paragraph, Picture, html, markdown
from pipeline.tables.table import Form, Label, Table


def write_report(table: Table, form: Form, runs: Path, out: Path) -> str:
    """Write OUT/report.md, OUT/report.html and its pictures; the Markdown. UserError without `reproduce`."""
    results = results_of(table, form, runs)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for old in (*out.glob("plot-*.png"), *out.glob("sheet*.png")):  # they may show what is no longer so
            old.unlink()
        pictures = _draw(table, results, out)
        sheet = sheets.draw(out, plots.titles(results.rows, table.axes), results.facts, runs)
        blocks = list(_blocks(table, form, results, runs, pictures, sheet))
        text = markdown(blocks)
        write_atomic(out / "report.md", text)
        write_atomic(out / "report.html", html(f"{table.name}: {table.title}", blocks))
    except OSError as e:
        raise UserError(f"out={str(out)!r} cannot be written ({e.strerror}); choose another folder with --out") from e
    return text


def track_report(table: Table, form: Form, runs: Path, out: Path) -> str:
    """Bring the table to MLflow as it was written to OUT, a parent run with its runs below; the id of the parent.

    Numbers are in the units of the report. UserError where the store does not answer; the same call again is right.
    """
    from pipeline.tracking.tables import publish_table

    results = results_of(table, form, runs)
    began = {f.folder: f for f in reversed(results.facts) if f.state in ("begun", "failed", "done")}
    rows, labels, cells = {row.name: row for row in results.rows}, {}, {}
    for f in began.values():
        labels[runs / f.folder] = {**rows[f.row].labels, "seed": f.seed}
        cells[runs / f.folder] = {
            f"{m.title}{', %' if m.percent else ''}": (100 if m.percent else 1) * value
            for m in results.measures
            if m.of is None and (value := results.values(rows[f.row], m).get(f.seed)) is not None
        }
    return publish_table(runs, table.name, form, labels, cells, title=table.title, report=out)


def results_of(table: Table, form: Form, runs: Path) -> Results:
    """What there is of a table. Columns that come from the configuration alone need no runs and no `reproduce`."""
    measures, rows = table.columns(form), table.rows(form)
    if not table.trains(form):
        return Results(measures, rows, [])
    return Results(measures, rows, facts_of(runs, table, rows, book.read(runs, table, form)))


def _draw(table: Table, results: Results, out: Path) -> dict[Label, list[Picture]]:
    """Group -> its plots."""
    found: dict[Label, list[Picture]] = {}
    for name, part in table.groups(results.rows).items():
        drawn: set[str] = set()  # metrics whose curves are, as several columns may share one
        for m in (m for m in results.measures if m.of is None):
            caption = f"{m.title}, mean and 95% interval over seeds"
            todo = [(plots.sweep, m.title, caption)]
            if m.metric not in drawn:
                drawn.add(m.metric)
                if plots.is_evaluated(m, results):
                    todo.append((plots.by_row, m.metric, f"{m.metric} by row, each seed and their mean"))
                else:
                    shared = sum(one.metric == m.metric for one in results.measures) > 1
                    title = m.metric if shared else m.title
                    todo.append((plots.curves, title, f"{title}, each run while training"))
            for how, title, caption in todo:
                words = [re.sub(r"[^\w.-]+", "_", word) for word in (how.__name__, str(name), title) if word]
                path = out / f"plot-{'-'.join(words)}.png"
                caption += f" ({name})" if name else ""
                if how(path, caption, part, results, table.axes, m):
                    found.setdefault(name, []).append(Picture(path, caption))
    return found


def _blocks(
    table: Table,
    form: Form,
    results: Results,
    runs: Path,
    pictures: Mapping[Label, Sequence[Picture]],
    sheet: Sequence[Picture],
) -> list[Block]:
    flag, facts = " --full" if form == "full" else "", results.facts
    made = f"`graticule report {table.name}{flag}`"
    if facts:
        done = sum(f.state == "done" for f in facts)
        seeds = ", ".join(str(s) for s in sorted({f.seed for f in facts}))
        made = f"`graticule reproduce {table.name}{flag}` and {made}"
        made += f"; {done} of {len(facts)} cells (row x seed) are done; seeds {seeds}"
    blocks: list[Block] = [
        Heading(1, f"{table.name}: {table.title}"),
        Paragraph(f"{table.place}. The {form} form, made by {made}."),
        Items(table.notes),
        *comparisons(table, results),
    ]
    for name, part in table.groups(results.rows).items():
        blocks.append(Heading(2, f"Rows: {name}" if name else "Rows"))
        blocks += lines(part, results, table.group)
        blocks += pictures.get(name, [])
    blocks += [Heading(2, "Samples"), *sheet] if sheet else []
    return [*blocks, *taken(results), *not_counted(results, runs), *_how(facts)]


def _how(facts: Sequence[RunFacts]) -> list[Block]:
    """Hardware, hours, versions and data sets, of the runs that have any."""
    ran = [f for f in facts if f.device]
    if not ran:
        return []
    once = {f.folder: f for f in ran}
    devices = Counter(f.device for f in once.values())
    versions: dict[str, dict[str, None]] = {}
    for name, value in dict.fromkeys(pair for f in ran for pair in f.versions):
        versions.setdefault(name, {})[value] = None
    told = [f"{name} {' and '.join(values)}" for name, values in versions.items()]
    sets = list(dict.fromkeys(f.dataset_id for f in ran if f.dataset_id))
    spent = {unit: sum(f.spent.get(unit, 0.0) for f in once.values()) for unit in (GPU_HOURS, PROCESS_HOURS)}
    took = [f"{hours(sum(f.hours for f in once.values()))} hours of training"]
    took += [f"{hours(total)} {unit}" for unit, total in spent.items() if total]
    texts = [
        f"On: {'; '.join(f'{d} ({n} runs)' for d, n in devices.items())}.",
        f"In all: {', '.join(took)}.",
        f"Versions: {', '.join(told)}.",
        *([f"Data sets trained on: {', '.join(sets)}."] if sets else []),
    ]
    return [Heading(2, "How it was run"), Items(texts)]
