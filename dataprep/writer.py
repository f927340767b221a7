"""Entries of a source to prepared folders: shards, then manifest, then index.

One process makes a whole shard alone, so the number of workers leaves no trace. A killed run continues at the
first uncommitted shard and ends with the bytes of an undisturbed one. Nothing is deleted or overwritten but what
`prepare` itself wrote. Knows no data set and no pixel.
"""

import contextlib
import hashlib
import json
import os
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dataprep.hold import HIDDEN, Part, held, release
from dataprep.plan import Plan, make_plan
from dataprep.pool import make_shards
from dataprep.rejected import EXPECTED
from dataprep.shard import Done, OnError, Reject, Target, read_mark, refusal, writing
from dataprep.sources.entry import Source
from dataprep.transform import Transform
from pipeline.config import fsync_folder, write_atomic
from pipeline.data.manifest import INDEX, MANIFEST, RECORD, Manifest, Shard, load_manifest
from pipeline.errors import UserError, WorkError

REJECTED = "rejected.jsonl"
SHARD_FILE = re.compile(r"shard-(\d{5,})\.(tar|done\.json)")
TEMP = re.compile(r"\.(shard-(\d{5,})\.(tar|done\.json)|manifest\.json|index\.bin|rejected\.jsonl)\.\d+\.tmp")
PROGRESS_SEC = 0.5
Progress = Callable[[int, int], None]  # entries done, entries in all; first called with what an earlier run has done


def prepare(
    source: Source,
    out: Path,
    transform: Transform,
    *,
    split: str | None = None,
    workers: int = 1,
    shard_size: int = 1000,
    on_error: OnError = "stop",
    progress: Progress | None = None,
) -> Manifest:
    """Write the source's images to `out`: prepare_all with one size."""
    words: dict[str, Any] = {"workers": workers, "shard_size": shard_size, "on_error": on_error, "progress": progress}
    return prepare_all(source, {out: transform}, split=split, **words)[0]


def prepare_all(
    source: Source,
    transforms: Mapping[Path, Transform],
    *,
    split: str | None = None,
    workers: int = 1,
    shard_size: int = 1000,
    on_error: OnError = "stop",
    progress: Progress | None = None,
    part: Part | None = None,
) -> list[Manifest]:
    """Write the source's images to each folder with its transform, reading every image once.

    Finishes what a killed run began; returns a finished set as it is. With on_error="stop" the first image that
    cannot be taken is a UserError and what this call wrote is removed; with "skip" it is counted in the manifest
    and named in rejected.jsonl. With part=(i, n) it makes the shards whose number is i modulo n, publishes
    nothing and returns []; a call without `part` then finds all shards made, and publishes.
    """
    if workers < 1:
        raise UserError(f"workers={workers}: must be 1 or more")
    if part is not None and not 0 <= part[0] < part[1]:
        raise UserError(f"part={part}: must be (i, n) with i of 0 to n - 1")
    plan = make_plan(source, transforms, split=split, shard_size=shard_size, on_error=on_error)
    made = {t.out: m for t in plan.targets if (m := finished(plan, t))}
    with contextlib.ExitStack() as stack:
        for target in plan.targets:
            if target.out not in made:
                stack.enter_context(held(target.out, part))
                if found := finished(plan, target):  # while this run was on its way here
                    made[target.out] = found
        targets = [t for t in plan.targets if t.out not in made]
        if targets:
            _make(plan, targets, workers, progress or (lambda done, total: None), part)
        if part is not None:
            return []
        for target in targets:
            made[target.out] = _publish(plan, target)
    return [made[target.out] for target in plan.targets]


def uncommitted(plan: Plan) -> list[int]:
    """The shards still to be made in a folder or another; UserError as prepare_all would raise it."""
    missing: set[int] = set()
    for target in plan.targets:
        if not finished(plan, target):
            with held(target.out):
                missing |= set(_scan(plan, target, range(plan.shards)))
    return sorted(missing)


