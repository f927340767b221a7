"""The table of sources: name on the command line -> constructor taking PATH, or None."""

from collections.abc import Callable
from pathlib import Path

from dataprep.sources.entry import Entry, Source
from dataprep.sources.folder import Folder
from dataprep.sources.photos import Photos
from pipeline.config import nearest
from pipeline.errors import UserError

SOURCES: dict[str, Callable[[Path | None], Source]] = {
    "folder": Folder,
    "photos": Photos,
}

__all__ = ["SOURCES", "Entry", "Source", "open_source"]


def open_source(name: str, path: Path | None = None) -> Source:
    """The source of that name; a UserError offers the nearest name."""
    if name not in SOURCES:
        raise UserError(f"source={name!r} is unknown; {nearest(name, SOURCES)}")
    return SOURCES[name](path)
