"""`graticule evaluate` as users meet it: what it prints, and one line with exit code 2 for each wrong word."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.config import write_atomic
from tests.evaluation.conftest import FID


@pytest.fixture
def evaluate(graticule, references):
    def call(*words: object) -> tuple[int, str, str]:
        return graticule("evaluate", *words, "--references", references)

    return call


def test_it_prints_the_numbers_and_where_they_are_explained(run, evaluate):
    code, out, err = evaluate(run, "--metric", "spectra20", "--metric", FID, "--size", 16, "--batch", 32)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("kimg 0.072: Metrics/spectra20/16px ")
    assert lines[1].startswith(f"kimg 0.072: Metrics/{FID}-")
    assert lines[2] == f"see {run / 'evaluation' / 'report.md'}"
    code, out, _ = evaluate(run, "--metric", "spectra20", "--size", 16)
    assert out.splitlines()[0] == "kimg 0.072: Metrics/spectra20/16px is measured already"


def test_several_runs_end_in_their_mean_and_its_interval(run, tmp_path, evaluate):
    other = Path(shutil.copytree(run, tmp_path / "other"))
    shutil.rmtree(other / f"checkpoints/{72:012d}")
    code, out, err = evaluate(run, other, "--metric", "spectra20", "--size", 16)
    assert code == 0, err
    values = [float(line.rpartition(" ")[2]) for line in out.splitlines() if "16px " in line and line[0] == "k"]
    mean = next(line for line in out.splitlines() if "mean" in line)
    assert f"{sum(values) / 2:.4g}"[:4] in mean
    assert f"± {12.706 * abs(values[0] - values[1]) / 2:.1g}"[:3] in mean


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{tmp}/absent", "--metric", FID], "not a run folder"),
        (["{run}"], "Missing option '--metric'"),
        (["{run}", "--metric", "fid50k_ful"], "metric='fid50k_ful': no such protocol; did you mean 'fid50k_full'?"),
        (["{run}", "--metric", "fid50k_full"], "put inception-2015-12-05.pt"),
        (["{run}", "--metric", "fid300_300.tinny"], "did you mean 'tiny'?"),
        (["{run}", "--metric", FID, "--size", "a"], "size='a': expected pixels"),
        (["{run}", "--metric", FID, "--size", "32of16"], "size='32of16'"),
        (["{run}", "--metric", FID, "--size", "20"], "kimg 0.072 was not trained at 20 px; use 16, 24, 32"),
        (["{run}", "--metric", "swd20"], "measure at one of these sizes"),
        (["{run}", "--metric", FID, "--filter", "boxx"], "did you mean 'box'?"),
        (["{run}", "--metric", FID, "--filter", "box", "--size", "32"], "filter='box': nothing is resized"),
        (["{run}", "--metric", "fid300_50k.tiny"], "fid300_50k needs 50000 real images"),
        (["{run}", "--metric", FID, "--checkpoint", "1"], "checkpoint=1: {run} has no such checkpoint; there are kimg"),
        (["{run}", "--metric", FID, "--checkpoint", "last"], "expected newest, all, best, or kimg"),
        (["{run}", "--metric", FID, "--checkpoint", "best"], "nothing of {run} is measured yet"),
        (["{run}", "--metric", FID, "--seed", "-1"], "seed=-1"),
        (["{run}", "--metric", FID, "--batch", "0"], "batch=0"),
        (["{run}", "--metric", FID, "--data", "{tmp}/absent"], "no such folder"),
        (["{run}", "--metric", FID, "--data", "https://host/set"], "is a URL"),
        (["{run}", "--metric", FID, "--data", "{small}"], "is stored at 16 px"),
        (["{untrained}", "--metric", FID], "has no valid checkpoint yet; train it first"),
        (["{mixed}", "--metric", FID], "is trained on a mix of 2 sets; say with --data"),
        (["{streamed}", "--metric", FID], "data='s3://bucket/set' is a URL"),
        (["{moved}", "--metric", FID], "this run was made with"),
        (["{run}", "{mixed}", "--metric", FID], "is trained on a mix of 2 sets"),  # nothing of the first is made
    ],
)
def test_a_wrong_word_gets_one_line_and_nothing_is_written(run, photos, tmp_path, evaluate, words, said):
    asked = " ".join(words)
    small = photos(16) if "{small}" in asked or "{moved}" in asked else None
    launch = json.loads((run / "exec.json").read_text())
    variants = {"mixed": ["/a", "/b"], "streamed": ["s3://bucket/set"], "moved": [str(small)], "untrained": []}
    places = {name: tmp_path / name for name in variants} | {"run": run, "tmp": tmp_path, "small": small}
    for name in [name for name in variants if f"{{{name}}}" in asked]:
        left_out = shutil.ignore_patterns("checkpoints" if name == "untrained" else "samples")
        shutil.copytree(run, places[name], ignore=left_out)
        write_atomic(places[name] / "exec.json", json.dumps({**launch, "data": variants[name]}))
    before = sorted(tmp_path.rglob("*"))
    code, out, err = evaluate(*(word.format(**places) for word in words))
    assert code == 2, err
    assert said.format(**places) in err
    assert len(err.strip().splitlines()) == 1, err
    assert not out
    assert sorted(tmp_path.rglob("*")) == before
