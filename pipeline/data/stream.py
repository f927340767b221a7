"""A prepared set behind a URL, streamed: for sets that lie in no folder that the ranks can see.

Every shard is read front to back, once a pass over all ranks, by the webdataset library, from streams that are
opened here: the library's own opener starts programs. The shards of every pass are shuffled, then, in a buffer,
the samples of this rank's part of it. Both shuffles are keyed by (seed, nimg), and that is all there is: another
number of ranks or workers, or another nimg, gives another order. Knows nothing of networks.
"""

import contextlib
import io
import itertools
import json
import random
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import Full, Queue
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from pipeline.chance import key, rng
from pipeline.data.manifest import MANIFEST, Manifest, Shard
from pipeline.data.order import mirrored
from pipeline.data.prefetch import HARDWARE_FAULTS
from pipeline.data.reader import AHEAD_BYTES, DataError, Pixels, check_slices, decode_into
from pipeline.data.remote import Closed, Refused, RemoteShard, fetch, located, shown
from pipeline.errors import UserError, WorkError
from pipeline.spec import Batch

SHUFFLE, SHUFFLE_BYTES = 4096, 2**28  # samples in a rank's buffer: as many as both allow
READ_AHEAD, READ_AHEAD_BYTES = 64, 2**24  # samples that each worker keeps ready: likewise
WAIT_SEC = 0.1  # how long a worker takes to notice that it is not needed any more


def load_manifest(url: str) -> Manifest:
    """The manifest of the prepared set at a URL (of the folder, not of a file in it).

    UserError for a URL that is not streamed or where there is no sound manifest; WorkError when nobody answers.
    """
    where = located(url, MANIFEST)
    try:
        text = fetch(where).decode(errors="replace").strip()
    except Refused as e:
        raise UserError(f"data={shown(url)!r}: {MANIFEST} {e}; give the URL of a prepared folder") from e
    except OSError as e:
        raise WorkError(
            f"data={shown(url)!r}: {MANIFEST} cannot be read: {e}; look at server, network and credentials"
        ) from e
    if not text.startswith("{"):
        raise UserError(
            f"data={shown(url)!r}: {MANIFEST} there is no JSON (it begins {text[:20]!r}; a page to log in?); "
            "give the URL of a prepared folder"
        )
    m = Manifest.from_json(text, where=shown(where))
    if m.identity() != m.dataset_id:
        raise UserError(f"{shown(where)}: dataset_id={m.dataset_id!r} does not match its content; upload the set again")
    if not m.count or m.count != sum(s.count for s in m.shards):
        raise UserError(f"{shown(where)}: count={m.count} is not what its shards hold; upload the set again")
    return m


def batches(
    url: str,
    *,
    seed: int,
    mirror: bool,
    nimg: int,
    batch_size: int,
    slices: Sequence[range],
    rank: int,
    world: int,
    workers: int,
) -> Generator[Batch, None, None]:
    """This rank's microbatches, without end; closing it ends its threads.

    One Batch comes for each of `slices` (ranges inside range(batch_size)), in their order, again and again.
    Every image comes once in a pass over all ranks. Which position it has is not promised, and a start at
    another nimg begins a new pass in another order. `workers` threads read a shard each, and as many decode;
    0: all of it in the calling thread. A shard that is missing, short or damaged, or an image that cannot be
    decoded, is a DataError that names URL and key.
    """
    check_slices(slices, batch_size)
    import webdataset  # noqa: F401 - takes a second; its modules import each other, which two threads must not see

    stream = _Stream(url, load_manifest(url), seed, mirror, nimg, rank, world)
    positions = (
        np.arange(start + s.start, start + s.stop, s.step)
        for start in itertools.count(nimg, batch_size)
        for s in slices
    )
    # Two iterations are decoded ahead, as the training loop takes all of an iteration at once.
    fit = AHEAD_BYTES // (max(map(len, slices)) * stream.manifest.planes * stream.manifest.size_px**2 * 3)
    return stream.batches(positions, workers, max(1, min(max(workers, 2 * len(slices)), fit)))


