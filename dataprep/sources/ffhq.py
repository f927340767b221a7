"""FFHQ in the forms that lie on disks: PNG tree, flat folder, resized JPEG copy, zips, TFRecords; faces, no classes.

Facts from NVlabs/ffhq-dataset (README, download_ffhq.py): 70,000 images, the number in a file's name is its index,
folders of a thousand are no classes, index below 60000 is "training", the rest "validation".
ffhq-dataset-v2.json beside the images brings checksums, categories and licences. Labels of a dataset.json are not
read. Decodes nothing itself.
"""

import io
import os
import re
import struct
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from dataprep.rejected import Rejected
from dataprep.sources import ffhq_json, tfrecord
from dataprep.sources.entry import Entries, Entry, Refusal
from dataprep.sources.tree import FolderTree, Tree, ZipTree, is_image_name, open_tree
from dataprep.transform import open_image
from pipeline.config import nearest
from pipeline.errors import UserError

IMAGES, THUMBNAILS, WILD, TFRECORDS = "images1024x1024", "thumbnails128x128", "in-the-wild-images", "tfrecords"
PARTS = (IMAGES, THUMBNAILS, WILD, TFRECORDS)
SIDES = {1024: "image", 128: "thumbnail"}  # of the published PNGs -> name in the JSON
SPLITS = ("training", "validation")
FIRST_VALIDATION, COUNT = 60_000, 70_000
WANTED = "the folder of FFHQ, one of its parts, a zip of it, or a TFRecord"
RECORD_NAMES = (".tfrecords", ".tfrecord")
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
INDEX = re.compile(rb"(?:^|[^0-9])([0-9]{1,8})\.[^.]*$")
NVLABS = re.compile(rb"(?:^|/)img[0-9]{8}\.png$")  # by dataset_tool.py: written anew, numbered as they came
NUMBERED_ZIP = re.compile(rb"(?:^|/)[0-9]{5}[^/0-9][^/]*zip$", re.IGNORECASE)
THOUSAND = re.compile(r"([0-9]{2}000)(?![0-9])")


class Ffhq:
    """`entries` picks a part by the size to be stored; `read` and `about` are of the part picked last."""

    name = "ffhq"
    crop = "none"
    classes: tuple[str, ...] = ()

    def __init__(self, path: Path | None, split: str | None = None):
        if split is not None and split not in SPLITS:
            raise UserError(f"split={split!r}: FFHQ has {' and '.join(SPLITS)}; {nearest(split, SPLITS)}")
        if path is None or not _is_records(path):
            path = open_tree(path, WANTED).path  # says what is wrong with PATH, if anything
        self.path, self.split = path, split
        self.notes: tuple[str, ...] = ()
        self._part: _Files | _Records | None = None

    def entries(self, size_px: int) -> Entries:
        self._part, notes = _choose(self.path, size_px)
        entries = Entries(self._part.entries(size_px, self.split))
        if not entries:
            raise UserError(f"split={self.split!r}: PATH={str(self.path)!r} has no images of it")
        self.notes = (*notes, *self._part.notes)
        return entries

    def read(self, entry: Entry) -> Image.Image:
        assert self._part is not None, "entries() comes first: it picks the part"
        return self._part.read(entry)

    def about(self, entry: Entry) -> dict[str, Any]:
        assert self._part is not None, "entries() comes first: it picks the part"
        return self._part.about(entry)


def _choose(path: Path, size_px: int) -> tuple["_Files | _Records", tuple[str, ...]]:
    """The part to read, and notes on the choice. Of a folder no more is listed than this needs."""
    if path.is_file():
        return (_Records([path]) if _is_records(path) else _Files(path)), ()
    places = {part: place for part in PARTS if (place := _place(path, part))}
    records = _record_files(places.setdefault(TFRECORDS, path))
    if not records and places[TFRECORDS] == path:
        del places[TFRECORDS]
    if not places:
        return _Files(path), ()
    part = _preferred(places, size_px, path)
    notes = (_note_on_choice(part, places),) if places[part] != path else ()
    return (_Records(records) if records and part == TFRECORDS else _Files(places[part], part)), notes


def _is_records(path: Path) -> bool:
    try:
        return path.is_file() and (path.suffix in RECORD_NAMES or tfrecord.is_tfrecord(path))
    except OSError as e:
        raise UserError(f"PATH={str(path)!r}: cannot be read ({e.strerror}); give {WANTED}") from e


def _place(root: Path, part: str) -> Path | None:
    places = (root / part, root / f"{part}.zip", root / "zips" / f"{part}.zip")
    return next((p for p in places if p.exists()), None)


def _record_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        p for depth in ("*", "*/*") for end in RECORD_NAMES for p in folder.glob(depth + end) if p.name[0] != "."
    )


