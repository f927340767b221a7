"""The file of an LMDB (data.mdb), read without liblmdb: where it is cut or damaged it is Rejected, never a signal.

Two meta pages, then a B+tree of branch, leaf and overflow pages: format 1 as 64-bit little-endian machines write
it, one database without a name, one value a key. Every number found in the file is checked before it is used;
nothing is mapped, locked or written, so a file may lie on read-only or network disks, be open twice, or start in
the middle of another one (a stored member of a zip). Knows no data set and no picture.
"""

import functools
import os
import stat
import struct
import weakref
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from dataprep.rejected import Rejected

MAGIC, FORMAT, HEADER = 0xBEEFC0DE, 1, 16
META = struct.Struct("<QHHI IIQQ IHHQQQQQ IHHQQQQQ QQ")  # page header, then MDB_meta with its two MDB_db
PAGE = struct.Struct("<QHHHH")  # own number, unused, kind, end of the node offsets, start of the nodes
OVERFLOW = struct.Struct("<QHHI")  # own number, unused, kind, how many pages belong together
NODE = struct.Struct("<HHHH")  # low and high half of the value's length (leaf) or of the child (branch), flags, key
NUMBER = struct.Struct("<Q")
BRANCH_PAGE, LEAF_PAGE, OVERFLOW_PAGE, META_PAGE, KINDS = 1, 2, 4, 8, 0x6F
FAR, NAMED_DATABASE, MANY_VALUES = 1, 2, 4  # flags of a leaf node; FAR: the value has pages of its own
DEEPEST = 32  # liblmdb's own limit
PAGE_SIZES = tuple(2**n for n in range(8, 16))
PAGES_KEPT = 64  # parsed pages a reader keeps: keys are asked for in their order


class Node(NamedTuple):
    """One key of a leaf page."""

    key: bytes
    length: int  # bytes of the value
    page: int  # where the value lies, 0: in `near`
    near: bytes


def refuse_head(head: bytes) -> None:
    """Rejected unless these first bytes, 24 or more, begin an LMDB that is read here."""
    if not head:
        raise Rejected("truncated", "is an empty file (an interrupted download?); copy it again")
    if len(head) < 24:
        raise Rejected("truncated", f"is no LMDB, or cut after {len(head)} bytes; copy it again")
    if not any(head):
        raise Rejected("unreadable", "begins with nothing but zeros (an interrupted download?); copy it again")
    if head[12:16] == MAGIC.to_bytes(4, "little") or head[12:20].find(MAGIC.to_bytes(4, "big")) >= 0:
        raise Rejected("unreadable", "is an LMDB of a 32-bit or big-endian machine; copy it with mdb_dump and mdb_load")
    if head[16:20] != MAGIC.to_bytes(4, "little"):
        raise Rejected("not an image", "is not the file of an LMDB")
    if head[20:24] != FORMAT.to_bytes(4, "little"):
        raise Rejected(
            "unreadable", f"is an LMDB of format {int.from_bytes(head[20:24], 'little')}; only format 1 is read"
        )


def _damaged(what: str) -> Rejected:
    return Rejected("unreadable", f"is damaged ({what}); copy it again")


