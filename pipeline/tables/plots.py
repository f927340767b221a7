"""The plots of a report as PNG files: a measure over the sweep with interval bars, and its curves while training.

matplotlib's Figure without pyplot: no display, no state between plots. Knows no paper.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.tables.intervals import interval
from pipeline.tables.measured import RunFacts, values_of
from pipeline.tables.table import Axes, Label, Measure, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Plot
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444")
PANEL_IN, COLUMNS, DPI = (3.6, 2.8), 4, 110


def sweep(path: Path, title: str, rows: Sequence[Row], facts: Sequence[RunFacts], axes: Axes, m: Measure) -> bool:
    """Mean and 95% interval over seeds of each row; False, and no file, where nothing is measured."""
    found = {r.name: interval(list(values_of(facts, r.name, m.metric).values())) for r in rows}
    if not any(found.values()):
        return False
    panels, xs = _values(rows, axes.panel), _values(rows, axes.x)
    lines = _values(rows, axes.line)
    figure, plots = _panels(title, len(panels))
    for plot, panel in zip(plots, panels, strict=False):
        for i, line in enumerate(lines):
            shown = {
                xs.index(r.labels[axes.x]): found[r.name]
                for r in rows
                if r.labels[axes.line] == line and _label(r, axes.panel) == panel and found[r.name]
            }
            aside = (i - (len(lines) - 1) / 2) * 0.12  # so that bars do not hide each other
            points = [(x + aside, v) for x, v in sorted(shown.items()) if v]
            scale = 100 if m.percent else 1
            plot.errorbar(
                [x for x, _ in points],
                [scale * v.mean for _, v in points],
                yerr=[scale * (v.mean - v.low) if v.low is not None else 0 for _, v in points],
                label=str(line),
                color=COLOURS[i % len(COLOURS)],
                marker="o",
                markersize=4,
                linewidth=1,
                linestyle="-" if all(isinstance(x, int) for x in xs) else "none",  # names have no between
                capsize=3,
            )
        plot.set_xticks(range(len(xs)), [str(x) for x in xs])
        plot.set_xlim(-0.5, len(xs) - 0.5)
        plot.set_xlabel(axes.x)
        plot.set_title(f"{axes.panel} {panel}".strip(), fontsize=9)
    plots[0].set_ylabel(_unit(m))
    _legend(figure, plots)
    figure.savefig(path, dpi=DPI)
    return True


def curves(path: Path, title: str, rows: Sequence[Row], facts: Sequence[RunFacts], axes: Axes, m: Measure) -> bool:
    """A thin line for each run, over thousands of images seen; False where no run has two points."""
    lines = _values(rows, axes.line)
    places = list(dict.fromkeys((_label(r, axes.panel), r.labels[axes.x]) for r in rows))
    by_name = {r.name: r for r in rows}
    drawn = [f for f in facts if f.row in by_name and len(f.curves.get(m.metric, ())) > 1]
    if not drawn:
        return False
    figure, plots = _panels(title, len(places))
    named = set()
    for f in drawn:
        row = by_name[f.row]
        line, at = row.labels[axes.line], places.index((_label(row, axes.panel), row.labels[axes.x]))
        points = f.curves[m.metric]
        plots[at].plot(
            [kimg for kimg, _ in points],
            [100 * v if m.percent else v for _, v in points],
            color=COLOURS[lines.index(line) % len(COLOURS)],
            linewidth=0.8,
            alpha=0.8,
            label=None if (at, line) in named else str(line),
        )
        named.add((at, line))
    for plot, (panel, x) in zip(plots, places, strict=False):
        plot.set_title(", ".join(filter(None, [f"{axes.panel} {panel}".strip(), f"{axes.x} {x}"])), fontsize=9)
        plot.set_xlabel("kimg")
        if all(v > 0 for f in drawn for _, v in f.curves[m.metric]) and not m.percent:
            plot.set_yscale("log")
    plots[0].set_ylabel(_unit(m))
    _legend(figure, plots)
    figure.savefig(path, dpi=DPI)
    return True


def _panels(title: str, count: int) -> "tuple[Figure, list[Plot]]":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(COLUMNS, count)
    lines = -(-count // columns)
    width, height = PANEL_IN
    figure = Figure(figsize=(0.6 + width * columns, 0.7 + height * lines), layout="constrained")
    FigureCanvasAgg(figure)
    plots = list(figure.subplots(lines, columns, squeeze=False).flat)
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
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=len(found), fontsize=8, frameon=False)


def _unit(m: Measure) -> str:
    return f"{m.title}, %" if m.percent else m.title


def _label(row: Row, name: str) -> Label:
    return row.labels[name] if name else ""


def _values(rows: Sequence[Row], name: str) -> list[Label]:
    return list(dict.fromkeys(_label(row, name) for row in rows))
