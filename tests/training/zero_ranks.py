"""Runs under every engine, for test_deepspeed.py and bench/engines.py: the code that their pairs of ranks execute.

Importing DeepSpeed takes seconds, so one pair of processes goes through all cases of the tests and writes down what
it saw: `python -m torch.distributed.run --standalone --nproc-per-node=2 tests/training/zero_ranks.py OUT`.
"""

import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

if __name__ == "__main__":
    warnings.simplefilter("error")  # DeepSpeed's reach no user, either

from pipeline.attempt import schedule_of
from pipeline.chance import key
from pipeline.phases import AdamSpec, Family, Knobs, Nets, Phase, Step, Terms
from pipeline.plan import ExecConfig, override_all
from pipeline.recipes import find
from pipeline.spec import Batch, to_float
from pipeline.training import checkpoint
from pipeline.training.checkpoint import Snapshot
from pipeline.training.ema import update_ema
from pipeline.training.engine import Engine
from pipeline.training.loop import Schedule, Training
from pipeline.training.runner import run_phase, to_device
from tests.runs import CIPS, FEW_PIXELS, MSPIE, SMALL

WHOLE = {MSPIE: 6, CIPS: 8}  # exec.batch_gpu: each of two ranks in one microbatch
ALL_AWAY = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}  # ZeRO-3 keeps no weight whole


@dataclass(frozen=True)
class Case:
    """A family, freshly built at each use, and how this rank trains it."""

    build: Callable[[], Family]
    schedule: Schedule
    seed: int
    size_px: int

    def under(self, zero: Mapping[str, int], ds_config: Mapping[str, Any] | None = None) -> "Case":
        return replace(self, schedule=replace(self.schedule, zero=zero, ds_config=ds_config))


def of_recipe(engine: Engine, recipe: str, *sets: str) -> Case:
    """A recipe, made small."""
    words = [*SMALL[recipe], f"exec.gpus={engine.world}", *sets]
    run, exec_ = override_all(find(recipe).make().tiny(), ExecConfig(), words)
    return Case(lambda: run.family.build(run.seed), schedule_of(run, exec_, engine.rank), run.seed, run.data.size_px)


def of_small_recipe(engine: Engine, recipe: str, *sets: str) -> Case:
    """The same on images so small that an iteration takes milliseconds."""
    return of_recipe(engine, recipe, *FEW_PIXELS[recipe], *sets)


class ToyG(nn.Module):
    """What ZeRO trips over: methods instead of forward, odd sizes, scalars, parameters of no called module."""

    def __init__(self) -> None:
        super().__init__()
        self.mapping = nn.Linear(5, 7)
        self.body = nn.Linear(7, 3 * 8 * 8)
        self.gain = nn.Parameter(torch.ones(()))
        self.shift = nn.Parameter(torch.zeros(3, 1, 1))
        self.aside = nn.Parameter(torch.ones(3))  # only a lazy term sees it

    def synthesis(self, w: torch.Tensor) -> torch.Tensor:
        return self.body(torch.tanh(w)).view(-1, 3, 8, 8) * self.gain + self.shift


class ToyD(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, stride=2)
        self.fc = nn.Linear(45, 1)

    def forward(self, img: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.tanh(self.conv(img)).flatten(1)).squeeze(1)


def _toy_d_loss(nets: Nets, step: Step) -> Terms:
    """WGAN-GP: plain convolutions differentiated twice."""
    fake = nets["G"].synthesis(nets["G"].mapping(step.chance.normal("z", 5)))
    part = torch.sigmoid(step.chance.normal("mix", 1))[:, :, None, None]
    between = (part * step.real + (1 - part) * fake).detach().requires_grad_(True)
    (grad,) = torch.autograd.grad(nets["D"](between).sum(), between, create_graph=True)
    penalty = 10 * (grad.float().square().sum((1, 2, 3)).sqrt() - 1).square()
    return {"adv": (nets["D"](fake.detach()) - nets["D"](step.real)).float(), "gp": penalty}


