"""LSUN: one LMDB a scene category and split, or an object category; keys are 40 hexadecimal digits, values files.

PATH is the folder (`church_outdoor_train_lmdb`, `cat`, `test_lmdb`), its data.mdb, or the zip as downloaded.
Values are WebP or JPEG, told by their bytes. A category is no class: an LMDB holds one, so images have no
labels. Knows nothing of pages and trees; those are in mdb.py.
"""

import contextlib
import errno
import io
import os
import re
import shutil
import struct
import tempfile
import weakref
import zipfile
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, features

from dataprep.rejected import Rejected
from dataprep.sources.entry import Entries, Entry
from dataprep.sources.mdb import Mdb, refuse_head
from dataprep.sources.tree import open_zip, refuse_page
from dataprep.transform import open_image
from pipeline.errors import UserError, WorkError

DATA = "data.mdb"
WANTED = "give the folder of one LSUN LMDB (church_outdoor_train_lmdb, cat, ...), its data.mdb, or its zip"
KEY = re.compile(rb"[0-9a-f]{40}")
NAME = re.compile(r"(?:(?P<category>.+)_)?(?P<split>train|val|test)_lmdb")
RESIZED_KEY = re.compile(rb"\d+-\d{5}")  # rosinality's <size>-<number>
DATUM = re.compile(  # Caffe's protobuf: channels, height, width, then pixels or label; or a file within
    rb"(?s)(?:\x08[\x01\x03\x04])?\x10.{1,3}\x18.{1,3}[\x22\x28]|\x22.{1,4}(?:\xff\xd8\xff|\x89PNG|RIFF)"
)
ZIP_MAGIC = b"PK"
LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip member: magic, bytes of name and of extra field
HEAD = 1024


class Place(NamedTuple):
    """Where the bytes of an LMDB lie: a file of its own, a stored member of a zip, or an unpacked copy."""

    path: str
    start: int = 0
    size: int | None = None  # None: to the end of the file
    inode: int = 0  # of the unpacked copy; 0: none was made


class Lsun:
    """Entries are the keys in their order; `at` is the bytes of the value, so folder and zip are one data set."""

    name = "lsun"
    crop = "center"
    classes: tuple[str, ...] = ()

    def __init__(self, path: Path | None, split: str | None = None, unpacked: Place | None = None):
        """`unpacked`: the copy of a zip that the process which made this one has."""
        if split is not None:
            raise UserError(
                f"split={split!r}: every LSUN LMDB is one split; leave it out and give the LMDB of that split as PATH "
                "(church_outdoor_train_lmdb, church_outdoor_val_lmdb, ...)"
            )
        if path is None:
            raise UserError(f"PATH is missing: {WANTED}")
        self.path = path
        self._notes: list[str] = []
        try:
            file = _file_of(path)
            with open(file, "rb") as f:
                head = f.read(HEAD)
            refuse_page(file, head)
            folder = file.resolve().parent.name
            self._place = Place(str(file))
            if head.startswith(ZIP_MAGIC):
                member = _member(file)
                folder = member.filename.replace("\\", "/").rpartition("/")[0].rpartition("/")[2] or file.stem
                self._place = self._place_in_zip(file, member, unpacked)
            self._mdb = Mdb(*self._place[:3])
        except Rejected as e:
            advice = f"; {WANTED}" if e.reason == "not an image" else ""
            raise UserError(f"PATH={str(path)!r}: {e.detail}{advice}") from e
        except OSError as e:
            raise UserError(f"PATH={str(path)!r}: cannot be read ({e.strerror}); {WANTED}") from e
        self._named = NAME.fullmatch(folder)
        if self._named:
            self._notes.append("LSUN's " + ", ".join(f"{k} {v}" for k, v in self.about(Entry(b"")).items()))

    def __reduce__(self):
        return Lsun, (self.path, None, self._place if self._place.inode else None)

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(self._notes)

    def entries(self, size_px: int) -> Entries:
        return self._listing

    def read(self, entry: Entry) -> Image.Image:
        return open_image(io.BytesIO(self._mdb.get(entry.key)))

    def about(self, entry: Entry) -> dict[str, Any]:
        """Category and split, where the folder is named as LSUN names scenes."""
        return {k: v for k, v in self._named.groupdict().items() if v} if self._named else {}

    @cached_property
    def _listing(self) -> Entries:
        where = f"PATH={str(self.path)!r}"
        if not self._mdb.count:
            raise UserError(f"{where}: the LMDB is empty; {WANTED}")
        try:
            _refuse_foreign(self._mdb, where)
            out = Entries(Entry(key, at=length) for key, length in self._mdb.lengths())
        except Rejected as e:
            raise UserError(f"{where}: {e.detail}") from e
        other = next((e.name for e in (out[0], out[-1]) if not KEY.fullmatch(e.key)), None)
        if other is not None:
            self._notes.append(f"keys such as {other!r} are not LSUN's 40 hexadecimal digits: another LMDB of images?")
        return out

    def _place_in_zip(self, file: Path, member: zipfile.ZipInfo, unpacked: Place | None) -> Place:
        if member.compress_type == zipfile.ZIP_STORED:
            return _stored(file, member)
        if unpacked and _is_there(unpacked):
            return unpacked
        copy, size = _unpack(file, member), member.file_size
        weakref.finalize(self, os.close, copy)
        self._notes.append(
            f"{file.name} is compressed: {size / 2**30:.2f} GiB were unpacked to {tempfile.gettempdir()} for this run "
            "only; unzip it once to save that"
        )
        return Place(f"/proc/{os.getpid()}/fd/{copy}", 0, size, os.fstat(copy).st_ino)


