"""Closed-form factorisation: directions of w that change a trained generator most (MS-PIE, 2012.05217, App. D.3).

The affine maps from w to styles are stacked into one matrix W; its right singular vectors are the directions, by
falling singular value. As in the release: convolutions only, no normalisation, so raw weights do (their run-time
scale is one constant). `normalize` is SeFa (2007.06600) instead: unit rows, toRGB included.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.models.cips import CIPSGenerator
from pipeline.models.mspie import MSPIEGenerator
from pipeline.models.stylegan2 import broadcast_w
from pipeline.spec import UserError
from pipeline.synthesis.sample import map_z, noise_seed, render, sample_z


@dataclass(frozen=True)
class Directions:
    """Unit vectors of w in rows, orthogonal, by falling sigma = ||W v||; their sign is arbitrary but fixed."""

    vectors: Float[Tensor, "k w_dim"]  # float64
    sigma: Float[Tensor, " k"]

    def vector(self, direction: int) -> Float[Tensor, " w_dim"]:
        """The direction of this number, from 0; UserError out of range."""
        if not 0 <= direction < len(self.sigma):
            raise UserError(f"direction={direction}: this generator has directions 0 to {len(self.sigma) - 1}")
        return self.vectors[direction]


def style_matrix(G: Any, *, normalize: bool = False) -> Float[Tensor, "rows w_dim"]:
    """The stacked w -> style weights, in float64; UserError for a generator without modulated layers."""
    layers: list[Any]
    if isinstance(G, MSPIEGenerator):
        layers, to_rgbs = [c.conv for c in G.convs], [c.conv for c in G.to_rgbs]
    elif isinstance(G, CIPSGenerator):
        layers, to_rgbs = [c.fc for c in G.layers], [c.fc for c in G.to_rgbs]
    else:
        raise UserError(
            f"model={type(G).__name__} has no styles to factorise; edit takes generators with modulated layers "
            "(kind='mspie' or 'cips')"
        )
    weights = [layer.affine.weight.detach().double() for layer in (layers + to_rgbs if normalize else layers)]
    stacked = torch.cat(weights)
    return stacked / stacked.norm(dim=1, keepdim=True).clamp_min(1e-30) if normalize else stacked


def factorise(G: Any, *, normalize: bool = False) -> Directions:
    """All directions of a generator; the largest component of each is made positive, so that signs repeat."""
    _, sigma, v = torch.linalg.svd(style_matrix(G, normalize=normalize), full_matrices=False)
    largest = v.gather(1, v.abs().argmax(dim=1, keepdim=True))
    return Directions(v * largest.sign(), sigma)


def moved(
    ws: Float[Tensor, "n num_ws w_dim"],
    vector: Float[Tensor, " w_dim"],
    alpha: float | int,
    layers: Sequence[int] | None = None,
) -> Float[Tensor, "n num_ws w_dim"]:
    """w + alpha v in these layers, all of them if None; UserError for a layer that is not there."""
    num_ws = ws.shape[1]
    if bad := [i for i in layers or () if not 0 <= i < num_ws]:
        raise UserError(f"layers={bad[0]}: this generator has layers 0 to {num_ws - 1}")
    ws, picked = ws.clone(), range(num_ws) if layers is None else layers
    for i in set(picked):
        ws[:, i] += (alpha * vector).to(ws)
    return ws


def edit(
    G: Any,
    seeds: Sequence[int],
    direction: int,
    alphas: Sequence[float],
    layers: Sequence[int] | None = None,
    size: tuple[int, int] | None = None,
    truncation_psi: float = 1.0,
    *,
    normalize: bool = False,
) -> np.ndarray:
    """uint8 [seeds, alphas, h, w, 3]; where alpha is 0 the images are those of `generate`, bit for bit."""
    vector = factorise(G, normalize=normalize).vector(direction)
    ws = broadcast_w(map_z(G, sample_z(G, seeds), truncation_psi), G.num_ws)
    noise = [noise_seed(s) for s in seeds]
    return np.stack([render(G, moved(ws, vector, alpha, layers), size, noise) for alpha in alphas], axis=1)


def parse_alphas(text: str) -> list[float]:
    """'-3..3' (steps of 1), '-3..8:0.5', or one number."""
    span, _, by = text.partition(":")
    low, dots, high = span.partition("..")
    try:
        first, last, step = float(low), float(high if dots else low), float(by or 1)
        count = int((last - first) / step + 1e-9) + 1
        if not (step > 0 and 1 <= count <= 1000):
            raise ValueError(text)
    except (ValueError, OverflowError, ZeroDivisionError) as e:
        raise UserError(f"alpha={text!r}: expected LOW..HIGH or LOW..HIGH:STEP, for example -3..8:0.5") from e
    return [round(first + i * step, 9) for i in range(count)]
