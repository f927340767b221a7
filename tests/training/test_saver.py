"""Publishing beside training: training waits only for the snapshot before, survives disks that refuse, and no kill
costs a checkpoint that was published.

Threads, disks, limits and kills are real; the two errors that cannot be provoked here are fakes and say so.
"""

import errno
import gc
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.training import checkpoint
from pipeline.training import saver as saver_module
from pipeline.training.checkpoint import Snapshot, load, newest_valid
from pipeline.training.saver import Saver
from tests.training.snapshots import FINGERPRINT, assert_same, snapshot, tensors, values

ROOT = Path(__file__).resolve().parent.parent.parent


class Events:
    """What a Saver told, and where a test may hold it up: `hold` before the event of that nimg."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, dict[str, Any]]] = []
        self.held, self.gates = threading.Event(), {}

    def hold(self, nimg: int) -> threading.Event:
        self.gates[nimg] = threading.Event()
        return self.gates[nimg]

    def __call__(self, name: str, nimg: int, **facts: Any) -> None:
        if gate := self.gates.get(nimg):
            self.held.set()
            assert gate.wait(60)
        self.told.append((name, nimg, facts))

    def names(self) -> list[tuple[str, int]]:
        return [(name, nimg) for name, nimg, _ in self.told]


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture
def saver(root, events) -> Iterator[Saver]:
    made = Saver(root, 2, events)
    yield made
    for gate in events.gates.values():
        gate.set()
    made.close()


def refuse_rename(monkeypatch, code: int, which: Callable[[Path, Path], bool]) -> None:
    """A fake: os.rename(a, b) raises this error where `which(a, b)`."""
    rename = os.rename

    def refusing(a: Path, b: Path) -> None:
        if which(a, b):
            raise OSError(code, os.strerror(code))
        rename(a, b)

    monkeypatch.setattr(os, "rename", refusing)


def hidden(root: Path) -> list[str]:
    return [p.name for p in root.glob(".*")]


def numbers(root: Path) -> list[int]:
    return [checkpoint.nimg_of(p) for p in checkpoint.all_checkpoints(root)]


# In the background


def test_training_goes_on_while_a_snapshot_is_published_and_waits_only_for_the_one_before(saver, root, events):
    gate = events.hold(8)
    saver.submit(snapshot(8))
    assert events.held.wait(60)  # published, its event under way; this thread got here all the same
    done = threading.Event()
    second = threading.Thread(target=lambda: (saver.submit(snapshot(16)), done.set()))
    second.start()
    assert not done.wait(0.2)
    assert not (root / f"{16:012d}").exists()
    gate.set()
    second.join(60)
    assert saver.drain() is None
    assert events.names() == [("checkpoint", 8), ("checkpoint", 16)]


def test_the_event_says_what_it_cost_and_each_wait_counts_once(saver, events, monkeypatch):
    """The wait begins where the clock is read by this thread; only then may the one before come to its end."""
    gate, monotonic, main = events.hold(16), time.monotonic, threading.current_thread()

    def clock() -> float:
        if threading.current_thread() is main:
            threading.Timer(0.05, gate.set).start()
        return monotonic()

    saver.submit(snapshot(8))
    assert saver.drain() is None
    began = monotonic()
    saver.submit(snapshot(16))
    monkeypatch.setattr(saver_module.time, "monotonic", clock)
    saver.submit(snapshot(24))
    monkeypatch.undo()
    for nimg in range(32, 80, 8):
        saver.submit(snapshot(nimg))
    in_all_sec = monotonic() - began
    assert saver.drain() is None
    facts = {nimg: facts for _, nimg, facts in events.told}
    assert [sorted(f) for f in facts.values()] == [["bytes", "sec", "waited_sec"]] * 9
    assert facts[8]["bytes"] == snapshot(8).nbytes == sum(t.nbytes for t in tensors(snapshot(8)).values())
    assert facts[8]["sec"] > 0
    assert facts[8]["waited_sec"] == 0
    assert facts[24]["waited_sec"] >= 0.05
    assert sum(facts[nimg]["waited_sec"] for nimg in range(24, 80, 8)) < in_all_sec + 0.01  # rounded to 0.001 each


def test_a_clock_set_back_an_hour_makes_no_duration_negative(saver, events, monkeypatch):
    """time.time is patched: a test must not set the clock of the machine."""
    now = time.time()
    for i in range(3):
        monkeypatch.setattr(time, "time", lambda i=i: now - 3600 * i)
        saver.submit(snapshot(8 + 8 * i))
    saver.drain()
    assert [nimg for _, nimg in events.names()] == [8, 16, 24]
    assert all(0 <= facts[key] < 3000 for _, _, facts in events.told for key in ("sec", "waited_sec"))


def test_what_is_published_is_what_was_given_whatever_training_does_meanwhile(saver, root, events):
    """A real network that goes on changing; the snapshot holds copies, as the loop makes them."""
    net = torch.nn.Linear(64, 64)
    adam = torch.optim.Adam(net.parameters(), lr=0.1)
    given = []
    for nimg in (8, 16, 24):
        net(torch.randn(4, 64)).square().sum().backward()
        adam.step()
        nets = {"G": {k: v.detach().clone() for k, v in net.state_dict().items()}}
        state = adam.state_dict()
        state["state"] = {i: {k: v.clone() for k, v in entry.items()} for i, entry in state["state"].items()}
        given.append(Snapshot(snapshot(nimg).state, nets, {"G": state}))
        saver.submit(given[-1], milestone=True)
        with torch.no_grad():
            for p in net.parameters():
                p.fill_(float("nan"))
                p.normal_()
    assert saver.drain() is None
    for one in given:
        assert_same(load(root / f"{one.state.nimg:012d}", FINGERPRINT), one)
    assert not torch.equal(given[0].nets["G"]["weight"], given[1].nets["G"]["weight"])


def test_a_snapshot_is_let_go_as_soon_as_it_is_written_or_has_failed(root, events, tmp_path):
    (tmp_path / "file").touch()
    for place in (root, tmp_path / "file"):
        saver, one = Saver(place, 2, events), snapshot(8)
        ref = weakref.ref(one.nets["G"]["weight"])
        saver.submit(one)
        del one
        error = saver.drain()
        assert (error is None) == (place == root)
        gc.collect()
        assert ref() is None
        saver.close()


def test_older_ones_are_pruned_and_milestones_stay(saver, root):
    for nimg in (8, 16, 24, 32):
        saver.submit(snapshot(nimg), milestone=nimg == 8)
    assert saver.drain() is None
    assert numbers(root) == [32, 24, 8]


def test_close_waits_and_may_be_called_twice(root, events):
    saver = Saver(root, 2, events)
    saver.submit(snapshot(8, numel=1 << 18))
    saver.close()
    assert events.names() == [("checkpoint", 8)]
    assert numbers(root) == [8]
    saver.close()
    assert Saver(root, 2, events).drain() is None


@pytest.mark.parametrize("how", ["drain", "submit", "close"])
def test_a_bug_in_the_thread_is_raised_in_the_loop_once(root, how):
    def event(name: str, nimg: int, **facts: Any) -> None:
        raise ZeroDivisionError(name)

    saver = Saver(root, 2, event)
    saver.submit(snapshot(8))
    with pytest.raises(ZeroDivisionError, match="checkpoint"):
        {"drain": saver.drain, "submit": lambda: saver.submit(snapshot(16)), "close": saver.close}[how]()
    assert saver.drain() is None
    saver.close()


# Disks that refuse


def refused(saver: Saver, events: Events, capfd: pytest.CaptureFixture[str], nimg: int, **size: int) -> str:
    """Submit one that must fail: told once on stderr and once as an event, in one line. Returns the line."""
    events.told.clear()
    capfd.readouterr()
    saver.submit(snapshot(nimg, **size))
    error = saver.drain()
    assert isinstance(error, OSError)
    assert events.names() == [("checkpoint failed", nimg)]
    line = events.told[0][2]["error"]
    assert "\n" not in line
    assert line.startswith(f"{error}; training goes on, ")
    assert capfd.readouterr().err == f"graticule: checkpoint at kimg {nimg / 1000:g} failed: {line}\n"
    return line


def test_a_disk_that_is_clearly_too_small_is_refused_before_anything_is_written(disk, events, capfd):
    root = disk("size=4m")
    saver = Saver(root, 2, events)
    saver.submit(snapshot(8))
    assert saver.drain() is None
    before = root.stat().st_mtime_ns
    line = refused(saver, events, capfd, 16, numel=1 << 18)
    assert root.stat().st_mtime_ns == before
    assert line == (
        f"No space left on device: checkpoint of {snapshot(16, numel=1 << 18).nbytes / 1e6:.1f} MB in {root}; "
        "free disk space; training goes on, the newest checkpoint is kimg 0.008"
    )
    saver.close()


def test_a_disk_that_fills_up_at_any_file_costs_nothing_but_the_new_checkpoint(disk, events, capfd, monkeypatch):
    """A tmpfs with room for page after page more; the look at its free space is a fake that sees plenty."""
    root = disk("size=1m")
    saver = Saver(root, 2, events)
    saver.submit(snapshot(8))
    assert saver.drain() is None
    usage, unlink, reached, left = shutil.disk_usage(root), os.unlink, set(), []
    plenty = usage._replace(total=1 << 40, free=1 << 40)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: plenty)
    monkeypatch.setattr(os, "unlink", lambda name, **k: (left.append(str(name)), unlink(name, **k))[1])
    for more_kb in range(4, 400, 4):
        disk(f"size={usage.used // 1024 + more_kb}k")
        left.clear()
        saver.submit(snapshot(16, numel=1024))
        if saver.drain() is None:
            break
        reached.add(len(left))
        assert not hidden(root)
        assert newest_valid(root) == (root / f"{8:012d}", [])
        line = refused(saver, events, capfd, 16, numel=1024)
        assert line.startswith(f"No space left on device: checkpoint of 0.0 MB in {root}; free disk space; training")
    assert reached == set(range(1, 8)), "not every file was the one without room"
    assert values(load(newest_valid(root)[0], FINGERPRINT)) == {16.0}
    saver.close()


def test_a_limit_on_the_size_of_files_is_told_and_the_next_one_without_it_is_published(saver, root, events, capfd):
    saver.submit(snapshot(8))
    saver.drain()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        line = refused(saver, events, capfd, 16, numel=4096)  # 16 kB of weights in G, 32 kB of Adam's state
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert line.startswith("File too large: checkpoint of 0.1 MB")
    assert not hidden(root)
    assert numbers(root) == [8]
    saver.submit(snapshot(24, numel=4096))
    assert saver.drain() is None
    assert numbers(root) == [24, 8]


@pytest.mark.parametrize("also_damaged", [False, True])
def test_a_read_only_disk_is_told_and_costs_nothing_once_it_is_writable(disk, events, capfd, also_damaged):
    root = disk("size=4m")
    saver = Saver(root, 2, events)
    for nimg in (8, 16):
        saver.submit(snapshot(nimg))
    assert saver.drain() is None
    if also_damaged:
        os.truncate(root / f"{16:012d}" / "state.json", 3)
    disk("ro")
    line = refused(saver, events, capfd, 24)
    assert line.startswith(
        f"Read-only file system: checkpoint of 0.0 MB in {root}; mount it writable; training goes on"
    )
    assert line.endswith(
        "the newest checkpoint is kimg 0.008" if also_damaged else "the newest checkpoint is kimg 0.016"
    )
    disk("rw")
    saver.submit(snapshot(24))
    assert saver.drain() is None
    assert numbers(root) == [24, 16]
    saver.close()


def test_a_folder_that_is_gone_is_told(root, tmp_path, events, capfd):
    saver = Saver(root, 2, events)
    saver.submit(snapshot(8))
    assert saver.drain() is None
    shutil.rmtree(root)
    root.write_text("in the way")
    assert refused(saver, events, capfd, 16).endswith("training goes on, there is no checkpoint yet")
    root.unlink()
    saver.submit(snapshot(24))
    assert saver.drain() is None
    assert numbers(root) == [24]
    saver.close()


@pytest.mark.parametrize("code", [errno.EDQUOT, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("at", ["G_ema.safetensors", "opt_G.pt", "manifest.json"])
def test_any_error_of_the_disk_is_told_and_leaves_nothing(saver, root, events, capfd, monkeypatch, code, at):
    """A fake: quotas, broken disks and lost servers cannot be had here; os.fsync fails as they make it fail."""
    saver.submit(snapshot(8))
    saver.drain()
    fsync = os.fsync

    def failing(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith(at):
            raise OSError(code, os.strerror(code))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", failing)
    line = refused(saver, events, capfd, 16)
    assert line.startswith(f"{os.strerror(code)}: checkpoint of 0.0 MB in {root}; ")
    assert not hidden(root)
    assert newest_valid(root) == (root / f"{8:012d}", [])


def test_what_does_not_read_back_is_not_published(saver, root, events, capfd, monkeypatch):
    """A fake: a disk that loses what it was given, where the files are damaged between writing and reading back."""
    saver.submit(snapshot(8))
    saver.drain()
    write = checkpoint.write

    def lossy(folder: Path, *args: Any, **kwargs: Any) -> None:
        write(folder, *args, **kwargs)
        os.truncate(folder / "opt_G.pt", 100)

    monkeypatch.setattr(checkpoint, "write", lossy)
    assert "does not read back (opt_G.pt does not match its sha256)" in refused(saver, events, capfd, 16)
    assert numbers(root) == [8]


def test_what_was_to_be_replaced_is_back_in_its_place_where_publishing_fails(saver, root, events, capfd, monkeypatch):
    """A fake: os.rename refuses what is to be published."""
    saver.submit(snapshot(8))
    saver.drain()
    refuse_rename(monkeypatch, errno.EDQUOT, lambda a, b: str(a).endswith(".tmp"))
    saver.submit(snapshot(8, value=99.0, rollbacks=1))
    assert "free disk space or raise the quota" in str(saver.drain())
    assert [p.name for p in root.iterdir()] == [f"{8:012d}"]
    assert values(load(root / f"{8:012d}", FINGERPRINT)) == {8.0}


def test_older_checkpoints_that_cannot_be_deleted_are_told_and_no_failure(saver, root, events, capfd, monkeypatch):
    """A fake: os.rename refuses what is to be deleted, as a server does that lost its lease."""
    refuse_rename(monkeypatch, errno.ESTALE, lambda a, b: str(b).endswith(".deleted.tmp"))
    for nimg in (8, 16, 24):
        saver.submit(snapshot(nimg))
    assert saver.drain() is None
    assert capfd.readouterr().err == "graticule: checkpoint at kimg 0.024: older ones not deleted (Stale file handle)\n"
    monkeypatch.undo()
    saver.submit(snapshot(32))
    saver.drain()
    assert numbers(root) == [32, 24]


def test_an_event_that_the_full_disk_refuses_is_told_and_no_failure(root, capfd, tmp_path):
    """The events of a run lie on the same disk as its checkpoints."""

    def event(name: str, nimg: int, **facts: Any) -> None:
        with open("/dev/full", "w") as f:
            f.write(name)

    saver = Saver(root, 2, event)
    saver.submit(snapshot(8))
    assert saver.drain() is None
    expected = "graticule: event of the checkpoint at kimg 0.008 not recorded (No space left on device)\n"
    assert capfd.readouterr().err == expected
    shutil.rmtree(root)
    root.touch()
    saver.submit(snapshot(16))
    assert isinstance(saver.drain(), OSError)
    first, second = capfd.readouterr().err.splitlines()
    assert first.startswith("graticule: checkpoint at kimg 0.016 failed: ")
    assert second == "graticule: event of the failed checkpoint at kimg 0.016 not recorded (No space left on device)"
    saver.close()


def test_not_even_a_stderr_on_the_full_disk_ends_the_thread(root, events, monkeypatch):
    root.touch()
    saver = Saver(root, 2, events)
    full = os.open("/dev/full", os.O_WRONLY)
    with monkeypatch.context() as m:
        stderr = os.fdopen(full, "w", buffering=1)
        m.setattr(sys, "stderr", stderr)
        saver.submit(snapshot(8))
        assert isinstance(saver.drain(), OSError)
    with pytest.raises(OSError, match="No space left"):
        stderr.close()
    assert events.names() == [("checkpoint failed", 8)]
    saver.close()


def test_drain_tells_of_the_newest_snapshot_only(saver, root):
    root.touch()
    saver.submit(snapshot(8))
    error = saver.drain()
    assert isinstance(error, OSError)
    assert saver.drain() is error
    root.unlink()
    saver.submit(snapshot(16))
    assert saver.drain() is None


# Kills: in one process of its own, which imports once and forks the processes that it kills

KILLS = """
import json, os, random, shutil, signal, sys, time
from pathlib import Path
from pipeline.training import checkpoint
from pipeline.training.saver import Saver
from tests.training.snapshots import FINGERPRINT, snapshot, values

OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")

def quiet(*args, **facts):
    pass

def fork(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(3)
    return pid

def look(root):
    damaged = [problem for problem in map(checkpoint.problem_of, checkpoint.all_checkpoints(root)) if problem]
    found, passed = checkpoint.newest_valid(root)
    if found is None or damaged:
        return {"nimg": None, "problems": passed + damaged}
    loaded = checkpoint.load(found, FINGERPRINT)
    return {"nimg": loaded.state.nimg, "values": sorted(values(loaded)), "rollbacks": loaded.state.rollbacks}

def publish(root, work):
    saver = Saver(root, 2, quiet)
    saver.submit(work)
    error = saver.drain()
    assert error is None, error
    saver.close()

def at_random(root, times):
    def saving(parent=os.getpid()):
        saver, nimg = Saver(root, 2, quiet), look(root)["nimg"]
        while os.getppid() == parent:
            nimg += 8
            saver.submit(snapshot(nimg, numel=1 << 17))

    checkpoint.save(root, snapshot(8))
    for _ in range(times):
        pid = fork(saving)
        time.sleep(random.uniform(0, 0.15))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        yield {**look(root), "cut": any(root.glob(".*"))}

def at_each_operation(start, root, nimgs, rollbacks):
    def act():
        seen = []
        def hook(event, args):
            if event in OPERATIONS:
                seen.append(event)
                if len(seen) == n:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        publish(root, work)
        os._exit(0)

    work, status = snapshot(24, value=99.0, rollbacks=rollbacks), None
    for nimg in nimgs:
        checkpoint.save(start, snapshot(nimg))
    for n in range(1, 1000):
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(start, root)
        status = os.waitpid(fork(act), 0)[1]
        after = look(root)
        publish(root, work)
        yield {"status": status, "after": after, "again": look(root), "there": sorted(os.listdir(root))}
        if status == 0:
            return

place = Path(sys.argv[1])
print(json.dumps({
    "random": list(at_random(place / "random", 24)),
    "new": list(at_each_operation(place / "a", place / "b", [8, 16], 0)),
    "replaced": list(at_each_operation(place / "c", place / "d", [24], 1)),
}))
"""


@pytest.fixture(scope="module")
def kills(tmp_path_factory) -> dict[str, list[dict[str, Any]]]:
    command = [sys.executable, "-c", KILLS, str(tmp_path_factory.mktemp("kills"))]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_kills_at_random_instants_of_a_background_save_always_leave_a_complete_checkpoint(kills):
    seen = kills["random"]
    assert len(seen) == 24
    for one in seen:
        assert one["values"] == [float(one["nimg"])]
    nimgs = [one["nimg"] for one in seen]
    assert nimgs == sorted(nimgs)
    assert nimgs[-1] > 8, "no save was ever finished"
    assert any(one["cut"] for one in seen), "no save was ever cut"


@pytest.mark.parametrize(("case", "nimgs", "rollbacks"), [("new", [8, 16], 0), ("replaced", [24], 1)])
def test_a_kill_before_any_file_operation_leaves_a_checkpoint_and_the_save_can_be_repeated(
    kills, case, nimgs, rollbacks
):
    """SIGKILL comes before one operation after the other, until none is left.

    "new": the third checkpoint, after which the first is pruned; "replaced": in place of the only one there is.
    """
    seen = kills[case]
    before = {"nimg": nimgs[-1], "values": [float(nimgs[-1])], "rollbacks": 0}
    new = {"nimg": 24, "values": [99.0], "rollbacks": rollbacks}
    assert [one["status"] for one in seen] == [9] * (len(seen) - 1) + [0]
    published = [one["after"] == new for one in seen]
    assert [one["after"] for one in seen] == [before] * published.index(True) + [new] * sum(published)
    assert published.index(True) > 10
    assert sum(published) > 5, "no kill came between publishing and the end of pruning"
    for one in seen:
        assert one["again"] == new
        assert one["there"] == [f"{n:012d}" for n in sorted({*nimgs[1:], 24})]
