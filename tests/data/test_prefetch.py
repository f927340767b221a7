"""Threads that work ahead: order, bounds, errors, ends, signals; each with parts of work made for the question."""

import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.data.prefetch import HARDWARE_FAULTS, Job, in_order


def ours() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("data-")]


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    gc.collect()
    deadline = time.monotonic() + 5
    while ours() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not ours()


def jobs(part: Callable[[int, int], object], parts: int = 3, count: int = 10**9) -> Iterator[Job[int]]:
    for i in range(count):
        yield Job(i, [lambda i=i, j=j: part(i, j) for j in range(parts)])


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_results_come_in_order_and_complete_whoever_is_faster(threads):
    done: set[tuple[int, int]] = set()

    def part(i: int, j: int) -> None:
        time.sleep(random.random() * 0.002)
        done.add((i, j))

    expected = 0
    for result in in_order(jobs(part, count=40), threads=threads, ahead=5):
        assert result == expected
        assert {(result, j) for j in range(3)} <= done
        expected += 1
    assert expected == 40


def test_all_threads_work_on_the_job_that_is_wanted_next():
    together = threading.Barrier(3, timeout=10)
    it = in_order(jobs(lambda i, j: together.wait()), threads=3, ahead=2)
    assert [next(it) for _ in range(5)] == list(range(5))
    together.abort()
    it.close()


@pytest.mark.parametrize("threads", [1, 4])
def test_no_more_jobs_are_begun_than_are_asked_for(threads):
    begun: list[int] = []
    it = in_order(jobs(lambda i, j: begun.append(i)), threads=threads, ahead=4)
    for n in range(3):
        assert next(it) == n
        wait_until(lambda n=n: len(begun) == 3 * (n + 5))
        time.sleep(0.01)
        assert max(begun) == n + 4
    it.close()


@pytest.mark.parametrize("threads", [0, 3])
def test_an_error_comes_in_its_place_and_is_the_end(threads):
    def part(i: int, j: int) -> None:
        if i == 5 and j:
            time.sleep(0.02 / j)  # the later part fails earlier
            raise OSError(f"part {j}")

    it = in_order(jobs(part), threads=threads, ahead=8)
    assert [next(it) for _ in range(5)] == list(range(5))
    with pytest.raises(OSError, match="part 1"):
        next(it)
    with pytest.raises(StopIteration):
        next(it)


@pytest.mark.parametrize("threads", [0, 3])
def test_an_error_in_planning_comes_behind_what_was_planned(threads):
    def broken() -> Iterator[Job[int]]:
        yield from jobs(lambda i, j: time.sleep(0.01), count=3)
        raise OSError("no more")

    it = in_order(broken(), threads=threads, ahead=8)
    assert [next(it) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="no more"):
        next(it)


def test_closing_in_the_middle_ends_the_threads_at_once_and_drops_what_was_queued():
    ran: list[int] = []

    def part(i: int, j: int) -> None:
        time.sleep(0.05)
        ran.append(i)

    it = in_order(jobs(part, parts=100), threads=2, ahead=4)
    with pytest.raises(TimeoutError):  # while the consumer waits
        with alarm(0.12):
            next(it)
    began = time.monotonic()
    it.close()
    assert time.monotonic() - began < 0.3
    assert not ours()
    assert len(ran) < 12


def test_a_read_that_never_returns_does_not_hold_up_closing():
    r, w = os.pipe()  # as from a file server that is gone
    it = in_order(jobs(lambda i, j: os.read(r, 1)), threads=2, ahead=2)
    with pytest.raises(TimeoutError), alarm(0.05):
        next(it)
    began = time.monotonic()
    it.close()
    assert time.monotonic() - began < 2
    os.close(w)  # ends the reads; the fixture sees the threads go
    wait_until(lambda: not ours())
    os.close(r)


def test_a_forgotten_generator_leaves_no_threads_and_one_never_begun_has_none():
    it = in_order(jobs(lambda i, j: None), threads=3, ahead=2)
    assert not ours()
    next(it)
    assert len(ours()) == 3
    del it
    assert not ours()


def test_a_process_ends_while_its_threads_are_at_work():
    code = (
        "import time\nfrom pipeline.data.prefetch import Job, in_order\n"
        "def jobs():\n    while True: yield Job(1, [lambda: sum(range(1000))] * 50)\n"
        "it = in_order(jobs(), threads=4, ahead=3)\nprint(next(it) + next(it))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout, done.stderr) == (0, "2\n", "")


class alarm:  # noqa: N801 - reads as a statement
    """Raise TimeoutError from a signal handler after some seconds."""

    def __init__(self, sec: float):
        self.sec = sec

    def __enter__(self) -> None:
        def handler(number, frame):
            raise TimeoutError

        self.before = signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, self.sec)

    def __exit__(self, *error: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self.before)


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_is_handled_while_the_consumer_waits(number):
    let_go, handled, sent = threading.Event(), [], []
    before = signal.signal(number, lambda *_: handled.append(time.monotonic()))
    it = in_order(jobs(lambda i, j: let_go.wait(20)), threads=2, ahead=2)

    def send() -> None:
        for _ in range(3):
            time.sleep(0.1)
            sent.append(time.monotonic())
            os.kill(os.getpid(), number)
        time.sleep(0.1)
        let_go.set()

    sender = threading.Thread(target=send)
    sender.start()
    try:
        assert next(it) == 0
    finally:
        sender.join()
        it.close()
        signal.signal(number, before)
    assert len(handled) == len(sent) == 3
    assert all(at - since < 0.2 for at, since in zip(handled, sent, strict=True))


def test_signals_of_the_job_are_not_for_the_threads():
    it = in_order(jobs(lambda i, j: None), threads=2, ahead=2)
    next(it)
    for thread in ours():
        status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
        blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            assert blocked >> (number - 1) & 1
        assert not any(blocked >> (number - 1) & 1 for number in HARDWARE_FAULTS)
    it.close()
