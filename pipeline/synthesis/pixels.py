"""Some pixels of a picture, or each with a style of its own: what pictures of a per-pixel generator have in common.

CIPS (2011.13775): a colour is a function of coordinates and w, so any set of pixels can be made alone, at any density
(Section 3), and with a style that changes from column to column (Figure 11). Noise is left out: the paper's generator
has none, and between the pixels of the training grid it has no meaning. Knows nothing of pictures on disk.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pipeline.models.cips import CIPSGenerator
from pipeline.models.stylegan2 import broadcast_w
from pipeline.spec import UserError
from pipeline.synthesis.sample import map_z, sample_z

COLUMNS_AT_ONCE = 16  # each holds modulated weights of its own


def per_pixel(G: Any) -> CIPSGenerator:
    """G itself; UserError unless it makes each pixel on its own."""
    if not isinstance(G, CIPSGenerator):
        raise UserError(
            f"model={type(G).__name__} makes no pixel alone; this takes a generator that does (kind='cips')"
        )
    return G


def is_ring(G: CIPSGenerator) -> bool:
    """Does the last column lead back to the first?"""
    return G.cfg.cylinder_px is not None


def styles(G: Any, seeds: Sequence[int], truncation_psi: float | int = 1.0) -> Float[Tensor, "n num_ws w_dim"]:
    """The ws of these seeds, those of `sample`."""
    return broadcast_w(map_z(G, sample_z(G, seeds), float(truncation_psi)), G.num_ws)


@torch.no_grad()
def some_pixels(
    G: CIPSGenerator, ws: Float[Tensor, "n num_ws w_dim"], size: tuple[int, int], index: Int64[Tensor, " p"]
) -> Float[Tensor, "n p 3"]:
    """Colours of the pixels with these row-major numbers of a grid of this size; no other is computed."""
    return G.pixels(ws, G.coordinates(size, ws.device)[index])


@torch.no_grad()
def by_column(G: CIPSGenerator, ws: Float[Tensor, "w num_ws w_dim"], height: int) -> Float[Tensor, "3 h w"]:
    """One picture of this height; column i has the style ws[i]."""
    coords = G.coordinates((height, len(ws)), ws.device).unflatten(0, (height, len(ws))).transpose(0, 1)
    parts = zip(ws.split(COLUMNS_AT_ONCE), coords.split(COLUMNS_AT_ONCE), strict=True)
    return torch.cat([G.pixels(w, c) for w, c in parts]).permute(2, 1, 0)
