"""What an attempt does when something goes wrong half-way: values that are not finite, a disk, a shard, a signal.

Small real runs on photographs in this process, or real ranks where a hang could be the consequence. Values that are
not finite are faked in one loss, as nothing else makes them appear and go away again.
"""

import json
import os
import subprocess
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from pipeline.errors import UserError, WorkError
from pipeline.families import logistic
from pipeline.lock import locked
from pipeline.run import newest_checkpoint, train_folder
from pipeline.tracking import jsonl
from pipeline.training.checkpoint import all_checkpoints
from tests.runs import CIPS, ENV, GRATICULE, MSPIE, assert_bitwise_equal, final_state

BATCH = 16  # of the small CIPS run, whose D makes one loss an iteration and microbatch
LOSSES = BATCH // 8


@pytest.fixture
def runner(half_batch_runner):
    return half_batch_runner


def events(folder: Path, name: str) -> list[dict]:
    return [e for e in jsonl.read(folder / "events.jsonl") if e["event"] == name]


def not_finite(monkeypatch, bad: range, value: float = float("nan")) -> None:
    """D's loss is `value` in these iterations of this process (a fake)."""
    calls, real = iter(range(10**6)), logistic.logistic_d

    def loss(real_logits, fake_logits):
        out = real(real_logits, fake_logits)
        return out * value if next(calls) // LOSSES in bad else out

    monkeypatch.setattr(logistic, "logistic_d", loss)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_few_iterations_that_are_not_finite_move_no_weight_and_the_run_goes_on(runner, monkeypatch, value):
    not_finite(monkeypatch, range(5, 7), value)
    folder = runner(CIPS).train_here("total_kimg=0.24", "exec.not_finite_limit=3")
    assert all(v.isfinite().all() for v in final_state(folder).values())
    assert not list(folder.glob("not-finite-*"))


def test_too_many_in_a_row_end_the_run_and_name_phase_and_images(runner, monkeypatch):
    not_finite(monkeypatch, range(9, 99))
    run = runner(CIPS)
    folder = run.plan("exec.not_finite_limit=3")
    with pytest.raises(WorkError, match=r"not finite in 3 iterations .*not-finite-0+192\.json.*on_not_finite=rollback"):
        train_folder(folder, should_stop=lambda: False)
    assert "not finite" in events(folder, "failed")[0]["error"]
    said = json.loads((folder / "not-finite-000000000192.json").read_text())
    assert "144" in json.dumps(said)
    assert json.dumps(said).count(f"{run.data}:") == 3 * BATCH
    assert all(v.isfinite().all() for v in final_state(folder).values())


def test_on_request_the_run_goes_back_to_a_healthy_checkpoint_and_on_with_other_draws(runner, monkeypatch):
    undisturbed = runner(CIPS).train_here("total_kimg=0.32")
    not_finite(monkeypatch, range(9, 12))
    sets = ("total_kimg=0.32", "exec.not_finite_limit=3", "exec.on_not_finite=rollback")
    folder = runner(CIPS).train_here(*sets)
    (told,) = events(folder, "rollback")
    assert (told["nimg"], told["to"], told["rollbacks"]) == (192, 128, 1)
    assert [m["rollbacks"] for m in jsonl.read(folder / "metrics.jsonl")][-1] == 1
    assert json.loads((newest_checkpoint(folder) / "state.json").read_text())["rollbacks"] == 1
    a, b = final_state(undisturbed), final_state(folder)
    assert any(not torch.equal(a[name], b[name]) for name in a), "the same draws would give the same values again"


def test_a_rollback_is_part_of_the_run_a_resume_continues_behind_it(runner, monkeypatch):
    sets = ("total_kimg=0.32", "exec.not_finite_limit=3", "exec.on_not_finite=rollback")
    not_finite(monkeypatch, range(9, 12))
    whole = runner(CIPS).train_here(*sets)
    monkeypatch.undo()
    not_finite(monkeypatch, range(9, 12))
    folder = runner(CIPS).plan(*sets)
    stop = lambda: bool((folder / "events.jsonl").exists() and events(folder, "rollback")) and stop_soon()  # noqa: E731
    polls = iter(range(10**6))
    stop_soon = lambda: next(polls) > 6  # noqa: E731
    assert train_folder(folder, should_stop=stop) == "stopped"
    monkeypatch.undo()
    assert train_folder(folder, should_stop=lambda: False) == "done"
    assert_bitwise_equal(final_state(whole), final_state(folder))


