"""Every recipe trains, resumes, changes scale or stage and draws a size it never saw: two real ranks over gloo, once.

The code is in recipe_ranks.py. Two ranks and one that was resumed from disk end in the same bits: weights, G_ema,
both optimizers, feedback.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import ENV, free_port
from tests.training.recipe_ranks import CASES, same_as, small

RANKS = Path(__file__).with_name("recipe_ranks.py")


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    out = tmp_path_factory.mktemp("recipes")
    env = {**ENV, "PYTHONPATH": str(RANKS.parents[2])}
    env |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    command = [sys.executable, str(RANKS), str(out)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    pair, other = (json.loads((out / f"seen_{rank}.json").read_text()) for rank in (0, 1))
    return {name: {**other[first], **pair[first]} for name, first in same_as().items()}


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_and_one_that_was_resumed_from_disk_end_in_the_same_bits(seen, name):
    assert seen[name]["two ranks"] == seen[name]["one rank, resumed"]


@pytest.mark.parametrize("name", CASES)
def test_it_changes_scale_if_it_has_several(seen, name):
    several = len(small(name).family.sizes()) > 1
    assert (len(seen[name]["sizes"]) > 1) == several


@pytest.mark.parametrize("name", CASES)
def test_its_generator_draws_a_size_and_an_aspect_that_it_never_saw(seen, name):
    if "unseen" not in seen[name]:
        assert small(name).family.kind in ("depth", "supervised")  # they draw nothing
        return
    h, w = seen[name]["unseen"]
    assert h != w
    assert seen[name]["drawn"] == [2, h, w, 3]
    assert seen[name]["contrast"] > 0
