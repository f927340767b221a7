"""Files below a folder or inside a zip, in one order and behind one interface; nothing is ever extracted.

Litter of desktops is passed over: hidden files and folders (leading dot), __MACOSX, Thumbs.db, desktop.ini,
Zone.Identifier. Links to folders are not followed. What has the name of an image and cannot be read (a link to
nothing, a FIFO, an encrypted member) is still offered, so that it is rejected by name and not lost. Knows no
data set and decodes no picture.
"""

import os
import stat
import struct
import zipfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

from dataprep.rejected import Rejected
from dataprep.sources.zipindex import Member, ZipIndex
from pipeline.errors import UserError

EXTENSIONS = (b".jpg", b".jpeg", b".jpe", b".jfif", b".png", b".webp", b".bmp", b".tif", b".tiff", b".gif")
LITTER = frozenset({b"__macosx", b"thumbs.db", b"desktop.ini"})
LARGEST = 2**30  # bytes; a picture of more is a bomb or a mistake, and every worker would hold one
HEAD = 16  # bytes that tell an image
ARCHIVES = {b"7z\xbc\xaf'\x1c": "7z", b"Rar!": "rar", b"\x1f\x8b": "gzip", b"\xfd7zXZ": "xz", b"BZh": "bzip2"}
ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08", b"PK00")
LMDB_MAGIC = b"\xde\xc0\xef\xbe"  # at byte 16
IMAGE_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")


class File(NamedTuple):
    """One file of a tree."""

    key: bytes  # path relative to the root, '/' between names
    size: int  # bytes, 0 if it cannot be read
    at: int  # what notices an edit: size in a folder (-1 if it cannot be read), CRC-32 in a zip


class Tree(Protocol):
    """A folder or a zip. Pickles to its path; a worker opens its own."""

    @property
    def path(self) -> Path: ...

    def files(self) -> Iterator[File]:
        """All files but litter, sorted on the bytes of their keys. UserError where a folder cannot be listed."""
        ...

    def read(self, key: bytes) -> bytes:
        """All bytes of one file; Rejected "missing", "unreadable", "truncated" or (over 1 GiB) "too large"."""
        ...

    def head(self, key: bytes) -> bytes:
        """The first 16 bytes, fewer where there are fewer; Rejected as for `read`."""
        ...


def open_tree(path: Path | None, wanted: str) -> Tree:
    """The tree at `path`; the content decides which. `wanted` is said in errors: "a folder of images or a zip"."""
    if path is None:
        raise UserError(f"PATH is missing: give {wanted}")
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            if os.path.exists(path / "data.mdb"):
                raise UserError(f"PATH={str(path)!r}: holds an LMDB (data.mdb), not {wanted}; `lsun` reads LSUN's")
            return FolderTree(path)
        if not stat.S_ISREG(mode):
            raise UserError(f"PATH={str(path)!r}: neither a file nor a folder; give {wanted}")
        with path.open("rb") as f:
            head = f.read(1024)
        if head.startswith(ZIP_MAGIC) or zipfile.is_zipfile(path):
            return ZipTree(path)
    except OSError as e:
        seen = "no such file or folder" if isinstance(e, FileNotFoundError) else e.strerror
        raise UserError(f"PATH={str(path)!r}: {seen}; give {wanted}") from e
    refuse_page(path, head)
    raise UserError(f"PATH={str(path)!r}: {_what(path, head)}; give {wanted}")


def _what(path: Path, head: bytes) -> str:
    kind = next((k for magic, k in ARCHIVES.items() if head.startswith(magic)), "")
    if not kind and path.suffix[1:].isdigit() and path.stem.lower().endswith((".7z", ".zip")):
        kind = "multi-part"
    if not kind and head[257:262] == b"ustar":
        kind = "tar"
    if kind:
        return f"is part of or a whole {kind} archive, which is not read; unpack it first"
    if head[16:20] == LMDB_MAGIC:
        return "is the file of an LMDB; `lsun` reads LSUN's and takes the folder"
    if is_image_head(head[:HEAD]):
        return "is a single image"
    if not head:
        return "is an empty file (an interrupted download?)"
    seen = "has the name of a zip, but is none (damaged?)" if path.suffix.lower() == ".zip" else "is no zip"
    return f"is not a folder and {seen}"


def is_image_name(key: bytes) -> bool:
    """Whether it ends as images do, in any case."""
    return key.lower().endswith(EXTENSIONS)


def is_image_head(head: bytes) -> bool:
    """Whether these first 16 bytes are those of an image, also of a kind that is rejected later (HEIC, AVIF, JXL)."""
    bmp = head[:2] == b"BM" and head[6:10] == b"\0\0\0\0"
    boxed = head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")
    other = head[4:12] in (b"jP  \r\n\x87\n", b"JXL \r\n\x87\n")
    return head.startswith(IMAGE_MAGIC) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP") or bmp or boxed or other


