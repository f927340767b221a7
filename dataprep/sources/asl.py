"""Hand signs of American Sign Language: class folders in any nesting, or Massey's flat zips; labels from a fixed table.

A picture's class is the folder it lies in, in either case, or, outside class folders, the label in a Massey name
(hand<signer>_<label>_<lighting>_seg_<repetition>_cropped). The class table is always the whole one of the data
set that the names tell, so labels of partial copies agree. Copies often hold pictures twice: of equal bytes the
one least deep is kept. `split` names signers, who must not be in training and test at once.
"""

import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from dataprep.rejected import Rejected
from dataprep.sources.entry import Entries, Entry, Refusal
from dataprep.sources.tree import File, Tree, ZipTree, is_image_head, is_image_name, open_tree
from dataprep.transform import open_image
from pipeline.errors import UserError

WANTED = "a folder of ASL class folders or of Massey's zips, or one such zip"
SIGNS = tuple("0123456789abcdefghijklmnopqrstuvwxyz")
LETTERS = SIGNS[10:]
EXTRAS = ("del", "nothing", "space")
CODES = tuple(f"{i:02d}" for i in range(len(SIGNS)))
MASSEY = re.compile(rb"hand(\d+)_([0-9a-z])_(bot|dif|left|right|top)_seg_(\d+)_cropped\.[a-z]+", re.I)
FRAME = re.compile(rb"(?:.*/)?([a-z]|del|nothing|space)/\1\d+\.jpe?g", re.I)  # A/A1.jpg
SIGNER = re.compile(r"hand\d+")


class Scheme(NamedTuple):
    """One way to name and number the classes."""

    title: str
    folders: tuple[str, ...]  # the folder of class i, in lower case
    classes: tuple[str, ...]  # its name


SCHEMES = {
    "massey": Scheme("Massey's 36 signs", SIGNS, SIGNS),
    "signs": Scheme("36 signs, 0-9 then a-z", SIGNS, SIGNS),
    "digits": Scheme("the 10 digits", SIGNS[:10], SIGNS[:10]),
    "alphabet": Scheme("the 29 classes of asl-alphabet, a-z then del, nothing, space", *[LETTERS + EXTRAS] * 2),
    "codes": Scheme("36 signs; folders 00..35 are assumed to be 0-9, then a-z", CODES, SIGNS),
}


class Asl:
    """Entries are sorted on the bytes of their keys; `at` is what the tree gives (bytes, or CRC in a zip)."""

    name = "asl"
    crop = "center"

    def __init__(self, path: Path | None, split: str | None = None, classes: tuple[str, ...] | None = None):
        """`classes`: the table, where the process that made this one has looked at the names."""
        self._signers = _signers(split) if split is not None else None
        self._tree = _tree_at(path)
        self._notes: list[str] = []
        self._classes = classes

    def __reduce__(self):
        split = None if self._signers is None else ",".join(sorted(self._signers))
        return Asl, (self._tree.path, split, self._classes)

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(self._notes)

    @property
    def classes(self) -> tuple[str, ...]:
        if self._classes is None:
            _ = self._listing
        return self._classes or ()

    def entries(self, size_px: int) -> Entries:
        return self._listing

    def read(self, entry: Entry) -> Image.Image:
        return open_image(io.BytesIO(self._tree.read(entry.key)))

    def about(self, entry: Entry) -> dict[str, Any]:
        """Signer, lighting and repetition, where the file is named as Massey's are."""
        named = _massey(entry.key)
        if not named:
            return {}
        signer, _, lighting, repetition = (part.decode().lower() for part in named.groups())
        return {"signer": f"hand{signer}", "lighting": lighting, "repetition": int(repetition)}

    @cached_property
    def _listing(self) -> Entries:
        where = f"PATH={str(self._tree.path)!r}"
        images, others = [], []
        for file in self._tree.files():
            (images if self._is_image(file.key) else others).append(file)
        if not images:
            raise UserError(f"{where}: no images in it{_first_of(others)}; give {WANTED}")
        scheme = _scheme(where, [f.key for f in images])
        found, strays = [], []
        for file in images:
            entry = _entry(scheme, file)
            (strays if entry is None else found).append(entry or file)
        self._classes = scheme.classes
        found = _without_copies(found, {f.key: f.size for f in images}, self._tree.read)
        self._note(scheme, others, strays)
        return Entries(self._chosen(where, scheme, found))

    def _is_image(self, key: bytes) -> bool:
        try:
            return is_image_name(key) or is_image_head(self._tree.head(key))
        except Rejected:
            return False

    def _note(self, scheme: Scheme, others: list[File], strays: list[File]) -> None:
        self._notes.append(f"read as {scheme.title}")
        if others:
            self._notes.append(f"passed over: {len(others)} other files{_first_of(others)}")
        if strays:
            self._notes.append(f"passed over: {len(strays)} images in no class folder{_first_of(strays)}")

    def _chosen(self, where: str, scheme: Scheme, found: list[Entry]) -> list[Entry]:
        """The entries of the split. Equal bytes were looked for in all, so leaks between splits are found too."""
        by_signer = Counter(self.about(e).get("signer", "") for e in found)
        there = ", ".join(f"{s} {n}" for s, n in sorted(by_signer.items()) if s)
        if there:
            self._notes.append(f"images by signer: {there}")
        if self._signers is not None:
            split = ",".join(sorted(self._signers))
            if not there:
                raise UserError(
                    f"split={split!r}: no signers are known here, as no file is named hand<n>_...; leave it out"
                )
            if unknown := self._signers - set(by_signer):
                raise UserError(f"split={split!r}: no images of {', '.join(sorted(unknown))}; signers here: {there}")
            if by_signer[""]:
                self._notes.append(f"left out by split={split!r}: {by_signer['']} images whose names tell no signer")
            found = [e for e in found if self.about(e).get("signer") in self._signers]
        kept = {e.label for e in found if not e.refused}
        if empty := [c for i, c in enumerate(scheme.classes) if i not in kept]:
            self._notes.append(f"no images of {len(empty)} of {len(scheme.classes)} classes: {' '.join(empty)}")
        return found