def test_values_that_stay_not_finite_end_the_run_after_three_rollbacks(runner, monkeypatch):
    not_finite(monkeypatch, range(9, 10**6))
    folder = runner(CIPS).plan("exec.not_finite_limit=2", "exec.on_not_finite=rollback")
    with pytest.raises(WorkError, match="after 3 rollbacks"):
        train_folder(folder, should_stop=lambda: False)
    assert len(events(folder, "rollback")) == 3


@pytest.fixture
def small_disk(disk) -> Path:
    """Of two megabytes."""
    return disk("size=2m")


def test_a_full_disk_refuses_checkpoints_and_the_run_goes_on(runner, small_disk, capfd):
    """The checkpoints' folder is full from the start; room is made half-way."""
    filler = small_disk / "filler"
    filler.write_bytes(bytes(1_900_000))
    folder = runner(CIPS).plan("total_kimg=0.32")
    (folder / "checkpoints").symlink_to(small_disk, target_is_directory=True)

    def until_two_failed() -> bool:
        path = folder / "events.jsonl"
        if path.exists() and len(events(folder, "checkpoint failed")) == 2:
            filler.unlink(missing_ok=True)
        return False

    assert train_folder(folder, should_stop=until_two_failed) == "done"
    assert "No space left" in events(folder, "checkpoint failed")[0]["error"]
    assert "No space left" in capfd.readouterr().err
    assert all_checkpoints(folder / "checkpoints")[0].name == f"{320:012d}"


def test_a_run_that_cannot_save_its_end_says_so_and_resumes(runner, small_disk):
    (small_disk / "filler").write_bytes(bytes(1_900_000))
    folder = runner(CIPS).plan("total_kimg=0.1")
    (folder / "checkpoints").symlink_to(small_disk, target_is_directory=True)
    with pytest.raises(WorkError, match=r"trained to the end, but the last checkpoint is not on disk: .*No space left"):
        train_folder(folder, should_stop=lambda: False)
    (small_disk / "filler").unlink()
    assert train_folder(folder, should_stop=lambda: False) == "done"


def test_a_signal_during_sampling_leaves_the_grid_to_the_resume(runner, monkeypatch):
    run = runner(MSPIE)
    sets = ("total_kimg=0.24", "exec.sample_kimg=0.12")
    whole = run.train_here(*sets)
    folder = runner(MSPIE).plan(*sets)
    from pipeline import runlog

    asked, real = [], runlog.generate

    def generate(G, seeds, size, stop):
        if len(list((folder / "samples").glob("*-*.png"))) == 4:  # the second of three sizes at the second time
            asked.append(True)
        return real(G, seeds, size, stop=stop)

    monkeypatch.setattr(runlog, "generate", generate)
    assert train_folder(folder, should_stop=lambda: bool(asked)) == "stopped"
    assert len(list((folder / "samples").glob("*-*.png"))) == 4
    monkeypatch.undo()
    assert train_folder(folder, should_stop=lambda: False) == "done"
    grids = {p.name: p.read_bytes() for p in (folder / "samples").glob("*.png")}
    assert grids == {p.name: p.read_bytes() for p in (whole / "samples").glob("*.png")}
    assert_bitwise_equal(final_state(whole), final_state(folder))


