"""What safety costs: checkpoints, tracking, reading, watching, as shares of the time of one small run.

    python tests/bench/overheads.py [--method mspie] [--rounds 3] [--kimg 4]

The run is the demo's (pipeline/demo.py): its networks, images, ranks and settings, but with a checkpoint and a line of
metrics more often, so that there is more to measure. The variants differ in one thing each and take turns, in processes
forked from this one (see chaos.py); each is compared with the plain variant of its round, and the second plain one
shows which differences mean nothing here. Times are rank 0's, from where the loop says what it begins.
"""

import argparse
import os
import shutil
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path

if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # before numpy and torch are imported
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from pipeline import demo
from pipeline.plan import ExecConfig, override_all
from pipeline.recipes import find
from pipeline.run import plan_run
from pipeline.tracking import jsonl
from pipeline.tracking.client import connect
from pipeline.training import checkpoint
from pipeline.training.engine import Engine
from pipeline.training.health import Health
from pipeline.training.saver import Saver
from pipeline.training.watchdog import Progress, Watchdog
from tests.bench.chaos import Life, prepared, train
from tests.runs import prepare_photos

RANKS = 2
CHECKPOINT_KIMG, STATUS_KIMG = 0.25, 0.1
DEMO_KIMG = next(float(s.split("=")[1]) for s in demo.EXEC if s.startswith("exec.checkpoint_kimg="))
BEAT_SEC = 5.0  # of the watchdog as it is by default
PLAIN, AGAIN, SYNCHRONOUS = "plain", "plain again", "checkpoints written by the loop"
TRACKED, SILENT = "tracked, SQLite", "tracked, the server accepts and never answers"
VARIANTS = (PLAIN, TRACKED, AGAIN, SILENT, SYNCHRONOUS)


@dataclass
class Trace:
    """What one run did when; all in seconds."""

    iterations: list[float] = field(default_factory=list)  # data, phases, moving average, word between ranks
    stalls: list[float] = field(default_factory=list)  # of the loop by a checkpoint
    writing: list[float] = field(default_factory=list)  # of a checkpoint, beside training
    writing_cpu: list[float] = field(default_factory=list)
    mirror_cpu: list[tuple[float, float]] = field(default_factory=list)  # (when, seconds used until then)
    ending: float = 0.0  # from the last checkpoint's snapshot to the end of the process
    data_wait_share: float = 0.0  # as the loop prints it
    stall_share: float = 0.0  # the same, by checkpoints

    @property
    def median(self) -> float:
        return statistics.median(self.iterations)

    def mirror(self) -> tuple[float, float]:
        """CPU seconds that MLflow's thread takes once, and its share of the time after that."""
        cut = len(self.mirror_cpu) // 2
        (middle, used), (end, all_) = self.mirror_cpu[cut], self.mirror_cpu[-1]
        slope = (all_ - used) / (end - middle)
        return used - slope * (middle - self.mirror_cpu[0][0]), slope


def record(out: Path) -> None:
    """From now on this process writes a line for whatever its loop begins, and for each checkpoint it has written."""
    file, at, save = out.open("w", buffering=1), Progress.at, checkpoint.save

    def at_and_tell(progress: Progress, what: str, nimg: int | None = None) -> None:
        at(progress, what, nimg)
        if nimg is not None and threading.current_thread() is threading.main_thread():
            now = time.monotonic()
            file.write(f"{now} {nimg} {what}\n")
            for thread in threading.enumerate() if what == "data" else ():
                if thread.name == "mlflow-mirror" and thread.ident:
                    cpu = time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
                    file.write(f"{now} {cpu} MIRROR\n")

    def save_and_tell(*args: object, **options: object) -> object:
        wall, cpu = time.monotonic(), time.thread_time()
        saved = save(*args, **options)
        file.write(f"{time.monotonic() - wall} {time.thread_time() - cpu} SAVED\n")
        return saved

    Progress.at, checkpoint.save = at_and_tell, save_and_tell


def write_in_the_loop() -> None:
    """What an asynchronous checkpoint is compared with: a loop that waits for the disk."""
    submit = Saver.submit

    def submit_and_wait(saver: Saver, *args: object, **options: object) -> None:
        submit(saver, *args, **options)
        saver.drain()

    Saver.submit = submit_and_wait


