"""FID by the usual path (numpy's mean and cov, scipy's sqrtm of the product) against ours, side by side in one process.

`python tests/bench/frechet.py [IMAGES [FEATURES]]`, by default 50000 images of 2048 features a set. Prints processor
seconds on one thread and their ratios, the difference of the two numbers, and the most memory that was ever held when
moments were taken of a whole set in memory. Then the distance again for sets with too few images.
"""

import resource
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import scipy
import scipy.linalg
import torch

from pipeline.metrics.frechet import fid
from pipeline.metrics.moments import BLOCK, Moments, moments

T = TypeVar("T")
BATCH = 64  # images


def features(n: int, d: int, seed: int) -> torch.Tensor:
    """Correlated and cut at 0, as the outputs of a rectifier; float32 [n, d]."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -2, d)[:, None] / d**0.5
    rows = torch.empty(n, d)
    for part in rows.split(BLOCK):
        part.copy_((torch.randn(len(part), d, generator=generator) @ mix * (1 + seed / 10) + 0.1).clamp_min(0))
    return rows


def timed(call: Callable[[], T]) -> tuple[T, float]:
    start = time.process_time()
    return call(), time.process_time() - start


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def usual_distance(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    root = scipy.linalg.sqrtm(cov1 @ cov2)
    return float(((mean1 - mean2) ** 2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * np.trace(root).real)


def compare(title: str, real: Moments, fake: Moments) -> None:
    stats = [array.numpy() for m in (real, fake) for array in (m.mean, m.cov())]
    ours, ours_sec = timed(lambda: fid(real, fake))
    usual, usual_sec = timed(lambda: usual_distance(*stats))
    print(f"{title}: usual {usual:.9f} in {usual_sec:.2f} s; ours {ours.distance:.9f} in {ours_sec:.2f} s", end="; ")
    print(f"{usual_sec / ours_sec:.1f} times as fast; relative difference {abs(ours.distance / usual - 1):.1e}")
    for note in ours.notes:
        print(f"    {note}")


def moments_of_both(n: int, d: int) -> Moments:
    rows = features(n, d, 1)
    before = peak_gib()
    real, ours_sec = timed(lambda: moments(rows.split(BATCH)))
    print(f"moments of {n} images: ours {ours_sec:.1f} s, {before:.2f} GiB held before, {peak_gib():.2f} at most")
    (mean, cov), usual_sec = timed(lambda: (rows.numpy().mean(0, np.float64), np.cov(rows.numpy(), rowvar=False)))
    print(
        f"    numpy {usual_sec:.1f} s, {peak_gib():.2f} GiB at most; largest difference over the largest value:",
        end=" ",
    )
    print(f"mean {np.abs(real.mean.numpy() - mean).max() / np.abs(mean).max():.1e}", end=", ")
    print(f"covariance {np.abs(real.cov().numpy() - cov).max() / np.abs(cov).max():.1e}")
    return real


def main() -> None:
    n, d = [int(word) for word in sys.argv[1:]] + [50_000, 2048][len(sys.argv) - 1 :]
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, numpy {np.__version__}, scipy {scipy.__version__}; {n} images x {d} features")
    compare("distance", moments_of_both(n, d), moments([features(3 * d, d, 2)]))
    few = [moments([features(d // 2, d, seed)]) for seed in (3, 4)]
    compare(f"distance of {d // 2} images", *few)


if __name__ == "__main__":
    main()
