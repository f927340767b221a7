"""Moments against numpy and against exact sums; every way to share out images gives the same bits."""

import weakref
from functools import reduce

import numpy as np
import pytest
import torch

from pipeline.errors import UserError, WorkError
from pipeline.metrics.moments import BLOCK, block_moments, blocks, merged, moments


def features(n: int = 3300, d: int = 5, mean: float = 0.4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    return (torch.randn(n, d, generator=generator) @ torch.randn(d, d, generator=generator) + mean).float()


@pytest.mark.parametrize("ddof", [0, 1])
def test_mean_and_covariance_are_numpys(ddof):
    x = features()
    found = moments([x])
    assert found.n == 3300
    np.testing.assert_allclose(found.mean, x.double().mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.cov(ddof), np.cov(x.double(), rowvar=False, ddof=ddof), rtol=1e-12)


def test_a_mean_a_million_times_the_deviation_costs_no_digits():
    """Raw sums of squares would leave 4 digits of 16 here."""
    x = features(mean=0.0).double()
    shifted = moments([x + 2.0**20])  # exact but for the last 20 bits of x
    rounded = (x + 2.0**20) - 2.0**20
    np.testing.assert_allclose(shifted.cov(), moments([rounded]).cov(), rtol=1e-9)


def test_any_split_over_batches_and_ranks_gives_the_same_bits():
    x = features()
    whole = moments([x])
    for batch in (1, 7, 64, 999, 1001, 5000):
        split = moments(x.split(batch))
        assert torch.equal(split.mean, whole.mean)
        assert torch.equal(split.scatter, whole.scatter)
    shares = list(blocks(x.split(64)))
    for ranks in (1, 2, 4):
        done = [[block_moments(part, first) for first, part in shares[rank::ranks]] for rank in range(ranks)]
        found = reduce(merged, sorted((b for share in done for b in share), key=lambda b: b.first_image))
        assert torch.equal(found.scatter, whole.scatter)
        assert torch.equal(found.mean, whole.mean)


def test_strides_of_what_is_passed_do_not_matter():
    x = features(700)
    wide = torch.empty(700, 11)
    wide[:, 3:8] = x
    for same in (wide[:, 3:8], x.T.contiguous().T):
        assert torch.equal(moments([same]).scatter, moments([x]).scatter)


def test_blocks_merge_in_one_order_only():
    first, second, third = (block_moments(part, start) for start, part in blocks([features(2500)]))
    with pytest.raises(ValueError, match="images 2000 to 2499 after those up to 999"):
        merged(first, third)
    with pytest.raises(ValueError, match="images 0 to 999 after those up to 1999"):
        merged(second, first)
    with pytest.raises(ValueError, match="one at a time"):
        merged(first, merged(second, third))
    short = block_moments(features(10), 0)
    with pytest.raises(ValueError, match="whole blocks of 1000"):
        merged(short, block_moments(features(10), BLOCK))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_first_image_with_a_bad_feature_is_named(value):
    x = features()
    x[2345, 3] = x[2346, 0] = value
    with pytest.raises(WorkError, match=rf"fake image 2345: feature 3 of 5 is {value:g} \(2 of 1000 images"):
        moments(x.split(100), "fake")


def test_no_images_and_one_image_are_refused_with_their_number():
    with pytest.raises(UserError, match="images: 0"):
        moments([])
    with pytest.raises(UserError, match="images: 1; a covariance needs at least 2"):
        moments([features(1)]).cov()


def test_no_more_than_a_block_of_features_is_held():
    alive: list[weakref.ref] = []

    def batches():
        for _ in range(50):
            assert sum(ref() is not None for ref in alive) <= BLOCK // 100 + 2
            batch = torch.zeros(100, 3)
            alive.append(weakref.ref(batch))
            yield batch

    assert moments(batches()).n == 5000
