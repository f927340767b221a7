"""Ranks that hang, die, stop, fail or leave: real processes over a real TCPStore, some in a real gloo all-reduce.

Each scenario is a function that every rank runs; ranks are forked from a server that has imported this file already.
"""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from pipeline.errors import WorkError
from pipeline.training.verdict import UNWRITTEN, Seen, judge
from pipeline.training.watchdog import EXIT, Progress, Watchdog

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])
HOST = socket.gethostname()
NEVER = 600  # seconds; longer than any test


def run_rank(folder: Path, port: int, rank: int, world: int, expected: int, group: bool, scenario, options):
    """What one process does; what it prints goes to files."""
    os.chdir(folder)
    for fd, name in ((1, f"{rank}.out"), (2, f"{rank}.err")):
        os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY), fd)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(world)}
    if group:
        dist.init_process_group("gloo")

    Path(f"{rank}.up").touch()
    wait_for(lambda: len(list(folder.glob("*.up"))) == expected)
    progress = Progress()
    watchdog = Watchdog(progress, rank=rank, world=world, tell=print, **({"beat_sec": 0.1} | options))
    watchdog.start()
    try:
        scenario(rank, progress, watchdog)
    except Exception as e:
        watchdog.close(failed=e)
        raise


class Job:
    """The ranks of one scenario."""

    def __init__(self, folder: Path, scenario, world: int, *, port: int | None = None, only=None, **options):
        folder.mkdir(exist_ok=True)
        self.folder, ranks = folder, only or range(world)
        start = partial(PROCESSES.Process, target=run_rank, daemon=True)
        rest = (world, len(ranks), port is None, scenario, options)
        port = port or free_port()
        self.ranks = [start(args=(folder, port, rank, *rest)) for rank in ranks]
        for process in self.ranks:
            process.start()

    def wait_until_seen(self) -> None:
        """All ranks move, and some beats have told so."""
        wait_for(lambda: len(list(self.folder.glob("*.moves"))) == len(self.ranks))
        time.sleep(0.5)

    def kill(self, rank: int, signum: signal.Signals) -> None:
        os.kill(self.ranks[rank].pid, signum)

    def codes(self, *ranks: int) -> list[int]:
        """Exit codes of these ranks, by default of all, once they have ended."""
        chosen = [self.ranks[r] for r in ranks or range(len(self.ranks))]
        for process in chosen:
            process.join(60)
        return [process.exitcode for process in chosen]

    def lines(self, rank: int) -> list[str]:
        return (self.folder / f"{rank}.out").read_text().splitlines()

    def stderr(self, rank: int) -> str:
        return (self.folder / f"{rank}.err").read_text()

    def name(self, rank: int) -> str:
        return f"rank {rank} on {HOST} (pid {self.ranks[rank].pid})"


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Lab:
    """Starts jobs and stores, and ends them."""

    def __init__(self, folder: Path):
        self.folder, self.jobs, self.servers = folder, [], []

    def job(self, scenario, world: int, **options) -> Job:
        self.jobs.append(Job(self.folder / f"job{len(self.jobs)}", scenario, world, **options))
        return self.jobs[-1]

    def store(self) -> int:
        """The port of a store outside of the ranks, as torchrun's agent has one."""
        self.servers.append(dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False))
        return self.servers[-1].port

    def close(self) -> None:
        for process in [p for job in self.jobs for p in job.ranks]:
            process.kill()
            process.join()
        self.servers.clear()


@pytest.fixture
def lab(tmp_path):
    lab = Lab(tmp_path)
    yield lab
    lab.close()


# What ranks do.


def all_reduce(progress: Progress) -> None:
    with progress.waiting("sum of gradients"):
        dist.all_reduce(torch.ones(2))


def rank_2_hangs_in_phase_d(rank, progress, watchdog):
    progress.at("phase D", 4000)
    if rank == 2:
        time.sleep(NEVER)
    all_reduce(progress)


