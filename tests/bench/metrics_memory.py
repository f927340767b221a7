"""Memory that a metric takes from full stores: FID of 50,000 x 2048 features, precision and recall of 10,000 x 4096.

`python tests/bench/metrics_memory.py [NAME ...]` (fid50k_50k, pr10k3_10k, and swd16k on one level, which takes 2.5 GB
of disk). Each runs in a process of its own through `compute`, so that its peak is its own; exit code 1 where it is
above 4 GiB. Features are random, float32, in blocks in a temporary folder.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from pipeline.metrics.compute import compute
from pipeline.metrics.protocols import parse
from pipeline.metrics.store import Store, fill

LIMIT_GIB = 4
SHAPES = {"fid": ("features", (2048,)), "pr": ("features", (4096,)), "swd": ("px16", (128, 3, 7, 7))}


def filled(folder: Path, n: int, name: str, shape: tuple[int, ...], seed: int) -> Store:
    store = Store(folder, n)

    def make(block: range) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed * 10**6 + block.start)
        return {name: torch.randn(len(block), *shape, generator=generator) + seed / 10}

    fill(store, make)
    return store


def measure(text: str, folder: Path) -> None:
    """In a process of its own: the number, seconds, and the most memory it ever held."""
    protocol = parse(text)
    real, fake = (Store(folder / whose, protocol.fake) for whose in ("real", "fake"))
    before_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    began, processor = time.monotonic(), time.process_time()
    found = compute(protocol, real, protocol.fake, fake)
    seconds = f"{time.process_time() - processor:.1f} s of processor, {time.monotonic() - began:.1f} s"
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    values = ", ".join(f"{suffix} {value:.6g}" for suffix, value in found.values.items())
    print(f"{text}: {values}; {seconds}; peak {peak_gib:.2f} GiB ({before_gib:.2f} before) of {LIMIT_GIB}")
    sys.exit(peak_gib > LIMIT_GIB)


def main() -> None:
    for text in sys.argv[1:] or ("fid50k_50k", "pr10k3_10k"):
        protocol = parse(text)
        name, shape = SHAPES[protocol.kind]
        with tempfile.TemporaryDirectory(prefix="metrics-memory-") as folder:
            for seed, whose in enumerate(("real", "fake")):
                filled(Path(folder) / whose, protocol.fake, name, shape, seed)
            subprocess.run([sys.executable, __file__, "--of", text, folder], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--of"]:
        measure(sys.argv[2], Path(sys.argv[3]))
    else:
        main()
