"""What is published is complete and comes back bit by bit; what is damaged is seen, named and passed over.

Each fault is a real one, on real files. Disks that refuse are in test_saver.py.
"""

import json
import math
import os
import random
import shutil
import time
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.errors import UserError
from pipeline.training import checkpoint
from pipeline.training import snapshot as files_of_one
from pipeline.training.checkpoint import Snapshot, State, discard_after, load, newest_valid, problem_of, prune, save
from tests.training.snapshots import FINGERPRINT, assert_same, snapshot, values

NAMES = ("G.safetensors", "D.safetensors", "G_ema.safetensors", "opt_G.pt", "opt_D.pt", "state.json", "manifest.json")
KINDS = ("G.safetensors", "opt_D.pt", "state.json", "manifest.json")  # one of each
FORMAT1 = Path(__file__).parent / "format1"
DTYPES = (*(torch.float64, torch.float32, torch.float16, torch.bfloat16), *(torch.int64, torch.uint8, torch.bool))


@pytest.fixture
def root(tmp_path) -> Path:
    """Two checkpoints: 8 and the newest, 16."""
    for nimg in (8, 16):
        save(tmp_path / "checkpoints", snapshot(nimg))
    return tmp_path / "checkpoints"


def names(root: Path) -> list[str]:
    """Everything there is, hidden folders too."""
    return sorted(p.name.lstrip("0") for p in root.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as e:
        load(folder, FINGERPRINT)
    assert "\n" not in str(e.value)
    assert str(folder) in str(e.value)
    return str(e.value)


def assert_passed_over(root: Path, *words: str) -> None:
    """The newest of `root` is damaged: said so in these words; 8 is found; loading 16 all the same is one error."""
    found, passed = newest_valid(root)
    assert found == root / f"{8:012d}"
    assert len(passed) == 1
    assert "\n" not in passed[0]
    assert all(word in passed[0] for word in (f"{16:012d}", *words)), passed[0]
    refusal(root / f"{16:012d}")


# What comes back


def test_a_checkpoint_comes_back_bit_by_bit_whatever_type_and_layout_a_tensor_has(tmp_path):
    odd = {f"of {t}": torch.randn(3, 5).mul(40).to(t) for t in DTYPES}
    odd |= {"none": torch.zeros(0, 3), "number": torch.tensor(math.pi), "turned": torch.randn(3, 4).T}
    odd |= {"channels last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)}
    odd |= {"nan": torch.tensor([math.nan, -0.0, math.inf])}
    whole = snapshot(24)
    state = whole.state.replace(
        stats={"Loss/G": (1 / 3, 12.0)}, train_sec=1.7, scalers={"G": {"scale": 65536.0}}, rollbacks=2
    )
    saved = Snapshot(state, {**whole.nets, "G": odd}, whole.optimizers)
    folder = save(tmp_path, saved)
    assert sorted(contents(folder)) == sorted(NAMES)
    assert_same(load(folder, FINGERPRINT), saved)
    by_the_library = load_file(folder / "G.safetensors")
    assert by_the_library.keys() == odd.keys()
    for name, t in odd.items():
        torch.testing.assert_close(by_the_library[name], t, rtol=0, atol=0, equal_nan=True)


def test_a_loss_that_is_not_finite_does_not_prevent_a_checkpoint(tmp_path):
    whole = snapshot(24)
    saved = Snapshot(whole.state.replace(stats={"Loss/G": (math.nan, 4.0)}), whole.nets, whole.optimizers)
    (total, count) = load(save(tmp_path, saved), FINGERPRINT).state.stats["Loss/G"]
    assert math.isnan(total)
    assert count == 4


def test_saving_copies_no_tensor_into_memory(tmp_path):
    big = snapshot(8, numel=1 << 19)
    assert big.nbytes > 14e6
    tracemalloc.start()
    try:
        save(tmp_path, big)
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


def test_every_file_and_folder_is_on_the_disk_before_the_rename_that_publishes_it(tmp_path, monkeypatch):
    done, fsync, rename = [], os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(Path(os.readlink(f"/proc/self/fd/{fd}"))), fsync(fd)))
    monkeypatch.setattr(os, "rename", lambda a, b: (done.append("rename"), rename(a, b)))
    save(tmp_path, snapshot(8))
    before, after = done[: done.index("rename")], done[done.index("rename") + 1 :]
    assert [p.name for p in before[:-1]] == list(NAMES)
    assert {p.parent for p in before[:-1]} == {before[-1]}
    assert after == [tmp_path]


