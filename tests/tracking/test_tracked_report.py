"""`graticule report TABLE --track`: the table's runs in MLflow with the numbers of the report. Records are by hand."""

import pytest

from pipeline import tables
from pipeline.plan import run_name
from pipeline.tables import book
from pipeline.tracking import jsonl
from pipeline.tracking.client import connect, experiment_id, tracking_uri
from pipeline.tracking.tables import metric_name
from tests.tables.toy import BROKEN, LOSS, TOY

# MLflow's own tables use a loader strategy that SQLAlchemy 2.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")


def test_a_tracked_report_has_its_cells_in_mlflow_and_an_outage_is_one_line(runs, graticule, monkeypatch):
    monkeypatch.setitem(tables.TABLES, TOY.name, TOY)
    for row, loss, end in zip(TOY.rows("full"), (0.5, 9.0, 0.25), ("done", "failed", "done"), strict=True):
        folder = runs / run_name(row.run)
        folder.mkdir()
        (folder / "config.json").write_text(row.run.to_json())
        jsonl.append(folder / jsonl.METRICS, {"nimg": 32, "time": 0.0, "attempt": 1, "metrics": {LOSS: loss}})
        jsonl.append(folder / jsonl.EVENTS, {"nimg": 32, "time": 0.0, "attempt": 1, "event": end})
        book.write(runs, TOY, "full", {(row.name, 0): folder})
    words = ("report", TOY.name, "--full", "--runs", runs)
    code, _, err = graticule(*words, "--track")
    assert code == 0, err
    client = connect(tracking_uri(runs))
    found = {r.info.run_id: r.data for r in client.search_runs([experiment_id(client, runs)])}
    parent = err.split()[-1]
    rows = {
        data.params["Row.1 variant"]: data for data in found.values() if data.tags.get("mlflow.parentRunId") == parent
    }
    assert found.keys() > {parent}
    name = metric_name("loss of D")
    assert {row: data.metrics.get(name) for row, data in rows.items()} == {"narrow": 0.5, BROKEN: None, "wide": 0.25}
    assert all(data.params["Row.3 seed"] == "0" for data in rows.values())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    code, out, err = graticule(*words, "--track")
    assert code == 0
    assert out.startswith("# toy.widths")
    (line,) = err.splitlines()
    assert line.startswith("graticule: the report is not in MLflow: MLFLOW_TRACKING_URI='http://127.0.0.1:1' fails")
