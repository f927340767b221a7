"""One run copied into MLflow as far as MLflow lacks it: params, tags, metrics, status; then files and sample grids.

Files come last: a full artifact store holds up no metric. What has been sent is written to `mlflow.json` after
every request; after an outage or a kill it goes on there.
Exactly once: of each (nimg, kind) the first line of metrics.jsonl is sent, whatever is written under that key
later. That line never changes, so a request repeated because its answer was lost brings equal points, which
MLflow keeps once. After a rollback MLflow therefore keeps the points of the way first taken, as it can delete
none, and its tags say which these are; jsonl.metrics() has those of the way that counts.
Deliberately knows nothing of threads and of how long to wait.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import write_atomic
from pipeline.provenance import without_password
from pipeline.tracking import description, jsonl
from pipeline.tracking.client import connect, experiment_id, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

CURSOR = "mlflow.json"
MAX_BATCH = 1000  # metrics of one request, as MLflow allows
MAX_PARAMS = 100  # and params, and tags
PIECE = 20 * MAX_BATCH  # metrics in memory at a time, however many there are to send
ENDS = ("FINISHED", "FAILED", "KILLED")

Row = tuple[dict[str, Any], int]  # a record and the offset behind it


class OutOfTimeError(Exception):
    """Stopped before the next request; what is sent is noted."""


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
    described: dict[str, str] = field(default_factory=dict)  # stamps of the files that tags and status are from
    files: dict[str, str] = field(default_factory=dict)  # and of those that are uploaded
    samples: list[str] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        write_atomic(folder / CURSOR, json.dumps(asdict(self), indent=2) + "\n")


def catch_up(
    folder: Path, *, final: bool = False, verify: bool = False, give_up: Callable[[], bool] = lambda: False
) -> int:
    """Send what MLflow lacks of this run and return the number of metric records sent; raises when it cannot.

    Its status is what events.jsonl says; `final` says FINISHED whatever stands there. `verify` asks whether the
    store still has the run even if there is nothing to send. `give_up` is asked before each request:
    OutOfTimeError.
    """
    uri = tracking_uri(folder.resolve().parent)
    client = connect(uri)
    from mlflow.exceptions import MlflowException

    try:
        upload = Upload(client, folder, uri, give_up)
        if verify:
            upload.client.get_run(upload.cursor.run_id)
        return upload.all(final)
    except MlflowException as e:
        if e.error_code != "RESOURCE_DOES_NOT_EXIST" or not (folder / CURSOR).exists():
            raise
    (folder / CURSOR).unlink()  # another store under the same address; the disk has everything
    return Upload(client, folder, uri, give_up).all(final)


def cursor_of(folder: Path) -> Cursor | None:
    """The saved cursor, if there is a readable one."""
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError, TypeError):
        return Cursor(**json.loads((folder / CURSOR).read_text()))
    return None


class Upload:
    """One catching up."""

    def __init__(self, client: "MlflowClient", folder: Path, uri: str, give_up: Callable[[], bool]):
        self._client, self.folder, self._give_up = client, folder, give_up
        self.cursor = self._find(without_password(uri))

    @property
    def client(self) -> "MlflowClient":
        """For each request anew: this is where time runs out."""
        if self._give_up():
            raise OutOfTimeError
        return self._client

    def all(self, final: bool) -> int:
        stamp = description.stamp(self.folder, description.SOURCES)
        changed = stamp != self.cursor.described
        past = description.history(self.folder) if changed else description.History()
        if changed:
            self._params_and_tags(past)
        if changed and not final and past.status not in ENDS:
            self._status(past)
        sent = self._metrics()
        if final:
            self._status(description.History(status="FINISHED"))
        elif changed:
            self._status(past)  # an end is told when all is there
        if changed:
            self.cursor.described = stamp
            self.cursor.save(self.folder)
        self._files()
        self._samples()
        return sent

    def _find(self, store: str) -> Cursor:
        """The saved one if it is of this store; else for the run named by environment or tag, or a new one."""
        saved = cursor_of(self.folder)
        if saved and saved.uri == store:
            return saved
        client, name, run_id = self._client, self.folder.resolve().name, os.environ.get("MLFLOW_RUN_ID")
        if not run_id:  # in one go, however slow: nothing can be noted in between
            experiment = experiment_id(client, self.folder.resolve().parent)
            where, order = f"tags.`{description.RUN_TAG}` = '{name}'", ["attributes.start_time ASC"]
            found = client.search_runs([experiment], where, max_results=1, order_by=order)
            if not found:
                began_ms = description.began_ms(self.folder)
                found = [client.create_run(experiment, began_ms, {description.RUN_TAG: name}, run_name=name)]
            run_id = found[0].info.run_id
        cursor = Cursor(store, run_id)
        cursor.save(self.folder)
        return cursor

    def _params_and_tags(self, past: description.History) -> None:
        """Params once; tags whenever they differ from those sent, as in another attempt."""
        from mlflow.entities import Param, RunTag

        cursor, params = self.cursor, description.params(self.folder)
        if not cursor.params:
            entities = [Param(key, value[: description.MAX_VALUE]) for key, value in params.items()]
            for i in range(0, len(entities), MAX_PARAMS):
                self.client.log_batch(cursor.run_id, params=entities[i : i + MAX_PARAMS])
            cursor.params = True
            cursor.save(self.folder)
        tags = description.tags(self.folder, params, past)
        entities = [RunTag(key, value) for key, value in tags.items() if cursor.tags.get(key) != value]
        for i in range(0, len(entities), MAX_PARAMS):
            self.client.log_batch(cursor.run_id, tags=entities[i : i + MAX_PARAMS])
        cursor.tags = tags
        cursor.save(self.folder)

    def _status(self, past: description.History) -> None:
        cursor = self.cursor
        if cursor.status == past.status:
            return
        if past.status in ENDS:
            end_ms = int(past.status_time * 1000) or None  # none: now
            self.client.set_terminated(cursor.run_id, past.status, end_ms)
        else:
            self.client.update_run(cursor.run_id, status=past.status)
        cursor.status = past.status
        cursor.save(self.folder)

    def _metrics(self) -> int:
        from mlflow.entities import Metric

        cursor, path, sent = self.cursor, self.folder / jsonl.METRICS, 0
        if path.exists() and path.stat().st_size < cursor.offset:
            cursor.offset = 0  # another file under the same name
        for records, end in _requests(path, cursor):
            points = [
                Metric(description.allowed(name), float(value), int(record["time"] * 1000), int(record["nimg"]))
                for record in records
                for name, value in record["metrics"].items()
            ]
            for i in range(0, len(points), MAX_BATCH):
                self.client.log_batch(cursor.run_id, metrics=points[i : i + MAX_BATCH])
            cursor.offset = end
            cursor.nimg = max([cursor.nimg, *(record["nimg"] for record in records)])
            cursor.save(self.folder)
            sent += len(records)
        return sent

    def _files(self) -> None:
        for name, stamp in description.stamp(self.folder, description.FILES).items():
            if self.cursor.files.get(name) != stamp:
                place = Path(name).parent.as_posix()
                self.client.log_artifact(self.cursor.run_id, str(self.folder / name), None if place == "." else place)
                self.cursor.files[name] = stamp
                self.cursor.save(self.folder)

    def _samples(self) -> None:
        """New grids as time-stepped images: MLflow shows a slider over nimg for each size."""
        from PIL import Image

        cursor, known = self.cursor, set(self.cursor.samples)
        new = [p for p in sorted((self.folder / "samples").glob("[0-9]*-*.png")) if p.name not in known]
        if not new:
            return
        names = [Path(a.path).name for a in self.client.list_artifacts(cursor.run_id, "images")]
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
                self.client.log_image(cursor.run_id, img, key=key, step=step, timestamp=time_ms)
            cursor.samples.append(path.name)
            cursor.save(self.folder)


def _requests(path: Path, cursor: Cursor) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """(records to send in one go, offset behind them) in file order, without those that occurred before."""
    for piece in _pieces(path, cursor.offset):
        seen: set[tuple[int, str]] = set()
        if any(record["nimg"] <= cursor.nimg for record, _ in piece):  # a resumed run passes where it has been
            seen = jsonl.known(path, cursor.offset, {jsonl.key_of(record) for record, _ in piece})
        records, points = [], 0
        for record, end in piece:
            if jsonl.key_of(record) not in seen:
                seen.add(jsonl.key_of(record))
                records.append(record)
                points += len(record["metrics"])
            if points >= MAX_BATCH or end == piece[-1][1]:
                yield records, end
                records, points = [], 0


def _pieces(path: Path, offset: int) -> Iterator[list[Row]]:
    piece, points = [], 0
    for row in jsonl.tail(path, offset):
        piece.append(row)
        points += len(row[0]["metrics"])
        if points >= PIECE:
            yield piece
            piece, points = [], 0
    if piece:
        yield piece
