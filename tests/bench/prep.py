"""What `prep` does to one image, against a plain Pillow loop, on one core.

`python tests/bench/prep.py [FOLDER] [--repeat 7]`. FOLDER: photographs, by default those of GRATICULE_REAL_IMAGES,
else the ones that come with scikit-image and scikit-learn. Its largest pictures are written in the formats of the
data sets; both loops then read those files. A loop takes one thread and its processor time is what counts, so a
busy machine disturbs little; the two take turns, and the ratio is the median over the turns. The plain loop is
Image.open, convert("RGB"), crop, resize with LANCZOS, save at the same quality with the format's default effort.
"""

import argparse
import importlib.metadata
import io
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, features

sys.path.insert(0, str(Path(__file__).parents[2]))
from dataprep.sources import open_source
from dataprep.sources.folder import EXTENSIONS
from dataprep.transform import CROPS, ENCODINGS, FILTERS, Transform, open_image

PICTURES = 4  # of each kind; each loop passes over all of them
TURN_SEC = 0.15  # a turn is as many passes as take about this long
WRITTEN = {
    "png": {"format": "PNG"},
    "jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    "webp": {"format": "WEBP", "lossless": True},
}


class Kind(NamedTuple):
    """How a data set's files look."""

    size: tuple[int, int]
    format: str
    options: dict[str, int]


FFHQ = Kind((1024, 1024), "PNG", {})
LSUN_WEBP = Kind((341, 256), "WEBP", {"quality": 75})
LSUN_JPEG = Kind((341, 256), "JPEG", {"quality": 75})
CELEBA = Kind((178, 218), "JPEG", {"quality": 92})
PHOTO = Kind((3840, 2160), "JPEG", {"quality": 90})
CASES = {
    "FFHQ: PNG 1024 -> png 256": (FFHQ, Transform()),
    "FFHQ: PNG 1024 -> jpg 256": (FFHQ, Transform(encoding="jpg")),
    "FFHQ: PNG 1024 -> webp 256": (FFHQ, Transform(encoding="webp")),
    "LSUN: WebP 341x256 -> png 256": (LSUN_WEBP, Transform()),
    "LSUN: WebP 341x256 -> jpg 256": (LSUN_WEBP, Transform(encoding="jpg")),
    "LSUN: JPEG 341x256 -> jpg 256": (LSUN_JPEG, Transform(encoding="jpg")),
    "CelebA: JPEG 178x218 -> pggan png 128": (CELEBA, Transform(crop="pggan", size_px=128)),
    "photos: JPEG 3840x2160 -> jpg 256": (PHOTO, Transform(encoding="jpg")),
}


