"""Engines beside each other: how far weights end apart after 20 iterations, and what an image costs.

    python tests/bench/engines.py [--method mspie cips] [--rounds 3]

Two ranks over gloo train the networks of the parity tests (tests/training/zero_ranks.py), some thousand parameters, on
random images. Each engine makes 20 iterations from the start, R1 and path length included; then all go on in turn, so
that each round times every engine within the same seconds. Ratios are of rank 0's time to the plain engine's of the
same round, the median with the lowest and highest; "plain again" shows which differences mean nothing here. Networks
so small show what an engine costs besides arithmetic; nothing here tells how ZeRO does on GPUs or saves memory.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # before numpy and torch are imported
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from pipeline.training.engine import Engine
from tests.training.zero_ranks import ALL_AWAY, CIPS, MSPIE, WHOLE, difference, go_on, of_recipe, start

METHODS = {"mspie": MSPIE, "cips": CIPS}
ENGINES = {
    "plain": {},
    "plain again": {},
    "ZeRO-1": {"G": 1, "D": 1},
    "ZeRO-2": {"G": 2, "D": 2},
    "ZeRO-3 for G, -2 for D": {"G": 3, "D": 2},
}
ITERATIONS, A_ROUND = 20, 10


def measure(engine: Engine, method: str, rounds: int) -> None:
    """Rows of the table for one method, printed by rank 0."""
    case = of_recipe(engine, METHODS[method], f"exec.batch_gpu={WHOLE[METHODS[method]]}")
    runs, ends = {}, {}
    for name, zero in ENGINES.items():
        if zero.get("G") == 3 and method == "mspie":
            continue  # path length differentiates G exactly
        under = case.under(zero, ALL_AWAY if 3 in zero.values() else None) if zero else case
        runs[name] = start(engine, under), under
        go_on(runs[name][0], engine, under, ITERATIONS)
        ends[name] = runs[name][0].snapshot(engine, under.schedule.fingerprint, 0.0)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, (training, under) in runs.items():
            engine.sum([0.0])  # nobody is ahead
            began = time.monotonic()
            go_on(training, engine, under, A_ROUND)
            times[name].append((time.monotonic() - began) / A_ROUND / case.schedule.batch_size)
    for name in runs if engine.is_main else ():
        ratios = [mine / plain for mine, plain in zip(times[name], times["plain"], strict=True)]
        print(
            f"| {method} | {name} | {difference(ends['plain'], ends[name]):.1e} "
            f"| {1000 * statistics.median(times[name]):.1f} "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if "RANK" not in os.environ:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        sys.exit(subprocess.run([*launch, *sys.argv]).returncode)
    torch.set_num_threads(1)
    engine = Engine("fp32", 2)
    if engine.is_main:
        print(f"2 gloo ranks, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {args.rounds} rounds\n")
        print(f"| method | engine | largest weight difference after {ITERATIONS} iterations | ms an image | x plain |")
        print("|---|---|---|---|---|", flush=True)
    for method in args.method:
        measure(engine, method, args.rounds)
    engine.close(failed=False)


if __name__ == "__main__":
    main()
