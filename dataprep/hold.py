"""Who may write into a folder: one run alone, or the parts of one run side by side.

Locks are flocks on files below the folder's `.prep`, not on the folder, as network file systems lock only files
that are open for writing. The kernel lets go of them when their process dies. Knows nothing of shards.
"""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UserError, WorkError

HIDDEN = ".prep"  # locks, and the jobs of a cluster with their logs; not part of a finished set
FULL = (errno.ENOSPC, errno.EDQUOT)
Part = tuple[int, int]  # (i, n): the shards whose number is i modulo n


@contextlib.contextmanager
def held(out: Path, part: Part | None = None) -> Iterator[None]:
    """Make `out` and keep others away from it; leaves nothing behind that was not put there meanwhile.

    A part keeps away whole runs and the same part, and leaves the lock file to the run that publishes.
    UserError: somebody is there, or one cannot write there.
    """
    if os.path.exists(out) and not os.path.isdir(out):
        raise UserError(f"out={str(out)!r}: is a file; give a folder")
    place = out / HIDDEN
    made = [place, *(folder for folder in (out, *out.parents) if not os.path.exists(folder))]
    busy = f"out={str(out)!r}: another `graticule prep` is writing there; let it finish"
    with contextlib.ExitStack() as stack:
        try:
            place.mkdir(parents=True, exist_ok=True)
            if part is None:
                stack.callback(_remove_empty, *made)
                stack.enter_context(locked(place / "lock", busy))
            else:
                stack.enter_context(locked(place / "lock", busy, shared=True))
                own = "part-{}-of-{}.lock".format(*part)
                stack.enter_context(locked(place / own, f"{busy} (part {part[0]} of {part[1]})"))
        except OSError as e:
            if e.errno in FULL:
                raise WorkError(f"out={str(out)!r}: {str(e.strerror).lower()}; free space and run it again") from e
            raise UserError(f"out={str(out)!r}: cannot write there ({e.strerror}); give another folder") from e
        yield


def release(out: Path) -> None:
    """A finished set needs no jobs any more."""
    shutil.rmtree(out / HIDDEN / "jobs", ignore_errors=True)


@contextlib.contextmanager
def locked(file: Path, busy: str, shared: bool = False) -> Iterator[None]:
    """Hold a lock on `file`, which is made, and removed again unless it is shared; UserError(busy) at once."""
    fd = _acquire(file, busy, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    try:
        yield
    finally:
        if not shared:
            with contextlib.suppress(OSError):
                file.unlink()
        os.close(fd)


def _acquire(file: Path, busy: str, mode: int) -> int:
    while True:
        with contextlib.suppress(FileExistsError):
            file.parent.mkdir()
        try:
            fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            if file.parent.parent.is_dir():  # its last holder has just tidied up
                continue
            raise
        try:
            fcntl.flock(fd, mode | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), os.stat(file)):
                return fd
        except BlockingIOError as e:
            os.close(fd)
            raise UserError(busy) from e
        except FileNotFoundError:
            pass
        except OSError:
            return fd  # a file system without locks: one run at a time is then up to the user
        os.close(fd)  # removed by its last holder after it was opened here


def _remove_empty(*folders: Path) -> None:
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()
