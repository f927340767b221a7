"""Random SIGKILLs over one short run; it must end, bit for bit, with what the same run ends with undisturbed.

    python tests/bench/chaos.py 200 [--seed 0] [--recipe mspie.table5_f] [--ranks 1] [--aim write rename]

A life of the run is a process forked from this one, which has imported everything, has one thread and has run no torch
operation; so a life costs no imports, and everything else happens anew: networks are built, data opened, the newest
valid checkpoint found and read. SIGKILL goes to the life's process group and is as final as in any other process: no
handler, no flush, no atexit; the next life gets what write() and rename() had done. What this cannot show is a loss of
power, which takes the page cache too. Of several ranks, half of the time one is killed a moment before the others, as
a scheduler does it. With --ranks 1 2 each life draws its number of ranks.

Prints a Markdown table; exits with 1 if a life failed by itself, went on from another checkpoint than the newest, or
if a weight, an optimizer state, a value of the curve (of lines written and overwritten too) or the state differs.
"""

import argparse
import contextlib
import ctypes
import json
import multiprocessing
import os
import random
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # before numpy and torch are imported
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import torch._dynamo  # which the first optimizer of a process would import, for a second

import pipeline.run
from pipeline.tracking import jsonl
from tests import runs
from tests.runs import SIZE_PX, Runner, final_state, prepare_photos

AIMS = {"anywhere": 0.35, "start": 0.1, "write": 0.35, "rename": 0.2}  # share of the kills
BATCH = {runs.MSPIE: 6, runs.CIPS: 8}
ITERATIONS = 3  # from checkpoint to checkpoint
POLL_SEC = 0.0005
PATIENCE_SEC = 120.0


class Lost(Exception):  # noqa: N818 - an outcome
    """What must not happen; says what."""


class Beat(ctypes.Structure):
    """What rank 0 of a life does now, in memory that outlives it."""

    _fields_ = [("nimg", ctypes.c_longlong), ("what", ctypes.c_char * 40)]


class Life:
    """`work(rank)` in a forked process a rank, all in one process group of their own."""

    def __init__(self, work: Callable[[int], object], ranks: int, log: Path):
        if threading.active_count() > 1 or len(os.listdir("/proc/self/task")) > 1:
            raise RuntimeError("to be forked from a process of one thread only")
        self.beat = multiprocessing.RawValue(Beat, -1, b"")
        self.began, self.code, self.ended, self.pids = time.monotonic(), 0, False, []
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            place = {"WORLD_SIZE": f"{ranks}", "LOCAL_WORLD_SIZE": f"{ranks}", "MASTER_ADDR": "127.0.0.1"}
            place |= {"MASTER_PORT": f"{s.getsockname()[1]}", "GLOO_SOCKET_IFNAME": "lo"}
        for rank in range(ranks):
            if not (pid := os.fork()):
                if ranks > 1:
                    os.environ.update(place, RANK=f"{rank}", LOCAL_RANK=f"{rank}")
                self._live(work, rank, log)
            self.pids.append(pid)
            self.group = self.pids[0]
            os.setpgid(pid, self.group)

    def _live(self, work: Callable[[int], object], rank: int, log: Path) -> None:
        """Of the forked process, which never comes back."""
        code = 1
        try:
            os.setpgid(0, self.pids[0] if self.pids else 0)
            fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.dup2(fd, 1)
            os.dup2(fd, 2)
            torch.set_num_threads(1)
            if not rank:
                self._tell_beats()
            work(rank)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)

    def _tell_beats(self) -> None:
        from pipeline.training.watchdog import Progress

        own, beat = Progress.at, self.beat

        def at(progress: Progress, what: str, nimg: int | None = None) -> None:
            own(progress, what, nimg)
            if nimg is not None:
                beat.nimg = nimg
            beat.what = what.encode()[:39]

        Progress.at = at

    def alive(self) -> bool:
        """False once a rank has ended, however it did."""
        for pid in [] if self.ended else self.pids:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self.ended = True
                self.pids.remove(pid)
                self.code = os.waitstatus_to_exitcode(status)
                break
        return not self.ended

    def kill(self, chance: random.Random) -> None:
        """All ranks; those that nobody has waited for are found even if they have ended."""
        if len(self.pids) > 1 and chance.random() < 0.5:
            os.kill(chance.choice(self.pids), signal.SIGKILL)
            time.sleep(chance.uniform(0, 0.3))
        if self.pids:
            os.killpg(self.group, signal.SIGKILL)
        self.wait()

    def wait(self) -> float:
        """Until all ranks have ended; seconds since the start."""
        for pid in self.pids:
            _, status = os.waitpid(pid, 0)
            self.code = self.code or os.waitstatus_to_exitcode(status)
        self.pids = []
        return time.monotonic() - self.began