def rank_0_hangs_reading_data(rank, progress, watchdog):
    progress.at("reading data", 96)
    time.sleep(NEVER)


def all_move(rank, progress, watchdog, sec=NEVER):
    until = time.monotonic() + sec
    while time.monotonic() < until:
        progress.at("phase D", 4000)
        Path(f"{rank}.moves").touch()
        time.sleep(0.02)
    watchdog.close()


def all_move_for_a_while(rank, progress, watchdog):
    all_move(rank, progress, watchdog, sec=2.5)


def rank_1_is_slow_and_the_other_waits(rank, progress, watchdog):
    for _ in range(12 if rank == 1 else 0):
        progress.at("phase D", 4000)
        time.sleep(0.2)
    all_reduce(progress)
    watchdog.close()


def rank_1_leaves_at_once(rank, progress, watchdog):
    if rank == 1:
        watchdog.close()
        return
    all_move_for_a_while(rank, progress, watchdog)


MOVING = (rank_1_leaves_at_once, all_move_for_a_while)


def rank_2_leaves_and_the_others_wait(rank, progress, watchdog):
    progress.at("phase G", 4000)
    if rank == 2:
        watchdog.close()
        time.sleep(NEVER)
    all_reduce(progress)


def all_reduce_until_it_breaks(rank, progress, watchdog):
    progress.at("phase D", 4000)
    while True:
        all_reduce(progress)
        Path(f"{rank}.moves").touch()
        if rank == 1:
            progress.at("reading data", 4008)
            time.sleep(NEVER)


def rank_1_raises(rank, progress, watchdog):
    progress.at("phase D", 4000)
    if rank == 1:
        raise ValueError("no such\nscale")
    progress.at("phase G")
    time.sleep(NEVER)


def all_raise(rank, progress, watchdog):
    time.sleep(0.05 * rank)
    raise WorkError("disk full")


def test_a_rank_that_hangs_ends_all_with_its_name_host_and_place_and_so_does_one_that_left_the_others_waiting(lab):
    hung = lab.job(rank_2_hangs_in_phase_d, 3, hang_sec=1.2)
    left = lab.job(rank_2_leaves_and_the_others_wait, 3, hang_sec=1.2)

    assert hung.codes() == [EXIT] * 3
    (line,) = hung.lines(0)
    assert line.startswith(f"{hung.name(2)} has not moved for ")
    assert line.endswith(" s: phase D of image 4000; rank 0 ends the job")
    assert hung.lines(1) == hung.lines(2) == [line]
    assert "in rank_2_hangs_in_phase_d" in hung.stderr(2)
    assert "most recent call first" not in hung.stderr(0) + hung.stderr(1)

    assert left.codes(0, 1) == [EXIT] * 2
    (line,) = left.lines(0)
    assert line.startswith("all 2 ranks have waited for others for ")
    assert f"{left.name(2)} left before them: {left.name(0)} and 1 more in sum of gradients of image 4000" in line


def test_a_rank_that_is_stopped_or_killed_is_named_by_rank_0_and_rank_0_by_rank_1(lab):
    jobs = [lab.job(all_move, 3, port=lab.store(), hang_sec=NEVER, silent_sec=1.5) for _ in range(3)]
    victims = [(2, signal.SIGSTOP), (2, signal.SIGKILL), (0, signal.SIGKILL)]
    for ran, (victim, signum) in zip(jobs, victims, strict=True):
        ran.wait_until_seen()
        ran.kill(victim, signum)
    for ran, (victim, _) in zip(jobs, victims, strict=True):
        watcher, *others = (r for r in range(3) if r != victim)
        assert ran.codes(watcher, *others) == [EXIT] * 2
        (line,) = ran.lines(watcher)
        assert line.startswith(f"{ran.name(victim)} is dead, stopped or out of reach: no sign for ")
        assert line.endswith(f" s, last at phase D of image 4000; rank {watcher} ends the job")
        assert [ran.lines(other) for other in others] == [[line]]
        assert not ran.lines(victim)


