"""Depth from one photograph: the scale-invariant loss of Eigen et al. (1406.2283, Equation 4), and the usual measures.

Every value is of one image, over its measured pixels alone; an image without any gives 0. Depths are in metres, and 0
where nothing was measured. Also how stored pairs hold them (dataprep/sources/depth.py). Knows no network.
"""

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

GOOD_RATIO = 1.25  # delta < 1.25
Depth = Float[Tensor, "n 1 h w"]
Mask = Bool[Tensor, "n 1 h w"]


def unstacked(
    stored: UInt8[Tensor, "n 3 h2 w"],
) -> tuple[UInt8[Tensor, "n 3 h w"], Float[Tensor, "n 1 h w"]]:
    """Photographs, and metres: the lower halves hold millimetres, high byte in R, low byte in G."""
    photograph, coded = stored.chunk(2, dim=2)
    high, low = coded[:, 0:1].float(), coded[:, 1:2].float()
    return photograph, (256 * high + low) / 1000


def measured(depth: Depth, min_m: float | int, max_m: float | int) -> Mask:
    """Where there is a depth in the range that counts, both ends included."""
    return (depth >= min_m) & (depth <= max_m)


def silog(predicted: Depth, depth: Depth, mask: Mask, weight: float | int) -> Float[Tensor, " n"]:
    """Mean of d^2 less `weight` times (mean of d)^2, d = log predicted - log depth; 1: free of any common factor."""
    d = _log_ratio(predicted, depth, mask)
    return _mean(d.square(), mask) - weight * _mean(d, mask).square()


def l1_log(predicted: Depth, depth: Depth, mask: Mask) -> Float[Tensor, " n"]:
    """Mean of |log predicted - log depth|."""
    return _mean(_log_ratio(predicted, depth, mask).abs(), mask)


def measures(predicted: Depth, depth: Depth, mask: Mask) -> dict[str, Float[Tensor, " n"]]:
    """abs_rel: mean of |error| / depth; rmse in metres; delta1: share of pixels off by a factor below 1.25.

    `measured` is 1 for an image with measured pixels, and 0 for one whose values are 0 for want of them.
    """
    there = torch.where(mask, depth, 1.0)
    error, ratio = predicted - there, torch.maximum(predicted / there, there / predicted)
    return {
        "abs_rel": _mean(error.abs() / there, mask),
        "rmse": _mean(error.square(), mask).sqrt(),
        "delta1": _mean((ratio < GOOD_RATIO).float(), mask),
        "measured": mask.flatten(1).any(1).float(),
    }


def _log_ratio(predicted: Depth, depth: Depth, mask: Mask) -> Depth:
    return predicted.log() - torch.where(mask, depth, 1.0).log()


def _mean(x: Depth, mask: Mask) -> Float[Tensor, " n"]:
    """Over measured pixels; what is elsewhere does not matter, be it infinite, nor do its gradients."""
    return torch.where(mask, x, 0.0).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1)
