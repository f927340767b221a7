"""What a stream gives: against the tar module and Pillow, over ranks and passes, and of damaged shards."""

import gzip
import hashlib
import itertools
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataprep.sources.folder import Folder
from dataprep.transform import Transform
from dataprep.writer import prepare
from pipeline.data.manifest import Manifest
from pipeline.data.order import mirrored
from pipeline.data.reader import DataError
from pipeline.data.stream import batches, load_manifest
from pipeline.errors import UserError
from tests.data.server import SHARD, by_hand, taken


@pytest.fixture(scope="session")
def eight(tmp_path_factory) -> Callable[[int], Path]:
    """eight(2): as many images in shards of two."""
    root = tmp_path_factory.mktemp("eight")
    (root / "images").mkdir()
    for i in range(8):
        noise = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / "images" / f"{i}.png")
    for size in (2, 8):
        prepare(Folder(root / "images"), root / str(size), Transform(size_px=8), shard_size=size)
    return lambda size: root / str(size)


@pytest.mark.parametrize(
    ("encoding", "workers"), [("png", 0), ("png", 1), ("png", 3), ("jpg", 2), ("webp", 2), ("raw", 2)]
)
def test_each_pass_brings_every_image_once_with_its_label(prepared, served, encoding, workers):
    images, labels = taken(served(prepared(encoding)).url, 30, workers=workers)
    known = by_hand(prepared(encoding))
    numbers = [known.index(i) for i in images]
    for first in (0, 10, 20):
        assert sorted(numbers[first : first + 10]) == list(range(10))
    assert labels == [i // 6 for i in numbers]
    assert numbers[:10] != numbers[10:20]


@pytest.mark.parametrize("world", [2, 3, 4, 8])
def test_ranks_read_every_image_equally_often_be_they_more_or_fewer_than_the_shards(eight, served, world):
    url = served(eight(2)).url
    each = [taken(url, 8, rank=rank, world=world, workers=rank % 2)[0] for rank in range(world)]
    assert Counter(itertools.chain(*each)) == Counter(dict.fromkeys(by_hand(eight(2)), world))


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_a_pass(eight, served, world):
    url = served(eight(2)).url
    each = [taken(url, 8 // world, rank=rank, world=world)[0] for rank in range(world)]
    assert sorted(itertools.chain(*each)) == sorted(by_hand(eight(2)))


def test_the_order_of_shards_and_images_follows_from_seed_and_nimg(eight, served):
    server = served(eight(2))

    def order(**changes) -> tuple[list[bytes], list[str]]:
        server.asked.clear()
        images, _ = taken(server.url, 16, workers=0, **changes)
        return images, [name for name, _ in server.asked]

    one = order()
    assert order() == one
    for other in (order(seed=2), order(nimg=20)):
        assert other[0] != one[0]
        assert other[1] != one[1]


def test_images_of_one_shard_are_shuffled_anew_for_each_pass_rank_seed_and_nimg(eight, served):
    url = served(eight(8)).url
    a, b = taken(url, 8, world=2, rank=0)[0], taken(url, 8, world=2, rank=1)[0]
    orders = [a, b, taken(url, 16)[0][8:], taken(url, 8, seed=2)[0], taken(url, 8, nimg=8)[0], by_hand(eight(8))]
    assert all(sorted(o) == sorted(orders[0]) for o in orders)
    assert len({tuple(o) for o in orders}) == len(orders)


def test_a_position_is_mirrored_by_its_coin(prepared, served):
    url = served(prepared("png")).url
    plain, flipped = taken(url, 20, nimg=6)[0], taken(url, 20, nimg=6, mirror=True)[0]
    for k, (a, b) in enumerate(zip(plain, flipped, strict=True), start=6):
        image = np.frombuffer(a, dtype=np.uint8).reshape(12, 12, 3)
        assert b == (image[:, ::-1].tobytes() if mirrored(1, k) else a)


def test_one_batch_comes_for_each_slice(prepared, served):
    stream = batches(
        served(prepared("png")).url, seed=1, mirror=False, nimg=0, batch_size=8, workers=1, rank=0, world=1,
        slices=[range(0, 3), range(3, 4)],
    )  # fmt: skip
    assert [len(b.img) for b in itertools.islice(stream, 4)] == [3, 1, 3, 1]
    stream.close()
    with pytest.raises(ValueError, match="slices"):
        taken("http://unused/", 2, slices=[range(1, 3)])


@pytest.mark.parametrize("lengths", [True, False])
def test_a_shard_cut_between_two_samples_is_not_a_short_one(prepared, served, lengths):
    server = served(prepared("png"))
    server.lengths = server.ranges = lengths
    end = offset(server.root / SHARD, "000000006.png") - 512
    shard = (server.root / SHARD).read_bytes()
    (server.root / SHARD).write_bytes(shard[:end])
    what = f"has {end} bytes there, the manifest says {len(shard)}" if lengths else f"{end} of {len(shard)} bytes came"
    with pytest.raises(DataError, match=f"{SHARD}: {what}"):
        taken(server.url, 10)


@pytest.mark.parametrize(("member", "behind"), [("000000005.png", 40), ("000000005.json", 5), ("000000007.json", 500)])
def test_a_flipped_byte_is_found(prepared, served, member, behind):
    server = served(prepared("png"))
    data = bytearray((server.root / SHARD).read_bytes())
    data[offset(server.root / SHARD, member) + behind] ^= 4  # 500: in what fills up a block
    (server.root / SHARD).write_bytes(data)
    with pytest.raises(DataError, match=rf"{server.url}/{SHARD}: ") as seen:
        taken(server.url, 20)
    assert "\n" not in str(seen.value)


def test_two_swapped_shards_are_found(eight, served):
    server = served(eight(2))
    a, b = (server.root / name for name in ("shard-00000.tar", SHARD))
    assert a.stat().st_size == b.stat().st_size
    one, other = a.read_bytes(), b.read_bytes()
    a.write_bytes(other)
    b.write_bytes(one)
    with pytest.raises(DataError, match="sha256 is not the manifest's"):
        taken(server.url, 16)


def offset(shard: Path, member: str) -> int:
    with tarfile.open(shard) as tar:
        return tar.getmember(member).offset_data


def vouch(root: Path, data: bytes, count: int = 4) -> None:
    """Another second shard, and a manifest that says it is the one."""
    (root / SHARD).write_bytes(data)
    m = Manifest.from_json((root / "manifest.json").read_text())
    entry = {"bytes": len(data), "count": count, "sha256": hashlib.sha256(data).hexdigest()}
    m = m.replace(shards=(m.shards[0], m.shards[1].replace(**entry), m.shards[2]), count=6 + count, count_in=6 + count)
    (root / "manifest.json").write_text(m.replace(dataset_id=m.identity()).to_json())


@pytest.mark.parametrize("encoding", ["png", "jpg", "webp", "raw"])
def test_an_image_that_cannot_be_decoded_is_named(prepared, served, encoding):
    server = served(prepared(encoding))
    data, start = (
        bytearray((server.root / SHARD).read_bytes()),
        offset(server.root / SHARD, f"000000005.{encoding.replace('raw', 'npy')}"),
    )
    data[start : start + 200] = bytes(200)
    vouch(server.root, bytes(data))
    with pytest.raises(DataError, match=rf"{server.url}/{SHARD}: key 000000005 cannot be decoded"):
        taken(server.url, 20)


def test_a_label_out_of_the_table_is_named(prepared, served):
    server = served(prepared("png"))
    data = (server.root / SHARD).read_bytes().replace(b'"label": 1', b'"label": 2')
    vouch(server.root, data)
    with pytest.raises(DataError, match=rf"{SHARD}: not as it was written, near key 000000006: label 2 of 2 classes"):
        taken(server.url, 20)


def test_a_packed_shard_is_not_unpacked(prepared, served):
    server = served(prepared("png"))
    vouch(server.root, gzip.compress((server.root / SHARD).read_bytes()))
    with pytest.raises(DataError, match=f"{SHARD}: not as it was written, near its start: no tar"):
        taken(server.url, 10)


def test_a_manifest_that_counts_wrongly_is_found(prepared, served):
    server = served(prepared("png"))
    vouch(server.root, (server.root / SHARD).read_bytes(), count=5)
    with pytest.raises(DataError, match=f"{SHARD}: holds 4 images, the manifest says 5"):
        taken(server.url, 20)


@pytest.mark.parametrize(
    ("page", "what"),
    [
        ("<!DOCTYPE html><title>Sign in", "no JSON .*'<!DOCTYPE html><tit.*page to log in"),
        ("", "no JSON"),
        ("{}", "manifest.json: source"),
        ('{"format": 1', "not valid JSON"),
        (None, r"manifest.json is not to be had \(HTTP 404"),
    ],
)
def test_a_url_without_a_sound_manifest_is_the_users_mistake(prepared, served, page, what):
    server = served(prepared("png"))
    (server.root / "manifest.json").unlink()
    if page is not None:
        (server.root / "manifest.json").write_text(page)
    with pytest.raises(UserError, match=what) as seen:
        batches(server.url, seed=1, mirror=False, nimg=0, batch_size=1, slices=[range(1)], rank=0, world=1, workers=0)
    assert server.url in str(seen.value)
    assert "\n" not in str(seen.value)


def test_a_changed_manifest_is_refused(prepared, served):
    server = served(prepared("png"))
    file = server.root / "manifest.json"
    file.write_text(file.read_text().replace('"count": 2', '"count": 3'))
    with pytest.raises(UserError, match="does not match its content"):
        load_manifest(server.url)


@pytest.mark.parametrize("silent", [False, True])
def test_closing_ends_the_threads_or_leaves_those_that_wait_for_a_silent_server(prepared, served, silent):
    server = served(prepared("png"))
    server.silent = range(5, 1000 if silent else 5)  # after the manifest, a pass and a shard
    words = {"seed": 1, "mirror": False, "nimg": 0, "batch_size": 1, "slices": [range(1)], "rank": 0, "world": 1}
    stream = batches(server.url, **words, workers=1 if silent else 3)  # type: ignore[arg-type]
    next(stream)
    while silent and len(server.asked) < 6:
        time.sleep(0.01)
    began = time.monotonic()
    stream.close()
    assert time.monotonic() - began < 5
    assert {t.name for t in threading.enumerate() if t.name.startswith(("stream", "decode"))} == (
        {"stream"} if silent else set()
    )
