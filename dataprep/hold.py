"""Who may write into a folder: one run alone, or the parts of one run side by side.

Locks (pipeline/lock.py) are files below the folder's `.prep`. Knows nothing of shards.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UserError, WorkError
from pipeline.lock import locked

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


def _remove_empty(*folders: Path) -> None:
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()
