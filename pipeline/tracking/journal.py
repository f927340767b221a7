"""An append-only file of a run that takes records when the disk does not: full, read-only, gone for a while.

What the disk refuses waits in memory, at most MAX_OWED records, and is written first and in order once it can
be. Nothing is written twice: what an interrupted write left behind is looked up before it is repeated.
Deliberately knows nothing of what the records say.
"""

import sys
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.tracking import jsonl

MAX_OWED = 10_000  # records in memory; a record of metrics has 1 to 2 kB. Beyond that the oldest are dropped
MAX_WRITE = 1 << 20  # bytes in a single write


class Journal:
    """Safe to use from several threads; of one file there should be one journal in a process."""

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        self._owed: deque[bytes] = deque()  # whole lines
        self._dropped = 0
        self._doubt: int | None = None  # the file's size before a write that failed: what is behind it is uncertain
        self._refused = False

    def append(self, record: Mapping[str, Any]) -> None:
        """To the disk, fsynced, or, when it refuses, to memory. Raises only what a bad record raises."""
        line = jsonl.encode(record)
        with self._lock:
            self._owed.append(line)
            self._try()

    def close(self) -> int:
        """Try once more; the number of records that are lost."""
        with self._lock:
            if self._owed or self._doubt is not None:
                self._try()
            self._dropped += len(self._owed)
            self._owed.clear()
            if self._dropped:
                self._say(f"{self._dropped} records are lost: there was no room for them")
            return self._dropped

    def _try(self) -> None:
        try:
            self._settle()
            while self._owed:
                self._write_some()
        except OSError as e:
            if not self._refused:
                self._say(f"{e.strerror or e}; keeping lines in memory, training goes on")
            self._refused = True
            while len(self._owed) > MAX_OWED:
                self._owed.popleft()
                self._dropped += 1
            return
        if self._refused:
            gone = f"; {self._dropped} records are lost" if self._dropped else ""
            self._say(f"lines are written again{gone}")
        self._refused = False

    def _settle(self) -> None:
        """Forget the lines that a failed write did bring to the disk, and close off the one that it tore."""
        if self._doubt is None:
            return
        there = set()
        if self.path.exists():
            with self.path.open("rb") as f:
                f.seek(self._doubt)
                there = set(f.read().split(b"\n"))
            jsonl.write(self.path, b"")
        self._owed = deque(line for line in self._owed if line[:-1] not in there)
        self._doubt = None

    def _write_some(self) -> None:
        lines, size = [], 0
        for line in self._owed:
            if lines and size + len(line) > MAX_WRITE:
                break
            lines.append(line)
            size += len(line)
        self._doubt = self.path.stat().st_size if self.path.exists() else 0
        jsonl.write(self.path, b"".join(lines))
        self._doubt = None
        for _ in lines:
            self._owed.popleft()

    def _say(self, text: str) -> None:
        print(f"{self.path.name}: {text}", file=sys.stderr, flush=True)
