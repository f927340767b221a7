"""Pictures of which only some pixels are computed, most of them in the middle (CIPS, 2011.13775, Figure 8).

Positions follow a 2-D Gaussian at the centre with a standard deviation of 0.4 sides, without replacement, so that all
of them are the whole picture. The paper fills holes "bicubically"; on scattered pixels that is taken to be the cubic
(Clough-Tocher) interpolation on their triangles, and outside all triangles the nearest computed pixel.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from scipy.interpolate import griddata
from torch import Tensor

from pipeline.chance import rng
from pipeline.spec import UserError, to_uint8
from pipeline.synthesis.pixels import per_pixel, some_pixels

Picture = UInt8[np.ndarray, "h w 3"]

STD = 0.4  # of a side
FEWEST = 16  # pixels that can be interpolated between


def positions(size: tuple[int, int], percent: float | int, seed: int = 0) -> Int64[np.ndarray, " p"]:
    """Ascending row-major numbers of the pixels to compute; those of a smaller percentage are among those of a larger.

    Each next pixel is drawn from those left over, in proportion to the Gaussian's density there.
    """
    h, w = size
    count = round(h * w * percent / 100) if 0 < percent <= 100 else 0
    if count < min(FEWEST, h * w):
        raise UserError(
            f"percent={percent:g}: expected more than 0, up to 100, and at least {FEWEST} of {h}x{w} pixels"
        )
    y, x = ((np.arange(n) - (n - 1) / 2) / (STD * n) for n in size)
    log_density = -(y[:, None] ** 2 + x[None, :] ** 2) / 2
    order = log_density.ravel() + rng("foveation", seed).gumbel(size=h * w)  # the largest first: no replacement
    return np.sort(np.argsort(-order, kind="stable")[:count])


def fill(
    size: tuple[int, int], index: Int64[np.ndarray, " p"], colours: Float[np.ndarray, "p 3"]
) -> Float[np.ndarray, "h w 3"]:
    """A whole picture of these pixels, which stay as they are; the others are interpolated."""
    h, w = size
    image = np.empty((h * w, 3), colours.dtype)
    image[index] = colours
    holes = np.setdiff1d(np.arange(h * w), index)
    if len(holes):
        known, unknown = (np.stack(np.divmod(i, w), axis=1) for i in (index, holes))
        values = griddata(known, colours, unknown, method="cubic")
        outside = np.isnan(values[:, 0])
        if outside.any():
            values[outside] = griddata(known, colours, unknown[outside], method="nearest")
        image[holes] = values
    return image.reshape(h, w, 3)


def foveated(
    G: Any, ws: Float[Tensor, "1 num_ws w_dim"], size: tuple[int, int], percent: float | int, seed: int = 0
) -> tuple[Float[Tensor, "3 h w"], Bool[Tensor, "h w"]]:
    """A picture of which this part is computed and the rest filled; and which pixels were computed."""
    index = positions(size, percent, seed)
    colours = some_pixels(per_pixel(G), ws, size, torch.from_numpy(index).to(ws.device))[0]
    image = torch.from_numpy(fill(size, index, colours.cpu().double().numpy())).float().permute(2, 0, 1)
    computed = torch.zeros(size, dtype=torch.bool)
    computed.view(-1)[torch.from_numpy(index)] = True
    return image, computed


def rows(
    G: Any, ws: Float[Tensor, "1 num_ws w_dim"], size: tuple[int, int], percents: Sequence[float | int]
) -> tuple[list[Picture], list[Picture]]:
    """A picture for each percentage: the computed pixels on black, and with the holes filled."""
    computed, filled = [], []
    for percent in percents:
        image, mask = foveated(G, ws, size, percent)
        filled.append(to_uint8(image[None])[0].permute(1, 2, 0).numpy())
        computed.append(filled[-1] * mask.numpy()[..., None])
    return computed, filled


def parse_percent(text: str) -> list[float]:
    """'5,25,50,100'; their range is checked where the number of pixels is known."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as e:
        raise UserError(f"percent={text!r}: expected numbers with commas, for example 5,25,50,100") from e
