"""Which pixels of an image training looks at: CIPS' patches and cylinders, crops and turns of stored photographs.

Patches (2011.13775, Appendix C): patch_px x patch_px pixels at a stride, the same positions for reals and fakes and for
D's and G's phase. Panoramas (its Section 4): columns of a cylinder. All positions are integers of the training grid, so
pixels are gathered, never interpolated. Draws are keyed by image number. Knows no network and no loss.
Parity: one stride an iteration, as released; for all ranks, where the release draws one on each.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from pipeline.chance import Chance, rng
from pipeline.families.logistic import resize_reals

Positions = tuple[Int64[Tensor, "k rows"], Int64[Tensor, "l cols"]]
"""Rows and columns on the training grid, k and l: of each sample, or 1 for all."""


def whole(size: tuple[int, int], device: torch.device) -> Positions:
    """Every pixel."""
    h, w = size
    return torch.arange(h, device=device)[None], torch.arange(w, device=device)[None]


def patches(chance: Chance, side: int, patch_px: int) -> Positions:
    """One stride of 1, 2, 4 ... side / patch_px for the iteration; of each sample the corner, uniform where it fits."""
    chance = replace(chance, scope="view")  # the same in all phases
    levels = (side // patch_px).bit_length()
    stride = 1 << int(chance.shared("stride").integers(levels))
    room = side - (patch_px - 1) * stride
    corners = torch.tensor(np.stack([rng(seed).integers(room, size=2) for seed in chance.seeds("corner")]))
    steps = stride * torch.arange(patch_px)
    rows, cols = (corner[:, None] + steps for corner in corners.unbind(1))
    return rows.to(chance.device), cols.to(chance.device)


def panorama(chance: Chance, size: tuple[int, int], cylinder_px: int) -> Positions:
    """All rows, and of each sample neighbouring columns of a cylinder from a uniform one on, across the seam."""
    chance = replace(chance, scope="view")
    first = torch.tensor([int(rng(seed).integers(cylinder_px)) for seed in chance.seeds("column")])
    cols = (first[:, None] + torch.arange(size[1])) % cylinder_px
    rows, _ = whole((size[0], 1), chance.device)
    return rows, cols.to(chance.device)


def gathered(img: Float[Tensor, "n c h w"], positions: Positions) -> Float[Tensor, "n c rows cols"]:
    """Those pixels of each image."""
    rows, cols = positions
    n = torch.arange(len(img), device=img.device)[:, None, None]
    return img.permute(0, 2, 3, 1)[n, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2).contiguous()


def with_coordinates(
    img: Float[Tensor, "n c rows cols"], positions: Positions, size: tuple[int, int]
) -> Float[Tensor, "n c2 rows cols"]:
    """Two more channels: x and y of the pixels on the grid of `size`, its ends at -1 and 1."""
    rows, cols = positions
    y, x = (2 * at.float() / (side - 1) - 1 for at, side in zip((rows, cols), size, strict=True))
    shape = (len(img), *img.shape[2:])
    return torch.cat([img, *(one.expand(shape)[:, None] for one in (x[:, None, :], y[:, :, None]))], dim=1)


def cropped(
    img: UInt8[Tensor, "n c s s"],
    ids: Sequence[int],
    size: tuple[int, int],
    *,
    share: float,
    rotate: bool,
    seed: int,
) -> Float[Tensor, "n c h w"]:
    """A square of `share` of the stored side at a uniform place, turned by 0 to 3 quarters; then resized to `size`.

    Place and turn are functions of the image's number in the run: a new one each time that a photograph is shown.
    """
    stored, out = img.shape[2], []
    side = round(share * stored)
    for one, number in zip(img, ids, strict=True):
        draw = rng(seed, "crop", number)
        y, x = draw.integers(stored - side + 1, size=2).tolist()
        turns = int(draw.integers(4)) if rotate else 0
        out.append(torch.rot90(one[:, y : y + side, x : x + side], turns, (1, 2)))
    return resize_reals(torch.stack(out), size)
