"""Batches of every rank against images and positions counted by hand."""

import itertools
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pipeline.data import reader as reader_module
from pipeline.data.order import blocks_between, image_at, mirrored, order
from pipeline.data.reader import DataError, ShardReader, batches
from pipeline.spec import Batch, UserError, to_float

PRESENTED = {  # every way of presenting sets: one, one in blocks, a mix, a mix in blocks
    "one": {},
    "blocks": {"shuffle_block": 3, "shuffle_window": 2},
    "mix": {"weights": (2, 1)},
    "mixed blocks": {"weights": (2, 1), "shuffle_block": 2, "shuffle_window": 2},
}


def stream(root: Path | list[Path], world: int = 1, rank: int = 0, **changes) -> Iterator[Batch]:
    """Global batches of 8 in microbatches of 2, or of 1 where a rank has no more."""
    per_rank = 8 // world
    slices = [range(i, i + min(2, per_rank)) for i in range(rank * per_rank, (rank + 1) * per_rank, min(2, per_rank))]
    words = {"seed": 1, "mirror": True, "nimg": 0, "batch_size": 8, "slices": slices, "workers": 0}
    return batches(root, **{**words, **changes})


def presented(prepared, how: str) -> dict:
    return {"root": [prepared("png"), prepared("jpg")] if "mix" in how else prepared("png"), **PRESENTED[how]}


def taken(it: Iterator[Batch], n: int) -> tuple[Tensor, Tensor]:
    got = list(itertools.islice(it, n))
    it.close()  # type: ignore[attr-defined]
    return torch.cat([b.img for b in got]), torch.cat([b.label for b in got])


def together(of_ranks: list[tuple[Tensor, Tensor]], rounds: int) -> tuple[Tensor, Tensor]:
    """What the ranks took, laid out as the global batches."""
    img, label = (torch.cat([r[part].unflatten(0, (rounds, -1)) for r in of_ranks], 1) for part in (0, 1))
    return img.flatten(0, 1), label.flatten(0, 1)


