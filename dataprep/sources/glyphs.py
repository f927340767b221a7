"""Greek letters for the positional bias of GeoPos (2401.01951): what is it, how does it lie, where does it lie.

identity: one of 24 letters. relative: an iota and an omega; the class is where the omega lies from the iota. Both are
trained and `seen` in the upper left quarter and `unseen` wholly outside of it. absolute: a letter's cell of a 3x3 grid.
White on black, faces of DejaVu, which the matplotlib wheel carries; it is found, not imported. The paper names nothing
of this: letters, placement and numbers are our choice. Image i is a function of (split, i) and of how FreeType renders:
its builds differ in grey values at edges, and may differ in a letter's extent by a pixel. PATH has no meaning here.
"""

import importlib.util
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFont

from dataprep.sources.densities import draws, known_split, numbered, refuse_path
from dataprep.sources.entry import Entries, Entry
from pipeline.errors import UserError

LETTERS: dict[str, str] = dict(zip(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu "
    "nu xi omicron pi rho sigma tau upsilon phi chi psi omega".split(),
    "αβγδεζηθικλμνξοπρστυφχψω", strict=True,
))  # fmt: skip
FACES = [
    f"DejaVu{family}"
    for family, slant in (("Sans", "Oblique"), ("SansMono", "Oblique"), ("Serif", "Italic"))
    for family in (family, f"{family}-Bold", f"{family}-{slant}", f"{family}-Bold{slant}")
]
DIRECTIONS = {"right": (1, 0), "below": (0, 1), "left": (-1, 0), "above": (0, -1)}
CELLS = [f"{row}-{column}" for row in ("top", "middle", "bottom") for column in ("left", "centre", "right")]
TASKS = {"identity": tuple(LETTERS), "relative": tuple(DIRECTIONS), "absolute": tuple(CELLS)}
SPLITS = {  # images of each class
    "identity-train": 200, "identity-seen": 40, "identity-unseen": 40,
    "relative-train": 1200, "relative-seen": 240, "relative-unseen": 240,
    "absolute-train": 520, "absolute-seen": 104,
}  # fmt: skip
EM, EM_OF_PAIR = (0.34, 0.44), (0.24, 0.28)  # height of a line, share of the side
LEAST_PX = 32  # smaller letters are no letters


class Glyphs:
    """Image i is of class i modulo the number of classes; drawn at the stored size, which an entry carries."""

    name = "glyphs"
    crop = "none"
    notes: tuple[str, ...] = ()

    def __init__(self, path: Path | None = None, split: str | None = None):
        refuse_path(self.name, path)
        self.split = known_split(self.name, split, SPLITS)

    @property
    def task(self) -> str:
        return self.split.partition("-")[0]

    @property
    def classes(self) -> tuple[str, ...]:
        return TASKS[self.task]

    def entries(self, size_px: int) -> Entries:
        if size_px < LEAST_PX:
            raise UserError(f"size={size_px}: letters need --size {LEAST_PX} or more")
        fonts_folder()
        return numbered(self.classes, SPLITS[self.split], size_px)

    def about(self, entry: Entry) -> dict[str, Any]:
        return {}

    def read(self, entry: Entry) -> Image.Image:
        wanted, number = entry.name.split("/")
        chance, side = draws(self.name, self.split, int(number)), entry.at
        ink = _pair(wanted, chance, side) if self.task == "relative" else _single(self.task, wanted, chance, side)
        inside = _in_cell(CELLS.index(wanted)) if self.task == "absolute" else REGIONS[self.split.partition("-")[2]]
        canvas = np.zeros((side, side), np.uint8)
        left, top = _place(ink.shape, side, inside, chance)
        canvas[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
        return Image.fromarray(canvas).convert("RGB")


# (left, top, right, bottom) of the ink, right and bottom exclusive, and the side -> may it lie there?
Rule = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int], np.ndarray]
REGIONS: dict[str, Rule] = {
    "train": lambda left, top, right, bottom, side: (2 * right <= side) & (2 * bottom <= side),
    "unseen": lambda left, top, right, bottom, side: (2 * left >= side) | (2 * top >= side),
}
REGIONS["seen"] = REGIONS["train"]


