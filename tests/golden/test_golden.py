"""Recipes and networks as they were last reviewed: any change of a default, a name or a shape shows in a diff.

GRATICULE_UPDATE_GOLDEN=1 pytest tests/golden rewrites the files.
"""

import json
import os
from pathlib import Path

import pytest
import torch

from pipeline.cost import training_flop
from pipeline.plan import RunConfig
from pipeline.recipes import FACTS, recipes

HERE = Path(__file__).parent


def compare(name: str, text: str) -> None:
    path = HERE / name
    if "GRATICULE_UPDATE_GOLDEN" in os.environ:
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", recipes())
def test_the_resolved_configuration_is_the_reviewed_one(name):
    compare(f"{name}.config.json", recipes()[name].make().to_json())


@pytest.mark.parametrize("name", recipes())
def test_parameter_names_and_shapes_are_the_reviewed_ones(name):
    with torch.device("meta"):
        nets = recipes()[name].make().family.build(0).nets
    shapes = {f"{n}.{k}": list(v.shape) for n, net in nets.items() for k, v in net.state_dict().items()}
    compare(f"{name}.shapes.json", "{\n" + ",\n".join(f"  {json.dumps(k)}: {v}" for k, v in shapes.items()) + "\n}\n")


@pytest.mark.parametrize("name", recipes())
def test_a_configuration_survives_its_json(name):
    for run in (recipes()[name].make(), recipes()[name].make().tiny()):
        assert RunConfig.from_json(run.to_json()) == run


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_says_what_it_needs_and_what_was_published(name):
    recipe = recipes()[name]
    assert recipe.make().recipe == name
    assert set(recipe.facts) == set(FACTS)
    assert all(recipe.facts[f] for f in ("Command", "Data", "Cost", "Published"))
    assert name in recipe.facts["Command"]


COUNTED: dict[tuple[str, float], float] = {}  # of recipes that differ in their data alone


@pytest.mark.parametrize("name", recipes())
def test_the_cost_in_the_docstring_is_the_counted_one(name, unchecked):
    run = recipes()[name].make()
    key = run.family.to_json(), run.total_kimg
    if key not in COUNTED:
        COUNTED[key] = training_flop(run.family, run.total_kimg) * run.total_kimg * 1000
    flop = COUNTED[key]
    hours = flop / 1e14 / 3600
    much = f"{flop / 1e18:.1f} EFLOP: {hours:.0f} GPU-hours"
    little = f"{flop / 1e15:.0f} PFLOP: {hours:.2f} GPU-hours"
    least = f"{flop / 1e12:.1g} TFLOP, minutes on one CPU core"
    assert (much if hours >= 0.5 else little if flop >= 1e15 else least) in recipes()[name].facts["Cost"]
