"""The table of sources: name on the command line -> constructor taking PATH or None, and a split or None."""

from collections.abc import Callable
from pathlib import Path

from dataprep.sources.asl import Asl
from dataprep.sources.celeba import CelebA
from dataprep.sources.densities import Densities
from dataprep.sources.entry import Entries, Entry, Source
from dataprep.sources.ffhq import Ffhq
from dataprep.sources.folder import Folder
from dataprep.sources.glyphs import Glyphs
from dataprep.sources.lsun import Lsun
from dataprep.sources.photos import Photos
from pipeline.config import nearest
from pipeline.errors import UserError

SOURCES: dict[str, Callable[[Path | None, str | None], Source]] = {
    "folder": Folder,
    "ffhq": Ffhq,
    "photos": Photos,
    "lsun": Lsun,
    "asl": Asl,
    "celeba": CelebA,
    "densities": Densities,
    "glyphs": Glyphs,
}

__all__ = ["SOURCES", "Entries", "Entry", "Source", "open_source"]


def open_source(name: str, path: Path | None = None, split: str | None = None) -> Source:
    """The source of that name; a UserError offers the nearest name."""
    if name not in SOURCES:
        raise UserError(f"source={name!r} is unknown; {nearest(name, SOURCES)}")
    return SOURCES[name](path, split)
