"""The order against what a shuffle must be: a bijection, even in every place, blind to its neighbours."""

import numpy as np
import pytest

from pipeline.data.order import mirrored, order


def epoch(seed: int, n: int, number: int = 0) -> np.ndarray:
    return order(seed, n, np.arange(number * n, (number + 1) * n, dtype=np.int64))


@pytest.mark.parametrize("n", [*range(1, 40), 64, 65, 1000, 4096, 4097, 65537])
def test_every_pass_shows_every_image_once(n):
    for number in (0, 1, 1000):
        assert np.array_equal(np.sort(epoch(3, n, number)), np.arange(n))


def test_passes_and_seeds_differ():
    assert (epoch(0, 1000) != epoch(0, 1000, 1)).mean() > 0.98
    assert (epoch(0, 1000) != epoch(1, 1000)).mean() > 0.98


def test_scalars_equal_arrays_across_passes():
    ks = np.array([0, 5, 6, 7, 13, 2**40, 5], dtype=np.int64)
    assert [order(1, 7, int(k)) for k in ks] == order(1, 7, ks).tolist()
    assert [mirrored(1, int(k)) for k in ks] == mirrored(1, ks).tolist()
    assert order(1, 7, ks[:0]).shape == (0,)


def test_an_order_once_published_stays():
    # runs are resumed with other versions of this file: these numbers must never change
    assert epoch(0, 10).tolist() == [3, 7, 5, 8, 4, 9, 2, 1, 0, 6]
    assert mirrored(0, np.arange(16, dtype=np.int64)).astype(int).tolist() == [
        1,
        1,
        1,
        0,
        1,
        1,
        0,
        0,
        0,
        1,
        1,
        0,
        1,
        0,
        1,
        1,
    ]


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_every_image_is_equally_likely_in_every_place(n):
    passes = 1500
    shown = order(0, n, np.arange(passes * n, dtype=np.int64)).reshape(passes, n)
    counts = np.stack([(shown == i).sum(0) for i in range(n)])
    sigma = np.sqrt(passes / n * (1 - 1 / n))
    assert np.abs(counts - passes / n).max() < 4.5 * sigma


def test_neighbours_and_places_are_not_correlated():
    n = 10_000
    shown = epoch(5, n).astype(float)
    for lag in (1, 2, 100, 101):  # 100 is the side of the Feistel square
        assert abs(np.corrcoef(shown[:-lag], shown[lag:])[0, 1]) < 4.5 / np.sqrt(n)
    assert abs(np.corrcoef(shown, np.arange(n))[0, 1]) < 4.5 / np.sqrt(n)
    assert abs(np.corrcoef(shown, epoch(5, n, 1))[0, 1]) < 4.5 / np.sqrt(n)
    # in a random permutation about one neighbouring pair follows on, and one place keeps its number
    assert (np.diff(shown) == 1).sum() < 8
    assert (shown == np.arange(n)).sum() < 8


def test_pairs_of_images_fall_into_one_batch_as_often_as_chance():
    n, batch, passes = 64, 8, 400
    shown = order(2, n, np.arange(passes * n, dtype=np.int64)).reshape(passes * n // batch, batch)
    together = np.zeros((n, n))
    for row in shown:
        together[np.ix_(row, row)] += 1
    pairs = together[np.triu_indices(n, 1)]
    expected = passes * (batch - 1) / (n - 1)
    assert abs(pairs.var() / expected / (1 - (batch - 1) / (n - 1)) - 1) < 0.2


def test_the_coin_is_fair_and_forgets():
    coins = mirrored(0, np.arange(100_000, dtype=np.int64)).astype(float)
    assert abs(coins.mean() - 0.5) < 0.007
    for lag in (1, 2, 64, 1000):
        assert abs(np.corrcoef(coins[:-lag], coins[lag:])[0, 1]) < 0.015
    assert abs((coins == mirrored(1, np.arange(100_000, dtype=np.int64))).mean() - 0.5) < 0.007
    side = order(0, 1000, np.arange(100_000, dtype=np.int64)) % 2
    assert abs(np.corrcoef(coins, side)[0, 1]) < 0.015
