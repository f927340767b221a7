"""Photographs with a depth map each: rgb/NAME.png and depth/NAME.png, or NAME.png and NAME_depth.png, however deep.

Maps: integers of 16 or 32 bits (PNG, TIFF) in units of 1 mm, or of what PATH/depth.json says, {"unit_m": 0.001};
floats (.npy, TIFF) in metres. 0, what is below it and what is not finite was not measured. Stored is the depth in whole
millimetres, high byte in R, low byte in G, B empty; what lies farther than 65.535 m counts as not measured. Other
files than photographs and maps (masks, lists) are passed over. Knows no camera and aligns nothing.
"""

import io
import json
import warnings
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dataprep.decode import TURNS, open_image
from dataprep.rejected import Rejected
from dataprep.sources.entry import Entries, Entry, Refusal
from dataprep.sources.tree import is_image_name, open_tree
from pipeline.errors import UserError

UNIT_FILE, UNIT_M = "depth.json", 0.001
PHOTOGRAPHS = frozenset({b"rgb", b"rgbs", b"image", b"images"})  # names of folders
MAPS = frozenset({b"depth", b"depths"})
SUFFIX = b"_depth"
MAP_EXTENSIONS = (b".npy", b".png", b".tif", b".tiff")
BETWEEN = b" + "  # the two halves in the key of an entry
MOST_MM = 65535
WANTED = "a folder or zip of photographs and depth maps"


class Half(NamedTuple):
    """One file of a pair."""

    pair: bytes  # equal for both
    is_map: bool


def half_of(key: bytes) -> Half | None:
    """Which half of which pair a file is by its name; None: neither."""
    *folders, name = key.split(b"/")
    stem, dot, _ = name.rpartition(b".")
    takes = (is_image_name(key), key.lower().endswith(MAP_EXTENSIONS))
    for names, is_map in ((MAPS, True), (PHOTOGRAPHS, False)):
        found = [i for i, folder in enumerate(folders) if folder.lower() in names]
        if found and dot:
            rest = folders[: found[-1]] + folders[found[-1] + 1 :]
            return Half(b"/".join([*rest, stem]), is_map) if takes[is_map] else None
    is_map = stem.endswith(SUFFIX)
    return Half(b"/".join([*folders, stem.removesuffix(SUFFIX)]), is_map) if takes[is_map] else None


class Depth:
    """Entries are sorted on the bytes of the pairs' names; the key of one names both files."""

    name = "depth"
    crop = "center"
    classes: tuple[str, ...] = ()
    planes = 2

    def __init__(self, path: Path | None, split: str | None = None):
        if split is not None:
            raise UserError(f"split={split!r}: source 'depth' has no splits; leave it out")
        self._tree = open_tree(path, WANTED)
        self._passed_over: list[bytes] = []

    def __reduce__(self):  # workers need the path alone, not the listing
        return Depth, (self._tree.path,)

    @property
    def notes(self) -> tuple[str, ...]:
        if not self._passed_over:
            return ()
        first = self._passed_over[0].decode("utf-8", "backslashreplace")
        return (f"passed over: {len(self._passed_over)} other files, the first is {first!r}",)

    def about(self, entry: Entry) -> dict[str, Any]:
        return {}

    def entries(self, size_px: int) -> Entries:
        return self._listing

    @cached_property
    def _listing(self) -> Entries:
        found: dict[bytes, tuple[list, list]] = {}
        for key, _, number in self._tree.files():
            half = half_of(key)
            if half:
                found.setdefault(half.pair, ([], []))[half.is_map].append((key, number))
            elif key != UNIT_FILE.encode():
                self._passed_over.append(key)
        if not any(photographs and maps for photographs, maps in found.values()):
            raise UserError(
                f"PATH={str(self._tree.path)!r}: no pair of photograph and depth map below it; looked for rgb/NAME.png "
                f"with depth/NAME.png (or image, images, depths), and for NAME.png with NAME_depth.png (or .npy, .tiff)"
            )
        entries = (entry for pair in sorted(found) for entry in _paired(*found[pair]))
        return Entries(Entry(e.key, -1, zlib.crc32(f"{e.at} {self._unit_m}".encode()), e.refused) for e in entries)

    @cached_property
    def _unit_m(self) -> float:
        """Metres of 1 in a map of integers."""
        where = f"PATH={str(self._tree.path)!r}: {UNIT_FILE}"
        try:
            found: Any = json.loads(self._tree.read(UNIT_FILE.encode()))
        except Rejected as e:
            if e.reason == "missing":
                return UNIT_M
            raise UserError(f"{where}: {e.detail}; mend or remove it") from e
        except (ValueError, RecursionError) as e:
            raise UserError(f"{where}: no JSON ({' '.join(str(e).split())}); mend or remove it") from e
        unit = found.get("unit_m") if isinstance(found, dict) and len(found) == 1 else None
        if isinstance(unit, bool) or not isinstance(unit, int | float) or not 0 < unit <= 1000:
            raise UserError(f'{where}: expected {{"unit_m": 0.001}}, the metres that 1 in a map of integers stands for')
        return float(unit)

    def read(self, entry: Entry) -> tuple[Image.Image, Image.Image]:
        photograph, map_ = _halves(entry.key)
        data = self._tree.read(photograph)
        image = open_image(io.BytesIO(data))
        if _turned(data):
            raise Rejected("unsupported mode", "EXIF turns the photograph; turn its pixels, as its map's lie")
        depth = self._metres(map_)
        if depth.shape[::-1] != image.size:
            raise Rejected(
                "wrong size", f"depth of {depth.shape[1]}x{depth.shape[0]}, image {image.width}x{image.height}"
            )
        coded = code(depth)
        if not coded.any():
            raise Rejected("no depth", "nothing was measured between 1 mm and 65.535 m")
        return image, Image.fromarray(coded)

    def _metres(self, key: bytes) -> np.ndarray:
        data = self._tree.read(key)
        depth = _npy(data) if key.lower().endswith(b".npy") else np.asarray(_map_image(data))
        if depth.ndim == 3 and depth.shape[2] == 1:
            depth = depth[:, :, 0]
        floats, whole = depth.dtype.kind == "f", depth.dtype.kind in "iu" and depth.dtype.itemsize > 1
        if depth.ndim != 2 or not (floats or whole):
            raise Rejected("unsupported mode", f"a depth map of {depth.dtype} {depth.shape}: wants 16 bits or floats")
        return depth.astype(np.float64) * (1.0 if floats else self._unit_m)


