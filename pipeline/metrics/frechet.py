"""Frechet distance of two Gaussians, which is FID where they are fitted to detector features.

Dowson & Landau 1982; Heusel et al. 2017, Eq. 6: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2). Only the trace of the
root is needed. With C1 = A A^T it is the sum of roots of the eigenvalues of the symmetric A^T C2 A; with C2 = B B^T
also the sum of singular values of A^T B. No root of an unsymmetric product is taken. Knows nothing of images.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from pipeline.errors import UserError
from pipeline.metrics.moments import Moments

# unbiased: covariances over n - 1 (torch-fidelity; pytorch-fid, clean-fid and mmgeneration but for what follows)
# nvlabs:   covariances over n (the PyTorch releases of StyleGAN2-ADA and StyleGAN3)
# mseitzer: over n - 1; 1e-6 on both diagonals inside the root where scipy's sqrtm found none (pytorch-fid, clean-fid,
#           mmgeneration, rosinality's StyleGAN2). Older scipy (1.11, not 1.17) finds none where each set has a feature
#           that is constant in it and not in the other; covariances singular in other ways have a root in both.
Variant = Literal["unbiased", "nvlabs", "mseitzer"]
OFFSET = 1e-6

REGULAR = 1e-11  # smallest over largest eigenvalue of A^T C2 A from which on the smallest has digits left for its root


@dataclass(frozen=True)
class Frechet:
    """The distance, its terms, the ranks in float64 of the covariances inside the root, and what there is to say."""

    distance: float
    mean_term: float  # |m1 - m2|^2
    cov_term: float  # tr(C1 + C2 - 2 (C1 C2)^1/2)
    ranks: tuple[int, int]
    notes: tuple[str, ...] = ()


def _factor(cov: Float64[Tensor, "d d"]) -> Float64[Tensor, "d r"]:
    """A with A A^T = cov, a column for each eigenvalue that is no rounding error: above d eps of the largest.

    Raises ValueError where an eigenvalue is below 0 by more than rounding.
    """
    values, vectors = torch.linalg.eigh(cov)
    least, most = float(values[0]), float(values[-1])
    if least < -1e-6 * abs(most):
        raise ValueError(f"a covariance has the eigenvalues {least:g} and {most:g}; none may be below 0")
    true = values > len(values) * torch.finfo(torch.float64).eps * most
    return vectors[:, true] * values[true].sqrt()


def _trace_of_root(cov1: Float64[Tensor, "d d"], cov2: Float64[Tensor, "d d"]) -> tuple[float, tuple[int, int]]:
    """tr (C1 C2)^1/2 and the ranks: by Cholesky where both are well conditioned, else by eigenvectors of each.

    An eigenvalue of 0 comes out of a solver as some 1e-16 of the largest, and its root would be 1e-8. So in the second
    way zeros are cut off before any root is taken, and singular values have the precision of the factors.
    """
    factor, failed = torch.linalg.cholesky_ex(cov1)
    if not int(failed):
        values = torch.linalg.eigvalsh(factor.T @ cov2 @ factor)
        if float(values[0]) > REGULAR * float(values[-1]):
            return float(values.sqrt().sum()), (len(cov1), len(cov2))
    a, b = _factor(cov1), _factor(cov2)
    return float(torch.linalg.svdvals(a.T @ b).sum()), (a.shape[1], b.shape[1])


def frechet_distance(
    mean1: Float64[Tensor, " d"],
    cov1: Float64[Tensor, "d d"],
    mean2: Float64[Tensor, " d"],
    cov2: Float64[Tensor, "d d"],
    offset: float = 0.0,
) -> Frechet:
    """Frechet distance of N(mean1, cov1) and N(mean2, cov2); `offset` goes on both diagonals inside the root.

    Singular covariances are allowed and noted. Raises ValueError where a matrix is no covariance or not finite.
    """
    for name, tensor in (("mean1", mean1), ("cov1", cov1), ("mean2", mean2), ("cov2", cov2)):
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds values that are nan or infinite; look at the features it was made of")
    d = len(mean1)
    diagonal = offset * torch.eye(d, dtype=torch.float64, device=cov1.device)
    trace, ranks = _trace_of_root(cov1 + diagonal, cov2 + diagonal)
    mean_term = float((mean1 - mean2).square().sum())
    cov_term = max(float(cov1.trace() + cov2.trace()) - 2 * trace, 0.0)  # below 0 by rounding alone
    notes = [
        f"the {i} covariance is singular in float64: rank {rank} of {d}"
        for i, rank in zip(("first", "second"), ranks, strict=True)
        if rank < d
    ]
    if offset:
        notes.append(f"{offset:g} was added to both diagonals inside the root")
    return Frechet(mean_term + cov_term, mean_term, cov_term, ranks, tuple(notes))


def _constant_in_one(real: Moments, fake: Moments) -> bool:
    """Whether each set has a feature that is constant in it and not in the other."""
    real_constant, fake_constant = (m.scatter.diagonal() == 0 for m in (real, fake))
    return bool((real_constant & ~fake_constant).any() and (fake_constant & ~real_constant).any())


def fid(real: Moments, fake: Moments, variant: Variant = "unbiased") -> Frechet:
    """FID of two sets of images by their moments (reals first in `ranks` and notes); sets too small are noted.

    Raises UserError where the sets have features of different width or too few images for any covariance.
    """
    d = len(real.mean)
    if len(fake.mean) != d:
        raise UserError(
            f"fid: real images have {d} features and fakes {len(fake.mean)}; "
            "use one detector and one of its outputs for both"
        )
    ddof = 0 if variant == "nvlabs" else 1
    offset = OFFSET if variant == "mseitzer" and _constant_in_one(real, fake) else 0.0
    found = frechet_distance(real.mean, real.cov(ddof), fake.mean, fake.cov(ddof), offset)
    few = tuple(
        f"{m.n} {whose} images are too few for {d} features: their covariance is singular, and FID is the higher the "
        f"fewer there are; it takes {d + 1} or more"
        for whose, m in (("real", real), ("fake", fake))
        if m.n <= d
    )
    return Frechet(found.distance, found.mean_term, found.cov_term, found.ranks, found.notes + few)
