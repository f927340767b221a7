"""Registered models: the same images as the run's own generator, from code and safetensors alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.recipes import find
from pipeline.spec import UserError
from pipeline.synthesis.sample import generate, load_generator
from pipeline.tracking.client import connect, tracking_uri
from pipeline.tracking.registry import fetch, register

# MLflow's own tables use a loader strategy that SQLAlchemy 2.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

FRESH_PROCESS = """
import sys, mlflow, numpy as np
model = mlflow.pyfunc.load_model(sys.argv[1])
seeds = np.array([0, 5, 2**40])
np.save("native.npy", model.predict(seeds))
np.save("sized.npy", model.predict(seeds[1:], params={"size": sys.argv[2], "truncation_psi": 0.7}))
import pipeline
print(pipeline.__file__)
"""


def save_checkpoint(folder: Path, recipe: str = "mspie.table5_f", nimg: int = 4000, seed: int = 0) -> Path:
    """config.json of a small run and a G_ema with random weights."""
    torch.manual_seed(seed)
    run = find(recipe).make().tiny()
    (folder / "config.json").write_text(run.to_json())
    checkpoint = folder / "checkpoints" / f"{nimg:012d}"
    checkpoint.mkdir(parents=True)
    state = {k: v.contiguous() for k, v in run.family.build(seed).nets["G"].state_dict().items()}
    save_file(state, checkpoint / "G_ema.safetensors")
    return checkpoint


def stored_files(runs: Path) -> list[Path]:
    return [p for p in (runs / "mlartifacts" / "models").rglob("*") if p.is_file()]


@pytest.mark.parametrize(("recipe", "size"), [("mspie.table5_f", "24x16"), ("cips.table3_main", "16x16")])
def test_a_registered_model_makes_the_images_of_generate_in_a_fresh_process(folder, tmp_path, recipe, size):
    checkpoint = save_checkpoint(folder, recipe)
    register(folder, name="m", alias="best", checkpoint=checkpoint)
    env = {**os.environ, "MLFLOW_TRACKING_URI": tracking_uri(folder.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS, "models:/m@best", size],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "mlartifacts" in done.stdout  # the code that was registered, not the repository's
    G = load_generator(folder / "config.json", checkpoint / "G_ema.safetensors")
    h, w = map(int, size.split("x"))
    native, sized = np.load(tmp_path / "native.npy"), np.load(tmp_path / "sized.npy")
    np.testing.assert_array_equal(native, generate(G, [0, 5, 2**40]))
    np.testing.assert_array_equal(sized, generate(G, [5, 2**40], (h, w), 0.7))
    assert sized.shape == (2, h, w, 3)


def test_no_pickle_and_no_bytecode_is_stored(folder):
    register(folder, name="m", alias=None, checkpoint=save_checkpoint(folder))
    files = stored_files(folder.parent)
    assert {p.suffix for p in files} <= {".py", ".json", ".yaml", ".txt", ".safetensors", ""}
    assert [p.name for p in files if not p.suffix] == ["MLmodel"]
    assert not any(p.read_bytes()[:1] == b"\x80" for p in files)  # how pickles begin
    text = next(p for p in files if p.name == "requirements.txt").read_text()
    assert "torch==" in text
    assert "+cpu" not in text


def test_equal_weights_are_one_version_and_the_alias_moves(folder):
    first, second = save_checkpoint(folder), save_checkpoint(folder, nimg=8000, seed=1)
    assert register(folder, name="m", alias="best", checkpoint=first) == "1"
    assert register(folder, name="m", alias="best", checkpoint=second) == "2"
    assert register(folder, name="m", alias="best", checkpoint=first) == "1"
    client = connect(tracking_uri(folder.parent))
    assert len(client.search_model_versions("name='m'")) == 2
    assert str(client.get_model_version_by_alias("m", "best").version) == "1"
    tags = client.get_model_version("m", "2").tags
    assert (tags["graticule.run"], tags["graticule.nimg"]) == (folder.name, "8000")


def test_fetch_gives_weights_and_config_and_downloads_once(folder):
    checkpoint = save_checkpoint(folder)
    register(folder, name="m", alias="best", checkpoint=checkpoint)
    got = fetch("models:/m/1", folder.parent)
    assert sorted(p.name for p in got.iterdir()) == ["G_ema.safetensors", "config.json"]
    assert json.loads((got / "config.json").read_text()) == json.loads((folder / "config.json").read_text())
    kept = (got / "G_ema.safetensors").stat().st_mtime_ns
    assert fetch("models:/m@best", folder.parent) == got
    assert (got / "G_ema.safetensors").stat().st_mtime_ns == kept


def test_a_model_that_others_registered_is_refused_in_one_line(folder):
    client = connect(tracking_uri(folder.parent))
    client.create_registered_model("theirs")
    client.create_model_version("theirs", str(folder))
    with pytest.raises(UserError, match="was not made by `graticule register`"):
        fetch("models:/theirs/1", folder.parent)


def test_weights_changed_in_the_store_are_refused(folder):
    register(folder, name="m", alias=None, checkpoint=save_checkpoint(folder))
    (weights,) = [p for p in stored_files(folder.parent) if p.suffix == ".safetensors"]
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="weights are not those registered"):
        fetch("models:/m/1", folder.parent)


def test_what_does_not_exist_is_one_line_that_names_what_does(folder):
    with pytest.raises(UserError, match="none is registered yet"):
        fetch("models:/m@best", folder.parent)
    register(folder, name="mspie", alias="best", checkpoint=save_checkpoint(folder))
    for address, said in {
        "models:/mspie@worst": r"alias='worst' of model 'mspie' does not exist; known: @best \(version 1\)",
        "models:/mspie/7": "version=7 .* versions 1",
        "models:/mspy@best": "did you mean 'mspie'",
        "mspie@best": "write models:/NAME@ALIAS",
    }.items():
        with pytest.raises(UserError, match=said) as e:
            fetch(address, folder.parent)
        assert "\n" not in str(e.value)


@pytest.mark.parametrize(("name", "alias"), [("a/b", None), ("it's", None), ("m", "v3"), ("m", "latest"), ("m", "a b")])
def test_names_that_mlflow_refuses_are_refused_before_anything_is_logged(folder, name, alias):
    checkpoint = save_checkpoint(folder)
    with pytest.raises(UserError, match=r"name=|alias="):
        register(folder, name=name, alias=alias, checkpoint=checkpoint)
    assert not stored_files(folder.parent)


def test_nothing_is_written_to_the_current_folder(folder, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    register(folder, name="m", alias="best", checkpoint=save_checkpoint(folder))
    fetch("models:/m@best", folder.parent)
    assert list((tmp_path / "here").iterdir()) == []
