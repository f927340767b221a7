"""One shard: entries in, a committed tar out. All that a worker process does.

The key of a sample is its entry number (gaps where an image was rejected), so a shard does not depend on the
others. It is committed by two renames, first its mark `.done.json` (rows, rejects), then the tar; so a tar
without a mark was not made here. Knows nothing of the folder's other files.
"""

import hashlib
import io
import json
import multiprocessing
import os
import signal
import tarfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from dataprep.sources.entry import Entry, Source
from dataprep.transform import Rejected, Transform
from pipeline.config import Config, write_atomic
from pipeline.data.manifest import Shard
from pipeline.errors import UserError

OnError = Literal["stop", "skip"]


class Reject(Config):
    """One line of rejected.jsonl."""

    name: str
    reason: str
    detail: str


class Done(Config):
    """The commit mark of a shard: what it was made from and all that manifest and index need of it."""

    plan: str
    versions: dict[str, str]
    shard: Shard
    rows: list[tuple[int, int, int]]  # offset, length, label
    rejects: list[Reject]


@dataclass(frozen=True)
class Job:
    """One shard to make; goes to a worker process."""

    out: Path
    number: int
    first: int  # entry number of entries[0]
    entries: Sequence[Entry]
    source: Source
    transform: Transform
    on_error: OnError
    plan: str
    versions: dict[str, str]


class Cancelled(Exception):  # noqa: N818 - asked for by the parent
    """Another shard failed or the user pressed Ctrl-C."""


def tar_path(job: Job) -> Path:
    return job.out / f"shard-{job.number:05d}.tar"


def mark_path(job: Job) -> Path:
    return tar_path(job).with_suffix(".done.json")


def read_mark(mark: Path) -> Done | None:
    try:
        return Done.model_validate_json(mark.read_bytes())
    except (OSError, ValidationError):
        return None


def committed_mark(job: Job) -> Done:
    done = read_mark(mark_path(job))
    if done is None:
        raise OSError(f"{mark_path(job)}: vanished while `graticule prep` was at work")
    return done


def refusal(reject: Reject) -> UserError:
    return UserError(
        f"{reject.name}: {reject.reason} ({reject.detail}); mend or remove it, or use --on-error skip "
        "to leave it out and count it"
    )


_cancel: Any = None  # in a worker: set when it should give up


def start_worker(cancel: Any) -> None:
    global _cancel
    _cancel = cancel
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which sets the event
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:  # an executor's workers outlive a killed parent otherwise
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def make_shard(job: Job) -> None:
    """Write and commit one shard."""
    temp = job.out / f".{tar_path(job).name}.{os.getpid()}.tmp"
    try:
        with open(temp, "wb") as f:
            with tarfile.open(fileobj=f, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                rows, rejects = _fill(tar, job)
            f.flush()
            os.fsync(f.fileno())
        with open(temp, "rb") as f:
            sha256 = hashlib.file_digest(f, "sha256").hexdigest()
        shard = Shard(name=tar_path(job).name, count=len(rows), bytes=temp.stat().st_size, sha256=sha256)
        done = Done(plan=job.plan, versions=job.versions, shard=shard, rows=rows, rejects=rejects)
        write_atomic(mark_path(job), done.model_dump_json())
        os.replace(temp, tar_path(job))
    finally:
        temp.unlink(missing_ok=True)


def _fill(tar: tarfile.TarFile, job: Job) -> tuple[list[tuple[int, int, int]], list[Reject]]:
    rows: list[tuple[int, int, int]] = []
    rejects: list[Reject] = []
    for number, entry in enumerate(job.entries, start=job.first):
        if _cancel is not None and _cancel.is_set():
            raise Cancelled
        try:
            data = job.transform(job.source.read(entry))
        except Rejected as e:
            rejects.append(Reject(name=entry.name, reason=e.reason, detail=e.detail))
            if job.on_error == "stop":
                raise refusal(rejects[-1]) from e
            continue
        about: dict[str, Any] = {"name": entry.name, "label": entry.label}
        if entry.label >= 0:
            about["class"] = job.source.classes[entry.label]
        key = f"{number:09d}"  # never the name: webdataset splits keys at dots
        rows.append((_add(tar, f"{key}.{job.transform.encoding}", data), len(data), entry.label))
        _add(tar, f"{key}.json", json.dumps(about, sort_keys=True).encode())
    return rows, rejects


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a member that tells nothing of machine, user or time; returns the offset of its data."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o644
    offset = tar.offset + tarfile.BLOCKSIZE
    tar.addfile(member, io.BytesIO(data))
    return offset
