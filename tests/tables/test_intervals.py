"""Intervals against scipy, pairing against numbers worked out by hand."""

import math

import pytest
from scipy import stats

from pipeline.tables.intervals import Interval, advantage, interval, verdict

VALUES = [0.31, 0.29, 0.42, 0.35, 0.30]


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_interval_is_students_t_over_the_seeds(n):
    found = interval(VALUES[:n])
    low, high = stats.t.interval(0.95, n - 1, loc=sum(VALUES[:n]) / n, scale=stats.sem(VALUES[:n]))
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((sum(VALUES[:n]) / n, low, high), rel=1e-12)
    assert found.n == n


def test_one_value_has_no_interval_and_no_value_no_mean():
    assert interval([0.5]) == Interval(0.5, None, None, 1)
    assert interval([]) is None
    assert interval([0.5, math.nan]).low is None


def test_an_advantage_is_of_the_means_over_the_pairs_of_each_seed():
    ours = {"a": {0: 1.0, 1: 2.0, 2: 9.0}, "b": {0: 3.0, 1: 4.0}, "alone": {0: 50.0}}
    theirs = {"b": {0: 4.0, 1: 6.0, 2: 9.0}, "a": {0: 4.0, 1: 2.0, 2: 9.0}}
    found = advantage(ours, theirs, better="lower", kind="relative")
    assert found.by_seed == pytest.approx({0: 1 - 4 / 8, 1: 1 - 6 / 8})
    assert found.incomplete == (2,), "its mean would be of another sweep"
    assert found.pairs == 2, "a place of one of them alone is no pair"
    assert found.over_seeds == interval(list(found.by_seed.values()))
    points = advantage(ours, theirs, better="higher", kind="difference")
    assert points.by_seed == pytest.approx({0: -2.0, 1: -1.0})


def test_a_verdict_says_no_more_than_the_interval():
    spans = {(0.1, 0.3): "supports", (-0.3, -0.1): "contradicts", (-0.1, 0.3): "leaves open"}
    for (low, high), said in spans.items():
        assert verdict(Interval((low + high) / 2, low, high, 5), claimed=True) == said
    assert verdict(Interval(0.9, None, None, 1), claimed=True) == "leaves open (no interval)"
    assert verdict(None, claimed=True) == "not measured"
    assert verdict(Interval(-0.2, -0.3, -0.1, 5), claimed=False) == "below 0"