def _in_cell(cell: int) -> Rule:
    """The middle of the ink lies in this cell of the 3x3 grid."""

    def rule(left: np.ndarray, top: np.ndarray, right: np.ndarray, bottom: np.ndarray, side: int) -> np.ndarray:
        row, column = 3 * (top + bottom) // (2 * side), 3 * (left + right) // (2 * side)
        return (row == cell // 3) & (column == cell % 3)

    return rule


def _place(shape: tuple[int, ...], side: int, inside: Rule, chance: np.random.Generator) -> tuple[int, int]:
    """Left and top of ink of this (height, width): each allowed place, whole in the image, is as likely."""
    top, left = np.mgrid[: side - shape[0] + 1, : side - shape[1] + 1]
    allowed = np.flatnonzero(inside(left, top, left + shape[1], top + shape[0], side))
    y, x = np.unravel_index(allowed[_below(len(allowed), chance)], top.shape)
    return int(x), int(y)


def _single(task: str, wanted: str, chance: np.random.Generator, side: int) -> np.ndarray:
    letter = wanted if task == "identity" else list(LETTERS)[_below(len(LETTERS), chance)]
    return _letter(letter, EM, chance, side)


def _pair(direction: str, chance: np.random.Generator, side: int) -> np.ndarray:
    """Ink of an iota and an omega: apart along one axis by one pixel or more, across it by no more than their size."""
    first, second = (_letter(letter, EM_OF_PAIR, chance, side) for letter in ("iota", "omega"))
    away, swap = DIRECTIONS[direction], DIRECTIONS[direction][0] == 0
    a, b = (ink.T if swap else ink for ink in (first, second))  # below and above: as right and left, transposed
    a, b = (a, b) if sum(away) > 0 else (b, a)
    gap, room = 1 + _below(max(1, side // 16), chance), side // 2
    height = min(room, max(a.shape[0], b.shape[0]) + _below(max(1, side // 12), chance))
    width = a.shape[1] + gap + b.shape[1]
    out = np.zeros((height, width), np.uint8)
    for ink, at in ((a, 0), (b, width - b.shape[1])):
        top = _below(height - ink.shape[0] + 1, chance)
        out[top : top + ink.shape[0], at : at + ink.shape[1]] = ink
    out = out[np.flatnonzero(out.any(1))[0] : np.flatnonzero(out.any(1))[-1] + 1]
    return out.T if swap else out


def _letter(letter: str, em: tuple[float, float], chance: np.random.Generator, side: int) -> np.ndarray:
    low, high = (round(share * side) for share in em)
    return rendered(LETTERS[letter], FACES[_below(len(FACES), chance)], low + _below(high - low + 1, chance))


def _below(n: int, chance: np.random.Generator) -> int:
    return int(n * chance.random())


@lru_cache(maxsize=4096)
def rendered(letter: str, face: str, em_px: int) -> np.ndarray:
    """uint8 [h, w]: the ink of one letter and nothing around it."""
    file = fonts_folder() / f"{face}.ttf"
    font = ImageFont.truetype(str(file), em_px, layout_engine=ImageFont.Layout.BASIC)
    mask = font.getmask(letter, mode="L")
    grey = np.array(mask, np.uint8).reshape(mask.size[::-1])
    rows, columns = np.flatnonzero(grey.any(1)), np.flatnonzero(grey.any(0))
    return grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


@lru_cache(maxsize=1)
def fonts_folder() -> Path:
    """Where DejaVu lies; UserError where matplotlib is not installed."""
    spec = importlib.util.find_spec("matplotlib")
    places = list(spec.submodule_search_locations or []) if spec else []
    folder = Path(places[0], "mpl-data", "fonts", "ttf") if places else None
    if folder is None or not (folder / "DejaVuSans.ttf").is_file():
        raise UserError("source='glyphs': DejaVu of matplotlib is not installed; run `pip install matplotlib`")
    return folder