def read(out: Path, folder: Path, ended: float) -> Trace:
    trace, rows = Trace(), [line.split(" ", 2) for line in out.read_text().splitlines()]
    for wall, cpu, _ in (row for row in rows if row[2] == "SAVED"):
        trace.writing.append(float(wall))
        trace.writing_cpu.append(float(cpu))
    trace.mirror_cpu = [(float(t), float(cpu)) for t, cpu, what in rows if what == "MIRROR"]
    steps = [(float(t), int(nimg), what) for t, nimg, what in rows if what not in ("SAVED", "MIRROR")]
    by_nimg: dict[int, float] = {}
    for (t, nimg, what), (after, *_) in pairwise(steps):
        if what == "checkpoint":
            trace.stalls.append(after - t)
        elif what not in ("samples", "last checkpoint"):
            by_nimg[nimg] = by_nimg.get(nimg, 0.0) + after - t
    trace.iterations = list(by_nimg.values())[2:]  # the first ones allocate
    trace.ending = ended - steps[-1][0]
    lines = [record["metrics"] for record in jsonl.metrics(folder / jsonl.METRICS)]
    trace.data_wait_share = statistics.median(m["Timing/data_wait_share"] for m in lines)
    trace.stall_share = statistics.mean(m["Timing/checkpoint_stall_share"] for m in lines)
    return trace


class Bench:
    """The demo's run, again and again, below one folder."""

    def __init__(self, place: Path, method: str, kimg: float, silent_port: int):
        self.place, self.kimg, self.log = place, kimg, place / "log"
        self.uris = {TRACKED: f"sqlite:///{place}/mlflow.db", SILENT: f"http://127.0.0.1:{silent_port}"}
        sets = [*demo.SETTINGS[method], *demo.EXEC, f"exec.checkpoint_kimg={CHECKPOINT_KIMG}", f"total_kimg={kimg}"]
        sets += [f"exec.status_kimg={STATUS_KIMG}", f"exec.gpus={RANKS}"]
        self.run, exec_ = override_all(find(demo.RECIPES[method]).make().tiny(), ExecConfig(), sets)
        self.exec = exec_.replace(batch_gpu=self.run.batch_size // RANKS)
        self.data = prepared(place, lambda data: prepare_photos(data, self.run.data.size_px))
        self.alone(lambda _: connect(self.uris[TRACKED]).search_experiments(), 1)  # makes the tables

    def alone(self, work: Callable[[int], object], ranks: int) -> None:
        life = Life(work, ranks, self.log)
        life.wait()
        assert not life.code, self.log.read_text()[-3000:]

    def trace(self, variant: str) -> Trace:
        runs, out = self.place / "runs", self.place / "trace"
        exec_ = self.exec.replace(track=variant in self.uris)
        folder = plan_run(self.run, exec_, self.data, runs, [])
        self.alone(partial(self._live, variant, folder, out), RANKS)
        trace = read(out, folder, time.monotonic())
        shutil.rmtree(runs)
        return trace

    def _live(self, variant: str, folder: Path, out: Path, rank: int) -> None:
        os.environ["MLFLOW_TRACKING_URI"] = self.uris.get(variant, "")
        if rank == 0:
            record(out)
        if variant == SYNCHRONOUS:
            write_in_the_loop()
        train(folder)

    def words_between_ranks(self, ranks: int) -> float:
        """Seconds of the sum over ranks in which an iteration's wish to stop and its health travel."""
        out, times = self.place / "sum", 300

        def work(rank: int) -> None:
            engine, health = Engine("fp32", ranks), Health(5, torch.device("cpu"))
            finite = torch.ones((), dtype=torch.bool)
            for i in range(2 * times):
                if i == times:  # warm by now
                    began = time.monotonic()
                health.note("D", finite)
                health.note("G", finite)
                health.close_iteration(i)
                _, bad = engine.sum([0.0, float(health.bad_now())])
                health.count(bad > 0)
            if rank == 0:
                out.write_text(f"{(time.monotonic() - began) / times}")
            engine.close(failed=False)

        self.alone(work, ranks)
        return float(out.read_text())

    def watching(self, ranks: int) -> float:
        """CPU seconds of one beat of rank 0's watchdog, which writes, reads and judges."""
        out, beats = self.place / "beats", 100

        def work(rank: int) -> None:
            engine = Engine("fp32", ranks)
            dog = Watchdog(
                engine.progress, rank=rank, world=ranks, hang_sec=900, beat_sec=0.05, tell=lambda text: print(text)
            )
            dog.start()
            time.sleep(1)
            before = time.process_time()
            time.sleep(beats * 0.05)
            if rank == 0:
                out.write_text(f"{(time.process_time() - before) / beats}")
            dog.close()
            engine.close(failed=False)

        self.alone(work, ranks)
        return float(out.read_text())


def percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.3f} %"


