"""The collapse detector: as a function of rows, and in real small runs whose generator is constant, or healthy."""

import json
from pathlib import Path

import pytest
import torch

from pipeline.models.dcgan import DCGANGeneratorConfig
from pipeline.plan import ExecConfig, override_all
from pipeline.recipes import find
from pipeline.run import plan_run, train_folder
from pipeline.tracking import jsonl
from pipeline.tracking.collapse import FAKE, REAL, collapsed_at_kimg

BATCH = 16


def rows(*ratios: float | None) -> list[dict]:
    values = [{} if r is None else {FAKE: 0.4 * r, REAL: 0.4} for r in ratios]
    return [{"nimg": 1000 * (i + 1), "metrics": v} for i, v in enumerate(values)]


@pytest.mark.parametrize(
    ("ratios", "kimg"),
    [
        ((0.5, 0.05, 0.05, 0.05), 2.0),
        ((0.05, 0.05, 0.2, 0.05, 0.05, 0.05), 4.0),
        ((0.05, None, 0.05, None, 0.05), 1.0),
        ((0.05, 0.05), None),
        ((0.1, 0.1, 0.1, 0.1), None),
        ((0.05, 0.05, 0.05, 0.9, 0.9), 1.0),
        ((None, None, None), None),
        ((), None),
    ],
)
def test_it_is_where_the_ratio_first_stays_below_the_floor(ratios, kimg):
    assert collapsed_at_kimg(rows(*ratios), floor=0.1, hold=3) == kimg


def test_reals_that_do_not_differ_say_nothing():
    assert collapsed_at_kimg([{"nimg": i, "metrics": {FAKE: 0.0, REAL: 0.0}} for i in range(9)]) is None


def plan(data: Path, runs: Path, *sets: str) -> Path:
    words = ["family.diversity_interval=1", "total_kimg=0.112", "exec.status_kimg=0.016", "exec.sample_kimg=9"]
    words += ["exec.checkpoint_kimg=9", "exec.track=false", "exec.workers=0", *sets]
    run, exec_ = override_all(find("geopos.faces_geo").make().tiny(), ExecConfig(), words)
    assert run.batch_size == BATCH
    return plan_run(run, exec_, data, runs, [])


def told(folder: Path) -> list[dict]:
    return [e for e in jsonl.read(folder / jsonl.EVENTS) if e["event"] == "collapse"]


def nimg(folder: Path) -> int:
    return jsonl.last(folder / jsonl.METRICS).get("nimg", 0)


def ratios(folder: Path) -> list[float]:
    return [r["metrics"]["Collapse/diversity"] for r in jsonl.metrics(folder / jsonl.METRICS)]


def test_a_generator_that_makes_one_image_has_collapsed_and_that_is_told_once(photos, tmp_path, monkeypatch, capsys):
    """Its last layer is zero and its learning rate next to it; stopped before the fifth window and after it."""
    build = DCGANGeneratorConfig.build

    def constant(self: DCGANGeneratorConfig) -> torch.nn.Module:
        G = build(self)
        torch.nn.init.zeros_(G.convs[-1].weight)
        return G

    monkeypatch.setattr(DCGANGeneratorConfig, "build", constant)
    folder = plan(photos(16), tmp_path, "family.lr=1e-12")
    for iterations, events in ((3, 0), (6, 1)):
        last = BATCH * (iterations - 1)
        assert train_folder(folder, should_stop=lambda last=last: nimg(folder) >= last) == "stopped"
        assert nimg(folder) == iterations * BATCH
        assert len(told(folder)) == events
    assert train_folder(folder, should_stop=lambda: False) == "done"
    (event,) = told(folder)
    assert (event["nimg"], event["since_kimg"]) == (5 * BATCH, BATCH / 1000)
    assert event["ratio"] == pytest.approx(0, abs=1e-3)
    assert len(ratios(folder)) == 7
    assert max(ratios(folder)) < 1e-3
    assert capsys.readouterr().err.count("collapsed since kimg 0.016") == 1


def test_a_healthy_one_has_not(photos, tmp_path):
    folder = plan(photos(16), tmp_path)
    assert train_folder(folder, should_stop=lambda: False) == "done"
    assert not told(folder)
    assert min(ratios(folder)) > 0.1


def test_a_run_without_the_measure_says_nothing_of_it(photos, tmp_path):
    folder = plan(photos(16), tmp_path, "family.diversity_interval=0", "total_kimg=0.016")
    assert train_folder(folder, should_stop=lambda: False) == "done"
    assert not [
        k for k in json.loads((folder / jsonl.METRICS).read_text())["metrics"] if "distance" in k or "/div" in k
    ]
