"""The mirror of a run in MLflow: a thread beside training, and `graticule sync` a day later.

Training writes files and never waits; this thread sends them on, O(a few requests) at a time, and after failures
waits twice as long each time. Deliberately knows nothing of what is sent (see upload.py).
"""

import contextlib
import threading
import time
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, WorkError
from pipeline.tracking import inbox, jsonl
from pipeline.tracking.client import one_line, tracking_uri, user_errors
from pipeline.tracking.journal import Journal
from pipeline.tracking.upload import OutOfTimeError, catch_up

LONGEST_WAIT_SEC = 300.0  # of a mirror whose server is down; doubles until then
LONGEST_TRY_SEC = 60.0  # of one try, though its last request may take MLFLOW_HTTP_REQUEST_TIMEOUT more
PARTING_SEC = 2.0  # for a server that was down already when a run stops that will be resumed


def sync(folder: Path) -> int:
    """catch_up for the command line, and what is best registered (best.py); the number of records sent.

    UserError if the store is out of reach, WorkError if the disk is full.
    """
    from pipeline.tracking.best import register_best  # of the registry, which begins with a sync

    if not (folder / "config.json").exists():
        raise UserError(f"run={str(folder)!r} is not a run folder (no config.json); see `graticule status`")
    try:
        with user_errors(tracking_uri(folder.resolve().parent)):
            inbox.settle(folder)
            sent = catch_up(folder, verify=True)
            register_best(folder)
        if sent:
            jsonl.append(folder / jsonl.EVENTS, event_of(folder, "sync", records=sent))
    except OSError as e:
        raise WorkError(f"run={str(folder)!r} cannot note what is sent ({e.strerror or e}); repeat when it can") from e
    return sent


class Mirror:
    """catch_up in a daemon thread of rank 0. Nothing in training waits for it or sees its errors."""

    def __init__(self, folder: Path, every_sec: float = 5.0, events: Journal | None = None):
        """`events`: the run's own journal of events.jsonl, which this thread then shares."""
        self.folder = folder
        self.every_sec = every_sec
        self._events = events or Journal(folder / jsonl.EVENTS)
        self._stop = threading.Event()
        self._end = float("inf")  # when nobody waits any longer
        self._final = False
        self._down = False
        self._complete = False
        self._thread = threading.Thread(target=self._work, name="mlflow-mirror", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, *, final: bool, timeout_sec: float = 20.0) -> bool:
        """Send the rest within this time; False if some is left to `graticule sync`. `final`: run is done.

        Events that tell how the attempt ended are to be written before. A run that is not done and whose server
        is down does not wait: its job has to be queued again in time.
        """
        self._final = final
        if self._down and not final:
            timeout_sec = min(timeout_sec, PARTING_SEC)
        self._end = time.monotonic() + timeout_sec
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_sec)
        return self._complete

    def _work(self) -> None:
        wait_sec = self.every_sec
        while True:
            stopping = self._stop.wait(wait_sec)
            try:
                self._try(final=stopping and self._final)
            except OutOfTimeError:
                wait_sec = self.every_sec  # it answers, only slowly
                self._report(down=False)
            except Exception as e:
                wait_sec = min(2 * wait_sec, LONGEST_WAIT_SEC) if self._down else self.every_sec
                self._report(down=True, detail=one_line(e))
            else:
                wait_sec = self.every_sec
                self._report(down=False)
                self._complete = stopping
            if stopping:
                return

    def _try(self, *, final: bool) -> None:
        began = time.monotonic()
        catch_up(self.folder, final=final, give_up=lambda: time.monotonic() > min(began + LONGEST_TRY_SEC, self._end))

    def _report(self, *, down: bool, **extra: str) -> None:
        """One event when the server goes, one when it is back."""
        if down == self._down:
            return
        self._down = down
        self._events.append(event_of(self.folder, "tracking down" if down else "tracking back", **extra))


def event_of(folder: Path, event: str, **extra: str | int) -> dict[str, Any]:
    """A line for events.jsonl, where the run's metrics are now."""
    last = {}
    with contextlib.suppress(OSError, ValueError):  # a line that is damaged
        last = jsonl.last(folder / jsonl.METRICS)
    where = {"nimg": last.get("nimg", 0), "attempt": last.get("attempt", 0)}
    return {"time": time.time(), **where, "event": event, **extra}
