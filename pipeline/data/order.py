"""The order of a run as a pure function: which sample is the k-th image, and is it mirrored?

Position k of a run lies in pass k // n over the data, and every pass is another pseudo-random permutation of
range(n): a Feistel network on pairs (left, right) in [0, a) x [0, a) with a * a >= n, adding modulo a, walked
along its cycle until it lands below n (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). No
list of n numbers, no state. Knows nothing of ranks, workers or files.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import overload

import numpy as np
from jaxtyping import Bool, Int64, UInt64

from pipeline.chance import key

ROUNDS = 10
WORD = 2**64 - 1
LONGEST_CYCLE = 100_000  # sum of the weights of a mix: that many numbers are held for each cycle looked at
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
Positions = Int64[np.ndarray, " m"]
Keys = UInt64[np.ndarray, "rounds #m"]  # one column, or one for each number


@overload
def order(seed: int, n: int, k: int, block: int = 1, window: int = 1) -> int: ...
@overload
def order(seed: int, n: int, k: Positions, block: int = 1, window: int = 1) -> Positions: ...
def order(seed: int, n: int, k: int | Positions, block: int = 1, window: int = 1) -> int | Positions:
    """Sample index in range(n) of the image at global position k >= 0.

    block=1, the default, permutes the whole set: no shuffle is better, and a read of 30-200 kB at a random place costs
    SSDs, NVMe and the page cache next to nothing. Spinning and network disks want neighbours read together: else the
    blocks of `block` consecutive samples are permuted, then positions inside windows of `window` blocks. What a job
    reads meanwhile lies in `window` runs of bytes, each read at once (reader.py asks the kernel for the next window's).
    The price: of m images of a batch each meets about m / window others of its own block, so a set sorted by class
    wants many more blocks in a window than images in a batch. Every pass is a permutation of range(n) all the same.
    """
    if isinstance(k, int):
        return int(order(seed, n, np.array([k], dtype=np.int64), block, window)[0])
    passes, positions = np.divmod(k, n)
    out = np.empty_like(k)
    for epoch in np.unique(passes):
        chosen = passes == epoch
        if block == 1:
            out[chosen] = _permuted(_round_keys(seed, "order", int(epoch)), n, positions[chosen])
        else:
            mixed = _in_windows(seed, int(epoch), n, block * window, positions[chosen])
            out[chosen] = _Blocks(seed, int(epoch), n, block).sample(mixed)
    return out


def blocks_between(seed: int, n: int, first: int, last: int, block: int) -> Int64[np.ndarray, "blocks 3"]:
    """What to read ahead: (number, first sample, samples) of the blocks that begin at positions first .. last - 1.

    Positions are global ones, as of `order`, before images change places within their window; a block's number
    counts the blocks of the run.
    """
    found = [np.empty((0, 3), dtype=np.int64)]
    for epoch in range(first // n, -(-last // n)):
        blocks = _Blocks(seed, epoch, n, block)
        a, b = max(0, first - epoch * n), min(n, last - epoch * n)
        slots = np.arange(a // block, min(blocks.count, b // block + 2), dtype=np.int64)
        begins = blocks.begin(slots)
        slots = slots[(a <= begins) & (begins < b)]
        samples = blocks.sample(blocks.begin(slots))
        found.append(np.stack([epoch * blocks.count + slots, samples, np.minimum(block, n - samples)], axis=1))
    return np.concatenate(found)


@overload
def mix(seed: int, weights: Sequence[int], k: int) -> tuple[int, int]: ...
@overload
def mix(seed: int, weights: Sequence[int], k: Positions) -> tuple[Positions, Positions]: ...
def mix(seed: int, weights: Sequence[int], k: int | Positions) -> tuple[int | Positions, int | Positions]:
    """Of several sets, which one gives the image at global position k, and which position of its own is that?

    Each sum(weights) consecutive images, counted from 0, hold exactly weights[i] of set i, in a keyed shuffle.
    The images of one set are its positions 0, 1, 2, ... in this order.
    """
    if isinstance(k, int):
        which, position = mix(seed, weights, np.array([k], dtype=np.int64))
        return int(which[0]), int(position[0])
    length = sum(weights)
    if min(weights) < 1 or length > LONGEST_CYCLE:
        raise ValueError(f"weights={list(weights)}: must be positive and sum to {LONGEST_CYCLE} or less")
    cycles, row = np.unique(k // length, return_inverse=True)
    keys = _keys_of(_round_keys(seed, "mix"), np.repeat(cycles, length))
    slots = _permuted(keys, length, np.tile(np.arange(length, dtype=np.int64), len(cycles)))
    sets = np.searchsorted(np.cumsum(weights), slots, side="right").reshape(len(cycles), length)
    which = sets[row, k % length]
    position = np.empty_like(k)
    for i, weight in enumerate(weights):
        before = np.cumsum(sets == i, axis=1)[row, k % length] - 1
        position[which == i] = (k // length * weight + before)[which == i]
    return which, position


def image_at(
    seed: int, counts: Sequence[int], weights: Sequence[int], k: Positions, block: int = 1, window: int = 1
) -> tuple[Positions, Positions]:
    """Set and sample of the images at global positions k: of one set, or of a mix of sets of counts[i] samples."""
    if len(counts) == 1:
        return np.zeros_like(k), order(seed, counts[0], k, block, window)
    which, position = mix(seed, weights, k)
    sample = np.empty_like(k)
    for i, n in enumerate(counts):
        mine = which == i
        sample[mine] = order(seed_of_set(seed, i), n, position[mine], block, window)
    return which, sample


def seed_of_set(seed: int, i: int) -> int:
    """The seed of set i of a mix: sets of one size are not shown in one order."""
    return key(seed, "set", i) & WORD


@overload
def mirrored(seed: int, k: int) -> bool: ...
@overload
def mirrored(seed: int, k: Positions) -> Bool[np.ndarray, " m"]: ...
def mirrored(seed: int, k: int | Positions) -> bool | Bool[np.ndarray, " m"]:
    """A fair coin for global position k, thrown anew in every pass."""
    if isinstance(k, int):
        return bool(mirrored(seed, np.array([k], dtype=np.int64))[0])
    return _mix(k.astype(np.uint64) * GOLDEN + _coin_key(seed)) >> np.uint64(63) == 1


class _Blocks:
    """The blocks of one pass in their order; the last of the set may be short, and comes anywhere."""

    def __init__(self, seed: int, epoch: int, n: int, block: int):
        self.block, self.count = block, -(-n // block)
        self.missing = self.count * block - n  # samples that the last block is short of
        self.keys = _round_keys(seed, "blocks", epoch)
        self.short = _place_of(seed, epoch, self.count)  # slot of the short one

    def begin(self, slots: Positions) -> Positions:
        """The position at which each slot begins."""
        return slots * self.block - np.where(slots > self.short, self.missing, 0)

    def sample(self, positions: Positions) -> Positions:
        behind = positions >= (self.short + 1) * self.block - self.missing
        slots, within = np.divmod(positions + np.where(behind, self.missing, 0), self.block)
        return _permuted(self.keys, self.count, slots) * self.block + within


@lru_cache(maxsize=64)
def _place_of(seed: int, epoch: int, blocks: int) -> int:
    """The slot of the last block: its permutation run backwards."""
    keys, side = _round_keys(seed, "blocks", epoch), np.uint64(_side(blocks))
    slot = np.array([blocks - 1], dtype=np.uint64)
    while True:
        left, right = np.divmod(slot, side)
        for round_key in keys[::-1]:
            left, right = (right + side - _mix(left + round_key) % side) % side, left
        slot = left * side + right
        if slot[0] < blocks:
            return int(slot[0])


def _in_windows(seed: int, epoch: int, n: int, span: int, positions: Positions) -> Positions:
    """Positions of one pass after each `span` consecutive ones changed places."""
    number = positions // span
    first = number * span
    keys = _keys_of(_round_keys(seed, "window", epoch), number)
    out = np.empty_like(positions)
    for size, chosen in ((span, first + span <= n), (n % span, first + span > n)):
        if chosen.any():
            out[chosen] = first[chosen] + _permuted(keys[:, chosen], size, (positions - first)[chosen])
    return out


def _keys_of(keys: Keys, numbers: Positions) -> Keys:
    """Round keys of its own for each of many numbered permutations."""
    return _mix(keys + (numbers.astype(np.uint64) + np.uint64(1)) * GOLDEN)


def _side(n: int) -> int:
    return math.isqrt(n - 1) + 1


def _permuted(keys: Keys, n: int, positions: Positions) -> Positions:
    side = np.uint64(_side(n))
    out = positions.astype(np.uint64)
    astray = np.ones(out.shape, dtype=bool)
    while astray.any():  # fewer than 2 * side + 1 of the side * side numbers are n or more
        out[astray] = _feistel(keys if keys.shape[1] == 1 else keys[:, astray], side, out[astray])
        astray = out >= n
    return out.astype(np.int64)


def _feistel(keys: Keys, side: np.uint64, x: UInt64[np.ndarray, " m"]) -> UInt64[np.ndarray, " m"]:
    left, right = np.divmod(x, side)
    for round_key in keys:
        left, right = right, (left + _mix(right + round_key) % side) % side
    return left * side + right


def _mix(x: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every bit depends on every bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@lru_cache(maxsize=64)
def _round_keys(seed: int, *what: int | str) -> UInt64[np.ndarray, "rounds 1"]:
    return np.array([[key(seed, *what, r) & WORD] for r in range(ROUNDS)], dtype=np.uint64)


@lru_cache(maxsize=64)
def _coin_key(seed: int) -> np.uint64:
    return np.uint64(key(seed, "mirror") & WORD)
