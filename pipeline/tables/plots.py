"""The plots of a report as PNG files: a measure over the sweep with interval bars, its curves while training, and what
evaluation found of each row's checkpoints.

matplotlib's Figure without pyplot: no display, no state between plots. Knows no paper.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pipeline.tables.cells import Results
from pipeline.tables.intervals import interval
from pipeline.tables.lines import published
from pipeline.tables.measured import Point
from pipeline.tables.table import Axes, Label, Measure, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Plot
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444")
PANEL_IN, COLUMNS, DPI = (3.6, 2.8), 4, 110
PUBLISHED: dict[str, Any] = {"marker": "x", "linestyle": "none", "label": "published", "zorder": 4}
MOST_LETTERS = 40  # side by side below a panel


def sweep(path: Path, title: str, rows: Sequence[Row], results: Results, axes: Axes, m: Measure) -> bool:
    """Mean and 95% interval over seeds of each row; False, and no file, where nothing is measured."""
    found = {r.name: interval(list(results.values(r, m).values())) for r in rows}
    if not any(found.values()):
        return False
    places = {r.name: (_label(r, axes.panel), r.labels[axes.x], r.labels[axes.line]) for r in rows}
    apart = len(set(places.values())) == len(rows) and len(_values(rows, axes.line)) <= len(COLOURS)
    if not apart:  # labels or colours do not tell the rows apart
        places = {r.name: ("", r.name, "") for r in rows}
    panels, xs, lines = (list(dict.fromkeys(place[i] for place in places.values())) for i in range(3))
    numbers = {r.name: published(r, m) for r in rows}
    said = {name: (xs.index(places[name][1]), one) for name, one in numbers.items() if one is not None}
    figure, plots = _panels(title, len(panels))
    for plot, panel in zip(plots, panels, strict=False):
        for i, line in enumerate(lines):
            shown = {
                xs.index(x): found[name]
                for name, (of, x, on) in places.items()
                if (of, on) == (panel, line) and found[name]
            }
            aside = (i - (len(lines) - 1) / 2) * 0.12  # so that bars do not hide each other
            points = [(x + aside, v) for x, v in sorted(shown.items()) if v]
            scale = 100 if m.percent else 1
            plot.errorbar(
                [x for x, _ in points],
                [scale * v.mean for _, v in points],
                yerr=[scale * (v.mean - v.low) if v.low is not None else 0 for _, v in points],
                label=str(line) or None,
                color=COLOURS[i % len(COLOURS)],
                marker="o",
                markersize=4,
                linewidth=1,
                linestyle="-" if all(isinstance(x, int) for x in xs) else "none",  # names have no between
                capsize=3,
            )
            papers = [(at + aside, one) for name, (at, one) in said.items() if places[name][::2] == (panel, line)]
            if papers:
                plot.plot(*_xy(papers), color=COLOURS[i % len(COLOURS)], **PUBLISHED)
        crowded = sum(len(str(x)) for x in xs) > MOST_LETTERS
        plot.set_xticks(range(len(xs)), [str(x) for x in xs], rotation=45 if crowded else 0)
        plot.set_xlim(-0.5, len(xs) - 0.5)
        if apart:
            plot.set_xlabel(axes.x)
            plot.set_title(f"{axes.panel} {panel}".strip(), fontsize=9)
    plots[0].set_ylabel(_unit(m))
    _legend(figure, plots)
    figure.savefig(path, dpi=DPI)
    return True


def curves(path: Path, title: str, rows: Sequence[Row], results: Results, axes: Axes, m: Measure) -> bool:
    """A thin line for each run, over thousands of images seen; False where no run has two points."""
    lines = _values(rows, axes.line)
    places = list(dict.fromkeys((_label(r, axes.panel), r.labels[axes.x]) for r in rows))
    by_name = {r.name: r for r in rows}
    drawn = [f for f in results.facts if f.row in by_name and len(f.curves.get(m.metric, ())) > 1]
    if not drawn:
        return False
    figure, plots = _panels(title, len(places))
    named = set()
    for f in drawn:
        row = by_name[f.row]
        line, at = row.labels[axes.line], places.index((_label(row, axes.panel), row.labels[axes.x]))
        points = f.curves[m.metric]
        plots[at].plot(
            [p.kimg for p in points],
            [_scaled(p, m) for p in points],
            color=COLOURS[lines.index(line) % len(COLOURS)],
            linewidth=0.8,
            alpha=0.8,
            label=None if (at, line) in named else str(line),
        )
        named.add((at, line))
    for plot, (panel, x) in zip(plots, places, strict=False):
        plot.set_title(", ".join(filter(None, [f"{axes.panel} {panel}".strip(), f"{axes.x} {x}"])), fontsize=9)
        plot.set_xlabel("kimg")
        if all(p.value > 0 for f in drawn for p in f.curves[m.metric]) and not m.percent:
            plot.set_yscale("log")
    plots[0].set_ylabel(_unit(m))
    _legend(figure, plots)
    figure.savefig(path, dpi=DPI)
    return True


def is_evaluated(m: Measure, results: Results) -> bool:
    """Whether a metric comes from evaluation, so that its curve is of checkpoints."""
    return any(p.taken for f in results.facts for p in f.curves.get(m.metric, ()))


def by_row(path: Path, title: str, rows: Sequence[Row], results: Results, axes: Axes, m: Measure) -> bool:
    """A panel for each row: its seeds thin, their mean thick, the other rows' means in grey, what is published a cross.

    Dozens of rows stay legible, as none is told by its colour. False where no run is evaluated at two checkpoints.
    """
    runs = {row.name: [run for f in results.runs(row) if (run := _alike(f.curves.get(m.metric, ())))] for row in rows}
    means = {name: _mean(of, m) for name, of in runs.items()}
    if not any(means.values()) or all(len(points) < 2 for of in runs.values() for points in of):
        return False
    named = titles(rows, axes)
    figure, plots = _panels(title, len(rows), share=True)
    for plot, row in zip(plots, rows, strict=True):
        for name, mean in means.items():
            if name != row.name:
                plot.plot(*_xy(mean), color="#c4c4c4", linewidth=0.8, zorder=1)
        for points in runs[row.name]:
            seeds = [(p.kimg, _scaled(p, m)) for p in points]
            plot.plot(*_xy(seeds), color=COLOURS[0], linewidth=0.7, alpha=0.6, zorder=2)
        plot.plot(*_xy(means[row.name]), color=COLOURS[0], linewidth=1.8, marker="o", markersize=3, zorder=3)
        for one in (one for one in results.measures if one.metric == m.metric):
            if (paper := published(row, one)) is not None:
                at = one.until_kimg or row.run.total_kimg
                plot.plot([at], [paper], color=COLOURS[1], **PUBLISHED)
        plot.set_title(named[row.name], fontsize=9)
        plot.label_outer()
        if not m.percent and all(y > 0 for mean in means.values() for _, y in mean):
            plot.set_yscale("log")
    for plot in plots[-COLUMNS:]:  # the lowest of each column
        plot.set_xlabel("kimg")
        plot.tick_params(labelbottom=True)
    plots[0].set_ylabel("%" if m.percent else "")
    _legend(figure, plots)
    figure.savefig(path, dpi=DPI)
    return True


def titles(rows: Sequence[Row], axes: Axes) -> dict[str, str]:
    """Row -> the label that lines are told by, or its name where they share that."""
    lines = [str(row.labels[axes.line]) for row in rows]
    return {row.name: line if lines.count(line) == 1 else row.name for row, line in zip(rows, lines, strict=True)}


def _alike(points: Sequence[Point]) -> Sequence[Point]:
    """A run's points if all were taken alike, none otherwise."""
    return points if len({p.taken for p in points}) == 1 else []


