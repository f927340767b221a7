"""The best checkpoint by each measured number: found on disk, registered, aliased, and the number noted at it.

Evaluation leaves records whose `of` says of which weights, which data and by which protocol a number is, and which
way is better. `publish_best` makes of that, in MLflow: one model version for each of these checkpoints, the alias
`best-<metric>` at it, tags with all numbers of a version, and metrics linked to its logged model.
Deliberately knows no metric: what "better" means stands in the record.
"""

import contextlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import WorkError
from pipeline.tracking import description, inbox, jsonl
from pipeline.tracking.client import connect, one_line, tracking_uri, user_errors
from pipeline.tracking.registry import SHA_TAG, address_of, resolve, sha256_of, version_of
from pipeline.tracking.upload import catch_up, cursor_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

PREFIX = "Metrics/"  # of measured names; aliases and tags go without
PROTOCOL = ("data", "filter", "says")  # numbers compare where all of these are equal


@dataclass(frozen=True)
class Number:
    """One measured number of one checkpoint."""

    name: str  # as in metrics.jsonl
    value: float
    lower_is_better: bool
    nimg: int
    of: Mapping[str, Any]
    record: Mapping[str, Any]

    @property
    def short(self) -> str:
        return self.name.removeprefix(PREFIX)

    @property
    def alias(self) -> str:
        return "best-" + re.sub(r"[^\w-]", "_", self.short.replace("/", "-"), flags=re.ASCII)

    @property
    def tags(self) -> dict[str, str]:
        """For the model version: the number, and how it was taken."""
        facts = {f".{name}": str(self.of[name])[: description.MAX_VALUE] for name in PROTOCOL if self.of.get(name)}
        found = {"": repr(self.value), **facts, ".better": "lower" if self.lower_is_better else "higher"}
        return {description.allowed(f"metric.{self.short}{end}"): text for end, text in found.items()}

    def beats(self, tags: Mapping[str, str]) -> bool:
        """Is it better than the number of that name in a version's tags? Not if that is of other data or protocol."""
        mine, (key, *_) = self.tags, self.tags
        if key not in tags:
            return True
        if any(mine.get(f"{key}.{fact}") != tags.get(f"{key}.{fact}") for fact in PROTOCOL):
            return False
        theirs = float(tags[key])
        return math.isnan(theirs) or (self.value < theirs if self.lower_is_better else self.value > theirs)


def best_of(folder: Path) -> dict[str, Number]:
    """By name, the best number of a run whose checkpoint is still on disk with the weights that were measured.

    Where numbers of one name differ in data or protocol: among those that are like the one that was taken last.
    """
    known: dict[int, str] = {}

    def is_there(number: Number) -> bool:
        weights = _weights(folder, number.nimg)
        if number.nimg not in known:
            known[number.nimg] = sha256_of(weights) if weights.is_file() else ""
        return known[number.nimg] == number.of["weights"]

    found = {}
    for name, several in _by_name(folder).items():
        last = max(several, key=lambda n: n.record["time"])
        alike = [n for n in several if all(n.of.get(p) == last.of.get(p) for p in PROTOCOL)]
        ranked = sorted(alike, key=lambda n: n.value if n.lower_is_better else -n.value)
        if best := next(filter(is_there, ranked), None):
            found[name] = best
    return found


def publish_best(folder: Path) -> list[str]:
    """Register and alias what is best now, in one line each; nothing if the run is not in MLflow (yet).

    A server that is out of reach costs an event; `graticule sync` then makes it good.
    """
    from pipeline.tracking.mirror import event_of

    if cursor_of(folder) is None:
        return []
    try:
        catch_up(folder)
        return register_best(folder)
    except Exception as e:  # as in the mirror: no error of a service ends what measures or trains
        with contextlib.suppress(WorkError):
            inbox.leave(folder, event_of(folder, "not registered", detail=one_line(e)))
        return []