def test_every_rank_says_so_when_rank_0_takes_the_store_with_it(lab):
    """Stopped, its store takes requests and never answers; killed, it refuses them."""
    stopped, killed = (lab.job(all_move, 3, hang_sec=NEVER, silent_sec=1.5) for _ in range(2))
    for ran, signum in ((stopped, signal.SIGSTOP), (killed, signal.SIGKILL)):
        ran.wait_until_seen()
        ran.kill(0, signum)
    for ran in (stopped, killed):
        assert ran.codes(1, 2) == [EXIT] * 2
        for rank in (1, 2):
            (line,) = ran.lines(rank)
            assert line.startswith(f"{ran.name(0)}, last at phase D of image 4000, is gone")
            assert line.endswith(f"; rank {rank} ends")


def test_a_rank_whose_death_breaks_a_collective_is_named_rather_than_the_broken_collective(lab):
    """gloo's ranks get 'connection closed by peer' at once, long before silent_sec."""
    ran = lab.job(all_reduce_until_it_breaks, 3, hang_sec=NEVER, silent_sec=NEVER, beat_sec=0.3)
    ran.wait_until_seen()
    ran.kill(1, signal.SIGKILL)
    assert ran.codes(0, 2) == [EXIT] * 2
    (line,) = ran.lines(0)
    assert line.startswith(f"{ran.name(1)} is dead, stopped or out of reach: no sign for ")
    assert "last at reading data of image 4008" in line
    assert ran.lines(2) == [line]


def test_a_rank_that_fails_ends_the_others_with_its_error(lab):
    ran = lab.job(rank_1_raises, 3, port=lab.store(), hang_sec=NEVER, silent_sec=NEVER)
    assert ran.codes() == [EXIT, 1, EXIT]
    (line,) = ran.lines(0)
    expected = f"{ran.name(1)} failed with ValueError: no such scale, at phase D of image 4000; rank 0 ends the job"
    assert line == expected
    assert ran.lines(2) == [line]
    assert not ran.lines(1)


def test_ranks_that_all_fail_end_with_their_own_exit_code(lab):
    ran = lab.job(all_raise, 3, port=lab.store(), hang_sec=NEVER, silent_sec=NEVER, beat_sec=2)
    assert ran.codes() == [1, 1, 1]


def test_nobody_is_reported_who_is_slow_or_waits_for_a_slow_one_or_left_or_was_suspended(lab):
    slow = lab.job(rank_1_is_slow_and_the_other_waits, 2, hang_sec=1.2)
    left, suspended = (lab.job(moves, 2, port=lab.store(), hang_sec=1.2, silent_sec=1.2) for moves in MOVING)
    suspended.wait_until_seen()
    suspended.kill(0, signal.SIGSTOP)
    suspended.kill(1, signal.SIGSTOP)
    time.sleep(1.5)
    suspended.kill(0, signal.SIGCONT)
    time.sleep(0.3)  # hosts are not resumed at one moment
    suspended.kill(1, signal.SIGCONT)
    for ran in (slow, left, suspended):
        assert ran.codes() == [0, 0]
        assert not ran.lines(0) + ran.lines(1)


def serve(port: int) -> None:
    server = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    time.sleep(NEVER)
    del server


def test_ranks_outlive_a_store_that_is_away_for_a_moment_and_watch_again(lab):
    """Killed and started anew, empty, at the same address."""
    port = free_port()
    servers = [PROCESSES.Process(target=serve, args=(port,), daemon=True) for _ in range(2)]
    try:
        servers[0].start()
        ran = lab.job(all_move, 3, port=port, hang_sec=NEVER, silent_sec=2)
        ran.wait_until_seen()
        servers[0].kill()
        servers[0].join()
        time.sleep(0.5)
        servers[1].start()
        time.sleep(2.5)  # longer than silent_sec
        assert all(process.is_alive() for process in ran.ranks)
        ran.kill(2, signal.SIGKILL)
        assert ran.codes(0, 1) == [EXIT] * 2
        assert ran.lines(0)[0].startswith(ran.name(2))
    finally:
        for server in servers:
            server.kill()


