"""The part of a report that sets variants against each other, seed by seed, and says what the interval says.

Knows no paper.
"""

from collections.abc import Mapping

from pipeline.tables.cells import Results
from pipeline.tables.intervals import Advantage, Interval, advantage, verdict
from pipeline.tables.page import Block, Grid, Heading, Items, Paragraph
from pipeline.tables.table import Comparison, Label, Measure, Row, Table

ABOUT = (
    "Of each seed the means over all pairs of rows that differ in nothing else, then their difference; the 95% "
    "interval is Student's t over the seeds. Positive is in favour of the first, negative of the second."
)


def comparisons(table: Table, results: Results) -> list[Block]:
    """A line and a sentence for each; none where the table compares nothing."""
    known = {m.key for m in results.measures}
    chosen = [c for c in table.comparisons if c.metric in known]
    if not chosen:
        return []
    found = [(c, table.measure(c.metric), _advantage(table, c, results)) for c in chosen]
    lines, sentences, published = [], [], any(c.published for c in chosen)
    for c, m, a in found:
        numbers = [_gain(a.over_seeds, c, m), str(len(a.by_seed)), str(a.pairs)] if a else ["", "", ""]
        lines.append([c.title, f"{m.title}, {m.better} by", *[c.published] * published, *numbers])
        unlike = f"{c.title}: not compared in {m.title}: its numbers were not all taken alike."
        sentences.append(sentence(c, m, a) if a else unlike)
    head = ["compared", "in", *["published"] * published, "measured (95% interval)", "seeds", "pairs"]
    return [Heading(2, "Compared"), Paragraph(ABOUT), Grid(head, lines), Items(sentences)]


def _advantage(table: Table, c: Comparison, results: Results) -> Advantage | None:
    """None where the numbers of a pair were not taken alike."""
    m, sides = table.measure(c.metric), []
    for side in (c.variant, c.against):
        own = [
            r
            for r in results.rows
            if r.labels.get(c.column) == side and all(r.labels.get(k) == v for k, v in c.within.items())
        ]
        sides.append({_place(r.labels, c.column): r for r in own})
    pairs: list[tuple[Row, Row]] = [(row, sides[1][place]) for place, row in sides[0].items() if place in sides[1]]
    if any(len(results.taken(one, m) | results.taken(other, m)) > 1 for one, other in pairs):
        return None
    values = [{place: results.values(row, m) for place, row in side.items()} for side in sides]
    return advantage(*values, better=m.better, kind=c.kind)


def _place(labels: Mapping[str, Label], column: str) -> tuple[tuple[str, Label], ...]:
    return tuple((k, v) for k, v in labels.items() if k != column)


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
