"""What ffhq-dataset-v2.json says of one part of FFHQ: categories, licences, checksums, in a few flat arrays.

The file is 255 MiB. It is parsed once, in the parent process; what is kept is about 3 MB and goes to the workers
with the source. Knows no folder and no archive.
"""

import hashlib
import json
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dataprep.rejected import Rejected
from dataprep.sources.tree import refuse_page
from pipeline.errors import UserError

JSON = "ffhq-dataset-v2.json"
KEPT = frozenset({"category", "metadata", "license", "image", "thumbnail", "file_size", "file_md5", "pixel_md5"})


@dataclass(frozen=True)
class Published:
    """Row i tells of image index[i]; rows are sorted by index."""

    index: np.ndarray  # int64 [n]
    category: np.ndarray  # uint16 [n], into words
    licence: np.ndarray  # uint16 [n], into words
    size: np.ndarray  # int64 [n], bytes of the file; -1 where the part has no such image
    file_md5: np.ndarray  # uint8 [n, 16]
    pixel_md5: np.ndarray  # uint8 [n, 16], of the raw array, uint8 [H, W, 3]
    words: tuple[str, ...]

    @staticmethod
    def nothing() -> "Published":
        return _arrays({}, None)

    def row(self, index: int) -> int | None:
        """The row of an image; None where the JSON does not know it."""
        i = int(np.searchsorted(self.index, index))
        return i if i < len(self.index) and self.index[i] == index else None

    def about(self, row: int) -> dict[str, str]:
        licence = self.words[self.licence[row]]
        return {"category": self.words[self.category[row]], **({"license": licence} if licence else {})}

    def check_file(self, row: int, data: bytes) -> None:
        """Raises Rejected "checksum" if these are not the published bytes."""
        if len(data) != self.size[row]:
            raise Rejected("checksum", f"file_size {len(data)}, published {self.size[row]}")
        _compare("file_md5", data, self.file_md5[row])

    def check_pixels(self, row: int, image: Image.Image) -> None:
        """The same for pixels, which outlive another compression."""
        _compare("pixel_md5", image.tobytes(), self.pixel_md5[row])


def _compare(name: str, data: bytes, published: np.ndarray) -> None:
    seen = hashlib.md5(data, usedforsecurity=False)
    if seen.digest() != published.tobytes():
        raise Rejected("checksum", f"{name} {seen.hexdigest()}, published {published.tobytes().hex()}")


def find_json(path: Path) -> Path | None:
    """In the folder `path` or beside the file `path`, or up to two levels above."""
    above = 0 if path.is_dir() else 1
    for place in (path.absolute(), path.resolve()):  # a link to images elsewhere: the JSON may lie at either end
        for folder in [place, *place.parents][above : above + 3]:
            if (folder / JSON).is_file():
                return folder / JSON
    return None


def load(path: Path, part: str | None) -> Published:
    """All images of the JSON, with the checksums of `part`: "image", "thumbnail" or None (no checksums)."""
    try:
        with path.open("rb") as f:
            refuse_page(path, f.read(1024))
        with path.open(encoding="utf-8-sig") as f:
            entries = json.load(f, object_hook=_thin)
        if not entries:
            raise ValueError("no images in it")
        return _arrays(entries, part)
    except UserError:
        raise
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror}); without it checksums are not checked") from e
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as e:
        why = " ".join(f"{type(e).__name__}: {e}".split())[:200]
        raise UserError(
            f"{path}: is not the JSON of FFHQ, or damaged ({why}); download it again, or move it away to go on "
            "without checksums"
        ) from e


def _thin(item: dict[str, Any]) -> dict[str, Any]:
    """Without landmarks, links and names: all of it would be 2 GB of Python objects."""
    return {k: v for k, v in item.items() if k in KEPT or k.isdecimal()}


def _arrays(entries: dict[str, Any], part: str | None) -> Published:
    words: dict[str, int] = {}
    index, category, licence, size = array("q"), array("H"), array("H"), array("q")
    file_md5, pixel_md5 = bytearray(), bytearray()
    for i, entry in sorted((int(k), v) for k, v in entries.items()):
        index.append(i)
        category.append(words.setdefault(_word(entry["category"]), len(words)))
        licence.append(words.setdefault(_word(entry.get("metadata", {}).get("license", "")), len(words)))
        facts = entry.get(part) or {"file_size": -1, "file_md5": "0" * 32, "pixel_md5": "0" * 32}
        size.append(facts["file_size"])
        file_md5 += _md5(facts["file_md5"])
        pixel_md5 += _md5(facts["pixel_md5"])
    return Published(
        np.array(index),
        np.array(category),
        np.array(licence),
        np.array(size),
        np.frombuffer(bytes(file_md5), np.uint8).reshape(-1, 16),
        np.frombuffer(bytes(pixel_md5), np.uint8).reshape(-1, 16),
        tuple(words),
    )


def _md5(text: str) -> bytes:
    digest = bytes.fromhex(text)
    if len(digest) != 16:
        raise ValueError(f"{text!r} is no MD5")
    return digest


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} where a name is expected")
    return value
