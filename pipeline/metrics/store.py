"""What was made of images, by blocks of image numbers, in files that any number of processes fill together.

A block is written whole or not at all, its content follows from its image numbers alone, and a process that has done
its part goes on with what others lack. So ranks share the work without talking to each other, a killed one costs at
most the block it was at, and the files are the same for any number of ranks. Knows nothing of detectors or metrics.
"""

import json
import os
import secrets
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.config import fsync_folder
from pipeline.errors import WorkError

BLOCK = 250  # images


class Store:
    """Tensors by name of images 0 to `count` - 1, below `folder`; rows are images. Makes nothing until it is filled.

    A block may hold fewer rows of a name than images, where less is wanted of that name: the first ones.
    """

    def __init__(self, folder: Path, count: int):
        self.folder, self.count = folder, count

    def blocks(self, n: int | None = None) -> list[range]:
        """The blocks that hold the first n images; all if not given."""
        n = self.count if n is None else n
        assert 0 <= n <= self.count, (n, self.count)
        return [range(i, min(i + BLOCK, self.count)) for i in range(0, n, BLOCK)]

    def missing(self, n: int | None = None) -> list[range]:
        """Those of them that nobody has written yet."""
        there = set(os.listdir(self.folder)) if self.folder.is_dir() else set()
        return [block for block in self.blocks(n) if _name(block) not in there]

    def put(self, block: range, tensors: Mapping[str, Tensor]) -> None:
        """Publish a block; one that is there already is replaced by the same bytes. WorkError if the disk refuses."""
        path = self.folder / _name(block)
        temp = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.tmp")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            rows = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
            sums = {name: _crc32(rows[name]) for name in sorted(rows)}
            save_file(rows, temp, metadata={"crc32": json.dumps(sums)})
            with temp.open("rb") as f:
                os.fsync(f.fileno())
            os.replace(temp, path)
            fsync_folder(self.folder)
        except (OSError, SafetensorError) as e:
            temp.unlink(missing_ok=True)
            raise WorkError(f"{path}: cannot be written ({getattr(e, 'strerror', None) or e}); free disk space") from e

    def read(self, block: range, only: str = "") -> dict[str, Tensor]:
        """The tensors of a block, or one of them. WorkError if it is not there or damaged."""
        path = self.folder / _name(block)
        try:
            with safe_open(path, "pt") as f:
                rows = {name: f.get_tensor(name) for name in ([only] if only else f.keys())}
                sums = json.loads((f.metadata() or {}).get("crc32", "{}"))
            if any(sums.get(name) != _crc32(tensor) for name, tensor in rows.items()):
                raise OSError("its checksum is another")
            return rows
        except (OSError, ValueError, SafetensorError) as e:
            raise WorkError(f"{path}: cannot be read ({e}); delete it and run the command again") from e

    def batches(self, name: str, n: int | None = None) -> Iterator[Tensor]:
        """Rows of a name block by block, in the order of image numbers, n in all."""
        n = self.count if n is None else n
        for block in self.blocks(n):
            yield self.read(block, name)[name][: n - block.start]

    def rows(self, name: str, n: int | None = None) -> Tensor:
        """The first n rows of a name, all at once. Never holds them twice."""
        n, rows, done = self.count if n is None else n, torch.empty(0), 0
        for batch in self.batches(name, n):
            rows = rows if done else batch.new_empty(n, *batch.shape[1:])
            rows[done : done + len(batch)] = batch
            done += len(batch)
        assert done == n, f"{self.folder}: {done} rows of {name}, wanted {n}"
        return rows


def fill(
    store: Store,
    make: Callable[[range], Mapping[str, Tensor]],
    n: int | None = None,
    *,
    worker: int = 0,
    workers: int = 1,
    stop: Callable[[], bool] = lambda: False,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> bool:
    """Make the blocks of the first n images that are not there, until none is missing; False if stopped before.

    Each worker begins at a place of its own and takes what is missing from there on, round and round: so all end when
    everything is there, whoever died on the way. Two may make a block twice; it is the same. From then on the later one
    of them draws its blocks: else two that met, such as two jobs that began at once, would make all the rest twice.
    `told(done, total)` in images.
    """
    blocks, met = store.blocks(n), False
    start = worker * len(blocks) // max(workers, 1)
    total = sum(map(len, blocks))
    while missing := store.missing(n):
        told(total - sum(map(len, missing)), total)
        if stop():
            return False
        gone = {block.start for block in missing}
        ahead = next(b for b in (*blocks[start:], *blocks[:start]) if b.start in gone)
        block = secrets.choice(missing) if met else ahead
        tensors = make(block)
        if block in store.missing(n):
            store.put(block, tensors)
            start = (blocks.index(block) + 1) % len(blocks)
        else:
            met = True
    told(total, total)
    return True


def _crc32(tensor: Tensor) -> int:
    """Of its bytes: safetensors has no checksum, and a flipped bit would become a number."""
    return zlib.crc32(tensor.flatten().view(torch.uint8).numpy().data)


def _name(block: range) -> str:
    return f"{block.start:08d}-{block.stop - 1:08d}.safetensors"
