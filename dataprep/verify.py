"""Every byte of a prepared folder against its manifest and index: which file is wrong, how, and what to do.

Shards are hashed by several threads, as hashing lets go of the interpreter; images are decoded only where a hash
is wrong, to name the sample. Takes any garbage for input and changes nothing. Knows nothing of sources.
"""

import hashlib
import io
import json
import os
import tarfile
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from dataprep.transform import ENCODINGS
from dataprep.writer import REJECTED
from pipeline.data.manifest import INDEX, MANIFEST, RECORD, Manifest, Shard, load_manifest
from pipeline.errors import UserError

MEND = "copy it again or prepare anew"
NPY_HEADER = 128  # bytes in front of the pixels of encoding "raw"
CHUNK = 1 << 20
JSON_LIMIT = 1 << 24  # bytes; a sample's .json is some kB
END = 2 * tarfile.BLOCKSIZE  # zeros after the last member
POLL_SEC = 0.25


class Damaged(Exception):  # noqa: N818 - an outcome, not a fault of the program
    """The tar is not as the writer makes them; says where and how."""


@dataclass(frozen=True)
class Sample:
    """One image and its label, as they lie in a tar."""

    key: str
    offset: int  # of the image bytes (of the pixels where the encoding is raw)
    length: int
    label: int


@dataclass(frozen=True)
class Look:
    """What one pass over a shard has shown."""

    bytes: int  # on disk, -1: not there
    sha256: str = ""
    problem: str = ""
    wrong_row: str = ""  # the first row of the index that does not fit a sound shard


