"""What rank 0 writes of a run: metrics.jsonl, events.jsonl, samples/, environment.json; and their mirror in MLflow.

A disk or a service that refuses never stops training: lines are kept and written later, pictures are left out and
said so. Knows nothing of gradients and checkpoints.
"""

import contextlib
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from pipeline.errors import WorkError
from pipeline.phases import Generator
from pipeline.plan import ExecConfig, RunConfig
from pipeline.provenance import environment, job_id, keep_code, record_attempt
from pipeline.synthesis.sample import Stopped, generate, grid, save_png
from pipeline.tracking import collapse, console, inbox, jsonl
from pipeline.tracking.journal import Journal
from pipeline.tracking.mirror import Mirror
from pipeline.tracking.system import system_metrics
from pipeline.training.engine import Engine

GRID_SEEDS = 16  # fixed latents of the sample grids; as many as there are classes, where these are more


class RunLog:
    """Only rank 0 writes; the others may call it all the same."""

    def __init__(self, folder: Path, run: RunConfig, exec_: ExecConfig, engine: Engine, stop: Callable[[], bool]):
        self.folder, self.run, self.engine, self.exec, self.stop = folder, run, engine, exec_, stop
        self.attempt, self._mirror = 0, None
        self._metrics, self._events = Journal(folder / jsonl.METRICS), Journal(folder / jsonl.EVENTS)
        self._distances: list[dict] = []  # records that hold what collapse.py looks at
        self._collapsed = False  # an event says so already

    def start(self, nimg: int) -> None:
        hosts = self.engine.gather(socket.gethostname())
        self.engine.on_main(lambda: self._start(nimg, sorted(set(hosts))))

    def _start(self, nimg: int, hosts: list[str]) -> None:
        events = jsonl.read(self.folder / jsonl.EVENTS)
        self.attempt = 1 + sum(e["event"] in ("start", "resume") for e in events)
        self._collapsed = any(e["event"] == "collapse" for e in events)
        if getattr(self.run.family, "diversity_interval", 0):
            self._distances = [r for r in jsonl.metrics(self.folder / jsonl.METRICS) if r["nimg"] <= nimg]
        device = self.engine.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        facts = environment(device=name, hosts=hosts, world=self.engine.world)
        try:
            record_attempt(self.folder, self.attempt, {**facts, "exec": self.exec.model_dump(mode="json")})
            keep_code(self.folder)
        except (OSError, WorkError) as e:
            print(f"graticule: environment.json, code: {e}; training goes on", file=sys.stderr, flush=True)
        self.event(
            "resume" if self.attempt > 1 else "start",
            nimg,
            world=self.engine.world,
            host=", ".join(hosts),
            job_id=job_id(),
            code=facts.get("code", ""),
        )
        place = f"{self.engine.world} rank(s)"
        print(f"{self.folder.name}: attempt {self.attempt} at kimg {nimg / 1000:g}, {place}", flush=True)
        if self.exec.track:
            self._mirror = Mirror(self.folder)
            self._mirror.start()

    def metrics(self, nimg: int, values: Mapping[str, float], rollbacks: int) -> None:
        """One line of metrics."""
        device = self.engine.device
        system = system_metrics(device.index if device.type == "cuda" else None)
        record = {"nimg": nimg, "time": time.time(), "attempt": self.attempt, "rollbacks": rollbacks}
        ratio = collapse.ratio_of(values)
        record["metrics"] = {**values, **({} if ratio is None else {collapse.RATIO: ratio}), **system}
        self._metrics.append(record)
        self._take_over()
        print(console.tick(record, self.run.total_kimg), flush=True)
        if ratio is not None:
            self._look_for_collapse(nimg, record, ratio)

    def _look_for_collapse(self, nimg: int, record: dict, ratio: float) -> None:
        """One event, the first time; after a rollback what was taken back does not count."""
        self._distances = [r for r in self._distances if r["nimg"] < nimg] + [record]
        since_kimg = None if self._collapsed else collapse.collapsed_at_kimg(self._distances)
        if since_kimg is not None:
            self._collapsed = True
            self.event("collapse", nimg, ratio=ratio, since_kimg=since_kimg)
            print(
                f"graticule: collapsed since kimg {since_kimg:g}: fakes differ {ratio:.3g} times as much as reals",
                file=sys.stderr,
                flush=True,
            )

    def _take_over(self) -> None:
        """What evaluations have left for this run meanwhile; a disk that refuses keeps it until the next time."""
        with contextlib.suppress(OSError):
            inbox.drain(self.folder)

    def event(self, name: str, nimg: int, **facts: object) -> None:
        """One line of events."""
        if self.engine.is_main:
            self._events.append(_event(name, nimg, self.attempt, facts))

    def sample(self, nimg: int, G_ema: nn.Module, sizes: tuple[tuple[int, int], ...], *, anew: bool) -> None:
        """A grid of fixed latents at each of these sizes; with anew=False only those that are not there.

        A network that answers to images has none. A signal ends it between two forwards: what is missing is made when
        the run goes on.
        """
        if not isinstance(G_ema, Generator):
            return
        for h, w in sizes:
            path = self.folder / "samples" / f"{nimg:012d}-{h}x{w}.png"

            def stop() -> bool:
                self.engine.progress.at("samples", nimg)
                return self.stop()

            if path.exists() and not anew:
                continue
            try:
                seeds = range(max(GRID_SEEDS, getattr(G_ema, "num_classes", 0)))
                images = generate(G_ema, seeds, (h, w), stop=stop)
                path.parent.mkdir(exist_ok=True)
                save_png(path, grid(images))
            except Stopped:
                return
            except OSError as e:
                print(f"graticule: no sample grid: {path}: {e.strerror}; training goes on", file=sys.stderr, flush=True)
                self.event("sample failed", nimg, error=str(e))

    def close(self, *, final: bool) -> None:
        if self.engine.is_main:
            self._take_over()
        self._metrics.close()
        self._events.close()
        if self._mirror is not None:
            self._mirror.close(final=final)


def tell(folder: Path, engine: Engine, text: str) -> None:
    """The watchdog's last words, of every rank: on stderr, and once in events.jsonl."""
    print(f"graticule: {text}", file=sys.stderr, flush=True)
    events = folder / jsonl.EVENTS
    if engine.rank == 0 or (engine.rank == 1 and jsonl.read(events)[-1]["event"] != "watchdog"):
        jsonl.append(events, _event("watchdog", engine.progress.nimg or 0, 0, {"error": text}))


def _event(name: str, nimg: int, attempt: int, facts: Mapping[str, object]) -> dict[str, object]:
    return {"time": time.time(), "nimg": nimg, "attempt": attempt, "event": name, **facts}
