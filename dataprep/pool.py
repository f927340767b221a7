"""Shards made by worker processes, each with one pipe: a job there; counts, an end or an error back.

Not concurrent.futures, which takes all jobs at once and cannot tell which worker died, how, and at what. A
worker gives up when it cannot report because the pipe is closed: by the parent, or because there is no parent
any more. Knows nothing of folders beyond the jobs it passes on.
"""

import multiprocessing
import pickle
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from dataprep.shard import Job, make_shard
from pipeline.errors import WorkError

REPORT_SEC = 0.25
QUIT_SEC = 20  # for the image in work, at the end
PARENTS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR2}  # reach the whole group; the parent acts on them
LIKELY = {
    "SIGKILL": "out of memory? use fewer --workers",
    "SIGBUS": "an input file was cut or damaged while it was read?",
    "SIGSEGV": "a damaged input file?",
}


class Cancelled(Exception):  # noqa: N818 - asked for by the parent
    """Another shard failed, the user pressed Ctrl-C, or the parent is gone."""


def make_shards(jobs: Iterator[Job], workers: int, report: Callable[[int], None]) -> None:
    """Make the shards of `jobs` in that many processes, or here if it is one; `report` is told entries done.

    Raises the first error of a shard, and WorkError when a worker dies.
    """
    if workers == 1:
        _make_here(jobs, report)
        return
    context, crew = multiprocessing.get_context("spawn"), []
    try:
        for _ in range(workers):
            crew.append(_Worker(context))
        for worker in crew:
            worker.give(next(jobs, None))
        while busy := [worker for worker in crew if worker.job]:
            ready = wait([worker.pipe for worker in busy], timeout=REPORT_SEC)
            for worker in busy:
                if worker.pipe in ready and worker.hear():
                    worker.give(next(jobs, None))
            report(sum(worker.done for worker in crew))
    finally:
        for worker in crew:
            worker.pipe.close()
        deadline = time.monotonic() + QUIT_SEC
        for worker in crew:
            worker.quit(deadline)


def _make_here(jobs: Iterator[Job], report: Callable[[int], None]) -> None:
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        report(done)

    for job in jobs:
        make_shard(job, tick)


class _Worker:
    """The parent's side of a worker process."""

    def __init__(self, context: Any):
        self.pipe, theirs = context.Pipe()
        self.job: Job | None = None
        self.done = 0  # entries
        self.process = context.Process(target=_work, args=(theirs,), daemon=True)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, PARENTS)  # inherited: a starting worker must not die of them
        try:
            resource_tracker.ensure_running()  # unblocks some of them
            signal.pthread_sigmask(signal.SIG_BLOCK, PARENTS)
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()

    def give(self, job: Job | None) -> None:
        self.job = job
        if job:
            try:
                self.pipe.send(job)
            except OSError:
                pass  # it died; heard of at the next wait

    def hear(self) -> bool:
        """Take one message; whether the shard is committed."""
        try:
            done, error = self.pipe.recv()
        except (EOFError, OSError):
            raise self._died() from None
        if isinstance(error, Exception):
            raise error
        self.done += done
        return error is None

    def _died(self) -> WorkError:
        assert self.job is not None
        self.process.join(QUIT_SEC)
        code = self.process.exitcode
        how, hint = f"ended with exit code {code}", ""
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            how, hint = f"was killed by {name}", f" ({LIKELY[name]})" if name in LIKELY else ""
        entries, target = self.job.entries, self.job.targets[0]
        return WorkError(
            f"out={str(target.out)!r}: a worker process {how} at {target.tar(self.job.number).name}, images "
            f"{entries[0].name} to {entries[-1].name}{hint}; run the same command again to continue"
        )

    def quit(self, deadline: float) -> None:
        self.process.join(max(0, deadline - time.monotonic()))
        if self.process.is_alive():
            self.process.kill()
            self.process.join(1)


def _work(pipe: Connection) -> None:
    """A worker process. Messages: (entries done, None: shard committed | True: in work | the error)."""
    for number in PARENTS:
        signal.signal(number, signal.SIG_IGN)
    while True:
        try:
            job = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            error = _make(pipe, job)
        except Cancelled:
            return
        try:
            pipe.send(error)
        except OSError:
            return


def _make(pipe: Connection, job: Job) -> tuple[int, Exception | None]:
    done, told = 0, time.monotonic()

    def tick() -> None:
        nonlocal done, told
        done += 1
        if time.monotonic() - told > REPORT_SEC:
            try:
                pipe.send((done, True))
            except OSError:
                raise Cancelled from None
            done, told = 0, time.monotonic()

    try:
        make_shard(job, tick)
    except Cancelled:
        raise
    except Exception as e:
        return 0, _portable(e)
    return done, None


def _portable(error: Exception) -> Exception:
    """The error with its traceback as a note, or a stand-in if it cannot go through a pipe."""
    error.add_note(traceback.format_exc())
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(traceback.format_exc())
    return error
