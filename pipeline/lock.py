"""Who may write into a folder: a file that one process holds at a time, or several share.

flock, on a file that is open for writing, as network file systems lock no others. The kernel lets go of it when its
process dies. Knows nothing of what the folder holds.
"""

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UserError

POLL_SEC = 0.2


@contextlib.contextmanager
def locked(file: Path, busy: str, *, shared: bool = False, wait_sec: float = 0.0) -> Iterator[None]:
    """Hold a lock on `file`, which is made, and removed again unless it is shared.

    UserError(busy) where another still holds it after `wait_sec`; "{holder}" in `busy` becomes its host and process.
    """
    deadline = time.monotonic() + wait_sec
    while (fd := _acquire(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)) is None:
        if time.monotonic() >= deadline:
            raise UserError(busy.replace("{holder}", _holder(file)))
        time.sleep(POLL_SEC)
    try:
        if not shared:
            with contextlib.suppress(OSError):  # a full disk
                os.truncate(fd, 0)
                os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        if not shared:
            with contextlib.suppress(OSError):
                file.unlink()
        os.close(fd)


def _acquire(file: Path, mode: int) -> int | None:
    """The open file, None where another holds it."""
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
        except BlockingIOError:
            os.close(fd)
            return None
        except FileNotFoundError:
            pass
        except OSError:
            return fd  # a file system without locks: one process at a time is then up to the user
        os.close(fd)  # removed by its last holder after it was opened here


def _holder(file: Path) -> str:
    with contextlib.suppress(OSError):
        return file.read_text() or "another process"
    return "another process"