def _toy_g_loss(nets: Nets, step: Step) -> Terms:
    adv = -nets["D"](nets["G"].synthesis(nets["G"].mapping(step.chance.normal("z", 5)))).float()
    return {"adv": adv} | ({"aside": nets["G"].aside.square().sum().expand(len(adv))} if "aside" in step.due else {})


def of_toy(engine: Engine, microbatches: int) -> Case:
    """WGAN-GP on noise."""
    adam = AdamSpec((0.5, 0.9), 1e-8)
    local = 16 // engine.world
    micro = local // microbatches
    return Case(
        build=lambda: Family(
            nets={"G": ToyG(), "D": ToyD()},
            adam={"G": adam, "D": adam},
            phases=(
                Phase("D", "D", _toy_d_loss, ("adv", "gp")),
                Phase("G", "G", _toy_g_loss, ("adv", "aside"), lazy={"aside": 2}),
            ),
            knobs=lambda nimg: Knobs((8, 8), {"G": 0.002, "D": 0.002}),
            resize=lambda img, size: to_float(img),
            ema_kimg=0.5,
            sizes=((8, 8),),
        ),
        schedule=Schedule(
            seed=0,
            batch_size=16,
            total_kimg=1.0,
            status_kimg=1.0,
            sample_kimg=1.0,
            checkpoint_kimg=1.0,
            milestone_kimg=None,
            slices=tuple(range(i, i + micro) for i in range(engine.rank * local, (engine.rank + 1) * local, micro)),
            fingerprint="toy",
        ),
        seed=0,
        size_px=8,
    )


def start(engine: Engine, case: Case) -> Training:
    torch.manual_seed(key(case.seed, "init") >> 65)
    return Training(case.build(), engine, case.schedule)


def go_on(
    t: Training, engine: Engine, case: Case, iterations: int, spoil: Callable[[str, int], float] = lambda phase, i: 1.0
) -> list[list[bool]]:
    """The body of the training loop, on random images; what the phases of each iteration said of their gradients.

    `spoil(phase, iteration)` multiplies this rank's losses.
    """
    s, told = case.schedule, []
    for i in range(iterations):
        knobs = t.family.knobs(t.nimg)
        microbatches = []
        for part in s.slices:
            ids = [t.nimg + k for k in part]
            img = torch.stack([_image(k, case.size_px) for k in ids])
            microbatches.append(
                to_device(t.family, Batch(img, torch.full((len(ids),), -1)), ids, knobs.size, engine.device)
            )
        told.append([])
        for phase in t.family.phases:
            factor = spoil(phase.name, i)
            t.feedback, finite = run_phase(
                replace(phase, loss=_times(phase, factor)) if factor != 1 else phase,
                t.nets,
                t.updates[phase.net],
                microbatches,
                knobs=knobs,
                seed=s.seed,
                nimg=t.nimg,
                batch_size=s.batch_size,
                feedback=t.feedback,
                engine=engine,
                stats=t.stats,
            )
            told[-1].append(bool(finite))
        with t.updates["G"].whole():
            update_ema(t.G_ema, t.nets["G"], s.batch_size, t.family.ema_kimg)
        t.nimg += s.batch_size
    return told


