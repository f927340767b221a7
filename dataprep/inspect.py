"""What a prepared folder holds: counts, classes, bytes, what was left out, and a contact sheet of some images.

All numbers come from manifest, index and rejected.jsonl; of the shards only the sampled images are read. Whether
the shards are sound is for verify to say.
"""

import io
import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from dataprep.verify import decoded
from dataprep.writer import REJECTED
from pipeline.data.manifest import Manifest, load_manifest, read_index
from pipeline.errors import WorkError

FEW = 3  # names of each reason
SHOWN_CLASSES = 40  # of more, the largest and smallest half
BAR = 24  # characters
TILE_PX = 128


@dataclass(frozen=True)
class Report:
    """Facts of one set; sizes in bytes."""

    folder: str
    manifest: dict[str, Any]  # without its shards
    shards: int
    shard_bytes: int  # all tars
    largest_shard_bytes: int
    image_bytes: int  # encoded images alone
    labelled: int  # images with a class
    class_counts: tuple[int, ...]  # by label
    first_rejected: dict[str, list[str]]  # reason -> names


def report(root: Path) -> Report:
    """Raises UserError where `root` is no prepared set, or not a whole one."""
    manifest, index = load_manifest(root), read_index(root)
    labels = index["label"][index["label"] >= 0]
    counts = np.bincount(labels[labels < len(manifest.classes)], minlength=len(manifest.classes))
    sizes = [s.bytes for s in manifest.shards]
    return Report(
        folder=str(root),
        manifest=manifest.model_dump(mode="json", exclude={"shards"}),
        shards=len(sizes),
        shard_bytes=sum(sizes),
        largest_shard_bytes=max(sizes, default=0),
        image_bytes=int(index["length"].sum(dtype=np.uint64)),
        labelled=len(labels),
        class_counts=tuple(counts.tolist()),
        first_rejected=_first_rejected(root, manifest),
    )


def _first_rejected(root: Path, manifest: Manifest) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {reason: [] for reason in manifest.rejected}
    try:
        with open(root / REJECTED, "rb") as f:
            for line in f:
                about = json.loads(line)
                if len(few := names.setdefault(str(about["reason"]), [])) < FEW:
                    few.append(str(about["name"]))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass  # the counts stand in the manifest; verify names a damaged list
    return names


def as_json(facts: Report) -> str:
    return json.dumps(asdict(facts), indent=2, sort_keys=True)


def as_tables(facts: Report) -> Group:
    """For a terminal: the set, its classes, what was left out."""
    m, parts = facts.manifest, Table("set", escape(_plain(facts.folder)))
    images = max(m["count"], 1)
    stored = [f"{m['size_px']} px", *(f"{k} {m[k]}" for k in ("crop", "filter", "icc", "encoding"))]
    if m["quality"] is not None:
        stored.append(f"quality {m['quality']}")
    for name, value in {
        "source": m["source"] + (f", split {m['split']}" if m["split"] else ""),
        "images": f"{m['count']:,} of {m['count_in']:,} in, {sum(m['rejected'].values()):,} rejected",
        "stored": ", ".join(stored),
        "shards": f"{facts.shards:,} with {_size(facts.shard_bytes)}, the largest {_size(facts.largest_shard_bytes)}",
        "image bytes": f"{_size(facts.image_bytes)}, {facts.image_bytes / images:,.0f} bytes an image",
        "labels": f"{len(facts.class_counts)} classes, {facts.labelled / images:.1%} of the images labelled",
        "made with": ", ".join(f"{k} {v}" for k, v in sorted(m["versions"].items())),
        "data set": m["dataset_id"],
    }.items():
        parts.add_row(name, _text(value))
    tables = [parts]
    if facts.class_counts:
        tables.append(_histogram(facts))
    if m["rejected"]:
        tables.append(left_out := Table("rejected", "images", "the first"))
        for reason, n in sorted(m["rejected"].items()):
            left_out.add_row(_text(reason), f"{n:,}", _text(", ".join(facts.first_rejected[reason])))
    return Group(*tables)


def _histogram(facts: Report) -> Table:
    counts, classes = facts.class_counts, facts.manifest["classes"]
    rows = list(range(len(counts)))
    if len(rows) > SHOWN_CLASSES:
        rows.sort(key=lambda label: -counts[label])
        half = SHOWN_CLASSES // 2
        rows = [*rows[:half], -1, *rows[-half:]]
    table, most = Table("label", "class", "images", ""), max(counts) or 1
    for label in rows:
        if label < 0:
            table.add_row("...", f"{len(counts) - SHOWN_CLASSES} more", "", "")
        else:
            bar = "#" * math.ceil(BAR * counts[label] / most)
            table.add_row(str(label), _text(classes[label]), f"{counts[label]:,}", bar)
    return table


def _text(words: str) -> Text:
    return Text(_plain(words))


def _plain(words: str) -> str:
    """One line without escape sequences, whatever a name holds; square brackets are for Text or escape()."""
    return words if words.isprintable() else ascii(words)[1:-1]


def _size(n: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if n < 1000:
            break
        n, unit = n / 1000, {"bytes": "kB", "kB": "MB", "MB": "GB"}[unit]
    return f"{n:,.0f} {unit}" if unit == "bytes" else f"{n:,.1f} {unit}"


def contact_sheet(root: Path, images: int = 64) -> bytes:
    """A PNG of evenly spaced samples, row by row in their order, each at most TILE_PX a side."""
    manifest, index = load_manifest(root), read_index(root)
    if not len(index):
        raise WorkError(f"{root}: holds no images; there is nothing to show")
    chosen = np.unique(np.linspace(0, len(index) - 1, min(images, len(index))).round().astype(np.int64))
    ends = np.cumsum([s.count for s in manifest.shards])
    side, columns = min(TILE_PX, manifest.size_px), math.isqrt(len(chosen) - 1) + 1
    high = side * manifest.planes
    sheet = Image.new("RGB", (columns * side, -(-len(chosen) // columns) * high))
    for n, i in enumerate(chosen):
        shard = manifest.shards[int(np.searchsorted(ends, i, side="right"))]
        offset, length, _ = index[i].item()
        try:
            image = _image(root / shard.name, offset, length, manifest)
        except ValueError as e:
            raise WorkError(
                f"{root / shard.name}: sample {i} cannot be read ({e}); run `graticule verify {root}`"
            ) from e
        sheet.paste(image.resize((side, high), Image.Resampling.BOX), (n % columns * side, n // columns * high))
    out = io.BytesIO()
    sheet.save(out, "PNG")
    return out.getvalue()


def _image(file: Path, offset: int, length: int, manifest: Manifest) -> Image.Image:
    if offset + length > file.stat().st_size:
        raise ValueError("the shard ends before it")
    with open(file, "rb", buffering=0) as f:
        return decoded(os.pread(f.fileno(), length, offset), manifest)