def train(folder: Path) -> None:
    """The work of a life: go on with the run in this folder."""
    assert pipeline.run.train_folder(folder, should_stop=lambda: False) == "done"


def prepared(place: Path, prepare: Callable[[Path], object]) -> Path:
    """A data set, made in a process of its own: this one has to stay without threads."""
    life = Life(lambda _: prepare(place / "data"), 1, place / "log")
    life.wait()
    assert not life.code, (place / "log").read_text()
    return place / "data"


def is_half_written(name: str) -> bool:
    """Of a hidden folder among the checkpoints."""
    return name.endswith(".tmp") and not name.endswith(".pruned.tmp")


@dataclass
class Disk:
    """What lies in a run's folder: all that the kills are judged by."""

    folder: Path
    offset: int = 0  # of events.jsonl, up to which `began_at` has read

    def saved(self) -> int:
        """nimg of the newest published checkpoint."""
        return max((int(p.name) for p in self._root.glob("[0-9]*")), default=0)

    def hidden(self) -> set[str]:
        """Folders that are being written or deleted, or were when they were left."""
        with contextlib.suppress(FileNotFoundError):
            return {name for name in os.listdir(self._root) if name.startswith(".")}
        return set()

    def writing(self) -> set[str]:
        return {name for name in self.hidden() if is_half_written(name)}

    def began_at(self) -> list[int]:
        """nimg of each start and resume since the last call."""
        rows = list(jsonl.tail(self.folder / jsonl.EVENTS, self.offset))
        self.offset = rows[-1][1] if rows else self.offset
        return [record["nimg"] for record, _ in rows if record["event"] in ("start", "resume")]

    @property
    def _root(self) -> Path:
        return self.folder / "checkpoints"


@dataclass
class Tempo:
    """Of the undisturbed run, in seconds."""

    life: float = 0.0
    start: float = 0.0  # until the first image
    interval: float = 0.0  # from checkpoint to checkpoint
    write: float = 0.0  # during which a checkpoint is half-written


@dataclass
class Tally:
    """What happened."""

    aims: Counter[str] = field(default_factory=Counter)
    doing: Counter[str] = field(default_factory=Counter)
    kills: int = 0
    resumes: int = 0
    untold: int = 0  # killed before they said from where they go on
    in_write: int = 0
    in_prune: int = 0
    after_rename: int = 0  # in the iteration that follows a checkpoint, or before
    lost_images: list[int] = field(default_factory=list)
    sec: float = 0.0