def _image(k: int, size_px: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(k)
    return torch.randint(0, 256, (3, size_px, size_px), generator=generator, dtype=torch.uint8)


def _times(phase: Phase, factor: float) -> Callable[[Nets, Step], Terms]:
    return lambda nets, step: {name: term * factor for name, term in phase.loss(nets, step).items()}


def train(engine: Engine, case: Case, iterations: int, **spoil: Any) -> tuple[Snapshot | None, list[list[bool]]]:
    """From the start; the state on rank 0."""
    t = start(engine, case)
    told = go_on(t, engine, case, iterations, **spoil)
    return t.snapshot(engine, case.schedule.fingerprint, 0.0), told


def difference(a: Snapshot | None, b: Snapshot | None) -> float:
    """The largest absolute difference of any weight of any network, EMA included; NaN if there is one. Rank 0's."""
    if a is None or b is None:
        return 0.0
    assert a.nets.keys() == b.nets.keys()
    worst = [torch.zeros((), dtype=torch.float64)]
    for name, net in a.nets.items():
        assert net.keys() == b.nets[name].keys()
        worst += [(net[k].double() - b.nets[name][k].double()).abs().max() for k in net if net[k].numel()]
    return torch.stack(worst).max().item()


def unlike(a: Snapshot | None, b: Snapshot | None) -> list[str]:
    """All in which two checkpoints differ in the least, Adam's state, its layout and types, and scalers included."""
    if a is None or b is None:
        return []
    out = [k for k in ("feedback", "scalers", "nimg") if getattr(a.state, k) != getattr(b.state, k)]
    out += [f"{n}.{k}" for n, net in a.nets.items() for k in net if not _same(net[k], b.nets[n][k])]
    for name, x in a.optimizers.items():
        y = b.optimizers[name]
        if x["param_groups"] != y["param_groups"] or x["state"].keys() != y["state"].keys():
            return [*out, f"layout of {name}"]
        for i, entry in x["state"].items():
            if list(entry) != list(y["state"][i]):
                return [*out, f"layout of {name}.{i}"]
            out += [f"{name}.{i}.{k}" for k in entry if not _same(entry[k], y["state"][i][k])]
    return out


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)


@contextmanager
def alone() -> Iterator[None]:
    """In here an Engine has a world of one, though this process is one of a pair."""
    hidden = {k: os.environ.pop(k) for k in list(os.environ) if k in LAUNCHER or k.startswith("TORCHELASTIC")}
    try:
        yield
    finally:
        os.environ.update(hidden)


LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


