"""Mean and covariance of features, taken block by block: the two moments that FID compares.

Image numbers are cut into fixed blocks of 1000. The moments of a block are made of all its features at once, and
blocks are merged one by one in the order of image numbers (Chan, Golub & LeVeque 1979), all in float64. So
batches of any size and ranks that share out whole blocks give the same bits on the same kind of machine. Memory: one
block of features and three matrices [d, d]; 0.1 GiB for d = 2048. Knows nothing of detectors, files or ranks.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from pipeline.errors import UserError
from pipeline.metrics.features import check_finite

BLOCK = 1000  # images


@dataclass(frozen=True)
class Moments:
    """Moments of images first_image ... first_image + n - 1."""

    first_image: int
    n: int
    mean: Float64[Tensor, " d"]
    scatter: Float64[Tensor, "d d"]  # sum over images of (x - mean)(x - mean)^T

    def cov(self, ddof: int = 1) -> Float64[Tensor, "d d"]:
        """Covariance: the scatter over n - ddof."""
        if self.n <= ddof:
            raise UserError(f"images: {self.n}; a covariance needs at least {ddof + 1}; give it more images")
        return self.scatter / (self.n - ddof)


def block_moments(features: Float[Tensor, "n d"], first_image: int, whose: str = "an") -> Moments:
    """Moments of one block: its features all together, from the first image of a block on, the last may be short.

    `whose` ("real", "fake") stands in messages. Raises WorkError where a feature is nan or infinite.
    """
    assert first_image % BLOCK == 0, first_image
    assert 0 < len(features) <= BLOCK, len(features)
    check_finite(features, whose, first_image)
    # a copy: sums must not depend on the strides or the alignment of what was passed
    x = features.detach().to(torch.float64, copy=True, memory_format=torch.contiguous_format)
    mean = x.mean(dim=0)
    x -= mean
    return Moments(first_image, len(x), mean, x.T @ x)


def merged(done: Moments, block: Moments) -> Moments:
    """Moments of the images of both. `block` is one block and follows on `done`, so that there is but one order.

    Raises ValueError otherwise.
    """
    here = done.first_image + done.n
    if block.first_image != here or here % BLOCK or block.n > BLOCK:
        last = block.first_image + block.n - 1
        raise ValueError(
            f"moments: images {block.first_image} to {last} after those up to {here - 1}; "
            f"merge whole blocks of {BLOCK} one at a time in the order of image numbers"
        )
    n = done.n + block.n
    delta = block.mean - done.mean
    scatter = torch.addr(done.scatter + block.scatter, delta, delta, alpha=done.n * block.n / n)
    return Moments(done.first_image, n, done.mean + delta * (block.n / n), scatter)


def blocks(batches: Iterable[Float[Tensor, "_ d"]], first_image: int = 0) -> Iterator[tuple[int, Float[Tensor, "_ d"]]]:
    """Batches of any sizes in the order of image numbers -> (first image, features) of each block."""
    waiting: list[Tensor] = []
    held = 0
    for batch in batches:
        while len(batch):
            part, batch = batch[: BLOCK - held], batch[BLOCK - held :]
            waiting.append(part)
            held += len(part)
            if held == BLOCK:
                yield first_image, torch.cat(waiting)
                first_image, held, waiting = first_image + BLOCK, 0, []
    if waiting:
        yield first_image, torch.cat(waiting)


def moments(batches: Iterable[Float[Tensor, "_ d"]], whose: str = "an") -> Moments:
    """Moments of all images from number 0 on; batches of any sizes in the order of image numbers.

    Raises UserError where there is no image, WorkError where a feature is nan or infinite.
    """
    done = None
    for first_image, features in blocks(batches):
        block = block_moments(features, first_image, whose)
        done = block if done is None else merged(done, block)
    if done is None:
        raise UserError("images: 0; moments need at least one; give it more images")
    return done