def _preferred(parts: Collection[str], size_px: int, path: Path) -> str:
    if IMAGES in parts:
        return IMAGES
    if THUMBNAILS in parts and (size_px <= 128 or TFRECORDS not in parts):
        return THUMBNAILS
    if TFRECORDS in parts:
        return TFRECORDS
    raise UserError(
        f"PATH={str(path)!r}: {WILD} are not aligned faces; give {IMAGES}, or make it with `download_ffhq.py --align`"
    )


def _note_on_choice(part: str, parts: Collection[str]) -> str:
    others = ", ".join(p for p in PARTS if p in parts and p != part)
    return f"taken: {part}" + (f"; also there: {others}" if others else "")


def _category(index: int) -> str:
    return SPLITS[index >= FIRST_VALIDATION]


def _is_png(key: bytes) -> bool:
    return key.lower().endswith(b".png")


def _shown(key: bytes) -> str:
    return key.decode("utf-8", "backslashreplace")


class _Found(NamedTuple):
    index: int  # -1: unknown
    key: bytes
    at: int


class _Files:
    """Image files in a folder, in a zip, or in the zips 00000.zip .. 69000.zip of a folder."""

    def __init__(self, path: Path, part: str | None = None):
        self.path, self.part = path, part  # part None: by the names of the folders that images lie in
        self.notes: list[str] = []
        self._trees: dict[bytes, Tree] = {b"": open_tree(path, WANTED)}  # start of a key -> where the rest is found
        self._published = ffhq_json.Published.nothing()
        self._numbered = True  # the number in a name is the index
        self._same_bytes = True  # the files are as published, not written anew

    def entries(self, size_px: int, split: str | None) -> Iterator[Entry]:
        files = list(self._all_files())
        if self.part is None:
            files = self._one_part(files, size_px)
        if not files:
            raise UserError(f"PATH={str(self.path)!r}: no images in it (TFRecords in a zip: unpack it); give {WANTED}")
        side = self._published_side(files)
        if side and size_px > side:
            more = f", or give {IMAGES}" if side < 1024 else ""
            raise UserError(
                f"size={size_px}: PATH={str(self.path)!r} has images of {side} px and nothing is enlarged; use "
                f"--size {side} or less{more}"
            )
        self._look_at_names(files)
        self._load_json(files, side)
        files = [f._replace(index=self._index(f.key)) for f in files]
        self._refuse_doubles(files)
        return self._chosen(files, split)

    def read(self, entry: Entry) -> Image.Image:
        data = self._bytes(entry.key)
        row = self._published.row(self._index(entry.key))
        if row is None or self._published.size[row] < 0 or not _is_png(entry.key):
            return open_image(io.BytesIO(data))
        if self._same_bytes:
            self._published.check_file(row, data)
        image = open_image(io.BytesIO(data))
        self._published.check_pixels(row, image)
        return image

    def about(self, entry: Entry) -> dict[str, Any]:
        index = self._index(entry.key)
        return {"index": index, **self._facts(index)} if index >= 0 else {}

    def _facts(self, index: int) -> dict[str, str]:
        row = self._published.row(index)
        return {"category": _category(index)} if row is None else self._published.about(row)

    def _index(self, key: bytes) -> int:
        """The number at the end of the name, -1 without one."""
        found = INDEX.search(key.rpartition(b"/")[2]) if self._numbered else None
        return int(found[1]) if found else -1

    def _bytes(self, key: bytes) -> bytes:
        start = next(s for s in sorted(self._trees, reverse=True) if key.startswith(s))  # b"" is last
        return self._trees[start].read(key[len(start) :])

    def _all_files(self) -> Iterator[_Found]:
        tree = self._trees[b""]
        for file in tree.files():
            if is_image_name(file.key):
                yield _Found(-1, file.key, file.at)
            elif isinstance(tree, FolderTree) and NUMBERED_ZIP.search(file.key):
                start = file.key + b"/"
                self._trees[start] = inner = ZipTree(self.path / os.fsdecode(file.key))
                yield from (_Found(-1, start + f.key, f.at) for f in inner.files() if is_image_name(f.key))
            elif file.key.rpartition(b"/")[2] == b"dataset.json":
                self.notes.append("dataset.json: labels are not read, FFHQ has none")

    def _one_part(self, files: list[_Found], size_px: int) -> list[_Found]:
        """The files of one part where folders are named after parts, else all."""
        own = self.path.resolve().name.partition(".")[0].encode()
        names = {p.encode(): p for p in PARTS}
        by_part: dict[str, list[_Found]] = {}
        for file in files:
            above = [own, *file.key.split(b"/")[:-1]]
            by_part.setdefault(next((names[n] for n in above if n in names), ""), []).append(file)
        parts = set(by_part) - {""}
        if not parts:
            return files
        part = _preferred(parts, size_px, self.path)
        if len(by_part) > 1:
            outside = f", {len(by_part[''])} images outside it" if "" in by_part else ""
            self.notes.append(_note_on_choice(part, parts) + outside)
        return by_part[part]

    def _published_side(self, files: list[_Found]) -> int | None:
        """1024 or 128 if the PNGs have a published size, judged by the first whose head is whole; else None."""
        for file in files:
            try:
                data = self._bytes(file.key) if _is_png(file.key) else b""
            except Rejected:
                continue
            if data.startswith(PNG_MAGIC) and len(data) >= 24:
                width, height = struct.unpack(">II", data[16:24])
                return width if width == height and width in SIDES else None
        return None

    def _look_at_names(self, files: list[_Found]) -> None:
        if len(files) != COUNT:
            self.notes.append(f"{len(files)} images; all of FFHQ is {COUNT}")
        if any(NVLABS.search(f.key) for f in files):
            self._same_bytes = False
            self._numbered = len(files) == COUNT
            if not self._numbered:
                self.notes.append("numbered by dataset_tool.py as it met them: index, category, checksums unknown")
        elif nameless := sum(self._index(f.key) < 0 for f in files):
            self._numbered = nameless < len(files)
            self.notes.append(f"{nameless} files without a number in the name: index, category, checksums unknown")
        if others := sum(not _is_png(f.key) for f in files):
            self.notes.append(f"{others} files are not PNG but a copy (JPEG: a lossy one): checksums not checked")

    def _load_json(self, files: list[_Found], side: int | None) -> None:
        if not self._numbered:
            return
        path = ffhq_json.find_json(self.path)
        if path is None:
            self.notes.append(f"no {ffhq_json.JSON} beside the images: checksums not checked, category by index")
            return
        self._published = ffhq_json.load(path, SIDES[side] if side else None)
        if side is None and any(_is_png(f.key) for f in files):
            self.notes.append("PNGs not of the published 1024 or 128 px: checksums not checked")
        rows = (self._published.row(i) for f in files if (i := self._index(f.key)) >= 0)
        if unknown := sum(row is None for row in rows):
            self.notes.append(f"{unknown} files are not in {path.name}: taken, checksums not checked")

    def _refuse_doubles(self, files: list[_Found]) -> None:
        seen: dict[int, bytes] = {}
        for file in files:
            first = seen.setdefault(file.index, file.key)
            if file.index >= 0 and first != file.key:
                raise UserError(
                    f"PATH={str(self.path)!r}: image {file.index} is there twice ({_shown(first)!r} and "
                    f"{_shown(file.key)!r}); give a folder with one, or use source `folder` if these are not FFHQ's "
                    "numbers"
                )

    def _chosen(self, files: list[_Found], split: str | None) -> Iterator[Entry]:
        """By index, then by name: the files, and as refused what the JSON has of this part and the disk has not."""
        found = {f.index for f in files}
        absent = {i for i in self._listed() if i not in found}
        files += [_Found(i, b"%05d/%05d.png" % (i // 1000 * 1000, i), 0) for i in absent]
        missing = Refusal("missing", f"listed in {ffhq_json.JSON}")
        for file in sorted(files, key=lambda f: (f.index < 0, f.index, f.key)):
            if split is not None and file.index < 0:
                raise UserError(f"split={split!r}: the index of {_shown(file.key)!r} is unknown; leave split out")
            if split is None or self._facts(file.index)["category"] == split:
                yield Entry(file.key, at=file.at, refused=missing if file.index in absent else None)

    def _listed(self) -> list[int]:
        """The images of this part in the JSON; of a folder or zip of a thousand only those."""
        listed = self._published.index[self._published.size >= 0].tolist()
        only = THOUSAND.match(self.path.name)
        return [i for i in listed if i // 1000 * 1000 == int(only[1])] if only else listed


class _Records:
    """TFRecords of one or several levels, of which the one of the wanted size is taken."""

    def __init__(self, paths: list[Path]):
        self.paths = paths
        self.notes: list[str] = []
        self._path, self._side = paths[0], 0  # the file taken

    def entries(self, size_px: int, split: str | None) -> Iterator[Entry]:
        if split is not None:
            raise UserError(f"split={split!r}: the order of TFRecords is not known, so no split is; give the PNGs")
        self._path, self._side = tfrecord.level(self.paths, size_px), size_px
        name, cut = os.fsencode(self._path.name), Refusal("truncated", "the file ends within this record")
        count = 0
        for at, whole in tfrecord.offsets(self._path):
            yield Entry(b"%s:%06d" % (name, count), at=at, refused=None if whole else cut)
            count += 1
        self.notes.append(f"{self._path.name}: its order need not be that of the PNGs: index and category unknown")
        if count != COUNT:
            self.notes.append(f"{count} records; all of FFHQ is {COUNT}")

    def read(self, entry: Entry) -> Image.Image:
        pixels = tfrecord.read_image(self._path, entry.at)
        if pixels.shape != (self._side, self._side, 3):
            height, width, _ = pixels.shape
            raise Rejected("unreadable", f"{width}x{height} in a TFRecord of {self._side} px")
        return Image.fromarray(pixels)

    def about(self, entry: Entry) -> dict[str, Any]:
        return {}
