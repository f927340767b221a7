"""RUNS/tables/<table>.<form>.json: which run folder holds which row with which seed.

Written whole before anything is submitted, so that a report never has to guess. Folders are names below RUNS, which
may be moved as a whole. Knows nothing of what is in a run.
"""

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from pipeline.config import Config, write_atomic
from pipeline.errors import UserError
from pipeline.tables.table import Form, Row, Table

FOLDER = "tables"  # below the folder of the runs


class Entry(Config):
    """One row with one seed."""

    row: str
    seed: int = Field(ge=0)
    folder: str  # below the folder of the runs


class Book(Config):
    """The file."""

    table: str
    form: Form
    runs: tuple[Entry, ...]

    def folder_of(self, row: Row, seed: int) -> str | None:
        """None: this run was never planned."""
        return next((e.folder for e in self.runs if (e.row, e.seed) == (row.name, seed)), None)

    def seeds(self) -> tuple[int, ...]:
        """All that were planned, ascending."""
        return tuple(sorted({e.seed for e in self.runs}))


def place(runs: Path, table: Table, form: Form) -> Path:
    """Where that file is, or will be."""
    return runs / FOLDER / f"{table.name}.{form}.json"


def write(runs: Path, table: Table, form: Form, folders: Mapping[tuple[str, int], Path]) -> Path:
    """(row, seed) -> run folder, added to what an earlier call planned with other seeds."""
    path = place(runs, table, form)
    known = {(e.row, e.seed): e.folder for e in read(runs, table, form).runs} if path.is_file() else {}
    names = {row.name for row in table.rows(form)}
    known = {key: folder for key, folder in known.items() if key[0] in names}  # rows that the table no longer has
    known |= {key: folder.name for key, folder in folders.items()}
    entries = tuple(Entry(row=row, seed=seed, folder=folder) for (row, seed), folder in known.items())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, Book(table=table.name, form=form, runs=entries).to_json())
    except OSError as e:
        raise UserError(
            f"runs={str(runs)!r} cannot be written ({e.strerror}); choose another folder with --runs"
        ) from e
    return path


def read(runs: Path, table: Table, form: Form) -> Book:
    """UserError where `graticule reproduce` has not been there."""
    path = place(runs, table, form)
    if not path.is_file():
        other = place(runs, table, "full" if form == "small" else "small")
        hint = f"; there is {other.name}: give --{'full' if form == 'small' else 'small'}" if other.is_file() else ""
        raise UserError(
            f"table={table.name!r}: {path} is not there{hint or f'; start with graticule reproduce {table.name}'}"
        )
    return Book.from_json(path.read_text(), where=str(path))