def test_a_checkpoint_of_another_configuration_is_refused(root):
    with pytest.raises(UserError, match=f"belongs to configuration {FINGERPRINT}, this run is ffffffff"):
        load(root / f"{16:012d}", "ffffffff")


# The format before


def test_a_checkpoint_of_format_1_is_read_to_the_last_bit():
    """The folder was written by the code of format 1, from these values."""
    (folder,) = FORMAT1.iterdir()
    loaded = load(folder, FINGERPRINT)
    weights = {name: torch.arange(i, i + 6.0).reshape(2, 3) / 8 for i, name in enumerate(("G", "D", "G_ema"), 1)}
    nets = {name: {"weight": w, "count": torch.tensor(i)} for i, (name, w) in enumerate(weights.items(), 1)}
    optimizers = {}
    for step, name in ((4.0, "G"), (5.0, "D")):
        w = weights[name]
        entry = {"step": torch.tensor(step), "exp_avg": w / 4, "exp_avg_sq": w**2}
        (group,) = loaded.optimizers[name]["param_groups"]
        optimizers[name] = {"state": {0: entry}, "param_groups": [group]}
        assert (group["lr"], group["betas"], group["eps"], group["params"]) == (0.002, (0.0, 0.99), 1e-8, [0])
    stats, feedback = {"Loss/G": (1 / 3, 12.0)}, {"pl_mean": 0.1 + 0.2}
    state = State(fingerprint=FINGERPRINT, nimg=24, feedback=feedback, stats=stats, train_sec=1.7)
    assert_same(loaded, Snapshot(state, nets, optimizers))
    assert (state.format, state.scalers, state.rollbacks) == (2, {}, 0)


@pytest.mark.parametrize("healthy", [False, True])
def test_a_checkpoint_of_format_1_is_valid_taken_as_healthy_and_no_milestone(tmp_path, healthy):
    root = shutil.copytree(FORMAT1, tmp_path / "checkpoints")
    (folder,) = root.iterdir()
    assert problem_of(folder) == ""
    assert newest_valid(root, healthy=healthy) == (folder, [])
    before = contents(folder)
    assert save(root, snapshot(24)) == folder
    assert contents(folder) == before
    for nimg in (32, 40):
        save(root, snapshot(nimg))
    assert prune(root, 2) == [folder]


def test_a_format_of_the_future_is_refused_in_one_line_that_says_what_is_read(root):
    manifest = root / f"{16:012d}" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 3}))
    assert problem_of(manifest.parent) == "format 3, this version reads 1 and 2"
    assert "format 3, this version reads 1 and 2" in refusal(manifest.parent)
    assert_passed_over(root, "format 3")


# Damage


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("left", [0.0, 0.5, -1])
def test_a_truncated_file_is_seen(root, name, left):
    file = root / f"{16:012d}" / name
    size = file.stat().st_size
    os.truncate(file, size - 2 if left == -1 else int(size * left))  # the last byte of a manifest is a line end
    assert_passed_over(root, name)


@pytest.mark.parametrize("name", KINDS)
def test_a_flipped_bit_is_seen_wherever_it_is(root, name):
    """In every byte of the manifest, which nothing else vouches for; in others a few."""
    file = root / f"{16:012d}" / name
    sound = file.read_bytes()
    places = range(len(sound)) if name == "manifest.json" else random.sample(range(len(sound)), 20)
    for bit in (8 * place + random.randrange(8) for place in places):
        flipped = bytearray(sound)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        assert problem_of(file.parent), f"bit {bit}"
    assert_passed_over(root)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_seen(root, name):
    (root / f"{16:012d}" / name).unlink()
    assert_passed_over(root, name)


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", "3", '"x"', "{}", '{"format": 2}', '{"format": 1}', "[" * 100_000, "\0" * 700, "\xff"],
)
def test_a_garbled_manifest_is_seen(root, text):
    (root / f"{16:012d}" / "manifest.json").write_bytes(text.encode("latin1"))
    assert_passed_over(root, "manifest.json")


@pytest.mark.parametrize("changed", [{"files": {}}, {"healthy": None}, {"milestone": "perhaps"}, {"files": [1]}])
def test_a_manifest_that_does_not_say_what_it_must_is_seen(root, changed):
    file = root / f"{16:012d}" / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))
    assert_passed_over(root, "manifest.json")


def test_a_half_written_folder_is_no_checkpoint_and_goes_with_the_next_save(root):
    shutil.copytree(root / f"{16:012d}", root / f".{24:012d}.4711.tmp")
    assert newest_valid(root) == (root / f"{16:012d}", [])
    save(root, snapshot(32))
    assert names(root) == ["16", "32", "8"]


