"""What a generator makes of a head that says the same everywhere (MS-PIE, 2012.05217, Figures 3 and 11, App. B.2).

With the code at the head replaced by a constant and the noise left out, only padding can still tell positions apart:
a padded network shows frozen borders, a padding-free one a uniform colour. Knows nothing of what a head is made of.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.models.stylegan2 import broadcast_w
from pipeline.spec import UserError
from pipeline.synthesis.sample import map_z, sample_z

VALUES = (-1.0, -0.5, 0.0, 0.5, 1.0)
BORDER = 8  # the border is as wide as this part of the shorter side, at least a pixel


@dataclass(frozen=True)
class Spread:
    """How far an image is from one colour, in squared units of [-1, 1]; channels are averaged."""

    interior: float  # variance over the pixels that are not of the border
    border: float  # mean square distance of the border's pixels from the interior's mean colour


@contextmanager
def constant_head(G: Any, value: float | int) -> Iterator[None]:
    """Within it this constant enters the first convolution, in the shape of the code."""
    if not callable(getattr(G, "head", None)):
        raise UserError(
            f"model={type(G).__name__} has no code at its head that a constant could replace; probe padding takes "
            "generators that have one (kind='mspie')"
        )
    code = G.head
    G.head = lambda size: torch.full_like(code(size), value)
    try:
        yield
    finally:
        del G.head  # the class's own is there again


@torch.no_grad()
def padding_probe(
    G: Any, values: Sequence[float] = VALUES, size: tuple[int, int] | None = None, seed: int = 0
) -> Float[Tensor, "n 3 h w"]:
    """One image for each value at the head, with the style of this seed and no noise."""
    h, w = size or tuple(G.native_size)
    G.check_size((h, w))
    images = []
    for value in values:
        with constant_head(G, value):
            ws = broadcast_w(map_z(G, sample_z(G, [seed])), G.num_ws)
            images.append(G.synthesis(ws, (h, w), None))
    return torch.cat(images).float()


def spread(img: Float[Tensor, "c h w"]) -> Spread:
    """Of one image."""
    h, w = img.shape[1:]
    edge = max(1, min(h, w) // BORDER)
    inside = torch.zeros(h, w, dtype=torch.bool, device=img.device)
    inside[edge : h - edge, edge : w - edge] = True
    mean = img[:, inside].double().mean(dim=1, keepdim=True)
    interior, border = ((img[:, part].double() - mean).square().mean() for part in (inside, ~inside))
    return Spread(float(interior), float(border))