def committed(plan: Plan) -> int:
    """Entries of the shards that are made in all folders, judged by the names there; for a progress bar."""
    numbers = set(range(plan.shards))
    for target in plan.targets:
        names = set(_names(target.out))
        if INDEX not in names:
            numbers = {n for n in numbers if target.mark(n).name in names}
    return plan.count(numbers)


def finished(plan: Plan, target: Target) -> Manifest | None:
    """The manifest of a folder that is finished; UserError if it holds another set than the planned."""
    out = target.out
    if not (os.path.exists(out / MANIFEST) and os.path.exists(out / INDEX)):
        return None
    manifest = load_manifest(out)
    if manifest.plan_sha256 != target.plan:
        wanted = {"source": plan.source.name, "split": plan.split, **target.transform.model_dump()}
        differing = [f"{k} {getattr(manifest, k)}, not {v}" for k, v in wanted.items() if getattr(manifest, k) != v]
        what = "; ".join(differing) or "other images or another shard size"
        raise UserError(f"out={str(out)!r}: holds a finished set made otherwise ({what}); give another --out")
    left = [n for n in _names(out) if n == HIDDEN or n.endswith(".done.json") or TEMP.fullmatch(n)]
    if left:  # killed after the index, before tidying up
        with contextlib.suppress(UserError, WorkError), held(out):
            _tidy(target, left)
            release(out)
    return manifest


def _names(out: Path) -> list[str]:
    try:
        return os.listdir(out)
    except FileNotFoundError:
        return []
    except OSError as e:
        raise WorkError(f"out={str(out)!r}: cannot be listed ({e.strerror}); mend it and run it again") from e


def _temps(target: Target, numbers: range) -> list[str]:
    """What killed processes left under temporary names, of these shards only: others may be in work."""
    found = ((name, TEMP.fullmatch(name)) for name in _names(target.out))
    return [name for name, m in found if m and int(m[2] or numbers.start) in numbers]


def _tidy(target: Target, names: Iterable[str]) -> None:
    """Remove what `prepare` wrote, as far as the disk lets it: what is left is removed next time."""
    with contextlib.suppress(OSError):
        for name in set(names) - {HIDDEN}:
            (target.out / name).unlink(missing_ok=True)


def _files(target: Target, numbers: Iterable[int]) -> Iterator[str]:
    return (file.name for n in numbers for file in (target.tar(n), target.mark(n)))


def _make(plan: Plan, targets: Sequence[Target], workers: int, progress: Progress, part: Part | None) -> None:
    numbers = range(plan.shards)[part[0] :: part[1]] if part else range(plan.shards)
    missing = {t.out: _scan(plan, t, numbers) for t in targets}
    todo = sorted(set().union(*missing.values()))
    resumed, total = plan.count(numbers) - plan.count(todo), plan.count(numbers)
    jobs = (plan.job(n, [t for t in targets if n in missing[t.out]]) for n in todo)
    try:
        with _reporting(progress, resumed, total) as report:
            make_shards(jobs, min(workers, max(len(todo), 1)), report)
    except UserError:
        for target in targets:
            _tidy(target, _files(target, missing[target.out]))
        raise
    finally:
        for target in targets:
            _tidy(target, _temps(target, numbers))  # of a worker that was killed


@contextlib.contextmanager
def _reporting(progress: Progress, resumed: int, total: int) -> Iterator[Callable[[int], None]]:
    """Tell at once what is done already, then at most every PROGRESS_SEC, and the end."""
    progress(resumed, total)
    told = time.monotonic()

    def report(done: int) -> None:
        nonlocal told
        if (now := time.monotonic()) - told >= PROGRESS_SEC:
            told = now
            progress(resumed + done, total)

    yield report
    progress(total, total)


