"""Images of a prepared folder by number, and a rank's share of every global batch, for ever.

The reader preads image bytes at the offsets of the index, so any image costs one read and no shard is ever
scanned. `batches` serves position k as the image that `image_at` says: what a rank reads follows from (seed, nimg,
its slices), not from threads or from what was read before. Knows nothing of networks, or of other ranks.
"""

import io
import itertools
import math
import os
import struct
import threading
import weakref
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from pipeline.data.manifest import INDEX, load_manifest
from pipeline.data.order import blocks_between, image_at, mirrored, seed_of_set
from pipeline.data.prefetch import Job, in_order
from pipeline.errors import UserError, WorkError
from pipeline.spec import Batch

OPEN_SHARDS = 512  # a set may have more shards than a process may have files
TAR_BLOCK = 512
ROW = struct.Struct("<QIi")  # a record of the index
AHEAD_BYTES = 2**28  # of batches that wait for the training loop
FIRST_AHEAD = 1024  # images of a window that are read ahead before the first batch
SERIAL = 2**15 - 1  # bytes that torch handles without starting threads of its own
Pixels = UInt8[np.ndarray, "h w 3"]
Row = tuple[int, int, int, bool]  # global position, set, sample, mirrored or not
Task = Callable[[], object]


class DataError(WorkError):
    """A shard does not give the image that the index promises; names shard and key."""