class _Zips:
    """The zips that lie in a folder, as one tree: keys begin with the name of the zip."""

    def __init__(self, path: Path, names: Iterable[bytes]):
        self.path = path
        self._trees = {name: open_tree(path / os.fsdecode(name), WANTED) for name in names}

    def files(self) -> Iterator[File]:
        for name, tree in self._trees.items():
            yield from (File(name + b"/" + f.key, f.size, f.at) for f in tree.files())

    def read(self, key: bytes) -> bytes:
        name, _, inside = key.partition(b"/")
        return self._trees[name].read(inside)

    def head(self, key: bytes) -> bytes:
        name, _, inside = key.partition(b"/")
        return self._trees[name].head(inside)


def _tree_at(path: Path | None) -> Tree:
    tree = open_tree(path, WANTED)
    if isinstance(tree, ZipTree):
        return tree
    zips = []
    for file in tree.files():
        if is_image_name(file.key):  # zips beside images are most likely what the images came from
            return tree
        if file.key.lower().endswith(b".zip") and b"/" not in file.key:
            zips.append(file.key)
    return _Zips(tree.path, zips) if zips else tree


def _signers(split: str) -> frozenset[str]:
    names = [s.strip().lower() for s in split.split(",")]
    if not all(SIGNER.fullmatch(s) for s in names):
        raise UserError(f"split={split!r}: source 'asl' splits by signer; expected hand1, or several as hand1,hand2")
    return frozenset(names)


def _massey(key: bytes) -> re.Match[bytes] | None:
    return MASSEY.fullmatch(key.rpartition(b"/")[2])


def _folder(key: bytes) -> str:
    return key.rpartition(b"/")[0].rpartition(b"/")[2].decode("utf-8", "replace").lower()


def _first_of(files: list[File]) -> str:
    return f", the first is {files[0].key.decode('utf-8', 'backslashreplace')!r}" if files else ""


def _scheme(where: str, keys: list[bytes]) -> Scheme:
    folders = {_folder(k) for k in keys}
    letters, digits = folders & set(LETTERS), folders & set(SIGNS[:10])
    if any(map(_massey, keys)):
        scheme = SCHEMES["massey"]
    elif folders & set(EXTRAS) or (letters and not digits and any(map(FRAME.fullmatch, keys))):
        scheme = SCHEMES["alphabet"]
    elif letters or digits:
        scheme = SCHEMES["signs" if letters else "digits"]
    elif folders & set(CODES):
        scheme = SCHEMES["codes"]
    else:
        seen = ", ".join(repr(f) for f in sorted(folders - {""})[:4]) or "no folders"
        raise UserError(
            f"{where}: no class folders 0-9, a-z, del, nothing, space or 00..35 and no Massey names, but {seen}; "
            "other classes are read by source 'folder'"
        )
    if foreign := folders & {f for s in SCHEMES.values() for f in s.folders} - set(scheme.folders):
        raise UserError(
            f"{where}: class folders of two data sets ({', '.join(sorted(foreign)[:4])} are not of {scheme.title}); "
            "prepare them one by one"
        )
    return scheme


def _entry(scheme: Scheme, file: File) -> Entry | None:
    """None for an image that has no class."""
    named, folder, refused = _massey(file.key), _folder(file.key), None
    label = scheme.folders.index(folder) if folder in scheme.folders else None
    if named:
        sign = named[2].decode().lower()
        if label is not None and sign != folder:
            refused = Refusal("two labels", f"lies in folder {folder!r}, and its name says {sign!r}")
        label = SIGNS.index(sign) if label is None else label
    return None if label is None else Entry(file.key, label, file.at, refused)


def _without_copies(found: list[Entry], sizes: dict[bytes, int], read: Callable[[bytes], bytes]) -> list[Entry]:
    """Refuse all but the first of equal bytes, those least deep first. Only files of one size and CRC are read."""
    alike = Counter((sizes[e.key], e.at) for e in found)
    first: dict[bytes, Entry] = {}
    refused: dict[bytes, Refusal] = {}
    for entry in sorted(found, key=lambda e: (e.key.count(b"/"), e.key)):
        if entry.refused or not sizes[entry.key] or alike[sizes[entry.key], entry.at] == 1:
            continue  # empty files are no images, each for itself
        try:
            original = first.setdefault(hashlib.sha256(read(entry.key)).digest(), entry)
        except Rejected:  # said again when it is read
            continue
        if original is not entry:
            same = original.label == entry.label
            refused[entry.key] = Refusal("duplicate" if same else "two labels", f"the bytes of {original.name!r}")
    return [Entry(e.key, e.label, e.at, refused.get(e.key, e.refused)) for e in found]
