"""ZeRO against plain data parallel training: weights, bit for bit wherever sums have one order, and whole runs.

Two real ranks over gloo go through all cases of zero_ranks.py once; the tests read what they wrote down. Where a rank
has several microbatches, ZeRO-2 and 3 add them up in another order than the plain engine, and only rounding differs.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.plan import ExecConfig, check, override_all
from pipeline.recipes import find
from pipeline.tracking import jsonl
from tests.runs import CIPS, ENV, MSPIE, assert_bitwise_equal, final_state, kill

RANKS = Path(__file__).with_name("zero_ranks.py")
ROUNDING = 1e-5  # an iteration moves weights by the learning rate, 2e-3; a wrong gradient shows in its size
BOTH_1, BOTH_2, G_3_D_1, G_3_D_2 = ({"G": g, "D": d} for g, d in ((1, 1), (2, 2), (3, 1), (3, 2)))


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What the two ranks wrote down: of the pair, and of rank 1 alone."""
    out = tmp_path_factory.mktemp("zero")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(RANKS),
        str(out),
    ]
    env = {**ENV, "PYTHONPATH": str(RANKS.parents[2])}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert "Warning" not in done.stderr
    pair, alone = (json.loads((out / f"seen_{rank}.json").read_text()) for rank in (0, 1))
    return {**pair, "alone": alone, "stdout": done.stdout}


@pytest.mark.parametrize(
    ("recipe", "zero"), [(MSPIE, BOTH_1), (MSPIE, BOTH_2), (CIPS, BOTH_1), (CIPS, BOTH_2), (CIPS, G_3_D_1)]
)
def test_twenty_iterations_end_in_the_weights_of_data_parallel_training(seen, recipe, zero):
    """With R1, path length and every size. One microbatch a rank: a sum of two has one order."""
    assert seen[f"parity {recipe} {zero}"] == 0.0


@pytest.mark.parametrize(("recipe", "zero"), [(MSPIE, BOTH_2), (CIPS, G_3_D_1)])
def test_four_microbatches_change_weights_by_rounding_only(seen, recipe, zero):
    assert 0.0 < seen[f"accumulation {recipe} {zero}"] < ROUNDING


@pytest.mark.parametrize("zero", [BOTH_1, BOTH_2, G_3_D_2])
def test_wgan_gp_agrees_and_so_do_parameters_without_a_gradient_scalars_and_several_microbatches(seen, zero):
    assert seen[f"penalty 1 {zero}"] == 0.0
    assert seen[f"penalty 4 {zero}"] <= (0.0 if zero == BOTH_1 else ROUNDING)


def test_small_overlapping_buckets_change_weights_by_rounding_only(seen):
    assert seen["penalty in small buckets"] < ROUNDING


def test_deepspeed_writes_to_the_log_what_a_file_asks_for_and_nothing_else(seen):
    """Of all cases one asks: for a line of each network each fourth step of its six."""
    said = [line for line in seen["stdout"].splitlines() if "[INFO]" in line and " step=" in line]
    assert sorted(line.partition(" step=")[2].split(",")[0] for line in said) == ["0", "0", "4", "4"]
    assert seen["stdout"].count("Creating torch.float32 ZeRO stage") == 2


def test_bf16_is_that_of_data_parallel_training_and_not_fp32(seen):
    assert seen["bf16"] == 0.0
    assert seen["bf16 from fp32"] > 1e-4


@pytest.mark.parametrize("zero", [BOTH_1, G_3_D_2])
def test_fp16_has_a_scaler_for_each_network_that_moves_as_without_zero(seen, zero):
    """Losses a thousand times too large: scales fall until they fit, and at another pace for each network."""
    scales = {name: scaler["scale"] for name, scaler in seen["fp16 scales"].items()}
    assert scales["G"] < 65536
    assert scales["D"] < 65536
    assert scales["G"] != scales["D"]
    assert seen[f"fp16 scales {zero}"] == seen["fp16 scales"]
    assert seen[f"fp16 told {zero}"] == seen["fp16 told"]
    assert seen[f"fp16 {zero}"] == 0.0


@pytest.mark.parametrize("zero", [BOTH_1, BOTH_2, G_3_D_2])
def test_nan_on_one_rank_moves_no_weight_and_every_rank_says_so(seen, zero):
    """In D's phase of the second iteration and in G's of the third."""
    told = [[True, True], [False, True], [True, False], [True, True], [True, True]]
    assert seen["not finite"] == [told, told]
    assert seen[f"not finite {zero}"] == [told, told]
    assert seen[f"not finite, weights {zero}"] == 0.0