def verify(root: Path, workers: int = 4, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """What is wrong with the folder, one line each; an empty list is a sound set.

    `progress` is told bytes read and bytes in all. UserError if there is no prepared set at all.
    """
    try:
        manifest, problems = load_manifest(root), []
    except UserError:
        if not (root / MANIFEST).is_file():
            raise
        try:
            manifest = Manifest.from_json((root / MANIFEST).read_text(errors="replace"), where=MANIFEST)
        except UserError as damaged:
            return [str(damaged)]
        problems = _manifest_problems(manifest)
    index, index_problem = _index(root, manifest)
    looks = _look_at_all(root, manifest, index, workers, progress or (lambda done, total: None))
    wrong_row = next((look.wrong_row for look in looks if look.wrong_row), "")
    if index_problem or wrong_row:
        problems.append(f"{INDEX}: " + "; ".join(filter(None, [index_problem, wrong_row, MEND])))
    firsts = np.cumsum([0, *(s.count for s in manifest.shards)])
    trusted = None if index_problem else index
    for shard, look, first in zip(manifest.shards, looks, firsts, strict=False):
        if problem := look.problem or _damage(root, manifest, shard, look, _rows(trusted, first, shard)):
            problems.append(f"{shard.name}: {problem}")
    return problems + _foreign(root, manifest) + _rejected(root, manifest)


def _manifest_problems(m: Manifest) -> list[str]:
    out = []
    if m.identity() != m.dataset_id:
        out.append(f"{MANIFEST}: dataset_id={m.dataset_id!r} does not match its content (edited?); {MEND}")
    if m.count != sum(s.count for s in m.shards) or m.count_in != m.count + sum(m.rejected.values()):
        out.append(f"{MANIFEST}: counts do not add up (in {m.count_in}, out {m.count}); {MEND}")
    return out


def _index(root: Path, manifest: Manifest) -> tuple[np.ndarray | None, str]:
    """The index where it can be read as one, and what is wrong with it."""
    file, wanted = root / INDEX, sum(s.count for s in manifest.shards) * RECORD.itemsize
    if not file.is_file():
        return None, "is missing, so the set is not finished: run the same `graticule prep` again"
    size = file.stat().st_size
    if size != wanted:
        how = "cut" if size < wanted else "stale or another set's"
        return None, f"has {size} bytes, the manifest wants {wanted} ({how})"
    data = file.read_bytes()  # not mapped: a file that shrinks meanwhile would kill the process
    index = np.frombuffer(data[:wanted], RECORD)
    if hashlib.sha256(data).hexdigest() != manifest.index_sha256:
        return index, f"is not the index that {MANIFEST} names (stale, damaged or another set's)"
    labels = index["label"]
    if len(index) and not -1 <= labels.min() <= labels.max() < max(len(manifest.classes), 1):
        return index, f"holds labels {labels.min()} to {labels.max()} for {len(manifest.classes)} classes"
    return index, ""


def _rows(index: np.ndarray | None, first: int, shard: Shard) -> np.ndarray | None:
    return None if index is None else index[first : first + shard.count]


def _look_at_all(
    root: Path, manifest: Manifest, index: np.ndarray | None, workers: int, progress: Callable[[int, int], None]
) -> list[Look]:
    read, stop, first = [0] * len(manifest.shards), threading.Event(), 0
    total = sum(size for s in manifest.shards if (size := _size(root / s.name)) > 0)
    pool = ThreadPoolExecutor(max(workers, 1))
    try:
        futures = []
        for i, shard in enumerate(manifest.shards):

            def count(n: int, i: int = i) -> bool:
                read[i] += n
                return not stop.is_set()

            rows = _rows(index, first, shard)
            futures.append(pool.submit(_look, root / shard.name, shard, rows, manifest.encoding, count))
            first += shard.count
        waiting = set(futures)
        while waiting:
            waiting = wait(waiting, timeout=POLL_SEC).not_done
            progress(sum(read), total)
        return [f.result() for f in futures]
    finally:
        stop.set()  # Ctrl-C: the threads give up at their next chunk
        pool.shutdown(cancel_futures=True)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size if file.is_file() else -1
    except OSError:
        return -1


def _look(file: Path, shard: Shard, rows: np.ndarray | None, encoding: str, count: Callable[[int], bool]) -> Look:
    size = _size(file)
    if size < 0:
        return Look(-1, problem=f"is missing; {MEND}")
    try:
        sha256 = _sha256(file, count)
        if (size, sha256) != (shard.bytes, shard.sha256):
            return Look(size, sha256)
        with open(file, "rb", buffering=0) as f:
            return Look(size, sha256, *_fits(list(samples(f.fileno(), size, encoding)), shard, rows))
    except Damaged as e:
        return Look(size, sha256, problem=f"is as {MANIFEST} says, but no shard: {e}; prepare anew")
    except OSError as e:
        return Look(size, problem=f"cannot be read ({e.strerror or e}); {MEND}")


def _sha256(file: Path, count: Callable[[int], bool]) -> str:
    digest, chunk = hashlib.sha256(), memoryview(bytearray(CHUNK))
    with open(file, "rb", buffering=0) as f:
        while (n := f.readinto(chunk)) and count(n):
            digest.update(chunk[:n])
    return digest.hexdigest()


def _fits(found: list[Sample], shard: Shard, rows: np.ndarray | None) -> tuple[str, str]:
    """The shard holds the bytes that were written: does it hold what manifest and index say?"""
    if len(found) != shard.count:
        return f"holds {len(found)} images, {MANIFEST} says {shard.count}; prepare anew", ""
    for i, (sample, row) in enumerate(zip(found, [] if rows is None else rows, strict=False)):
        if (sample.offset, sample.length, sample.label) != row.item():
            return "", f"row {i} of {shard.name} is {row.item()}, sample {sample.key} is not there"
    return "", ""


def samples(fd: int, size: int, encoding: str) -> Iterator[Sample]:
    """The samples of a tar as the writer makes them; raises Damaged at the first thing that it does not make."""
    extension = ENCODINGS[encoding].extension
    members = _members(fd, size)
    for name, offset, length in members:
        key, _, kind = name.partition(".")
        if kind != extension:
            raise Damaged(f"{name!r} at byte {offset} where an image (.{extension}) belongs")
        about, about_at, about_bytes = next(members, ("", 0, 0))
        if about != f"{key}.json":
            raise Damaged(f"sample {key} has no .json behind it")
        label = _label(os.pread(fd, min(about_bytes, JSON_LIMIT), about_at), key)
        skip = NPY_HEADER if encoding == "raw" else 0
        yield Sample(key, offset + skip, length - skip, label)


def _label(data: bytes, key: str) -> int:
    try:
        label = json.loads(data)["label"]
    except (ValueError, TypeError, KeyError, RecursionError):
        label = None
    if type(label) is not int:
        raise Damaged(f"the .json of sample {key} cannot be read")
    return label


def _members(fd: int, size: int) -> Iterator[tuple[str, int, int]]:
    """Name, offset and bytes of each member. Plain files only, so no header can name a place to jump to."""
    at, behind = 0, "at the first header"
    while True:
        header = os.pread(fd, tarfile.BLOCKSIZE, at)
        if at + END > size or len(header) < tarfile.BLOCKSIZE:
            raise Damaged(f"the tar ends {behind}")
        if not any(header):
            break
        try:
            name, length = _plain_file(header)
        except ValueError as e:
            raise Damaged(f"no tar header {behind} (byte {at})") from e
        at += tarfile.BLOCKSIZE
        if at + length > size:
            raise Damaged(f"the tar ends in {name!r}")
        yield name, at, length
        at += -(-length // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        behind = f"behind {name!r}"
    while rest := os.pread(fd, CHUNK, at):
        if any(rest):
            raise Damaged(f"zeros {behind} where a header belongs")
        at += len(rest)


def _plain_file(header: bytes) -> tuple[str, int]:
    """Name and bytes of a member from its ustar header; much faster than tarfile, ValueError for all else."""
    name, length, checksum = header[:100].rstrip(b"\0"), header[124:135], header[148:154]
    if not (length.isdigit() and checksum.isdigit() and header[156:157] == tarfile.REGTYPE):
        raise ValueError
    if int(checksum, 8) != sum(header[:148]) + sum(header[156:]) + 8 * ord(" "):
        raise ValueError
    return name.decode("ascii"), int(length, 8)


def _damage(root: Path, manifest: Manifest, shard: Shard, look: Look, rows: np.ndarray | None) -> str:
    """Why the bytes of a shard are not those that were written, as well as they can tell; empty: they are."""
    if (look.bytes, look.sha256) == (shard.bytes, shard.sha256):
        return ""
    if own := next((s.name for s in manifest.shards if s.sha256 == look.sha256), None):
        return f"holds the bytes of {own} (renamed or swapped?); rename them back"
    try:
        with open(root / shard.name, "rb", buffering=0) as f:
            found = _first_damage(f.fileno(), look.bytes, manifest, rows)
    except OSError as e:
        return f"cannot be read ({e.strerror or e}); {MEND}"
    if found.startswith("foreign"):
        return f"{found}; {MEND}"
    if look.bytes < shard.bytes:
        return f"ends after {look.bytes} of {shard.bytes} bytes (cut){found and ': ' + found}; {MEND}"
    if look.bytes > shard.bytes:
        return f"has {look.bytes} bytes, {shard.bytes} were written{found and ': ' + found}; {MEND}"
    return f"damaged: {found or 'its sha256 is wrong, though every image still decodes'}; {MEND}"


def _first_damage(fd: int, size: int, manifest: Manifest, rows: np.ndarray | None) -> str:
    """`rows`: those of a trusted index, or None."""
    n = 0
    try:
        for sample in samples(fd, size, manifest.encoding):
            row = rows[n].item() if rows is not None and n < len(rows) else None
            if rows is not None and (row is None or row[:2] != (sample.offset, sample.length)):
                return f"foreign, a shard of another set (sample {sample.key} is not where {INDEX} has it)"
            if row is not None and row[2] != sample.label:
                return f"sample {sample.key} has label {sample.label}, {INDEX} says {row[2]}"
            decoded(os.pread(fd, sample.length, sample.offset), manifest)
            n += 1
    except Damaged as e:
        return str(e)
    except ValueError as e:
        return f"sample {sample.key} cannot be decoded ({e})"
    if rows is not None and n < len(rows):
        return f"foreign, a shard of another set ({n} images, not {len(rows)})"
    return ""


def decoded(data: bytes, manifest: Manifest) -> Image.Image:
    """A stored image; ValueError in a few words where its bytes are damaged or of another size."""
    side, high = manifest.size_px, manifest.planes * manifest.size_px
    if manifest.encoding == "raw":
        if len(data) != side * high * 3:
            raise ValueError(f"{len(data)} bytes are not {side}x{high} px")
        return Image.fromarray(np.frombuffer(data, np.uint8).reshape(high, side, 3))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
                width, height = image.size
                rgb = image.convert("RGB") if (width, height) == (side, high) else None
    except UnidentifiedImageError:
        raise ValueError("no image") from None
    except Exception as e:  # on damaged bytes Pillow raises anything from struct.error to SyntaxError
        raise ValueError(" ".join(f"{type(e).__name__}: {e}".split())[:100]) from e
    if rgb is None:
        raise ValueError(f"{width}x{height} px, not {side}x{high}")
    return rgb


def _foreign(root: Path, manifest: Manifest) -> list[str]:
    """Tars that a glob over the folder would read along."""
    known, out = {s.name for s in manifest.shards}, []
    for file in sorted(root.glob("*.tar"), key=os.fsencode):
        if file.name in known:
            continue
        name, twin = ascii(file.name)[1:-1], None
        if any(s.bytes == _size(file) for s in manifest.shards):
            sha256 = _sha256(file, lambda n: True)
            twin = next((s.name for s in manifest.shards if s.sha256 == sha256), None)
        what = f"holds the bytes of {twin}; rename it back or remove it" if twin else "remove it"
        out.append(f"{name}: not in {MANIFEST} (foreign): {what}")
    return out


def _rejected(root: Path, manifest: Manifest) -> list[str]:
    """The list of what was left out is no part of any hash, but it must name as many as were counted."""
    wanted, named = Counter({k: n for k, n in manifest.rejected.items() if n}), Counter()
    try:
        for line in (root / REJECTED).read_bytes().splitlines() if wanted else ():
            named[json.loads(line)["reason"]] += 1
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return [f"{REJECTED}: missing or damaged, {MANIFEST} counts {wanted.total()} rejected; {MEND}"]
    if named != wanted:
        return [f"{REJECTED}: names {named.total()} images, {MANIFEST} counts {wanted.total()} rejected; {MEND}"]
    return []
