"""A configuration may get more fields: what was made before keeps its name, its folder and its checkpoints.

Names and tests/golden/mspie.table5_f.before.json were written by the code of before any field was added.
"""

import hashlib
import json
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.config import Config, fingerprint
from pipeline.errors import UserError
from pipeline.plan import ExecConfig, RunConfig, override_all, run_name
from pipeline.recipes import find
from pipeline.run import train_folder
from pipeline.tracking import jsonl
from tests.runs import CIPS, MSPIE, assert_bitwise_equal, final_state

BEFORE = Path(__file__).parents[1] / "golden" / "mspie.table5_f.before.json"
NAMES = {MSPIE: ("e5ca24a9", "9736e5f0"), CIPS: ("8d6f2ef8", "9d0fe3e4")}  # of the recipe, and of its tiny()
ADDED = {  # each with another value than its default; after those that it needs
    MSPIE: {
        "family.G.fp16_blocks=1",
        "family.D.fp16_blocks=1",
        "family.reg_step=separate",
        "family.G.block=deconv",
        "family.G.block=up_conv family.G.padding=none",
        "family.G.block=up_conv family.G.padding=none family.G.padded_skip=true",
        "family.G.coords.mode=geo",
    },
    CIPS: {
        "family.D.fp16_blocks=1",
        "family.D.coords=true",
        "family.G.variant=base",
        "family.G.taper=true",
        "family.G.lookup=half_pixel",
        "family.G.embedding_px=128",
        "family.G.cylinder_px=512",
        "family.D.resolution_px=128 family.patch_px=128",
        "family.grow_kimg=[100]",
        "data.size_px=300 family.crop_of_px=300",
        "family.rotate=true",
    },
}
EXEC = ("milestone_kimg", "zero", "ds_config", "not_finite_limit", "on_not_finite", "hang_sec")


def added_fields(config: Config, prefix: str = "") -> set[str]:
    out = set()
    for name, field in type(config).model_fields.items():
        value, extra = getattr(config, name), field.json_schema_extra
        if isinstance(extra, dict) and extra.get("added"):
            out.add(prefix + name)
        elif isinstance(value, Config):
            out |= added_fields(value, f"{prefix}{name}.")
    return out


def without(tree: dict, fields: set[str]) -> dict:
    """The JSON as the code of before would have written it."""
    for field in fields:
        *groups, leaf = field.split(".")
        at = tree
        for group in groups:
            at = at[group]
        at.pop(leaf, None)
    return tree


@pytest.mark.parametrize("recipe", [MSPIE, CIPS])
def test_recipes_keep_the_names_they_had(recipe):
    run = find(recipe).make()
    assert [run_name(r) for r in (run, run.tiny())] == [f"{recipe}-{name}" for name in NAMES[recipe]]


def test_a_config_written_before_is_the_run_of_today():
    assert BEFORE.read_text() != find(MSPIE).make().to_json()
    run = RunConfig.from_json(BEFORE.read_text())
    assert run == find(MSPIE).make()
    assert fingerprint(run) == NAMES[MSPIE][0]
    assert without(json.loads(run.to_json()), added_fields(run)) == json.loads(BEFORE.read_text())


@pytest.mark.parametrize(("recipe", "setting"), [(recipe, s) for recipe in ADDED for s in sorted(ADDED[recipe])])
def test_another_value_of_an_added_field_is_another_run(recipe, setting):
    run, changes = find(recipe).make(), setting.split()
    known, other = {fingerprint(run)}, override_all(run, ExecConfig(), changes)[0]
    with suppress(UserError):  # patch_px cannot be left out
        known.add(fingerprint(override_all(run, ExecConfig(), changes[:-1])[0]))
    assert fingerprint(other) not in known
    assert fingerprint(RunConfig.from_json(other.to_json())) == fingerprint(other)


@pytest.mark.parametrize("recipe", ADDED)
def test_every_added_field_is_tried_here(recipe):
    found = added_fields(find(recipe).make())
    tried = {setting.split()[-1].partition("=")[0] for setting in ADDED[recipe]}
    assert found == {name if name in found else name.rpartition(".")[0] for name in tried}  # a group counts as one


def test_a_run_folder_of_before_resumes_to_the_same_bits(runner):
    """Half of a run as the code of before would have left it: config.json, exec.json, a checkpoint of format 1."""
    sets = ("family.G.num_upblocks=1", "family.D.resolution_px=8", "total_kimg=0.12")
    straight, cut = runner(MSPIE).train_here(*sets), runner(MSPIE)
    folder, polls = cut.plan(*sets), iter(range(100))
    assert train_folder(folder, should_stop=lambda: next(polls) > 8) == "stopped"
    fields = added_fields(find(MSPIE).make())
    rewrite(folder / "config.json", lambda tree: without(tree, fields))
    rewrite(folder / "exec.json", lambda tree: without(tree, {f"exec.{name}" for name in EXEC}))
    for checkpoint in folder.glob("checkpoints/[0-9]*"):
        rewrite(checkpoint / "state.json", lambda tree: without(tree, {"scalers", "rollbacks"}) | {"format": 1})
        rewrite(checkpoint / "manifest.json", lambda tree, of=checkpoint: manifest_of_format1(tree, of))
    cut.train_here(*sets)
    assert [e["event"] for e in jsonl.read(folder / "events.jsonl")].count("resume") == 1
    assert_bitwise_equal(final_state(straight), final_state(folder))


def rewrite(path: Path, change) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def manifest_of_format1(tree: dict, folder: Path) -> dict:
    state = (folder / "state.json").read_bytes()
    entry = {"bytes": len(state), "sha256": hashlib.sha256(state).hexdigest()}
    return {"format": 1, "files": tree["files"] | {"state.json": entry}}
