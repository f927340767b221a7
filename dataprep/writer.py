"""Entries of a source to a prepared folder: shards, then manifest, then index.

Shard i holds entries [i*S, (i+1)*S), and one process makes a whole shard alone, so the number of workers
leaves no trace. A killed run continues at the first uncommitted shard and ends with the bytes of an
undisturbed one. Nothing is deleted or overwritten but what `prepare` itself wrote. Knows no data set and no
pixel.
"""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from PIL import features

from dataprep.shard import (
    Job,
    OnError,
    committed_mark,
    make_shard,
    mark_path,
    read_mark,
    refusal,
    start_worker,
    tar_path,
)
from dataprep.sources.entry import Entry, Source
from dataprep.transform import Transform
from pipeline.config import write_atomic
from pipeline.data.manifest import INDEX, MANIFEST, RECORD, Manifest, load_manifest
from pipeline.errors import UserError

REJECTED = "rejected.jsonl"
TEMP = re.compile(r"\.(shard-\d{5,}\.(tar|done\.json)|manifest\.json|index\.bin|rejected\.jsonl)\.\d+\.tmp")
Progress = Callable[[int, int], None]  # entries done, entries in all


def prepare(
    source: Source,
    out: Path,
    transform: Transform,
    *,
    workers: int = 1,
    shard_size: int = 1000,
    on_error: OnError = "stop",
    progress: Progress | None = None,
) -> Manifest:
    """Write the source's images to `out`; finish what a killed run began; return a finished set as it is.

    With on_error="stop" the first image that cannot be taken is a UserError and what this call wrote is
    removed; with "skip" it is counted in the manifest and named in rejected.jsonl.
    """
    for field, value in (("workers", workers), ("shard_size", shard_size)):
        if value < 1:
            raise UserError(f"{field}={value}: must be 1 or more")
    if on_error not in ("stop", "skip"):
        raise UserError(f"on_error={on_error!r}: must be 'stop' or 'skip'")
    progress = progress or (lambda done, total: None)
    entries = source.entries(transform.size_px)
    plan = _plan(source, entries, transform, shard_size)
    with _held(out) as made_out:
        if (out / MANIFEST).exists() and (out / INDEX).exists():
            return _finished(out, source, transform, plan)
        common = (source, transform, on_error, plan, _versions(transform))
        jobs = [
            Job(out, i, first, entries[first : first + shard_size], *common)
            for i, first in enumerate(range(0, len(entries), shard_size))
        ]
        todo = _uncommitted(out, jobs)
        try:
            _make(todo, workers, lambda done: progress(len(entries) - _size(todo) + done, len(entries)))
            return _publish(out, source, transform, jobs)
        except UserError:
            _remove(out, todo, made_out)
            raise


def _plan(source: Source, entries: Sequence[Entry], transform: Transform, shard_size: int) -> str:
    digest = hashlib.sha256(json.dumps([source.name, source.classes, shard_size]).encode())
    digest.update(transform.to_json().encode())
    for entry in entries:
        digest.update(f"{entry.name}\0{entry.label}\n".encode())
    return digest.hexdigest()


def _size(jobs: Sequence[Job]) -> int:
    return sum(len(j.entries) for j in jobs)


def _versions(transform: Transform) -> dict[str, str]:
    out = {name: importlib.metadata.version(name) for name in ("pillow", "numpy")}
    codec = "libjpeg_turbo" if transform.encoding == "jpg" else "zlib"
    return {**out, codec: str(features.version(codec) or "unknown")}


@contextlib.contextmanager
def _held(out: Path) -> Iterator[bool]:
    """Make `out`, keep other runs away from it; yields whether it was made here."""
    try:
        if out.exists() and not out.is_dir():
            raise UserError(f"out={str(out)!r}: is a file; give a folder")
        made = not out.exists()
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".{MANIFEST}.{os.getpid()}.tmp"
        probe.touch()
        probe.unlink()
    except OSError as e:
        raise UserError(f"out={str(out)!r}: cannot write there ({e.strerror}); give another folder") from e
    lock = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise UserError(f"out={str(out)!r}: another `graticule prep` is writing there; let it finish") from e
        except OSError:
            pass  # a file system without locks: one run at a time is then up to the user
        yield made
    finally:
        os.close(lock)