class ShardReader:
    """Random access to a prepared folder, from any number of threads.

    Checks what `load_manifest` checks without looking at shards, and keeps no list of samples.
    """

    def __init__(self, root: Path):
        m = load_manifest(root, full=False)
        self.root, self.size_px, self.encoding, self.classes = root, m.size_px, m.encoding, m.classes
        self.planes, self.shape = m.planes, (m.planes * m.size_px, m.size_px, 3)  # as stored: height, width, colours
        self._names = [s.name for s in m.shards]
        self._bytes = array("q", (s.bytes for s in m.shards))
        self._ends = array("q", itertools.accumulate(s.count for s in m.shards))
        self._index = _File(root / INDEX)  # not mapped: a damaged disk then is an error and not the end of the process
        self._files: dict[int, _File] = {}  # of shards by number, least recently used first
        self._lock = threading.Lock()

    def __reduce__(self):  # files and lock stay in their process
        return ShardReader, (self.root,)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, i: int) -> tuple[UInt8[np.ndarray, "3 h w"], int]:
        """Image and label (-1 without classes) of sample i."""
        out = np.empty(self.shape, dtype=np.uint8)
        label = self.read_into(i, out)
        return np.ascontiguousarray(out.transpose(2, 0, 1)), label

    def read_into(self, i: int, out: Pixels) -> int:
        """Decode sample i in place; returns its label. Raises DataError, and `out` is then undefined."""
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of a set of {len(self)}")
        shard, offset = bisect_right(self._ends, i), -1
        try:
            offset, length, label = self._row(i)
            if offset + length > self._bytes[shard] or not -1 <= label < max(1, len(self.classes)):
                raise ValueError(f"{INDEX} says offset {offset}, length {length}, label {label}")
            self._decode(self._file(shard), offset, length, out)
            return label
        except Exception as e:  # decoders raise whatever they like on damaged bytes
            file, key = self.root / (self._names[shard] if offset >= 0 else INDEX), self._key(shard, offset)
            why = " ".join(str(getattr(e, "strerror", None) or e).split()) or type(e).__name__
            raise DataError(f"{file}: sample {i} (key {key}) cannot be read: {why}; run `graticule verify`") from e

    def read_ahead(self, first: int, count: int) -> None:
        """Tell the kernel that these consecutive samples will be read soon. Only a hint: no error comes of it."""
        try:
            while count > 0:
                shard = bisect_right(self._ends, first)
                here = min(count, self._ends[shard] - first)
                begin, (offset, length, _) = self._row(first)[0], self._row(first + here - 1)
                os.posix_fadvise(self._file(shard).fd, begin, offset + length - begin, os.POSIX_FADV_WILLNEED)
                first, count = first + here, count - here
        except (OSError, ValueError):
            pass  # reading the image will say what is wrong, and where

    def _row(self, i: int) -> tuple[int, int, int]:
        data = os.pread(self._index.fd, ROW.size, i * ROW.size)
        if len(data) != ROW.size:
            raise ValueError(f"has no row {i}")
        return ROW.unpack(data)

    def _decode(self, file: "_File", offset: int, length: int, out: Pixels) -> None:
        if self.encoding == "raw":
            if length != out.nbytes:
                raise ValueError(f"{length} bytes, not the {out.nbytes} of {out.shape[1]}x{out.shape[0]} pixels")
            _read_fully(file.fd, out.reshape(-1).data, offset)
            return
        data = os.pread(file.fd, length, offset)
        if len(data) != length:
            raise ValueError(f"{len(data)} of {length} bytes")
        decode_into(data, self.encoding, out)

    def _file(self, shard: int) -> "_File":
        with self._lock:
            file = self._files.pop(shard, None)
            if file is not None:
                self._files[shard] = file
                return file
        file = _File(self.root / self._names[shard])  # outside of the lock: on a cluster it may take a while
        with self._lock:
            self._files[shard] = file
            while len(self._files) > OPEN_SHARDS:
                del self._files[next(iter(self._files))]
        return file

    def _key(self, shard: int, offset: int) -> str:
        """The member's name, from the tar header in front of its data."""
        if offset < TAR_BLOCK:
            return "unknown"
        try:
            header = os.pread(self._file(shard).fd, TAR_BLOCK, (offset // TAR_BLOCK - 1) * TAR_BLOCK)
        except (OSError, OverflowError):  # an index may say anything
            return "unknown"
        key = header[:100].partition(b".")[0]
        return key.decode() if key.isdigit() else "unknown"


class _File:
    """An open file that closes when the last thread lets go of it. pread has no position to share."""

    def __init__(self, path: Path):
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


def _read_fully(fd: int, view: memoryview, offset: int) -> None:
    done = 0
    while done < len(view):
        n = os.preadv(fd, [view[done:]], offset + done)
        if not n:
            raise ValueError(f"{done} of {len(view)} bytes")
        done += n


def decode_into(data: bytes, encoding: str, out: Pixels) -> None:
    """A whole stored jpg, png or webp to its pixels, in place. Raises whatever a decoder raises on damaged bytes."""
    if encoding == "jpg":
        # exact as long as fastdct and fastupsample stay off; strict, so that damage is an error
        shape = simplejpeg.decode_jpeg(data, "RGB", buffer=out).shape
        if shape != out.shape:
            raise ValueError(f"shape {shape}, not {out.shape}")
        return
    with Image.open(io.BytesIO(data), formats=(encoding.upper(),)) as image:
        if (image.mode, image.height, image.width) != ("RGB", *out.shape[:2]):
            raise ValueError(f"{image.mode} of {image.width}x{image.height}, not RGB of {out.shape[1]}x{out.shape[0]}")
        np.copyto(out, np.asarray(image))


def mirror_into(image: Pixels, out: Pixels) -> None:
    """Left and right swapped: torch's loop for this is six times as fast as numpy's."""
    rows = max(1, SERIAL // (3 * image.shape[1]))
    for source, target in zip(torch.from_numpy(image).split(rows), torch.from_numpy(out).split(rows), strict=True):
        target.copy_(torch.flip(source, (1,)))


def check_slices(slices: Sequence[range], batch_size: int) -> None:
    """ValueError unless these are a rank's microbatches in a global batch."""
    if not slices or any(not s or min(s) < 0 or max(s) >= batch_size for s in slices):
        raise ValueError(f"slices={list(slices)}: must be non-empty ranges inside range({batch_size})")


def batches(
    root: Path | Sequence[Path],
    *,
    seed: int,
    mirror: bool,
    nimg: int,
    batch_size: int,
    slices: Sequence[range],
    workers: int,
    weights: Sequence[int] = (),
    shuffle_block: int = 1,
    shuffle_window: int = 1,
) -> Generator[Batch, None, None]:
    """This rank's microbatches, without end, read and decoded by `workers` threads (0: by the caller).

    The global batch that starts at nimg is positions nimg .. nimg + batch_size - 1. One Batch comes for each
    of `slices` (ranges inside range(batch_size)), in their order; then of nimg + batch_size, and so on. Several
    roots are mixed by `weights`. A DataError comes in place of the Batch that it spoils.
    """
    check_slices(slices, batch_size)
    roots = [root] if isinstance(root, Path) else list(root)
    readers = [ShardReader(r) for r in roots]
    share = _Share(readers, seed, mirror, tuple(weights) or (1,), shuffle_block, shuffle_window)
    # The training loop takes an iteration's microbatches at once: one iteration waits while the next is made. Bytes
    # are bounded, as these may be thousands of images; two are enough to keep the threads busy.
    each = max(map(len, slices))
    fit = AHEAD_BYTES // (each * math.prod(readers[0].shape))
    ahead = max(2, min(max(2 * len(slices), -(-2 * workers // each)), fit))
    return in_order(share.jobs(nimg, batch_size, slices, workers), threads=workers, ahead=ahead)


class _Share:
    """What one rank shows of one set or a mix of several, as jobs for the threads."""

    def __init__(
        self,
        readers: Sequence[ShardReader],
        seed: int,
        mirror: bool,
        weights: tuple[int, ...],
        block: int,
        window: int,
    ):
        self.readers, self.seed, self.mirror, self.weights = readers, seed, mirror, weights
        self.block, self.window = block, window
        if len(weights) != len(readers) or not all(map(len, readers)) or len({r.shape for r in readers}) > 1:
            sets = ", ".join(f"{r.root} ({len(r)} images of {r.shape[0]}x{r.shape[1]} px)" for r in readers)
            raise UserError(f"data: {sets} with weights {list(weights)}; give one size, no empty set, a weight each")
        union = {name: i for i, name in enumerate(dict.fromkeys(name for r in readers for name in r.classes))}
        tables = [{i: union[name] for i, name in enumerate(r.classes)} for r in readers]
        self.labels = tables if len(readers) > 1 else None

    def jobs(self, nimg: int, batch_size: int, slices: Sequence[range], workers: int) -> Iterator[Job[Batch]]:
        """A job for each microbatch; its parts are a few images each, so that all threads work on the next one."""
        counts, places = [len(r) for r in self.readers], np.array([i for piece in slices for i in piece])
        ahead = self._read_ahead(nimg, batch_size, frozenset(places.tolist()))
        buffers = _Buffers((max(map(len, slices)), *self.readers[0].shape))
        while True:
            ks = nimg + places
            which, samples = image_at(self.seed, counts, self.weights, ks, self.block, self.window)
            flips = mirrored(self.seed, ks) if self.mirror else np.zeros(len(ks), dtype=bool)
            rows = list(zip(ks.tolist(), which.tolist(), samples.tolist(), flips.tolist(), strict=True))
            hints, first = next(ahead), 0
            for piece in slices:
                yield self._job(rows[first : first + len(piece)], workers, hints, buffers)
                hints, first = [], first + len(piece)
            nimg += batch_size

    def _job(self, rows: Sequence[Row], workers: int, first: Sequence[Task], buffers: "_Buffers") -> Job[Batch]:
        n = len(rows)
        img, label = buffers.take(n), torch.empty(n, dtype=torch.int64)
        pixels, labels, size = img.numpy(), label.numpy(), max(1, n // (4 * workers or 1))
        cuts = [slice(i, i + size) for i in range(0, n, size)]
        parts = [partial(self._fill, rows[cut], pixels[cut], labels[cut]) for cut in cuts]
        return Job(Batch(img.permute(0, 3, 1, 2), label), [*first, *parts])

    def _fill(
        self,
        rows: Sequence[Row],
        pixels: UInt8[np.ndarray, "n h w 3"],
        labels: Int64[np.ndarray, " n"],
    ) -> None:
        """Read and decode the images of `rows` in place."""
        unturned = np.empty(pixels.shape[1:], dtype=np.uint8)
        for i, (k, which, sample, flip) in enumerate(rows):
            try:
                label = self.readers[which].read_into(sample, unturned if flip else pixels[i])
            except DataError as e:
                raise DataError(f"image {k} of the run: {e}") from e
            if flip:
                mirror_into(unturned, pixels[i])
            labels[i] = label if self.labels is None else self.labels[which].get(label, -1)

    def _read_ahead(self, nimg: int, batch_size: int, places: frozenset[int]) -> Iterator[list[Task]]:
        """For each iteration, hints for blocks of the next window: the ranks of a job share them.

        One window is kept ahead; at the start the hints catch up at twice the pace, as a window may be many GB.
        """
        if self.block == 1:
            yield from itertools.repeat([])
        cycle, several = sum(self.weights), len(self.readers) > 1
        starts = [nimg // cycle * weight for weight in self.weights]
        spans = [min(self.block * self.window, len(reader)) for reader in self.readers]
        done = [s - s % len(r) % (self.block * self.window) for s, r in zip(starts, self.readers, strict=True)]
        first = [d + FIRST_AHEAD for d in done]
        while True:
            nimg += batch_size
            hints: list[Task] = []
            for i, reader in enumerate(self.readers):
                position = (nimg // cycle + 1) * self.weights[i]
                until = min(position + spans[i], first[i] + 2 * (position - starts[i]))
                seed = seed_of_set(self.seed, i) if several else self.seed
                blocks = blocks_between(seed, len(reader), done[i], until, self.block)
                mine = [b for b in blocks.tolist() if b[0] % batch_size in places]
                hints += [partial(reader.read_ahead, sample, count) for _, sample, count in mine]
                done[i] = until
            yield hints


class _Buffers:
    """Memory for batches, used again when nobody holds the batch any more: new pages cost as much as a copy."""

    def __init__(self, shape: tuple[int, int, int, int]):
        self._shape, self._pinned = shape, torch.cuda.is_available()
        self._free: deque[np.ndarray] = deque(maxlen=2 + 2 * AHEAD_BYTES // math.prod(shape))

    def take(self, n: int) -> UInt8[Tensor, "n h w 3"]:
        if self._pinned:  # torch keeps pinned memory by itself, and knows when the device has read it
            return torch.empty((n, *self._shape[1:]), dtype=torch.uint8, pin_memory=True)
        try:
            whole = self._free.pop()
        except IndexError:
            whole = np.empty(self._shape, dtype=np.uint8)
        view = whole[:n]  # dies with the last tensor on it
        weakref.finalize(view, self._free.append, whole).atexit = False
        return torch.from_numpy(view)