def test_a_checkpoint_deleted_while_it_is_read_is_one_error(root, monkeypatch):
    """Deleted for real, at the moment when its state was read and its tensors were not."""
    folder, read = root / f"{16:012d}", files_of_one.read_tensors
    monkeypatch.setattr(checkpoint, "read_tensors", lambda *a: (shutil.rmtree(folder), read(*a))[1])
    assert "No such file" in refusal(folder)


def test_one_changed_after_it_was_checked_is_one_error_too(root, monkeypatch):
    folder, read = root / f"{16:012d}", files_of_one.read_tensors
    monkeypatch.setattr(checkpoint, "read_tensors", lambda *a: (os.truncate(folder / "opt_G.pt", 99), read(*a))[1])
    assert "opt_G.pt does not match" in refusal(folder)


def test_checkpoints_pruned_while_they_are_looked_at_are_passed_over_for_what_came_since(root, monkeypatch):
    """A reader beside the run: both it saw are gone by the time it gets to them."""
    examine, calls = checkpoint.examine, []

    def meanwhile(folder: Path) -> tuple:
        calls.append(folder)
        if len(calls) == 1:
            monkeypatch.setattr(checkpoint, "examine", examine)
            for nimg in (24, 32):
                save(root, snapshot(nimg))
            prune(root, 2)
        return examine(folder)

    monkeypatch.setattr(checkpoint, "examine", meanwhile)
    assert newest_valid(root) == (root / f"{32:012d}", [])
    assert calls == [root / f"{16:012d}"]


def test_no_checkpoint_at_all_is_no_error(tmp_path):
    assert newest_valid(tmp_path / "none") == (None, [])
    assert prune(tmp_path / "none", 2) == []


def test_a_clock_set_back_an_hour_changes_no_order(tmp_path, monkeypatch):
    """time.time is patched; the times of the files are set for real."""
    now = time.time()
    for i, nimg in enumerate((8, 16, 24)):
        monkeypatch.setattr(time, "time", lambda i=i: now - 3600 * i)
        folder = save(tmp_path, snapshot(nimg))
        for path in (folder, *folder.iterdir()):
            os.utime(path, (now - 3600 * i,) * 2)
    assert newest_valid(tmp_path)[0] == tmp_path / f"{24:012d}"
    assert prune(tmp_path, 2) == [tmp_path / f"{8:012d}"]


# Saving the same nimg again


def test_a_valid_checkpoint_is_left_as_it_is(root):
    inode = (root / f"{16:012d}").stat().st_ino
    before = contents(root / f"{16:012d}")
    save(root, snapshot(16, value=3.0))
    assert (root / f"{16:012d}").stat().st_ino == inode
    assert contents(root / f"{16:012d}") == before


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_one_is_replaced(root, name):
    (root / f"{16:012d}" / name).write_bytes(b"damaged")
    assert values(load(save(root, snapshot(16, value=3.0)), FINGERPRINT)) == {3.0}
    assert names(root) == ["16", "8"]


def test_one_of_before_a_rollback_is_replaced(root):
    again = load(save(root, snapshot(16, value=3.0, rollbacks=1)), FINGERPRINT)
    assert values(again) == {3.0}
    assert again.state.rollbacks == 1
    assert names(root) == ["16", "8"]
    assert values(load(save(root, snapshot(16, value=5.0, rollbacks=1)), FINGERPRINT)) == {3.0}


def test_one_that_is_to_be_a_milestone_becomes_one_and_stays_one(root):
    for milestone in (True, False):
        save(root, snapshot(16), milestone=milestone)
        assert json.loads((root / f"{16:012d}" / "manifest.json").read_text())["milestone"] is True


def test_what_a_replacement_set_aside_counts_until_something_is_in_its_place(root):
    os.rename(root / f"{16:012d}", root / f".{16:012d}.old")
    found, passed = newest_valid(root)
    assert (found, passed) == (root / f".{16:012d}.old", [])
    assert checkpoint.nimg_of(found) == 16
    assert values(load(found, FINGERPRINT)) == {16.0}
    save(root, snapshot(24))
    assert names(root) == ["16", "24", "8"]
    shutil.copytree(root / f"{8:012d}", root / f".{24:012d}.old")
    assert newest_valid(root) == (root / f"{24:012d}", [])
    save(root, snapshot(32))
    assert names(root) == ["16", "24", "32", "8"]


