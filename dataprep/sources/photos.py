"""The colour photographs that the scikit-image and scikit-learn wheels carry: real pictures, no download.

Each photograph is cut into overlapping square windows at four zooms (a window's side is the shorter side of
the photograph over 1, 1.5, 2, 3); windows narrower than the stored size are left out, so nothing is enlarged.
The class is the photograph. The packages are found, not imported. PATH has no meaning here.
"""

import importlib.util
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from dataprep.sources.entry import Entries, Entry
from dataprep.transform import open_image
from pipeline.errors import UserError

SKIMAGE, SKLEARN = ("scikit-image", "skimage", "data"), ("scikit-learn", "sklearn", "datasets/images")
PHOTOS = {  # class -> (pip package, module, folder in it), file
    "astronaut": (SKIMAGE, "astronaut.png"),
    "chelsea": (SKIMAGE, "chelsea.png"),
    "china": (SKLEARN, "china.jpg"),
    "coffee": (SKIMAGE, "coffee.png"),
    "flower": (SKLEARN, "flower.jpg"),
    "hubble_deep_field": (SKIMAGE, "hubble_deep_field.jpg"),
    "immunohistochemistry": (SKIMAGE, "ihc.png"),
    "motorcycle": (SKIMAGE, "motorcycle_left.png"),
    "retina": (SKIMAGE, "retina.jpg"),
    "rocket": (SKIMAGE, "rocket.jpg"),
}
ZOOMS = (1, 1.5, 2, 3)
STRIDES_A_SIDE = 4  # neighbouring windows share three quarters


class Photos:
    """An entry is a window (left, top, side) in full-resolution pixels of one photograph."""

    name = "photos"
    crop = "center"
    classes = tuple(PHOTOS)
    notes: tuple[str, ...] = ()

    def __init__(self, path: Path | None = None, split: str | None = None):
        del path
        if split is not None:
            raise UserError(f"split={split!r}: source 'photos' has no splits; leave it out")

    def entries(self, size_px: int) -> Entries:
        out = []
        for label, photo in enumerate(PHOTOS):
            for left, top, side in windows(*photograph(photo).size, size_px):
                out.append(Entry(f"{photo}/{side}px-{top:04d}-{left:04d}".encode(), label))
        if not out:
            raise UserError(f"size={size_px}: no bundled photograph is that large; use --size 1411 or less")
        return Entries(out)

    def about(self, entry: Entry) -> dict[str, Any]:
        return {}

    def read(self, entry: Entry) -> Image.Image:
        side, top, left = (int(n) for n in re.findall(r"\d+", entry.name.rpartition("/")[2]))
        return photograph(self.classes[entry.label]).crop((left, top, left + side, top + side))


def windows(width: int, height: int, size_px: int) -> list[tuple[int, int, int]]:
    """(left, top, side), coarse to fine, row by row; the outermost windows touch the borders."""
    out = []
    for zoom in ZOOMS:
        side = int(min(width, height) / zoom)
        if side >= size_px:
            out += [(x, y, side) for y in _starts(height, side) for x in _starts(width, side)]
    return out


def _starts(length: int, side: int) -> list[int]:
    gaps = -(-(length - side) * STRIDES_A_SIDE // side)  # rounded up
    return [i * (length - side) // max(gaps, 1) for i in range(gaps + 1)]


@lru_cache(maxsize=2)  # entries come photograph by photograph
def photograph(name: str) -> Image.Image:
    """The whole of one of PHOTOS; UserError where its package is not installed."""
    (package, module, folder), file = PHOTOS[name]
    spec = importlib.util.find_spec(module)
    places = list(spec.submodule_search_locations or []) if spec else []
    path = Path(places[0], folder, file) if places else None
    if path is None or not path.is_file():
        raise UserError(f"source='photos': {file} of {package} is not installed; run `pip install {package}`")
    return open_image(path)
