"""Every byte of a prepared folder against its manifest and index. Reads all shards; changes nothing."""

import hashlib
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.data.manifest import MANIFEST, Manifest, Shard, load_manifest, read_index
from pipeline.errors import UserError


def verify(root: Path, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """What is wrong with the folder, one line each; an empty list is a sound set.

    `progress` is told bytes checked and bytes in all. UserError if there is no prepared set at all.
    """
    problems: list[str] = []
    try:
        manifest = load_manifest(root)
    except UserError as e:
        if not (root / MANIFEST).is_file():
            raise
        problems.append(str(e))
        try:
            manifest = Manifest.from_json((root / MANIFEST).read_text(errors="replace"))
        except UserError:
            return problems
    index = read_index(root) if not problems else None
    total, checked, first = sum(s.bytes for s in manifest.shards), 0, 0
    for shard in manifest.shards:
        rows = None if index is None else index[first : first + shard.count]
        problem = _shard_problem(root / shard.name, shard, rows, manifest.encoding)
        if problem and not any(p.startswith(f"{root / shard.name}:") for p in problems):
            problems.append(f"{root / shard.name}: {problem}")
        checked, first = checked + shard.bytes, first + shard.count
        if progress:
            progress(checked, total)
    known = {s.name for s in manifest.shards}
    problems += [f"{f}: not in {MANIFEST}; remove it" for f in sorted(root.glob("*.tar")) if f.name not in known]
    return problems


def _shard_problem(file: Path, shard: Shard, rows: np.ndarray | None, encoding: str) -> str | None:
    if not file.is_file():
        return "is missing; copy it again or prepare anew"
    if file.stat().st_size != shard.bytes:
        return f"has {file.stat().st_size} bytes, the manifest says {shard.bytes}; copy it again or prepare anew"
    with open(file, "rb") as f:
        if hashlib.file_digest(f, "sha256").hexdigest() != shard.sha256:
            return "its sha256 is not the manifest's (damaged or another shard); copy it again or prepare anew"
    return None if rows is None else _row_problem(file, rows, encoding)


def _row_problem(file: Path, rows: np.ndarray, encoding: str) -> str | None:
    """The bytes are those that were written: does the index describe them?"""
    images, labels = [], []
    with tarfile.open(file) as tar:
        for member in tar:
            if member.name.endswith(f".{encoding}"):
                images.append((member.offset_data, member.size))
            elif member.name.endswith(".json"):
                labels.append(json.loads(tar.extractfile(member).read())["label"])  # type: ignore[union-attr]
    if len(images) != len(rows) or len(labels) != len(rows):
        return f"holds {len(images)} images and {len(labels)} labels, the index says {len(rows)}; prepare anew"
    for row, (offset, length), label in zip(rows, images, labels, strict=True):
        if (row["offset"], row["length"], row["label"]) != (offset, length, label):
            return f"index row {row.item()} does not point at the image at byte {offset}; prepare anew"
    return None