FORKS_AND_EXITS = """
import os, sys
from pipeline.training.watchdog import Progress, Watchdog
progress = Progress()
Watchdog(progress, rank=1, world=2, hang_sec=600, silent_sec=600, beat_sec=0.1, tell=print).start()
progress.at("before the fork")
if os.fork() == 0:
    sys.exit(0)
assert os.wait()[1] == 0
progress.at("after the fork")
sys.exit(3)
"""


def start_script(text: str, **env: str) -> subprocess.Popen:
    """An interpreter that ends as interpreters do, unlike the ranks that multiprocessing starts."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **env}
    return subprocess.Popen([sys.executable, "-c", text], env=env, stdout=-1, stderr=-1, text=True)


def test_a_single_rank_that_hangs_ends_itself_and_shows_its_stack(lab):
    ran = lab.job(rank_0_hangs_reading_data, 1, port=1, hang_sec=1)  # needs no store
    assert ran.codes() == [EXIT]
    (line,) = ran.lines(0)
    assert line.startswith(f"{ran.name(0)} has not moved for ")
    assert line.endswith(" s: reading data of image 96; rank 0 ends the job")
    assert "in rank_0_hangs_reading_data" in ran.stderr(0)


def test_an_interpreter_that_ends_without_farewell_is_named_at_once_and_its_forked_children_are_not(lab):
    store = lab.store()
    process = start_script(FORKS_AND_EXITS, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(store))
    ran = lab.job(all_move, 2, port=store, only=[0], hang_sec=NEVER, silent_sec=NEVER)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (3, "", "")
    assert ran.codes(0) == [EXIT]
    assert ran.lines(0) == [
        f"rank 1 on {HOST} (pid {process.pid}) failed with SystemExit: its process ended early, at after the fork; "
        f"rank 0 ends the job"
    ]


# The judgement as a pure function.


def beat(number: int, count: int, state: str, rank: int, *, what="phase D", nimg=4000) -> bytes:
    return (
        f"{number} {count} {state} {json.dumps([f'node{rank // 8}', 1000 + rank, what, nimg, 'OSError: x'])}".encode()
    )


def crowd(world: int, state: str = "works", **kw) -> list[Seen]:
    """Ranks that beat and moved at second 0."""
    ranks = [Seen(r) for r in range(world)]
    for r in ranks:
        r.update(beat(1, 1, state, r.rank, **kw), 0.0)
    return ranks


def judged(ranks, now: float):
    return judge(ranks, now, hang_sec=600, silent_sec=60)


def keep_beating(ranks, now: float, state: str, **kw) -> None:
    """New beats without progress."""
    for r in ranks:
        r.update(beat(int(now), 1, state, r.rank, **kw), now)


def test_of_4096_ranks_the_one_that_works_while_all_wait_is_the_culprit():
    ranks = crowd(4096)
    keep_beating(ranks, 599.0, "waits", what="sum of gradients")
    ranks[2741].update(beat(2, 1, "works", 2741), 599.0)
    assert judged(ranks, 599.0) is None
    assert judged(ranks, 600.0) == (
        "rank 2741 on node342 (pid 3741) has not moved for 600 s: phase D of image 4000",
        [2741],
    )


def test_one_rank_that_moves_keeps_4096_from_hanging():
    ranks = crowd(4096)
    keep_beating(ranks, 599.0, "waits")
    ranks[7].update(beat(3, 2, "works", 7), 599.0)
    assert judged(ranks, 640.0) is None


def test_five_culprits_are_named_and_the_rest_counted():
    ranks = crowd(4096)
    keep_beating(ranks, 700.0, "works")
    line, culprits = judged(ranks, 700.0)
    assert culprits == [0, 1, 2, 3, 4]
    assert line.count("has not moved for 700 s") == 5
    assert line.endswith("and 4091 more ranks")
    assert "\n" not in line


def test_silent_ranks_come_first_and_one_that_was_never_seen_counts_from_the_start():
    ranks = [*crowd(8), Seen(8)]
    keep_beating(ranks[:3] + ranks[4:8], 50.0, "waits")
    ranks[8].update(UNWRITTEN, 50.0)
    assert judged(ranks, 59.0) is None
    line, culprits = judged(ranks, 61.0)
    assert culprits == [3, 8]
    assert line == (
        "rank 3 on node0 (pid 1003) is dead, stopped or out of reach: no sign for 61 s, last at phase D of image 4000; "
        "rank 8 (never seen) is dead, stopped or out of reach: no sign for 61 s, last at start"
    )


def test_with_little_patience_for_hangs_one_without_beats_is_named_though_it_waited_in_its_last():
    ranks = crowd(2)
    keep_beating(ranks, 1.0, "waits")
    for now in range(2, 22):
        ranks[0].update(beat(now, 1, "waits", 0), float(now))
    line, culprits = judge(ranks, 21.5, hang_sec=20, silent_sec=60) or ("", [])
    assert culprits == [1]
    assert "rank 1 on node0 (pid 1001) is dead, stopped or out of reach: no sign for 20 s" in line
    assert judge(ranks, 19.0, hang_sec=20, silent_sec=60) is None


def test_a_beat_read_twice_is_no_sign_of_life():
    (rank,) = crowd(1)
    rank.update(beat(1, 1, "works", 0), 59.0)
    assert judged([rank], 60.0) is not None


def test_ranks_that_wait_in_different_places_are_told_apart():
    ranks = crowd(4096)
    keep_beating(ranks, 650.0, "waits", what="sum of gradients")
    ranks[9].update(beat(2, 1, "waits", 9, what="stop flags", nimg=4012), 650.0)
    assert judged(ranks, 650.0) == (
        "all 4096 ranks have waited for others for 650 s, they wait in different places: rank 9 on node1 (pid 1009) in "
        "stop flags of image 4012; rank 0 on node0 (pid 1000) and 4094 more in sum of gradients of image 4000",
        [9, 0],
    )
    keep_beating(ranks, 651.0, "waits", what="sum of gradients")
    assert "the network passes nothing: rank 0 on node0 (pid 1000) and 4095 more in" in judged(ranks, 651.0)[0]


def test_failures_count_unless_all_fail_and_farewells_never():
    ranks = crowd(3)
    ranks[1].update(beat(2, 1, "failed", 1), 1.0)
    line = "rank 1 on node0 (pid 1001) failed with OSError: x, at phase D of image 4000"
    assert judged(ranks, 1.0) == (line, [1])
    keep_beating(ranks, 2.0, "failed")
    assert judged(ranks, 1000.0) is None
    keep_beating(ranks, 3.0, "left")
    assert judged(ranks, 1000.0) is None


def test_progress_keeps_the_image_and_comes_back_from_waiting():
    progress = Progress()
    progress.at("phase D", 64)
    with progress.waiting("sum"):
        assert (progress.what, progress.nimg, progress.is_waiting, progress.count) == ("sum", 64, True, 2)
    assert (progress.what, progress.nimg, progress.is_waiting, progress.count) == ("phase D", 64, False, 3)
    progress.at("saving")
    assert (progress.what, progress.nimg, progress.count) == ("saving", 64, 4)


@pytest.mark.parametrize(
    ("error", "state", "what"),
    [(RuntimeError, "broken", "sum"), (WorkError, "works", "phase D"), (OSError, "works", "phase D")],
)
def test_only_an_error_of_torch_in_a_collective_is_laid_on_others(error, state, what):
    progress = Progress()
    progress.at("phase D", 64)
    with pytest.raises(error), progress.waiting("sum"):
        raise error("x")
    assert (progress.state, progress.what, progress.is_waiting) == (state, what, False)