def _paired(photographs: list[tuple[bytes, int]], maps: list[tuple[bytes, int]]) -> list[Entry]:
    """Of one name: the first of each kind go together, and so on; what is left over has no other half."""
    both = min(len(photographs), len(maps))
    pairs = zip(photographs[:both], maps[:both], strict=True)
    out = [Entry(a + BETWEEN + b, at=zlib.crc32(f"{i} {j}".encode())) for (a, i), (b, j) in pairs]
    for rest, other in ((photographs[both:], "depth map"), (maps[both:], "photograph")):
        out += [Entry(key, -1, at, Refusal("missing", f"it has no {other}")) for key, at in rest]
    return out


def _halves(key: bytes) -> tuple[bytes, bytes]:
    """Photograph and map of an entry, whose names may hold what stands between them."""
    parts = key.split(BETWEEN)
    for i in range(1, len(parts)):
        photograph, map_ = BETWEEN.join(parts[:i]), BETWEEN.join(parts[i:])
        first, second = half_of(photograph), half_of(map_)
        if first and second and (first.pair, first.is_map, second.is_map) == (second.pair, False, True):
            return photograph, map_
    raise ValueError(f"{key!r} names no pair")


def _turned(data: bytes) -> bool:
    """Is this photograph, which can be opened, shown in another orientation than stored?"""
    with Image.open(io.BytesIO(data)) as image:
        try:
            return image.getexif().get(0x0112, 1) in TURNS
        except Exception:  # a corrupt EXIF block counts as none, as in open_image
            return False


def _npy(data: bytes) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = np.load(io.BytesIO(data), allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
    except MemoryError:
        raise
    except Exception as e:  # numpy raises what it likes on damaged bytes
        raise Rejected("unreadable", f"no .npy: {' '.join(str(e).split())[:100]}") from e
    raise Rejected("unreadable", "no .npy of one array")


def _map_image(data: bytes) -> Image.Image:
    image = open_image(io.BytesIO(data))
    if image.mode == "F" or image.mode.startswith("I"):
        return image
    raise Rejected("unsupported mode", f"a depth map in {image.mode}: wants 16 bits or floats, 8 are too coarse")


def code(depth: np.ndarray) -> np.ndarray:
    """Metres to uint8 [h, w, 3]: whole millimetres, high byte first; 0 where there are none or more than 16 bits."""
    with np.errstate(invalid="ignore"):
        mm = np.rint(depth * 1000)
        mm = np.where((mm > 0) & (mm <= MOST_MM), mm, 0).astype(np.uint16)
    return np.stack([mm >> 8, mm & 255, np.zeros_like(mm)], axis=-1).astype(np.uint8)