def plain(file: Path, transform: Transform) -> bytes:
    """What people write; no orientation, no profiles, no checks."""
    image = Image.open(file).convert("RGB")
    image = image.crop(CROPS[transform.crop](*image.size))
    side = transform.size_px
    if image.width != side:
        image = image.resize((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, **WRITTEN[transform.encoding])
    return out.getvalue()


def ours(file: Path, transform: Transform) -> bytes:
    return transform(open_image(file))


def stages(files: Sequence[Path], transform: Transform) -> dict[str, float]:
    """Seconds an image in each part of ours."""
    images = [open_image(f) for f in files]
    squares = [transform.square(i) for i in images]
    reduce = FILTERS[transform.filter] if squares[0].width != transform.size_px else None
    small = [reduce(s, transform.size_px) if reduce else s for s in squares]
    encode = ENCODINGS[transform.encoding].encode
    parts: dict[str, Callable[[], object]] = {
        "decode": lambda: [open_image(f) for f in files],
        "crop, colour": lambda: [transform.square(i) for i in images],
        "resize": lambda: [reduce(s, transform.size_px) for s in squares] if reduce else None,
        "encode": lambda: [encode(s, transform.quality) for s in small],
    }
    return {name: statistics.median(spent(part) for _ in range(3)) / len(files) for name, part in parts.items()}


def spent(work: Callable[[], object]) -> float:
    """Processor seconds of one pass."""
    work()  # warm
    passes, start = 0, time.process_time()
    while (sec := time.process_time() - start) < TURN_SEC / 3 or not passes:
        work()
        passes += 1
    return sec / passes


def turns(files: Sequence[Path], transform: Transform, repeat: int) -> tuple[float, float, float]:
    """Median seconds an image of plain and of ours, and the median ratio of a turn."""
    loops = [lambda: [plain(f, transform) for f in files], lambda: [ours(f, transform) for f in files]]
    passes = [max(1, round(TURN_SEC / spent(loop))) for loop in loops]
    seconds: list[list[float]] = [[], []]
    for turn in range(repeat):
        for which in (0, 1) if turn % 2 else (1, 0):
            start = time.process_time()
            for _ in range(passes[which]):
                loops[which]()
            seconds[which].append((time.process_time() - start) / passes[which] / len(files))
    ratio = statistics.median(p / o for p, o in zip(*seconds, strict=True))
    return statistics.median(seconds[0]), statistics.median(seconds[1]), ratio


def photographs(folder: Path | None) -> list[Image.Image]:
    """The largest pictures of a folder, or the largest windows of the bundled ones, without metadata."""
    if folder is None:
        source = open_source("photos")
        bundled = sorted((source.read(e) for e in source.entries(512)), key=lambda i: -i.width)
        return [i.convert("RGB") for i in bundled[:: len(bundled) // PICTURES][:PICTURES]]
    files = [f for f in sorted(folder.rglob("*")) if os.fsencode(f.name).lower().endswith(EXTENSIONS)]
    sizes = {f: _pixels(f) for f in files}
    largest = sorted((f for f in files if sizes[f]), key=lambda f: -sizes[f])[:PICTURES]
    if not largest:
        raise SystemExit(f"FOLDER={str(folder)!r}: no pictures in it")
    return [Image.fromarray(np.asarray(open_image(f).convert("RGB"))) for f in largest]


def _pixels(file: Path) -> int:
    try:
        with Image.open(file) as image:
            return image.width * image.height if image.width * image.height < 5e7 else 0
    except Exception:  # damaged on purpose, in the folders that tests use
        return 0


def written(kind: Kind, pictures: Sequence[Image.Image], folder: Path) -> list[Path]:
    """The pictures as files of that kind: cut to its shape from the middle, then resized."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for i, picture in enumerate(pictures):
        file = folder / f"{i}.{kind.format.lower()}"
        if not file.exists():
            ImageOps.fit(picture, kind.size, Image.Resampling.LANCZOS).save(file, kind.format, **kind.options)
        files.append(file)
    return files


def machine() -> str:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        cpu = next((x.split(":")[1].strip() for x in info.read_text().splitlines() if x.startswith("model name")), cpu)
    zlib = f"zlib-ng {features.version('zlib_ng')}" if features.check("zlib_ng") else f"zlib {features.version('zlib')}"
    parts = f"libjpeg-turbo {features.version('libjpeg_turbo')}, libwebp {features.version('webp')}, {zlib}"
    pillow = importlib.metadata.version("pillow")
    return f"{cpu}, {os.cpu_count()} cores; Python {platform.python_version()}, Pillow {pillow} ({parts})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("GRATICULE_REAL_IMAGES")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(default) if default else None)
    parser.add_argument("--repeat", type=int, default=7, help="turns of each loop")
    args = parser.parse_args()
    pictures = photographs(args.folder)
    print(machine())
    print(f"{len(pictures)} pictures, the largest {pictures[0].width}x{pictures[0].height}; medians of {args.repeat}\n")
    print("| case | plain ms | ours ms | ours images/s a core | ratio | bytes of plain | where our time goes |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | --- |")
    with tempfile.TemporaryDirectory() as root:
        for name, (kind, transform) in CASES.items():
            files = written(kind, pictures, Path(root, "-".join(map(str, (*kind.size, kind.format)))))
            pairs = [(plain(f, transform), ours(f, transform)) for f in files]
            if transform.encoding == "png":
                same = all(np.array_equal(*(np.asarray(Image.open(io.BytesIO(d))) for d in pair)) for pair in pairs)
                assert same, f"{name}: pixels differ from Pillow's"
            weight = sum(len(o) for _, o in pairs) / sum(len(p) for p, _ in pairs)
            slow, fast, ratio = turns(files, transform, args.repeat)
            parts = stages(files, transform)
            shares = ", ".join(f"{part} {sec / sum(parts.values()):.0%}" for part, sec in parts.items())
            row = f"{1e3 * slow:.2f} | {1e3 * fast:.2f} | {1 / fast:.0f} | {ratio:.2f} | {weight:.2f} | {shares}"
            print(f"| {name} | {row} |", flush=True)


if __name__ == "__main__":
    main()
