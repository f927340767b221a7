"""Blocks of features on disk against what they must survive: several workers, a kill, a damaged file."""

import multiprocessing
from pathlib import Path

import pytest
import torch

from pipeline.errors import WorkError
from pipeline.metrics.store import BLOCK, Store, fill


def _make(block: range) -> dict[str, torch.Tensor]:
    numbers = torch.tensor(list(block), dtype=torch.float32)
    return {"x": numbers[:, None].repeat(1, 3), "first": numbers[: max(0, 300 - block.start), None]}


def test_blocks_are_in_the_order_of_image_numbers_and_cover_each_once(tmp_path: Path) -> None:
    store = Store(tmp_path / "s", 2 * BLOCK + 10)
    assert fill(store, _make)
    assert torch.equal(store.rows("x")[:, 0], torch.arange(2.0 * BLOCK + 10))
    assert store.rows("x", 7).shape == (7, 3)
    assert torch.equal(store.rows("first", 300)[:, 0], torch.arange(300.0))


def _work(folder: Path, worker: int) -> None:
    fill(Store(folder, 9 * BLOCK), _make, worker=worker, workers=3)


def test_three_processes_leave_the_files_that_one_leaves(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_work, args=(tmp_path / "three", i)) for i in range(3)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    fill(Store(tmp_path / "one", 9 * BLOCK), _make)
    three, one = ({p.name: p.read_bytes() for p in (tmp_path / d).iterdir()} for d in ("three", "one"))
    assert three == one


def test_a_worker_whose_peers_died_does_their_part_and_none_of_what_is_there_twice(tmp_path: Path) -> None:
    store, made = Store(tmp_path, 4 * BLOCK), []
    assert not fill(store, _make, worker=1, workers=2, stop=lambda: len(store.missing()) < 3)

    def make(block: range) -> dict[str, torch.Tensor]:
        made.append(block.start)
        return _make(block)

    assert fill(store, make, worker=0, workers=2)
    assert made == [0, BLOCK]


def test_a_damaged_block_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path, 10)
    fill(store, _make)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(WorkError, match=r"00000000-00000009\.safetensors: cannot be read"):
        store.rows("x")


def test_two_that_met_part_again(tmp_path: Path) -> None:
    """A peer that is always ahead by a moment: without parting, the blocks would come in their order."""
    store, made = Store(tmp_path, 20 * BLOCK), []

    def make(block: range) -> dict[str, torch.Tensor]:
        made.append(block.start // BLOCK)
        store.put(block, _make(block))
        return _make(block)

    assert fill(store, make)
    assert sorted(made) == list(range(20)) != made
