"""An FFCV copy of a prepared folder, inside it: `images.beton`, the same samples, order and pixels.

Pixels are stored as they are; FFCV's jpg mode would encode them anew, which makes another data set. The file is
laid out here and not by FFCV's writer, which waits for ever for a worker that failed; so it has the same bytes for
any number of workers. `images.beton.json`, written last, says which set it is a copy of. FFCV is an extra and
imported when used, which takes seconds. Knows nothing of networks, or of other ranks.
"""

import contextlib
import fcntl
import itertools
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8

from pipeline.config import Config, write_atomic
from pipeline.data.manifest import Manifest, load_manifest
from pipeline.data.order import Positions, mirrored, order
from pipeline.data.reader import DataError, ShardReader, check_slices, mirror_into
from pipeline.errors import UserError, WorkError
from pipeline.spec import Batch

BETON, MARK = "images.beton", "images.beton.json"
PAGE_BYTES, PAGE_IMAGES = 2**23, 16  # FFCV's unit of reading holds at least these; no image crosses its bounds
TOGETHER = 64  # images that one thread copies at a time
UNIT, UNIT_BYTES = 256, 2**24  # images that FFCV's threads read together, as many as both allow; five units wait
SPAN = 2**16  # images that FFCV is told of at a time, or one pass where that is less
POLL_SEC = 0.001


class Copy(Config):
    """images.beton.json."""

    dataset_id: str
    bytes: int