def ratio(values: Iterable[float]) -> str:
    found = [100 * (v - 1) for v in values]
    return f"{statistics.median(found):+.1f} % ({min(found):+.1f} to {max(found):+.1f})"


def rows_of(bench: Bench, traces: dict[str, list[Trace]]) -> Iterable[tuple[str, str, str]]:
    """(what, measured, share of the run's time)."""
    plain = traces[PLAIN] + traces[AGAIN]
    iteration = statistics.median(t.median for t in plain)
    interval = DEMO_KIMG * 1000 / bench.run.batch_size * iteration
    yield "an iteration", f"{1000 * iteration:.0f} ms", ""
    checkpoints = {
        "checkpoint: the loop stands still": [s for t in plain for s in t.stalls],
        "checkpoint, if the loop wrote it itself": [s for t in traces[SYNCHRONOUS] for s in t.stalls],
        "checkpoint: its thread at work": [s for t in plain for s in t.writing],
        "checkpoint: CPU time of its thread": [s for t in plain for s in t.writing_cpu],
    }
    for name, found in checkpoints.items():
        middle, share = statistics.median(found), percent(statistics.median(found), interval)
        yield name, f"{1000 * middle:.1f} ms, most {1000 * max(found):.1f}", f"{share}, every {DEMO_KIMG:g} kimg"
    stalls = statistics.median(t.stall_share for t in plain)
    yield "checkpoint: as the loop prints it", f"every {CHECKPOINT_KIMG:g} kimg here", percent(stalls, 1)
    for variant in (TRACKED, SILENT):
        once, share = (statistics.median(values) for values in zip(*(t.mirror() for t in traces[variant]), strict=True))
        yield f"{variant}: CPU time of its thread", f"{once:.1f} s once", percent(share, 1)
    for variant in (TRACKED, SILENT, AGAIN):
        pairs = list(zip(traces[variant], traces[PLAIN], strict=True))
        ending = statistics.median(a.ending - b.ending for a, b in pairs)
        middle = ratio(a.median / b.median for a, b in pairs)
        yield f"{variant}, against plain", f"{ending:+.1f} s at the end of the run", f"median iteration {middle}"
    waits = statistics.median(t.data_wait_share for t in plain)
    yield "waiting for data, as the loop prints it", "", percent(waits, 1)
    for ranks in (1, RANKS):
        sec = bench.words_between_ranks(ranks)
        yield f"word of stopping and health, {ranks} rank(s)", f"{1000 * sec:.2f} ms", percent(sec, iteration)
    sec = bench.watching(RANKS)
    yield "watchdog, CPU time of a beat", f"{1000 * sec:.2f} ms every {BEAT_SEC:g} s", percent(sec, BEAT_SEC)


def table(bench: Bench, traces: dict[str, list[Trace]]) -> str:
    head = ["| | measured | of the run's time |", "| --- | --- | --- |"]
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in rows_of(bench, traces))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=list(demo.RECIPES), default="mspie")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kimg", type=float, default=4.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)  # the kernel accepts, nobody answers
        bench = Bench(Path(folder), args.method, args.kimg, silent.getsockname()[1])
        traces: dict[str, list[Trace]] = {variant: [] for variant in VARIANTS}
        for n in range(args.rounds):
            for variant in VARIANTS:
                traces[variant].append(bench.trace(variant))
                shown = f"{1000 * traces[variant][-1].median:.0f} ms an iteration"
                print(f"round {n + 1}, {variant}: {shown}", file=sys.stderr, flush=True)
        words = f"{bench.run.recipe}, tiny, {RANKS} ranks, {args.kimg:g} kimg, {args.rounds} rounds, medians"
        print(f"{words}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
        print(table(bench, traces))


if __name__ == "__main__":
    main()
