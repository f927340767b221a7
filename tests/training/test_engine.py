"""The seam between training and its ranks: four real processes over gloo, in worlds of four, three, two and one.

They are started once and do what engine_ranks.py says; each test reads what they saw. What two ranks and one make of
a whole run is in test_resume.py, loss scaling on one rank in test_precision.py, ZeRO in test_deepspeed.py.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.errors import UserError
from pipeline.training.engine import Engine, prefer_expandable_segments
from tests.runs import CIPS, ENV, MSPIE

ROOT = Path(__file__).resolve().parents[2]
TORCHS = {"TORCHINDUCTOR_CACHE_DIR"}  # set by torch itself when Adam is made first


def free_ports(count: int) -> list[str]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [str(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """rank -> what it wrote down."""
    out = tmp_path_factory.mktemp("ranks")
    env = {**ENV, "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1", "PORTS": " ".join(free_ports(4))}
    command = [sys.executable, str(Path(__file__).with_name("engine_ranks.py")), str(out)]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-6000:]
    return [json.loads((out / f"seen{rank}.json").read_text()) for rank in range(4)]


# What ranks tell each other


def test_what_rank_0_did_every_rank_has_and_what_it_raised_every_rank_raises_by_its_type(seen):
    for rank, one in enumerate(seen):
        assert one["on_main"] == {"of rank": 0}
        user, work, other = one["on_main fails"]
        assert (user, work) == (["UserError", "u"], ["WorkError", "w"])
        assert other == (["OddError", "o"] if rank == 0 else ["RuntimeError", "rank 0 failed: o"])


def test_what_one_rank_raised_all_raise_with_its_rank_and_host_and_users_mistakes_stay_theirs(seen):
    host = socket.gethostname()
    for rank, one in enumerate(seen):
        assert one["everywhere"] == ["returned", str(rank)]
        assert one["everywhere fails"] == [
            ["UserError", f"u (rank 2 on {host})"],
            ["WorkError", f"rank 1 on {host} failed: WorkError: w"],
            ["WorkError", f"rank 3 on {host} failed: OSError: o"],
            ["WorkError", f"rank 0 on {host} failed: OddError: o"],
        ]


def test_sums_flags_and_words_are_the_same_on_every_rank(seen):
    for one in seen:
        assert one["sum"] == pytest.approx([4, 6, 0.6], rel=1e-15)
        assert one["sum"] == seen[0]["sum"]
        assert one["any"] == [True, False]
        assert one["gather"] == [{"rank": r} for r in range(4)]


def test_four_ranks_add_gradients_in_pairs_which_shows_in_the_bits(seen):
    assert [(one["in pairs"], one["in a row"]) for one in seen] == [(True, False)] * 4


def test_ranks_that_drew_other_weights_train_those_of_rank_0(seen):
    assert seen[1]["drawn"] != seen[0]["drawn"]
    assert [one["used"] for one in seen] == [seen[0]["drawn"]] * 4


# The number of ranks


@pytest.mark.parametrize("recipe", [MSPIE, CIPS])
@pytest.mark.parametrize("how", ["2 ranks", "1 ranks", "legs"])
def test_four_two_and_one_rank_compute_the_same_bits_and_so_does_a_run_that_moves_between_them(seen, recipe, how):
    """20 iterations, R1 and path length due in several; the last one over checkpoints of four ranks and of two."""
    unequal, away, feedback = seen[0][f"straight {recipe}, {how}"]
    assert unequal == []
    assert away == 0
    assert feedback <= 1e-15  # float64 means, summed in the library's order


def test_three_ranks_equal_one_within_rounding(seen):
    _, away, _ = seen[0]["thirds, 1 ranks"]
    assert 0 < away < 1e-5


@pytest.mark.parametrize("recipe", [MSPIE, CIPS])
def test_four_microbatches_equal_one_within_rounding_after_twenty_iterations(seen, recipe):
    """After one iteration: test_microbatches_change_gradients_by_rounding_only in test_resume.py."""
    _, away, feedback = seen[0][f"in turn {recipe}, at once"]
    assert 0 < away < 1e-5
    assert feedback < 1e-6


@pytest.mark.parametrize("world", [4, 3, 2, 1])
def test_an_engine_leaves_the_environment_as_it_was(seen, world):
    assert set().union(*(one[f"environment {world}"] for one in seen[:world])) <= TORCHS


def test_memory_grows_in_segments_where_there_is_cuda_and_the_user_says_nothing_else(monkeypatch):
    """On a device: tests/bench/scale_memory.py. Names are torch's, PYTORCH_ALLOC_CONF since 2.9."""
    for present, said, expected in [
        (True, {}, "expandable_segments:True"),
        (True, {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64"),
        (True, {"PYTORCH_ALLOC_CONF": "expandable_segments:False"}, None),
        (False, {}, None),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(os, "environ", said)
            patch.setattr(torch.cuda, "is_available", lambda present=present: present)
            prefer_expandable_segments()
        assert said.get("PYTORCH_CUDA_ALLOC_CONF") == expected


# Precision


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_in_reduced_precision_two_ranks_resume_bit_by_bit_and_equal_one(seen, precision):
    assert seen[0][f"{precision} resumed"] == []
    assert seen[0][f"{precision}, 1 ranks"] == [[], 0, 0]


def test_the_scale_that_was_found_goes_on_from_the_checkpoint(seen):
    half, end = seen[0]["fp16 scales"]
    assert all(scale < 65536 for scale in half.values())
    assert all(end[net] < half[net] for net in half)
    assert seen[0]["bf16 scales"] == [{}, {}]


def test_an_overflow_of_one_rank_moves_neither_weights_nor_adam_on_any_and_worries_nobody(seen):
    d, g, d_later = seen[0]["overflow moved"]
    assert (d, g, d_later) == ([False, False], [True, True], [True, True])
    before, after, later = seen[0]["overflow scales"]
    assert (after, later) == ({**before, "D": before["D"] / 2},) * 2
    assert [one["overflow told"] for one in seen[:2]] == [[[True, True]] * 3] * 2


def test_a_loss_that_is_not_a_number_worries_the_run_in_fp16_too(seen):
    """In fp32 every rank says so; in fp16 the rank whose loss it was, as gradients may overflow for a while."""
    good, bad = [True, True], [False, True]
    assert [one["nan fp32 told"] for one in seen[:2]] == [[good, bad, good]] * 2
    assert [one["nan fp16 told"] for one in seen[:2]] == [[good, good, good], [good, bad, good]]
    d, g, d_later = seen[0]["nan fp16 moved"]
    assert (d, g, d_later) == ([False, False], [True, True], [True, True])


# Words of a launcher


@pytest.mark.parametrize("word", ["bf16", "fp16", "fp8"])
def test_a_precision_of_the_launcher_that_contradicts_the_run_is_refused_and_stays_where_it_was(monkeypatch, word):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", word)
    with pytest.raises(UserError, match=f"--mixed_precision {word} contradicts precision='fp32' of the run; d") as e:
        Engine("fp32", 1)
    assert (f"--set precision={word}" in str(e.value)) == (word != "fp8")
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == word


def test_a_launchers_word_that_agrees_leaves_precision_to_the_engine_and_is_there_afterwards(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    engine = Engine("bf16", 1)
    assert engine.accelerator.mixed_precision == "no"
    engine.close(failed=False)
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "bf16"


def test_a_world_of_another_size_is_refused_and_leaves_nothing_behind():
    before = dict(os.environ)
    with pytest.raises(UserError, match="asks for 2 ranks, 1 came up"):
        Engine("fp32", 2)
    assert dict(os.environ) == before
    Engine("fp32", 1).close(failed=False)
