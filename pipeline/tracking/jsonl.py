"""The record of a run: metrics.jsonl and events.jsonl, append-only, one JSON object a line.

This is the truth that MLflow mirrors. A kill can tear the last line and cost that record, nothing else.
    metrics: {"nimg": 4000, "time": unix seconds, "attempt": 1, "metrics": {name: number}, "kind": "train"}
    events:  {"nimg": 4000, "time": unix seconds, "attempt": 1, "event": "start|resume|checkpoint|...", ...}
`kind` may be left out; it tells apart records of equal nimg. NaN and infinities are the strings "nan", "inf"
and "-inf", so every line is valid JSON. Deliberately knows nothing of MLflow, nor which metrics there are.
"""

import errno
import json
import math
import os
import re
from collections import deque
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"
EVENTS = "events.jsonl"
UNMEASURED = "evaluation failed"  # the event of a run that was trained and could not be measured
END_BYTES = 1 << 16  # what `last` looks at
_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_STRING = re.compile(r'"(?:[^"\\]|\\.)*(?:"|\\?$)')  # the last one may be cut short
_NIMG = re.compile(rb'"nimg": (\d+)')


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add one line in a single write and fsync it; a last line torn by a kill is closed off first."""
    write(path, encode(record))


def encode(record: Mapping[str, Any]) -> bytes:
    """A record as its line."""
    return json.dumps(_plain(record), allow_nan=False).encode() + b"\n"


def write(path: Path, lines: bytes) -> None:
    """Add whole lines in a single write and fsync them, after closing off a torn last line.

    OSError when they are not all on the disk; then some may be, and the last of those may be torn.
    """
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            lines = b"\n" + lines
        if os.write(fd, lines) != len(lines):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(fd)
    finally:
        os.close(fd)


def read(path: Path) -> list[dict[str, Any]]:
    """Every record in file order; no file is no records, torn lines are skipped."""
    return [record for record, _ in tail(path, 0)]


def tail(path: Path, offset: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Records from byte `offset` on, each with the offset behind it, without a line still being written.

    Reads as it is asked: the file may be larger than memory.
    """
    if not path.exists():
        return
    with path.open("rb") as f:
        f.seek(offset)
        for line in f:
            offset += len(line)
            if line.endswith(b"\n") and (record := _parse(line, path, offset)) is not None:
                yield record, offset


def last(path: Path) -> dict[str, Any]:
    """The last record of the file's end, {} if there is none."""
    if not path.exists():
        return {}
    begin = max(0, path.stat().st_size - END_BYTES)
    with path.open("rb") as f:
        f.seek(begin)
        begin += len(f.readline()) if begin else 0  # of a line that began before
    found = deque(tail(path, begin), maxlen=1)
    return found[0][0] if found else {}


def metrics(path: Path) -> list[dict[str, Any]]:
    """Metric records by nimg. What a resumed run wrote again counts once, as it was written last."""
    latest = {key_of(record): record for record in read(path)}
    return sorted(latest.values(), key=lambda record: record["nimg"])


def known(path: Path, offset: int, keys: Set[tuple[int, str]]) -> set[tuple[int, str]]:
    """Which of these keys stand before byte `offset` of metrics.jsonl; other lines are not even parsed."""
    found, at, nimgs = set(), 0, {nimg for nimg, _ in keys}
    with path.open("rb") as f:
        for line in f:
            at += len(line)
            if at > offset:
                break
            shown = _NIMG.search(line)
            if (shown is None or int(shown[1]) in nimgs) and (record := _parse(line, path, at)) is not None:
                found.add(key_of(record))
    return found & keys


def key_of(record: Mapping[str, Any]) -> tuple[int, str]:
    """What makes two metric records the same one."""
    return record["nimg"], record.get("kind", "train")


def _parse(line: bytes, path: Path, end: int) -> dict[str, Any] | None:
    """The record; None for a line that a kill cut short (braces never close) or a power cut left as zeros."""
    text = line.decode(errors="replace").strip("\0\r\n ")
    try:
        return json.loads(text, object_hook=lambda d: {k: _restored(v) for k, v in d.items()})
    except json.JSONDecodeError as e:
        bare = _STRING.sub("", text)
        if bare.count("{") > bare.count("}") or not text:
            return None
        raise ValueError(f"{path}: the line ending at byte {end} is damaged ({e}); remove it by hand") from e


def _plain(value: Any) -> Any:
    """JSON types only: NaN and infinities as strings, numpy and torch scalars as numbers, paths as text."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Path):
        return str(value)
    return _plain(value.item()) if hasattr(value, "item") else value


def _restored(value: Any) -> Any:
    if isinstance(value, list):
        return [_restored(v) for v in value]
    return _FLOATS.get(value, value) if isinstance(value, str) else value