def register_best(folder: Path) -> list[str]:
    """The same, for a run that is in MLflow as far as it goes; raises what mlflow raises."""
    best = best_of(folder)
    config = description.params(folder)
    name, cursor = config.get("recipe", "").replace(".", "-"), cursor_of(folder)
    if not best or not name or cursor is None:
        return []
    client = connect(tracking_uri(folder.resolve().parent))
    numbers = {number.of["weights"]: _weights(folder, number.nimg) for number in best.values()}
    version_by_sha = {sha256: version_of(client, folder, name, weights) for sha256, weights in numbers.items()}
    _note_all(client, folder, name, cursor.run_id)
    told = []
    for number in best.values():
        version = version_by_sha[number.of["weights"]]
        aliases = {a: str(v) for a, v in client.get_registered_model(name).aliases.items()}
        if aliases.get(number.alias) == version:
            continue
        if number.alias in aliases and not number.beats(client.get_model_version(name, aliases[number.alias]).tags):
            continue
        client.set_registered_model_alias(name, number.alias, version)
        told.append(f"models:/{name}@{number.alias} is version {version}: {number.short} {number.value:.6g}")
    return told


def tag_version(model_uri: str, record: Mapping[str, Any], runs: Path) -> None:
    """Note the numbers of a record at the model that was measured by its address; UserError without the store."""
    address = address_of(model_uri)
    uri = tracking_uri(runs)
    client = connect(uri)
    with user_errors(uri):
        version = client.get_model_version(address[0], resolve(client, *address))
        for number in _numbers([record]):
            _note(client, version, number, version.run_id or "")


def _note_all(client: "MlflowClient", folder: Path, name: str, run_id: str) -> None:
    """Every number of this run whose weights are a version: the other checkpoints that are registered, too."""
    versions = {v.tags.get(SHA_TAG): v for v in client.search_model_versions(f"name='{name}'")}
    first: dict[tuple[int, str], Mapping[str, Any]] = {}
    for record in jsonl.read(folder / jsonl.METRICS):
        first.setdefault(jsonl.key_of(record), record)
    for several in _by_name(folder).values():
        for number in several:
            if version := versions.get(number.of["weights"]):
                # MLflow has the first record of a key alone (upload.py); a second one would be another point
                is_first = first.get(jsonl.key_of(number.record)) == number.record
                _note(client, version, number, run_id if is_first else "")


def _note(client: "MlflowClient", version: "ModelVersion", number: Number, run_id: str) -> None:
    """The tags of the version; and its logged model linked to the point of the run, unless it was noted before."""
    from mlflow.entities import Metric

    if all(version.tags.get(key) == text for key, text in number.tags.items()):
        return
    if run_id and (model_id := _logged_model(client, version)):
        point = Metric(
            description.allowed(number.name),
            number.value,
            int(number.record["time"] * 1000),
            number.nimg,
            model_id=model_id,
        )
        client.log_batch(run_id, metrics=[point])
    for key, text in reversed(number.tags.items()):  # the number last: what is cut short is noted again
        client.set_model_version_tag(version.name, str(version.version), key, text)


def _logged_model(client: "MlflowClient", version: "ModelVersion") -> str:
    """Its id, which stores of SQL do not keep with the version; "" if there is none."""
    if not version.run_id:
        return ""
    where = f"tags.`{SHA_TAG}` = '{version.tags.get(SHA_TAG)}'"
    experiment = client.get_run(version.run_id).info.experiment_id
    found = client.search_logged_models([experiment], where)
    return next((m.model_id for m in found if m.artifact_location == version.source), "")


def _by_name(folder: Path) -> dict[str, list[Number]]:
    """What was measured, the last record of each (nimg, kind), by name."""
    left = {jsonl.key_of(record): record for record in inbox.pending(folder)}
    records = {jsonl.key_of(record): record for record in jsonl.metrics(folder / jsonl.METRICS)}
    found: dict[str, list[Number]] = {}
    for number in _numbers([*(records | left).values()]):
        found.setdefault(number.name, []).append(number)
    return found


def _numbers(records: list[Mapping[str, Any]]) -> Iterator[Number]:
    for record in records:
        of = record.get("of", {})
        for name, value in record["metrics"].items():
            way = of.get("better", {}).get(name)
            if way and of.get("weights") and math.isfinite(value):
                yield Number(name, float(value), way == "lower", record["nimg"], of, record)


def _weights(folder: Path, nimg: int) -> Path:
    return folder / "checkpoints" / f"{nimg:012d}" / "G_ema.safetensors"
