"""metrics.jsonl, sample grids, params and tags of a run, copied into MLflow: now, or a day later.

What has been sent is written to `mlflow.json` after every batch; after an outage or a kill it goes on there.
A record is sent the first time its (nimg, kind) occurs; sent twice it changes nothing, as MLflow keeps one.
Deliberately knows nothing of training, which writes files and never waits.
"""

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import write_atomic
from pipeline.errors import UserError
from pipeline.tracking import description, jsonl
from pipeline.tracking.client import (
    connect,
    experiment_id,
    one_line,
    tracking_uri,
    user_errors,
    without_password,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

CURSOR = "mlflow.json"
MAX_BATCH = 1000  # metrics of one request, as MLflow allows
MAX_PARAMS = 100  # and params, and tags
LONGEST_WAIT_SEC = 300.0  # of a mirror whose server is down; doubles until then

Row = tuple[dict[str, Any], int]


@dataclass
class Cursor:
    """What MLflow has of this run."""

    uri: str
    run_id: str
    offset: int = 0  # bytes of metrics.jsonl that are sent
    nimg: int = -1  # largest nimg that is sent
    status: str = ""
    params: bool = False
    tags: dict[str, str] = field(default_factory=dict)
    samples: list[str] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        write_atomic(folder / CURSOR, json.dumps(asdict(self), indent=2) + "\n")


def catch_up(folder: Path, *, final: bool = False, verify: bool = False) -> int:
    """Send what MLflow lacks of this run and return the number of metric records sent; raises when it cannot.

    `final` marks the run FINISHED; without it a finished run that is trained further is RUNNING again.
    `verify` asks whether the store still has the run even if there is nothing to send.
    """
    uri = tracking_uri(folder.resolve().parent)
    client = connect(uri)
    from mlflow.exceptions import MlflowException

    try:
        cursor = _cursor(client, folder, uri)
        if verify:
            client.get_run(cursor.run_id)
        return _send_all(client, folder, cursor, final)
    except MlflowException as e:
        if e.error_code != "RESOURCE_DOES_NOT_EXIST" or not (folder / CURSOR).exists():
            raise
    (folder / CURSOR).unlink()  # another store under the same address; the disk has everything
    return _send_all(client, folder, _cursor(client, folder, uri), final)


def sync(folder: Path) -> int:
    """catch_up for the command line: FINISHED if training is done, UserError if the store is out of reach."""
    if not (folder / "config.json").exists():
        raise UserError(f"run={str(folder)!r} is not a run folder (no config.json); see `graticule status`")
    with user_errors(tracking_uri(folder.resolve().parent)):
        sent = catch_up(folder, final=is_done(folder), verify=True)
    if sent:
        _event(folder, "sync", records=sent)
    return sent


def is_done(folder: Path) -> bool:
    """Whether the last attempt trained to the end."""
    events = [e["event"] for e in jsonl.read(folder / jsonl.EVENTS)]
    return next((e for e in reversed(events) if e in ("start", "resume", "done")), None) == "done"


def cursor_of(folder: Path) -> Cursor | None:
    """The saved cursor, if there is a readable one."""
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError, TypeError):
        return Cursor(**json.loads((folder / CURSOR).read_text()))
    return None


def _cursor(client: "MlflowClient", folder: Path, uri: str) -> Cursor:
    """The saved one if it is of this store; else for the run named by environment or tag, or a new one."""
    saved, store = cursor_of(folder), without_password(uri)
    if saved and saved.uri == store:
        return saved
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id:
        experiment, name = experiment_id(client, folder.resolve().parent), folder.resolve().name
        where = f"tags.`{description.RUN_TAG}` = '{name}'"
        found = client.search_runs([experiment], where, max_results=1, order_by=["attributes.start_time ASC"])
        if not found:
            found = [client.create_run(experiment, run_name=name, tags={description.RUN_TAG: name})]
        run_id = found[0].info.run_id
    cursor = Cursor(store, run_id)
    cursor.save(folder)
    return cursor


def _send_all(client: "MlflowClient", folder: Path, cursor: Cursor, final: bool) -> int:
    if not final:
        _send_status(client, folder, cursor, "RUNNING")
    _send_description(client, folder, cursor)
    sent = _send_metrics(client, folder, cursor)
    _send_samples(client, folder, cursor)
    if final:
        _send_status(client, folder, cursor, "FINISHED")
    return sent


def _send_status(client: "MlflowClient", folder: Path, cursor: Cursor, status: str) -> None:
    if cursor.status == status:
        return
    if status == "FINISHED":
        client.set_terminated(cursor.run_id, status)  # sets the end time as well
    else:
        client.update_run(cursor.run_id, status=status)
    cursor.status = status
    cursor.save(folder)


