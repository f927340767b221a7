"""From one latent to the next, with the noise kept (as in the videos of StyleGAN2, 1912.04958).

In w the way is straight, in z along the sphere on which latents of many dimensions lie.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.models.stylegan2 import broadcast_w
from pipeline.spec import UserError
from pipeline.synthesis.sample import map_z, noise_seed, render, sample_z

Space = Literal["w", "z"]


def slerp(a: Float[Tensor, " d"], b: Float[Tensor, " d"], t: Float[Tensor, " n"]) -> Float[Tensor, "n d"]:
    """Rows that turn from a (t = 0) to b (t = 1) at an even rate, while the length changes evenly."""
    u, v = a / a.norm(), b / b.norm()
    angle = torch.dot(u, v).clamp(-1, 1).arccos()
    if angle.sin() < 1e-6:  # one direction, or opposite ones, between which no way is the shortest
        return torch.lerp(a, b, t[:, None])
    turned = (torch.outer(((1 - t) * angle).sin(), u) + torch.outer((t * angle).sin(), v)) / angle.sin()
    return turned * torch.lerp(a.norm(), b.norm(), t)[:, None]


def interpolate(
    G: Any,
    seeds: Sequence[int],
    frames: int,
    space: Space = "w",
    size: tuple[int, int] | None = None,
    truncation_psi: float = 1.0,
) -> np.ndarray:
    """uint8 [legs, frames, h, w, 3]: each leg leads from a seed to the next, both ends included.

    The noise of all frames is that of the first seed, so that only the style changes.
    """
    if len(seeds) < 2 or frames < 2:
        raise UserError(f"seeds={len(seeds)}, frames={frames}: at least two of each are needed, for example seeds 0,3")
    z = sample_z(G, seeds)
    t = torch.linspace(0, 1, frames, device=z.device)
    if space == "w":
        w = map_z(G, z, truncation_psi)
        ways = [torch.lerp(a, b, t[:, None]) for a, b in pairwise(w)]
    else:
        ways = [map_z(G, slerp(a, b, t), truncation_psi) for a, b in pairwise(z)]
    w = torch.cat(ways)
    images = render(G, broadcast_w(w, G.num_ws), size, [noise_seed(seeds[0])] * len(w))
    return images.reshape(len(ways), frames, *images.shape[1:])
