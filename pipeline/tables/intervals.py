"""Means over seeds with 95% intervals, and two variants compared seed by seed.

Intervals are Student's t over the seeds, which takes their values for independent and normal. Nothing here knows
where numbers come from.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from statistics import fmean
from typing import Literal

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with its interval; `low` and `high` are None where a single value has none."""

    mean: float
    low: float | None
    high: float | None
    n: int


def interval(values: Sequence[float]) -> Interval | None:
    """Mean and 95% interval of independent values: mean -+ t(0.975, n - 1) * s / sqrt(n). None of no value."""
    n = len(values)
    if not n:
        return None
    mean = fmean(values)
    if n == 1 or not isfinite(mean):
        return Interval(mean, None, None, n)
    from scipy.stats import t

    deviation = sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * deviation / sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


Values = Mapping[Hashable, Mapping[int, float]]
"""Place in the sweep -> seed -> measured."""


@dataclass(frozen=True)
class Advantage:
    """How far a variant is ahead, by seed, and over the seeds; `incomplete`: seeds that lack a pair, not counted."""

    by_seed: Mapping[int, float]
    over_seeds: Interval | None
    pairs: int  # places of the sweep
    incomplete: tuple[int, ...]


def advantage(
    variant: Values,
    against: Values,
    *,
    better: Literal["lower", "higher"],
    kind: Literal["relative", "difference"],
) -> Advantage:
    """Paired by place and seed: of each seed the means over the places, their difference; positive: `variant` leads.

    kind="relative" divides by the mean of `against`: 0.46 is "46% lower". Places are those that both have rows for; a
    seed counts only if both have it in all of them, or else its mean would be of another sweep.
    """
    places = [place for place in variant if place in against]
    seeds = sorted({seed for of in (variant, against) for place in places for seed in of[place]})
    whole = [s for s in seeds if all(s in variant[p] and s in against[p] for p in places)]
    by_seed = {}
    for seed in whole:
        ours, theirs = (fmean(of[place][seed] for place in places) for of in (variant, against))
        gain = theirs - ours if better == "lower" else ours - theirs
        if kind == "relative":
            gain = gain / theirs if theirs else float("nan")
        by_seed[seed] = gain
    incomplete = tuple(s for s in seeds if s not in by_seed)
    return Advantage(by_seed, interval(list(by_seed.values())), len(places), incomplete)


def verdict(found: Interval | None, claimed: bool) -> str:
    """What an interval says of a claim that the mean is above 0; without a claim, on which side of 0 it lies."""
    if found is None:
        return "not measured"
    if found.low is None or found.high is None:
        return "leaves open (no interval)"
    if found.low > 0:
        return "supports" if claimed else "above 0"
    if found.high < 0:
        return "contradicts" if claimed else "below 0"
    return "leaves open" if claimed else "includes 0"
