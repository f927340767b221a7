"""A rank that hangs or dies ends the job quickly, with its name, host and last event.

Every rank publishes beats into the TCPStore of the rendezvous, over a connection of its own; rank 0 watches all ranks,
rank 1 watches rank 0. The store is a C++ server that needs no interpreter: a rank whose GIL a C call holds is silent
to the others (alone, with a world of 1, nobody sees it). Work that a device never finishes shows where the main thread
next waits for the device. Deliberately knows no engine, signal or scheduler, and keeps no process alive.
"""

import atexit
import contextlib
import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]  # its documented place

from pipeline.errors import WorkError
from pipeline.training.verdict import BROKEN, FAILED, LEFT, UNWRITTEN, WAITS, WORKS, Seen, judge

EXIT = 70
"""Exit code of every rank of a job that a watchdog ended."""

VERDICT = "verdict"  # the key under which a watcher says why the job ends
CHUNK = 512  # keys that one request reads
SAY_SEC = 5.0  # longest wait for a line to be told, as a file system that hangs may be what is told about


class Progress:
    """What this rank's main thread does now: `count` moves with each call. No lock, no I/O, no text is made."""

    def __init__(self) -> None:
        self.count = 0
        self.now: tuple[str, int | None, str] = ("start", None, WORKS)  # one object: readers see no halves

    @property
    def what(self) -> str:
        return self.now[0]

    @property
    def nimg(self) -> int | None:
        return self.now[1]

    @property
    def state(self) -> str:
        """WORKS, WAITS, or BROKEN after a collective that raised."""
        return self.now[2]

    @property
    def is_waiting(self) -> bool:
        return self.state == WAITS

    def at(self, what: str, nimg: int | None = None) -> None:
        """Begin something; without nimg the last one holds."""
        self.now = (what, self.now[1] if nimg is None else nimg, WORKS)
        self.count += 1

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Around a collective: the others may be at fault if it takes long or breaks."""
        before = self.now
        self.now, after = (what, before[1], WAITS), before
        self.count += 1
        try:
            yield
        except RuntimeError as e:  # torch's, for a peer or a network that went away
            if not isinstance(e, WorkError):
                after = (what, before[1], BROKEN)
            raise
        finally:
            self.now = after
            self.count += 1


class Clock:
    """Seconds between ticks, each at most `most_sec`: one who was stopped (scontrol suspend) accuses nobody for it."""

    def __init__(self, most_sec: float | int):
        self._most_sec, self._last, self.now = most_sec, time.monotonic(), 0.0

    def tick(self) -> float:
        last, self._last = self._last, time.monotonic()
        self.now += min(self._last - last, self._most_sec)
        return self.now


class Watchdog:
    """Two daemon threads: one beats, reads and judges; one sees that the store answers, as its client may block.

    A verdict is told once on every rank, ranks at fault write their Python stacks to stderr, and all end with EXIT:
    one beat after they read it, two after it was written where it was. Start it when the process group is up.

    Costs every rank one write and one read of about 100 bytes a beat. By reckoning, not by trial: 4,096 ranks at 5 s
    are 1,600 requests a second, and 4,096 more open files in the store's process.
    """

    def __init__(
        self,
        progress: Progress,
        *,
        rank: int,
        world: int,
        hang_sec: float | int,
        silent_sec: float | int = 60,
        beat_sec: float | int = 5,
        tell: Callable[[str], None],
        end: Callable[[int], Any] = os._exit,
    ):
        self._progress, self._rank, self._world = progress, rank, world
        self._hang_sec, self._silent_sec, self._beat_sec = hang_sec, silent_sec, beat_sec
        self._tell, self._end = tell, end
        self._seen = [Seen(r) for r in (range(world) if rank == 0 else [0])]
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun's store outlives it
        self._own_key, *self._keys = (f"watchdog/{attempt}/{k}" for k in (rank, VERDICT, *(r.rank for r in self._seen)))
        self._farewell, self._error = "", ""  # FAILED or LEFT, once this rank goes
        self._beats, self._answers, self._trouble = 0, 0, ""
        self._wake, self._stop, self._over = threading.Event(), threading.Event(), threading.Event()
        self._acting = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._host, self._pid = socket.gethostname(), os.getpid()

    def start(self) -> None:
        """Begin to beat and to watch; returns at once. With a world of 1 this rank watches itself, without a store."""
        loops = [self._beat_on]
        if self._world > 1:
            self._address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            loops.append(self._guard)
        self._threads = [threading.Thread(target=loop, daemon=True, name="watchdog") for loop in loops]
        atexit.register(self._at_exit)
        for thread in self._threads:
            thread.start()

    def close(self, failed: BaseException | None = None) -> None:
        """This rank ends on purpose, and the others must not take it for dead; or with `failed`, which they are told.

        To be called while the store lives: before the process group is destroyed. If a collective broke, another
        rank's end is the likely reason: waits some beats for it to be named, in which case the process ends here.
        """
        atexit.unregister(self._at_exit)
        if not self._threads or os.getpid() != self._pid:  # threads do not survive a fork
            return
        if failed is not None and self._world > 1:
            self._fail(failed)
        else:
            self._farewell = LEFT
        self._stop.set()
        self._wake.set()
        for thread in self._threads:
            thread.join(timeout=SAY_SEC)
        self._threads = []

    def _at_exit(self) -> None:
        # Also keeps the threads out of the interpreter's end, where coming back from a C++ call would abort.
        self.close(SystemExit("its process ended early"))

    def _fail(self, error: BaseException) -> None:
        if self._progress.state == BROKEN:
            self._over.wait(self._patience_sec(True) + 3 * self._beat_sec)
        self._error = _one_line(error)
        self._farewell = FAILED
        until = time.monotonic() + 2 * self._beat_sec
        while self._rank == 0 and time.monotonic() < until:  # the store may go with this process: let all read
            self._wake.set()
            time.sleep(min(0.1, self._beat_sec))
            if all(r.state in (FAILED, LEFT) for r in self._seen[1:]):
                break

    def _beat_on(self) -> None:
        store, clock = None, Clock(2 * self._beat_sec)
        while True:
            last = self._stop.is_set()
            try:
                if self._world > 1:
                    store = store or self._connect()
                self._round(store, clock)
                self._answers += 1
            except Exception as e:  # tried again until the guard's patience is over
                store, self._trouble = None, f" ({_one_line(e)})"
            if last:
                return
            self._wake.wait(self._beat_sec)
            self._wake.clear()

    def _connect(self) -> TCPStore:
        if self._answers:  # a TCPStore that finds nobody prints pages of C++ stack
            socket.create_connection(self._address, timeout=self._beat_sec).close()
        host, port = self._address
        timeout = timedelta(seconds=max(1.0, self._silent_sec))
        store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timeout)
        if self._rank == 0:
            for key in self._keys:
                store.compare_set(key, "", UNWRITTEN.decode())  # where there is nothing yet
        return store

    def _round(self, store: TCPStore | None, clock: Clock) -> None:
        """One beat: publish, read, judge."""
        own, verdict, beats = self._beat(), UNWRITTEN, []
        if store is None:
            beats = [own.encode()]
        else:
            store.set(self._own_key, own)
            chunks = (self._keys[i : i + CHUNK] for i in range(0, len(self._keys), CHUNK))
            verdict, *beats = [value for chunk in chunks for value in store.multi_get(chunk)]
        now = clock.tick()  # only when the store was read, so its outage makes nobody silent
        for seen, beat in zip(self._seen, beats, strict=True):
            seen.update(beat, now)
        judged = b""
        if verdict == UNWRITTEN and self._rank < 2:
            broken = any(r.state == BROKEN for r in self._seen)
            hang_sec = self._hang_sec if self._rank == 0 else float("inf")
            found = judge(self._seen, now, hang_sec=hang_sec, silent_sec=self._patience_sec(broken))
            if found:
                text = json.dumps([f"{found[0]}; rank {self._rank} ends the job", found[1]])
                verdict = judged = text.encode()
                if store is not None:
                    verdict = store.compare_set(self._keys[0], UNWRITTEN.decode(), text)  # the first one's holds
        if verdict != UNWRITTEN:
            line, culprits = json.loads(verdict)
            beats_left = 0 if store is None else 2 if verdict == judged else 1
            self._act(line, show=self._rank in culprits, grace_sec=beats_left * self._beat_sec)

    def _beat(self) -> str:
        self._beats += 1
        what, nimg, state = self._progress.now
        facts = json.dumps([self._host, self._pid, what, nimg, self._error])
        return f"{self._beats} {self._progress.count} {self._farewell or state} {facts}"

    def _patience_sec(self, broken: bool) -> float | int:
        """A broken collective says that somebody went: then three missing beats are enough."""
        return min(self._silent_sec, 3 * self._beat_sec) if broken else self._silent_sec

    def _guard(self) -> None:
        """Ends this rank when the store does not answer: it went with rank 0, or with rank 0's launcher."""
        clock, answers, since, zero = Clock(2 * self._beat_sec), -1, 0.0, self._seen[0]
        while not self._stop.wait(self._beat_sec):
            now = clock.tick()
            if self._answers != answers or zero.state == LEFT or self._over.is_set():
                answers, since = self._answers, now
            elif now - since >= self._patience_sec(self._progress.state == BROKEN):
                self._act(
                    f"{zero.name()}, last at {zero.place()}, is gone, or its launcher is: the store at "
                    f"{':'.join(map(str, self._address))} has not answered for {now - since:.0f} s{self._trouble}; "
                    f"rank {self._rank} ends",
                    show=False,
                    grace_sec=0,
                )

    def _act(self, line: str, *, show: bool, grace_sec: float | int) -> None:
        """Tell and end, once; unless this rank is leaving already."""
        if self._farewell or not self._acting.acquire(blocking=False):
            return
        teller = threading.Thread(target=self._say, args=(line, show), daemon=True)
        with contextlib.suppress(RuntimeError):  # too late for a thread, as the interpreter ends
            teller.start()
            teller.join(SAY_SEC)
        if not self._stop.wait(grace_sec):
            self._end(EXIT)
            self._over.set()

    def _say(self, line: str, show: bool) -> None:
        if show:
            faulthandler.dump_traceback(2, all_threads=True)
        with contextlib.suppress(Exception):
            self._tell(line)
            sys.stdout.flush()  # os._exit does not


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
