"""The FFCV copy against the reader of the shards it was made from (make test-ffcv; without ffcv only what it says)."""

import contextlib
import fcntl
import gc
import importlib.util
import itertools
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dataprep.verify import verify
from pipeline.data import beton, reader
from pipeline.data.manifest import Manifest
from pipeline.errors import UserError, WorkError

NO_FFCV = importlib.util.find_spec("ffcv") is None
needs_ffcv = pytest.mark.skipif(NO_FFCV, reason="ffcv is not installed: make test-ffcv")


# numba stumbles, unheard, when it forgets what it compiled
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module", autouse=True)
def _forgotten():
    yield
    gc.collect()


@pytest.fixture(scope="module")
def copied(prepared, tmp_path_factory) -> Path:
    """Ten images of 12 px with their beton."""
    root = shutil.copytree(prepared("png"), tmp_path_factory.mktemp("beton") / "set")
    beton.write_beton(root, workers=2)
    return root


def taken(make, root: Path, n: int, world: int = 1, rank: int = 0, **changes) -> tuple[Tensor, Tensor]:
    """The first n microbatches of three, of global batches of twelve."""
    per_rank = 12 // world
    slices = [range(i, i + 3) for i in range(rank * per_rank, (rank + 1) * per_rank, 3)]
    words = {"seed": 1, "mirror": True, "nimg": 0, "batch_size": 12, "slices": slices, "workers": 1}
    with contextlib.closing(make(root, **{**words, **changes})) as stream:
        got = list(itertools.islice(stream, n))
    assert all(b.img.shape == (3, 3, 12, 12) and b.img.dtype == torch.uint8 for b in got)
    return torch.cat([b.img for b in got]), torch.cat([b.label for b in got])


