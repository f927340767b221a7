"""What the four processes of test_engine.py do: worlds of four, three, two and one rank, one after the other.

Each process writes down what it saw: `python tests/training/engine_ranks.py OUT`, with PORTS for the worlds.
"""

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import UserError, WorkError
from pipeline.training import checkpoint
from pipeline.training.checkpoint import Snapshot
from pipeline.training.engine import Engine
from pipeline.training.loop import Training
from tests.forked_ranks import fork_ranks
from tests.runs import CIPS, MSPIE
from tests.training.zero_ranks import Case, go_on, of_small_recipe, of_toy, start, train, unlike

RECIPES = (MSPIE, CIPS)
LENGTH = 20  # iterations: every lazy term is due more than once


class OddError(Exception):
    """A programming error that takes no message alone."""

    def __init__(self, message: str, code: int):
        super().__init__(message)


def told(work: Callable[[], Any]) -> list[str]:
    """Type and words of what `work` raises."""
    try:
        return ["returned", str(work())]
    except Exception as e:
        return [type(e).__name__, str(e)]


class Ranks:
    """This process in all worlds; `seen` is what it writes down, and what it kept from the worlds before."""

    def __init__(self, out: Path):
        self.out, self.place, self.ports = out, int(os.environ["RANK"]), os.environ["PORTS"].split()
        self.seen: dict[str, Any] = {}
        self.kept: dict[str, Snapshot | None] = {}

    def go(self) -> None:
        for size, cases in (
            (4, (self.messages, self.sums, self.same_start, self.straight)),
            (3, (self.thirds,)),
            (2, (self.straight, self.second_leg, self.reduced, self.overflow, self.not_a_number)),
            (1, (self.straight, self.third_leg, self.accumulation, self.thirds, self.reduced)),
        ):
            if self.place < size:
                with self.world(size):
                    for case in cases:
                        case()
        (self.out / f"seen{self.place}.json").write_text(json.dumps(self.seen))

    @contextmanager
    def world(self, size: int) -> Iterator[None]:
        """An engine of so many ranks; what making and leaving it changed in the environment is written down."""
        for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            os.environ[name] = str(size)
        os.environ["MASTER_PORT"] = self.ports[size - 1]
        if size == 1:
            for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
                del os.environ[name]
        before = dict(os.environ)
        self.engine = Engine("fp32", size)
        yield
        self.engine.close(failed=False)
        changed = {k for k in {*before, *os.environ} if before.get(k) != os.environ.get(k)}
        self.seen[f"environment {size}"] = sorted(changed)

    def messages(self) -> None:
        engine, rank = self.engine, self.place

        def on_main(error: Exception) -> list[str]:
            def work() -> None:
                assert rank == 0, "on rank 0 only"
                raise error

            return told(lambda: engine.on_main(work))

        def at(failing: dict[int, Exception]) -> list[str]:
            def work() -> int:
                if rank in failing:
                    raise failing[rank]
                return rank

            return told(lambda: engine.everywhere(work))

        self.seen["on_main"] = engine.on_main(lambda: {"of rank": rank})
        self.seen["on_main fails"] = [on_main(e) for e in (UserError("u"), WorkError("w"), OddError("o", 1))]
        self.seen["everywhere"] = at({})
        self.seen["everywhere fails"] = [
            at({2: UserError("u")}),
            at({1: WorkError("w"), 3: UserError("u")}),
            at({3: OSError("o")}),
            at({0: OddError("o", 1)}),
        ]
        self.seen["sum"] = engine.sum([1.0, float(rank), 0.1 * rank])
        self.seen["any"] = [engine.any(rank == 2), engine.any(False)]
        self.seen["gather"] = engine.gather({"rank": rank})

    def sums(self) -> None:
        """Numbers whose sum depends on the order."""
        parts = [torch.randn(1000, generator=torch.Generator().manual_seed(r)) * 10**r for r in range(4)]
        flat = parts[self.place].clone()
        self.engine.all_reduce(flat)
        self.seen["in pairs"] = torch.equal(flat, (parts[0] + parts[1]) + (parts[2] + parts[3]))
        self.seen["in a row"] = torch.equal(flat, parts[0] + parts[1] + parts[2] + parts[3])

    def same_start(self) -> None:
        """Each rank draws other weights; rank 0's count."""
        case = of_small_recipe(self.engine, CIPS)
        torch.manual_seed(self.place)
        family = case.build()
        drawn = [float(p.detach().sum()) for p in family.nets["D"].parameters()]
        nets = Training(family, self.engine, case.schedule).nets
        used = [float(p.detach().sum()) for p in nets["D"].parameters()]
        self.seen["drawn"], self.seen["used"] = drawn, used

    def straight(self) -> None:
        """20 iterations with the default microbatches; a checkpoint of four ranks on the way."""
        for recipe in RECIPES:
            case = of_small_recipe(self.engine, recipe)
            t = start(self.engine, case)
            go_on(t, self.engine, case, 6)
            if self.engine.world == 4:
                self.save(recipe, t, case)
            go_on(t, self.engine, case, LENGTH - 6)
            self.kept[f"in turn {recipe}"] = snapshot = t.snapshot(self.engine, case.schedule.fingerprint, 0.0)
            self.compare(f"straight {recipe}", snapshot)

    def second_leg(self) -> None:
        for recipe in RECIPES:
            self.leg(recipe, 6, 7)

    def third_leg(self) -> None:
        for recipe in RECIPES:
            self.compare(f"straight {recipe}", self.leg(recipe, 13, 7), "legs")

    def leg(self, recipe: str, begun: int, iterations: int) -> Snapshot | None:
        """From the checkpoint of the leg before; leaves one."""
        case = of_small_recipe(self.engine, recipe)
        t = self.resumed(recipe, begun, case)
        go_on(t, self.engine, case, iterations)
        return self.save(recipe, t, case)

    def save(self, name: str, t: Training, case: Case) -> Snapshot | None:
        snapshot = t.snapshot(self.engine, case.schedule.fingerprint, 0.0)
        self.engine.on_main(lambda: checkpoint.save(self.out / name, snapshot) if snapshot else None)
        return snapshot

    def resumed(self, name: str, begun: int, case: Case) -> Training:
        """In new objects, from the files."""
        t, found = start(self.engine, case), checkpoint.folder_of(self.out / name, begun * case.schedule.batch_size)
        t.restore(checkpoint.load(found, case.schedule.fingerprint))
        return t

    def thirds(self) -> None:
        """Three ranks add as the library does."""
        snapshot, _ = train(self.engine, of_small_recipe(self.engine, CIPS, "batch_size=24"), LENGTH // 2)
        self.compare("thirds", snapshot)

    def accumulation(self) -> None:
        """All images in one microbatch; before, on one rank, four came in turn."""
        for recipe, whole in ((MSPIE, 12), (CIPS, 16)):
            snapshot, _ = train(self.engine, of_small_recipe(self.engine, recipe, f"exec.batch_gpu={whole}"), LENGTH)
            self.compare(f"in turn {recipe}", snapshot, "at once")

    def compare(self, name: str, snapshot: Snapshot | None, how: str = "") -> None:
        """With the first world that did the same."""
        first, how = self.kept.setdefault(name, snapshot), how or f"{self.engine.world} ranks"
        if first is not None and snapshot is not None and first is not snapshot:
            feedback = [abs(value - snapshot.state.feedback[k]) for k, value in first.state.feedback.items()]
            unequal = [n for n in unlike(first, snapshot) if n != "feedback"]
            self.seen[f"{name}, {how}"] = [unequal, away(first, snapshot), max(feedback, default=0.0)]

    # Precision.

    def reduced(self) -> None:
        """In fp16 losses are so large that scales shrink all the way; a checkpoint half-way keeps those found."""
        for precision, factor in (("bf16", 1.0), ("fp16", 1e4)):
            self.engine.precision = precision
            case, loud = of_small_recipe(self.engine, CIPS), dict(spoil=lambda phase, i, factor=factor: factor)
            t = start(self.engine, case)
            go_on(t, self.engine, case, 5, **loud)
            half = self.save(precision, t, case)
            go_on(t, self.engine, case, 3, **loud)
            straight = t.snapshot(self.engine, case.schedule.fingerprint, 0.0)
            self.compare(precision, straight)
            if self.engine.world > 1:
                t = self.resumed(precision, 5, case)
                go_on(t, self.engine, case, 3, **loud)
                again = t.snapshot(self.engine, case.schedule.fingerprint, 0.0)
                self.seen[f"{precision} resumed"] = unlike(straight, again)
                self.seen[f"{precision} scales"] = [scales(s) for s in (half, again) if s]
            self.engine.precision = "fp32"

    def overflow(self) -> None:
        """Of the scaled gradient, on rank 1 alone."""
        self.spoiled("overflow", "fp16", 1e36)  # finite until it is scaled

    def not_a_number(self) -> None:
        """In the loss of rank 1 itself."""
        for precision in ("fp32", "fp16"):
            self.spoiled(f"nan {precision}", precision, float("nan"))

    def spoiled(self, name: str, precision: str, factor: float) -> None:
        """Rank 1 multiplies D's loss of one iteration, when scales have settled; what moved in it and in the next."""
        self.engine.precision, case, states = precision, of_toy(self.engine, 1), []
        t = start(self.engine, case)
        go_on(t, self.engine, case, 8)
        bad = factor if self.place == 1 else 1.0
        for spoil in (1.0, bad, 1.0):
            (told,) = go_on(t, self.engine, case, 1, spoil=lambda phase, i, f=spoil: f if phase == "D" else 1.0)
            self.seen.setdefault(f"{name} told", []).append(told)
            states.append(t.snapshot(self.engine, "toy", 0.0))
        self.engine.precision = "fp32"
        if self.engine.is_main:
            before, after, later = states
            self.seen[f"{name} moved"] = [
                moved(before, after, "D"),
                moved(before, after, "G"),
                moved(after, later, "D"),
            ]
            self.seen[f"{name} scales"] = [scales(s) for s in states]


def scales(snapshot: Snapshot) -> dict[str, float]:
    return {name: scaler["scale"] for name, scaler in snapshot.state.scalers.items() if scaler}


def away(a: Snapshot, b: Snapshot) -> float:
    """The distance of all weights behind the mapping, whose weights are a hundred times as large; of their norm."""
    pairs = [
        (net[k].double(), b.nets[name][k].double()) for name, net in a.nets.items() for k in net if "mapping" not in k
    ]
    off, norm = (sum(float(t.square().sum()) for t in ts) for ts in ([x - y for x, y in pairs], [x for x, _ in pairs]))
    return (off / norm) ** 0.5


def moved(a: Snapshot, b: Snapshot, net: str) -> list[bool]:
    """Did any weight, and anything of Adam's state, its count of steps included, change?"""
    x, y = a.optimizers[net]["state"], b.optimizers[net]["state"]
    state = any(not torch.equal(x[i][k], y[i][k]) for i in x for k in x[i])
    return [any(not torch.equal(v, b.nets[net][k]) for k, v in a.nets[net].items()), state]


if __name__ == "__main__":
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    sys.exit(fork_ranks(4, lambda: Ranks(Path(sys.argv[1])).go()))
