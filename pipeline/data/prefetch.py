"""Work done ahead by threads, handed over in its order.

A `Job` is a result (a buffer) and the parts of work that fill it. Threads take parts in order, so all of them help
the job that is wanted next; at most `ahead` jobs wait for the consumer. Threads, not processes: decoders and reads
let go of the interpreter, and nothing has to be copied, pickled or forked. Knows nothing of images.
"""

import atexit
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

T = TypeVar("T")

LINGER_SEC = 1.0  # for threads to end; one that waits for a dead file server is left behind
HARDWARE_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT}


class Job(Generic[T]):
    """`result` may be used when all `parts` have run."""

    def __init__(self, result: T, parts: Sequence[Callable[[], object]]):
        self.result, self.parts = result, parts
        self.left = len(parts)
        self.errors: dict[int, BaseException] = {}  # of parts, by their place

    def run(self, part: int) -> None:
        try:
            self.parts[part]()
        except BaseException as e:
            self.errors[part] = e

    def finished(self) -> T:
        """The result, or the error of the first part that failed."""
        if self.errors:
            raise self.errors[min(self.errors)]
        return self.result


def in_order(jobs: Iterator[Job[T]], *, threads: int, ahead: int) -> Generator[T, None, None]:
    """The results of `jobs`, one by one. An error comes where its job would have, and is the end.

    threads=0: the caller does all work, nothing ahead. Threads start with the first `next` and end when the
    generator is closed, fails, is forgotten, or the process ends.
    """
    if not threads:
        for job in jobs:
            for part in range(len(job.parts)):
                job.run(part)
            yield job.finished()
        return
    line = _Line(jobs, ahead)
    workers = [threading.Thread(target=line.work, daemon=True, name=f"data-{i}") for i in range(threads)]
    close = partial(_close, line, workers)
    atexit.register(close)  # the interpreter must not go while a thread is inside a library
    try:
        for worker in workers:
            worker.start()
        while (job := line.next()) is not None:
            yield job.finished()
    finally:
        close()
        atexit.unregister(close)


def _close(line: "_Line", workers: Sequence[threading.Thread]) -> None:
    line.close()
    deadline = time.monotonic() + LINGER_SEC
    for worker in workers:
        if worker.ident is not None and worker is not threading.current_thread():
            worker.join(max(0.0, deadline - time.monotonic()))


class _Line(Generic[T]):
    """What consumer and threads share. The threads know nothing else, so a forgotten generator is freed."""

    def __init__(self, jobs: Iterator[Job[T]], ahead: int):
        self._jobs, self._ahead = jobs, ahead
        self._waiting: deque[Job[T]] = deque()  # for the consumer, in order
        self._unclaimed: deque[tuple[Job[T], int]] = deque()
        self._lock = threading.RLock()  # the garbage collector may close, in any thread
        self._work, self._done = threading.Condition(self._lock), threading.Condition(self._lock)
        self._ended = self._closed = False

    def next(self) -> Job[T] | None:
        """The next job when it is finished; None behind the last. Signals are handled while it waits."""
        with self._lock:
            while not self._closed:
                if self._waiting and not self._waiting[0].left:
                    self._work.notify_all()
                    return self._waiting.popleft()
                if self._ended and not self._waiting:
                    return None
                self._done.wait()
            return None

    def work(self) -> None:
        """What each thread does. Signals are left to the main thread, which may be waiting in `next`."""
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - HARDWARE_FAULTS)
        while (claimed := self._claim()) is not None:
            job, part = claimed
            job.run(part)
            with self._lock:
                job.left -= 1
                if not job.left:
                    self._done.notify_all()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._waiting.clear()  # a thread that is left behind holds no memory
            self._unclaimed.clear()
            self._work.notify_all()
            self._done.notify_all()

    def _claim(self) -> tuple[Job[T], int] | None:
        with self._lock:
            while not self._closed:
                if self._unclaimed:
                    return self._unclaimed.popleft()
                if self._ended:
                    break
                if len(self._waiting) < self._ahead:
                    self._plan()
                else:
                    self._work.wait()
            return None

    def _plan(self) -> None:
        try:
            job = next(self._jobs)
        except StopIteration:
            self._ended = True
        except BaseException as e:
            self._ended = True
            job: Job[Any] = Job(None, ())
            job.errors[0] = e
            self._waiting.append(job)
        else:
            self._waiting.append(job)
            self._unclaimed.extend((job, part) for part in range(len(job.parts)))
        self._work.notify_all()
        self._done.notify_all()
