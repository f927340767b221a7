"""The reader against the tar module and Pillow; the batches against positions counted by hand."""

import io
import itertools
import multiprocessing
import os
import pickle
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pipeline.data import reader as reader_module
from pipeline.data.order import mirrored, order
from pipeline.data.reader import DataError, ShardReader, batches
from pipeline.spec import Batch, UserError


def by_hand(root: Path) -> list[np.ndarray]:
    images = []
    for shard in sorted(root.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for name in tar.getnames():
                if not name.endswith(".json"):
                    data = tar.extractfile(name).read()  # type: ignore[union-attr]
                    images.append(np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1))
    return images


def stream(root: Path, world: int = 1, rank: int = 0, **changes) -> Iterator[Batch]:
    """Global batches of 8 in microbatches of 2."""
    per_rank = 8 // world
    slices = [range(i, i + 2) for i in range(rank * per_rank, (rank + 1) * per_rank, 2)]
    words = {"seed": 1, "mirror": True, "nimg": 0, "batch_size": 8, "slices": slices, "workers": 0}
    return batches(root, **{**words, **changes})


def taken(it: Iterator[Batch], n: int) -> tuple[Tensor, Tensor]:
    got = list(itertools.islice(it, n))
    return torch.cat([b.img for b in got]), torch.cat([b.label for b in got])


def same(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


@pytest.mark.parametrize("encoding", ["png", "jpg"])
def test_every_image_equals_what_tarfile_and_pillow_read(prepared, encoding):
    reader = ShardReader(prepared(encoding))
    expected = by_hand(prepared(encoding))
    assert len(reader) == len(expected) == 10
    for i in (*range(10), 3, 0):
        image, label = reader.read(i)
        assert np.array_equal(image, expected[i])
        assert label == i // 6


def test_numbers_outside_the_set_are_refused(prepared):
    for i in (-1, 10):
        with pytest.raises(IndexError):
            ShardReader(prepared("png")).read(i)


def test_more_shards_than_open_files_are_read(prepared, monkeypatch):
    monkeypatch.setattr(reader_module, "OPEN_SHARDS", 2)
    reader = ShardReader(prepared("png"))
    before = len(os.listdir("/proc/self/fd"))
    assert [reader.read(i)[1] for i in (0, 4, 8, 0, 8, 4)] == [0, 0, 1, 0, 1, 0]
    assert len(os.listdir("/proc/self/fd")) - before <= 2


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_reader_in_use_works_in_another_process(prepared, method):
    reader = ShardReader(prepared("png"))
    expected = reader.read(0)[0], reader.read(9)[0]
    assert pickle.loads(pickle.dumps(reader))._files == {}
    with multiprocessing.get_context(method).Pool(1) as pool:
        got = pool.map(reader.read, [0, 9])
    assert all(np.array_equal(e, g) for e, (g, _) in zip(expected, got, strict=True))
    assert np.array_equal(reader.read(0)[0], expected[0])


@pytest.mark.parametrize("encoding", ["png", "jpg"])
@pytest.mark.parametrize("damage", ["image bytes", "cut under our feet"])
def test_damage_is_an_error_that_names_shard_and_key(prepared, tmp_path, encoding, damage):
    for file in prepared(encoding).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    reader = ShardReader(tmp_path)
    shard = tmp_path / "shard-00001.tar"
    data = bytearray(shard.read_bytes())
    with tarfile.open(shard) as tar:
        member = tar.getmember(f"000000005.{encoding}")
    start = member.offset_data
    if damage == "image bytes":
        data[start : start + member.size] = bytes(member.size)
    else:
        del data[start + member.size // 2 :]
    shard.write_bytes(data)
    reader.read(4)
    with pytest.raises(DataError, match=r"shard-00001\.tar: sample 5 \(key 000000005\).*graticule verify"):
        reader.read(5)


def test_an_image_of_another_size_is_an_error(prepared, monkeypatch):
    monkeypatch.setattr(reader_module, "_decode", lambda data, encoding: np.zeros((12, 11, 3), dtype=np.uint8))
    with pytest.raises(DataError, match=r"shard-00000\.tar.*shape \(12, 11, 3\)"):
        ShardReader(prepared("png")).read(0)


def test_an_unfinished_folder_is_the_users_mistake_before_the_first_batch(tmp_path):
    with pytest.raises(UserError, match="not a prepared data set"):
        stream(tmp_path)


@pytest.mark.parametrize("mirror", [False, True])
def test_position_k_is_image_order_of_k_mirrored_by_its_coin(prepared, mirror):
    reader = ShardReader(prepared("png"))
    img, label = taken(stream(prepared("png"), mirror=mirror), 12)
    assert img.shape == (24, 3, 12, 12)
    assert img.dtype == torch.uint8
    for k in range(24):  # more than two passes over ten images
        image, expected = reader.read(order(1, 10, k))
        flip = mirror and mirrored(1, k)
        assert np.array_equal(img[k].numpy(), image[:, :, ::-1] if flip else image)
        assert label[k] == expected
    assert not mirror or {mirrored(1, k) for k in range(24)} == {True, False}


@pytest.mark.parametrize("world", [2, 4])
def test_the_ranks_together_read_the_global_batch_of_one(prepared, world):
    whole = taken(stream(prepared("png")), 4 * 3)
    each = [taken(stream(prepared("png"), world, rank), 4 // world * 3) for rank in range(world)]
    together = tuple(torch.cat([e[part].unflatten(0, (3, -1)) for e in each], 1).flatten(0, 1) for part in (0, 1))
    assert same(whole, together)  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [0, 2])
def test_starting_later_equals_skipping(prepared, workers):
    skipped = stream(prepared("png"))
    taken(skipped, 4 * 3)
    assert same(taken(skipped, 8), taken(stream(prepared("png"), nimg=24, workers=workers), 8))


def test_workers_change_nothing_and_leave_the_global_generator_alone(prepared):
    before = torch.random.get_rng_state()
    assert same(taken(stream(prepared("jpg")), 20), taken(stream(prepared("jpg"), workers=2), 20))
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_batch_larger_than_the_set_runs_on_into_the_next_pass(prepared):
    _, label = taken(stream(prepared("png"), batch_size=32, slices=[range(0, 32)]), 1)
    assert torch.bincount(label[:30]).tolist() == [18, 12]


def test_workers_ignore_the_signals_of_the_job(prepared):
    it = stream(prepared("png"), workers=2)
    first = taken(it, 1)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        for number in (signal.SIGINT, signal.SIGUSR2):
            os.kill(worker.pid, number)  # type: ignore[arg-type]
    rest = taken(it, 39)
    assert all(w.is_alive() for w in workers)
    assert same((torch.cat([first[0], rest[0]]), torch.cat([first[1], rest[1]])), taken(stream(prepared("png")), 40))
    it.close()  # type: ignore[attr-defined]
    for worker in workers:
        worker.join(10)
        assert not worker.is_alive()


@pytest.mark.parametrize("slices", [[], [range(0)], [range(6, 9)], [range(-1, 2)]])
def test_slices_outside_the_batch_are_refused(prepared, slices):
    with pytest.raises(ValueError, match="slices"):
        stream(prepared("png"), slices=slices)
