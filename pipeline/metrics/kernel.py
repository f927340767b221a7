"""KID: the squared maximum mean discrepancy of two sets of features under a cubic kernel, without bias.

Binkowski et al. 2018, Eq. 4, with k(x, y) = (x.y / d + 1)^3. `kid` takes all pairs; `kid_of_subsets` is the
protocol that papers report, the mean over 100 random subsets of 1000 images of each set. Both estimate the same number;
subsets are noisier. All in float64, by tiles of pairs. Knows nothing of detectors or files.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from pipeline.chance import rng
from pipeline.metrics.features import check_pair

TILE = 2000  # images: pairs of one tile take 32 MB


@dataclass(frozen=True)
class Kid:
    """Mean over subsets; standard deviation over them (over their number, not less one) says how much they differ."""

    mean: float
    std: float


def cubic_kernel(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float64[Tensor, "n m"]:
    """(x.y / d + 1)^3 of each pair."""
    dots = x.double() @ y.double().T
    return (dots / x.shape[1] + 1) ** 3


def _sums(x: Tensor, y: Tensor) -> Iterator[float]:
    for rows in x.split(TILE):
        for columns in y.split(TILE):
            yield float(cubic_kernel(rows, columns).sum())


def _sums_of_others(x: Tensor) -> Iterator[float]:
    """Of pairs of different images; the kernel is symmetric, so tiles above the diagonal count twice."""
    tiles = x.split(TILE)
    for i, rows in enumerate(tiles):
        own = cubic_kernel(rows, rows)
        yield float(own.sum() - own.diagonal().sum())
        for columns in tiles[i + 1 :]:
            yield 2 * float(cubic_kernel(rows, columns).sum())


def _mmd2(x: Tensor, y: Tensor) -> float:
    n, m = len(x), len(y)
    others = math.fsum(_sums_of_others(x)) / (n * (n - 1)) + math.fsum(_sums_of_others(y)) / (m * (m - 1))
    return others - 2 * math.fsum(_sums(x, y)) / (n * m)


def kid(real: Float[Tensor, "n d_real"], fake: Float[Tensor, "m d_fake"]) -> float:
    """MMD^2 over all pairs of different images (Binkowski et al. 2018, Eq. 4 for sets of unequal size).

    Without bias, so it may be below 0. Raises UserError for sets of unequal width or fewer than 2 images, WorkError
    where a feature is nan or infinite.
    """
    check_pair(real, fake, "kid", 2)
    return _mmd2(real.detach(), fake.detach())


def kid_of_subsets(
    real: Float[Tensor, "n d_real"], fake: Float[Tensor, "m d_fake"], seed: int, subsets: int = 100, size: int = 1000
) -> Kid:
    """Mean and deviation of MMD^2 over subsets, drawn without replacement, each a function of (seed, its number).

    Sets smaller than `size` are taken at the size of the smaller, as NVlabs and clean-fid do (torch-fidelity refuses).
    Raises as `kid` does.
    """
    check_pair(real, fake, "kid", 2)
    size = min(size, len(real), len(fake))
    found = []
    for i in range(subsets):
        picked = [
            torch.from_numpy(rng(seed, "kid", whose, i).permutation(len(features))[:size]).to(features.device)
            for whose, features in (("real", real), ("fake", fake))
        ]
        found.append(_mmd2(real.detach()[picked[0]], fake.detach()[picked[1]]))
    values = torch.tensor(found, dtype=torch.float64)
    return Kid(float(values.mean()), float(values.std(correction=0)))