@pytest.mark.parametrize(("recipe", "zero"), [(MSPIE, BOTH_2), (CIPS, G_3_D_1)])
def test_resume_from_disk_is_bitwise_equal(seen, recipe, zero):
    """Weights, Adam's state and its layout, after 10 iterations and 10 more in new objects."""
    assert seen[f"resume {recipe} {zero}"] == []


def test_a_run_over_four_engines_and_two_numbers_of_ranks_ends_in_the_bits_of_an_undisturbed_one(seen):
    """ZeRO-2 on one rank, ZeRO-3 and 1 on two, ZeRO-1 and 2 on two, plain on one; a checkpoint between each."""
    assert seen["legs"] == []


@pytest.mark.parametrize("zero", [BOTH_1, BOTH_2, G_3_D_2])
def test_one_rank_alone_agrees_and_its_checkpoint_has_the_same_layout(seen, zero):
    alone = seen["alone"]
    assert alone[f"alone {zero}"] == 0.0
    assert alone[f"alone, layout {zero}"] == []
    assert alone[f"fresh {zero}"] == []


def test_deepspeed_leaves_the_environment_as_it_was(seen):
    """But for what the import of torch and accelerate sets."""
    theirs = {"PYTORCH_NVML_BASED_CUDA_CHECK", "TORCHINDUCTOR_CACHE_DIR", "_MLFLOW_TELEMETRY_SESSION_ID"}
    assert set(seen["alone"]["environment"]) <= theirs


def test_a_sharded_run_killed_on_two_ranks_resumes_on_one_without_zero_to_the_same_bits(runner):
    """By the command line, with SIGKILL and an image number that no one chose."""
    killed, words = runner(CIPS), ("exec.batch_gpu=8", "total_kimg=0.16", "exec.checkpoint_kimg=0.03")
    process = killed.start(*words, "exec.zero={G: 3, D: 1}", ranks=2)
    deadline = time.monotonic() + 200
    while not list(killed.runs.glob("*/checkpoints/[0-9]*")):
        assert process.poll() is None, f"training ended early with {process.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    kill(process)
    folder = killed.train_here(*words)
    assert_bitwise_equal(final_state(folder), final_state(runner(CIPS).train_here(*words)))
    starts = [e for e in jsonl.read(folder / "events.jsonl") if e["event"] in ("start", "resume")]
    assert [(e["world"], e["nimg"] > 0) for e in starts] == [(2, False), (1, True)]


def refusal(recipe: str, *sets: str) -> str:
    with pytest.raises(UserError) as refused:
        check(*override_all(find(recipe).make().tiny(), ExecConfig(), sets))
    assert "\n" not in f"{refused.value}"
    return f"{refused.value}"


def test_zero_3_is_refused_for_a_network_that_an_exact_penalty_differentiates_and_only_for_that():
    said = refusal(CIPS, "exec.zero=3")
    assert "weights of D (stage 3), but the exact penalty of family.r1_gamma differentiates through them twice" in said
    assert "use exec.zero={G: 3, D: 2}, or family.r1_gamma=0" in said
    assert "exact penalty of family.pl_weight" in refusal(MSPIE, "exec.zero={G: 3, D: 1}")
    for sets in (["exec.zero={G: 3, D: 2}"], ["exec.zero=3", "family.r1_gamma=0"]):
        check(*override_all(find(CIPS).make().tiny(), ExecConfig(), sets))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("4", "zero=4: input should be stage 0, 1, 2 or 3"),
        ("two", "zero='two': input should be stage"),
        ("true", "zero=True: input should be stage"),
        ("{G:3,D:1}", "or one for each network, as in '{G: 3, D: 1}'"),
        ("{G: 5, D: 1}", "input should be stage 0, 1, 2 or 3"),
        ("{G: 3, F: 1}", "names network 'F'; this family has G, D"),
    ],
)
def test_a_wrong_stage_is_refused_with_what_is_allowed(value, said):
    assert said in refusal(CIPS, f"exec.zero={value}")


def test_without_deepspeed_the_run_says_what_to_install(runner, monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)  # import fails, as where it is not installed
    with pytest.raises(UserError, match=r"exec\.zero needs DeepSpeed .*pip install 'graticule\[deepspeed\]'"):
        runner(CIPS).train_here("exec.zero=2")
