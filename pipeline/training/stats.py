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
        self._own: dict[str, Tensor] = {}  # [sum, count] of this rank since the last reduction
        self._total: dict[str, tuple[float, float]] = {}  # of all ranks before that

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Per-sample values, by name."""
        for name, value in terms.items():
            value = value.detach()
            pair = torch.stack([value.sum(dtype=torch.float64), value.new_tensor(len(value), dtype=torch.float64)])
            self._own[name] = self._own[name] + pair if name in self._own else pair

    def totals(self, engine: Engine) -> dict[str, tuple[float, float]]:
        """(sum, count) over all ranks since the last `take`; every rank calls it and gets the same."""
        names = sorted(self._own)
        flat = torch.stack([self._own[n] for n in names]).flatten().tolist() if names else []
        sums = engine.sum(flat)
        for i, name in enumerate(names):
            s, n = self._total.get(name, (0.0, 0.0))
            self._total[name] = (s + sums[2 * i], n + sums[2 * i + 1])
        self._own.clear()
        return dict(self._total)

    def take(self, engine: Engine) -> dict[str, float]:
        """Means over all ranks, and start anew."""
        means = {name: s / n for name, (s, n) in self.totals(engine).items()}
        self._total.clear()
        return means

    def restore(self, totals: Mapping[str, tuple[float, float]]) -> None:
        self._own.clear()
        self._total = {name: (s, n) for name, (s, n) in totals.items()}