def _mean(runs: Sequence[Sequence[Point]], m: Measure) -> list[tuple[float, float]]:
    """(kimg, mean) wherever all of a row's runs have a value; none where they were not taken alike."""
    if not runs or len({points[0].taken for points in runs}) > 1:
        return []
    values = [{p.kimg: _scaled(p, m) for p in points} for points in runs]
    shared = [kimg for kimg in values[0] if all(kimg in of for of in values)]
    return [(kimg, fmean(of[kimg] for of in values)) for kimg in shared]


def _xy(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _scaled(p: Point, m: Measure) -> float:
    return 100 * p.value if m.percent else p.value


def _panels(title: str, count: int, share: bool = False) -> "tuple[Figure, list[Plot]]":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(COLUMNS, count)
    lines = -(-count // columns)
    width, height = PANEL_IN
    figure = Figure(figsize=(0.6 + width * columns, 0.7 + height * lines), layout="constrained")
    FigureCanvasAgg(figure)
    plots = list(figure.subplots(lines, columns, squeeze=False, sharex=share, sharey=share).flat)
    for spare in plots[count:]:
        spare.remove()
    for plot in plots[:count]:
        plot.grid(color="#e5e5e5", linewidth=0.6)
        plot.tick_params(labelsize=8, which="both")
    figure.suptitle(title, fontsize=10)
    return figure, plots[:count]


def _legend(figure: "Figure", plots: "Sequence[Plot]") -> None:
    """Below all panels, where it hides nothing; a line may be in some of them only."""
    found = {label: handle for plot in plots for handle, label in zip(*plot.get_legend_handles_labels(), strict=True)}
    if found:
        columns = min(len(found), max(1, int(figure.get_figwidth() / (0.5 + 0.08 * max(map(len, found))))))  # inches
        figure.legend(
            found.values(), found.keys(), loc="outside lower center", ncols=columns, fontsize=8, frameon=False
        )


def _unit(m: Measure) -> str:
    return f"{m.title}, %" if m.percent else m.title


def _label(row: Row, name: str) -> Label:
    return row.labels[name] if name else ""


def _values(rows: Sequence[Row], name: str) -> list[Label]:
    return list(dict.fromkeys(_label(row, name) for row in rows))
