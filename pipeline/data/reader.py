"""Images of a prepared folder by number, and a rank's share of every global batch, for ever.

The reader preads image bytes at the offsets of the index, so any image costs one read and no shard is ever
scanned. `batches` serves position k as image `order(seed, n, k)`: what a rank reads follows from (seed, nimg,
its slices), not from workers or from what was read before. Knows nothing of networks, or of other ranks.
"""

import io
import os
import signal
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pipeline.data.manifest import Manifest, load_manifest, read_index
from pipeline.data.order import mirrored, order
from pipeline.spec import Batch

OPEN_SHARDS = 64  # a set may have more shards than a process may have files
TAR_HEADER = 512


class DataError(RuntimeError):
    """A shard does not give the image that the index promises; names shard and key."""


class ShardReader:
    """Random access to a prepared folder. Pickles without its open files; pread is safe across a fork."""

    def __init__(self, root: Path):
        self.root = root
        self.manifest: Manifest = load_manifest(root)
        self._index = read_index(root)
        self._ends = np.cumsum([s.count for s in self.manifest.shards])
        self._files: dict[int, int] = {}  # shard number -> file descriptor, least recently used first

    def __len__(self) -> int:
        return len(self._index)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_files": {}}

    def __del__(self) -> None:
        for fd in getattr(self, "_files", {}).values():
            os.close(fd)

    def read(self, i: int) -> tuple[UInt8[np.ndarray, "3 h w"], int]:
        """Image and label (-1 without classes) of sample i."""
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of a set of {len(self)}")
        shard = int(np.searchsorted(self._ends, i, side="right"))
        offset, length, label = self._index[i].item()
        data = b""
        try:
            data = os.pread(self._file(shard), length, offset)
            image = _decode(data, self.manifest.encoding)
            size_px = self.manifest.size_px
            if len(data) != length or image.shape != (size_px, size_px, 3):
                raise ValueError(f"{len(data)} of {length} bytes, shape {image.shape}")
        except Exception as e:  # decoders raise whatever they like on damaged bytes
            file, key = self.root / self.manifest.shards[shard].name, self._key(shard, offset)
            raise DataError(f"{file}: sample {i} (key {key}) cannot be read: {e}; run `graticule verify`") from e
        return np.ascontiguousarray(image.transpose(2, 0, 1)), label

    def _file(self, shard: int) -> int:
        fd = self._files.pop(shard, None)
        if fd is None:
            if len(self._files) >= OPEN_SHARDS:
                os.close(self._files.pop(next(iter(self._files))))
            fd = os.open(self.root / self.manifest.shards[shard].name, os.O_RDONLY | os.O_CLOEXEC)
        self._files[shard] = fd
        return fd

    def _key(self, shard: int, offset: int) -> str:
        """The member's name, from the tar header in front of its data."""
        try:
            header = os.pread(self._file(shard), TAR_HEADER, offset - TAR_HEADER)
        except OSError:
            return "unknown"
        return header[:100].split(b"\0")[0].split(b".")[0].decode("ascii", "backslashreplace") or "unknown"


def _decode(data: bytes, encoding: str) -> UInt8[np.ndarray, "h w 3"]:
    if encoding == "jpg":
        return simplejpeg.decode_jpeg(data, "RGB")  # exact as long as fastdct and fastupsample stay off
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        return np.asarray(image)


def batches(
    root: Path, *, seed: int, mirror: bool, nimg: int, batch_size: int, slices: Sequence[range], workers: int
) -> Generator[Batch, None, None]:
    """This rank's microbatches, without end; closing it ends the loader's workers.

    The global batch that starts at nimg is positions nimg .. nimg + batch_size - 1. One Batch comes for each
    of `slices` (ranges inside range(batch_size)), in their order; then of nimg + batch_size, and so on.
    """
    if not slices or any(not s or min(s) < 0 or max(s) >= batch_size for s in slices):
        raise ValueError(f"slices={list(slices)}: must be non-empty ranges inside range({batch_size})")
    loader = DataLoader(
        _Positions(ShardReader(root), seed, mirror),
        batch_sampler=_Microbatches(nimg, batch_size, slices),
        collate_fn=_as_is,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=_start_worker,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # the global one is not touched
    )
    return (Batch(img, label) for img, label in loader)


class _Positions(Dataset):
    """Positions of a run to tensors; whole microbatches at a time."""

    def __init__(self, reader: ShardReader, seed: int, mirror: bool):
        self.reader, self.seed, self.mirror = reader, seed, mirror

    def __getitems__(self, ks: list[int]) -> tuple[UInt8[Tensor, "n 3 h w"], Int64[Tensor, " n"]]:
        positions = np.array(ks, dtype=np.int64)
        samples = [self.reader.read(int(i)) for i in order(self.seed, len(self.reader), positions)]
        img = np.stack([image for image, _ in samples])
        if self.mirror:
            flipped = mirrored(self.seed, positions)
            img[flipped] = img[flipped, :, :, ::-1]
        return torch.from_numpy(img), torch.tensor([label for _, label in samples], dtype=torch.int64)


class _Microbatches(Sampler[list[int]]):
    def __init__(self, nimg: int, batch_size: int, slices: Sequence[range]):
        self.nimg, self.batch_size, self.slices = nimg, batch_size, slices

    def __iter__(self) -> Iterator[list[int]]:
        start = self.nimg
        while True:
            for piece in self.slices:
                yield [start + i for i in piece]
            start += self.batch_size


def _as_is(items: Any) -> Any:
    return items


def _start_worker(worker: int) -> None:
    """Signals of the job are for the rank: a worker that obeyed would take the rank down while it saves."""
    del worker
    for number in (signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
