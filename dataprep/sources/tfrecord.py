"""TFRecord files of raw images as PGGAN and StyleGAN wrote them, read without TensorFlow; strict, seeks, never scans.

A record is length (u64), masked CRC-32C of the length, data, masked CRC-32C of the data, little-endian. Data is a
protobuf Example with the features `shape` (int64: C, H, W) and `data` (uint8, CHW). One file holds one level, that
is images of one size. Knows no data set.
"""

import math
import os
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from dataprep.rejected import Rejected
from dataprep.sources.tree import refuse_page
from pipeline.errors import UserError

HEAD = 12  # length and its checksum
FRAME = HEAD + 4
LARGEST = 2**30  # bytes of one record; more is damage
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # protobuf's wire types


def is_tfrecord(path: Path) -> bool:
    """Whether the file starts with the length of a record and its checksum."""
    with path.open("rb") as f:
        return _length(f.read(HEAD)) is not None


def offsets(path: Path) -> Iterator[tuple[int, bool]]:
    """(offset, whether all of it is there) of each record, in order; reads 12 bytes a record.

    Only the last can be cut. UserError at a length whose checksum is wrong, as nothing after it can be found.
    """
    try:
        with path.open("rb", buffering=0) as f:
            at, size = 0, os.fstat(f.fileno()).st_size
            while at < size:
                head = os.pread(f.fileno(), HEAD, at)
                if len(head) < HEAD:
                    yield at, False
                    return
                length = _length(head)
                if length is None:
                    if at == 0:
                        refuse_page(path, os.pread(f.fileno(), 1024, 0))
                    what = "is no TFRecord" if at == 0 else f"is damaged at byte {at} (checksum of a record's length)"
                    raise UserError(f"{path}: {what}; the records from there on cannot be found; download it again")
                yield at, at + FRAME + length <= size
                at += FRAME + length
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from e


def read_image(path: Path, at: int) -> np.ndarray:
    """uint8 [H, W, 3] of the record at offset `at`; Rejected "missing", "truncated" or "unreadable"."""
    try:
        features = _features(_read_record(path, at))
        shape, data = _integers(features["shape"]), _bytes(features["data"])
    except KeyError as e:
        raise Rejected("unreadable", f"no feature {e} in the record; images have shape and data") from e
    except ValueError as e:
        raise Rejected("unreadable", f"no protobuf Example: {e}") from e
    if len(shape) != 3 or shape[0] != 3 or math.prod(shape) != len(data):
        raise Rejected("unreadable", f"shape {shape} and {len(data)} bytes; expected [3, H, W] and 3*H*W bytes")
    return np.ascontiguousarray(np.frombuffer(data, np.uint8).reshape(shape).transpose(1, 2, 0))


def side(path: Path) -> int:
    """Pixels a side of a file's images, from the first record that can be read: names lie."""
    reasons = []
    for at, whole in offsets(path):
        try:
            if whole:
                return read_image(path, at).shape[0]
            reasons.append("it is cut")
        except Rejected as e:
            reasons.append(e.detail)
        if len(reasons) == 10:
            break
    why = f"the first: {reasons[0]}" if reasons else "it is empty"
    raise UserError(f"{path}: no image can be read from it ({why}); download it again, or give the PNGs")


def level(paths: Sequence[Path], size_px: int) -> Path:
    """The file with images of `size_px`; UserError says which there are and which is needed."""
    levels: dict[int, Path] = {}
    for path in paths:
        px = side(path)
        if px in levels:
            raise UserError(f"PATH: {levels[px].name} and {path.name} both hold {px} px; give one of them")
        levels[px] = path
    if size_px in levels:
        return levels[size_px]
    seen = ", ".join(f"{path.name} {px} px" for px, path in sorted(levels.items()))
    power = size_px.bit_length() - 1
    needed = re.sub(r"r\d\d(?=\.)", f"r{power:02d}", paths[0].name)
    give = f"give {needed} ({size_px} px)" if size_px == 1 << power else "levels are powers of two"
    raise UserError(
        f"size={size_px}: TFRecord of the wrong level, and TFRecords are not resized ({seen}); {give}, use "
        f"--size {max(levels)}, or give the PNGs, which are resized"
    )


