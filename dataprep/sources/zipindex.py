"""What lies where in a zip, in flat arrays, and the bytes of one member.

The standard library keeps 700 bytes a member and every worker opens the zip anew: two GB each for the zips of
three million images that people have. This keeps about 100. Reads zip64, members stored or deflated; no
encryption, no other methods, no split archives. Names are bytes to compare, never paths to write to. Knows no
images.
"""

import os
import stat
import struct
import weakref
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, NamedTuple
from zipfile import BadZipFile

from dataprep.rejected import Rejected

END, END64, LOCATOR, CENTRAL, LOCAL = b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\1\2", b"PK\3\4"
RECORD = struct.Struct("<4s6H3L5H2L")
FULL = 0xFFFFFFFF  # the number is in the zip64 field
STORED, DEFLATED = 0, 8
LINK = 1 << 16  # among our flags, above the 16 of the format


class Member(NamedTuple):
    """One record of the central directory."""

    name: bytes  # '/' between folders; UTF-8 wherever it can be told
    offset: int  # bytes, of the local header
    packed: int  # bytes in the file
    size: int  # bytes when unpacked
    crc: int
    method: int
    flags: int


class ZipIndex:
    """The members of a zip, less folders and names that `wanted` says no to, sorted on the bytes of their names."""

    twice: bytes | None = None  # a name that two members have

    def __init__(self, path: Path, wanted: Callable[[bytes], bool] = lambda name: True):
        """Raises BadZipFile where it is cut, damaged or one part of several, and OSError."""
        self._file = path.open("rb")
        weakref.finalize(self, self._file.close)
        self.names: list[bytes] = []
        self._columns = [array("Q") for _ in range(6)]
        for member in _members(*_directory(self._file)):
            if not member.name.endswith(b"/") and wanted(member.name):
                self.names.append(member.name)
                for column, value in zip(self._columns, member[1:], strict=True):
                    column.append(value)
        pairs = zip(self.names, islice(self.names, 1, None), strict=False)
        if not all(a < b for a, b in pairs):  # most zips are sorted already
            order = sorted(range(len(self.names)), key=self.names.__getitem__)
            self.names = [self.names[i] for i in order]
            self._columns = [array("Q", (c[i] for i in order)) for c in self._columns]
            pairs = zip(self.names, islice(self.names, 1, None), strict=False)
            self.twice = next((a for a, b in pairs if a == b), None)

    def __iter__(self) -> Iterator[Member]:
        for i, name in enumerate(self.names):
            yield Member(name, *(c[i] for c in self._columns))

    def __getitem__(self, name: bytes) -> Member:
        """KeyError if there is none of that name."""
        i = bisect_left(self.names, name)
        if i == len(self.names) or self.names[i] != name:
            raise KeyError(name)
        return Member(name, *(c[i] for c in self._columns))

    def read(self, member: Member, limit: int) -> bytes:
        """All bytes, checked against the CRC; never more than `limit`, whatever the member claims to hold."""
        if max(member.size, member.packed) > limit:
            raise Rejected("too large", f"{member.size} bytes when unpacked")
        raw = self._raw(member, member.packed)
        if len(raw) < member.packed:
            raise Rejected("truncated", "the zip ends within it")
        out = _unpacked(member, raw, member.size)
        if len(out) < member.size:
            raise Rejected("truncated", f"unpacks to {len(out)} bytes, not {member.size}")
        if zlib.crc32(out) != member.crc:
            raise Rejected("unreadable", "wrong CRC")
        return out

    def head(self, member: Member, count: int) -> bytes:
        """The first `count` bytes, at most 16 or so; unchecked."""
        return _unpacked(member, self._raw(member, min(member.packed, 1024)), min(count, member.size))

    def _raw(self, member: Member, count: int) -> bytes:
        if member.flags & 1:
            raise Rejected("unreadable", "encrypted")
        if member.flags & LINK:
            raise Rejected("unreadable", "a link inside a zip")
        if member.method not in (STORED, DEFLATED):
            raise Rejected("unreadable", f"compression method {member.method}; stored and deflate are read")
        try:
            local = os.pread(self._file.fileno(), 30, member.offset)
            if len(local) < 30 or not local.startswith(LOCAL):
                raise Rejected("unreadable", "its place in the zip holds something else")
            start = member.offset + 30 + sum(struct.unpack("<2H", local[26:]))
            return os.pread(self._file.fileno(), count, start)
        except (OSError, OverflowError) as e:
            raise Rejected("unreadable", " ".join(str(e).split())) from e


