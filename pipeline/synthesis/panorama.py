"""Pictures as wide as the coordinates reach, whose style changes from column to column (CIPS, 2011.13775, Figure 11).

As every pixel has its own w, a blend costs nothing: w is linear between the styles of several seeds, which stand at
even distances along the width. On a cylinder the last leads back to the first, so that the picture closes.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.synthesis.pixels import by_column, is_ring, per_pixel


def blend(ws: Float[Tensor, "k num_ws w_dim"], width: int, *, ring: bool) -> Float[Tensor, "w num_ws w_dim"]:
    """A style for each of `width` columns; style i stands at i/k of a ring, at i/(k - 1) from end to end without."""
    k = len(ws)
    place = torch.arange(width, dtype=torch.float64, device=ws.device)
    place = place * k / width if ring else place * ((k - 1) / max(width - 1, 1))
    low = place.floor().long().clamp(max=k - 1)
    return torch.lerp(
        ws[low], ws[(low + 1) % k if ring else (low + 1).clamp(max=k - 1)], (place - low).to(ws)[:, None, None]
    )


def panorama(
    G: Any, ws: Float[Tensor, "k num_ws w_dim"], size: tuple[int, int] | None = None
) -> Float[Tensor, "3 h w"]:
    """The whole width of the coordinates on a grid of this size, or the native one, blended between these styles."""
    height, width = size or per_pixel(G).native_size
    per_pixel(G).check_size((height, width))
    return by_column(G, blend(ws, width, ring=is_ring(G)), height)