def _file_of(path: Path) -> Path:
    """The data.mdb or zip that is meant. A folder may be the LMDB, or hold that of one."""
    where = f"PATH={str(path)!r}"
    if not path.is_dir():
        if not path.is_file():
            raise UserError(f"{where}: {'not a regular file' if path.exists() else 'no such file or folder'}; {WANTED}")
        return path
    if (path / DATA).is_file():
        return path / DATA
    found = sorted(p for p in path.iterdir() if (p / DATA).is_file())
    if len(found) == 1:
        return found[0] / DATA
    if found:
        raise UserError(f"{where}: holds {len(found)} LMDBs ({_some(p.name for p in found)}); give one of them")
    zips = sorted(p.name for p in path.glob("*.zip"))
    seen = f"no {DATA} in it" + (f", but zips ({_some(zips)})" if zips else "")
    raise UserError(f"{where}: {seen}; {WANTED}")


def _some(names) -> str:
    names = list(names)
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _member(file: Path) -> zipfile.ZipInfo:
    """The one data.mdb of a zip, in whatever folder."""
    with open_zip(file) as archive:
        paths = {info.filename.replace("\\", "/"): info for info in archive.infolist()}
    found = [p for p in paths if p.rpartition("/")[2] == DATA and not p.startswith("__MACOSX/")]
    where = f"PATH={str(file)!r}"
    if not found:
        raise UserError(f"{where}: no {DATA} in this zip ({_some(paths) or 'it is empty'}); {WANTED}")
    if len(found) > 1:
        raise UserError(f"{where}: holds {len(found)} LMDBs ({_some(found)}); unzip it and give the folder of one")
    member = paths[found[0]]
    if member.flag_bits & 1:
        raise UserError(f"{where}: {found[0]} is encrypted; unzip it with its password and give the folder")
    return member


def _is_there(copy: Place) -> bool:
    """False on another host, or after the process that unpacked it."""
    try:
        found = os.stat(copy.path)
    except OSError:
        return False
    return (found.st_size, found.st_ino) == (copy.size, copy.inode)


def _stored(file: Path, member: zipfile.ZipInfo) -> Place:
    with open(file, "rb") as f:
        f.seek(member.header_offset)
        header = f.read(LOCAL_HEADER.size)
    if len(header) < LOCAL_HEADER.size or header[:4] != b"PK\x03\x04":
        raise Rejected("unreadable", "is a damaged zip; copy it again")
    _, name, extra = LOCAL_HEADER.unpack(header)
    return Place(str(file), member.header_offset + LOCAL_HEADER.size + name + extra, member.file_size)


def _unpack(file: Path, member: zipfile.ZipInfo) -> int:
    """A descriptor of the unpacked LMDB: a file without a name, gone with this process however it ends."""
    where, place = f"PATH={str(file)!r}", tempfile.gettempdir()
    by_hand = "or unzip it yourself and give the folder"
    if not os.path.isdir("/proc/self/fd"):  # by which workers find it
        raise UserError(f"{where}: is compressed; unzip it and give the folder")
    try:
        with open_zip(file) as archive, archive.open(member) as packed:
            refuse_head(packed.read(HEAD))
            packed.seek(0)
            free = shutil.disk_usage(place).free
            if free < member.file_size:
                raise UserError(
                    f"{where}: is compressed and needs {member.file_size} bytes in {place}, where {free} are free; "
                    f"point TMPDIR to a larger disk, {by_hand}"
                )
            with tempfile.TemporaryFile(dir=place) as copy:
                shutil.copyfileobj(packed, copy, 2**20)
                copy.flush()
                return os.dup(copy.fileno())
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, struct.error, RuntimeError) as e:
        raise Rejected("unreadable", f"is a damaged zip ({' '.join(str(e).split())}); copy it again") from e
    except OSError as e:
        if e.errno == errno.EINVAL:  # its directory names a place before the start of the file
            raise Rejected("unreadable", "is a damaged zip; copy it again") from e
        raise WorkError(f"{where}: cannot be unpacked to {place} ({e.strerror}); set TMPDIR, {by_hand}") from e


def _refuse_foreign(mdb: Mdb, where: str) -> None:
    """UserError where keys or the first value are those of other programs, or WebP cannot be decoded here."""
    key, _ = next(mdb.lengths())
    sized = RESIZED_KEY.fullmatch(key)
    with contextlib.suppress(Rejected):
        mdb.get(b"length")
        sized = True
    if sized:
        raise UserError(
            f"{where}: is an LMDB of pictures already resized, as rosinality's and CIPS's scripts write "
            f"(keys length, {key.decode('utf-8', 'backslashreplace')}); {WANTED}, or the folder of images it was "
            "made from to source 'folder'"
        )
    value = b""
    with contextlib.suppress(Rejected):  # one damaged value is that image's affair
        value = mdb.get(key)[:HEAD]
    if DATUM.match(value):
        raise UserError(f"{where}: the values are Caffe Datum records, not image files; {WANTED}")
    if value[:4] == b"RIFF" and value[8:12] == b"WEBP" and not features.check("webp"):
        raise UserError(f"{where}: holds WebP, which this Pillow cannot decode; pip install --force-reinstall pillow")
