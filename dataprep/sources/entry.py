"""What a source of images is: a name, a class table, a list of entries, and a way to open one entry.

A new data set is one file beside this one and one line in SOURCES. A source is sent to worker processes, so
it must pickle small; it knows nothing of crops, shards or manifests.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image


@dataclass(frozen=True, slots=True)
class Entry:
    """One image that a source offers."""

    name: str  # what the user calls it: relative path, LMDB key, ...; unique within the source
    label: int  # class index, -1 where the source has no classes
    where: Any = None  # what the source needs to open it; pickles


class Source(Protocol):
    """A native data set. The order of `entries` follows from names, never from what the disk returns."""

    name: str

    @property
    def classes(self) -> tuple[str, ...]:
        """Class table, label i is classes[i]; empty without classes."""
        ...

    def entries(self, size_px: int) -> Sequence[Entry]:
        """All entries, in order. `size_px` is the side to be stored; sources that cut windows need it."""
        ...

    def read(self, entry: Entry) -> Image.Image:
        """The decoded image; raises dataprep.transform.Rejected when there is none to be had."""
        ...