class Pair:
    """All cases. Each rank writes down what it has `seen`: rank 0 the pair's, rank 1 that of a rank alone."""

    def __init__(self, out: Path):
        self.out, self.seen = out, {}
        self.halves: dict[str, Snapshot | None] = {}  # after 10 iterations of 20
        self.straight: dict[str, Snapshot | None] = {}

    def go(self) -> None:
        rank = int(os.environ["RANK"])
        with alone():
            self.first_leg() if rank == 0 else self.one_rank()
        engine = self.engine = Engine("fp32", 2)
        clock = time.monotonic()
        for case in (self.parity, self.accumulation, self.penalty, self.precisions, self.not_finite, self.resume):
            case()
            took, clock = time.monotonic() - clock, time.monotonic()
            print(f"[{case.__name__}: {took:.1f} s]", flush=True) if engine.is_main else None
        self.second_leg()
        engine.close(failed=False)
        with alone():
            self.third_leg() if rank == 0 else None
        (self.out / f"seen_{rank}.json").write_text(json.dumps(self.seen))

    def say(self, name: str, value: Any) -> None:
        """Only rank 0's snapshots are any."""
        if self.engine.is_main:
            self.seen[name] = value
            print(f"{name:<60} {value if not isinstance(value, float) else f'{value:.1e}'}", flush=True)

    def parity(self) -> None:
        """20 iterations of both methods, with R1, path length and every size."""
        for recipe in (MSPIE, CIPS):
            case = of_small_recipe(self.engine, recipe, f"exec.batch_gpu={WHOLE[recipe]}")
            self.halves[recipe], self.straight[recipe] = self.in_halves(case)
            for zero, words in _stages(recipe):
                name = f"{recipe} {zero}"
                self.halves[name], self.straight[name] = self.in_halves(case.under(zero, words))
                self.say(f"parity {name}", difference(self.straight[recipe], self.straight[name]))

    def in_halves(self, case: Case) -> tuple[Snapshot | None, Snapshot | None]:
        """After 10 iterations, and after 20 without a stop."""
        t = start(self.engine, case)
        go_on(t, self.engine, case, 10)
        half = t.snapshot(self.engine, case.schedule.fingerprint, 0.0)
        go_on(t, self.engine, case, 10)
        return half, t.snapshot(self.engine, case.schedule.fingerprint, 0.0)

    def accumulation(self) -> None:
        """Four microbatches a rank, under the highest stages; for the others see `penalty`."""
        for recipe in (MSPIE, CIPS):
            size, micro = {MSPIE: (24, 3), CIPS: (32, 4)}[recipe]
            case = of_small_recipe(self.engine, recipe, f"batch_size={size}", f"exec.batch_gpu={micro}")
            plain, _ = train(self.engine, case, 2)
            zero, words = _stages(recipe)[-1]
            sharded, _ = train(self.engine, case.under(zero, words), 2)
            self.say(f"accumulation {recipe} {zero}", difference(plain, sharded))

    def penalty(self) -> None:
        """WGAN-GP by plain layers, beside parameters that get no gradient in every other iteration."""
        for microbatches in (1, 4):
            case = of_toy(self.engine, microbatches)
            plain, _ = train(self.engine, case, 6)
            for zero in ({"G": 1, "D": 1}, {"G": 2, "D": 2}, {"G": 3, "D": 2}):
                sharded, _ = train(self.engine, case.under(zero, ALL_AWAY), 6)
                self.say(f"penalty {microbatches} {zero}", difference(plain, sharded))
        buckets = {"sub_group_size": 100, "reduce_bucket_size": 64, "overlap_comm": True}
        words = {"zero_optimization": buckets, "steps_per_print": 4}
        sharded, _ = train(self.engine, case.under({"G": 3, "D": 2}, words), 6)
        self.say("penalty in small buckets", difference(plain, sharded))

    def precisions(self) -> None:
        try:
            case = of_small_recipe(self.engine, CIPS, f"exec.batch_gpu={WHOLE[CIPS]}")
            self.engine.precision = "bf16"
            plain, _ = train(self.engine, case, 10)
            sharded, _ = train(self.engine, case.under({"G": 2, "D": 2}), 10)
            self.say("bf16", difference(plain, sharded))
            self.say("bf16 from fp32", difference(plain, self.halves[CIPS]))
            self.engine.precision = "fp16"
            case = of_toy(self.engine, 2)
            big = dict(spoil=lambda phase, i: 1000.0)  # so that the first scales overflow
            plain, told = train(self.engine, case, 8, **big)
            self.say("fp16 scales", plain.state.scalers if plain else None)
            self.say("fp16 told", told)
            for zero in ({"G": 1, "D": 1}, {"G": 3, "D": 2}):
                sharded, told_sharded = train(self.engine, case.under(zero, ALL_AWAY), 8, **big)
                self.say(f"fp16 {zero}", difference(plain, sharded))
                self.say(f"fp16 scales {zero}", sharded.state.scalers if sharded else None)
                self.say(f"fp16 told {zero}", told_sharded)
        finally:
            self.engine.precision = "fp32"

    def not_finite(self) -> None:
        """Rank 1 alone computes NaN, once in each network's phase."""
        at = {("D", 1), ("G", 2)}
        bad = float("nan") if self.engine.rank == 1 else 1.0
        nan = dict(spoil=lambda phase, i: bad if (phase, i) in at else 1.0)
        case = of_toy(self.engine, 1)
        plain, told = train(self.engine, case, 5, **nan)
        self.say("not finite", self.engine.gather(told))
        for zero in ({"G": 1, "D": 1}, {"G": 2, "D": 2}, {"G": 3, "D": 2}):
            sharded, told = train(self.engine, case.under(zero, ALL_AWAY), 5, **nan)
            self.say(f"not finite {zero}", self.engine.gather(told))
            self.say(f"not finite, weights {zero}", difference(plain, sharded))

    def resume(self) -> None:
        """Half of 20 iterations, a checkpoint on disk, the other half in new objects: against 20 straight ones."""
        for recipe in (MSPIE, CIPS):
            zero, words = _stages(recipe)[-1]
            name = f"{recipe} {zero}"
            case = of_small_recipe(self.engine, recipe, f"exec.batch_gpu={WHOLE[recipe]}").under(zero, words)
            again = self.over_disk(f"resume {recipe}", self.halves[name], case, 10)
            self.say(f"resume {name}", unlike(self.straight[name], again))

    def over_disk(self, name: str, snapshot: Snapshot | None, case: Case, iterations: int) -> Snapshot | None:
        """Save, load in new objects, go on."""
        root = self.out / name.replace(" ", "_")
        folder = self.engine.on_main(lambda: checkpoint.save(root, snapshot) if snapshot else None)
        return self.from_disk(folder, case, iterations)

    def from_disk(self, folder: Path | None, case: Case, iterations: int) -> Snapshot | None:
        assert folder, "nothing was saved"
        t = start(self.engine, case)
        t.restore(checkpoint.load(folder, case.schedule.fingerprint))
        go_on(t, self.engine, case, iterations)
        return t.snapshot(self.engine, case.schedule.fingerprint, 0.0)

    # One run over four engines and two numbers of ranks, with a checkpoint between each.

    def leg(self) -> Case:
        return of_small_recipe(self.engine, CIPS, f"exec.batch_gpu={WHOLE[CIPS]}")

    def first_leg(self) -> None:
        self.engine = Engine("fp32", 1)
        case = self.leg()
        first, _ = train(self.engine, case.under({"G": 2, "D": 2}), 5)
        assert first
        checkpoint.save(self.out / "legs", first)
        self.engine.close(failed=False)

    def second_leg(self) -> None:
        at = checkpoint.folder_of(self.out / "legs", 5 * 16)
        second = self.from_disk(at, self.leg().under({"G": 3, "D": 1}, ALL_AWAY), 5)
        third = self.over_disk("legs", second, self.leg().under({"G": 1, "D": 2}), 5)
        self.engine.on_main(lambda: checkpoint.save(self.out / "legs", third) if third else None)

    def third_leg(self) -> None:
        self.engine = Engine("fp32", 1)
        at = checkpoint.folder_of(self.out / "legs", 15 * 16)
        last = self.from_disk(at, self.leg(), 5)
        self.say("legs", unlike(self.straight[CIPS], last))
        self.engine.close(failed=False)

    def one_rank(self) -> None:
        """A world of one, three engines one after the other in one process, the environment left as it was."""
        before = dict(os.environ)
        for zero in ({"G": 1, "D": 1}, {"G": 2, "D": 2}, {"G": 3, "D": 2}):
            engine = Engine("fp32", 1)
            plain, _ = train(engine, of_toy(engine, 1), 5)
            sharded, _ = train(engine, of_toy(engine, 1).under(zero, ALL_AWAY), 5)
            self.seen[f"alone {zero}"] = difference(plain, sharded)
            self.seen[f"alone, layout {zero}"] = [d for d in unlike(plain, sharded) if "layout" in d]
            fresh = start(engine, of_toy(engine, 1).under(zero)).snapshot(engine, "toy", 0.0)
            self.seen[f"fresh {zero}"] = unlike(fresh, start(engine, of_toy(engine, 1)).snapshot(engine, "toy", 0.0))
            engine.close(failed=False)
        changed = {k for k in {*before, *os.environ} if before.get(k) != os.environ.get(k)}
        self.seen["environment"] = sorted(changed)


def _stages(recipe: str) -> list[tuple[dict[str, int], Mapping[str, Any] | None]]:
    """The stages that a recipe allows: ZeRO-3 for no network that an exact penalty differentiates."""
    stages: list[tuple[dict[str, int], Mapping[str, Any] | None]] = [({"G": n, "D": n}, None) for n in (1, 2)]
    return [*stages, ({"G": 3, "D": 1}, ALL_AWAY)] if recipe == CIPS else stages


if __name__ == "__main__":
    torch.set_num_threads(1)
    Pair(Path(sys.argv[1])).go()
