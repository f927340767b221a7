"""The order against what a shuffle must be: a bijection, even in every place, blind to its neighbours."""

import time
import tracemalloc

import numpy as np
import pytest

from pipeline.data.order import blocks_between, image_at, mirrored, mix, order


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


BLOCKS = [(2, 2), (3, 2), (4, 5), (5, 1), (16, 3), (100, 2)]  # block, window


@pytest.mark.parametrize(("block", "window"), [(1, 7), *BLOCKS])
def test_in_blocks_too_every_pass_shows_every_image_once(block, window):
    for n in [*range(1, 41), 64, 65, 1000, 4097]:
        for number in (0, 1, 1000):
            ks = np.arange(number * n, (number + 1) * n, dtype=np.int64)
            assert np.array_equal(np.sort(order(3, n, ks, block, window)), np.arange(n)), (n, number)


def test_blocks_once_published_stay_and_one_image_is_no_block():
    ks = np.arange(11, dtype=np.int64)
    assert order(0, 11, ks, 3, 2).tolist() == [4, 9, 6, 5, 3, 10, 2, 7, 1, 0, 8]
    assert order(0, 11, ks, 1, 5).tolist() == order(0, 11, ks).tolist()
    assert order(0, 11, ks, 3, 3).tolist() != order(0, 11, ks, 3, 2).tolist() != order(0, 11, ks, 4, 2).tolist()
    assert [order(0, 11, int(k), 3, 2) for k in ks] == order(0, 11, ks, 3, 2).tolist()


def test_a_window_shows_its_own_blocks_only():
    n, block, window = 1003, 10, 8  # 101 blocks, the last of three samples
    shown = order(4, n, np.arange(n, dtype=np.int64), block, window)
    seen = [set((part // block).tolist()) for part in np.split(shown, range(80, n, 80))]
    assert max(map(len, seen)) <= window + 1  # behind the short block, blocks lie across two windows
    assert sum(map(len, seen)) <= 101 + len(seen)


def test_a_window_is_well_mixed():
    block, window, windows = 4, 3, 3000
    size = block * window
    shown = order(0, windows * size, np.arange(windows * size, dtype=np.int64), block, window).reshape(windows, size)
    ranks = shown.argsort(axis=1).argsort(axis=1)  # which of the window's images is in each place
    counts = np.stack([(ranks == i).sum(0) for i in range(size)])
    assert np.abs(counts - windows / size).max() < 4.5 * np.sqrt(windows / size)
    # images of one block follow each other as often as in any shuffle of a window, not more
    follow = (shown[:, :-1] // block == shown[:, 1:] // block).mean()
    assert abs(follow - (block - 1) / (size - 1)) < 0.01
    assert len({tuple(r) for r in ranks.tolist()}) > 0.99 * windows  # every window has a shuffle of its own


@pytest.mark.parametrize(("n", "block"), [(1, 2), (7, 3), (12, 4), (40, 7), (40, 64)])
def test_what_is_read_ahead_is_every_block_once_in_its_pass(n, block):
    blocks = blocks_between(3, n, 0, 3 * n, block)
    assert blocks[:, 0].tolist() == list(range(3 * -(-n // block)))
    for part in np.split(blocks, 3):
        samples = np.concatenate([np.arange(first, first + count) for _, first, count in part])
        assert sorted(samples) == list(range(n))
    for cut in range(3 * n):
        halves = blocks_between(3, n, 0, cut, block), blocks_between(3, n, cut, 3 * n, block)
        assert np.array_equal(np.concatenate(halves), blocks)


def test_blocks_begin_where_their_images_are_shown():
    n, block = 40, 7
    alone = order(3, n, np.arange(2 * n, dtype=np.int64), block, 1)  # blocks in their order, mixed within
    at = 0
    for _, first, count in blocks_between(3, n, 0, 2 * n, block):
        if count == block and at % n % block == 0:  # windows and blocks still coincide
            assert sorted(alone[at : at + count]) == list(range(first, first + count))
        at += count


@pytest.mark.parametrize("weights", [(3, 1), (1, 1, 1), (5, 2, 9), (40, 2)])
def test_a_mix_holds_exact_shares_and_each_set_in_its_own_order(weights):
    length, cycles = sum(weights), 200
    which, position = mix(1, weights, np.arange(cycles * length, dtype=np.int64))
    for i, weight in enumerate(weights):
        assert ((which.reshape(cycles, length) == i).sum(1) == weight).all()
        assert np.array_equal(position[which == i], np.arange(cycles * weight))
    assert len({tuple(c) for c in which.reshape(cycles, length).tolist()}) > 2  # cycles are shuffled, each otherwise
    later = np.arange(7 * length + 1, 9 * length - 1, dtype=np.int64)
    assert np.array_equal(np.stack(mix(1, weights, later)), np.stack([which[later], position[later]]))
    assert mix(1, weights, 11) == (which[11], position[11])


def test_a_mix_once_published_stays():
    which, position = mix(0, (3, 1), np.arange(12, dtype=np.int64))
    assert which.tolist() == [0, 0, 1, 0, 0, 0, 1, 0, 0, 1, 0, 0]
    assert position.tolist() == [0, 1, 0, 2, 3, 4, 1, 5, 6, 2, 7, 8]


def test_weights_that_would_need_much_memory_are_refused():
    for weights in [(100_000, 1), (1, 0), (2, -1)]:
        with pytest.raises(ValueError, match="weights"):
            mix(0, weights, 0)


@pytest.mark.parametrize("block", [(1, 1), (3, 2)])
def test_in_a_mix_each_set_passes_through_all_its_images_before_it_shows_one_again(block):
    counts, weights = (7, 11), (2, 3)
    which, sample = image_at(5, counts, weights, np.arange(770, dtype=np.int64), *block)
    for i, n in enumerate(counts):
        passes = sample[which == i].reshape(-1, n)
        assert len(passes) > 20
        assert all(sorted(p) == list(range(n)) for p in passes.tolist())


def test_equal_sets_of_a_mix_do_not_run_in_lockstep():
    which, sample = image_at(0, (1000, 1000), (1, 1), np.arange(2000, dtype=np.int64))
    assert (sample[which == 0] == sample[which == 1]).mean() < 0.02
    assert (sample[which == 0] == order(0, 1000, np.arange(1000, dtype=np.int64))).mean() < 0.02


@pytest.mark.parametrize("how", [((10**8,), (1,), 1, 1), ((10**8,), (1,), 256, 512), ((10**8, 10**7), (9, 1), 64, 64)])
def test_of_a_hundred_million_samples_no_list_is_made(how):
    counts, weights, block, window = how
    for start in (0, 7 * 10**8 + 12_345):
        tracemalloc.start()
        began = time.process_time()
        _, sample = image_at(1, counts, weights, np.arange(start, start + 1024, dtype=np.int64), block, window)
        held, took = tracemalloc.get_traced_memory()[1], time.process_time() - began
        tracemalloc.stop()
        assert held < 10e6
        assert took < 1
        assert len(set(sample.tolist())) > 1000
