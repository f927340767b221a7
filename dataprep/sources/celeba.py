"""CelebA, aligned: img_align_celeba as zip or folder, JPEG or PNG, as downloaded or as Kaggle nests it.

The lists (attributes, partition, identity, landmarks) are found among the images, beside them, one level up, and
in Anno and Eval there, as text or CSV; only a split needs one. Their MD5s are compared with the published ones,
which gives a note and no error; the 1.4 GB zip is not hashed. Faces have no classes: what the lists say of an
image goes into its metadata. Knows nothing of crops but the name of the usual one.
"""

import hashlib
import io
import os
from array import array
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dataprep.rejected import Rejected
from dataprep.sources.entry import Entries, Entry, Refusal
from dataprep.sources.tree import FolderTree, Tree, is_image_name, open_tree, refuse_page
from dataprep.transform import open_image
from pipeline.config import nearest
from pipeline.errors import UserError

WHOLE = 202_599  # images
SPLITS = ("train", "val", "test")  # 0, 1, 2 in the list
PLACES = ("img_align_celeba.zip", "img_align_celeba", "img_align_celeba_png.zip", "img_align_celeba_png")
PUBLISHED = {  # list -> MD5 of its text form
    "list_attr_celeba": "75e246fa4810816ffd6ee81facbd244c",
    "list_eval_partition": "d32c9cbf5e040fd4025c592c306e6668",
    "identity_CelebA": "32bd1bd63d3c78cd57e08160ec5ed1e2",
    "list_landmarks_align_celeba": "cc24ecafdb5b50baae59b03474781f8c",
}
ATTRIBUTES, PARTITION, IDENTITY, LANDMARKS = PUBLISHED
COLUMNS = {PARTITION: ("partition",), IDENTITY: ("identity",)}  # of lists whose text form does not name them
ALLOWED = {ATTRIBUTES: frozenset({b"-1", b"1"}), PARTITION: frozenset({b"0", b"1", b"2"})}
LONGEST_NAME = 255  # bytes


class Rows(NamedTuple):
    """One list, sorted by image."""

    columns: tuple[str, ...]
    stems: np.ndarray  # [n] bytes: file names without extension, as the lists say .jpg also of the PNG copy
    values: np.ndarray  # [n, columns] int32
    notes: tuple[str, ...]

    def of(self, stem: bytes) -> dict[str, int] | None:
        i = int(np.searchsorted(self.stems, stem))
        if i == len(self.stems) or self.stems[i] != stem:
            return None
        return dict(zip(self.columns, self.values[i].tolist(), strict=True))


class CelebA:
    """Keys are the file names alone (000001.jpg), so that an image has the same key in every layout."""

    name = "celeba"
    crop = "pggan"
    classes: tuple[str, ...] = ()

    def __init__(self, path: Path | None, split: str | None = None):
        if split is not None and split not in SPLITS:
            raise UserError(f"split={split!r}: source 'celeba' has train, val and test; {nearest(split, SPLITS)}")
        there = []
        if path is not None:
            there = [p for d in (path, path / "Img") for n in PLACES if os.path.exists(p := d / n)]
        wanted = "the folder of CelebA, img_align_celeba.zip, or the folder of its images"
        self._path, self._split = path, split
        self._tree = open_tree(there[0] if there else path, wanted)
        self._copies = there

    def __reduce__(self):
        return CelebA, (self._path, self._split)

    @property
    def notes(self) -> tuple[str, ...]:
        return self._listing[1]

    def entries(self, size_px: int) -> Entries:
        return self._listing[0]

    def read(self, entry: Entry) -> Image.Image:
        return open_image(io.BytesIO(self._tree.read(self._inside + entry.key)))

    def about(self, entry: Entry) -> dict[str, Any]:
        """What the lists say: attributes and landmarks (pixels of the uncropped image) by name, identity, partition."""
        found = {name: row for name, rows in self._lists.items() if (row := rows.of(_stem(entry.key)))}
        out: dict[str, Any] = {}
        if ATTRIBUTES in found:
            out["attributes"] = found[ATTRIBUTES]
        if IDENTITY in found:
            out["identity"] = found[IDENTITY]["identity"]
        if PARTITION in found:
            out["partition"] = SPLITS[found[PARTITION]["partition"]]
        if LANDMARKS in found:
            out["landmarks"] = found[LANDMARKS]
        return out

    @cached_property
    def _inside(self) -> bytes:
        """The folder of the images within the tree, with '/' at its end; found without listing them all."""
        first = next((f.key for f in self._tree.files() if is_image_name(f.key)), None)
        if first is None:
            advice = "unpack img_align_celeba_png.7z first, if that is what you have"
            raise UserError(f"PATH={str(self._tree.path)!r}: no images below it; {advice}")
        return first[: first.rfind(b"/") + 1]

    @cached_property
    def _lists(self) -> dict[str, Rows]:
        found = ((name, _find(name, self._tree, self._inside)) for name in PUBLISHED)
        return {name: read_list(name, *place) for name, place in found if place}

    @cached_property
    def _listing(self) -> tuple[Entries, tuple[str, ...]]:
        files, extension = self._files()
        notes = [n for rows in self._lists.values() for n in rows.notes]
        if len(self._copies) > 1:
            others = ", ".join(p.name for p in self._copies[1:])
            notes.append(f"{self._copies[0].name} is read, not {others}; give that as PATH to take it")
        if len(files) != WHOLE:
            notes.append(f"{len(files)} images; all of CelebA are {WHOLE}")
        partition = self._lists.get(PARTITION)
        if self._split is not None:
            if partition is None:
                where = f"not near {str(self._tree.path)!r}; download it or leave split out"
                raise UserError(f"split={self._split!r}: needs {PARTITION}.txt or .csv, which is {where}")
            listed = set(partition.stems.tolist())
            stems = set(partition.stems[partition.values[:, 0] == SPLITS.index(self._split)].tolist())
            fate = f"have no row in {PARTITION} and are left out"
        else:
            listed = {
                s for name in (ATTRIBUTES, PARTITION) if name in self._lists for s in self._lists[name].stems.tolist()
            }
            stems = files.keys() | listed
            fate = "have no row in the lists and are kept"
        strays = sorted(files.keys() - listed) if listed else []
        if strays:
            notes.append(f"{len(strays)} images {fate}; the first is {_shown(files[strays[0]][0])!r}")
        missing = Refusal("missing", "has a row in the lists, but no file")
        found = (Entry(*files[s]) if s in files else Entry(s + extension, refused=missing) for s in stems)
        return Entries(sorted(found, key=lambda e: e.key)), tuple(notes)

    def _files(self) -> tuple[dict[bytes, tuple[bytes, int, int]], bytes]:
        """What an Entry needs (key, label, at) by stem, and the extension of the images."""
        out: dict[bytes, tuple[bytes, int, int]] = {}
        where, start = f"PATH={str(self._tree.path)!r}", len(self._inside)
        for key, _, at in self._tree.files():
            if not is_image_name(key):
                continue
            if key[: key.rfind(b"/") + 1] != self._inside:
                folders = f"{_shown(self._inside) or '.'} and {_shown(os.path.dirname(key)) or '.'}"
                raise UserError(f"{where}: images in several folders ({folders}); give one of them")
            stem = _stem(key[start:])
            if stem in out:
                raise UserError(f"{where}: holds {_shown(out[stem][0])} and {_shown(key[start:])}; keep one of the two")
            out[stem] = (key[start:], -1, at)
        first = next(iter(out.values()))[0]
        return out, first[len(_stem(first)) :]