class Chaos:
    """One run and its undisturbed twin, below one folder."""

    def __init__(self, place: Path, data: Path, recipe: str, kills: int, ranks: Sequence[int], chance: random.Random):
        self.place, self.data, self.recipe, self.kills = place, data, recipe, kills
        self.ranks, self.chance = ranks, chance
        self.interval_images = ITERATIONS * BATCH[recipe]
        self.intervals = kills * 7 // 8 + 5  # a life gets further by less than one; the last goes the rest of the way
        self.log = place / "log"

    def plan(self, name: str, ranks: int) -> Path:
        kimg = self.interval_images / 1000
        sets = [f"batch_size={BATCH[self.recipe]}", f"total_kimg={self.intervals * kimg}", f"exec.gpus={ranks}"]
        sets += [f"exec.checkpoint_kimg={kimg}", "exec.workers=1"]
        return Runner(self.data, self.place / name, self.recipe).plan(*sets)

    def undisturbed(self) -> Tempo:
        folder, tempo = self.plan("undisturbed", self.ranks[0]), Tempo()
        disk, life, polls, writing = Disk(folder), Life(lambda _: train(folder), self.ranks[0], self.log), 0, 0
        while life.alive():
            if life.beat.nimg >= 0:
                tempo.start = tempo.start or time.monotonic() - life.began
                polls, writing = polls + 1, writing + bool(disk.writing())
            time.sleep(POLL_SEC)
        tempo.life = life.wait()
        if life.code:
            raise Lost(f"the undisturbed run failed with exit code {life.code}:\n{self.tail()}")
        tempo.interval = (tempo.life - tempo.start) / self.intervals
        tempo.write = tempo.interval * writing / max(polls, 1)
        return tempo

    def tail(self) -> str:
        return "\n".join(self.log.read_text().splitlines()[-15:])

    def killed(self, tempo: Tempo, aims: Sequence[str]) -> Tally:
        """Kill, start again, kill; then let it end."""
        tally, began = Tally(), time.monotonic()
        disk = Disk(self.plan("killed", self.ranks[0]))
        for _ in range(self.kills):
            self._one_life(disk, tempo, tally, self.chance.choices(aims, [AIMS[a] for a in aims])[0])
        expected = disk.saved()
        life = self._begin()
        life.wait()
        if life.code:
            raise Lost(f"the last life failed with exit code {life.code}:\n{self.tail()}")
        self._check_began(disk.began_at(), expected, tally)
        tally.sec = time.monotonic() - began
        return tally

    def _begin(self) -> Life:
        ranks = self.chance.choice(self.ranks)
        folder = self.plan("killed", ranks)
        return Life(lambda _: train(folder), ranks, self.log)

    def _one_life(self, disk: Disk, tempo: Tempo, tally: Tally, aim: str) -> None:
        saved_before, left_before = disk.saved(), disk.hidden()
        if saved_before > (self.intervals - 4) * self.interval_images:  # the run must not end before the last kill
            aim = "start"
        life = self._begin()
        self._await_the_instant(life, disk, tempo, aim, left_before)
        if not life.alive():
            life.kill(self.chance)
            raise Lost(f"life {tally.kills + 1} ended by itself, exit code {life.code}:\n{self.tail()}")
        life.kill(self.chance)
        saved, left = disk.saved(), disk.hidden() - left_before
        tally.kills, tally.aims[aim] = tally.kills + 1, tally.aims[aim] + 1
        if saved < saved_before:
            raise Lost(f"image {saved_before} was published, after kill {tally.kills} the newest is {saved}")
        self._check_began(disk.began_at(), saved_before, tally)
        tally.doing[life.beat.what.decode() or "start"] += 1
        tally.in_prune += any(name.endswith(".pruned.tmp") for name in left)
        tally.in_write += any(map(is_half_written, left))
        tally.after_rename += saved > saved_before and life.beat.nimg <= saved
        tally.lost_images.append(max(0, life.beat.nimg - saved))

    def _check_began(self, began_at: list[int], expected: int, tally: Tally) -> None:
        if not began_at:
            tally.untold += 1
        elif began_at != [expected]:
            raise Lost(f"after kill {tally.kills} the run went on from image {began_at}, not from {expected}")
        else:
            tally.resumes += tally.kills > 0

    def _await_the_instant(self, life: Life, disk: Disk, tempo: Tempo, aim: str, left: set[str]) -> None:
        chance = self.chance
        if aim == "start":
            return self._sleep(life, chance.uniform(0, tempo.start))
        if aim == "anywhere":
            return self._sleep(life, chance.uniform(0, tempo.start + 2 * tempo.interval))
        target = disk.saved() + chance.randrange(2) * self.interval_images
        self._poll(life, lambda: disk.saved() >= target)
        if aim == "write":
            self._poll(life, lambda: bool(disk.writing() - left))
            return self._sleep(life, chance.uniform(0, 0.7 * tempo.write))
        self._poll(life, lambda: disk.saved() > target)
        return self._sleep(life, chance.uniform(0, 0.002))

    def _poll(self, life: Life, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SEC
        while life.alive() and not condition():
            if time.monotonic() > deadline:
                life.kill(self.chance)
                raise Lost(f"a life stood still at {life.beat.what.decode()!r}:\n{self.tail()}")
            time.sleep(POLL_SEC)

    def _sleep(self, life: Life, sec: float) -> None:
        until = time.monotonic() + sec
        self._poll(life, lambda: time.monotonic() >= until)


def values(folder: Path) -> dict[str, object]:
    """By name, all that a run ends with and all that it wrote on its way, but for times and places."""
    newest = max(folder.glob("checkpoints/[0-9]*"))
    found: dict[str, object] = dict(final_state(folder))
    found["state.json"] = {k: v for k, v in json.loads((newest / "state.json").read_text()).items() if "sec" not in k}
    for record in jsonl.read(folder / jsonl.METRICS):  # lines that a resumed run wrote again have to be equal too
        point = {k: v for k, v in record["metrics"].items() if k.startswith(("Loss", "Feedback"))}
        name = f"curve at {record['nimg']}"
        if found.setdefault(name, point) != point:
            found[f"{name}, written again"] = point
    return found


def differences(folder: Path, other: Path) -> list[str]:
    """Names of what is not equal in two runs."""
    a, b = values(folder), values(other)

    def equal(x: object, y: object) -> bool:
        return torch.equal(x, y) if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor) else x == y

    return sorted(name for name in a.keys() | b.keys() if name not in a or name not in b or not equal(a[name], b[name]))


