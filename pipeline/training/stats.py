"""Means of loss terms between two lines of metrics, exact across ranks, kills and resumes.

Each rank adds sums on its own device without waiting for it; `take` reduces them. The sums travel in the
checkpoint, so the line after a resume covers the same images as it would have undisturbed.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.training.engine import Engine


class Stats:
    """Sums and counts by name."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}  # of this rank since the last reduction, on its device
        self._counts: dict[str, int] = {}
        self._total: dict[str, tuple[float, float]] = {}  # of all ranks before that

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Per-sample values, by name."""
        for name, value in terms.items():
            own = value.detach().sum(dtype=torch.float64)
            self._sums[name] = self._sums[name] + own if name in self._sums else own
            self._counts[name] = self._counts.get(name, 0) + len(value)

    def totals(self, engine: Engine) -> dict[str, tuple[float, float]]:
        """(sum, count) over all ranks since the last `take`; every rank calls it and gets the same."""
        names = sorted(self._sums)
        own = torch.stack([self._sums[n] for n in names]).tolist() if names else []
        reduced = engine.sum([*own, *(float(self._counts[n]) for n in names)])
        for name, more, n_more in zip(names, reduced[: len(names)], reduced[len(names) :], strict=True):
            total, n = self._total.get(name, (0.0, 0.0))
            self._total[name] = (total + more, n + n_more)
        self._sums.clear()
        self._counts.clear()
        return dict(self._total)

    def take(self, engine: Engine) -> dict[str, float]:
        """Means over all ranks, and start anew."""
        means = {name: s / n for name, (s, n) in self.totals(engine).items()}
        self._total.clear()
        return means

    def restore(self, totals: Mapping[str, tuple[float, float]]) -> None:
        self._sums.clear()
        self._counts.clear()
        self._total = dict(totals)
