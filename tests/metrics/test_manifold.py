"""Precision, recall, density and coverage against loops over pairs and where the answer is plain."""

from typing import get_args

import pytest
import torch

from pipeline.errors import UserError, WorkError
from pipeline.metrics import manifold
from pipeline.metrics.manifold import Variant, density_coverage, precision_recall, radii


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def line(*positions: float) -> torch.Tensor:
    return torch.tensor(positions, dtype=torch.float64)[:, None]


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).square().sum()) ** 0.5


def brute(real: torch.Tensor, fake: torch.Tensor, k: int) -> tuple[float, float, float, float]:
    """The definitions, read out: loops over pairs."""

    def reach(x: torch.Tensor) -> list[float]:
        return [sorted(distance(a, b) for j, b in enumerate(x) if j != i)[k - 1] for i, a in enumerate(x)]

    real_reach, fake_reach = reach(real), reach(fake)
    within_real = [[distance(f, r) <= radius for r, radius in zip(real, real_reach, strict=True)] for f in fake]
    within_fake = [[distance(f, r) <= radius for f, radius in zip(fake, fake_reach, strict=True)] for r in real]
    return (
        sum(any(row) for row in within_real) / len(fake),
        sum(any(row) for row in within_fake) / len(real),
        sum(sum(row) for row in within_real) / (k * len(fake)),
        sum(any(column) for column in zip(*within_real, strict=True)) / len(real),
    )


@pytest.mark.parametrize("tile", [(1000, 4000), (7, 10), (10, 7), (4, 4)])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_all_four_are_those_of_loops_however_pairs_are_tiled(monkeypatch, tile, k):
    monkeypatch.setattr(manifold, "ROWS", tile[0])
    monkeypatch.setattr(manifold, "COLUMNS", tile[1])
    real, fake = randn(31, 3, seed=1), randn(24, 3, seed=2) * 1.2 + 0.9
    precision, recall, density, coverage = brute(real, fake, k)
    pr, dc = precision_recall(real, fake, k), density_coverage(real, fake, k)
    assert (pr.precision, pr.recall) == pytest.approx((precision, recall), rel=1e-14)
    assert (dc.density, dc.coverage) == pytest.approx((density, coverage), rel=1e-14)
    assert 0 < min(precision, recall, density, coverage)
    assert max(precision, recall, coverage) < 1


def test_on_a_line_the_numbers_can_be_read_off():
    """k = 1: the balls of the reals are [-1, 1], [0, 2], [1, 3] and [2, 18]."""
    real, fake = line(0, 1, 2, 10), line(0.5, 1.5, 30, 40)
    assert radii(real, 1).tolist() == [1, 1, 1, 8]
    assert radii(real, 2).tolist() == [2, 1, 2, 9]
    pr, dc = precision_recall(real, fake, k=1), density_coverage(real, fake, k=1)
    assert (pr.precision, pr.recall) == (0.5, 0.75)  # balls of fakes: [-0.5, 1.5], [0.5, 2.5], [20, 40], [30, 50]
    assert (dc.density, dc.coverage) == (1.0, 0.75)


def test_equal_sets_are_wholly_within_each_other():
    x = randn(40, 5, seed=3)
    assert precision_recall(x, x) == manifold.PrecisionRecall(1.0, 1.0)
    assert density_coverage(x, x).coverage == 1


def test_sets_far_apart_share_nothing():
    x = randn(40, 5, seed=4)
    assert precision_recall(x, x + 100) == manifold.PrecisionRecall(0.0, 0.0)
    assert density_coverage(x, x + 100) == manifold.DensityCoverage(0.0, 0.0)


def test_precision_and_recall_change_places_with_the_sets():
    x, y = randn(50, 4, seed=5), randn(45, 4, seed=6) * 0.5
    one, other = precision_recall(x, y), precision_recall(y, x)
    assert (one.precision, one.recall) == (other.recall, other.precision)
    assert one.precision > one.recall


def test_fewer_modes_cost_recall_and_coverage_and_not_precision():
    modes = randn(1000, 2, seed=7) + 20 * torch.arange(10).repeat(100)[:, None]
    real, fake = modes[:500], modes[500:][torch.arange(500) % 10 < 3]
    pr, dc = precision_recall(real, fake), density_coverage(real, fake)
    assert pr.precision > 0.9
    assert pr.recall < 0.35
    assert dc.density > 0.85
    assert dc.coverage < 0.35


