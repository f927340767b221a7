"""Mode collapse as a measure: how far apart fakes are, relative to reals.

`fake_distance`: RMS over pixels between two fakes of one label and different z; `real_distance`: between neighbouring
reals; both are means over the images of a status window (families/wgan_gp.py, `diversity_interval`). GeoPos
(2401.01951) says when its GANs collapsed, not how it saw that: measure, floor and hold are ours. Knows no networks and
no files.
"""

from collections.abc import Iterable, Mapping
from typing import Any

FAKE, REAL = "Loss/D/fake_distance", "Loss/D/real_distance"
RATIO = "Collapse/diversity"
FLOOR, HOLD = 0.1, 5  # collapsed: below a tenth of the reals' distance in so many consecutive windows


def ratio_of(metrics: Mapping[str, Any]) -> float | None:
    """fake_distance / real_distance of one window; None where it measured none, or reals do not differ."""
    fake, real = metrics.get(FAKE), metrics.get(REAL)
    return None if fake is None or not real else float(fake) / float(real)


def collapsed_at_kimg(rows: Iterable[Mapping[str, Any]], floor: float = FLOOR, hold: int = HOLD) -> float | None:
    """Where a run collapsed: the end of the first of `hold` consecutive windows whose ratio is below `floor`.

    `rows` are records of metrics.jsonl by nimg; windows that measured nothing are passed over. None: it did not.
    """
    low: list[float] = []
    for row in rows:
        ratio = ratio_of(row["metrics"])
        if ratio is None:
            continue
        low = [*low, row["nimg"] / 1000] if ratio < floor else []
        if len(low) == hold:
            return low[0]
    return None