def _send_description(client: "MlflowClient", folder: Path, cursor: Cursor) -> None:
    """Params once; tags and files whenever the tags differ from those sent, as in another attempt."""
    from mlflow.entities import Param, RunTag

    params = description.params(folder)
    if not cursor.params:
        entities = [Param(key, value[: description.MAX_VALUE]) for key, value in params.items()]
        for i in range(0, len(entities), MAX_PARAMS):
            client.log_batch(cursor.run_id, params=entities[i : i + MAX_PARAMS])
        cursor.params = True
        cursor.save(folder)
    tags = description.tags(folder, params)
    if tags == cursor.tags:
        return
    entities = [RunTag(key, value) for key, value in tags.items()]
    for i in range(0, len(entities), MAX_PARAMS):
        client.log_batch(cursor.run_id, tags=entities[i : i + MAX_PARAMS])
    for path in (folder / name for name in description.FILES):
        if path.exists():
            client.log_artifact(cursor.run_id, str(path))
    cursor.tags = tags
    cursor.save(folder)


def _send_metrics(client: "MlflowClient", folder: Path, cursor: Cursor) -> int:
    from mlflow.entities import Metric

    path, sent = folder / jsonl.METRICS, 0
    if path.exists() and path.stat().st_size < cursor.offset:
        cursor.offset = 0  # another file under the same name
    for chunk, end in _chunks(path, cursor):
        points = [
            Metric(description.allowed(name), float(value), int(record["time"] * 1000), int(record["nimg"]))
            for record in chunk
            for name, value in record["metrics"].items()
        ]
        for i in range(0, len(points), MAX_BATCH):
            client.log_batch(cursor.run_id, metrics=points[i : i + MAX_BATCH])
        cursor.offset = end
        cursor.nimg = max([cursor.nimg, *(record["nimg"] for record in chunk)])
        cursor.save(folder)
        sent += len(chunk)
    return sent


def _chunks(path: Path, cursor: Cursor) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """(records to send in one go, offset behind them) in file order, without those that occurred before."""
    rows = jsonl.tail(path, cursor.offset)
    known = set()
    if any(record["nimg"] <= cursor.nimg for record, _ in rows):  # a resumed run passes where it has been
        known = {jsonl.key_of(record) for record, end in jsonl.tail(path, 0) if end <= cursor.offset}
    chunk, count = [], 0
    for record, end in rows:
        if jsonl.key_of(record) not in known:
            known.add(jsonl.key_of(record))
            chunk.append(record)
            count += len(record["metrics"])
        if count >= MAX_BATCH or (end == rows[-1][1]):
            yield chunk, end
            chunk, count = [], 0


def _send_samples(client: "MlflowClient", folder: Path, cursor: Cursor) -> None:
    """New grids as time-stepped images: MLflow shows a slider over nimg for each size."""
    from PIL import Image

    new = [p for p in sorted((folder / "samples").glob("[0-9]*-*.png")) if p.name not in cursor.samples]
    if not new:
        return
    names = [Path(a.path).name for a in client.list_artifacts(cursor.run_id, "images")]
    there = [name for name in names if name.endswith("+compressed.webp")]  # what log_image uploads last
    for path in new:
        nimg, size = path.stem.split("-", 1)
        key, step = f"samples_{size}", int(nimg)
        if not any(name.startswith(f"{key}+step+{step}+") for name in there):
            try:
                with Image.open(path) as img:
                    img.load()
            except OSError:  # still being written: another time
                continue
            time_ms = int(path.stat().st_mtime * 1000)
            client.log_image(cursor.run_id, img, key=key, step=step, timestamp=time_ms)
        cursor.samples.append(path.name)
        cursor.save(folder)


class Mirror:
    """catch_up in a daemon thread of rank 0. Nothing in training waits for it or sees its errors."""

    def __init__(self, folder: Path, every_sec: float = 5.0):
        self.folder = folder
        self.every_sec = every_sec
        self._stop = threading.Event()
        self._final = False
        self._down = False
        self._thread = threading.Thread(target=self._work, name="mlflow-mirror", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, *, final: bool, timeout_sec: float = 20.0) -> bool:
        """Send the rest within this time; False if some is left to `graticule sync`. `final`: run is done."""
        self._final = final
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_sec)
        return not self._thread.is_alive() and not self._down

    def _work(self) -> None:
        wait_sec = self.every_sec
        while True:
            stopping = self._stop.wait(wait_sec)
            try:
                catch_up(self.folder, final=stopping and self._final)
            except Exception as e:
                wait_sec = min(2 * wait_sec, LONGEST_WAIT_SEC) if self._down else self.every_sec
                self._report(down=True, detail=one_line(e))
            else:
                wait_sec = self.every_sec
                self._report(down=False)
            if stopping:
                return

    def _report(self, *, down: bool, **extra: str) -> None:
        """One event when the server goes, one when it is back."""
        if down == self._down:
            return
        self._down = down
        with contextlib.suppress(Exception):  # a full disk is training's to report
            _event(self.folder, "tracking down" if down else "tracking back", **extra)


def _event(folder: Path, event: str, **extra: Any) -> None:
    last = {}
    with contextlib.suppress(IndexError, ValueError):  # none yet, or damaged
        last = jsonl.read(folder / jsonl.METRICS)[-1]
    where = {"nimg": last.get("nimg", 0), "attempt": last.get("attempt", 0)}
    jsonl.append(folder / jsonl.EVENTS, {"time": time.time(), **where, "event": event, **extra})