def write_beton(root: Path, *, workers: int, progress: Callable[[int, int], None] | None = None) -> Path:
    """Make the FFCV copy of a prepared folder with `workers` threads, unless it is there; returns its path.

    `progress` is told images done and images in all. UserError without ffcv, a sound set, or leave to write;
    WorkError when the disk is full or a shard is damaged. Nothing half-written bears the name.
    """
    if workers < 1:
        raise UserError(f"workers={workers}: must be 1 or more")
    manifest, path = load_manifest(root), root / BETON
    if manifest.planes > 1:
        raise UserError(f"data={str(root)!r} holds pairs, of which no FFCV copy is made; read it with exec.reader=tar")
    if _problem(root, manifest) is None:
        return path
    reader, layout = ShardReader(root), _Layout(manifest.size_px, manifest.count, _ffcv())
    temp = root / f".{BETON}.tmp"
    try:
        with _alone(root), open(temp, "wb") as file:
            (root / MARK).unlink(missing_ok=True)
            labels = _copy(reader, layout, file.fileno(), workers, progress or (lambda done, total: None))
            layout.write_tables(file.fileno(), labels)
            os.fsync(file.fileno())
            os.replace(temp, path)
            write_atomic(root / MARK, Copy(dataset_id=manifest.dataset_id, bytes=layout.size).to_json())
    except PermissionError as e:
        raise UserError(f"data={str(root)!r}: cannot write there ({e.strerror}); the copy lies in the folder") from e
    except OSError as e:
        raise WorkError(f"{path}: cannot be written ({e.strerror}); it takes {layout.size / 2**30:.1f} GiB") from e
    finally:
        with contextlib.suppress(OSError):
            temp.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Keep another `graticule beton`, and `graticule prep`, away from the folder."""
    lock = os.open(root, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: one at a time is then up to the user
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as e:
                raise UserError(f"data={str(root)!r}: something else is writing there; let it finish") from e
        yield
    finally:
        os.close(lock)


def _copy(
    reader: ShardReader, layout: "_Layout", fd: int, workers: int, progress: Callable[[int, int], None]
) -> Int64[np.ndarray, " n"]:
    """Write all pixels; returns the labels."""
    labels = np.empty(len(reader), dtype=np.int64)

    def some(first: int) -> int:
        pixels = np.empty((reader.size_px, reader.size_px, 3), dtype=np.uint8)
        last = min(first + TOGETHER, len(reader))
        for i in range(first, last):
            labels[i] = reader.read_into(i, pixels)
            _write(fd, pixels.data.cast("B"), int(layout.addresses[i]))
        return last

    pool = ThreadPoolExecutor(workers)
    try:
        for done in pool.map(some, range(0, len(reader), TOGETHER)):
            progress(done, len(reader))
    finally:
        pool.shutdown(cancel_futures=True)
    return labels


def _write(fd: int, data: memoryview, offset: int) -> None:
    while data:
        n = os.pwrite(fd, data, offset)
        data, offset = data[n:], offset + n


class _Layout:
    """Where what lies in a beton: header, descriptions of the fields, rows of the samples, pages, table of pages."""

    def __init__(self, size_px: int, count: int, ffcv: Any):
        self.size_px, self.count, self.ffcv = size_px, count, ffcv
        self.fields = {"image": ffcv.RGBImageField(write_mode="raw"), "label": ffcv.IntField()}
        self.row = ffcv.types.get_metadata_type(list(self.fields.values()))
        self.image = 3 * size_px**2
        self.page = 1 << (max(PAGE_BYTES, PAGE_IMAGES * self.image) - 1).bit_length()
        tables = ffcv.types.HeaderType.itemsize + len(self.fields) * ffcv.types.FieldDescType.itemsize
        self.first = -(-(tables + count * self.row.itemsize) // self.page) * self.page
        self.end = self.first + -(-count // (self.page // self.image)) * self.page
        page, place = np.divmod(np.arange(count), self.page // self.image)
        self.addresses = self.first + page * self.page + place * self.image  # at which each sample's pixels begin
        self.size = self.end + count * ffcv.types.ALLOC_TABLE_TYPE.itemsize

    def write_tables(self, fd: int, labels: Int64[np.ndarray, " n"]) -> None:
        """All but the pixels."""
        types = self.ffcv.types
        header: Any = np.zeros(1, dtype=types.HeaderType)
        header["version"], header["num_fields"] = types.CURRENT_VERSION, len(self.fields)
        header["page_size"], header["num_samples"], header["alloc_table_ptr"] = self.page, self.count, self.end
        described: Any = np.zeros(len(self.fields), dtype=types.FieldDescType)
        ids = {kind: number for number, kind in types.TYPE_ID_HANDLER.items()}
        for row, (name, kind) in zip(described, self.fields.items(), strict=True):
            row["type_id"], row["arguments"] = ids[type(kind)], kind.to_binary()[0]
            row["name"][: len(name)] = np.frombuffer(name.encode(), dtype=np.uint8)
        rows: Any = np.zeros(self.count, dtype=self.row)
        image, label = rows.dtype.names
        rows[image]["mode"] = self.ffcv.RAW
        rows[image]["width"] = rows[image]["height"] = self.size_px
        rows[image]["data_ptr"] = self.addresses
        rows[label] = labels
        pages: Any = np.zeros(self.count, dtype=types.ALLOC_TABLE_TYPE)
        pages["sample_id"], pages["ptr"], pages["size"] = np.arange(self.count), self.addresses, self.image
        _write(fd, memoryview(header.tobytes() + described.tobytes() + rows.tobytes()), 0)
        _write(fd, memoryview(pages.tobytes()), self.end)


def batches(
    root: Path,
    *,
    seed: int,
    mirror: bool,
    nimg: int,
    batch_size: int,
    slices: Sequence[range],
    workers: int,
    shuffle_block: int = 1,
    shuffle_window: int = 1,
) -> Generator[Batch, None, None]:
    """What `reader.batches` gives for one root, read by FFCV: this rank's microbatches, without end.

    `workers` of FFCV's threads read (at least one, and no more than there are cores); the images are copied out
    of its buffers, and mirrored, in the calling thread. FFCV itself keeps some 600 bytes a sample of the set in
    memory. UserError without ffcv or a copy of this very set.
    """
    check_slices(slices, batch_size)
    manifest = load_manifest(root, full=False)
    check_copy(root, manifest)
    places = np.array([i for piece in slices for i in piece], dtype=np.int64)

    def positions(first: int, count: int) -> Positions:
        """Global positions of the images first .. first + count - 1 of this rank, counted from this start."""
        rounds, place = np.divmod(np.arange(first, first + count), len(places))
        return nimg + rounds * batch_size + places[place]

    def samples(first: int, count: int) -> Positions:
        return order(seed, manifest.count, positions(first, count), shuffle_block, shuffle_window)

    def flips(first: int, count: int) -> list[bool]:
        return mirrored(seed, positions(first, count)).tolist() if mirror else [False] * count

    images = _images(_ffcv(), root / BETON, manifest.size_px, manifest.count, samples, workers)
    return _cut(images, [len(piece) for piece in slices], manifest.size_px, flips)


Pair = tuple[UInt8[np.ndarray, "h w 3"], int]


def _cut(
    images: Generator[Pair, None, None], sizes: list[int], size_px: int, flips: Callable[[int, int], list[bool]]
) -> Generator[Batch, None, None]:
    with contextlib.closing(images):
        done = 0
        for n in itertools.cycle(sizes):
            img = torch.empty((n, size_px, size_px, 3), dtype=torch.uint8, pin_memory=torch.cuda.is_available())
            label = torch.empty(n, dtype=torch.int64)
            pixels, labels = img.numpy(), label.numpy()
            for i, flip in enumerate(flips(done, n)):
                image, labels[i] = next(images)
                if flip:
                    mirror_into(image, pixels[i])
                else:
                    np.copyto(pixels[i], image)
            done += n
            yield Batch(img.permute(0, 3, 1, 2), label)


def _images(
    ffcv: Any, path: Path, size_px: int, count: int, samples: Callable[[int, int], Positions], workers: int
) -> Generator[Pair, None, None]:
    """Image and label of samples(0, 1), (1, 1), (2, 1) ... An image is valid until the next is asked for."""
    unit = max(1, min(UNIT, UNIT_BYTES // (3 * size_px**2)))
    span = max(1, min(SPAN, count) // unit) * unit

    class Order(ffcv.TraversalOrder):
        def __init__(self) -> None:
            pass

        def __call__(self, loader: Any) -> "Order":  # FFCV takes a ready-made order for its class
            return self

        def sample_order(self, epoch: int) -> np.ndarray:
            return samples(epoch * span, span).astype(np.uint64)

    loader = ffcv.Loader(
        str(path),
        batch_size=unit,
        num_workers=min(max(1, workers), ffcv.threads),
        os_cache=True,
        order=Order(),
        seed=0,  # not used; without it FFCV draws from the global generator
        pipelines={"image": [ffcv.SimpleRGBImageDecoder()], "label": [ffcv.IntDecoder()]},
    )
    while True:
        units = iter(loader)
        try:
            for _ in range(span // unit):
                while units.output_queue.empty():
                    if not units.is_alive():
                        raise DataError(f"{path}: FFCV's reader ended; what it printed says why")
                    time.sleep(POLL_SEC)
                images, labels = next(units)
                yield from zip(images, labels[:, 0].tolist(), strict=True)
        finally:
            units.iter_ixes = iter(())  # its thread would otherwise go on, or wait for room, for ever
            units.close()
            while units.is_alive():
                with contextlib.suppress(Empty):
                    units.output_queue.get(timeout=POLL_SEC)


def check_copy(root: Path, manifest: Manifest) -> None:
    """UserError where there is no copy of this very set. Needs no FFCV."""
    if problem := _problem(root, manifest):
        raise UserError(f"{root / BETON}: {problem}; make it with `graticule beton {root}`")


def _problem(root: Path, manifest: Manifest) -> str | None:
    path = root / BETON
    if not path.is_file() or not (root / MARK).is_file():
        return "is not there, or not finished"
    mark = Copy.from_json((root / MARK).read_text(errors="replace"), where=str(root / MARK))
    if mark.dataset_id != manifest.dataset_id:
        return f"is a copy of data set {mark.dataset_id}, not of {manifest.dataset_id}"
    if path.stat().st_size != mark.bytes:
        return f"has {path.stat().st_size} bytes, not {mark.bytes}"
    return None


def _ffcv() -> Any:
    """What is used of FFCV. UserError without it."""
    threads = torch.get_num_threads()
    try:
        from ffcv import fields, loader, pipeline, types  # pyright: ignore[reportMissingImports]
        from numba import config  # pyright: ignore
    except (ImportError, OSError) as e:
        raise UserError(
            f"ffcv cannot be used ({e}); install it with: pip install 'graticule[ffcv]', which needs pkg-config, a C++ "
            "compiler and the packages libopencv-dev and libturbojpeg0-dev"
        ) from e
    torch.set_num_threads(threads)
    # FFCV sets the number of torch's threads along with numba's. That is training's own, and changes its bits.
    pipeline.compiler.ch = SimpleNamespace(set_num_threads=lambda n: None)
    return SimpleNamespace(
        types=types,
        IntField=fields.IntField,
        IntDecoder=fields.basics.IntDecoder,
        RGBImageField=fields.RGBImageField,
        SimpleRGBImageDecoder=fields.rgb_image.SimpleRGBImageDecoder,
        RAW=fields.rgb_image.IMAGE_MODES["raw"],
        Loader=loader.Loader,
        TraversalOrder=loader.loader.TraversalOrder,
        threads=config.NUMBA_NUM_THREADS,  # pyright: ignore[reportAttributeAccessIssue]
    )