def _finished(out: Path, source: Source, transform: Transform, plan: str) -> Manifest:
    manifest = load_manifest(out)
    if manifest.plan_sha256 != plan:
        wanted = {"source": source.name, **transform.model_dump()}
        differing = [f"{k} {getattr(manifest, k)}, not {v}" for k, v in wanted.items() if getattr(manifest, k) != v]
        what = "; ".join(differing) or "other images or another shard size"
        raise UserError(f"out={str(out)!r}: holds a finished set made otherwise ({what}); give another --out")
    for name in os.listdir(out):
        if name.endswith(".done.json") or TEMP.fullmatch(name):  # killed after the index, before tidying up
            (out / name).unlink()
    return manifest


def _uncommitted(out: Path, jobs: Sequence[Job]) -> list[Job]:
    """The jobs still to do. Refuses a folder with anything that a run with this plan would not leave."""
    names = {n for n in os.listdir(out) if not TEMP.fullmatch(n)}
    expected = {n for j in jobs for n in (tar_path(j).name, mark_path(j).name)} | {MANIFEST, REJECTED}
    marked = {n for n in names if n.endswith(".done.json")}
    strays = names - expected | {n for n in names if n.endswith(".tar") and f"{n[:-4]}.done.json" not in marked}
    if not marked:
        strays |= names & {MANIFEST, REJECTED}
    todo, refused = [], None
    for job in jobs:
        done = read_mark(mark_path(job)) if mark_path(job).name in names else None
        if done is None or (done.plan, done.versions) != (job.plan, job.versions):
            strays |= names & {mark_path(job).name}
            todo.append(job)
        elif not tar_path(job).exists() or tar_path(job).stat().st_size != done.shard.bytes:
            todo.append(job)
        elif job.on_error == "stop" and done.rejects:  # left by a run with on_error="skip"
            refused = refused or done.rejects[0]
    if strays:
        raise UserError(
            f"out={str(out)!r}: holds {min(strays)}, which is not from a run with these images, settings and "
            "library versions; give another --out, or empty the folder yourself"
        )
    if refused:
        raise refusal(refused)
    for name in os.listdir(out):
        if TEMP.fullmatch(name):
            (out / name).unlink()
    return todo


def _remove(out: Path, todo: Sequence[Job], made_out: bool) -> None:
    for job in todo:
        tar_path(job).unlink(missing_ok=True)
        mark_path(job).unlink(missing_ok=True)
    if made_out:
        with contextlib.suppress(OSError):  # somebody else put something there
            out.rmdir()


def _make(jobs: Sequence[Job], workers: int, progress: Callable[[int], None]) -> None:
    done = 0
    if workers == 1 or len(jobs) < 2:
        for job in jobs:
            make_shard(job)
            progress(done := done + len(job.entries))
        return
    context = multiprocessing.get_context("spawn")
    cancel = context.Event()
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, start_worker, (cancel,))
    try:
        sizes = {pool.submit(make_shard, job): len(job.entries) for job in jobs}
        for future in as_completed(sizes):
            future.result()
            progress(done := done + sizes[future])
    except BrokenProcessPool as e:
        raise RuntimeError(
            f"out={str(jobs[0].out)!r}: a worker process died (killed? out of memory?); run again to continue"
        ) from e
    finally:
        cancel.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _publish(out: Path, source: Source, transform: Transform, jobs: Sequence[Job]) -> Manifest:
    shards, index, rejects = [], bytearray(), []
    for job in jobs:  # one at a time: the rows of millions of images are large as Python objects
        done = committed_mark(job)
        shards.append(done.shard)
        rejects += done.rejects
        index += np.array(done.rows, dtype=RECORD).tobytes()
    count = len(index) // RECORD.itemsize
    if not count:
        raise UserError(f"PATH: none of {len(rejects)} images can be taken; the first is {refusal(rejects[0])}")
    manifest = Manifest(
        source=source.name,
        **transform.model_dump(),
        classes=source.classes,
        count_in=_size(jobs),
        count=count,
        rejected=dict(sorted(Counter(r.reason for r in rejects).items())),
        plan_sha256=jobs[0].plan,
        shards=tuple(shards),
        index_sha256=hashlib.sha256(index).hexdigest(),
        versions=jobs[0].versions,
    )
    manifest = manifest.replace(dataset_id=manifest.identity())
    if rejects:
        write_atomic(out / REJECTED, "".join(json.dumps(r.model_dump()) + "\n" for r in rejects))
    write_atomic(out / MANIFEST, manifest.to_json())
    _sync(out)
    write_atomic(out / INDEX, bytes(index))
    _sync(out)
    for job in jobs:
        mark_path(job).unlink()
    return manifest


def _sync(folder: Path) -> None:
    """Make the renames in a folder last through a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