# Health, pruning


def broken(nimg: int) -> Snapshot:
    """One value of D's second moment is not finite."""
    made = snapshot(nimg)
    made.optimizers["D"]["state"][0]["exp_avg_sq"][3] = math.nan
    return made


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["net", "half", "optimizer", "feedback", "scaler"])
def test_one_value_that_is_not_finite_anywhere_is_unhealthy(value, place):
    made = snapshot(8)
    assert made.healthy
    if place == "net":
        made.nets["G_ema"]["weight"][3] = value
    elif place == "half":
        made.nets["D"]["weight"] = torch.tensor([1, value], dtype=torch.bfloat16)
    elif place == "optimizer":
        made.optimizers["G"]["state"][0]["exp_avg"][3] = value
    else:
        changed = {"feedback": {"pl_mean": value}} if place == "feedback" else {"scalers": {"G": {"scale": value}}}
        made = Snapshot(made.state.replace(**changed), made.nets, made.optimizers)
    assert not made.healthy


def test_a_loss_that_is_not_finite_alone_is_healthy():
    made = snapshot(8)
    state = made.state.replace(stats={"Loss/G": (math.nan, 4.0)})
    assert Snapshot(state, {**made.nets, "n": {"count": torch.tensor([True])}}, made.optimizers).healthy


def test_an_unhealthy_one_is_passed_over_only_on_request(root):
    save(root, broken(24))
    assert newest_valid(root) == (root / f"{24:012d}", [])
    reason = f"{24:012d}: holds values that are not finite"
    assert newest_valid(root, healthy=True) == (root / f"{16:012d}", [reason])


def test_milestones_survive_pruning(tmp_path):
    for nimg in range(8, 56, 8):
        save(tmp_path, snapshot(nimg), milestone=nimg in (8, 24, 48))
        prune(tmp_path, 2)
    assert names(tmp_path) == ["24", "40", "48", "8"]


def test_the_newest_healthy_one_is_never_pruned(tmp_path):
    for nimg in (8, 16):
        save(tmp_path, snapshot(nimg))
    for nimg in (24, 32, 40, 48):
        save(tmp_path, broken(nimg))
        prune(tmp_path, 2)
        assert newest_valid(tmp_path, healthy=True)[0] == tmp_path / f"{16:012d}"
    assert names(tmp_path) == ["16", "40", "48"]
    save(tmp_path, snapshot(56))
    prune(tmp_path, 2)
    assert names(tmp_path) == ["48", "56"]


def test_a_damaged_one_does_not_pass_for_the_newest_healthy_one(root):
    for nimg in (24, 32):
        save(root, broken(nimg))
    os.truncate(root / f"{16:012d}" / "G.safetensors", 9)
    assert prune(root, 2) == [root / f"{16:012d}"]
    assert newest_valid(root, healthy=True)[0] == root / f"{8:012d}"


def test_what_lies_beyond_the_place_a_run_went_back_to_is_deleted_milestones_too(root):
    save(root, broken(24))
    save(root, broken(32), milestone=True)
    discard_after(root, 16)
    assert names(root) == ["16", "8"]


# Markers


def test_a_kept_checkpoint_is_spared_until_every_reason_is_released(tmp_path):
    fid, precision = "Metrics/fid50k_full/16px", "Metrics/" + "long" * 80 + "/16px"
    for nimg in (8, 16, 24, 32):
        save(tmp_path, snapshot(nimg))
    checkpoint.keep(tmp_path, 8, fid)
    checkpoint.keep(tmp_path, 8, precision)
    checkpoint.keep(tmp_path, 16, precision)
    checkpoint.keep(tmp_path, 999, fid)  # harmless
    assert (checkpoint.kept(tmp_path, fid), checkpoint.kept(tmp_path, precision)) == ([8, 999], [8, 16])
    assert [p.name for p in prune(tmp_path, 1)] == [f"{24:012d}"]
    checkpoint.release(tmp_path, 8, fid)
    checkpoint.release(tmp_path, 8, fid)
    checkpoint.release(tmp_path, 16, precision)
    assert [p.name for p in prune(tmp_path, 1)] == [f"{16:012d}"]
    assert newest_valid(tmp_path)[0] == tmp_path / f"{32:012d}"


def test_a_rollback_takes_the_markers_back_too(root):
    for nimg in (8, 16, 24):
        checkpoint.keep(root, nimg, "evaluating")
    discard_after(root, 8)
    assert checkpoint.kept(root, "evaluating") == [8]
