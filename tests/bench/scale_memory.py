"""What several sizes in one run cost in memory: the peak of training at each size alone, and at all of them in turn.

    python tests/bench/scale_memory.py [--recipe mspie.table5_f] [--full] [--set KEY=VALUE ...] [--iterations 16]

One microbatch of random images an iteration, in a process of its own for each row; both regularisers are due in every
iteration, so that it is not chance which size they fall on. Tiny networks by default, --full is the recipe's. On CUDA
the peak is what the allocator reserves (torch.cuda.max_memory_reserved), elsewhere the peak of the process's resident
memory beyond what it had before networks were built (Linux). The claim: all sizes in turn take what the largest takes
alone, not the sum. PYTORCH_CUDA_ALLOC_CONF=expandable_segments:False shows CUDA's allocator without its help.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from pipeline.attempt import schedule_of
from pipeline.plan import ExecConfig, RunConfig, override_all
from pipeline.recipes import find
from pipeline.spec import Batch
from pipeline.training.engine import Engine
from pipeline.training.health import Health
from pipeline.training.loop import Outlets, Training, train

MB = 1 << 20


def configured(args: argparse.Namespace) -> RunConfig:
    """The recipe with one microbatch an iteration, every regulariser in each."""
    recipe = find(args.recipe).make()
    run = recipe if args.full else recipe.tiny()
    kimg = args.iterations * run.family.group / 1000
    always = [f"batch_size={run.family.group}", f"total_kimg={kimg}", "family.r1_interval=1", "family.G_interval=1"]
    return override_all(run, ExecConfig(), [*always, *args.set])[0]


def resident_mb(field: str) -> float:
    """VmRSS, or its peak VmHWM, of this process; 0 where there is no /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def peak_mb(run: RunConfig) -> float:
    """Of training `run` in this process."""
    exec_ = ExecConfig(status_kimg=1e6, sample_kimg=1e6, checkpoint_kimg=1e6)
    engine = Engine(run.precision, 1)
    schedule, before = schedule_of(run, exec_, 0), resident_mb("VmRSS")
    training = Training(run.family.build(run.seed), engine, schedule)
    side = run.data.size_px
    batch = Batch(torch.randint(0, 256, (run.batch_size, 3, side, side), dtype=torch.uint8), torch.tensor([-1]))
    outcome = train(
        training,
        iter(lambda: batch, None),
        engine,
        schedule,
        should_stop=lambda: False,
        health=Health(10**6, engine.device),
        saver=None,
        outlets=Outlets(lambda *a: None, lambda *a, **k: None),
    )
    engine.close(failed=False)
    assert outcome == "done", outcome
    if engine.device.type == "cuda":
        return torch.cuda.max_memory_reserved() / MB
    return resident_mb("VmHWM") - before


def order_of_sizes(run: RunConfig, iterations: int) -> list[int]:
    """Sides in the order that the run draws them."""
    knobs = run.family.build(run.seed).knobs
    return [knobs(i * run.batch_size).size[0] for i in range(iterations)]


def child(args: argparse.Namespace) -> None:
    run = configured(args)
    if args.only is not None:
        probs = tuple(float(i == args.only) for i in range(len(run.family.sizes())))
        run = run.replace(family=run.family.replace(scale_probs=probs))
    print(peak_mb(run))


def measure(only: int | None) -> float:
    """In a process of its own."""
    words = [sys.executable, __file__, *sys.argv[1:], "--child", *([] if only is None else ["--only", str(only)])]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="mspie.table5_f")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--iterations", type=int, default=16)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args)
    with torch.device("meta"):
        run = configured(args)
        order = order_of_sizes(run, args.iterations)
    sides = [side for side, _ in run.family.sizes()]
    if set(order) != set(sides):
        sys.exit(f"{args.iterations} iterations draw only {sorted(set(order))} px; ask for more")
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{run.recipe}, {'full' if args.full else 'tiny'}, {where}; microbatch {run.batch_size}; drawn: {order} px\n")
    print("| sizes | peak, MB |\n|---|---|")
    alone = {side: measure(i) for i, side in enumerate(sides)}
    for side, peak in alone.items():
        print(f"| {side} px alone | {peak:.0f} |", flush=True)
    mixed = measure(None)
    print(f"| all in turn | {mixed:.0f} |")
    print(f"\nall / largest alone: {mixed / max(alone.values()):.2f}", end="; ")
    print(f"were it their sum: {sum(alone.values()) / max(alone.values()):.2f}")


if __name__ == "__main__":
    main()
