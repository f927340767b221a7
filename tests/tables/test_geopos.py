"""The tables of GeoPos are ones that can be trained, compared and told apart, in both forms."""

import pytest

from dataprep.sources import open_source
from pipeline.cost import parameters
from pipeline.plan import check, run_name
from pipeline.tables import TABLES
from pipeline.tables.table import Form, Table


@pytest.mark.parametrize("form", ["small", "full"])
@pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
def test_every_row_is_a_run_that_its_table_can_train_and_compare(table: Table, form: Form):
    rows = table.rows(form)
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        check(row.run, table.exec_of(form))
        for name in (table.axes.x, table.axes.line, table.axes.panel or table.axes.x):
            assert name in row.labels
        for one in filter(None, (row.data, *row.validation)):
            assert open_source(one.source, None, one.split).classes
    for c in table.comparisons:
        sides = [
            [r for r in rows if r.labels[c.column] == side and all(r.labels[k] == v for k, v in c.within.items())]
            for side in (c.variant, c.against)
        ]
        assert len(sides[0]) == len(sides[1]) > 0
        assert table.measure(c.metric)


def test_at_equal_parameters_the_nets_are_of_coordconvs_size_and_share_its_runs():
    rows = {row.name: row for row in TABLES["geopos.com"].rows("small")}
    for place in ("2x8", "2x16", "4x8", "4x16"):
        of = {k: rows[f"{k}-{place}-equal-parameters"].run for k in ("conv", "coord", "geo")}
        count = {k: parameters(run.family)["G"] for k, run in of.items()}
        assert all(abs(n / count["coord"] - 1) < 0.04 for n in count.values()), count
        assert run_name(of["coord"]) == run_name(rows[f"coord-{place}-equal-architecture"].run)
        plain = {k: rows[f"{k}-{place}-equal-architecture"].run for k in of}
        assert count["conv"] > parameters(plain["conv"].family)["G"]
    assert len({run_name(row.run) for row in rows.values()}) == 20