def refuse_page(path: Path, head: bytes) -> None:
    """UserError if the first bytes of a file are those of a web page, as download limits leave them behind."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not text.startswith((b"<!doctype html", b"<html", b"<head")):
        return
    quota = "the 'Quota exceeded' page of Google Drive" if b"quota exceeded" in text else "a web page"
    raise UserError(f"{path}: is {quota}, not the data that its name says; delete it and download it again")


def _is_litter(name: bytes) -> bool:
    lower = name.lower()
    hidden = name.startswith(b".") and name not in (b".", b"..")
    return hidden or lower in LITTER or lower.endswith(b"zone.identifier")


class FolderTree:
    """A folder on disk, however deep."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return FolderTree, (self.path,)

    def files(self) -> Iterator[File]:
        waiting = [b""]  # folders end in '/', so that they sort among files as their content does
        while waiting:
            key = waiting.pop()
            if not key or key.endswith(b"/"):
                waiting += sorted(self._inside(key), reverse=True)
                continue
            try:
                found = os.stat(self._place(key))
            except OSError:
                found = None
            if found and stat.S_ISREG(found.st_mode):
                yield File(key, found.st_size, found.st_size)
            elif is_image_name(key) and not (found and stat.S_ISDIR(found.st_mode)):
                yield File(key, 0, -1)

    def _inside(self, folder: bytes) -> Iterator[bytes]:
        try:
            with os.scandir(self._place(folder)) as items:
                for item in items:
                    if not _is_litter(item.name):
                        yield folder + item.name + (b"/" if item.is_dir(follow_symlinks=False) else b"")
        except OSError as e:
            where = self._place(folder).decode("utf-8", "backslashreplace")
            raise UserError(f"PATH: cannot list {where}: {e.strerror}") from e

    def _place(self, key: bytes) -> bytes:
        return os.fsencode(self.path) + b"/" + key

    def read(self, key: bytes) -> bytes:
        return self._first(key, -1)

    def head(self, key: bytes) -> bytes:
        return self._first(key, HEAD)

    def _first(self, key: bytes, count: int) -> bytes:
        place = self._place(key)
        try:
            found = os.stat(place)
            if not stat.S_ISREG(found.st_mode):  # opening a FIFO would wait for ever
                raise Rejected("unreadable", "not a regular file")
            if count < 0 and found.st_size > LARGEST:
                raise Rejected("too large", f"{found.st_size} bytes")
            with open(place, "rb") as f:
                return f.read(count)
        except (FileNotFoundError, NotADirectoryError) as e:
            link = os.path.islink(place)
            raise Rejected("missing", "a link to nothing" if link else "no such file") from e
        except OSError as e:
            raise Rejected("unreadable", e.strerror or str(e)) from e


class ZipTree:
    """A zip. One with a name twice is refused, as no one can know which is meant. The rest is in ZipIndex."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return ZipTree, (self.path,)

    @cached_property
    def _index(self) -> ZipIndex:
        try:
            index = ZipIndex(self.path, lambda name: not any(_is_litter(n) for n in name.split(b"/")))
        except (zipfile.BadZipFile, OSError) as e:
            raise _refused_zip(self.path, e) from e
        if index.twice is not None:
            shown = repr(index.twice.decode("utf-8", "backslashreplace"))
            raise UserError(f"PATH={str(self.path)!r}: holds {shown} twice; unpack it and give the folder")
        return index

    def files(self) -> Iterator[File]:
        return (File(m.name, m.size, m.crc) for m in self._index)

    def read(self, key: bytes) -> bytes:
        return self._index.read(self._member(key), LARGEST)

    def head(self, key: bytes) -> bytes:
        return self._index.head(self._member(key), HEAD)

    def _member(self, key: bytes) -> Member:
        try:
            return self._index[key]
        except KeyError:
            raise Rejected("missing", "no such member in the zip") from None


def open_zip(path: Path) -> zipfile.ZipFile:
    """The zip for streaming a few large members; UserError in one line where it cannot be read."""
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, struct.error, EOFError, OSError, ValueError) as e:
        raise _refused_zip(path, e) from e


def _refused_zip(path: Path, e: Exception) -> UserError:
    why = " ".join(str(getattr(e, "strerror", None) or e).split())
    if isinstance(e, OSError):
        return UserError(f"PATH={str(path)!r}: cannot be read ({why})")
    return UserError(
        f"PATH={str(path)!r}: a cut or damaged zip, or one part of several ({why}); download it again, or join the "
        "parts with `zip -s 0 PATH --out whole.zip`"
    )