@dataclass(frozen=True)
class _Sample:
    """One image as it is stored, and where it came from: URL and key."""

    origin: str
    data: bytes
    label: int


Numbered = tuple[int, _Sample]  # the pass that a sample belongs to


@dataclass(frozen=True)
class _Stream:
    """One rank's images, from shards to batches."""

    url: str
    manifest: Manifest
    seed: int
    mirror: bool
    nimg: int
    rank: int
    world: int
    stop: threading.Event = field(default_factory=threading.Event)

    def batches(
        self, positions: Iterator[Int64[np.ndarray, " n"]], workers: int, ahead: int
    ) -> Generator[Batch, None, None]:
        """One batch for each array of positions; `ahead` of them are in work before they are asked for."""
        turns = [itertools.islice(self._turns(), w, None, workers) for w in range(workers)] or [self._turns()]
        feeds = [self._samples(t) for t in turns]
        threads = [_Ahead(feed, self._fitting(READ_AHEAD, READ_AHEAD_BYTES), self.stop) for feed in feeds[:workers]]
        pool = ThreadPoolExecutor(max(1, workers), "decode", _leave_signals)
        samples = self._mixed(threads or feeds)
        pending: deque[Future[Batch]] = deque()
        try:
            for k in positions:
                taken = list(itertools.islice(samples, len(k)))
                if not workers:
                    yield self._batch(taken, k)
                    continue
                pending.append(pool.submit(self._batch, taken, k))
                if len(pending) > ahead:
                    yield pending.popleft().result()
        finally:
            self.stop.set()
            pool.shutdown(cancel_futures=True)
            for thread in threads:
                thread.join()
            for feed in feeds if not threads else ():
                feed.close()

    def _turns(self) -> Iterator[tuple[int, Shard]]:
        """This rank's shards and the numbers of their passes.

        The ranks take turns over the shuffled shards of all passes, laid end to end. So none starves where
        there are fewer shards than ranks, and none runs ahead of the others where they do not divide evenly.
        """
        shards, shuffled, drawn = self.manifest.shards, np.empty(0, dtype=np.int64), -1
        for turn in itertools.count(self.rank, self.world):
            number, i = divmod(turn, len(shards))
            if number != drawn:
                shuffled, drawn = rng(self.seed, "stream", self.nimg, number).permutation(len(shards)), number
            yield number, shards[shuffled[i]]

    def _samples(self, turns: Iterator[tuple[int, Shard]]) -> Generator[Numbered, None, None]:
        for number, shard in turns:
            for sample in self._shard(shard):
                yield number, sample

    def _shard(self, shard: Shard) -> Iterator[_Sample]:
        """The samples of one shard; DataError unless it is what the manifest says, to the last byte."""
        from webdataset.tariterators import group_by_keys, tar_file_expander

        url = located(self.url, shard.name)
        raw = RemoteShard(url, shard, self.stop)
        count, near = 0, "its start"
        with io.BufferedReader(raw, 2**18) as stream:
            try:
                if shard.count and stream.peek(512)[257:262] != b"ustar":  # webdataset would unpack a bomb, too
                    raise ValueError("no tar")
                for fields in group_by_keys(tar_file_expander([{"url": url, "stream": stream}])):
                    near = f"key {fields['__key__']}"
                    yield self._sample(url, fields)
                    count += 1
                raw.finish()
            except Closed:
                raise
            except Exception as e:  # webdataset adds to the words of those that pass through it
                why = str(e.args[0]).partition(" @ ")[0] if e.args else type(e).__name__
                what = raw.problem or f"not as it was written, near {near}: {why}"
                raise DataError(f"{shown(url)}: {what}; upload the shard again, or mend the server") from e
        if count != shard.count:
            raise DataError(
                f"{shown(url)}: holds {count} images, the manifest says {shard.count}; prepare the set anew"
            )

    def _sample(self, url: str, fields: dict[str, Any]) -> _Sample:
        label, suffix = json.loads(fields["json"])["label"], self.manifest.encoding.replace("raw", "npy")
        if not isinstance(label, int) or not -1 <= label < max(1, len(self.manifest.classes)):
            raise ValueError(f"label {label!r} of {len(self.manifest.classes)} classes")
        return _Sample(f"{shown(url)}: key {fields['__key__']}", fields[suffix], label)

    def _mixed(self, feeds: Sequence[Iterator[Numbered]]) -> Iterator[_Sample]:
        """One sample of each feed in turn, shuffled in a buffer that runs empty at the end of each pass."""
        from webdataset.filters import shuffle

        size = self._fitting(SHUFFLE, SHUFFLE_BYTES)
        heads = [next(feed) for feed in feeds]

        def of_pass(number: int) -> Iterator[_Sample]:
            while live := [i for i, (p, _) in enumerate(heads) if p == number]:
                for i in live:
                    yield heads[i][1]
                    heads[i] = next(feeds[i])

        while True:
            number = min(p for p, _ in heads)
            draws = random.Random(key(self.seed, "stream", self.nimg, number, self.rank))
            yield from shuffle(size, initial=size // 4, rng=draws)(of_pass(number))

    def _fitting(self, count: int, size: int) -> int:
        """Samples as they are stored: `count` of them, or fewer that fit in `size` bytes."""
        return max(1, min(count, size * self.manifest.count // sum(s.bytes for s in self.manifest.shards)))

    def _batch(self, samples: list[_Sample], positions: Int64[np.ndarray, " n"]) -> Batch:
        side, high = self.manifest.size_px, self.manifest.planes * self.manifest.size_px
        img = torch.empty((len(samples), high, side, 3), dtype=torch.uint8, pin_memory=torch.cuda.is_available())
        rows = img.numpy()
        for row, sample in zip(rows, samples, strict=True):
            try:
                _decode(sample.data, self.manifest.encoding, row)
            except Exception as e:  # decoders raise whatever they like on damaged bytes
                raise DataError(f"{sample.origin} cannot be decoded: {e}; upload the shard again") from e
        if self.mirror:
            flipped = mirrored(self.seed, positions)
            rows[flipped] = rows[flipped, :, ::-1]
        return Batch(img.permute(0, 3, 1, 2), torch.tensor([s.label for s in samples], dtype=torch.int64))


class _Ahead:
    """An endless iterator, run ahead by a thread; its items, then its error, come in their order."""

    def __init__(self, items: Generator[Numbered, None, None], size: int, stop: threading.Event):
        self._items, self._stop = items, stop
        self._ready: Queue[Numbered | Exception] = Queue(size)
        self._thread = threading.Thread(target=self._run, name="stream", daemon=True)  # never waited for at exit
        self._thread.start()

    def __iter__(self) -> "_Ahead":
        return self

    def __next__(self) -> Numbered:
        item = self._ready.get()
        if isinstance(item, Exception):
            raise item
        return item

    def join(self) -> None:
        """Wait for the thread, but not for a server that is silent: that thread ends when its time is up."""
        self._thread.join(10 * WAIT_SEC)

    def _run(self) -> None:
        _leave_signals()
        try:
            with contextlib.closing(self._items):
                for item in self._items:
                    if not self._put(item):
                        return
        except Exception as e:
            self._put(e)

    def _put(self, item: Numbered | Exception) -> bool:
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=WAIT_SEC)
                return True
            except Full:
                continue
        return False


def _leave_signals() -> None:
    """To the main thread, which may be waiting for this one."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - HARDWARE_FAULTS)


def _decode(data: bytes, encoding: str, out: Pixels) -> None:
    if encoding != "raw":
        decode_into(data, encoding, out)
        return
    image = np.load(io.BytesIO(data), allow_pickle=False)
    if (image.shape, image.dtype) != (out.shape, out.dtype):
        raise ValueError(f"{image.dtype} of shape {image.shape}")
    np.copyto(out, image)
