"""The best checkpoint that is on disk is a model version with its numbers, and an alias that follows the best."""

import hashlib
import shutil
import time
from pathlib import Path

import pytest

from pipeline.tracking import inbox, jsonl
from pipeline.tracking.best import best_of, publish_best, tag_version
from pipeline.tracking.client import connect, tracking_uri
from pipeline.tracking.mirror import sync
from pipeline.tracking.registry import SHA_TAG
from tests.tracking.records import history, make_run, only_run
from tests.tracking.test_registry import save_checkpoint

# MLflow's own tables use a loader strategy that SQLAlchemy 2.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

FID, PRECISION = "Metrics/fid50k_full/16px", "Metrics/pr50k3_full/16px/precision"
MODEL, ALIAS = "mspie-table5_f", "best-fid50k_full-16px"


def weights_of(checkpoint: Path) -> str:
    return hashlib.sha256((checkpoint / "G_ema.safetensors").read_bytes()).hexdigest()


def measure(
    checkpoint: Path, value: float, name: str = FID, better: str = "lower", weights: str = "", **of: str
) -> dict:
    """Leave what an evaluation leaves."""
    record = {
        "nimg": int(checkpoint.name),
        "time": time.time(),
        "attempt": 1,
        "kind": name.removesuffix("/precision"),
        "metrics": {name: value},
        "of": {
            "weights": weights or weights_of(checkpoint),
            "data": "d1",
            "filter": "",
            "says": "50,000 fakes",
            "better": {name: better},
            **of,
        },
    }
    inbox.leave(checkpoint.parents[1], record)
    return record


def fake_checkpoint(folder: Path, nimg: int) -> Path:
    """Weights that nobody loads."""
    checkpoint = folder / "checkpoints" / f"{nimg:012d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "G_ema.safetensors").write_bytes(b"%d" % nimg)
    return checkpoint


def best_nimg(folder: Path) -> dict[str, int]:
    return {name: number.nimg for name, number in best_of(folder).items()}


# On disk


def test_lower_or_higher_is_better_as_the_record_says(tmp_path):
    a, b = fake_checkpoint(tmp_path, 4), fake_checkpoint(tmp_path, 8)
    for checkpoint, fid, precision in ((a, 7.0, 0.5), (b, 6.0, 0.25)):
        measure(checkpoint, fid)
        measure(checkpoint, precision, PRECISION, "higher")
    assert best_nimg(tmp_path) == {FID: 8, PRECISION: 4}


def test_what_is_not_on_disk_with_these_very_weights_is_not_the_best(tmp_path):
    a, b, c = (fake_checkpoint(tmp_path, nimg) for nimg in (4, 8, 12))
    measure(a, 7.0)
    measure(b, 6.0)
    measure(c, 5.0, weights="of the way that was taken back")
    assert best_nimg(tmp_path) == {FID: 8}
    shutil.rmtree(b)
    assert best_nimg(tmp_path) == {FID: 4}
    measure(a, float("nan"))
    assert best_nimg(tmp_path) == {}


def test_only_numbers_of_one_set_and_protocol_are_compared(tmp_path):
    a, b, c = (fake_checkpoint(tmp_path, nimg) for nimg in (4, 8, 12))
    measure(a, 1.0, data="d0")
    measure(b, 7.0)
    measure(c, 8.0)
    assert best_nimg(tmp_path) == {FID: 8}


# In MLflow


def test_best_checkpoints_are_versions_with_numbers_aliases_and_linked_metrics(folder):
    a, b = save_checkpoint(folder), save_checkpoint(folder, nimg=8000, seed=1)
    assert publish_best(folder) == []  # it is not in MLflow, so no server is asked
    sync(folder)
    measured = measure(a, 7.0)
    measure(a, 0.5, PRECISION, "higher")
    assert publish_best(folder) == [
        f"models:/{MODEL}@{ALIAS} is version 1: fid50k_full/16px 7",
        f"models:/{MODEL}@best-pr50k3_full-16px-precision is version 1: pr50k3_full/16px/precision 0.5",
    ]
    measure(b, 6.5)
    assert publish_best(folder) == [f"models:/{MODEL}@{ALIAS} is version 2: fid50k_full/16px 6.5"]
    assert publish_best(folder) == []
    client = connect(tracking_uri(folder.parent))
    first, second = (client.get_model_version(MODEL, v) for v in ("1", "2"))
    assert first.tags["metric.fid50k_full/16px"] == "7.0"
    assert first.tags["metric.fid50k_full/16px.says"] == "50,000 fakes"
    assert first.tags["metric.fid50k_full/16px.data"] == "d1"
    assert first.tags["metric.pr50k3_full/16px/precision"] == "0.5"
    assert second.tags["metric.fid50k_full/16px"] == "6.5"
    experiment = only_run(folder)[1].info.experiment_id
    (model,) = client.search_logged_models([experiment], f"metrics.`{FID}` >= 7")
    assert model.tags[SHA_TAG] == first.tags[SHA_TAG] == weights_of(a)
    points = {m.key: (m.value, m.step, m.timestamp) for m in model.metrics or ()}
    assert points[FID] == (7.0, 4000, int(measured["time"] * 1000))
    assert set(points) == {FID, PRECISION}
    assert history(folder, FID) == [(4000, 7.0), (8000, 6.5)]  # each once, as in metrics.jsonl
    (model,) = client.search_logged_models([experiment], f"metrics.`{FID}` < 7")
    assert model.tags[SHA_TAG] == weights_of(b)
    tag_version(f"models:/{MODEL}@{ALIAS}", {**measured, "metrics": {FID: 6.0}}, folder.parent)
    assert client.get_model_version(MODEL, "2").tags["metric.fid50k_full/16px"] == "6.0"


def test_of_several_runs_the_alias_is_at_the_best_by_the_same_protocol(runs):
    numbers = [("a", 7.0, "d1"), ("b", 8.0, "d1"), ("c", 1.0, "other images")]
    for i, (run, value, data) in enumerate(numbers):
        folder = make_run(runs / f"mspie-{run}")
        measure(save_checkpoint(folder, seed=i), value, data=data)
        sync(folder)  # which publishes it as well
    client = connect(tracking_uri(runs))
    assert str(client.get_model_version_by_alias(MODEL, ALIAS).version) == "1"
    versions = client.search_model_versions(f"name='{MODEL}'")
    assert sorted(v.tags["metric.fid50k_full/16px"] for v in versions) == ["1.0", "7.0", "8.0"]


def test_measured_anew_after_a_rollback_it_is_on_disk_and_at_the_version_but_no_second_point(folder):
    a = save_checkpoint(folder)
    measure(a, 9.0, weights="those that were taken back")
    measure(a, 7.0)
    sync(folder)
    client = connect(tracking_uri(folder.parent))
    assert history(folder, FID) == [(4000, 9.0)]
    assert client.get_model_version_by_alias(MODEL, ALIAS).tags["metric.fid50k_full/16px"] == "7.0"
    assert [r["metrics"][FID] for r in jsonl.metrics(folder / jsonl.METRICS)] == [7.0]
