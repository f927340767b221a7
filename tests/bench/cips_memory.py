"""Peak memory of one CIPS picture by the number of pixels computed together (`graticule sample --chunk-px`).

python tests/bench/cips_memory.py --size 4096 --width 32 --chunks 4096 65536
Each chunk in a process of its own: resident memory before the picture, at its peak, and the seconds it took.
"""

import argparse
import resource
import subprocess
import sys
import time

import torch

from pipeline.models.cips import CIPSGeneratorConfig


def measure(size: int, width: int, chunk: int, noise: bool) -> str:
    """A row of the table, of this process."""
    G = CIPSGeneratorConfig(size_px=256, width=width).build().eval().requires_grad_(False)
    ws = torch.randn(1, G.num_ws, G.w_dim)
    with torch.no_grad():
        G.synthesis(ws, (16, 16), (0,))
        before = resident_mib()
        G.pixels_at_once = chunk
        began = time.monotonic()
        G.synthesis(ws, (size, size), (0,) if noise else None)
    peak, took = resident_mib(), time.monotonic() - began
    return f"| {size} | {width} | {'yes' if noise else 'no'} | {chunk} | {before} | {peak} | {took:.0f} |"


def resident_mib() -> int:
    """The most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--chunks", type=int, nargs="+", default=[1 << 12, 1 << 16])
    parser.add_argument("--no-noise", action="store_true")
    args = parser.parse_args()
    if len(args.chunks) == 1:
        print(measure(args.size, args.width, args.chunks[0], not args.no_noise), flush=True)
        return
    print("| side, px | width | noise | chunk, px | MiB before | MiB at peak | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for chunk in args.chunks:
        words = [sys.executable, __file__, "--size", str(args.size), "--width", str(args.width), "--chunks", str(chunk)]
        subprocess.run([*words, *(["--no-noise"] if args.no_noise else [])], check=True)


if __name__ == "__main__":
    main()
