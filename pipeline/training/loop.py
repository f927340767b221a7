"""The training loop: one function, every family.

Everything that varies over time is a pure function of (seed, nimg), so resuming is starting at another nimg.
Maintenance comes first in the loop body, so the first and the last iteration need no special code. Knows no
family by name, no tracking service and no cluster: those arrive as callables.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal

import torch
from torch import nn

from pipeline.chance import key
from pipeline.phases import Family
from pipeline.spec import Batch
from pipeline.training.checkpoint import Snapshot, State
from pipeline.training.ema import update_ema
from pipeline.training.engine import Engine, Update
from pipeline.training.engine_replicated import Replicated, on_cpu
from pipeline.training.health import Health
from pipeline.training.runner import run_phase, to_device
from pipeline.training.saver import Saver
from pipeline.training.stats import Stats

Outcome = Literal["done", "stopped", "diverged"]


@dataclass(frozen=True)
class Schedule:
    """The numbers of a run that the loop needs; `slices` are this rank's microbatches in the global batch."""

    seed: int
    batch_size: int
    total_kimg: float
    status_kimg: float
    sample_kimg: float
    checkpoint_kimg: float
    milestone_kimg: float | None  # checkpoints that are never pruned
    slices: tuple[range, ...]
    fingerprint: str
    zero: Mapping[str, int] = field(default_factory=dict)  # network -> DeepSpeed ZeRO stage; replicated if absent
    ds_config: Mapping[str, Any] | None = None  # the user's further words to DeepSpeed
    validate_kimg: float = inf

    def slices_of(self, factor: int) -> tuple[range, ...]:
        """This rank's microbatches of an iteration of `factor` batch sizes."""
        first, n = self.slices[0].start * factor, len(self.slices[0])
        return tuple(range(first + i * n, first + (i + 1) * n) for i in range(len(self.slices) * factor))


@dataclass(frozen=True)
class Outlets:
    """Where the loop tells what it does; called on rank 0 only. None of them may wait for a service."""

    metrics: Callable[[int, Mapping[str, float], int], None]  # (nimg, values, rollbacks)
    sample: Callable[..., None]  # (nimg, G_ema, sizes, anew=); anew=False: if it is not there yet
    validate: Callable[[Mapping[str, nn.Module]], dict[str, float]] | None = None  # of held-out images; on all ranks


