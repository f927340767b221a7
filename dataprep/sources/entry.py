"""What a source of images is: a name, a class table, a list of entries, and a way to open one entry.

A new data set is one file beside this one and one line in SOURCES. A source is sent to worker processes, so
it must pickle small; it knows nothing of shards or manifests.
"""

import hashlib
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, overload

import numpy as np
from PIL import Image

from dataprep.rejected import Reason


class Refusal(NamedTuple):
    """Known from the listing already: this entry will be rejected."""

    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One image that a source offers."""

    key: bytes  # what the user calls it: relative path, LMDB key, ...; unique within the source
    label: int = -1  # class index, -1 where the source has no classes
    at: int = 0  # a number that goes with the key: bytes of the file, CRC in an archive, offset of a record
    refused: Refusal | None = None

    @property
    def name(self) -> str:
        """The key as JSON can hold it, also where it is no UTF-8."""
        return self.key.decode("utf-8", "backslashreplace")


class Entries(Sequence[Entry]):
    """Millions of entries in three flat arrays; slices share them and pickle alone."""

    def __init__(self, entries: Iterable[Entry] = ()):
        keys, ends, labels, at = bytearray(), array("q"), array("i"), array("q")
        refused: dict[int, Refusal] = {}
        for i, entry in enumerate(entries):
            keys += entry.key
            ends.append(len(keys))
            labels.append(entry.label)
            at.append(entry.at)
            if entry.refused:
                refused[i] = entry.refused
        self._set(bytes(keys), np.array(ends, np.int64), np.array(labels, np.int32), np.array(at, np.int64), refused)

    def _set(
        self, keys: bytes, ends: np.ndarray, labels: np.ndarray, at: np.ndarray, refused: Mapping[int, Refusal]
    ) -> None:
        self._keys, self._ends, self._labels, self._at, self._refused = keys, ends, labels, at, refused
        self._refused_at = sorted(refused)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, i: int) -> Entry: ...
    @overload
    def __getitem__(self, i: slice) -> "Entries": ...
    def __getitem__(self, i: int | slice) -> "Entry | Entries":
        if isinstance(i, slice):
            return self._part(*i.indices(len(self)))
        if not -len(self) <= i < len(self):
            raise IndexError(f"entry {i} of {len(self)}")
        i %= len(self)
        key = self._keys[self._start(i) : self._ends[i]]
        return Entry(key, int(self._labels[i]), int(self._at[i]), self._refused.get(i))

    def __iter__(self) -> Iterator[Entry]:
        return (self[i] for i in range(len(self)))

    def _start(self, i: int) -> int:
        return int(self._ends[i - 1]) if i else 0

    def _part(self, start: int, stop: int, step: int) -> "Entries":
        if step != 1:
            return Entries(self[i] for i in range(start, stop, step))
        out, stop = Entries(), max(start, stop)
        low = self._start(start)
        high = int(self._ends[stop - 1]) if stop > start else low
        known = self._refused_at[bisect_left(self._refused_at, start) : bisect_left(self._refused_at, stop)]
        refused = {i - start: self._refused[i] for i in known}
        out._set(
            self._keys[low:high], self._ends[start:stop] - low, self._labels[start:stop], self._at[start:stop], refused
        )
        return out

    def digest(self) -> bytes:
        """sha256 over all that an entry is; equal lists, equal digests."""
        out = hashlib.sha256(len(self).to_bytes(8, "little"))
        for part in (self._keys, self._ends.tobytes(), self._labels.tobytes(), self._at.tobytes()):
            out.update(part)
        out.update(repr(sorted(self._refused.items())).encode())
        return out.digest()


class Source(Protocol):
    """A native data set. The order of `entries` follows from names, never from what the disk returns.

    Constructors take (path: Path | None, split: str | None) and raise UserError where PATH is not what they read
    or where they have no such split.
    """

    name: str
    crop: str  # the crop that the field uses for this data set, taken when the user names none

    @property
    def classes(self) -> tuple[str, ...]:
        """Class table, label i is classes[i]; empty without classes."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should be told of this copy (a list whose MD5 is not the published one, ...); one line each."""
        ...

    def entries(self, size_px: int) -> Entries:
        """All entries, in order. `size_px` is the side to be stored; sources with several levels choose by it."""
        ...

    def read(self, entry: Entry) -> Image.Image | tuple[Image.Image, ...]:
        """The decoded, upright image; raises Rejected when there is none to be had.

        A source with an attribute `planes` gives so many images of one size: a picture, and RGB that is coded.
        """
        ...

    def about(self, entry: Entry) -> dict[str, Any]:
        """More of this image for its .json in the shard (signer, attributes, ...); mostly {}."""
        ...


def planes_of(source: Source) -> int:
    """How many images an entry of this source is."""
    return getattr(source, "planes", 1)
