"""A paper's table in MLflow: one parent run, and below it the runs of its rows, named for the compare view.

Of each run: its labels as the params `Row.1 <label>`, `Row.2 <label>` .., its measured cells as the metrics
`Cell/<column>`. The compare view draws parallel coordinates over the first three params that differ and the first
metric that all have, in the order of their bytes: so these come first. The parent holds the report. The same call again
adds what is new and changes nothing else. MLflow deletes no metric: the newest value of a cell counts.
Deliberately knows nothing of how a table is measured and printed.
"""

import hashlib
import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.tracking.client import connect, experiment_id, tracking_uri, user_errors
from pipeline.tracking.description import allowed
from pipeline.tracking.upload import catch_up, cursor_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

TABLE_TAG, FORM_TAG, REPORT_TAG = "graticule.table", "graticule.form", "graticule.report"
PARENT_TAG, NOTE_TAG = "mlflow.parentRunId", "mlflow.note.content"  # MLflow's own
PARAM, METRIC = "Row", "Cell"
REPORT = ("report.md", "report.html", "*.png")  # files that are kept with the parent
MAX_NOTE = 7900  # characters; MLflow takes 8000 in a tag

Label = str | int | float


def publish_table(
    runs: Path,
    table_name: str,
    form: str,
    rows: Mapping[Path, Mapping[str, Label]],
    cells: Mapping[Path, Mapping[str, float]],
    *,
    title: str = "",
    report: Path | None = None,
) -> str:
    """Bring a table's runs together in MLflow and return the id of the parent run; UserError without the store.

    `rows`: run folder -> what stands in its columns, for every run that began; `cells`: run folder -> column ->
    measured. `report`: the folder of its report. A run that several tables share stays below the first of them, and
    keeps that one's labels; it gets the cells of all.
    """
    uri = tracking_uri(runs)
    client = connect(uri)
    with user_errors(uri):
        parent = _parent(client, runs, table_name, form)
        for folder, labels in rows.items():
            catch_up(folder)
            cursor = cursor_of(folder)
            assert cursor is not None  # catch_up has just written it
            _child(client, cursor.run_id, parent, labels, cells.get(folder, {}))
        _describe(client, parent, f"{table_name}, {form} form", title, report)
    return parent


def metric_name(column: str) -> str:
    """`FID 512 px (25 M)` -> `Cell/FID 512 px - 25 M`: MLflow allows no brackets, commas and percent signs."""
    text = re.sub(r"\s*\(([^()]*)\)", r" - \1", column.replace("%", "percent").replace(",", ""))
    return allowed(f"{METRIC}/{text.strip()}")


def _parent(client: "MlflowClient", runs: Path, table_name: str, form: str) -> str:
    """Found by its tags, or made: once for a table and form in an experiment."""
    experiment = experiment_id(client, runs)
    where = f"tags.`{TABLE_TAG}` = '{table_name}' AND tags.`{FORM_TAG}` = '{form}'"
    if found := client.search_runs([experiment], where, max_results=1, order_by=["attributes.start_time ASC"]):
        return found[0].info.run_id
    tags = {TABLE_TAG: table_name, FORM_TAG: form}
    return client.create_run(experiment, run_name=f"{table_name} ({form})", tags=tags).info.run_id


def _child(
    client: "MlflowClient", run_id: str, parent: str, labels: Mapping[str, Label], cells: Mapping[str, float]
) -> None:
    """One request, of what MLflow lacks; none if it lacks nothing."""
    from mlflow.entities import Metric, Param, RunTag

    data, now_ms = client.get_run(run_id).data, int(time.time() * 1000)
    shown = {metric_name(column): float(value) for column, value in cells.items()}
    new = {name: value for name, value in shown.items() if not _equal(data.metrics.get(name), value)}
    metrics = [Metric(name, value, now_ms, 0) for name, value in new.items()]
    tags = [] if PARENT_TAG in data.tags else [RunTag(PARENT_TAG, parent)]
    params = {allowed(f"{PARAM}.{i} {label}"): str(value) for i, (label, value) in enumerate(labels.items(), 1)}
    if data.tags.get(PARENT_TAG, parent) != parent:
        params = {}  # another table's, whose labels cannot be changed
    missing = [Param(name, text) for name, text in params.items() if name not in data.params]
    if metrics or tags or missing:
        client.log_batch(run_id, metrics=metrics, params=missing, tags=tags)


def _equal(one: float | None, other: float) -> bool:
    return one == other or (one is not None and math.isnan(one) and math.isnan(other))


def _describe(client: "MlflowClient", parent: str, name: str, title: str, report: Path | None) -> None:
    """The report as the parent's description and, with its pictures, as artifacts; only when it has changed."""
    files = sorted(path for pattern in REPORT for path in report.glob(pattern)) if report else []
    text = (report / "report.md").read_text() if report and (report / "report.md").is_file() else ""
    note = "\n\n".join(filter(None, (f"**{name}**" + (f": {title}" if title else ""), text)))
    if len(note) > MAX_NOTE:
        note = note[:MAX_NOTE].rsplit("\n", 1)[0] + "\n\n(cut; whole in the artifact report.md)"
    digest = hashlib.sha256(note.encode())
    for path in files:
        digest.update(path.name.encode() + path.read_bytes())
    run = client.get_run(parent)
    if run.data.tags.get(REPORT_TAG) == digest.hexdigest():
        return
    for path in files:
        client.log_artifact(parent, str(path))
    client.set_tag(parent, NOTE_TAG, note)
    if run.info.status != "FINISHED":
        client.set_terminated(parent)
    client.set_tag(parent, REPORT_TAG, digest.hexdigest())
