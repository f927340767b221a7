"""Metrics of two manifolds, each the union of balls around the images of a set that reach to their k-th neighbours.

Improved precision and recall: Kynkaanniemi et al. 2019, Eqs. 1-2, k = 3. Density and coverage: Naeem et al. 2020,
k = 5. Distances are taken in float64 tile by tile, so memory does not grow with the number of pairs; a
squared distance has an error of some 1e-14 of the images' squared norms. Knows nothing of detectors or files.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from pipeline.metrics.features import check_pair

ROWS, COLUMNS = 1000, 4000  # images of one tile: 32 MB a matrix

# exact:        distances in float64 (prdc and torch-fidelity but for their float32)
# nvlabs:       features, distances and radii rounded to float16 (the PyTorch releases of StyleGAN2-ADA and StyleGAN3)
# mmgeneration: radii alone rounded to float16
Variant = Literal["exact", "nvlabs", "mmgeneration"]


@dataclass(frozen=True)
class PrecisionRecall:
    precision: float  # share of fakes within the manifold of reals, 0 to 1
    recall: float  # share of reals within the manifold of fakes, 0 to 1


@dataclass(frozen=True)
class DensityCoverage:
    density: float  # balls of reals that a fake is in, over k; 0 and more, 1 where both sets are of one distribution
    coverage: float  # share of reals whose ball holds a fake, 0 to 1


def _distances(x: Tensor, y: Tensor) -> Float64[Tensor, "n m"]:
    """Euclidean, of each pair. What rounding makes of a distance of 0 is 0: equal images are at no distance."""
    x, y = x.double(), y.double()
    norms = x.square().sum(dim=1, keepdim=True) + y.square().sum(dim=1)
    squared = torch.addmm(norms, x, y.T, alpha=-2)
    rounding = 4 * x.shape[1] ** 0.5 * torch.finfo(torch.float64).eps
    return squared.masked_fill_(squared <= rounding * norms, 0).sqrt_()


def _half(x: Tensor) -> Tensor:
    return x.half().to(x.dtype)


def _tiles(x: Tensor, y: Tensor, half: bool = False) -> Iterator[tuple[slice, slice, Float64[Tensor, "n m"]]]:
    """(images of x, images of y, their distances) of each tile."""
    for i in range(0, len(x), ROWS):
        for j in range(0, len(y), COLUMNS):
            rows, columns = slice(i, min(i + ROWS, len(x))), slice(j, min(j + COLUMNS, len(y)))
            distances = _distances(x[rows], y[columns])
            yield rows, columns, _half(distances) if half else distances


def radii(features: Float[Tensor, "n d"], k: int, variant: Variant = "exact") -> Float64[Tensor, " n"]:
    """Distance of each image to its k-th nearest other image; an equal image counts as other. n > k."""
    nearest = torch.full((len(features), k), torch.inf, dtype=torch.float64, device=features.device)
    for rows, columns, distances in _tiles(features, features, variant == "nvlabs"):
        distances.diagonal(rows.start - columns.start).fill_(torch.inf)  # an image is no neighbour of itself
        both = torch.cat([nearest[rows], distances], dim=1)
        nearest[rows] = both.topk(k, dim=1, largest=False).values
    return nearest[:, -1] if variant == "exact" else _half(nearest[:, -1])


def precision_recall(
    real: Float[Tensor, "n d_real"], fake: Float[Tensor, "m d_fake"], k: int = 3, variant: Variant = "exact"
) -> PrecisionRecall:
    """Improved precision and recall; a ball holds its rim (Kynkaanniemi et al. 2019, Eqs. 1-2).

    Differs from reference: "nvlabs" rounds where theirs does, but the arithmetic between is float64 and not the GPU's
    float16. Raises UserError for sets of unequal width or of k images or fewer, WorkError for nan or infinite features.
    """
    check_pair(real, fake, f"precision and recall with k = {k}", k + 1)
    half = variant == "nvlabs"
    real, fake = (_half(x.detach()) if half else x.detach() for x in (real, fake))
    real_radii, fake_radii = radii(real, k, variant), radii(fake, k, variant)
    fake_within = torch.zeros(len(fake), dtype=torch.bool, device=fake.device)
    real_within = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for fakes, reals, distances in _tiles(fake, real, half):
        fake_within[fakes] |= (distances <= real_radii[reals]).any(dim=1)
        real_within[reals] |= (distances <= fake_radii[fakes, None]).any(dim=0)
    return PrecisionRecall(float(fake_within.double().mean()), float(real_within.double().mean()))


def density_coverage(real: Float[Tensor, "n d_real"], fake: Float[Tensor, "m d_fake"], k: int = 5) -> DensityCoverage:
    """1/(k m) times the number of pairs (real's ball, fake in it); and the share of reals with a fake in their ball.

    Naeem et al. 2020, the definitions of density and coverage. A ball is without its rim, as in the authors' code.

    Raises as `precision_recall` does.
    """
    check_pair(real, fake, f"density and coverage with k = {k}", k + 1)
    real, fake = real.detach(), fake.detach()
    real_radii = radii(real, k)
    balls = 0
    covered = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for _, reals, distances in _tiles(fake, real):
        within = distances < real_radii[reals]
        balls += int(within.sum())
        covered[reals] |= within.any(dim=0)
    return DensityCoverage(balls / (k * len(fake)), float(covered.double().mean()))
