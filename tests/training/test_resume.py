"""A run killed at a random moment and started again is the undisturbed run, bit for bit (CPU, fp32).

Real processes, real SIGKILL, real photographs. Each comparison covers G, D, G_ema and both optimizers.
"""

import json
import random
import signal
import time

import pytest

from pipeline.errors import UserError
from pipeline.run import newest_checkpoint
from pipeline.tracking import jsonl
from pipeline.training.checkpoint import problem_of
from tests.runs import CIPS, MSPIE, assert_bitwise_equal, final_state, kill


@pytest.fixture
def runner(half_batch_runner):
    return half_batch_runner


def kill_at_random(runner, *sets: str, ranks: int = 1) -> int:
    """SIGKILL every process at a random moment of the run's 240 images, 60 from checkpoint to checkpoint.

    Returns the nimg that a resume must start from.
    """
    moment, process = random.Random().uniform(0, 120), runner.start(*sets, ranks=ranks)
    deadline = time.monotonic() + 120
    while not list(runner.runs.glob("*/events.jsonl")) or saved_nimg(runner) < moment - 60:
        assert process.poll() is None, f"training ended early with {process.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(moment % 60 / 60 * 0.1)
    kill(process)
    return saved_nimg(runner)


def saved_nimg(runner) -> int:
    return max((int(p.name) for p in runner.folder().glob("checkpoints/[0-9]*")), default=0)


def curve(folder) -> dict[int, dict[str, float]]:
    lines = jsonl.metrics(folder / "metrics.jsonl")
    return {m["nimg"]: {k: v for k, v in m["metrics"].items() if k.startswith(("Loss", "Feedback"))} for m in lines}


@pytest.mark.parametrize("recipe", [MSPIE, CIPS])
def test_resume_after_sigkill_is_bitwise_equal_and_so_is_the_curve(runner, recipe):
    undisturbed, killed = runner(recipe).train_here(), runner(recipe)
    nimg_at_kill = kill_at_random(killed)
    folder = killed.train_here()
    assert_bitwise_equal(final_state(undisturbed), final_state(folder))
    starts = [e for e in jsonl.read(folder / "events.jsonl") if e["event"] in ("start", "resume")]
    assert [e["nimg"] for e in starts] == [0, nimg_at_kill]
    assert len(curve(undisturbed)) >= 4
    assert curve(undisturbed) == curve(folder)


def test_four_ranks_killed_and_resumed_are_bitwise_equal_to_four_undisturbed(runner):
    """Beyond two ranks the order of a sum matters: it must not depend on when a process was started."""
    small = "exec.batch_gpu=4"
    undisturbed, killed = runner(CIPS).train(small, ranks=4), runner(CIPS)
    kill_at_random(killed, small, ranks=4)
    assert_bitwise_equal(final_state(undisturbed), final_state(killed.train(small, ranks=4)))


@pytest.mark.parametrize(("recipe", "batch", "cuts"), [(MSPIE, 12, (12, 6, 3)), (CIPS, 16, (16, 8, 4))])
def test_microbatches_change_gradients_by_rounding_only(runner, recipe, batch, cuts):
    """After one iteration Adam's first moment is the gradient itself (beta1 is 0)."""
    once = f"total_kimg={batch / 1000}"
    whole, *others = (final_state(runner(recipe).train_here(once, f"exec.batch_gpu={cut}")) for cut in cuts)
    for name in [n for n in whole if n.endswith("exp_avg")]:
        for other in others:
            assert (other[name] - whole[name]).norm() <= 1e-5 * whole[name].norm() + 1e-9, name


def test_usr2_saves_at_the_next_boundary_and_the_same_command_resumes(runner):
    undisturbed, stopped = runner(MSPIE).train_here(), runner(MSPIE)
    process = stopped.start("exec.checkpoint_kimg=100")  # only the signal saves
    while not list(stopped.runs.glob("*/metrics.jsonl")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR2)
    assert process.wait(timeout=60) == 0
    events = [e["event"] for e in jsonl.read(stopped.folder() / "events.jsonl")]
    assert events[-2:] == ["checkpoint", "preempt"]
    folder = stopped.train_here("exec.checkpoint_kimg=100")
    assert_bitwise_equal(final_state(undisturbed), final_state(folder))


def test_a_run_may_move_from_two_ranks_to_one_half_way(runner):
    """Elastic: between two ranks and one not even the bits change."""
    moved = runner(MSPIE)
    kill_at_random(moved, ranks=2)
    assert_bitwise_equal(final_state(moved.train_here()), final_state(runner(MSPIE).train_here()))


def test_a_damaged_newest_checkpoint_is_passed_over_and_said_so(runner):
    run = runner(CIPS)
    folder = run.train_here("total_kimg=0.2")
    undamaged = final_state(folder)
    weights = max(folder.glob("checkpoints/[0-9]*")) / "G.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    run.train_here("total_kimg=0.2")
    assert_bitwise_equal(undamaged, final_state(folder))
    passed = [e for e in jsonl.read(folder / "events.jsonl") if e["event"] == "passed over"]
    assert len(passed) == 1
    assert "G.safetensors does not match" in json.dumps(passed)


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over_by_itself(runner):
    run = runner(CIPS)
    folder = run.train_here("total_kimg=0.1")
    for path in folder.glob("checkpoints/[0-9]*/D.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"no valid checkpoint .*D\.safetensors.* move it away"):
        run.train_here("total_kimg=0.1")


def test_a_file_error_on_rank_zero_ends_every_rank_with_its_reason(runner):
    run = runner(MSPIE)
    (run.plan() / "checkpoints").write_text("in the way of the folder")
    process = run.start(ranks=2)
    assert process.wait(timeout=60) != 0


def test_killed_while_it_writes_a_checkpoint_nothing_half_written_counts(runner):
    """A folder under its temporary name, as a kill in the middle of a save leaves it, is no checkpoint."""
    run = runner(CIPS)
    folder = run.train_here("total_kimg=0.1")
    newest = max(folder.glob("checkpoints/[0-9]*"))
    torn = newest.with_name(".000000000999.1.tmp")
    torn.mkdir()
    (torn / "G.safetensors").write_bytes(b"half")
    assert newest_checkpoint(folder) == newest
    (newest / "manifest.json").unlink()
    run.train_here("total_kimg=0.1")
    assert newest_checkpoint(folder) == newest
    assert not torn.exists()


def test_only_the_newest_checkpoints_are_kept_and_each_verifies(runner):
    folder = runner(CIPS).train_here("total_kimg=0.32", "exec.keep=2")
    kept = sorted(folder.glob("checkpoints/[0-9]*"))
    assert [p.name for p in kept] == [f"{n:012d}" for n in (304, 320)]
    assert [problem_of(p) for p in kept] == ["", ""]
    assert not list(folder.glob("checkpoints/.*"))