def _scan(plan: Plan, target: Target, numbers: range) -> set[int]:
    """Which of the shards are not committed. Refuses a folder with anything that this plan would not leave there."""
    names = set(_names(target.out))
    strays = {n for n in names if not _ours(n, plan)}
    strays |= {t for n in numbers if (t := target.tar(n).name) in names and target.mark(n).name not in names}
    if not any(n.endswith(".done.json") for n in names):
        strays |= names & {MANIFEST, REJECTED}
    missing, refused = set(), None
    for number in numbers:
        done = read_mark(target.mark(number)) if target.mark(number).name in names else None
        if done is None or (done.plan, done.versions) != (target.plan, target.versions):
            strays |= names & {target.mark(number).name}
            missing.add(number)
        elif _bytes(target.tar(number)) != done.shard.bytes:
            missing.add(number)
        elif plan.on_error == "stop":  # what a run with on_error="skip" left
            refused = refused or next((r for r in done.rejects if r.reason not in EXPECTED), None)
    if strays:
        raise UserError(
            f"out={str(target.out)!r}: holds {min(strays)}, which is not from a run with these images, settings and "
            "library versions; give another --out, or empty the folder yourself"
        )
    if refused:
        raise refusal(refused)
    _tidy(target, _temps(target, numbers))
    return missing


def _ours(name: str, plan: Plan) -> bool:
    shard = SHARD_FILE.fullmatch(name)
    if shard:
        return int(shard[1]) < plan.shards and shard[1] == f"{int(shard[1]):05d}"
    return name in (MANIFEST, REJECTED, HIDDEN) or bool(TEMP.fullmatch(name))


def _bytes(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return -1


def _publish(plan: Plan, target: Target) -> Manifest:
    """Manifest and index of a folder whose shards are all committed, then nothing else is left there."""
    out = target.out
    shards: list[Shard] = []
    index, reasons, first = bytearray(), Counter(), None
    with _lines(out / REJECTED) as write:
        for number in range(plan.shards):  # one at a time: the rows of millions of images are large in Python
            done = _committed(target, number)
            shards.append(done.shard)
            index += np.array(done.rows, dtype=RECORD).tobytes()
            for reject in done.rejects:
                first = first or reject
                reasons[reject.reason] += 1
                write(json.dumps(reject.model_dump()) + "\n")
        if not index:
            _tidy(target, _files(target, range(plan.shards)))
            raise _nothing(target, first, len(plan.entries))
    manifest = Manifest(
        source=plan.source.name,
        split=plan.split,
        **target.transform.model_dump(),
        classes=plan.source.classes,
        count_in=len(plan.entries),
        count=len(index) // RECORD.itemsize,
        rejected=dict(sorted(reasons.items())),
        plan_sha256=target.plan,
        shards=tuple(shards),
        index_sha256=hashlib.sha256(index).hexdigest(),
        versions=target.versions,
    )
    manifest = manifest.replace(dataset_id=manifest.identity())
    with writing(out / MANIFEST):
        write_atomic(out / MANIFEST, manifest.to_json())
        fsync_folder(out)
    with writing(out / INDEX):
        write_atomic(out / INDEX, bytes(index))
        fsync_folder(out)
    _tidy(target, (target.mark(n).name for n in range(plan.shards)))
    release(out)
    return manifest


def _nothing(target: Target, first: Reject | None, count: int) -> UserError:
    assert first is not None
    size = target.transform.size_px
    return UserError(f"PATH: none of {count} images can be taken at {size} px; the first is {refusal(first)}")


def _committed(target: Target, number: int) -> Done:
    done = read_mark(target.mark(number))
    if done is None:
        raise WorkError(
            f"out={str(target.out)!r}: {target.mark(number).name} vanished while `graticule prep` was at work; "
            "run the same command again to continue"
        )
    return done


@contextlib.contextmanager
def _lines(file: Path) -> Iterator[Callable[[str], object]]:
    """A file that grows line by line under a temporary name; there is none if nothing was written."""
    temp = file.with_name(f".{file.name}.{uuid.uuid4().int}.tmp")
    try:
        with writing(file):
            with open(temp, "w") as f:
                yield f.write
                f.flush()
                os.fsync(f.fileno())
                empty = f.tell() == 0
            if not empty:
                os.replace(temp, file)
    finally:
        with contextlib.suppress(OSError):
            temp.unlink(missing_ok=True)
