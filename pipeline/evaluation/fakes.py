"""What metrics are computed from of a generator's images: tensors by block of numbers, the same whoever makes them.

Fake i has the seed 10^9 * seed + i and, where there are classes, the label of the i-th image of the set. Images are
made in full batches of one size, in float32, quantised to uint8, and only then reduced where that is asked for.
Knows nothing of what is computed from them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from pipeline.data.filters import resized
from pipeline.errors import WorkError
from pipeline.evaluation.question import Size
from pipeline.layers.coords import shifted
from pipeline.metrics.extract import Extractor
from pipeline.models.stylegan2 import broadcast_w
from pipeline.spec import to_uint8
from pipeline.synthesis.sample import SHIFT_OF_ALL, map_z, noise_seed, sample_z

SEEDS = 10**9  # of one Question.seed


@dataclass(frozen=True, eq=False)
class Fakes:
    """Images of one generator at one size. `labels`: numbers to classes, or None."""

    G: Any
    size: Size
    filter: str
    seed: int
    batch: int
    labels: Callable[[Sequence[int]], list[int] | None]

    def make(self, block: range, wanted: Mapping[str, tuple[Extractor, int]]) -> dict[str, Tensor]:
        """The tensors of a block. `wanted`: prefix of their names -> (extractor, how many of the first images)."""
        parts: dict[str, list[Tensor]] = {}
        for img, numbers in self.images(block):
            for prefix, (extractor, count) in wanted.items():
                n = min(len(numbers), max(0, count - numbers[0]))
                for name, rows in extractor(img[:n], numbers[:n], _called).items() if n else ():
                    parts.setdefault(prefix + name, []).append(rows.cpu())
        return {name: torch.cat(rows) for name, rows in parts.items()}

    def images(self, block: range) -> Iterator[tuple[UInt8[Tensor, "n 3 h w"], range]]:
        for i in range(0, len(block), self.batch):
            numbers = block[i : i + self.batch]
            full = [*numbers, *[numbers[-1]] * (self.batch - len(numbers))]  # a last batch would differ in its rounding
            img = self._forward(full)[: len(numbers)]
            yield (self._reduced(img) if self.size.of_px else img), numbers

    @torch.no_grad()
    def _forward(self, numbers: Sequence[int]) -> UInt8[Tensor, "n 3 h w"]:
        G, side = self.G, self.size.made_px
        seeds = [SEEDS * self.seed + i for i in numbers]
        noise = tuple(map(noise_seed, seeds))
        labels = self.labels(numbers) if getattr(G, "num_classes", 0) else None
        with (
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
            shifted([G], noise, SHIFT_OF_ALL),
        ):
            ws = broadcast_w(map_z(G, sample_z(G, seeds), 1.0, labels), G.num_ws)
            img = G.synthesis(ws, (side, side), noise)
        if not (finite := img.isfinite().flatten(1).all(dim=1)).all():
            first = numbers[int((~finite).nonzero()[0])]
            raise WorkError(
                f"fake {first}: values that are not finite; the weights are ruined, take another checkpoint"
            )
        return to_uint8(img)

    def _reduced(self, img: UInt8[Tensor, "n 3 h w"]) -> UInt8[Tensor, "n 3 h2 w2"]:
        rows = img.permute(0, 2, 3, 1).cpu().contiguous().numpy()
        small = np.stack([resized(one, self.size.px, self.filter) for one in rows])
        return torch.from_numpy(small).permute(0, 3, 1, 2).contiguous()


def _called(number: int) -> str:
    return f"fake {number}"