def _find(name: str, images: Tree, inside: bytes) -> tuple[str, bytes] | None:
    """The nearest copy of a list: what to call it, and its bytes."""
    beside = Path(os.path.abspath(images.path)).parent
    folders = [inside[:i] for i in range(len(inside), -1, -1) if i == 0 or inside[i - 1 : i] == b"/"]
    places: list[tuple[Tree, bytes]] = [(images, f) for f in folders]
    places += [(FolderTree(beside), b""), (FolderTree(beside.parent), b"")]
    for tree, folder in places:
        for sub in (b"", b"Anno/", b"Eval/"):
            for extension in (".txt", ".csv"):
                key = folder + sub + name.encode() + extension.encode()
                try:
                    return os.path.join(tree.path, _shown(key)), tree.read(key)
                except Rejected as e:
                    if e.reason != "missing":
                        raise UserError(f"{os.path.join(tree.path, _shown(key))}: cannot be read ({e.detail})") from e
    return None


def read_list(name: str, where: str, data: bytes) -> Rows:
    """Text (count, column names, then rows; the first two not in every list) or CSV; rows in any order."""
    refuse_page(Path(where), data[:4096])
    columns, count = COLUMNS.get(name, ()), None
    stems: list[bytes] = []
    values = array("i")
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        words = line.replace(b",", b" ").split()
        if not words:
            continue
        if is_image_name(words[0]):
            stems.append(_stem(words[0]))
            problem = _problem(name, words, len(columns)) or _add(values, words[1:])
            if problem:
                raise UserError(f"{where}, line {number}: {problem}; download the list again or remove it")
        elif stems:
            raise UserError(f"{where}, line {number}: {_cut(line)} is no row; download the list again or remove it")
        elif len(words) == 1 and words[0].isdigit():
            count = int(words[0])
        else:
            columns = tuple(_shown(w) for w in words if w != b"image_id")
    if not stems:
        raise UserError(f"{where}: has no rows like '000001.jpg ...'; download the list again or remove it")
    table = np.array(stems)
    order = np.argsort(table, kind="stable")
    table = table[order]
    twice = np.flatnonzero(table[1:] == table[:-1])
    if len(twice):
        raise UserError(
            f"{where}: has two rows for image {_shown(bytes(table[twice[0]]))}; download it again or remove it"
        )
    notes = []
    if count is not None and count != len(stems):
        notes.append(f"{where} says {count} images and has {len(stems)} rows")
    if where.endswith(".txt") and hashlib.md5(data, usedforsecurity=False).hexdigest() != PUBLISHED[name]:
        notes.append(f"{where}: not the published bytes (MD5)")
    return Rows(columns, table, np.array(values, np.int32).reshape(len(stems), -1)[order], tuple(notes))


def _problem(name: str, words: list[bytes], columns: int) -> str:
    if len(words[0]) > LONGEST_NAME:
        return f"a file name of {len(words[0])} bytes"
    if not columns:
        return "no line of column names before the rows"
    if len(words) - 1 != columns:
        return f"{len(words) - 1} values, not {columns}"
    wrong = [w for w in words[1:] if w not in ALLOWED[name]] if name in ALLOWED else []
    return f"value {_cut(wrong[0])}, allowed are {', '.join(sorted(_shown(w) for w in ALLOWED[name]))}" if wrong else ""


def _add(values: array, words: list[bytes]) -> str:
    try:
        values.extend(map(int, words))
    except (ValueError, OverflowError):
        return f"not all of {_cut(b' '.join(words))} are whole numbers"
    return ""


def _stem(name: bytes) -> bytes:
    return name.rpartition(b".")[0]


def _cut(text: bytes) -> str:
    return repr(_shown(text if len(text) <= 40 else text[:40] + b"..."))


def _shown(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
