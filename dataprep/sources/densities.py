"""Images of one density each, for the centre of mass of GeoPos (2401.01951, Fig. 4): seven kinds, drawn, no download.

Place, width, angle and height of image i are functions of (split, i) alone; the density may reach beyond the image.
The class is the kind. The paper names neither kinds nor ranges: all of that is our choice. Two machines draw equal
pixels but where their exponential functions differ in the last bit and a value is just then rounded. PATH has no
meaning here. Knows nothing of the centre, which is computed from the stored image where it is wanted.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dataprep.sources.entry import Entries, Entry
from pipeline.config import nearest
from pipeline.errors import UserError

Plane = np.ndarray  # [side, side] float64


def _two_blobs(u: Plane, v: Plane) -> Plane:
    """A large one and a small one, so that the centre lies between them and in neither."""
    return np.exp(-2 * ((u - 0.9) ** 2 + v**2)) + 0.5 * np.exp(-4 * ((u + 1.1) ** 2 + v**2))


# density at (u, v): along and across, in widths from its place; at most 1
KINDS: dict[str, Callable[[Plane, Plane], Plane]] = {
    "gaussian": lambda u, v: np.exp(-(u**2) - 2 * v**2),
    "laplace": lambda u, v: np.exp(-2 * np.abs(u) - 3 * np.abs(v)),
    "disc": lambda u, v: (u**2 + 2 * v**2 <= 1).astype(float),
    "ring": lambda u, v: ((u**2 + v**2 <= 1) & (u**2 + v**2 >= 0.4)).astype(float),
    "square": lambda u, v: (np.maximum(np.abs(u), np.abs(v)) <= 0.8).astype(float),
    "triangle": lambda u, v: ((u <= 0.6) & (np.abs(v) <= (u + 1.2) / 1.8)).astype(float),
    "two_blobs": _two_blobs,
}
SPLITS = {"train": 600, "validation": 100}  # images of each kind
PLACES, WIDTHS, HEIGHTS = (0.1, 0.9), (0.08, 0.24), (0.3, 1.0)  # uniform; shares of the side, and of white
FINER = 4  # points a pixel and axis; a pixel is their mean


class Densities:
    """Image i is of kind i mod 7. Drawn at the stored size, which an entry carries as its number."""

    name = "densities"
    crop = "none"
    classes = tuple(KINDS)
    notes: tuple[str, ...] = ()

    def __init__(self, path: Path | None = None, split: str | None = None):
        refuse_path(self.name, path)
        self.split = known_split(self.name, split, SPLITS)

    def entries(self, size_px: int) -> Entries:
        return numbered(self.classes, SPLITS[self.split], size_px)

    def about(self, entry: Entry) -> dict[str, Any]:
        return {}

    def read(self, entry: Entry) -> Image.Image:
        kind, number = entry.name.split("/")
        grey = drawn(kind, draws(self.name, self.split, int(number)), entry.at)
        return Image.fromarray(grey).convert("RGB")


def drawn(kind: str, chance: np.random.Generator, side_px: int) -> np.ndarray:
    """uint8 [side_px, side_px]: one density, black where there is none."""
    ranges = (PLACES, PLACES, WIDTHS, (0, 2 * np.pi), HEIGHTS)
    x0, y0, width, angle, height = (low + (high - low) * chance.random() for low, high in ranges)
    at = (np.arange(side_px * FINER) + 0.5) / (side_px * FINER)
    dx, dy = (at[None, :] - x0) / width, (at[:, None] - y0) / width
    cos, sin = np.cos(angle), np.sin(angle)
    density = KINDS[kind](cos * dx + sin * dy, cos * dy - sin * dx)
    pixels = density.reshape(side_px, FINER, side_px, FINER).mean((1, 3))
    return np.rint(255 * height * pixels).astype(np.uint8)


def numbered(classes: tuple[str, ...], of_each: int, size_px: int) -> Entries:
    """Entries `class/number`, the classes in turn; their number is the side to draw."""
    n = len(classes)
    return Entries(Entry(f"{classes[i % n]}/{i:06d}".encode(), i % n, size_px) for i in range(n * of_each))


def draws(source: str, split: str, number: int) -> np.random.Generator:
    """The random numbers of one image."""
    word = hashlib.blake2b(f"{source}/{split}/{number}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(word, "little")))


def refuse_path(source: str, path: Path | None) -> None:
    """UserError where one is given."""
    if path is not None:
        raise UserError(f"path={str(path)!r}: source {source!r} draws its images; leave PATH out")


def known_split(source: str, split: str | None, splits: Mapping[str, Any]) -> str:
    """`split` itself; UserError unless it is in the table."""
    if split is None or split not in splits:
        what = f"split={split!r}" if split is not None else "split: not given"
        near = f"; {nearest(split, splits)}" if split else ""
        raise UserError(f"{what}; source {source!r} has {', '.join(splits)}{near}")
    return split
