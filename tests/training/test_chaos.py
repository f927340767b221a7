"""Six random SIGKILLs over one run, on one rank or two as it comes; tests/bench/chaos.py takes two hundred."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.bench.chaos import differences
from tests.runs import CIPS, MSPIE, SIZE_PX

CHAOS = Path(__file__).resolve().parents[1] / "bench" / "chaos.py"


def test_a_run_killed_at_six_random_instants_ends_in_the_bits_of_an_undisturbed_one(photos):
    command = [sys.executable, CHAOS, "6", "--ranks", "1", "2", "--seed", f"{os.getpid()}"]
    command += ["--recipe", MSPIE, "--data", photos(SIZE_PX[MSPIE])]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lost: 0" in done.stdout.splitlines()


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    from tests.runs import Runner

    return Runner(photos(SIZE_PX[CIPS]), tmp_path_factory.mktemp("runs"), CIPS).train_here("total_kimg=0.12")


def newest(folder: Path) -> Path:
    return max(folder.glob("checkpoints/[0-9]*"))


def other_moment(folder: Path) -> str:
    """The last bit of one number of Adam's state."""
    path = newest(folder) / "opt_D.pt"
    state = torch.load(path, weights_only=True)
    moment = next(iter(state["state"].values()))["exp_avg"].view(torch.int32)
    moment.view(-1)[0] ^= 1
    torch.save(state, path)
    return "opt_D."


def other_state(folder: Path) -> str:
    path = newest(folder) / "state.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps({**state, "nimg": state["nimg"] + 1}))
    return "state.json"


def other_point_written_over(folder: Path) -> str:
    """A line that a killed life left behind, of another course than the run then took."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines()
    record = json.loads(lines[0])
    record["metrics"] = {name: value * 1.0000001 for name, value in record["metrics"].items()}
    path.write_text("\n".join([json.dumps(record), *lines]) + "\n")
    return "curve at"


@pytest.mark.parametrize("change", [other_moment, other_state, other_point_written_over])
def test_the_comparison_sees_a_single_bit_and_lines_that_were_written_over(trained, tmp_path, change):
    assert differences(trained, trained) == []
    copy = Path(shutil.copytree(trained, tmp_path / "copy"))
    name = change(copy)
    found = differences(trained, copy)
    assert found
    assert all(one.startswith(name) for one in found), found