class Mdb:
    """`count` pairs of key and value, in the order of their keys. Rejected where the file is not an intact LMDB."""

    def __init__(self, path: str | Path, start: int = 0, size: int | None = None):
        """The LMDB in `size` bytes of the file from byte `start` on. OSError where it cannot be opened."""
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO must not be waited for
        weakref.finalize(self, os.close, fd)
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise Rejected("unreadable", "is not a regular file")
        self._fd, self._start = fd, start
        self._size = max(found.st_size - start, 0) if size is None else min(size, found.st_size - start)
        self._leaf = functools.lru_cache(PAGES_KEPT)(self._parse_leaf)
        self._branch = functools.lru_cache(PAGES_KEPT)(self._parse_branch)
        self._read_meta()

    def _read_meta(self) -> None:
        refuse_head(self._bytes(0, min(self._size, META.size)))
        metas, at, self._page_size = [], 0, 0
        for number in (0, 1):
            own, _, kind, _, magic, version, *rest = META.unpack(self._bytes(at, META.size))
            at = rest[2]  # the page size is kept where the free list's has a key size
            if (own, kind & KINDS, magic, version) != (number, META_PAGE, MAGIC, FORMAT):
                raise _damaged(f"meta page {number} is none")
            if at not in PAGE_SIZES or (number and at != self._page_size):
                raise _damaged(f"pages of {at} bytes")
            self._page_size = at
            metas.append(rest)
        newest = max(metas, key=itemgetter(-1))  # max takes the first of equals, as liblmdb does
        _, flags, self._depth, _, _, _, self.count, self._root, self._last, _ = newest[10:]
        if flags:
            raise Rejected("unreadable", f"has several values a key or an order of its own (flags {flags:#x})")
        if self._depth > DEEPEST or bool(self.count) != bool(self._depth):
            raise _damaged(f"{self.count} entries in a tree of depth {self._depth}")

    def lengths(self) -> Iterator[tuple[bytes, int]]:
        """Key and bytes of the value of every entry; at the end it is certain that all values lie in the file."""
        waiting = [(self._root, 1)] if self.count else []
        last, seen = b"", 0
        while waiting:
            number, level = waiting.pop()
            if level < self._depth:
                waiting += [(child, level + 1) for child in reversed(self._branch(number)[1])]
                continue
            for key, length, _, _ in self._leaf(number):
                if key <= last:  # also ends every walk in circles
                    raise _damaged(f"the keys of page {number} are out of order")
                yield key, length
                last = key
                seen += 1
        if seen != self.count:
            raise _damaged(f"{seen} entries found, its header says {self.count}")

    def get(self, key: bytes) -> bytes:
        """The value of a key; Rejected "missing", "truncated" or "unreadable"."""
        number = self._root
        for _ in range(self._depth - 1):
            keys, children = self._branch(number)
            number = children[bisect_right(keys, key, 1) - 1]
        nodes = self._leaf(number) if self.count else ()
        at = bisect_left(nodes, key, key=itemgetter(0))
        if at == len(nodes) or nodes[at].key != key:
            raise Rejected("missing", "no such key in the LMDB")
        node = nodes[at]
        if not node.page:
            return node.near
        both = self._bytes(node.page * self._page_size, HEADER + node.length)
        own, _, kind, pages = OVERFLOW.unpack_from(both)
        if own != node.page or kind & KINDS != OVERFLOW_PAGE or pages * self._page_size < len(both):
            raise _damaged(f"page {node.page}")
        return both[HEADER:]

    def _parse_branch(self, number: int) -> tuple[list[bytes], list[int]]:
        """The first key below each child (that of the first child means nothing), and the children."""
        page, offsets = self._node_page(number, BRANCH_PAGE)
        keys, children = [], []
        for at in offsets:
            low, middle, high, key_length = NODE.unpack_from(page, at)
            keys.append(page[at + NODE.size : at + NODE.size + key_length])
            children.append(low | middle << 16 | high << 32)
        return keys, children

    def _parse_leaf(self, number: int) -> list[Node]:
        page, offsets = self._node_page(number, LEAF_PAGE)
        out = []
        for at in offsets:
            low, high, flags, key_length = NODE.unpack_from(page, at)
            at += NODE.size
            value, length = at + key_length, low | high << 16
            if flags & (NAMED_DATABASE | MANY_VALUES):
                raise Rejected("unreadable", "holds databases with names, or several values a key")
            if flags & ~FAR or value + (NUMBER.size if flags else length) > len(page):
                raise _damaged(f"page {number}")
            if flags:
                (far,) = NUMBER.unpack_from(page, value)
                self._must_hold(far, HEADER + length)
                out.append(Node(page[at:value], length, far, b""))
            else:
                out.append(Node(page[at:value], length, 0, page[value : value + length]))
        return out

    def _node_page(self, number: int, kind: int) -> tuple[bytes, tuple[int, ...]]:
        """A branch or leaf page, and where its nodes begin in it; at least one."""
        self._must_hold(number, self._page_size)
        page = self._bytes(number * self._page_size, self._page_size)
        own, _, seen, lower, upper = PAGE.unpack_from(page)
        if own != number or seen & KINDS != kind or lower % 2 or not HEADER < lower <= upper <= len(page):
            raise _damaged(f"page {number}")
        offsets = struct.unpack_from(f"<{(lower - HEADER) // 2}H", page, HEADER)
        if min(offsets) < upper or max(offsets) > len(page) - NODE.size:
            raise _damaged(f"page {number}")
        return page, offsets

    def _must_hold(self, number: int, length: int) -> None:
        """`length` bytes from page `number` on lie in the file. An intact one may end before its last, free pages."""
        if not 2 <= number <= self._last:
            raise _damaged(f"page {number} of 2..{self._last}")
        if number * self._page_size + length > self._size:
            whole = (self._last + 1) * self._page_size
            raise Rejected("truncated", f"is cut: {self._size} bytes are there, it had up to {whole}; copy it again")

    def _bytes(self, at: int, length: int) -> bytes:
        out, wanted = b"", min(length, self._size - at)
        try:
            while len(out) < wanted and (more := os.pread(self._fd, wanted - len(out), self._start + at + len(out))):
                out += more
        except OSError as e:
            raise Rejected("unreadable", f"cannot be read at byte {at}: {e.strerror}") from e
        if len(out) < length:  # also where it was cut since it was opened; a memory map would end the process
            raise Rejected("truncated", f"is cut: bytes {at}..{at + length} are not all there; copy it again")
        return out
