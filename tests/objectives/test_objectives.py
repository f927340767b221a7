"""Losses and penalties against closed forms."""

import math

import pytest
import torch

from pipeline.objectives.adversarial import logistic_d, logistic_g
from pipeline.objectives.penalties import path_lengths, r1


def test_r1_of_a_linear_critic_is_half_its_squared_norm():
    a = torch.randn(3, 4, 5)
    real = torch.randn(6, 3, 4, 5, requires_grad=True)
    torch.testing.assert_close(r1((real * a).sum(dim=(1, 2, 3)), real), a.square().sum().expand(6) / 2)


def test_r1_can_be_trained_on():
    a = torch.randn(3, 4, 5, requires_grad=True)
    real = torch.randn(2, 3, 4, 5, requires_grad=True)
    r1((real * a).sum(dim=(1, 2, 3)), real).sum().backward()
    torch.testing.assert_close(a.grad, 2 * a.detach())  # d/da of 2 samples of |a|^2 / 2


def test_path_length_of_a_linear_generator_is_the_norm_of_its_transpose_times_y():
    """img = A ws: J^T y = A^T y, with the root of the mean over ws of the sum over w_dim."""
    n, num_ws, w_dim, shape = 3, 2, 5, (3, 4, 6)
    A = torch.randn(num_ws * w_dim, math.prod(shape))
    ws, y = torch.randn(n, num_ws, w_dim, requires_grad=True), torch.randn(n, *shape)
    img = (ws.flatten(1) @ A).reshape(n, *shape)
    back = (y.flatten(1) @ A.T / math.sqrt(4 * 6)).reshape(n, num_ws, w_dim)
    torch.testing.assert_close(path_lengths(img, ws, y), back.square().sum(dim=2).mean(dim=1).sqrt())


def test_logistic_losses_are_their_formulas():
    real, fake = torch.tensor([0.0, 2.0]), torch.tensor([1.0, -3.0])
    expected = [math.log1p(math.exp(-r)) + math.log1p(math.exp(f)) for r, f in [(0, 1), (2, -3)]]
    assert logistic_d(real, fake).tolist() == pytest.approx(expected)
    assert logistic_g(fake).tolist() == pytest.approx([math.log1p(math.exp(-f)) for f in (1, -3)])
