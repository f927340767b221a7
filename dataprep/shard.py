"""One shard: entries in, a committed tar out, for each of the folders that are made in one pass.

The key of a sample is its entry number (gaps where an image was rejected), so a shard does not depend on the
others. It is committed by two renames, first its mark `.done.json` (rows, rejects), then the tar; so a tar
without a mark was not made here. Knows nothing of processes or of the folder's other files.
"""

import contextlib
import errno
import hashlib
import json
import os
import tarfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from pydantic import ValidationError

from dataprep.rejected import EXPECTED, Rejected
from dataprep.sources.entry import Entries, Entry, Source
from dataprep.transform import Transform
from pipeline.config import Config, write_atomic
from pipeline.data.manifest import Shard
from pipeline.errors import UserError, WorkError

OnError = Literal["stop", "skip"]
ADVICE = {
    errno.ENOSPC: "free space and run",
    errno.EDQUOT: "free space and run",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f) and run",
    errno.EROFS: "make the file system writable and run",
    errno.EACCES: "make the folder writable and run",
    errno.ENOENT: "was the folder deleted or renamed? run",
}


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
class Target:
    """A folder to make, and what a shard must be made of to belong there."""

    out: Path
    transform: Transform
    plan: str  # hash over entries, transform and shard size
    versions: dict[str, str]  # libraries that make the pixels and bytes

    def tar(self, number: int) -> Path:
        return self.out / f"shard-{number:05d}.tar"

    def mark(self, number: int) -> Path:
        return self.tar(number).with_suffix(".done.json")


@dataclass(frozen=True)
class Job:
    """One shard to make in each target; goes to a worker process."""

    number: int
    first: int  # entry number of entries[0]
    entries: Entries
    source: Source
    classes: tuple[str, ...]  # of the source, which a worker would have to list again
    targets: tuple[Target, ...]
    on_error: OnError


def read_mark(mark: Path) -> Done | None:
    try:
        return Done.model_validate_json(mark.read_bytes())
    except (OSError, ValidationError):
        return None


def refusal(reject: Reject) -> UserError:
    return UserError(
        f"{reject.name}: {reject.reason} ({reject.detail}); mend or remove it, or use --on-error skip "
        "to leave it out and count it"
    )


@contextlib.contextmanager
def writing(file: Path) -> Iterator[None]:
    """What goes wrong with a disk is one line: which folder and file, why, how to go on."""
    try:
        yield
    except OSError as e:
        why = (e.strerror or str(e)).lower()
        advice = ADVICE.get(e.errno or 0, "mend it and run")
        raise WorkError(
            f"out={str(file.parent)!r}: {why} while writing {file.name}; {advice} the same command again to continue"
        ) from e


class _Tar:
    """A shard under a temporary name. Members tell nothing of machine, user or time."""

    def __init__(self, target: Target, number: int):
        self.target, self.path, self.mark = target, target.tar(number), target.mark(number)
        self.rows: list[tuple[int, int, int]] = []
        self.rejects: list[Reject] = []
        self._temp = self.path.with_name(f".{self.path.name}.{uuid.uuid4().int}.tmp")
        self._bytes, self._sha256 = 0, hashlib.sha256()

    def __enter__(self) -> "_Tar":
        with writing(self.path):
            self._file = open(self._temp, "wb", buffering=1 << 18)
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._temp.unlink(missing_ok=True)

    def add(self, name: str, data: bytes) -> int:
        """Append a member; returns the offset of its data."""
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(data), 0o644
        self._write(member.tobuf(tarfile.USTAR_FORMAT))
        offset = self._bytes
        self._write(data)
        self._write(bytes(-len(data) % tarfile.BLOCKSIZE))
        return offset

    def _write(self, data: bytes) -> None:
        with writing(self.path):
            self._file.write(data)
        self._sha256.update(data)
        self._bytes += len(data)

    def commit(self) -> None:
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self._write(bytes(-self._bytes % tarfile.RECORDSIZE))
        shard = Shard(name=self.path.name, count=len(self.rows), bytes=self._bytes, sha256=self._sha256.hexdigest())
        done = Done(
            plan=self.target.plan, versions=self.target.versions, shard=shard, rows=self.rows, rejects=self.rejects
        )
        with writing(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            write_atomic(self.mark, done.model_dump_json())
            os.replace(self._temp, self.path)


def make_shard(job: Job, tick: Callable[[], None]) -> None:
    """Write and commit one shard in each target. `tick` is called after each entry and may raise to give up.

    UserError: an image cannot be taken and on_error is "stop". WorkError: disk full and the like.
    """
    with contextlib.ExitStack() as stack:
        tars = [stack.enter_context(_Tar(target, job.number)) for target in job.targets]
        for number, entry in enumerate(job.entries, start=job.first):
            about: bytes | None = None
            for tar, image in zip(tars, _images(job, entry), strict=True):
                if isinstance(image, Rejected):
                    _reject(tar, entry, image, job.on_error)
                    continue
                about = about or _about(job, entry)
                _add(tar, f"{number:09d}", image, about, entry.label)  # never the name: webdataset splits at dots
            tick()
        for tar in tars:
            tar.commit()


def _images(job: Job, entry: Entry) -> list[bytes | Rejected]:
    """What to store of an entry in each target. The image is read and squared once."""
    try:
        square = _square(job, entry)
    except Rejected as e:
        return [e] * len(job.targets)
    out: list[bytes | Rejected] = []
    for target in job.targets:
        try:
            out.append(target.transform.store(square))
        except Rejected as e:
            out.append(e)
    return out


def _square(job: Job, entry: Entry) -> Image.Image:
    if entry.refused:
        raise Rejected(*entry.refused)
    try:
        found = job.source.read(entry)
        return job.targets[0].transform.square(*(found if isinstance(found, tuple) else (found,)))
    except MemoryError as e:
        raise WorkError(f"{entry.name}: out of memory; run the same command again with fewer --workers") from e
    except OSError as e:  # of the source as a whole: an image that cannot be had is Rejected
        raise WorkError(f"{entry.name}: cannot read it ({e.strerror or e}); run the same command again to go on") from e


def _reject(tar: _Tar, entry: Entry, why: Rejected, on_error: OnError) -> None:
    reject = Reject(name=entry.name, reason=why.reason, detail=why.detail)
    tar.rejects.append(reject)
    if on_error == "stop" and reject.reason not in EXPECTED:
        raise refusal(reject) from why


def _about(job: Job, entry: Entry) -> bytes:
    about: dict[str, Any] = {**job.source.about(entry), "name": entry.name, "label": entry.label}
    if entry.label >= 0:
        about["class"] = job.classes[entry.label]
    return json.dumps(about, sort_keys=True).encode()


def _add(tar: _Tar, key: str, image: bytes, about: bytes, label: int) -> None:
    transform = tar.target.transform
    offset, length = tar.add(f"{key}.{transform.extension}", image), len(image)
    if transform.encoding == "raw":  # the index points at the pixels behind the .npy header
        pixels = 3 * transform.planes * transform.size_px**2
        offset, length = offset + length - pixels, pixels
    tar.rows.append((offset, length, label))
    tar.add(f"{key}.json", about)