def masked_crc(data: bytes) -> int:
    """CRC-32C, rotated and shifted so that a checksum over data with checksums in it stays one."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _length(head: bytes) -> int | None:
    """The length in a record's first 12 bytes, None where its checksum is wrong."""
    if len(head) < HEAD:
        return None
    length, crc = struct.unpack("<QI", head)
    return length if masked_crc(head[:8]) == crc else None


def _read_record(path: Path, at: int) -> bytes:
    try:
        with path.open("rb", buffering=0) as f:
            length = _length(os.pread(f.fileno(), HEAD, at))
            if length is None or length > LARGEST:
                raise Rejected("unreadable", f"no record at byte {at}; changed since it was listed?")
            data = os.pread(f.fileno(), length, at + HEAD)
            crc = os.pread(f.fileno(), 4, at + HEAD + length)
    except FileNotFoundError as e:
        raise Rejected("missing", str(path.name)) from e
    except OSError as e:
        raise Rejected("unreadable", e.strerror or str(e)) from e
    if len(data) + len(crc) < length + 4:
        raise Rejected("truncated", f"{len(data)} of {length} bytes")
    if struct.pack("<I", masked_crc(data)) != crc:
        raise Rejected("unreadable", f"wrong CRC-32C of the record at byte {at}")
    return data


def _features(example: bytes) -> dict[str, tuple[int, Any]]:
    """Feature name -> (number of the list's kind: 1 bytes, 2 float, 3 int64; the list as a message)."""
    out: dict[str, tuple[int, Any]] = {}
    for features in _all(memoryview(example), 1):
        for item in _all(features, 1):
            name = b"".join(_all(item, 1)).decode()  # UnicodeDecodeError is a ValueError
            for feature in _all(item, 2):
                for number, wire, value in _fields(feature):
                    if wire == BYTES:
                        out[name] = (number, value)
    return out


def _bytes(feature: tuple[int, Any]) -> memoryview:
    number, message = feature
    values = list(_all(message, 1)) if number == 1 else []
    if len(values) != 1:
        raise ValueError("data is not one string of bytes")
    return values[0]


def _integers(feature: tuple[int, Any]) -> list[int]:
    """Packed or one by one: writers differ, and readers must take both."""
    number, message = feature
    if number != 3:
        raise ValueError("shape is no list of int64")
    out: list[int] = []
    for field, wire, value in _fields(message):
        if field == 1 and wire == VARINT:
            out.append(value)
        elif field == 1 and wire == BYTES:
            at = 0
            while at < len(value):
                one, at = _varint(value, at)
                out.append(one)
    return out


def _all(message: memoryview, number: int) -> Iterator[memoryview]:
    """The submessages or strings with that field number."""
    return (value for n, wire, value in _fields(message) if (n, wire) == (number, BYTES))


def _fields(message: memoryview) -> Iterator[tuple[int, int, Any]]:
    """(field number, wire type, value) in the order of the bytes; ValueError where they are no message."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        wire = tag & 7
        if wire == VARINT:
            value, at = _varint(message, at)
        else:
            if wire == BYTES:
                length, at = _varint(message, at)
            elif wire in (FIXED64, FIXED32):
                length = 8 if wire == FIXED64 else 4
            else:
                raise ValueError(f"wire type {wire}")
            if at + length > len(message):
                raise ValueError("a field ends after its message")
            value, at = message[at : at + length], at + length
        yield tag >> 3, wire, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    out = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        out, at = out | (byte & 127) << shift, at + 1
        if byte < 128:
            return out, at
    raise ValueError("a number without an end")
