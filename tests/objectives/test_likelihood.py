"""Terms of the variational bound against torch.distributions and closed forms."""

import math

import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

from pipeline.objectives.likelihood import bernoulli_nll, gaussian_kl, gaussian_nll


def test_the_divergence_is_that_of_torch_summed_over_dimensions():
    mean, logvar = torch.randn(5, 7), torch.randn(5, 7)
    expected = kl_divergence(Normal(mean, (logvar / 2).exp()), Normal(0.0, 1.0)).sum(dim=1)
    torch.testing.assert_close(gaussian_kl(mean, logvar), expected)
    assert not gaussian_kl(torch.zeros(2, 3), torch.zeros(2, 3)).any()


def test_the_divergence_keeps_its_digits_near_zero():
    """exp(v) - 1 - v in float32 would be 0 or noise there; it is v^2 / 2."""
    torch.testing.assert_close(gaussian_kl(torch.zeros(1, 1), torch.full((1, 1), 1e-3)), torch.tensor([2.5e-7]),
                               rtol=1e-3, atol=0.0)  # fmt: skip


def test_squared_error_is_a_gaussian_of_variance_one_over_all_pixels():
    logits, real = torch.randn(4, 3, 5, 6), torch.rand(4, 3, 5, 6) * 2 - 1
    constant = 3 * 5 * 6 * math.log(2 * math.pi) / 2
    expected = -Normal(torch.tanh(logits), 1.0).log_prob(real).sum(dim=(1, 2, 3)) - constant
    torch.testing.assert_close(gaussian_nll(logits, real), expected)


def test_cross_entropy_is_that_of_the_image_which_tanh_makes():
    logits, real = torch.randn(4, 3, 5, 6), torch.randint(0, 2, (4, 3, 5, 6)) * 2.0 - 1
    p = (torch.tanh(logits) + 1) / 2
    expected = -Bernoulli(p).log_prob((real + 1) / 2).sum(dim=(1, 2, 3))
    torch.testing.assert_close(bernoulli_nll(logits, real), expected)


def test_both_likelihoods_are_best_at_the_image_itself():
    real = torch.rand(2, 3, 4, 4) * 1.8 - 0.9
    logits = torch.atanh(real).requires_grad_()
    for nll in (gaussian_nll, bernoulli_nll):
        (grad,) = torch.autograd.grad(nll(logits, real).sum(), logits)
        assert grad.abs().max() < 1e-5