class Training:
    """The state of a run in memory: networks, what updates them, progress."""

    def __init__(self, family: Family, engine: Engine, schedule: Schedule):
        self.family = family
        self.nets = {name: net.to(engine.device).train() for name, net in family.nets.items()}
        engine.broadcast(t for net in self.nets.values() for t in net.state_dict().values())
        self.G_ema = deepcopy(self.nets["G"]).eval().requires_grad_(False)
        self.batch_size, self.stage = schedule.batch_size, 0
        self.start_updates(engine, schedule)
        self.nimg, self.train_sec, self.rollbacks = 0, 0.0, 0
        self.feedback, self.stats = dict(family.feedback), Stats()

    def start_updates(self, engine: Engine, schedule: Schedule) -> None:
        """Optimizers without memory."""
        nets = self.nets.items()
        self.updates = {name: _update_of(name, net, self.family, engine, schedule) for name, net in nets}

    @property
    def factor(self) -> int:
        """Batch sizes of the iteration that starts at nimg."""
        stages = self.family.stages
        return stages.factors[stages.of(self.nimg)] if stages else 1

    def begin(self, engine: Engine, schedule: Schedule) -> None:
        """Bring the networks to where the iteration that starts at nimg needs them."""
        if stages := self.family.stages:
            nets = {**self.nets, "G_ema": self.G_ema}
            while self.stage < stages.of(self.nimg):
                self.stage += 1
                stages.enter(nets, self.stage)
                self.start_updates(engine, schedule)
            stages.begin(nets, self.nimg)

    def sizes(self) -> tuple[tuple[int, int], ...]:
        """What G_ema makes at present."""
        return self.family.sizes[self.stage : self.stage + 1] if self.family.stages else self.family.sizes

    def snapshot(self, engine: Engine, fingerprint: str, train_sec: float) -> Snapshot | None:
        """Copies on the CPU of all that a checkpoint holds, on rank 0; every rank calls it."""
        totals = self.stats.totals(engine)
        nets = {name: update.weights() for name, update in self.updates.items()}
        optimizers = {name: update.state() for name, update in self.updates.items()}
        if not engine.is_main:
            return None
        state = State(
            fingerprint=fingerprint,
            nimg=self.nimg,
            feedback=self.feedback,
            stats=totals,
            train_sec=train_sec,
            scalers={name: update.scaler() for name, update in self.updates.items()},
            rollbacks=self.rollbacks,
        )
        return Snapshot(state, {**nets, "G_ema": on_cpu(self.G_ema.state_dict())}, optimizers)

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from a checkpoint."""
        state = snapshot.state
        for name, update in self.updates.items():
            update.load(snapshot.nets[name], snapshot.optimizers[name], state.scalers.get(name, {}))
        self.G_ema.load_state_dict(snapshot.nets["G_ema"])
        self.nimg, self.train_sec, self.rollbacks = state.nimg, state.train_sec, state.rollbacks
        self.feedback = dict(state.feedback)
        self.stats.restore(state.stats)
        if stages := self.family.stages:
            self.stage = stages.before(self.nimg, self.batch_size)


def _update_of(name: str, net: nn.Module, family: Family, engine: Engine, schedule: Schedule) -> Update:
    stage = schedule.zero.get(name)
    if stage is None:
        return Replicated(engine, net, family.adam[name])
    from pipeline.training.engine_deepspeed import Sharded

    microbatches = len(schedule.slices)
    return Sharded(engine, net, family.adam[name], stage, schedule.ds_config or {}, microbatches, schedule.batch_size)


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
    health: Health,
    saver: Saver | None,
    outlets: Outlets,
) -> Outcome:
    """Train until total_kimg or until any rank is asked to stop; all ranks return the same outcome.

    "diverged": too many iterations in a row were not finite; `health` knows which.
    `saver` is rank 0's. Its files may still be on their way when this returns: drain it.
    """
    t, at = training, engine.progress.at
    batch_size = schedule.batch_size
    start = t.nimg
    tick_nimg, tick_time, waited_sec, stalled_sec = t.nimg, time.monotonic(), 0.0, 0.0
    while True:
        # Maintenance. At the nimg of a resume all of it was done before the checkpoint was written.
        done = t.nimg >= schedule.total_kimg * 1000
        stops, bad = engine.sum([float(should_stop()), float(health.bad_now())])
        stop = stops > 0
        health.count(bad > 0)
        if health.exceeded:
            return "diverged"
        fresh = t.nimg != start
        validate = outlets.validate if done or crossed(t.nimg, batch_size, schedule.validate_kimg) else None
        if fresh and (done or validate or crossed(t.nimg, batch_size, schedule.status_kimg)):
            values = t.stats.take(engine)
            now = time.monotonic()
            t.train_sec += now - tick_time
            images = t.nimg - tick_nimg
            if validate:
                at("validation", t.nimg)
                values |= validate({**t.nets, "G": t.G_ema})
            if engine.is_main:
                timing = _timing(t, images, now - tick_time, waited_sec, stalled_sec, engine.device)
                outlets.metrics(t.nimg, {**values, **timing, **_feedback(t.feedback)}, t.rollbacks)
            tick_nimg, tick_time, waited_sec, stalled_sec = t.nimg, time.monotonic(), 0.0, 0.0
        if not stop and (t.nimg == 0 or done or crossed(t.nimg, batch_size, schedule.sample_kimg)):
            if engine.is_main:
                at("samples", t.nimg)
                outlets.sample(t.nimg, t.G_ema, t.sizes(), anew=fresh)
            stop = engine.any(should_stop())  # a signal meanwhile: the checkpoint is of this very image
        milestone = schedule.milestone_kimg is not None and crossed(t.nimg, batch_size, schedule.milestone_kimg)
        if fresh and (done or stop or milestone or crossed(t.nimg, batch_size, schedule.checkpoint_kimg)):
            at("checkpoint", t.nimg)
            began = time.monotonic()
            engine.on_main(lambda: saver and saver.drain() and None)  # at most one snapshot in memory
            snapshot = t.snapshot(engine, schedule.fingerprint, t.train_sec + time.monotonic() - tick_time)
            if saver and snapshot:
                saver.submit(snapshot, milestone=milestone)
            stalled_sec += time.monotonic() - began
        if done or stop:
            return "done" if done else "stopped"

        # One iteration on the global batch that starts at image nimg.
        t.begin(engine, schedule)
        knobs, factor = t.family.knobs(t.nimg), t.factor
        batch_size = factor * schedule.batch_size
        at("data", t.nimg)
        wait = time.monotonic()
        microbatches = [
            to_device(t.family, next(batches), [t.nimg + i for i in part], knobs.size, engine.device)
            for part in schedule.slices_of(factor)
        ]
        waited_sec += time.monotonic() - wait
        for phase in t.family.phases:
            if t.nimg // batch_size % phase.every:
                continue
            at(phase.name, t.nimg)
            t.feedback, finite = run_phase(
                phase,
                t.nets,
                t.updates[phase.net],
                microbatches,
                knobs=knobs,
                seed=draws_of(schedule.seed, t.rollbacks),
                nimg=t.nimg,
                batch_size=batch_size,
                feedback=t.feedback,
                engine=engine,
                stats=t.stats,
            )
            health.note(phase.name, finite)
        health.close_iteration(t.nimg)
        with t.updates["G"].whole():
            update_ema(t.G_ema, t.nets["G"], batch_size, t.family.ema_kimg)
        t.nimg += batch_size


def draws_of(seed: int, rollbacks: int) -> int:
    """The seed of latents and noise; another one after each rollback, or the same values would come again."""
    return seed if not rollbacks else key(seed, "rollback", rollbacks) >> 65


def _timing(
    t: Training, images: int, sec: float, waited_sec: float, stalled_sec: float, device: torch.device
) -> dict[str, float]:
    out = {
        "Progress/kimg": t.nimg / 1000,
        "Timing/sec_per_kimg": 1000 * sec / images,
        "Timing/img_per_sec": images / sec,
        "Timing/train_sec": t.train_sec,
        "Timing/data_wait_share": waited_sec / sec,
        "Timing/checkpoint_stall_share": stalled_sec / sec,
    }
    if device.type == "cuda":
        out["Resources/gpumem_gb"] = torch.cuda.max_memory_allocated(device) / 2**30
    return out


def _feedback(feedback: Mapping[str, float]) -> dict[str, float]:
    return {f"Feedback/{name}": value for name, value in feedback.items()}