def table(chaos: Chaos, tempo: Tempo, tally: Tally, compared: int) -> str:
    lost, interval = tally.lost_images, chaos.interval_images
    aims = ", ".join(f"{n} {aim}" for aim, n in tally.aims.items())
    doing = ", ".join(f"{n} {what}" for what, n in tally.doing.most_common())
    rows = {
        "run": f"{chaos.recipe}, tiny: {chaos.intervals * interval:,} images, {' or '.join(map(str, chaos.ranks))} "
        f"rank(s), a checkpoint every {interval} images ({tempo.interval:.2f} s, {tempo.write:.3f} s of them writing)",
        "kills": f"{tally.kills}; aimed: {aims}; while: {doing}",
        "in the write of a checkpoint": f"{tally.in_write} (left a half-written folder), while one was deleted: "
        f"{tally.in_prune}, between a rename and the next iteration: {tally.after_rename}",
        "resumes": f"{tally.resumes}, each from the newest published checkpoint; {tally.untold} lives were killed "
        "before they said from where",
        "work lost by a kill": f"worst {max(lost)} images ({max(lost) / interval:.1f} intervals), mean "
        f"{statistics.mean(lost):.0f} ({statistics.mean(lost) / interval:.1f})",
        "wall time": f"{tally.sec:.0f} s against {tempo.life:.0f} s undisturbed: ratio {tally.sec / tempo.life:.1f}, "
        f"{(tally.sec - tempo.life) / tally.kills:.2f} s a kill",
        "equal, bit for bit": f"{compared} tensors, numbers and points of the curve",
    }
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {text} |" for name, text in rows.items())])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kills", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipe", choices=list(runs.SMALL), default=runs.MSPIE)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1], choices=[1, 2])
    parser.add_argument("--aim", nargs="+", default=list(AIMS), choices=list(AIMS))
    parser.add_argument("--data", type=Path, help="a prepared set; the bundled photographs if not given")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        data = args.data or prepared(place, lambda data: prepare_photos(data, SIZE_PX[args.recipe]))
        chaos = Chaos(place, data, args.recipe, args.kills, args.ranks, random.Random(args.seed))
        try:
            tempo = chaos.undisturbed()
            tally = chaos.killed(tempo, args.aim)
            undisturbed, killed = (chaos.plan(name, args.ranks[0]) for name in ("undisturbed", "killed"))
            if different := differences(undisturbed, killed):
                raise Lost(f"{len(different)} values differ, such as {different[:5]}")
        except Lost as e:
            print(f"lost: 1 ({e})", flush=True)
            return 1
        print(table(chaos, tempo, tally, len(values(killed))))
    print("\nlost: 0", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
