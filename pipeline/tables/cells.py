"""Which of a run's values stands in a column: the last, the best of a length, or the one where another is best.

Papers print "the best checkpoint before D has seen 20 M images" (MS-PIE, Tables 2 and 5). A column without a length
wants runs that are done; one with a length, runs that have trained so far, whatever became of them afterwards. Numbers
that were not taken alike are neither ranked nor averaged.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.tables.measured import Point, RunFacts, Taken
from pipeline.tables.table import Measure, Row

PASSED = 1e-5  # of a length: 25 M and 250 images are 25 M


@dataclass(frozen=True)
class Cell:
    """What a run has for a column. No `point`: its values were not taken alike, and none of them stands for it."""

    point: Point | None
    among: int  # values that it was chosen from
    taken: frozenset[Taken | None]


@dataclass(frozen=True)
class Results:
    """The runs of a table by row and column."""

    measures: Sequence[Measure]
    rows: Sequence[Row]
    facts: Sequence[RunFacts]

    def runs(self, row: Row) -> list[RunFacts]:
        """Those of a row, by seed."""
        return [f for f in self.facts if f.row == row.name]

    def cell(self, run: RunFacts, m: Measure) -> Cell | None:
        """None where there is no measurement: not trained so far, not evaluated there, or from the configuration."""
        other = next((one for one in self.measures if one.key == m.at_best_of), None)
        until_kimg = other.until_kimg if other and m.until_kimg is None else m.until_kimg
        if m.of is not None or not (run.state == "done" if until_kimg is None else 0 < until_kimg <= run.kimg):
            return None
        points = [p for p in run.curves.get(m.metric, ()) if until_kimg is None or _within(p.kimg, until_kimg)]
        if other:
            best = self.cell(run, other)
            points = [p for p in points if best and best.point and p.kimg == best.point.kimg]
        elif not m.best:
            points = points[-1:]
            if until_kimg is None and points and points[0].taken and points[0].kimg < run.kimg:
                return None  # of an earlier checkpoint than the run's last
        if not points:
            return None
        taken = frozenset(p.taken for p in points)
        if len(taken) > 1:
            return Cell(None, len(points), taken)
        finite = [p for p in points if math.isfinite(p.value)] or points
        sign = 1 if m.better == "lower" else -1
        return Cell(min(finite, key=lambda p: sign * p.value), len(points), taken)

    def cells(self, row: Row, m: Measure) -> dict[int, Cell]:
        """Seed -> cell, of the runs of a row that have one."""
        found = {run.seed: self.cell(run, m) for run in self.runs(row)}
        return {seed: cell for seed, cell in found.items() if cell is not None}

    def taken(self, row: Row, m: Measure) -> frozenset[Taken | None]:
        """All the ways in which a row's numbers of a column were taken."""
        return frozenset(taken for cell in self.cells(row, m).values() for taken in cell.taken)

    def values(self, row: Row, m: Measure) -> dict[int, float]:
        """Seed -> number, finite ones only; none where they were not taken alike. One of the configuration, at 0."""
        if m.of is not None:
            return {0: float(m.of(row.run))}
        if len(self.taken(row, m)) > 1:
            return {}
        found = {seed: cell.point.value for seed, cell in self.cells(row, m).items() if cell.point}
        return {seed: value for seed, value in found.items() if math.isfinite(value)}

    def not_finite(self, row: Row, m: Measure) -> int:
        """Runs of a row whose number is NaN or infinite."""
        points = [cell.point for cell in self.cells(row, m).values()]
        return sum(p is not None and not math.isfinite(p.value) for p in points)


def _within(kimg: float | int, until_kimg: float | int) -> bool:
    """A checkpoint that is due at the length is made by the iteration that passes it: a few images beyond."""
    return kimg <= until_kimg * (1 + PASSED)