def same(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


@needs_ffcv
@pytest.mark.parametrize(
    "changes", [{}, {"mirror": False}, {"seed": 2, "workers": 0}, {"nimg": 12 * 777, "workers": 2}]
)
def test_every_position_is_what_the_reader_gives(copied, changes):
    assert same(taken(beton.batches, copied, 12, **changes), taken(reader.batches, copied, 12, **changes))


@needs_ffcv
@pytest.mark.parametrize("encoding", ["jpg", "raw"])
def test_it_holds_the_pixels_of_every_encoding(copy, encoding):
    root = copy(encoding)
    beton.write_beton(root, workers=2)
    assert same(taken(beton.batches, root, 4), taken(reader.batches, root, 4))


@needs_ffcv
@pytest.mark.parametrize("world", [2, 4])
def test_each_rank_reads_its_share(copied, world):
    for rank in range(world):
        assert same(taken(beton.batches, copied, 6, world, rank), taken(reader.batches, copied, 6, world, rank))


@needs_ffcv
def test_starting_later_equals_skipping(copied):
    img, label = taken(beton.batches, copied, 20)
    assert same((img[36:], label[36:]), taken(beton.batches, copied, 8, nimg=36))


@needs_ffcv
def test_nothing_is_lost_where_ffcv_is_told_of_more_images(copied, monkeypatch):
    monkeypatch.setattr(beton, "UNIT_BYTES", 7 * 12 * 12 * 3)  # of seven images, twice in a span
    monkeypatch.setattr(beton, "SPAN", 14)
    assert same(taken(beton.batches, copied, 30), taken(reader.batches, copied, 30))


@needs_ffcv
def test_a_shuffle_in_blocks_is_the_readers(copied):
    words = {"shuffle_block": 2, "shuffle_window": 2}
    assert same(taken(beton.batches, copied, 12, **words), taken(reader.batches, copied, 12, **words))


@needs_ffcv
def test_slices_of_different_sizes_are_cut(copied):
    words = {
        "seed": 1,
        "mirror": True,
        "nimg": 0,
        "batch_size": 12,
        "slices": [range(1, 6), range(9, 11)],
        "workers": 1,
    }
    with (
        contextlib.closing(beton.batches(copied, **words)) as ours,
        contextlib.closing(reader.batches(copied, **words)) as theirs,
    ):
        pairs = [(next(ours), next(theirs)) for _ in range(6)]
    for ours, theirs in pairs:
        assert same((ours.img, ours.label), (theirs.img, theirs.label))


@needs_ffcv
def test_batches_are_copies(copied):
    with contextlib.closing(
        beton.batches(copied, seed=1, mirror=False, nimg=0, batch_size=1, slices=[range(1)], workers=1)
    ) as it:
        first = next(it)
        before = first.img.clone()
        list(itertools.islice(it, 50))
    assert torch.equal(first.img, before)


@needs_ffcv
def test_torchs_threads_and_the_global_generators_are_left_alone(copied):
    torch.set_num_threads(2)
    before = torch.random.get_rng_state(), str(np.random.get_state())
    taken(beton.batches, copied, 8)
    assert torch.get_num_threads() == 2
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert str(np.random.get_state()) == before[1]


@needs_ffcv
@pytest.mark.parametrize("taken_before", [0, 1, 12])
def test_closing_ends_ffcvs_thread_at_once(copied, monkeypatch, taken_before):
    from ffcv.loader.epoch_iterator import EpochIterator

    units, run = [], EpochIterator.run_pipeline
    monkeypatch.setattr(EpochIterator, "run_pipeline", lambda *args: units.append(time.sleep(0.05)) or run(*args))
    monkeypatch.setattr(beton, "UNIT", 1)  # and ten of these in a span
    before = set(threading.enumerate())
    stream = beton.batches(copied, seed=1, mirror=True, nimg=0, batch_size=1, slices=[range(1)], workers=1)
    list(itertools.islice(stream, taken_before))
    done = len(units)
    stream.close()
    assert set(threading.enumerate()) == before
    assert len(units) <= done + 2  # of ten: what it was at


@needs_ffcv
def test_a_thread_of_ffcv_that_died_is_an_error(copied, monkeypatch):
    from ffcv.loader.epoch_iterator import EpochIterator

    monkeypatch.setattr(EpochIterator, "run", lambda self: None)
    with pytest.raises(reader.DataError, match="FFCV's reader ended"):
        taken(beton.batches, copied, 1)


@needs_ffcv
def test_the_bytes_do_not_depend_on_the_workers(copied, tmp_path):
    other = shutil.copytree(copied, tmp_path / "set")
    (other / beton.BETON).unlink()
    seen = []
    assert beton.write_beton(other, workers=5, progress=lambda *done: seen.append(done)) == other / beton.BETON
    assert (other / beton.BETON).read_bytes() == (copied / beton.BETON).read_bytes()
    assert seen[-1] == (10, 10)


@needs_ffcv
@pytest.mark.parametrize("os_cache", [True, False])
def test_ffcv_reads_the_file_by_its_own_defaults(copy, monkeypatch, os_cache):
    """Also through its page cache, which reads whole pages: here five of two images."""
    from ffcv.loader import Loader, OrderOption

    monkeypatch.setattr(beton, "PAGE_BYTES", 1)
    monkeypatch.setattr(beton, "PAGE_IMAGES", 2)
    root = copy("png")
    path, expected = beton.write_beton(root, workers=2), reader.ShardReader(root)
    [(image, label)] = list(Loader(str(path), 10, num_workers=1, order=OrderOption.SEQUENTIAL, os_cache=os_cache))
    for i in range(10):
        pixels, number = expected.read(i)
        assert np.array_equal(image[i].numpy().transpose(2, 0, 1), pixels)
        assert label[i] == number


@needs_ffcv
def test_a_finished_copy_is_left_alone_and_the_set_stays_sound(copied):
    before = (copied / beton.BETON).stat()
    beton.write_beton(copied, workers=1)
    assert (copied / beton.BETON).stat() == before
    assert verify(copied) == []
    assert not list(copied.glob(".*"))


@needs_ffcv
def test_a_stale_or_cut_copy_is_refused_and_made_anew(copied, tmp_path):
    root = shutil.copytree(copied, tmp_path / "set")
    whole = (root / beton.BETON).read_bytes()
    (root / beton.BETON).write_bytes(whole[:-1])
    with pytest.raises(
        UserError, match=rf"has {len(whole) - 1} bytes, not {len(whole)}; make it with `graticule beton"
    ):
        taken(beton.batches, root, 1)
    beton.write_beton(root, workers=1)
    taken(beton.batches, root, 1)

    m = Manifest.from_json((root / "manifest.json").read_text()).replace(classes=("b", "a"))
    (root / "manifest.json").write_text(m.replace(dataset_id=m.identity()).to_json())
    with pytest.raises(UserError, match=f"is a copy of data set {m.dataset_id}, not of {m.identity()}"):
        taken(beton.batches, root, 1)


@needs_ffcv
def test_a_damaged_shard_leaves_no_copy(copied, tmp_path):
    root = shutil.copytree(copied, tmp_path / "set")
    (root / beton.BETON).unlink()
    shard = bytearray((root / "shard-00001.tar").read_bytes())
    shard[600:700] = bytes(100)
    (root / "shard-00001.tar").write_bytes(shard)
    with pytest.raises(reader.DataError, match=r"shard-00001\.tar: sample 4"):
        beton.write_beton(root, workers=2)
    assert not [*root.glob("*.beton*"), *root.glob(".*")]


@needs_ffcv
def test_a_full_disk_is_one_line_and_leaves_no_copy(copied, tmp_path, monkeypatch):
    root = shutil.copytree(copied, tmp_path / "set")
    (root / beton.BETON).unlink()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(WorkError, match=r"images\.beton: cannot be written \(No space left on device\); it takes"):
        beton.write_beton(root, workers=2)
    assert not [*root.glob("*.beton*"), *root.glob(".*")]


@needs_ffcv
def test_two_do_not_write_at_once(copied, tmp_path):
    root = shutil.copytree(copied, tmp_path / "set")
    (root / beton.BETON).unlink()
    lock = os.open(root, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="something else is writing there"):
        beton.write_beton(root, workers=1)
    os.close(lock)


def test_a_set_without_a_copy_says_how_to_make_one(prepared):
    with pytest.raises(UserError, match=r"images\.beton: is not there, or not finished; make it with `graticule beton"):
        taken(beton.batches, prepared("png"), 1)


@pytest.mark.skipif(not NO_FFCV, reason="ffcv is installed")
def test_without_ffcv_a_line_says_what_to_install(prepared, tmp_path):
    root = shutil.copytree(prepared("png"), tmp_path / "set")
    with pytest.raises(UserError, match=r"pip install 'graticule\[ffcv\]'.*libopencv-dev") as seen:
        beton.write_beton(root, workers=1)
    assert "\n" not in str(seen.value)
    assert not list(root.glob(".*"))
