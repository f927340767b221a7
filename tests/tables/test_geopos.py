"""The sweep of GeoPos' centre of mass at two budgets. What holds of every table: test_papers.py."""

from pipeline.cost import parameters
from pipeline.plan import run_name
from pipeline.tables import TABLES


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
