"""How fast images come, side by side: ours, the peers' loaders, and the decoder alone, on the same files and cores.

`python tests/bench/loaders.py --venvs DIR [--images DIR] [--rounds 5] [--only NAME ...]`. Each peer lives in an
environment of its own, made from the package index where it is missing (ffcv also needs a compiler, pkg-config,
libopencv-dev and libturbojpeg0-dev). Rounds are interleaved: every peer runs once in each. Prints a Markdown table
of medians, the spread, and ratios to stock webdataset, to FFCV and to decoding alone. FFCV encodes JPEG anew, always
with 4:2:0, which decodes faster than 4:4:4: compare it on --subsampling 4:2:0.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.bench.loader_peers import PEERS, files, jpeg

TORCH = ["torch==2.13.0", "numpy", "pillow", "simplejpeg"]
INSTALL = {  # environment -> pip install commands, in order
    "webdataset": [[*TORCH, "webdataset"]],
    "litdata": [
        [*TORCH, "boto3", "obstore", "lightning-utilities", "packaging", "typing_extensions", "filelock", "tifffile"],
        ["fsspec", "requests"],
        ["--no-deps", "litdata"],  # declares torchvision, works without
    ],
    "streaming": [[*TORCH, "mosaicml-streaming"]],
    "ffcv": [["setuptools", "wheel", *TORCH], ["ffcv", "opencv-python", "numba"]],
}


def python_of(environment: str, venvs: Path) -> Path:
    if environment == "graticule":
        return Path(sys.executable)
    python = venvs / environment / "bin" / "python"
    if not python.exists():
        print(f"installing {environment} ...", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(venvs / environment)], check=True)
        for packages in INSTALL[environment]:
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


def bundled_photographs(out: Path, size_px: int, count: int, subsampling: str) -> None:
    """`count` JPEG files of quality 95: windows of the bundled photographs, each as often as needed."""
    from PIL import Image

    from dataprep.sources import open_source

    source = open_source("photos")
    windows = (source.read(e).resize((size_px, size_px), Image.Resampling.LANCZOS) for e in source.entries(size_px))
    stored = [jpeg(window.convert("RGB"), subsampling) for window in windows]
    out.mkdir(parents=True)
    for i in range(count):
        (out / f"{i:06d}.jpg").write_bytes(stored[i % len(stored)])


def timed(name: str, python: Path, images: Path, work: Path) -> dict:
    environment, _ = PEERS[name]
    script = Path(__file__).with_name("loader_peers.py")
    command = [str(python), str(script), name, str(images), str(work / environment / name.replace(" ", "-"))]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "BENCH_BORN": str(time.time())}
    env["PYTHONPATH"] = str(Path(__file__).parents[2]) if environment == "graticule" else ""
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr.strip()[-1500:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venvs", type=Path, required=True)
    parser.add_argument("--images", type=Path, help="folder of square .jpg files of one size")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--subsampling", default="4:4:4", choices=["4:4:4", "4:2:0"], help="of the colour in the files")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=PEERS)
    args = parser.parse_args()
    names = args.only or list(PEERS)
    pythons = {name: python_of(PEERS[name][0], args.venvs.absolute()) for name in names}
    with tempfile.TemporaryDirectory() as temp:
        images = args.images or Path(temp, "images")
        if args.images is None:
            bundled_photographs(images, args.size, args.count, args.subsampling)
        work = Path(temp, "work")
        for name in names:  # writes the peer's format
            timed(name, pythons[name], images, work)
        runs: dict[str, list[dict]] = {name: [] for name in names}
        for _ in range(args.rounds):
            for name in names:
                runs[name].append(timed(name, pythons[name], images, work))
        kb = statistics.mean(f.stat().st_size for f in files(images)) / 1000
        print(f"{len(files(images))} JPEG files of {kb:.1f} kB; batches of 64, 2 workers; {args.rounds} rounds")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    report(runs)


def report(runs: dict[str, list[dict]]) -> None:
    speed = {n: [statistics.median(r["img_per_sec"]) for r in rs] for n, rs in runs.items()}
    median = {n: statistics.median(s) for n, s in speed.items()}
    peers = {"webdataset": "x webdataset", "FFCV jpg": "x FFCV jpg", "FFCV raw": "x FFCV raw"}
    peers["decoding alone (simplejpeg)"] = "of decoding alone"
    shown = {n: title for n, title in peers.items() if n in median}
    print("| loader | img/s | lowest to highest | first batch, s |", *(f" {t} |" for t in shown.values()), sep="")
    print("|---|---|---|---|" + "---|" * len(shown))
    for name, m in sorted(median.items(), key=lambda item: -item[1]):
        first = statistics.median(r["first_batch_sec"] for r in runs[name])
        ratios = "".join(f" {m / median[n]:.2f} |" for n in shown)
        print(f"| {name} | {m:.0f} | {min(speed[name]):.0f} to {max(speed[name]):.0f} | {first:.1f} |{ratios}")


if __name__ == "__main__":
    main()
