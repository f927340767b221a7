"""A prepared data set on disk: `manifest.json`, `shard-00000.tar ...`, `index.bin`.

The manifest states what the shards are (source, crop, filter, size, counts, hashes); its `dataset_id` is a
hash of everything that changes a pixel or a label, so runs record it and refuse to mix. `index.bin` holds one
16-byte little-endian record a sample, in shard order: offset of the image bytes in its shard (u8), their length
(u4), class index or -1 (i4). It is written last, so a folder without it is not finished.
"""

import hashlib
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, field_validator

from pipeline.config import Config
from pipeline.errors import UserError

MANIFEST, INDEX = "manifest.json", "index.bin"
STAT_THREADS = 16
RECORD = np.dtype([("offset", "<u8"), ("length", "<u4"), ("label", "<i4")])


class Shard(Config):
    """One tar of the set."""

    name: str = Field(pattern=r"^shard-[0-9]{5,}\.tar$")  # never a path
    count: int = Field(ge=0)  # images
    bytes: int = Field(ge=0)
    sha256: str


class Manifest(Config):
    """What a prepared folder says of itself. Field order has no meaning; all of it is in the JSON."""

    format: Literal[1] = 1
    source: str  # which native data set it was read from: folder, photos, ...
    split: str = ""  # which part of it; empty: all
    size_px: int = Field(ge=1, le=16384)  # stored side; images are square
    crop: str
    filter: str
    icc: str = "drop"  # embedded colour profiles: converted to srgb, or dropped
    encoding: Literal["png", "jpg", "webp", "raw"]  # raw: pixels as .npy, of which the index names the pixels
    quality: int | None = None  # of a lossy encoding
    planes: int = Field(default=1, ge=1, le=2)  # squares of a stored sample, top to bottom; 2: photograph, coded depth
    classes: tuple[str, ...] = ()  # class table: label i is classes[i]; empty where there are no labels
    count_in: int = Field(ge=0)  # entries the source offered
    count: int = Field(ge=0)  # images in the shards
    rejected: dict[str, int] = {}  # reason -> entries; count_in == count + sum(rejected)
    plan_sha256: str = ""  # over entries, transform and shard size: asked for again, no work
    shards: tuple[Shard, ...]
    index_sha256: str
    versions: dict[str, str] = {}  # libraries that made the pixels and bytes
    dataset_id: str = ""  # 16 hex digits over what changes a pixel or a label; "" = compute

    @field_validator("shards")
    @classmethod
    def _distinct(cls, value: tuple[Shard, ...]) -> tuple[Shard, ...]:
        if len({s.name for s in value}) < len(value):
            raise ValueError("two shards of one name; prepare the set again")
        return value

    def identity(self) -> str:
        """The dataset_id that this content must have."""
        content = {
            "size_px": self.size_px,
            "classes": self.classes,
            "shards": [(s.name, s.count, s.sha256) for s in self.shards],
            "index": self.index_sha256,
        }
        if self.planes != 1:  # sets of before have none
            content["planes"] = self.planes
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def load_manifest(root: Path, *, full: bool = True) -> Manifest:
    """Read and check a prepared folder without reading its shards.

    With full=False neither the index is read nor any shard looked at: for the ranks of a job whose rank 0 did.
    Raises UserError in one line when the folder is missing, empty, unfinished, or when the manifest disagrees
    with itself, with the index or with the size of a shard on disk.
    """
    try:
        if not root.is_dir():
            mend = "is a file; give the folder that `graticule prep` made"
            if not root.exists():
                mend = f"no such folder; make one with `graticule prep folder IMAGES --out {root}`"
            raise UserError(f"data={str(root)!r}: {mend}")
        path = root / MANIFEST
        if not path.is_file():
            state = "is empty" if not any(root.iterdir()) else f"has no {MANIFEST}"
            raise UserError(f"data={str(root)!r} {state}: not a prepared data set; run (or finish) `graticule prep`")
        m = Manifest.from_json(path.read_text(encoding="utf-8", errors="replace"), where=str(path))
        _check(m, root, full)
    except OSError as e:
        file = e.filename or root
        raise UserError(
            f"data={str(root)!r}: {file} cannot be read ({e.strerror}); mend its permissions or copy it again"
        ) from e
    return m


def _check(m: Manifest, root: Path, full: bool) -> None:
    if m.identity() != m.dataset_id:
        raise UserError(
            f"{root / MANIFEST}: dataset_id={m.dataset_id!r} does not match its content; prepare the set again"
        )
    if m.count != sum(s.count for s in m.shards) or m.count_in != m.count + sum(m.rejected.values()):
        raise UserError(
            f"{root / MANIFEST}: counts do not add up (in {m.count_in}, out {m.count}); prepare the set again"
        )
    index = root / INDEX
    if _size(index) != m.count * RECORD.itemsize:
        raise UserError(f"{index}: missing or not {m.count} records; run `graticule prep` again to finish the set")
    if not full:
        return
    with open(index, "rb") as f:
        if hashlib.file_digest(f, "sha256").hexdigest() != m.index_sha256:
            raise UserError(f"{index}: does not match {MANIFEST} (stale or damaged); prepare the set again")
    with ThreadPoolExecutor(STAT_THREADS) as pool:  # a look-up on a cluster's file system takes its time
        sizes = list(pool.map(lambda shard: _size(root / shard.name), m.shards))
    for shard, size in zip(m.shards, sizes, strict=True):
        if size != shard.bytes:
            seen = "is missing" if size < 0 else f"has {size} bytes"
            raise UserError(
                f"{root / shard.name}: {seen}, the manifest says {shard.bytes}; copy the shard again or prepare anew"
            )


def _size(file: Path) -> int:
    """Bytes of a file; -1: there is no such file."""
    try:
        found = os.stat(file)
    except (FileNotFoundError, NotADirectoryError):
        return -1
    return found.st_size if stat.S_ISREG(found.st_mode) else -1


def read_index(root: Path) -> np.ndarray:
    """The index as a read-only array of RECORD, one row a sample; mapped, so not copied into memory."""
    path = root / INDEX
    if not path.stat().st_size:
        return np.empty(0, RECORD)
    return np.memmap(path, dtype=RECORD, mode="r").view(np.ndarray)
