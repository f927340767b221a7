"""Held-out images are measured alike by any number of ranks and after a resume, and training does not notice.

A real VAE of a few channels with shifts that are drawn in evaluation too, real sets of noise, real runs; the held-out
set is no multiple of a microbatch. Values are compared as bits unless said.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from math import inf, isnan, nan
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.chance import Chance
from pipeline.data.manifest import load_manifest
from pipeline.data.reader import ShardReader
from pipeline.errors import UserError
from pipeline.families.vae import VAEConfig
from pipeline.layers.coords import shifted_by
from pipeline.phases import Step
from pipeline.plan import ExecConfig, RunConfig, check_validation, override_all
from pipeline.recipes import find
from pipeline.run import newest_checkpoint, plan_run, read_run, train_folder
from pipeline.spec import to_float
from pipeline.synthesis.sample import load_generator
from pipeline.tracking import jsonl
from pipeline.training.engine import Engine
from pipeline.training.validation import Validation
from tests.runs import ENV, FORKED, assert_bitwise_equal, final_state
from tests.training.test_engine import free_ports

ROOT = Path(__file__).parents[2]
RECIPE, HELD_OUT = "geopos.vae_256_geo", 10
WORDS = ["batch_size=8", "total_kimg=0.048", "family.G.channel_base=2", "family.G.coords.stochastic_eval=true"]
WORDS += ["exec.status_kimg=0.024", "exec.validate_kimg=0.016", "exec.checkpoint_kimg=0.024", "exec.sample_kimg=100"]
WORDS += ["exec.track=false", "exec.workers=0"]


def prepared(folder: Path, count: int, seed: int, size_px: int = 16) -> Path:
    from dataprep.sources import open_source
    from dataprep.transform import Transform
    from dataprep.writer import prepare

    images = folder.with_name(f"{folder.name}-images")
    images.mkdir()
    for i, pixels in enumerate(np.random.default_rng(seed).integers(0, 256, (count, size_px, size_px, 3), np.uint8)):
        Image.fromarray(pixels).save(images / f"{i:03}.png")
    prepare(open_source("folder", images), folder, Transform(size_px=size_px))
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """name -> a prepared set."""
    out = tmp_path_factory.mktemp("sets")
    made = {"train": prepared(out / "train", 12, 0), "held-out": prepared(out / "held-out", HELD_OUT, 1)}
    return made | {"other": prepared(out / "other", 3, 2), "large": prepared(out / "large", 3, 3, 32)}


def plan(sets, runs: Path, *held_out: str, words=()) -> Path:
    run, exec_ = override_all(find(RECIPE).make().tiny(), ExecConfig(), [*WORDS, *words])
    return plan_run(run, exec_, sets["train"], runs, [], validation=[sets[name] for name in held_out])


def to_the_end(folder: Path) -> Path:
    assert train_folder(folder, should_stop=lambda: False) == "done"
    return folder


def lines(folder: Path, prefix: str) -> dict[int, dict[str, float]]:
    """nimg -> values of those names, where there are any."""
    found = jsonl.metrics(folder / "metrics.jsonl")
    rows = {m["nimg"]: {k: v for k, v in m["metrics"].items() if k.startswith(prefix)} for m in found}
    return {nimg: row for nimg, row in rows.items() if row}


@pytest.fixture(scope="module")
def pair(sets, tmp_path_factory):
    """The same on two ranks: the process, and the folder of runs."""
    runs = tmp_path_factory.mktemp("pair")
    words = [part for word in WORDS for part in ("--set", word)]
    command = ["train", RECIPE, "--tiny", "--data", sets["train"], "--validation", sets["held-out"], "--runs", runs]
    env = {**ENV, "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_ports(1)[0]}
    with subprocess.Popen(
        [sys.executable, str(FORKED), *map(str, command), *words],
        env={**env, "WORLD_SIZE": "2"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        yield process, runs
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def measured(sets, tmp_path_factory, pair):
    """An undisturbed run; the pair is under way meanwhile."""
    return to_the_end(plan(sets, tmp_path_factory.mktemp("runs"), "held-out"))


def test_it_measures_when_it_is_due_and_at_the_end(measured, sets, tmp_path):
    assert list(lines(measured, "Validation")) == [16, 32, 48]
    assert list(lines(to_the_end(plan(sets, tmp_path, "held-out", words=["exec.validate_kimg=0.04"])), "Val")) == [
        40,
        48,
    ]
    (event,) = [e for e in jsonl.read(measured / "events.jsonl") if e["event"] == "validation"]
    assert (event["set"], event["images"]) == ("held-out", HELD_OUT)


def test_the_mean_is_that_of_all_images_taken_one_by_one(measured, sets):
    """To rounding, as a forward of one image is another one."""
    run, reader = read_run(measured), ShardReader(sets["held-out"])
    family = run.family.build(run.seed)
    nets = {"G": load_generator(measured / "config.json", newest_checkpoint(measured) / "G_ema.safetensors")}
    total: dict[str, float] = {}
    for i in range(HELD_OUT):
        chance = Chance(run.seed, "validation", 0, (i,), torch.device("cpu"))
        real, size = to_float(torch.from_numpy(reader.read(i)[0])[None]), family.sizes[0]
        assert family.validate
        with torch.no_grad(), shifted_by(nets.values(), chance):
            terms = family.validate(nets, Step(real, size, chance, frozenset(), {}, torch.tensor([-1])))
        total = {name: total.get(name, 0.0) + value.item() for name, value in terms.items()}
    expected = {f"Validation/{name}": value / HELD_OUT for name, value in total.items()}
    assert lines(measured, "Validation")[48] == pytest.approx(expected, rel=1e-5)
    assert set(expected) == {"Validation/reconstruction", "Validation/kl", "Validation/loss"}


def test_training_does_not_notice(measured, sets, tmp_path):
    """Nor does the name of the run."""
    alone = to_the_end(plan(sets, tmp_path))
    assert alone.name == measured.name
    assert_bitwise_equal(final_state(alone), final_state(measured))
    assert not lines(alone, "Validation")


def test_a_run_that_failed_between_two_checkpoints_has_the_curve_of_the_undisturbed_one(measured, sets, tmp_path):
    """It fails at image 40, goes on from 24, and measures at 32 again."""
    folder = plan(sets, tmp_path, "held-out")

    def fail() -> bool:
        if 32 in lines(folder, "Validation"):
            raise RuntimeError("power cut")
        return False

    with pytest.raises(RuntimeError, match="power cut"):
        train_folder(folder, should_stop=fail)
    assert newest_checkpoint(folder).name == f"{24:012d}"
    to_the_end(folder)
    assert lines(folder, ("Validation", "Loss")) == lines(measured, ("Validation", "Loss"))
    assert_bitwise_equal(final_state(folder), final_state(measured))


def test_two_ranks_measure_what_one_does(measured, pair):
    process, runs = pair
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert lines(runs / measured.name, "Validation") == lines(measured, "Validation")
    assert_bitwise_equal(final_state(runs / measured.name), final_state(measured))


def test_several_sets_have_the_names_of_their_folders_or_of_their_splits(measured, sets, tmp_path):
    once = ["exec.validate_kimg=10", "total_kimg=0.008"]
    both = lines(to_the_end(plan(sets, tmp_path / "a", "held-out", "other", words=once)), "Val")[8]
    terms = ("reconstruction", "kl", "loss")
    assert set(both) == {f"Validation/{name}/{term}" for name in ("held-out", "other") for term in terms}
    assert both["Validation/other/loss"] != both["Validation/held-out/loss"]
    parts = {**sets}
    for name, split in (("held-out", "val"), ("other", "test")):
        parts[name] = tmp_path / name
        shutil.copytree(sets[name], parts[name])
        manifest = load_manifest(parts[name]).replace(split=split)
        (parts[name] / "manifest.json").write_text(manifest.to_json())
    named = lines(to_the_end(plan(parts, tmp_path / "b", "held-out", "other", words=once)), "Val")[8]
    assert named["Validation/val/loss"] == both["Validation/held-out/loss"]
    assert named["Validation/test/loss"] == both["Validation/other/loss"]


@pytest.mark.parametrize(
    ("recipe", "held_out", "said"),
    [
        ("mspie.dcgan_bedroom_a", ["held-out"], "family.kind='dcgan' measures nothing on it; leave it out"),
        (RECIPE, ["large"], "holds 3 images of 32 px, the run trains on data.size_px=16; prepare it with --size 16"),
        (RECIPE, ["held-out", "train"], "is the set that the run is trained on; give another"),
        (RECIPE, ["held-out", "held-out"], "folders of one name; rename one"),
        (RECIPE, ["absent"], "no such folder"),
    ],
)
def test_a_set_that_does_not_fit_gets_one_line_and_exit_code_2(graticule, sets, tmp_path, recipe, held_out, said):
    given = [part for name in held_out for part in ("--validation", sets.get(name, tmp_path / name))]
    for verb in ("train", "submit"):
        words = (verb, recipe, "--tiny", "--data", sets["train"], "--runs", tmp_path / "runs", *given)
        code, _, err = graticule(*words)
        assert (code, len(err.strip().splitlines())) == (2, 1), err
        assert said in err
    assert not list(tmp_path.iterdir())


class Labelled(VAEConfig):
    """What a family that looks at labels says of itself."""

    classes_fields = ("family.G.num_classes",)

    def num_classes(self) -> int:
        return 7


def test_a_set_of_other_classes_is_refused(sets):
    run = find(RECIPE).make().tiny()
    run = RunConfig.model_construct(**{**dict(run), "family": Labelled(G=run.family.G)})
    with pytest.raises(UserError, match=r"has 0 classes, the recipe is for 7; .*family\.G\.num_classes=1"):
        check_validation(run, "somewhere", load_manifest(sets["held-out"]))


def test_a_set_that_is_gone_at_the_next_attempt_ends_it_before_anything_is_written(sets, tmp_path):
    there = {**sets, "held-out": shutil.copytree(sets["held-out"], tmp_path / "held-out")}
    folder = plan(there, tmp_path / "runs", "held-out")
    shutil.rmtree(there["held-out"])
    with pytest.raises(UserError, match=r"held-out'?: no such folder"):
        train_folder(folder, should_stop=lambda: False)
    assert not (folder / "events.jsonl").exists()


@pytest.mark.parametrize(("first", "second", "mean"), [(inf, -inf, nan), (inf, 1.0, inf), (nan, 1.0, nan)])
def test_a_value_that_is_not_finite_shows_in_the_mean_and_ends_nothing(sets, first, second, mean):
    family = find(RECIPE).make().tiny().family.build(0)
    values = torch.tensor([first, second] * HELD_OUT)
    family = replace(family, validate=lambda nets, step: {"x": values[: len(step.real)]})
    engine = Engine("fp32", 1)
    found = Validation(family, {"a": sets["held-out"]}, engine, 0, 4, 0)(family.nets)["Validation/x"]
    engine.close(failed=False)
    assert isnan(found) if isnan(mean) else found == mean
    assert json.loads(json.dumps({"x": found}))
