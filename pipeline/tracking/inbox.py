"""Records for a run from whoever does not train it, perhaps on another node: evaluations, in files of their own.

Two nodes that append to one file over NFS lose lines. So `leave` writes RUN/inbox/<time>-<host>-<process>.json, and who
holds the run's lock adds it to metrics.jsonl, or what is an event to events.jsonl: the trainer at each status line and
at its end, or `leave` itself where nobody trains. Each record stands there once, whoever is killed in between.
Deliberately knows nothing of what the records say.
"""

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.config import fsync_folder, write_atomic
from pipeline.errors import UserError, WorkError
from pipeline.lock import locked
from pipeline.tracking import jsonl

FOLDER = "inbox"
LOCK = ".attempt"  # in a run's folder: held by the attempt at it, or by who empties the inbox of a run at rest


def leave(folder: Path, record: Mapping[str, Any]) -> None:
    """One record of metrics, or an event (it has "event"), for the run in `folder`. WorkError if the disk refuses.

    It is on the disk when this returns; in metrics.jsonl at once where nobody trains. Of each (nimg, kind) MLflow gets
    the first record only (upload.py): what is measured anew after a rollback, with other weights, is on disk alone.
    """
    name = f"{time.time_ns():020d}-{socket.gethostname()}-{os.getpid()}.json"
    inbox = folder / FOLDER
    try:
        inbox.mkdir(exist_ok=True)
        write_atomic(inbox / name, jsonl.encode(record))
        fsync_folder(inbox)
    except OSError as e:
        raise WorkError(f"{inbox / name}: cannot be written ({e.strerror or e}); free disk space") from e
    settle(folder)


def settle(folder: Path) -> int:
    """`drain`, unless somebody trains the run, who will do it; never waits. The number of records taken over."""
    if not _files(folder):
        return 0
    with contextlib.suppress(UserError, OSError), locked(folder / LOCK, "{holder}"):
        return drain(folder)
    return 0


def drain(folder: Path) -> int:
    """Add what lies in the inbox to the run's records, oldest first, and return how many these were.

    Only for who holds the run's LOCK. OSError if the disk refuses; what is not added by then stays in the inbox.
    """
    added = 0
    for path, record in _records(folder):
        target = folder / (jsonl.EVENTS if "event" in record else jsonl.METRICS)
        if not _stands_in(target, record):
            jsonl.append(target, record)
            added += 1
        path.unlink(missing_ok=True)
    return added


def pending(folder: Path) -> list[dict[str, Any]]:
    """Metric records that were left and not yet taken over; for readers, who need not wait for the trainer."""
    return [record for _, record in _records(folder) if "event" not in record]


def _records(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Files and what they hold; one that is damaged, as by a failing disk, is set aside and said so once."""
    for path in _files(folder):
        with contextlib.suppress(FileNotFoundError):  # taken over meanwhile
            try:
                record = jsonl.read(path)[0]
            except (ValueError, IndexError):
                os.replace(path, path.with_suffix(".damaged"))
                print(f"graticule: {path} is damaged and set aside", file=sys.stderr, flush=True)
                continue
            yield path, record


def _files(folder: Path) -> list[Path]:
    return sorted((folder / FOLDER).glob("[0-9]*.json"))


def _stands_in(target: Path, record: Mapping[str, Any]) -> bool:
    """Was it added by somebody who was killed before the file was removed? Also: measured twice, with one result."""
    if not target.exists():
        return False
    if "event" not in record and not jsonl.known(target, target.stat().st_size, {jsonl.key_of(record)}):
        return False  # most often: no line is parsed
    return any(_said(line) == _said(record) for line in jsonl.read(target) if line["nimg"] == record["nimg"])


def _said(record: Mapping[str, Any]) -> str:
    """What makes two records the same, as text: NaN does not equal itself. Of metrics neither time nor attempt."""
    if "event" in record:
        return jsonl.encode(record).decode()
    parts = {"key": jsonl.key_of(record), "metrics": record["metrics"], "of": record.get("of")}
    return json.dumps(json.loads(jsonl.encode(parts)), sort_keys=True)
