"""Who reads what at a size that no machine here has: the real functions, the ranks simulated.

`python tests/bench/assignment.py [--samples 100000000] [--shards 100000] [--ranks 4096] [--workers 8]`. Walks one
whole epoch of `order` for the full permutation and for block shuffles, and prints two Markdown tables. Coverage:
how often each sample is presented. Balance: images of a rank, and of each of its decoding threads; beside it what
dealing out whole shards gives. Locality: seeks, and what is left of a disk's speed. Randomness: neighbours on the disk
that meet in one batch, and classes in a batch when the disk is sorted by class.
"""

import argparse
import resource
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from pipeline.data.order import blocks_between, order

SEED = 0
CHUNK = 2_000_000  # positions at a time
IMAGE_KB = 100
SEEK_SEC, STREAM_MB_PER_SEC = 0.008, 150  # a spinning disk's
CLASSES = 1000


def coverage(n: int, shuffle: dict[str, int]) -> tuple[int, int, float]:
    """(fewest, most) presentations of a sample in epoch 0, and nanoseconds a position."""
    seen = np.zeros(n, np.uint8)
    start = time.perf_counter()
    for k in range(0, n, CHUNK):
        seen[order(SEED, n, np.arange(k, min(n, k + CHUNK)), **shuffle)] += 1
    return int(seen.min()), int(seen.max()), (time.perf_counter() - start) / n * 1e9


def shares(n: int, batch_size: int, ranks: int, workers: int) -> list[tuple[str, int, int]]:
    """(what, fewest, most) images in the first epoch, for positions as dealt here and for whole shards."""
    whole, rest = divmod(n, batch_size)
    local = batch_size // ranks
    rank = whole * local + np.clip(rest - local * np.arange(ranks), 0, local)
    thread = np.stack([(rank + workers - 1 - t) // workers for t in range(workers)])
    return [("rank", int(rank.min()), int(rank.max())), ("thread", int(thread.min()), int(thread.max()))]


def dealt_shards(n: int, shards: int, readers: int) -> tuple[int, int]:
    """(fewest, most) images of a reader when shard i goes to reader i modulo readers."""
    per_shard = n // shards
    return shards // readers * per_shard, -(-shards // readers) * per_shard


def locality(n: int, shuffle: dict[str, int], batch_size: int) -> tuple[float, float]:
    """Seeks an image, and the MB/s that one spinning disk then gives.

    All images: those of one global batch, in one sorted sweep. Blocks: what the readers ask for ahead, block by block.
    """
    if shuffle:
        images = shuffle["block"] * shuffle["window"]
        seeks = len(blocks_between(SEED, n, images, 2 * images, shuffle["block"]))
    else:
        images = batch_size
        got = np.sort(order(SEED, n, np.arange(images, 2 * images)))
        seeks = 1 + int((np.diff(got) != 1).sum())
    mb = images * IMAGE_KB / 1000
    return seeks / images, mb / (seeks * SEEK_SEC + mb / STREAM_MB_PER_SEC)


def randomness(n: int, shuffle: dict[str, int], batches: int = 4000) -> tuple[float, float]:
    """Of batches of 256: the share of images whose neighbour on the disk is there too; classes, against uniform."""
    got = order(SEED, n, np.arange(256 * batches), **shuffle).reshape(batches, 256)
    pairs = (np.diff(np.sort(got, axis=1), axis=1) == 1).mean()
    distinct = np.mean([len(np.unique(row)) for row in got // -(-n // CLASSES)])
    return float(pairs), float(distinct / (CLASSES * (1 - (1 - 1 / CLASSES) ** 256)))


def memory(n: int, shuffle: dict[str, int]) -> float:
    """Peak kB that one rank allocates for the positions of a thousand batches of 8, at the end of an epoch."""
    tracemalloc.start()
    for batch in range(1000):
        order(SEED, n, np.arange(n - 8 * (batch + 1), n - 8 * batch), **shuffle)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=100_000_000)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--ranks", type=int, default=4096)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=32_768)
    args = parser.parse_args()
    n, readers = args.samples, args.ranks * args.workers
    print(f"{n:,} samples, {args.shards:,} shards, {args.ranks:,} ranks x {args.workers} threads = {readers:,} readers")
    print(f"batch_size {args.batch_size:,}, {IMAGE_KB} kB an image\n")

    print("| images of one reader in an epoch | fewest | most | most / mean |\n|---|---|---|---|")
    for what, low, high in shares(n, args.batch_size, args.ranks, args.workers):
        mean = n / (args.ranks if what == "rank" else readers)
        print(f"| positions, a {what} | {low:,} | {high:,} | {high / mean:.4f} |")
    low, high = dealt_shards(n, args.shards, readers)
    print(f"| whole shards dealt out, a thread | {low:,} | {high:,} | {high / (n / readers):.4f} |\n")

    columns = [
        "shuffle",
        "each sample, times",
        "seeks an image",
        "MB/s of a spinning disk",
        "neighbours in a batch of 256",
    ]
    columns += ["classes in 256", "ns a position", "kB a rank"]
    print("|" + "|".join(f" {c} " for c in columns) + "|\n" + "|---" * len(columns) + "|")
    for title, shuffle in settings():
        fewest, most, ns = coverage(n, shuffle)
        seeks, speed = locality(n, shuffle, args.batch_size)
        pairs, classes = randomness(n, shuffle)
        cells = [title, f"{fewest} to {most}", f"{seeks:.3f}", f"{speed:.1f}", f"{pairs:.3%}", f"{classes:.3f} x"]
        cells += [f"{ns:.0f}", f"{memory(n, shuffle):.0f}"]
        print("|" + "|".join(f" {c} " for c in cells) + "|", flush=True)
    print(f"\npeak memory of this program, with its {n / 1e6:.0f} MB of counters: ", end="")
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB")


def settings() -> list[tuple[str, dict[str, int]]]:
    out: list[tuple[str, dict[str, int]]] = [("all images", {})]
    for block, window in ((16, 8192), (64, 4096), (256, 1024)):
        out.append((f"blocks of {block}, {window:,} at a time", {"block": block, "window": window}))
    return out


if __name__ == "__main__":
    main()