def test_a_shard_that_vanishes_is_named_and_no_rank_hangs(runner, photos, tmp_path):
    import shutil

    run = runner(MSPIE)
    run.data = shutil.copytree(run.data, tmp_path / "set")
    process = run.start("total_kimg=0.48", ranks=2)
    deadline = time.monotonic() + 120
    while not list(run.runs.glob("*/metrics.jsonl")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for shard in run.data.glob("shard-*.tar"):
        with open(shard, "r+b") as f:
            f.truncate(100)
    assert process.wait(timeout=90) != 0
    assert "shard-" in events(run.folder(), "failed")[0]["error"]


def test_a_clock_that_jumps_back_changes_nothing(runner, monkeypatch):
    undisturbed = runner(CIPS).train_here("total_kimg=0.16")
    now = time.time()
    times = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: now - 3600 * (next(times) % 3))
    folder = runner(CIPS).plan("total_kimg=0.16")
    polls = iter(range(10**6))
    assert train_folder(folder, should_stop=lambda: next(polls) > 6) == "stopped"
    assert train_folder(folder, should_stop=lambda: False) == "done"
    assert_bitwise_equal(final_state(undisturbed), final_state(folder))
    assert [m["metrics"]["Timing/train_sec"] > 0 for m in jsonl.metrics(folder / "metrics.jsonl")]


def test_resume_of_a_resume_is_bitwise_equal(runner):
    undisturbed, folder = runner(CIPS).train_here(), runner(CIPS).plan()
    for life in range(3):
        polls = iter(range(10**6))
        outcome = train_folder(folder, should_stop=lambda p=polls: next(p) > 3)
        assert outcome == "stopped", life
    assert train_folder(folder, should_stop=lambda: False) == "done"
    assert_bitwise_equal(final_state(undisturbed), final_state(folder))


def test_while_one_attempt_writes_another_waits_and_then_refuses_with_the_holders_name(runner):
    """As ranks do that outlive a launcher which was killed."""
    small = runner(CIPS)
    folder = small.plan("exec.hang_sec=1", "total_kimg=0.032")
    with locked(folder / ".attempt", ""):
        with pytest.raises(UserError, match=rf"process {os.getpid()} on .* is training it; wait until"):
            train_folder(folder, should_stop=lambda: False)
        assert not (folder / "events.jsonl").exists()
    holder = ExitStack()
    holder.enter_context(locked(folder / ".attempt", ""))
    small.plan("exec.hang_sec=60", "total_kimg=0.032")
    threading.Timer(0.5, holder.close).start()
    assert train_folder(folder, should_stop=lambda: False) == "done"
    assert not (folder / ".attempt").exists()


def test_a_disk_that_refuses_the_lock_does_not_stop_training(runner):
    small = runner(CIPS)
    folder = small.plan("total_kimg=0.016")
    (folder / ".attempt").mkdir()  # where the lock's file would be made
    assert train_folder(folder, should_stop=lambda: False) == "done"


def test_a_run_that_no_job_started_has_its_code_beside_it_if_there_is_room(runner, monkeypatch, capfd):
    from pipeline import provenance

    folder = runner(CIPS).train_here("total_kimg=0.016")
    kept = json.loads((folder / "code" / "snapshot.json").read_text())["sha256"]
    assert kept.startswith(events(folder, "start")[0]["code"])

    def refuse(place):
        raise WorkError(f"{place}: no room")  # a fake

    monkeypatch.setattr(provenance, "snapshot_code", refuse)
    folder = runner(CIPS).train_here("total_kimg=0.016")
    assert not (folder / "code").exists()
    assert "no room; training goes on" in capfd.readouterr().err


HANG = """
import os, sys, time
from pipeline.families import logistic
real, calls = logistic.logistic_d, iter(range(10**6))
def loss(*logits):
    if os.environ["RANK"] == "1" and next(calls) == 20:
        time.sleep(600)
    return real(*logits)
logistic.logistic_d = loss
from pipeline.cli import main
sys.argv[0] = "graticule"
main()
"""


def test_a_rank_that_hangs_ends_the_run_with_its_name(runner, tmp_path):
    """One of two real ranks sleeps in D's phase (a fake hang)."""
    run, script = runner(CIPS), tmp_path / "hang.py"
    script.write_text(HANG)
    command = run.command("exec.hang_sec=10", "exec.batch_gpu=4", ranks=2)
    command[command.index(GRATICULE)] = str(script)
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=150)
    assert done.returncode != 0
    (told,) = events(run.folder(), "watchdog")
    assert told["error"].startswith("rank 1 on ")
    assert ": D of image " in told["error"]
    assert told["error"] in done.stderr
    assert "in loss" in done.stderr, "the stack of the rank that hangs"
