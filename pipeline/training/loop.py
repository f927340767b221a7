"""The training loop: one function, every family.

Everything that varies over time is a pure function of (seed, nimg), so resuming is starting at another nimg.
Maintenance comes first in the loop body, so the first and the last iteration need no special code. Knows no
family by name, no tracking service and no cluster: those arrive as callables.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from pipeline.phases import Family
from pipeline.spec import Batch
from pipeline.training import checkpoint
from pipeline.training.ema import update_ema
from pipeline.training.engine import Engine
from pipeline.training.runner import run_phase, to_device
from pipeline.training.stats import Stats

Outcome = Literal["done", "stopped"]


@dataclass(frozen=True)
class Schedule:
    """The numbers of a run that the loop needs; `slices` are this rank's microbatches in the global batch."""

    seed: int
    batch_size: int
    total_kimg: float
    status_kimg: float
    sample_kimg: float
    checkpoint_kimg: float
    keep: int
    slices: tuple[range, ...]
    checkpoints: Path
    fingerprint: str


@dataclass(frozen=True)
class Outlets:
    """Where the loop tells what it does; called on rank 0 only. None of them may wait for a service."""

    metrics: Callable[[int, Mapping[str, float]], None]  # (nimg, values)
    sample: Callable[[int, nn.Module], None]  # (nimg, G_ema)
    event: Callable[..., None]  # (name, nimg, **facts)


class Training:
    """The state of a run in memory: networks, optimizers, progress."""

    def __init__(self, family: Family, engine: Engine):
        self.family = family
        self.nets = {name: net.to(engine.device).train() for name, net in family.nets.items()}
        engine.broadcast(t for net in self.nets.values() for t in net.state_dict().values())
        self.G_ema = deepcopy(self.nets["G"]).eval().requires_grad_(False)
        self.optimizers = {
            name: torch.optim.Adam(net.parameters(), lr=0.0, betas=family.adam[name].betas, eps=family.adam[name].eps)
            for name, net in self.nets.items()
        }
        self.nimg, self.train_sec = 0, 0.0
        self.feedback, self.stats = dict(family.feedback), Stats()

    def saved_nets(self) -> dict[str, nn.Module]:
        return {**self.nets, "G_ema": self.G_ema}

    def restore(self, loaded: checkpoint.Loaded) -> None:
        """Continue from a checkpoint."""
        for name, net in self.saved_nets().items():
            net.load_state_dict(loaded.nets[name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(loaded.optimizers[name])
        self.nimg, self.train_sec = loaded.state.nimg, loaded.state.train_sec
        self.feedback = dict(loaded.state.feedback)
        self.stats.restore(loaded.state.stats)


def crossed(nimg: int, batch_size: int, every_kimg: float) -> bool:
    """Did the iteration that ended at nimg reach a multiple of every_kimg?"""
    return int(nimg / (every_kimg * 1000)) != int((nimg - batch_size) / (every_kimg * 1000))


def train(
    training: Training,
    batches: Iterator[Batch],
    engine: Engine,
    schedule: Schedule,
    *,
    should_stop: Callable[[], bool],
    outlets: Outlets,
) -> Outcome:
    """Train until total_kimg or until any rank is asked to stop; all ranks return the same outcome."""
    t, batch_size = training, schedule.batch_size
    start = t.nimg
    tick_nimg, tick_time, waited_sec = t.nimg, time.monotonic(), 0.0
    while True:
        # Maintenance. At the nimg of a resume all of it was done before the checkpoint was written.
        done = t.nimg >= schedule.total_kimg * 1000
        stop = engine.any(should_stop())
        fresh = t.nimg != start
        if fresh and (done or crossed(t.nimg, batch_size, schedule.status_kimg)):
            values = t.stats.take(engine)
            now = time.monotonic()
            t.train_sec += now - tick_time
            images = t.nimg - tick_nimg
            if engine.is_main:
                timing = _timing(t, images, now - tick_time, waited_sec, engine.device)
                outlets.metrics(t.nimg, {**values, **timing, **_feedback(t.feedback)})
            tick_nimg, tick_time, waited_sec = t.nimg, now, 0.0
        if engine.is_main and (t.nimg == 0 or (fresh and (done or crossed(t.nimg, batch_size, schedule.sample_kimg)))):
            outlets.sample(t.nimg, t.G_ema)
        if fresh and (done or stop or crossed(t.nimg, batch_size, schedule.checkpoint_kimg)):
            _save(t, engine, schedule, outlets, train_sec=t.train_sec + time.monotonic() - tick_time)
        if done or stop:
            if engine.is_main:
                outlets.event("done" if done else "preempt", t.nimg)
            return "done" if done else "stopped"

        # One iteration on the global batch that starts at image nimg.
        knobs = t.family.knobs(t.nimg)
        wait = time.monotonic()
        microbatches = [
            to_device(t.family, next(batches), [t.nimg + i for i in part], knobs.size, engine.device)
            for part in schedule.slices
        ]
        waited_sec += time.monotonic() - wait
        for phase in t.family.phases:
            t.feedback = run_phase(
                phase,
                t.nets,
                t.optimizers[phase.net],
                microbatches,
                knobs=knobs,
                seed=schedule.seed,
                nimg=t.nimg,
                batch_size=batch_size,
                feedback=t.feedback,
                engine=engine,
                stats=t.stats,
            )
        update_ema(t.G_ema, t.nets["G"], batch_size, t.family.ema_kimg)
        t.nimg += batch_size


def _save(t: Training, engine: Engine, schedule: Schedule, outlets: Outlets, *, train_sec: float) -> None:
    """Publish a checkpoint on rank 0; a file error is raised on every rank."""
    totals = t.stats.totals(engine)

    def work() -> None:
        state = checkpoint.State(
            fingerprint=schedule.fingerprint,
            nimg=t.nimg,
            feedback=t.feedback,
            stats=totals,
            train_sec=train_sec,
        )
        began = time.monotonic()
        path = checkpoint.save(schedule.checkpoints, state, t.saved_nets(), t.optimizers)
        problem = checkpoint.problem_of(path)
        if problem:
            raise OSError(f"checkpoint {path} does not read back: {problem}")
        checkpoint.prune(schedule.checkpoints, schedule.keep)
        outlets.event("checkpoint", t.nimg, sec=round(time.monotonic() - began, 3))

    engine.on_main(work)


def _timing(t: Training, images: int, sec: float, waited_sec: float, device: torch.device) -> dict[str, float]:
    out = {
        "Progress/kimg": t.nimg / 1000,
        "Timing/sec_per_kimg": 1000 * sec / images,
        "Timing/img_per_sec": images / sec,
        "Timing/train_sec": t.train_sec,
        "Timing/data_wait_share": waited_sec / sec,
    }
    if device.type == "cuda":
        out["Resources/gpumem_gb"] = torch.cuda.max_memory_allocated(device) / 2**30
    return out


def _feedback(feedback: Mapping[str, float]) -> dict[str, float]:
    return {f"Feedback/{name}": value for name, value in feedback.items()}
