"""Publishing checkpoints beside training, in a thread of rank 0.

A disk that refuses costs a line on stderr and an event, never the run: the checkpoints before it stay, the next one
tries anew. Deliberately knows nothing of how a snapshot is taken; it must be given tensors that nobody changes.
"""

import contextlib
import errno
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from pipeline.training import checkpoint
from pipeline.training.checkpoint import Snapshot

MENDS = {
    errno.ENOSPC: "free disk space",
    errno.EDQUOT: "free disk space or raise the quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "mount it writable",
    errno.EACCES: "make it writable",
    errno.EPERM: "make it writable",
}


class Saver:
    """Publishes snapshots one at a time; only a snapshot that comes while another is being written has to wait."""

    def __init__(self, root: Path, keep: int, event: Callable[..., None]):
        """Events go to `event(name, nimg, **facts)`, called in the thread."""
        self.root, self.keep, self.event = root, keep, event
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._newest: Future[OSError | None] | None = None
        self._waited_sec = 0.0

    def submit(self, snapshot: Snapshot, *, milestone: bool = False) -> None:
        """Publish this one, as soon as the one before is done; never more than one is under way."""
        self.drain()
        waited_sec, self._waited_sec = self._waited_sec, 0.0
        self._newest = self._thread.submit(self._publish, snapshot, milestone, waited_sec)

    def drain(self) -> OSError | None:
        """Wait for what is under way; why the newest snapshot could not be published, None when it was."""
        if self._newest is None:
            return None
        began = time.monotonic()
        bug = self._newest.exception()
        self._waited_sec += time.monotonic() - began
        if bug is not None:
            self._newest = None  # told once
            raise bug
        return self._newest.result()

    def close(self) -> None:
        """Wait, then end the thread."""
        try:
            self.drain()
        finally:
            self._thread.shutdown()

    def _publish(self, snapshot: Snapshot, milestone: bool, waited_sec: float) -> OSError | None:
        nimg, began = snapshot.state.nimg, time.monotonic()
        at = f"at kimg {nimg / 1000:g}"
        try:
            checkpoint.save(self.root, snapshot, milestone=milestone)  # reads back what it wrote
        except OSError as e:
            mend = MENDS.get(e.errno or 0, "check the file system")
            error = f"{e.strerror or e}: checkpoint of {snapshot.nbytes / 1e6:.1f} MB in {self.root}; {mend}"
            going_on = f"{error}; training goes on, {self._newest_kimg()}"
            _say(f"checkpoint {at} failed: {going_on}")
            with _told(f"event of the failed checkpoint {at} not recorded"):
                self.event("checkpoint failed", nimg, error=going_on)
            return OSError(error)  # a new one, as the traceback of `e` holds the snapshot
        with _told(f"checkpoint {at}: older ones not deleted"):
            checkpoint.prune(self.root, self.keep)
        sec = round(time.monotonic() - began, 3)
        with _told(f"event of the checkpoint {at} not recorded"):
            self.event("checkpoint", nimg, sec=sec, bytes=snapshot.nbytes, waited_sec=round(waited_sec, 3))
        return None

    def _newest_kimg(self) -> str:
        with contextlib.suppress(OSError):
            newest, _ = checkpoint.newest_valid(self.root)
            if newest:
                return f"the newest checkpoint is kimg {checkpoint.nimg_of(newest) / 1000:g}"
        return "there is no checkpoint yet"


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """What is not worth ending the thread for: one line on stderr."""
    try:
        yield
    except OSError as e:
        _say(f"{what} ({e.strerror or e})")


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # stderr may be a file on the same full disk
        print(f"graticule: {line}", file=sys.stderr, flush=True)
