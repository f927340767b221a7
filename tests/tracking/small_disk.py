"""A real small disk: a tmpfs of some hundred kB, which only root may mount. Without root its tests are skipped."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class SmallDisk:
    def __init__(self, path: Path, size_kb: int):
        self.path = path
        path.mkdir()
        self._call("mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs", str(path))

    def fill(self, but_bytes: int = 0) -> None:
        """Leave this much room, rounded down to whole blocks."""
        with (self.path / "filler").open("ab", buffering=0) as f:
            while (free := self._free() - but_bytes) > 0:
                try:
                    f.write(bytes(free))
                except OSError:
                    break

    def make_room(self) -> None:
        (self.path / "filler").unlink()

    def read_only(self, on: bool) -> None:
        self._call("mount", "-o", "remount,ro" if on else "remount,rw", str(self.path))

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)

    def _free(self) -> int:
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def _call(self, *command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"mounting is not permitted here ({done.stderr.strip()})")


@contextmanager
def small_disk(path: Path, size_kb: int) -> Iterator[SmallDisk]:
    try:
        disk = SmallDisk(path, size_kb)
    except FileNotFoundError:
        pytest.skip("no mount command here")
    try:
        yield disk
    finally:
        disk.unmount()
