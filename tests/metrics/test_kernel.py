"""KID by enumeration: every set that could have been drawn, every subset, every pair."""

from itertools import combinations, product

import pytest
import torch

from pipeline.errors import UserError, WorkError
from pipeline.metrics import kernel
from pipeline.metrics.kernel import cubic_kernel, kid, kid_of_subsets


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute(x: torch.Tensor, y: torch.Tensor) -> float:
    """MMD^2 without bias by loops over pairs, as Binkowski et al. 2018 write it."""

    def k(a: torch.Tensor, b: torch.Tensor) -> float:
        return (float((a * b).sum()) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    own = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    other = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return own + other - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def test_all_pairs_are_those_of_loops(monkeypatch):
    x, y = randn(11, 3, seed=1), randn(8, 3, seed=2) + 0.5
    expected = brute(x, y)
    for tile in (3, 4, 2000):
        monkeypatch.setattr(kernel, "TILE", tile)
        assert kid(x, y) == pytest.approx(expected, rel=1e-12)
    assert kid(x.float(), y.float()) == pytest.approx(expected, rel=1e-5)


def test_the_mean_over_all_sets_that_could_be_drawn_is_the_true_discrepancy():
    """Sets of 3 and 2 images from distributions over 3 and 2 points: 27 x 4 draws of equal chance, enumerated."""
    p, q = randn(3, 2, seed=3), randn(2, 2, seed=4) + 1
    true = float(cubic_kernel(p, p).mean() + cubic_kernel(q, q).mean() - 2 * cubic_kernel(p, q).mean())
    draws = [kid(p[list(i)], q[list(j)]) for i in product(range(3), repeat=3) for j in product(range(2), repeat=2)]
    assert sum(draws) / len(draws) == pytest.approx(true, rel=1e-12)
    assert max(draws) - min(draws) > abs(true) / 10


def test_two_sets_of_one_distribution_are_at_no_distance_in_the_mean():
    p = randn(3, 2, seed=5)
    pairs = list(product(range(3), repeat=2))
    draws = [kid(p[list(i)], p[list(j)]) for i in pairs for j in pairs]
    assert sum(draws) / len(draws) == pytest.approx(0, abs=1e-13)
    assert min(draws) < -0.01


def test_the_mean_over_all_subsets_is_that_of_all_pairs():
    x, y = randn(6, 4, seed=6), randn(5, 4, seed=7)
    found = [kid(x[list(i)], y[list(j)]) for i in combinations(range(6), 3) for j in combinations(range(5), 3)]
    assert sum(found) / len(found) == pytest.approx(kid(x, y), rel=1e-12)


def test_the_subsets_protocol_takes_the_mean_and_deviation_over_seeded_subsets():
    x, y = randn(60, 4, seed=8), randn(50, 4, seed=9) + 0.3
    found = kid_of_subsets(x, y, seed=1, subsets=100, size=20)
    assert found == kid_of_subsets(x, y, seed=1, subsets=100, size=20)
    assert found != kid_of_subsets(x, y, seed=2, subsets=100, size=20)
    assert found.mean == pytest.approx(kid(x, y), abs=4 * found.std / 100**0.5)
    first, both = (kid_of_subsets(x, y, seed=1, subsets=n, size=20) for n in (1, 2))
    assert first.std == 0
    second = 2 * both.mean - first.mean
    assert both.std == pytest.approx(abs(first.mean - second) / 2)  # over 2, not over 1


def test_a_subset_draws_no_image_twice():
    x, y = randn(9, 4, seed=10), randn(9, 4, seed=11)
    found = kid_of_subsets(x, y, seed=3, subsets=3, size=1000)
    assert found.mean == pytest.approx(kid(x, y), rel=1e-12)
    assert found.std == pytest.approx(0, abs=1e-12)


def test_one_image_two_detectors_and_nan_are_refused():
    x = randn(5, 4)
    with pytest.raises(UserError, match="kid needs at least 2 fake images, got 1"):
        kid(x, x[:1])
    with pytest.raises(UserError, match="kid: real images have 4 features and fakes 3"):
        kid_of_subsets(x, x[:, :3], seed=0)
    bad = x.clone()
    bad[3, 1] = float("nan")
    with pytest.raises(WorkError, match="fake image 3: feature 1 of 4 is nan"):
        kid(x, bad)
