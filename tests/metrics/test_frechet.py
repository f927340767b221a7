"""FID against closed forms, against scipy's root of a matrix, and where covariances are singular."""

import numpy as np
import pytest
import scipy.linalg
import torch

from pipeline.errors import UserError
from pipeline.metrics.frechet import OFFSET, fid, frechet_distance
from pipeline.metrics.moments import moments

Gaussian = tuple[torch.Tensor, torch.Tensor]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotated(variances: torch.Tensor, seed: int = 1) -> torch.Tensor:
    """A covariance of these variances along axes that are not the features'."""
    turn = torch.linalg.qr(randn(len(variances), len(variances), seed=seed))[0]
    return (turn * variances) @ turn.T


def images(n: int, d: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return randn(n, d, seed=seed) @ (rotated(torch.logspace(0, -2, d, dtype=torch.float64), seed)) * scale


def test_equal_gaussians_are_at_no_distance():
    cov = rotated(torch.logspace(0, -3, 20, dtype=torch.float64))
    assert frechet_distance(cov[0], cov, cov[0], cov).distance == pytest.approx(0, abs=1e-13)


def test_distance_of_one_dimensional_gaussians():
    one = torch.ones(1, dtype=torch.float64)
    found = frechet_distance(3 * one, 4 * one[None], -one, 25 * one[None])
    assert found.distance == pytest.approx(16 + (2 - 5) ** 2, rel=1e-14)
    assert (found.mean_term, found.cov_term) == pytest.approx((16, 9))


def test_distance_of_covariances_that_commute_is_that_of_their_deviations():
    a, b = torch.logspace(1, -2, 50, dtype=torch.float64), torch.logspace(-1, 1, 50, dtype=torch.float64)
    mean = randn(50)
    found = frechet_distance(mean, rotated(a), torch.zeros_like(mean), rotated(b))
    assert found.distance == pytest.approx(float(mean.square().sum() + (a.sqrt() - b.sqrt()).square().sum()), rel=1e-12)
    assert found.ranks == (50, 50)
    assert found.notes == ()


def test_equal_to_scipys_root_of_the_product():
    a, b = moments([images(400, 64, 2)]), moments([images(300, 64, 3) + 0.1])
    root = scipy.linalg.sqrtm(a.cov().numpy() @ b.cov().numpy())
    expected = float((a.mean - b.mean).square().sum()) + float((a.cov() + b.cov()).trace()) - 2 * np.trace(root)
    assert fid(a, b).distance == pytest.approx(expected, rel=1e-10)
    assert fid(b, a).distance == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("n", "m"), [(30, 40), (30, 500), (500, 30)])
def test_too_few_images_give_the_exact_number_and_a_note(n, m):
    """The root's trace is the sum of singular values of X Y^T, taken here from the images and no covariance."""
    x, y = images(n, 64, 4), images(m, 64, 5, 1.2)
    centred = [(z - z.mean(dim=0)) / (len(z) - 1) ** 0.5 for z in (x, y)]
    trace = float(torch.linalg.svdvals(centred[0] @ centred[1].T).sum())
    expected = float((x.mean(0) - y.mean(0)).square().sum() + sum(z.square().sum() for z in centred)) - 2 * trace
    found = fid(moments([x]), moments([y]))
    assert found.distance == pytest.approx(expected, rel=1e-11)
    assert found.ranks == (min(n - 1, 64), min(m - 1, 64))
    assert any(
        f"{min(n, m)} {'real' if n <= m else 'fake'} images are too few for 64 features" in s for s in found.notes
    )
    assert any(f"rank {min(n, m) - 1} of 64" in s for s in found.notes)


def test_gaussians_in_spaces_without_a_common_direction_share_nothing():
    left = torch.diag(torch.tensor([1.0, 2, 0, 0], dtype=torch.float64))
    right = torch.diag(torch.tensor([0.0, 0, 3, 4], dtype=torch.float64))
    found = frechet_distance(left[0], left, left[0], right)
    assert found.distance == 10
    assert found.notes == (
        "the first covariance is singular in float64: rank 2 of 4",
        "the second covariance is singular in float64: rank 2 of 4",
    )


@pytest.mark.parametrize("decades", [4, 8, 12, 15])
def test_nearly_singular_covariances_keep_the_closed_form(decades):
    a = torch.logspace(0, -decades, 60, dtype=torch.float64)
    b = 4 * a.flip(0)
    zero = torch.zeros_like(a)
    expected = float((a.sqrt() - b.sqrt()).square().sum())
    assert frechet_distance(zero, rotated(a), zero, rotated(b)).distance == pytest.approx(expected, rel=2e-6)


def test_scaled_covariance_over_n_is_the_variant_of_nvlabs():
    x, y = images(50, 6, 6), images(50, 6, 7) + 1
    unbiased, nvlabs = fid(moments([x]), moments([y])), fid(moments([x]), moments([y]), "nvlabs")
    assert nvlabs.mean_term == unbiased.mean_term
    assert nvlabs.cov_term == pytest.approx(unbiased.cov_term * 49 / 50, rel=1e-12)


def test_the_variant_of_mseitzer_adds_to_the_root_where_each_set_has_a_dead_feature_of_its_own():
    x, y = images(50, 3, 8), images(50, 3, 9)
    x[:, 0] = y[:, 2] = 0
    a, b = moments([x]), moments([y])
    shifted = [m.cov().numpy() + OFFSET * np.eye(3) for m in (a, b)]
    root = np.trace(scipy.linalg.sqrtm(shifted[0] @ shifted[1]))
    found = fid(a, b, "mseitzer")
    assert found.cov_term == pytest.approx(float((a.cov() + b.cov()).trace()) - 2 * root, rel=1e-10)
    assert found.cov_term < fid(a, b).cov_term - 1e-4
    assert found.notes == ("1e-06 was added to both diagonals inside the root",)
    x[:, 2] = 0  # those of y are dead in x too: scipy has a root
    a = moments([x])
    assert fid(a, b, "mseitzer") == fid(a, b)
    assert fid(b, a, "mseitzer") == fid(b, a)


def test_what_is_no_covariance_is_refused():
    eye, zero = torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    wrong = eye.clone()
    wrong[0, 0] = -0.5
    for one, other in ((eye, wrong), (wrong, eye)):
        with pytest.raises(ValueError, match=r"eigenvalues -0.5 and 1; none may be below 0"):
            frechet_distance(zero, one, zero, other)
    with pytest.raises(ValueError, match="cov2 holds values that are nan or infinite"):
        frechet_distance(zero, eye, zero, eye * float("nan"))


def test_features_of_two_detectors_are_refused():
    with pytest.raises(UserError, match="real images have 3 features and fakes 4"):
        fid(moments([images(9, 3, 1)]), moments([images(9, 4, 1)]))
