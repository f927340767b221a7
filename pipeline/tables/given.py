"""Which prepared sets the user gives for which rows of a table: `--data DIR`, or `--data NAME=DIR` for each of several.

A row whose set is not given is left out, so that a table can be reproduced without those that nobody can get. Knows
neither what is in a set nor how runs are made.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.config import nearest
from pipeline.errors import UserError
from pipeline.tables.table import Form, Row, Table


def names_of(table: Table, form: Form) -> tuple[str, ...]:
    """The sets that --data tells apart, in the order of the rows; none where one set is that of all."""
    return tuple(dict.fromkeys(row.set for row in table.rows(form) if row.data is None and row.set))


def sets_given(table: Table, form: Form, data: Sequence[str | Path]) -> dict[str, list[Path]]:
    """Name -> folders, of the words of --data; "" for a table whose rows share one. UserError for a name it lacks."""
    names = names_of(table, form)
    if not names:
        return {"": [Path(one) for one in data]} if data else {}
    found: dict[str, list[Path]] = {}
    for text in map(str, data):
        name, equals, folder = text.partition("=")
        how = (
            f"table={table.name!r} has rows of several sets; give --data NAME=DIR for each, NAME of {', '.join(names)}"
        )
        if not equals or not folder:
            raise UserError(f"data={text!r} does not say which set it is: {how}")
        if name not in names:
            raise UserError(f"data={text!r}: {nearest(name, names)}: {how}")
        if name in found:
            raise UserError(f"data={text!r}: {name} is given twice; {how}")
        found[name] = [Path(folder)]
    return found


def folders_of(row: Row, given: Mapping[str, Sequence[Path]]) -> list[Path] | None:
    """The user's folders for this row; None where they were not given and it is left out."""
    return list(given[row.set]) if row.set in given else None
