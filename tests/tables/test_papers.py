"""The tables of the papers are ones that can be trained, measured, compared and told apart, in both forms.

Recipes' docstrings are the second witness of what was published: numbers are written in both places.
"""

import re

import pytest

from dataprep.sources import open_source
from pipeline.errors import UserError
from pipeline.plan import RunConfig, check
from pipeline.recipes import find, recipes
from pipeline.tables import TABLES, given
from pipeline.tables.table import Form, Row, Table

FORMS: tuple[Form, ...] = ("small", "full")
EVERY = pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))


@pytest.mark.parametrize("form", FORMS)
@EVERY
def test_every_row_is_a_run_that_its_table_can_train_and_compare(table: Table, form: Form):
    rows, columns = table.rows(form), table.columns(form)
    assert len({row.name for row in rows}) == len(rows)
    assert len({m.key for m in columns}) == len(columns)
    for row in rows:
        check(row.run, table.exec_of(form))
        for name in (table.axes.x, table.axes.line, table.axes.panel or table.axes.x):
            assert name in row.labels
        for one in filter(None, (row.data, *row.validation)):
            assert open_source(one.source, None, one.split).classes
            assert one.size_px == row.run.data.size_px
        assert set(row.published) <= {m.key for m in columns}
        assert set(row.metrics) <= {m.metric for m in columns}
    for c in table.comparisons:
        if c.metric not in {m.key for m in columns}:
            continue
        sides = [
            [r for r in rows if r.labels[c.column] == side and all(r.labels[k] == v for k, v in c.within.items())]
            for side in (c.variant, c.against)
        ]
        assert len(sides[0]) == len(sides[1]) > 0
        others = [[{k: v for k, v in r.labels.items() if k != c.column} for r in side] for side in sides]
        assert any(one in others[1] for one in others[0]), "no pair of rows differs in this label alone"
