"""Any folder of images, however deep. First-level subfolders are classes if all images lie directly in them.

Hidden files and folders, __MACOSX and links to folders are passed over. Every other file with an image
extension is an entry, whatever its bytes turn out to be: it is taken or rejected by name, never lost. A tree
that mixes depths has no classes (a nested second copy of a data set would double them).
"""

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from PIL import Image

from dataprep.sources.entry import Entry
from dataprep.transform import open_image
from pipeline.errors import UserError

EXTENSIONS = (b".jpg", b".jpeg", b".jpe", b".png", b".webp", b".bmp", b".tif", b".tiff", b".gif")


class Folder:
    """Entries are sorted on the bytes of their relative path, which is also what opens them."""

    name = "folder"

    def __init__(self, path: Path | None):
        if path is None:
            raise UserError("PATH is missing: source 'folder' needs a folder of images")
        if not path.is_dir():
            seen = "is not a folder" if path.exists() else "no such folder"
            raise UserError(f"PATH={str(path)!r}: {seen}; give a folder of images")
        self.path = path

    def __reduce__(self):  # workers need the path alone, not the listing
        return Folder, (self.path,)

    @property
    def classes(self) -> tuple[str, ...]:
        return self._listing[0]

    def entries(self, size_px: int) -> list[Entry]:
        return self._listing[1]

    def read(self, entry: Entry) -> Image.Image:
        return open_image(os.path.join(os.fsencode(self.path), entry.where))

    @cached_property
    def _listing(self) -> tuple[tuple[str, ...], list[Entry]]:
        found = sorted(_images_below(os.fsencode(self.path)))
        if not found:
            allowed = " ".join(e.decode() for e in EXTENSIONS)
            raise UserError(f"PATH={str(self.path)!r}: no images below it; looked for {allowed}")
        folders: dict[bytes, int] = {}
        if all(p.count(b"/") == 1 for p in found):
            folders = {f: i for i, f in enumerate(sorted({p.split(b"/")[0] for p in found}))}
        entries = [Entry(_shown(p), folders.get(p.split(b"/")[0], -1), p) for p in found]
        return tuple(_shown(f) for f in folders), entries


def _shown(path: bytes) -> str:
    """A name that JSON can hold, also of bytes that are no UTF-8."""
    return path.decode("utf-8", "backslashreplace")


def _images_below(root: bytes) -> Iterator[bytes]:
    waiting = [b""]
    while waiting:
        folder = waiting.pop()
        try:
            items = list(os.scandir(os.path.join(root, folder)))
        except OSError as e:
            raise UserError(f"PATH: cannot list {_shown(os.path.join(root, folder))}: {e.strerror}") from e
        for item in items:
            path = os.path.join(folder, item.name)
            if item.name.startswith(b".") or item.name == b"__MACOSX":
                continue
            if item.is_dir(follow_symlinks=False):
                waiting.append(path)
            elif item.name.lower().endswith(EXTENSIONS) and (item.is_file() or _dangles(item)):
                yield path


def _dangles(item: os.DirEntry) -> bool:
    """A link to nothing is an image that somebody expects: an entry, to be rejected by name."""
    return item.is_symlink() and not os.path.exists(item.path)
