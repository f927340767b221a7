"""A prepared data set on disk: `manifest.json`, `shard-00000.tar ...`, `index.bin`.

The manifest states what the shards are (source, crop, filter, size, counts, hashes); its `dataset_id` is a
hash of everything that changes a pixel or a label, so runs record it and refuse to mix. `index.bin` holds one
16-byte little-endian record a sample, in shard order: offset of the image bytes in its shard (u8), their length
(u4), class index or -1 (i4). It is written last, so a folder without it is not finished.
"""

import hashlib
import json
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.config import Config
from pipeline.errors import UserError

MANIFEST, INDEX = "manifest.json", "index.bin"
RECORD = np.dtype([("offset", "<u8"), ("length", "<u4"), ("label", "<i4")])


class Shard(Config):
    """One tar of the set."""

    name: str
    count: int  # images
    bytes: int
    sha256: str


class Manifest(Config):
    """What a prepared folder says of itself. Field order has no meaning; all of it is in the JSON."""

    format: Literal[1] = 1
    source: str  # which native data set it was read from: folder, photos, ...
    size_px: int  # stored side; images are square
    crop: str
    filter: str
    encoding: str  # png | jpg
    classes: tuple[str, ...] = ()  # class table: label i is classes[i]; empty where there are no labels
    count_in: int  # entries the source offered
    count: int  # images in the shards
    rejected: dict[str, int] = {}  # reason -> entries; count_in == count + sum(rejected)
    plan_sha256: str = ""  # over entries, transform and shard size: asked for again, no work
    shards: tuple[Shard, ...]
    index_sha256: str
    versions: dict[str, str] = {}  # libraries that made the pixels and bytes
    dataset_id: str = ""  # 16 hex digits over what changes a pixel or a label; "" = compute

    def identity(self) -> str:
        """The dataset_id that this content must have."""
        content = {
            "size_px": self.size_px,
            "classes": self.classes,
            "shards": [(s.name, s.count, s.sha256) for s in self.shards],
            "index": self.index_sha256,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def load_manifest(root: Path) -> Manifest:
    """Read and check a prepared folder without reading its shards.

    Raises UserError in one line when the folder is missing, empty, unfinished, or when the manifest disagrees
    with itself, with the index or with the size of a shard on disk.
    """
    if not root.is_dir():
        raise UserError(
            f"data={str(root)!r}: no such folder; make one with `graticule prep folder IMAGES --out {root}`"
        )
    path = root / MANIFEST
    if not path.is_file():
        state = "is empty" if not any(root.iterdir()) else f"has no {MANIFEST}"
        raise UserError(f"data={str(root)!r} {state}: not a prepared data set; run (or finish) `graticule prep`")
    m = Manifest.from_json(path.read_text(errors="replace"), where=str(path))
    if m.identity() != m.dataset_id:
        raise UserError(f"{path}: dataset_id={m.dataset_id!r} does not match its content; prepare the set again")
    if m.count != sum(s.count for s in m.shards) or m.count_in != m.count + sum(m.rejected.values()):
        raise UserError(f"{path}: counts do not add up (in {m.count_in}, out {m.count}); prepare the set again")
    index = root / INDEX
    if not index.is_file() or index.stat().st_size != m.count * RECORD.itemsize:
        raise UserError(f"{index}: missing or not {m.count} records; run `graticule prep` again to finish the set")
    if hashlib.sha256(index.read_bytes()).hexdigest() != m.index_sha256:
        raise UserError(f"{index}: does not match {MANIFEST} (stale or damaged); prepare the set again")
    for shard in m.shards:
        file = root / shard.name
        size = file.stat().st_size if file.is_file() else -1
        if size != shard.bytes:
            seen = "is missing" if size < 0 else f"has {size} bytes"
            raise UserError(f"{file}: {seen}, the manifest says {shard.bytes}; copy the shard again or prepare anew")
    return m


def read_index(root: Path) -> np.ndarray:
    """The index as an array of RECORD, one row a sample."""
    return np.fromfile(root / INDEX, dtype=RECORD)