def same(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


@pytest.mark.parametrize("workers", [0, 3])
def test_in_a_stream_an_error_names_the_image_and_comes_in_its_place(copy, workers):
    root = copy("jpg")
    seed = next(s for s in range(99) if min(k for k in range(10) if order(s, 10, k) >= 8) == 5)
    it = stream(root, seed=seed, workers=workers)
    (root / "shard-00002.tar").unlink()
    got = torch.cat([next(it).img for _ in range(2)])
    assert torch.equal(got, taken(stream(root, seed=seed, slices=[range(4)]), 1)[0])
    with pytest.raises(DataError, match=rf"image 5 of the run: .*shard-00002\.tar: sample {order(seed, 10, 5)} "):
        next(it)
    assert next(it, None) is None


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("how", PRESENTED)
def test_position_k_is_the_image_of_the_order_mirrored_by_its_coin(prepared, how, mirror):
    words = presented(prepared, how)
    roots = words["root"] if "mix" in how else [words["root"]]
    readers = [ShardReader(r) for r in roots]
    img, label = taken(stream(**words, mirror=mirror), 24)
    assert img.shape == (48, 3, 12, 12)
    assert img.dtype == torch.uint8
    block = words.get("shuffle_block", 1), words.get("shuffle_window", 1)
    shown = image_at(1, [10] * len(roots), words.get("weights", (1,)), np.arange(48), *block)
    assert len(roots) == 2 or shown[1].tolist() == [order(1, 10, k, *block) for k in range(48)]
    for k, (which, sample) in enumerate(np.stack(shown, axis=1).tolist()):
        image, expected = readers[which].read(sample)
        flip = mirror and mirrored(1, k)
        assert np.array_equal(img[k].numpy(), image[:, :, ::-1] if flip else image)
        assert label[k] == expected
    assert not mirror or {mirrored(1, k) for k in range(48)} == {True, False}


@pytest.mark.parametrize("how", PRESENTED)
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_any_ranks_and_workers_read_the_same_global_batches(prepared, how, workers):
    words, rounds = presented(prepared, how), 4
    whole = taken(stream(**words), 4 * rounds)
    for world in (1, 2, 4, 8):
        each = [
            taken(stream(**words, world=world, rank=r, workers=workers), max(1, 4 // world) * rounds)
            for r in range(world)
        ]
        assert same(whole, together(each, rounds))


@pytest.mark.parametrize("how", PRESENTED)
def test_a_resume_anywhere_with_other_ranks_continues_the_same(prepared, how):
    words, draw = presented(prepared, how), random.Random(how)
    whole = taken(stream(**words), 4 * 20)
    for world in (1, 2, 4, 8):
        begin = draw.randrange(1, 18)
        each = [
            taken(stream(**words, world=world, rank=r, nimg=8 * begin, workers=2), max(1, 4 // world) * 2)
            for r in range(world)
        ]
        assert same((whole[0][8 * begin : 8 * begin + 16], whole[1][8 * begin : 8 * begin + 16]), together(each, 2))


def test_a_start_may_lie_between_batches(prepared):
    words = presented(prepared, "mixed blocks")
    whole = taken(stream(**words), 12)
    assert same((whole[0][5:21], whole[1][5:21]), taken(stream(**words, nimg=5), 8))


@pytest.mark.parametrize("how", PRESENTED)
def test_a_start_deep_in_the_run_reads_no_more_than_one_at_its_beginning(prepared, how, monkeypatch):
    calls: Counter[str] = Counter()

    def counted(name: str):
        real = getattr(os, name)
        return lambda *args: (calls.update([name]), real(*args))[1]

    for name in ("pread", "preadv", "open", "posix_fadvise"):
        monkeypatch.setattr(reader_module.os, name, counted(name))
    reads = []
    for nimg in (0, 8 * 10**6, 7 * 10**12 + 8):
        calls.clear()
        taken(stream(**presented(prepared, how), nimg=nimg), 4)
        reads.append(calls["pread"])
        assert sum(calls.values()) < 60
    if "blocks" not in how:
        assert len(set(reads)) == 1  # a row of the index and an image for each


def test_workers_change_nothing_and_leave_the_global_generator_alone(prepared):
    before = torch.random.get_rng_state()
    assert same(taken(stream(prepared("jpg")), 20), taken(stream(prepared("jpg"), workers=2), 20))
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_batch_larger_than_the_set_runs_on_into_the_next_pass(prepared):
    _, label = taken(stream(prepared("png"), batch_size=32, slices=[range(0, 32)]), 1)
    assert torch.bincount(label[:30]).tolist() == [18, 12]


@pytest.mark.parametrize("slices", [[], [range(0)], [range(6, 9)], [range(-1, 2)]])
def test_slices_outside_the_batch_are_refused(prepared, slices):
    with pytest.raises(ValueError, match="slices"):
        stream(prepared("png"), slices=slices)


@pytest.mark.parametrize("workers", [0, 2])
def test_memory_is_used_again_but_never_that_of_a_batch_somebody_holds(prepared, workers):
    kept, places = [], set()
    it = stream(prepared("png"), workers=workers)
    for batch in itertools.islice(it, 100):
        places.add(batch.img.data_ptr())
        kept.append(batch.img[1] if len(kept) < 20 else None)  # a view holds the whole batch
        del batch
    it.close()
    expected, _ = taken(stream(prepared("png")), 20)
    assert torch.equal(torch.stack(kept[:20]), expected[1::2])
    assert len(places) <= 20 + (2 if workers == 0 else 20)


def test_labels_of_a_mix_are_those_of_all_classes_by_name(prepared, images_of):
    roots = [images_of({"b": 3, "c": 3}), images_of({"a": 2, "b": 2}), images_of({})]  # the last without classes
    names = {(0, 0): 0, (0, 1): 1, (1, 0): 2, (1, 1): 0}  # b, c, a in order of first appearance
    readers = [ShardReader(r) for r in roots]
    _, label = taken(stream(roots, weights=(1, 1, 1)), 24)
    which, sample = image_at(1, [len(r) for r in readers], (1, 1, 1), np.arange(48))
    own = [readers[w].read(s)[1] for w, s in zip(which.tolist(), sample.tolist(), strict=True)]
    assert label.tolist() == [names.get((w, o), -1) for w, o in zip(which.tolist(), own, strict=True)]
    assert set(label.tolist()) == {-1, 0, 1, 2}


@pytest.fixture
def images_of(tmp_path):
    """images_of({'a': 3}): a prepared set with three images of class a; {}: four without classes."""
    from dataprep.sources.folder import Folder
    from dataprep.transform import Transform
    from dataprep.writer import prepare

    numbers = itertools.count()

    def make(classes: dict[str, int]) -> Path:
        root = tmp_path / f"set{next(numbers)}"
        for name, count in classes.items() or [(".", 4)]:
            for i in range(count):
                (root / "images" / name).mkdir(parents=True, exist_ok=True)
                noise = np.random.default_rng([*str(root).encode(), i, *name.encode()]).integers(0, 256, (12, 12, 3))
                Image.fromarray(noise.astype(np.uint8)).save(root / "images" / name / f"{i}.png")
        prepare(Folder(root / "images"), root / "set", Transform(size_px=12))
        return root / "set"

    return make


def test_sets_that_cannot_be_mixed_are_refused(prepared):
    for roots, weights in [
        ([prepared("png")], (1, 2)),
        ([prepared("png")] * 2, ()),
        ([prepared("png")] * 2, (1, 2, 3)),
    ]:
        with pytest.raises(UserError, match="a weight each"):
            stream(roots, weights=weights)


def test_a_block_is_announced_to_the_kernel_before_its_images_are_read_and_by_one_rank(prepared, monkeypatch):
    root, block, window, world = prepared("raw"), 2, 2, 4
    log: list[tuple[str, int, int]] = []
    monkeypatch.setattr(ShardReader, "read_ahead", lambda self, first, count: log.append(("block", first, count)))
    real = ShardReader.read_into
    monkeypatch.setattr(
        ShardReader, "read_into", lambda self, i, out: (log.append(("read", i, 1)), real(self, i, out))[1]
    )
    announced = []
    for rank in range(world):
        log.clear()
        taken(stream(root, world, rank, nimg=7, shuffle_block=block, shuffle_window=window), 5)
        announced += [first for what, first, _ in log if what == "block"]
    # 40 images from position 7 on, that is from the window of positions 4 to 7 on, and one window beyond
    expected = blocks_between(1, 10, 4, 7 + 40 + 1 + block * window, block)
    assert Counter(announced) == Counter(expected[:, 1].tolist())
    log.clear()
    taken(stream(root, nimg=7, shuffle_block=block, shuffle_window=window), 20)
    ready: set[int] = set()
    for what, first, count in log:
        ready |= set(range(first, first + count)) if what == "block" else set()
        assert first in ready


def test_a_window_of_many_gigabytes_is_not_asked_for_at_once(prepared, monkeypatch):
    """Once ahead, as many images are announced as are shown; until then, twice as many."""
    asked: list[int] = []
    monkeypatch.setattr(reader_module, "FIRST_AHEAD", 4)
    monkeypatch.setattr(ShardReader, "read_ahead", lambda self, first, count: asked.append(count))
    it = stream(prepared("raw"), slices=[range(8)], nimg=5, shuffle_block=2, shuffle_window=1000)  # one window: ten
    shown = 0
    totals = []
    for _ in range(40):
        shown += next(it).img.shape[0]
        totals.append(sum(asked) - shown)
    assert totals[0] == 4 + 2 * 9 - 8  # from the start of the window at 0: blocks that begin before position 22
    assert max(abs(t - (5 + 10)) for t in totals[2:]) <= 2  # all to the end of the window after this one


def test_torch_starts_no_threads_for_the_readers_and_the_process_ends_with_them_at_work(prepared):
    code = f"""
import os, sys, torch
from pathlib import Path
import numpy as np
from pipeline.data.reader import batches, mirror_into
image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
before = len(os.listdir("/proc/self/task"))
out = np.empty_like(image)
mirror_into(image, out)
assert np.array_equal(out, image[:, ::-1])
assert len(os.listdir("/proc/self/task")) == before
it = batches(Path({str(prepared("png"))!r}), seed=0, mirror=True, nimg=0, batch_size=8, slices=[range(8)], workers=3)
for _ in range(20): next(it)
assert len(os.listdir("/proc/self/task")) == before + 3, os.listdir("/proc/self/task")
print("done")
"""
    env = {**os.environ, "OMP_NUM_THREADS": "4"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_an_unfinished_folder_is_the_users_mistake_before_the_first_batch(tmp_path):
    with pytest.raises(UserError, match="not a prepared data set"):
        stream(tmp_path)


def test_pixels_become_floats_in_the_layout_that_networks_had_before(prepared):
    batch = next(stream(prepared("png")))
    assert batch.img.is_contiguous(memory_format=torch.channels_last)
    real = to_float(batch.img)
    assert real.is_contiguous()
    assert torch.equal(real, to_float(batch.img.contiguous()))