def test_density_is_near_one_for_two_sets_of_one_distribution():
    """Expectations by Naeem et al. 2020: 1, and 1 - (N - 1)...(N - k) / (M + N - 1)...(M + N - k)."""
    real, fake = randn(1500, 6, seed=8), randn(1500, 6, seed=9)
    found = density_coverage(real, fake, k=5)
    expected = 1.0
    for i in range(1, 6):
        expected *= (1500 - i) / (3000 - i)
    assert found.density == pytest.approx(1, abs=0.05)
    assert found.coverage == pytest.approx(1 - expected, abs=0.02)


def test_equal_images_far_from_the_origin_are_at_no_distance():
    """Norms of 1e8 leave |x|^2 + |y|^2 - 2 x.y an error far above 0."""
    x = randn(6, 300, seed=10) + 1e4
    doubled = torch.cat([x, x, x, x])
    assert radii(doubled, 3).tolist() == [0.0] * 24
    assert precision_recall(doubled, x.repeat(4, 1)) == manifold.PrecisionRecall(1.0, 1.0)
    assert density_coverage(doubled, doubled, k=3).coverage == 0  # balls without a rim and of no size hold nothing


def test_a_ball_holds_its_rim_for_precision_and_not_for_density():
    real, fake = line(0, 1), line(2, 2.5)
    assert precision_recall(real, fake, k=1).precision == 0.5
    assert density_coverage(real, fake, k=1).density == 0


def precisions(real: torch.Tensor, fake: torch.Tensor) -> dict[str, float]:
    return {variant: precision_recall(real, fake, k=1, variant=variant).precision for variant in get_args(Variant)}


def test_variants_differ_where_float16_has_too_few_digits():
    """From 2 to 4 it counts in steps of 1/512."""
    far = torch.tensor([[40.0, 0], [60, 0], [80, 0]], dtype=torch.float64)

    def fakes(x: float, y: float) -> torch.Tensor:
        return torch.cat([torch.tensor([[x, y]], dtype=torch.float64), far])

    real = torch.tensor([[0, 0], [2.0005, 0], [10, 0], [20, 0]], dtype=torch.float64)
    assert precisions(real, fakes(-2.0004, 0)) == {"exact": 0.25, "nvlabs": 0.25, "mmgeneration": 0.0}
    real[1, 0] = 2
    assert precisions(real, fakes(-2.0004, 0)) == {"exact": 0.0, "nvlabs": 0.25, "mmgeneration": 0.0}
    assert precisions(real, fakes(-2, 0.0625)) == {"exact": 0.0, "nvlabs": 0.25, "mmgeneration": 0.0}  # 2.00098 apart
    real = torch.tensor([[1000, 0], [1000.3, 0], [10, 0], [20, 0]], dtype=torch.float64)  # 1000.5 in float16
    assert precisions(real, fakes(999.6, 0)) == {"exact": 0.0, "nvlabs": 0.25, "mmgeneration": 0.0}  # and 999.5


def test_the_variant_of_nvlabs_is_what_tensors_of_float16_give():
    """The same balls by torch.cdist of float16 tensors, on features that it has not the digits for."""
    mix = randn(8, 64, seed=11)
    real, fake = (randn(n, 8, seed=n) @ mix * scale for n, scale in ((300, 1.0), (250, 0.9)))

    def share(manifold_of: torch.Tensor, probes: torch.Tensor) -> float:
        reach = torch.cdist(manifold_of, manifold_of).float().kthvalue(4).values.half()
        return float((torch.cdist(probes, manifold_of) <= reach).any(dim=1).double().mean())

    found = precision_recall(real, fake, variant="nvlabs")
    expected = share(real.half(), fake.half()), share(fake.half(), real.half())
    assert (found.precision, found.recall) == pytest.approx(expected, abs=0.008)  # two images: sums are of float16 too
    assert 0.2 < min(expected)
    assert max(expected) < 0.95


def test_too_few_images_and_nan_are_refused():
    x = randn(6, 3)
    with pytest.raises(UserError, match="precision and recall with k = 3 needs at least 4 real images, got 3"):
        precision_recall(x[:3], x)
    with pytest.raises(UserError, match="density and coverage with k = 5 needs at least 6 fake images, got 5"):
        density_coverage(x, x[:5])
    bad = x.clone()
    bad[4, 0] = float("inf")
    with pytest.raises(WorkError, match="real image 4: feature 0 of 3 is inf"):
        precision_recall(bad, x)
