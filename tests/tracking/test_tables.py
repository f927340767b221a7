"""A table's runs lie together in MLflow, with few params and named metrics, however often it is published."""

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.tracking.client import connect, experiment_id, tracking_uri
from pipeline.tracking.tables import metric_name, publish_table
from pipeline.tracking.upload import cursor_of
from tests.tracking.records import make_run, write

# MLflow's own tables use a loader strategy that SQLAlchemy 2.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

FID = "FID 512 px (25 M)"


def run_of(folder: Path):
    cursor = cursor_of(folder)
    assert cursor is not None
    return connect(tracking_uri(folder.parent)).get_run(cursor.run_id)


def all_runs(runs: Path):
    client = connect(tracking_uri(runs))
    return client.search_runs([experiment_id(client, runs)])


def test_a_table_is_one_parent_whose_children_are_its_rows_however_often_it_is_published(runs, tmp_path):
    a, b = make_run(runs / "mspie-a"), make_run(runs / "mspie-b")
    write(a, [1000])
    out = tmp_path / "report"
    out.mkdir()
    (out / "report.md").write_text("| row | FID |\n" + "| x | 1 |\n" * 2000)
    (out / "report.html").write_text("<p>")
    (out / "plot-x.png").write_bytes(b"png")
    rows = {a: {"padding": "none", "seed": 0}, b: {"padding": "zero", "seed": 0}}
    words = (runs, "mspie.table5", "small", rows)
    parent = publish_table(*words, {a: {FID: 7.5, "P, %": 40.0}}, title="MS-PIE", report=out)
    before = run_of(a)
    assert publish_table(*words, {a: {FID: 7.5, "P, %": 40.0}}, title="MS-PIE", report=out) == parent
    assert (run_of(a).data.metrics, len(all_runs(runs))) == (before.data.metrics, 3)
    client = connect(tracking_uri(runs))
    assert len(client.get_metric_history(before.info.run_id, metric_name(FID))) == 1
    publish_table(*words, {a: {FID: 7.5}, b: {FID: float("nan")}}, title="MS-PIE", report=out)
    publish_table(*words, {a: {FID: 7.25}, b: {FID: float("nan")}}, title="MS-PIE", report=out)
    assert run_of(a).data.metrics["Cell/FID 512 px - 25 M"] == 7.25
    assert run_of(a).data.metrics["Cell/P percent"] == 40.0
    assert run_of(a).data.metrics["Loss/G/adv"] == 1000.0
    assert len(client.get_metric_history(run_of(b).info.run_id, metric_name(FID))) == 1
    for folder, padding in ((a, "none"), (b, "zero")):
        data = run_of(folder).data
        assert data.tags["mlflow.parentRunId"] == parent
        assert (data.params["Row.1 padding"], data.params["Row.2 seed"]) == (padding, "0")
    above = client.get_run(parent)
    assert above.info.status == "FINISHED"
    assert above.data.tags["mlflow.note.content"].startswith("**mspie.table5, small form**: MS-PIE\n\n| row | FID |")
    assert above.data.tags["mlflow.note.content"].endswith("(cut; whole in the artifact report.md)")
    assert {f.path for f in client.list_artifacts(parent)} == {"report.md", "report.html", "plot-x.png"}
    where = f"tags.`mlflow.parentRunId` = '{parent}' AND metrics.`Cell/FID 512 px - 25 M` < 8"
    assert [r.info.run_name for r in client.search_runs([above.info.experiment_id], where)] == ["mspie-a"]


def test_a_run_of_several_tables_stays_below_the_first_and_has_the_cells_of_all(runs):
    a = make_run(runs / "mspie-a")
    first = publish_table(runs, "mspie.table5", "small", {a: {"padding": "none"}}, {a: {FID: 7.5}})
    other = publish_table(runs, "mspie.table6", "small", {a: {"padding": "all", "z": 1}}, {a: {"P": 0.5}})
    full = publish_table(runs, "mspie.table6", "full", {}, {})
    assert len({first, other, full}) == 3
    data = run_of(a).data
    assert data.tags["mlflow.parentRunId"] == first
    assert {k: v for k, v in data.params.items() if k.startswith("Row.")} == {"Row.1 padding": "none"}
    assert (data.metrics["Cell/FID 512 px - 25 M"], data.metrics["Cell/P"]) == (7.5, 0.5)


def test_without_the_store_it_is_an_error_in_one_line(runs, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with pytest.raises(UserError, match=r"MLFLOW_TRACKING_URI='http://127\.0\.0\.1:1' fails"):
        publish_table(runs, "mspie.table5", "small", {}, {})
