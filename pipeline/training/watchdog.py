"""What this rank does now."""

from collections.abc import Iterator
from contextlib import contextmanager


class Progress:
    """What this rank's main thread does now."""

    def __init__(self) -> None:
        self.count, self.what, self.nimg, self.is_waiting = 0, "", 0, False

    def at(self, what: str, nimg: int | None = None) -> None:
        self.count += 1
        self.what = what
        self.nimg = self.nimg if nimg is None else nimg

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        before = self.what
        self.at(what)
        self.is_waiting = True
        try:
            yield
        finally:
            self.is_waiting = False
            self.at(before)


class Watchdog:
    def __init__(self, progress, *, rank, world, hang_sec, tell):
        pass

    def start(self):
        pass

    def close(self):
        pass
