"""How fast real images come to a detector: read, decoded and resized by `Reference`, against a plain Pillow loop.

`python tests/bench/reference.py [--images 400] [--repeat 5]`. The bundled photographs are prepared at 256 px; the plain
loop reads the same bytes as single files: Image.open, convert("RGB"), resize with LANCZOS, to a tensor [3, h, w]. No
detector runs. The ways take turns, all from the page cache; images a second are medians of wall time, a ratio is the
median over the turns; "of work": of processor time, with 1 thread. Pixels are held against the plain loop's.
"""

import argparse
import platform
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dataprep.sources import open_source
from dataprep.transform import Transform
from dataprep.writer import prepare
from pipeline.metrics.extract import Extractor
from pipeline.metrics.reference import Reference, View

STORED_PX = 256
CASES = [("jpg", 256), ("jpg", 128), ("png", 256), ("png", 128)]


def plain(files: list[Path], size_px: int) -> list[torch.Tensor]:
    out = []
    for file in files:
        image = Image.open(file).convert("RGB")
        if image.width != size_px:
            image = image.resize((size_px, size_px), Image.Resampling.LANCZOS)
        out.append(torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous())
    return out


def ours(reference: Reference, n: int) -> list[torch.Tensor]:
    return [img for img, _ in reference.pixels(range(n))]


def unpacked(root: Path, out: Path, count: int) -> list[Path]:
    """The first images of a set as files, in stored order."""
    for shard in sorted(root.glob("*.tar")):
        with tarfile.open(shard) as tar:
            tar.extractall(out, filter="data")
    return sorted(p for p in out.iterdir() if p.suffix != ".json")[:count]


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """On the wall, and of the processor."""
    start = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"Python {platform.python_version()}, Pillow {version('pillow')}, simplejpeg {version('simplejpeg')}\n")
    print("| stored | measured at | plain Pillow img/s | 1 thread img/s | ratio | 2 threads img/s | ratio | of work |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for encoding, size_px in CASES:
            root = Path(folder, encoding)
            prepare(open_source("photos"), root, Transform(size_px=STORED_PX, encoding=encoding))
            files = unpacked(root, Path(folder, f"{encoding}-files"), args.images)
            view = View(size_px, "" if size_px == STORED_PX else "lanczos", mirror=False, stored_order=True)
            by_threads = [
                Reference(root, view, Extractor("nothing", {}, lambda img, numbers: {}), threads=n) for n in (1, 2)
            ]
            made = torch.cat(ours(by_threads[1], len(files)))
            assert torch.equal(made, torch.stack(plain(files, size_px))), "pixels differ from Pillow's"
            ways = [partial(plain, files, size_px), *(partial(ours, r, len(files)) for r in by_threads)]
            turns = [[seconds(way) for way in ways] for _ in range(args.repeat)]
            rates = [len(files) / statistics.median(wall for wall, _ in times) for times in zip(*turns, strict=True)]
            wall = [statistics.median(turn[0][0] / turn[i][0] for turn in turns) for i in (1, 2)]
            work = statistics.median(turn[0][1] / turn[1][1] for turn in turns)
            row = f"{rates[0]:.0f} | {rates[1]:.0f} | {wall[0]:.2f} | {rates[2]:.0f} | {wall[1]:.2f} | {work:.2f}"
            print(f"| {encoding} {STORED_PX} px | {size_px} px | {row} |", flush=True)


if __name__ == "__main__":
    main()
