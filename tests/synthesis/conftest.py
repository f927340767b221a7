"""Small untrained generators, made once a session. Tests that write into a run folder make one of their own."""

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from pipeline.synthesis.sample import load_generator
from tests.runs import MSPIE
from tests.synthesis.untrained import NIMG, write_run


@pytest.fixture(scope="session")
def untrained(tmp_path_factory) -> Callable[[str], Path]:
    """recipe -> a run folder."""
    made: dict[str, Path] = {}

    def get(recipe: str = MSPIE) -> Path:
        if recipe not in made:
            made[recipe] = write_run(tmp_path_factory.mktemp("untrained") / recipe, recipe)
        return made[recipe]

    return get


@pytest.fixture(scope="session")
def generator(untrained) -> Callable[[str], nn.Module]:
    """recipe -> its untrained generator."""

    def get(recipe: str = MSPIE) -> nn.Module:
        folder = untrained(recipe)
        return load_generator(folder / "config.json", folder / "checkpoints" / f"{NIMG:012d}" / "G_ema.safetensors")

    return get
