"""A table's report: published beside measured, variants compared seed by seed, plots, how it was run.

A cell without a measurement is empty. Sentences say what the interval says and nothing more. Knows no paper.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path

from pipeline.config import write_atomic
from pipeline.cost import parameters
from pipeline.errors import UserError
from pipeline.tables import book, plots
from pipeline.tables.intervals import Advantage, Interval, advantage, interval, verdict
from pipeline.tables.measured import RunFacts, facts_of, not_finite, values_of
from pipeline.tables.page import Block, Grid, Heading, Items, Paragraph, Picture, html, markdown
from pipeline.tables.table import Comparison, Form, Label, Measure, Row, Table


def write_report(table: Table, form: Form, runs: Path, out: Path) -> str:
    """Write OUT/report.md, OUT/report.html and its plots; the Markdown. UserError where nothing was reproduced yet."""
    planned, rows = book.read(runs, table, form), table.rows(form)
    facts = facts_of(runs, table, rows, planned)
    try:
        out.mkdir(parents=True, exist_ok=True)
        blocks = list(_blocks(table, form, rows, facts, runs, _draw(table, rows, facts, out)))
        text = markdown(blocks)
        write_atomic(out / "report.md", text)
        write_atomic(out / "report.html", html(f"{table.name}: {table.title}", blocks))
    except OSError as e:
        raise UserError(f"out={str(out)!r} cannot be written ({e.strerror}); choose another folder with --out") from e
    return text


def _draw(table: Table, rows: Sequence[Row], facts: Sequence[RunFacts], out: Path) -> dict[Label, list[Picture]]:
    """Group -> its plots. Those of an earlier report go, as they may show what is no longer so."""
    for old in out.glob("plot-*.png"):
        old.unlink()
    found: dict[Label, list[Picture]] = {}
    for name, part in table.groups(rows).items():
        for m in table.measures:
            for how, what in (
                (plots.sweep, "mean and 95% interval over seeds"),
                (plots.curves, "each run while training"),
            ):
                words = [how.__name__, str(name), m.title]
                path = out / f"plot-{'-'.join('_'.join(word.split()) for word in words if word)}.png"
                caption = f"{m.title}, {what}" + (f" ({name})" if name else "")
                if how(path, caption, part, facts, table.axes, m):
                    found.setdefault(name, []).append(Picture(path, caption))
    return found


def _blocks(
    table: Table,
    form: Form,
    rows: Sequence[Row],
    facts: Sequence[RunFacts],
    runs: Path,
    pictures: Mapping[Label, Sequence[Picture]],
) -> list[Block]:
    flag = " --full" if form == "full" else ""
    done = sum(f.state == "done" for f in facts)
    seeds = ", ".join(str(s) for s in sorted({f.seed for f in facts}))
    blocks: list[Block] = [
        Heading(1, f"{table.name}: {table.title}"),
        Paragraph(
            f"{table.place}. The {form} form, made by `graticule reproduce {table.name}{flag}` and `graticule report "
            f"{table.name}{flag}`; {done} of {len(facts)} cells (row x seed) are done; seeds {seeds}."
        ),
        Items(table.notes),
    ]
    if table.comparisons:
        blocks += _comparisons(table, rows, facts)
    for name, part in table.groups(rows).items():
        blocks.append(Heading(2, f"Rows: {name}" if name else "Rows"))
        blocks.append(_rows(table, part, facts))
        blocks += pictures.get(name, [])
    return [*blocks, *_not_counted(facts, runs), *_how(facts)]


# --- comparisons


def _comparisons(table: Table, rows: Sequence[Row], facts: Sequence[RunFacts]) -> list[Block]:
    found = [(c, table.measure(c.metric), _advantage(table, c, rows, facts)) for c in table.comparisons]
    lines, sentences, published = [], [], any(c.published for c in table.comparisons)
    for c, m, a in found:
        numbers = [_gain(a.over_seeds, c, m), str(len(a.by_seed)), str(a.pairs)]
        lines.append([c.title, f"{m.title}, {m.better} by", *[c.published] * published, *numbers])
        sentences.append(sentence(c, m, a))
    about = (
        "Of each seed the means over all pairs of rows that differ in nothing else, then their difference; the 95% "
        "interval is Student's t over the seeds. Positive is in favour of the first, negative of the second."
    )
    head = ["compared", "in", *["published"] * published, "measured (95% interval)", "seeds", "pairs"]
    return [Heading(2, "Compared"), Paragraph(about), Grid(head, lines), Items(sentences)]


def _advantage(table: Table, c: Comparison, rows: Sequence[Row], facts: Sequence[RunFacts]) -> Advantage:
    sides = []
    for side in (c.variant, c.against):
        own = [r for r in rows if r.labels[c.column] == side and all(r.labels[k] == v for k, v in c.within.items())]
        places = {tuple((k, v) for k, v in r.labels.items() if k != c.column): r for r in own}
        sides.append({place: values_of(facts, r.name, c.metric) for place, r in places.items()})
    return advantage(*sides, better=table.measure(c.metric).better, kind=c.kind)


def sentence(c: Comparison, m: Measure, a: Advantage) -> str:
    """What was found, in one sentence that claims nothing beyond the interval."""
    missing = f" Seeds {', '.join(map(str, a.incomplete))} lack a run and are not counted." if a.incomplete else ""
    if a.over_seeds is None:
        return f"{c.title}: not measured.{missing}"
    n = len(a.by_seed)
    text = f"{c.title}: {m.title} {m.better} by {_gain(a.over_seeds, c, m)} over {n} seed{'s' * (n > 1)}"
    said = verdict(a.over_seeds, c.claim == "better")
    if c.claim:
        ends = {
            "supports": "the interval supports the sign that the paper reports",
            "contradicts": "the interval contradicts the sign that the paper reports",
            "leaves open": "the interval includes 0 and leaves the sign that the paper reports open",
        }
        end = ends.get(said, "one seed has no interval, which leaves the sign that the paper reports open")
    elif a.over_seeds.low is None:
        end = "one seed has no interval"
    else:
        end = "the interval includes 0" if said == "includes 0" else f"the interval lies {said}"
    published = f" (published: {c.published})" if c.published else ""
    return f"{text}{published}; {end}.{missing}"


def _gain(found: Interval | None, c: Comparison, m: Measure) -> str:
    if found is None:
        return ""
    shares = c.kind == "relative" or m.percent
    unit = "%" if c.kind == "relative" else " points" if m.percent else ""

    def shown(value: float) -> str:
        return f"{100 * value:.1f}" if shares else f"{value:.{m.digits}g}"

    if found.low is None or found.high is None:
        return f"{shown(found.mean)}{unit}"
    return f"{shown(found.mean)}{unit} ({shown(found.low)} to {shown(found.high)})"


# --- rows


def _rows(table: Table, rows: Sequence[Row], facts: Sequence[RunFacts]) -> Grid:
    labels = [name for name in dict.fromkeys(k for r in rows for k in r.labels) if name != table.group]
    head = [*labels, "parameters"]
    printed = {m.metric: any(m.metric in row.published for row in rows) for m in table.measures}
    for m in table.measures:
        head += [f"{m.title}, published"] * printed[m.metric]
        head += [f"{m.title}{', %' if m.percent else ''}", "seeds"]
    lines = []
    for row in rows:
        cells = [str(row.labels.get(name, "")) for name in labels]
        counts = parameters(row.run.family)
        cells.append(" + ".join(f"{n:,}" + f" ({net})" * (len(counts) > 1) for net, n in counts.items()))
        for m in table.measures:
            found = interval(list(values_of(facts, row.name, m.metric).values()))
            cells += [row.published.get(m.metric, "")] * printed[m.metric]
            cells += [measured(found, m), str(found.n) if found else ""]
        lines.append([*cells, *_progress(row, [f for f in facts if f.row == row.name], facts, table)])
    return Grid([*head, "kimg", "hours, all seeds", "runs"], lines)


def measured(found: Interval | None, m: Measure) -> str:
    """Mean -+ half of the interval; empty where nothing was measured."""
    if found is None:
        return ""
    scale = 100 if m.percent else 1
    mean = f"{scale * found.mean:.{m.digits}g}"
    return mean if found.high is None else f"{mean} ± {scale * (found.high - found.mean):.2g}"


def _progress(row: Row, own: Sequence[RunFacts], facts: Sequence[RunFacts], table: Table) -> list[str]:
    """Thousands of images seen, hours, and how many runs are in which state."""
    done = [f for f in own if f.state == "done"]
    kimg = sorted({f.kimg for f in done})
    states = [f"{len(done)} of {len(own)} done"] if len(done) < len(own) else [f"{len(done)} done"]
    for state in ("begun", "not begun", "failed", "missing", "other"):
        if count := sum(f.state == state for f in own):
            states.append(f"{count} {'of another configuration' if state == 'other' else state}")
    bad = max((not_finite(facts, row.name, m.metric) for m in table.measures), default=0)
    states += [f"{bad} ended not finite, not counted"] if bad else []
    hours = sum(f.hours for f in own)
    seen = [f"{k:g}" for k in (kimg if len(kimg) < 2 else (kimg[0], kimg[-1]))]
    return [" to ".join(seen), f"{hours:.2g}" if hours else "", ", ".join(states)]


def _not_counted(facts: Sequence[RunFacts], runs: Path) -> list[Block]:
    left = [f for f in facts if f.state != "done"]
    if not left:
        return []
    texts = [f"`{f.row}`, seed {f.seed}: {f.words.replace(f'{runs.absolute()}/', '')}" for f in left]
    return [Heading(2, "Not counted"), Items(texts)]


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
    hours = sum(f.hours for f in once.values() if isfinite(f.hours))
    texts = [
        f"On: {'; '.join(f'{d} ({n} runs)' for d, n in devices.items())}; {hours:.3g} hours of training in all.",
        f"Versions: {', '.join(told)}.",
        *([f"Data sets trained on: {', '.join(sets)}."] if sets else []),
    ]
    return [Heading(2, "How it was run"), Items(texts)]
