"""The checkpoints of a run: published atomically, found again by walking back to the newest valid one.

`checkpoints/<nimg:012d>/` is written under a hidden name, synced and read back; the rename of the whole folder is the
commit. State is consolidated, so any world size can load it. One process writes, any number may read. What is in a
folder is in snapshot.py; deliberately knows no network by name, no engine and no thread.
"""

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from pipeline.config import fsync_folder
from pipeline.spec import UserError
from pipeline.training.snapshot import DAMAGE, examine, read_manifest, read_state, read_tensors, write
from pipeline.training.snapshot import FORMAT as FORMAT
from pipeline.training.snapshot import Snapshot as Snapshot
from pipeline.training.snapshot import State as State

DIGITS = "[0-9]" * 12  # of a folder's name
KEPT = ".kept"  # markers `<nimg:012d>.<reason>` of checkpoints that prune spares


def folder_of(root: Path, nimg: int) -> Path:
    return root / f"{nimg:012d}"


def nimg_of(folder: Path) -> int:
    """The inverse, for folders of all_checkpoints."""
    return int(folder.name.removeprefix(".").removesuffix(".old"))


def save(root: Path, snapshot: Snapshot, *, milestone: bool = False) -> Path:
    """Write, read back and publish one checkpoint. A valid one of the same nimg and rollbacks is left as it is.

    Raises OSError when the disk refuses; nothing half-written stays.
    """
    final = folder_of(root, snapshot.state.nimg)
    root.mkdir(parents=True, exist_ok=True)
    _tidy(root)
    if _is_there(final, snapshot.state.rollbacks, milestone):
        return final
    disk = shutil.disk_usage(root)
    if disk.total and disk.free < snapshot.nbytes:  # some network file systems report 0 of 0
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(root))
    temp = root / f".{final.name}.{os.getpid()}.tmp"
    temp.mkdir()
    try:
        write(temp, snapshot, milestone=milestone)
        if problem := problem_of(temp):
            raise OSError(errno.EIO, f"what was written does not read back ({problem})", str(root))
        _publish(temp, final)
    except BaseException:
        shutil.rmtree(temp, ignore_errors=True)
        raise
    return final


def problem_of(folder: Path) -> str:
    """Why this folder is not a valid checkpoint; empty when it is."""
    return examine(folder)[1]


def all_checkpoints(root: Path) -> list[Path]:
    """Published folders, newest first, not checked; one set aside counts where a kill left nothing in its place."""
    folders = {nimg_of(p): p for p in (*root.glob(f".{DIGITS}.old"), *root.glob(DIGITS))}
    return [folders[nimg] for nimg in sorted(folders, reverse=True) if folders[nimg].is_dir()]


