"""Per-pixel noise as a function of one seed a sample, at any size.

The maps of a sample are cut from one stream of N(0, 1) drawn on the device from that sample's seed, so they do
not depend on the microbatch a sample travels in, nor on anything saved. Knows nothing of layers that use them.
"""

from collections.abc import Sequence
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor


def noise_maps(
    seeds: Sequence[int], shapes: Sequence[tuple[int, ...]], device: torch.device
) -> list[Float[Tensor, "n ..."]]:
    """One [n, *shape] map of N(0, 1) for each shape."""
    sizes = [prod(s) for s in shapes]
    generator = torch.Generator(device)
    rows = [torch.randn(sum(sizes), generator=generator.manual_seed(s), device=device) for s in seeds]
    flat = torch.stack(rows).split(sizes, dim=1)
    return [part.reshape(len(seeds), *shape) for part, shape in zip(flat, shapes, strict=True)]
