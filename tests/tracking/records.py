"""What the tests write into a run folder, and read back from MLflow."""

import json
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.tracking import jsonl
from pipeline.tracking.client import connect, experiment_id, tracking_uri


def make_run(folder: Path) -> Path:
    """A run that has just started its first attempt."""
    (folder / "samples").mkdir(parents=True)
    config = {"recipe": "mspie", "data": {"dataset_id": "d1"}, "family": {"G": {"kind": "x", "wide": [1, 2]}}}
    (folder / "config.json").write_text(json.dumps(config))
    environment = {"git_sha": "c0ffee", "git_diff": "long", "torch": "2.8", "hosts": ["n1", "n2"]}
    (folder / "environment.json").write_text(json.dumps(environment))
    attempt(folder, 1, nimg=0, job_id="71", host="n1")
    return folder


def attempt(folder: Path, number: int, *, nimg: int, **where: str) -> None:
    name = "start" if number == 1 else "resume"
    event(folder, name, nimg=nimg, attempt=number, **where)


def event(folder: Path, name: str, *, nimg: int, attempt: int = 1, **extra) -> None:
    record = {"time": time.time(), "nimg": nimg, "attempt": attempt, "event": name, **extra}
    jsonl.append(folder / jsonl.EVENTS, record)


def write(folder: Path, nimgs, *, attempt: int = 1, **more: float) -> None:
    """One record each, whose values are functions of nimg, as a resumed run's are."""
    for nimg in nimgs:
        values = {"Loss/D/adv": 1 / (1 + nimg), "Loss/G/adv": float(nimg), **more}
        record = {"nimg": nimg, "time": time.time(), "attempt": attempt, "metrics": values}
        jsonl.append(folder / jsonl.METRICS, record)


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def only_run(folder: Path):
    """The one MLflow run there is."""
    client = connect(tracking_uri(folder.parent))
    runs = client.search_runs([experiment_id(client, folder.parent)])
    assert len(runs) == 1
    return client, runs[0]


def assert_exactly_once(folder: Path) -> None:
    """Every (metric, nimg) of metrics.jsonl is one point in MLflow, with the value that was written first."""
    first: dict[str, dict[int, float]] = {}
    for record in jsonl.read(folder / jsonl.METRICS):
        for name, value in record["metrics"].items():
            first.setdefault(name, {}).setdefault(record["nimg"], value)
    client, run = only_run(folder)
    assert set(run.data.metrics) == set(first)
    for name, points in first.items():
        found = client.get_metric_history(run.info.run_id, name)
        assert sorted((m.step, m.value) for m in found) == sorted(points.items()), name


def history(folder: Path, metric: str = "Loss/G/adv") -> list[tuple[int, float]]:
    """(nimg, value) in the order in which they were sent."""
    client, run = only_run(folder)
    return [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, metric)]


def on_disk(folder: Path, metric: str = "Loss/G/adv") -> list[tuple[int, float]]:
    return [(r["nimg"], r["metrics"][metric]) for r in jsonl.metrics(folder / jsonl.METRICS)]