def newest_valid(root: Path, *, healthy: bool = False) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that checks out, and what was wrong with those passed over.

    healthy=True passes over those that hold values that are not finite.
    """
    while True:
        found, passed = all_checkpoints(root), []
        for folder in found:
            manifest, problem = examine(folder)
            if manifest and healthy and not manifest.healthy:
                problem = "holds values that are not finite"
            if not problem:
                return folder, passed
            passed.append(f"{folder.name}: {problem}")
        if all_checkpoints(root) == found:  # else they were pruned while they were read: look again
            return None, passed


def load(folder: Path, fingerprint: str) -> Snapshot:
    """Read a checkpoint, each byte checked against its manifest.

    UserError when it belongs to another recipe or configuration, or is damaged, gone or of an unknown format.
    """
    with _in_one_line(folder):
        manifest = read_manifest(folder)
        state = read_state(folder, manifest)
    if state.fingerprint != fingerprint:
        raise UserError(
            f"checkpoint {folder} belongs to configuration {state.fingerprint}, this run is {fingerprint}; "
            "move it away or run the recipe it was made with"
        )
    with _in_one_line(folder):
        return Snapshot(state, *read_tensors(folder, manifest))


def prune(root: Path, keep: int) -> list[Path]:
    """Delete all but the newest `keep`, the milestones, the newest healthy one and those with a marker (see `keep`).

    Call it only after the newest was read back, as `save` does.
    """
    found, removed = all_checkpoints(root), []
    newest_is_healthy = any(_is(folder, "healthy") for folder in found[:1])
    spared = None if newest_is_healthy else newest_valid(root, healthy=True)[0]
    for folder in found[keep:]:
        if folder == spared or _is(folder, "milestone") or _markers(root, nimg_of(folder)):
            continue
        _delete(folder)
        removed.append(folder)
    return removed


def discard_after(root: Path, nimg: int) -> None:
    """Delete all beyond nimg, milestones and markers too: a run that went back to nimg makes its own."""
    for marker in _markers(root):
        if int(marker.name[:12]) > nimg:
            marker.unlink(missing_ok=True)
    for folder in all_checkpoints(root):
        if nimg_of(folder) > nimg:
            _delete(folder)


def keep(root: Path, nimg: int, reason: str) -> None:
    """Let `prune` spare the checkpoint of nimg until `release` of the same reason; each reason counts for itself.

    Any process may, on any node. Where training prunes at this moment the checkpoint may be gone all the same: look
    after this returns. A marker without a checkpoint means nothing.
    """
    marker = _marker(root, nimg, reason)
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()
    fsync_folder(marker.parent)


def release(root: Path, nimg: int, reason: str) -> None:
    """The inverse of keep; a reason that was not given is released already."""
    _marker(root, nimg, reason).unlink(missing_ok=True)


def kept(root: Path, reason: str) -> list[int]:
    """The nimg of all that are kept for this reason, in order."""
    return [int(m.name[:12]) for m in _markers(root) if m == _marker(root, int(m.name[:12]), reason)]


def _marker(root: Path, nimg: int, reason: str) -> Path:
    """Metric names have slashes, paths of detectors may be long."""
    text = quote(reason, safe="")
    if len(text) > 200:
        text = f"{text[:160]}-{hashlib.sha256(reason.encode()).hexdigest()[:16]}"
    return root / KEPT / f"{nimg:012d}.{text}"


def _markers(root: Path, nimg: int | None = None) -> list[Path]:
    """Of one checkpoint, or of all, by nimg."""
    return sorted((root / KEPT).glob(f"{DIGITS if nimg is None else f'{nimg:012d}'}.*"))


def _delete(folder: Path) -> None:
    doomed = folder.with_name(f".{folder.name}.deleted.tmp")
    os.rename(folder, doomed)  # so that a kill in the middle leaves no folder that looks published
    shutil.rmtree(doomed)


@contextlib.contextmanager
def _in_one_line(folder: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGE as e:
        reason = " ".join(str(e).split()) or type(e).__name__
        raise UserError(
            f"checkpoint {folder} cannot be read: {reason:.300}; "
            "start the run again, which takes the newest valid one, or move this one away"
        ) from e


def _is(folder: Path, flag: str) -> bool:
    """A flag of the manifest, False for a damaged one; OSError when it is there and cannot be read."""
    try:
        return getattr(read_manifest(folder), flag)
    except DAMAGE as e:
        if isinstance(e, OSError) and e.errno != errno.ENOENT:
            raise
        return False


def _is_there(final: Path, rollbacks: int, milestone: bool) -> bool:
    """Does a valid checkpoint of the same history lie there, and is it a milestone where one is asked for?"""
    manifest, _ = examine(final)
    if manifest is None or (milestone and not manifest.milestone):
        return False
    with contextlib.suppress(*DAMAGE):
        return read_state(final, manifest).rollbacks == rollbacks
    return False


def _tidy(root: Path) -> None:
    """Clear what a kill left: what is half-written or half-deleted goes, what was set aside comes back if needed."""
    for leftover in root.glob(".*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    for aside in root.glob(f".{DIGITS}.old"):
        published = folder_of(root, nimg_of(aside))
        if published.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.rename(aside, published)


def _publish(temp: Path, final: Path) -> None:
    """The commit. What is in the way steps aside, where all_checkpoints still finds it, until the rename is done."""
    aside, replaces = final.with_name(f".{final.name}.old"), final.exists()
    if replaces:
        os.rename(final, aside)
    try:
        os.rename(temp, final)
    except OSError:
        if replaces:
            os.rename(aside, final)
        raise
    fsync_folder(final.parent)
    if replaces:
        shutil.rmtree(aside, ignore_errors=True)
