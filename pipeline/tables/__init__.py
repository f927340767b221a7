"""The tables of the papers: `graticule reproduce TABLE` trains their rows, `graticule report TABLE` prints them.

A table is one Table; TABLES lists all of them by name. Knows nothing of jobs and clusters.
"""

from pipeline.config import nearest
from pipeline.errors import UserError
from pipeline.tables import cips, geopos, mspie
from pipeline.tables.table import Table

TABLES: dict[str, Table] = {table.name: table for table in (*mspie.TABLES, *cips.TABLES, *geopos.TABLES)}


def find(name: str) -> Table:
    """The table of that name; UserError with the nearest name otherwise."""
    if name not in TABLES:
        raise UserError(f"table={name!r} is unknown; {nearest(name, TABLES)}")
    return TABLES[name]
