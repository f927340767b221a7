"""What a family measures on held-out images while it trains: means over the whole set, equal for any number of ranks.

Microbatches and draws follow from positions in the set alone, ranks share the microbatches, and the values of single
images are summed in their order. Knows neither the measures nor when they are taken.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import fsum, isfinite
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline.chance import Chance
from pipeline.data.reader import ShardReader
from pipeline.layers.coords import shifted_by
from pipeline.phases import Family, Step
from pipeline.spec import Batch
from pipeline.training.engine import Engine
from pipeline.training.runner import to_device


class Validation:
    """Called with the networks (G being G_ema) on every rank, it returns means by name on each.

    They are `Validation/<term>`, of several sets `Validation/<name of the set>/<term>`.
    """

    def __init__(self, family: Family, sets: Mapping[str, Path], engine: Engine, seed: int, micro: int, workers: int):
        """`micro`: images of one forward. UserError when one of the sets is no prepared one."""
        assert family.validate is not None
        self.family, self.engine, self.seed, self.micro, self.workers = family, engine, seed, micro, workers
        self.measure = family.validate
        self.readers = {name: ShardReader(root) for name, root in sets.items()}

    def __call__(self, nets: Mapping[str, nn.Module]) -> dict[str, float]:
        several, out = len(self.readers) > 1, {}
        for name, reader in self.readers.items():
            prefix = f"Validation/{name}/" if several else "Validation/"
            out |= {prefix + term: mean for term, mean in self._means(nets, reader).items()}
        return out

    @torch.no_grad()
    def _means(self, nets: Mapping[str, nn.Module], reader: ShardReader) -> dict[str, float]:
        family, engine, size = self.family, self.engine, self.family.sizes[-1]
        mine: list[tuple[int, dict[str, list[float]]]] = []
        for ids, batch in self._batches(reader):
            micro = to_device(family, batch, ids, size, engine.device)
            chance = Chance(self.seed, "validation", 0, micro.ids, engine.device)
            step = Step(micro.real, size, chance, frozenset(), {}, micro.c)
            with shifted_by(nets.values(), chance), engine.autocast():
                terms = self.measure(nets, step)
            mine.append((ids[0], {name: values.double().tolist() for name, values in terms.items()}))
            engine.progress.at("validation")
        parts = sorted((part for of_rank in engine.gather(mine) for part in of_rank), key=lambda part: part[0])
        names = parts[0][1] if parts else {}
        return {name: _mean([v for _, p in parts for v in p[name]]) for name in names}

    def _batches(self, reader: ShardReader) -> Iterator[tuple[list[int], Batch]]:
        """This rank's share, with positions in the set; images as stored, none mirrored."""
        n, at_once, world = len(reader), self.micro, self.engine.world
        with ThreadPoolExecutor(max(1, self.workers)) as threads:
            for first in range(self.engine.rank * at_once, n, world * at_once):
                ids = list(range(first, min(first + at_once, n)))
                images, labels = zip(*threads.map(reader.read, ids), strict=True)
                yield ids, Batch(torch.from_numpy(np.stack(images)), torch.tensor(labels))


def _mean(values: Sequence[float]) -> float:
    """Rounded once; of values that are not all finite, what IEEE makes of them, where fsum may raise."""
    return (fsum(values) if all(map(isfinite, values)) else sum(values)) / len(values)