def _unpacked(member: Member, raw: bytes, size: int) -> bytes:
    if member.method == STORED or not size:
        return raw[:size]
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(raw, size)
    except zlib.error as e:
        raise Rejected("unreadable", str(e)) from e


def _directory(file: IO[bytes]) -> tuple[bytes, int, int]:
    """The bytes of the central directory, its records modulo 2**16, and what to add to the offsets in it."""
    total = file.seek(0, os.SEEK_END)
    start = file.seek(max(0, total - 22 - 0xFFFF - 20))  # end record, its comment, zip64 locator
    tail = file.read()
    at = tail.rfind(END)
    if at < 0 or len(tail) - at < 22:
        raise BadZipFile("its end is missing")
    disk, _, _, count, length, offset = struct.unpack_from("<4H2L", tail, at + 4)
    end = start + at
    if at >= 20 and tail.startswith(LOCATOR, at - 20):
        file.seek(min(struct.unpack_from("<Q", tail, at - 12)[0], total))
        record = file.read(56)
        if not record.startswith(END64):  # bytes put before a zip move it
            file.seek(max(0, end - 20 - 56))
            record = file.read(56)
        if len(record) < 56 or not record.startswith(END64):
            raise BadZipFile("its zip64 end record is missing")
        end = file.tell() - 56
        disk, _, _, count, length, offset = struct.unpack_from("<2L4Q", record, 16)
    if disk not in (0, 0xFFFF):
        raise BadZipFile("it spans several files")
    shift = end - length - offset
    if shift < 0 or length > end:
        raise BadZipFile("its directory is cut")
    file.seek(end - length)
    return file.read(length), count & 0xFFFF, shift


def _members(directory: bytes, count: int, shift: int) -> Iterator[Member]:
    at = seen = 0
    while at < len(directory):
        if len(directory) - at < RECORD.size:
            raise BadZipFile("its directory is damaged")
        magic, made, _, bits, method, _, _, crc, packed, size, n, m, k, _, _, mode, offset = RECORD.unpack_from(
            directory, at
        )
        if magic != CENTRAL:
            raise BadZipFile("its directory is damaged")
        name = directory[at + RECORD.size : at + RECORD.size + n]
        extra = directory[at + RECORD.size + n : at + RECORD.size + n + m]
        if FULL in (size, packed, offset):
            size, packed, offset = _wide(size, packed, offset, extra)
        unix = made >> 8 == 3
        flags = bits | (LINK if unix and stat.S_ISLNK(mode >> 16) else 0)
        yield Member(_name(name, bits, extra), min(offset + shift, 2**63 - 1), packed, size, crc, method, flags)
        at += RECORD.size + n + m + k
        seen += 1
    if seen & 0xFFFF != count:
        raise BadZipFile(f"its directory has {seen} members and says otherwise")


def _fields(extra: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(extra):
        tag, length = struct.unpack_from("<2H", extra, at)
        yield tag, extra[at + 4 : at + 4 + length]
        at += 4 + length


def _wide(size: int, packed: int, offset: int, extra: bytes) -> Iterator[int]:
    """Those of the three numbers that are full come from the zip64 field, in this order."""
    field = next((data for tag, data in _fields(extra) if tag == 1), b"")
    wide = iter(struct.unpack(f"<{len(field) // 8}Q", field[: len(field) // 8 * 8]))
    return (next(wide, FULL) if number == FULL else number for number in (size, packed, offset))


def _name(raw: bytes, bits: int, extra: bytes) -> bytes:
    if not bits & 0x800 and not raw.isascii():
        field = next((data for tag, data in _fields(extra) if tag == 0x7075), b"")  # Info-ZIP's Unicode path
        try:
            if field[:1] == b"\1" and field[1:5] == zlib.crc32(raw).to_bytes(4, "little"):
                raw = field[5:]
            raw.decode("utf-8")  # macOS writes UTF-8 and does not say so
        except UnicodeDecodeError:
            raw = raw.decode("cp437").encode()
    name = raw.replace(b"\\", b"/")
    return name if b"./" not in name else b"/".join(n for n in name.split(b"/") if n != b".")
