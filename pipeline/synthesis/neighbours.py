"""Is a sample a photograph that training saw? Its nearest pictures of a prepared set (CIPS, 2011.13775, Appendix).

Near is what an embedding of the user's own says: a TorchScript file that maps [n, 3, h, w] in [-1, 1] to [n, d].
The paper cuts out faces and measures by FaceNet; nothing is fetched here, and nothing cut out.
"""

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from pipeline.spec import UserError, to_float

Embed = Callable[[UInt8[Tensor, "n 3 h w"]], Tensor]


def load_embedding(path: Path) -> Embed:
    """uint8 pictures -> float32 [n, d] by a TorchScript file; UserError for another file, or another shape."""
    if not path.is_file():
        raise UserError(f"embedding={str(path)!r}: no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the format is what people have
            net = torch.jit.load(path, map_location="cpu").eval()
    except (RuntimeError, ValueError) as e:
        raise UserError(f"embedding={str(path)!r} is no TorchScript file; save it with torch.jit.save") from e

    @torch.no_grad()
    def embed(images: UInt8[Tensor, "n 3 h w"]) -> Tensor:
        try:
            found = net(to_float(images))
        except RuntimeError as e:
            what = "x".join(map(str, images.shape[2:]))
            raise UserError(f"embedding={str(path)!r} fails on [n, 3, h, w] pictures of {what} px") from e
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(images):
            what = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise UserError(f"embedding={str(path)!r} gives {what} of {len(images)} pictures, not [n, d]")
        return found.float()

    return embed


def nearest(
    query: Float[Tensor, "q d"], bank: Iterable[Float[Tensor, "_ d"]], k: int
) -> tuple[Int64[Tensor, "q found"], Float[Tensor, "q found"]]:
    """Numbers and Euclidean distances of the k nearest rows of the bank, which is never held whole."""
    distances, numbers, seen = query.new_empty(len(query), 0), torch.empty(len(query), 0, dtype=torch.long), 0
    for rows in bank:
        distances = torch.cat([distances, torch.cdist(query, rows, compute_mode="donot_use_mm_for_euclid_dist")], 1)
        numbers = torch.cat([numbers, torch.arange(seen, seen + len(rows)).expand(len(query), -1)], 1)
        distances, order = distances.topk(min(k, distances.shape[1]), dim=1, largest=False)
        numbers, seen = numbers.gather(1, order), seen + len(rows)
    return numbers, distances


def stacked(images: UInt8[np.ndarray, "n h w 3"]) -> UInt8[Tensor, "n 3 h w"]:
    """Pictures of `generate` as an embedding takes them."""
    return torch.from_numpy(images).permute(0, 3, 1, 2)
