"""The order of a run as a pure function: which sample is the k-th image, and is it mirrored?

Position k of a run lies in pass k // n over the data, and every pass is another pseudo-random permutation of
range(n): a Feistel network on pairs (left, right) in [0, a) x [0, a) with a * a >= n, adding modulo a, walked
along its cycle until it lands below n (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). No
list of n numbers, no state. Knows nothing of ranks, workers or files.
"""

import math
from functools import lru_cache
from typing import overload

import numpy as np
from jaxtyping import Bool, Int64, UInt64

from pipeline.chance import key

ROUNDS = 10
WORD = 2**64 - 1
Positions = Int64[np.ndarray, " m"]


@overload
def order(seed: int, n: int, k: int) -> int: ...
@overload
def order(seed: int, n: int, k: Positions) -> Positions: ...
def order(seed: int, n: int, k: int | Positions) -> int | Positions:
    """Sample index in range(n) of the image at global position k >= 0."""
    if isinstance(k, int):
        return int(order(seed, n, np.array([k], dtype=np.int64))[0])
    passes, positions = np.divmod(k, n)
    out = np.empty_like(k)
    for epoch in np.unique(passes):
        chosen = passes == epoch
        out[chosen] = _permuted(_round_keys(seed, int(epoch)), n, positions[chosen])
    return out


@overload
def mirrored(seed: int, k: int) -> bool: ...
@overload
def mirrored(seed: int, k: Positions) -> Bool[np.ndarray, " m"]: ...
def mirrored(seed: int, k: int | Positions) -> bool | Bool[np.ndarray, " m"]:
    """A fair coin for global position k, thrown anew in every pass."""
    if isinstance(k, int):
        return bool(mirrored(seed, np.array([k], dtype=np.int64))[0])
    return _mix(k.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + _coin_key(seed)) >> np.uint64(63) == 1


def _permuted(keys: UInt64[np.ndarray, " rounds"], n: int, positions: Positions) -> Positions:
    side = np.uint64(math.isqrt(n - 1) + 1)
    out = positions.astype(np.uint64)
    astray = np.ones(out.shape, dtype=bool)
    while astray.any():  # fewer than 2 * side + 1 of the side * side numbers are n or more
        out[astray] = _feistel(keys, side, out[astray])
        astray = out >= n
    return out.astype(np.int64)


def _feistel(
    keys: UInt64[np.ndarray, " rounds"], side: np.uint64, x: UInt64[np.ndarray, " m"]
) -> UInt64[np.ndarray, " m"]:
    left, right = np.divmod(x, side)
    for round_key in keys:
        left, right = right, (left + _mix(right + round_key) % side) % side
    return left * side + right


def _mix(x: UInt64[np.ndarray, " m"]) -> UInt64[np.ndarray, " m"]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every bit depends on every bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@lru_cache(maxsize=64)
def _round_keys(seed: int, epoch: int) -> UInt64[np.ndarray, " rounds"]:
    return np.array([key(seed, "order", epoch, r) & WORD for r in range(ROUNDS)], dtype=np.uint64)


@lru_cache(maxsize=64)
def _coin_key(seed: int) -> np.uint64:
    return np.uint64(key(seed, "mirror") & WORD)
