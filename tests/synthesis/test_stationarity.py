"""Measured moments against the closed form of one layer, and against a convolution unrolled into a matrix."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline.synthesis.stationarity import PADDINGS, Experiment, expected, measure, numbers, pad, panels

ONE = Experiment(size_px=8, layers=1, mu=0.7, sigma=1.5, samples=4096)


def closed_form(e: Experiment, padding: str):
    return expected(e.kernels()[0][0, 0], 0.0, e.mu, e.sigma, padding, e.size_px, e.lags)


@pytest.mark.parametrize("padding", PADDINGS)
def test_measured_moments_of_one_linear_layer_are_within_5_sigma_of_the_closed_form(padding):
    """y is normal, so the errors of its moments are known: sqrt(v / n), v sqrt(2 / n), sqrt((v v' + c^2) / n)."""
    got, want = measure(ONE, padding), closed_form(ONE, padding)
    n, v = ONE.samples, want.variance
    assert (np.abs(got.mean - want.mean) < 5 * np.sqrt(v / n)).all()
    assert (np.abs(got.variance - v) < 5 * v * np.sqrt(2 / n)).all()
    for lag in ONE.lags:
        c = want.covariance[lag]
        error = np.sqrt((v[:-lag] * v[lag:] + c**2) / n)
        assert (np.abs(got.covariance[lag] - c) < 5 * error).all()
        assert (np.abs(got.autocorrelation(lag) - want.autocorrelation(lag)) < 5 * 1.5 / np.sqrt(n)).all()


@pytest.mark.parametrize("padding", PADDINGS)
def test_the_closed_form_is_that_of_torchs_convolution_as_a_matrix(padding):
    """A convolution is linear: its matrix has the images of unit impulses as columns; y = A x + b."""
    n, mu, sigma, bias = 6, -0.4, 0.8, 0.3
    kernel = torch.randn(3, 3, dtype=torch.float64)
    side = n + 2 if padding == "none" else n
    impulses = torch.eye(side * side, dtype=torch.float64).reshape(-1, 1, side, side)
    A = F.conv2d(pad(impulses, padding), kernel[None, None])[:, 0, n // 2].T.numpy()
    want = expected(kernel, bias, mu, sigma, padding, n, (1, 2, 3))
    covariance = sigma**2 * A @ A.T
    np.testing.assert_allclose(want.mean, bias + mu * A.sum(axis=1), atol=1e-12)
    np.testing.assert_allclose(want.variance, np.diagonal(covariance), atol=1e-12)
    for lag in (1, 2, 3):
        np.testing.assert_allclose(want.covariance[lag], np.diagonal(covariance, lag), atol=1e-12)


@pytest.mark.parametrize("padding", PADDINGS)
def test_behind_relu_the_mean_is_that_of_a_rectified_normal(padding):
    """E[max(y, 0)] = m Phi(m / s) + s phi(m / s) of a normal y; its variance is below s^2."""
    e = replace(ONE, relu=True)
    y, got = closed_form(e, padding), measure(e, padding)
    m, s = torch.from_numpy(y.mean), torch.from_numpy(y.variance).sqrt()
    phi = torch.exp(-((m / s) ** 2) / 2) / (2 * torch.pi) ** 0.5
    want = m * torch.special.ndtr(m / s) + s * phi
    assert (np.abs(got.mean - want.numpy()) < 5 * s.numpy() / np.sqrt(e.samples)).all()
    assert (np.abs(want.numpy() - y.mean) > 10 * s.numpy() / np.sqrt(e.samples)).any()


def test_only_circular_padding_and_none_are_stationary_and_reflection_keeps_the_mean():
    spans = {p: [np.ptp(m.mean), np.ptp(m.variance)] for p in PADDINGS for m in [closed_form(ONE, p)]}
    assert max(spans["circular"] + spans["none"]) < 1e-12
    assert spans["reflect"][0] < 1e-12 < 0.1 < spans["reflect"][1]
    assert min(spans["zero"]) > 0.1


@pytest.mark.parametrize("relu", [False, True])
def test_the_border_of_a_padded_network_reaches_one_pixel_further_with_each_layer(relu):
    """Samples differ between paddings only where padding reaches: circular padding serves as the comparison."""
    for layers in (1, 3):
        e = Experiment(size_px=12, layers=layers, relu=relu, samples=64, channels=4)
        zero, circular = measure(e, "zero"), measure(e, "circular")
        reached = np.abs(zero.mean - circular.mean) > 1e-6
        assert list(np.flatnonzero(~reached)) == list(range(layers, 12 - layers))


def test_curves_and_numbers_are_functions_of_the_experiment():
    e = Experiment(size_px=6, layers=1, samples=600, lags=(1,))
    (row,), (again,) = (numbers({e: {"zero": measure(e, "zero")}}) for _ in range(2))
    assert row == again
    assert row != numbers({e: {"zero": measure(Experiment(size_px=6, layers=1, samples=600, seed=1), "zero")}})[0]
    assert set(row["expected"]) == {"mean", "variance", "autocorrelation_1"} < set(row)
    assert len(row["autocorrelation_1"]) == 5
    relu = Experiment(size_px=6, layers=1, samples=600, relu=True)
    assert "expected" not in numbers({relu: {"zero": measure(relu, "zero")}})[0]
    assert panels({relu: {"none": measure(relu, "none")}})[0].title == "1 layer, ReLU: mean"
