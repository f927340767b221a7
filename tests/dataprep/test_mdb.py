"""The reader of data.mdb against liblmdb on intact files, and against files cut and damaged on purpose."""

import hashlib
import os
import random
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from dataprep.rejected import Rejected
from dataprep.sources.mdb import Mdb

PAGE = 4096


def key_of(number: int) -> bytes:
    return hashlib.sha1(str(number).encode()).hexdigest().encode()


def write(folder: Path, values: dict[bytes, bytes]) -> Path:
    """The data.mdb of a new LMDB."""
    folder.mkdir()
    with lmdb.open(str(folder), map_size=2**30, sync=False) as env, env.begin(write=True) as txn:
        for key, value in values.items():
            txn.put(key, value)
    return folder / "data.mdb"


def by_liblmdb(data: Path) -> dict[bytes, bytes]:
    with lmdb.open(str(data), subdir=False, readonly=True, lock=False) as env, env.begin() as txn:
        return dict(txn.cursor())


def by_us(data: Path) -> dict[bytes, bytes]:
    mdb = Mdb(data)
    lengths = list(mdb.lengths())
    values = {key: mdb.get(key) for key, _ in lengths}
    assert [n for _, n in lengths] == [len(v) for v in values.values()]
    return values


def refusal(data: Path) -> str:
    with pytest.raises(Rejected) as e:
        list(Mdb(data).lengths())
    return f"{e.value.reason}: {e.value.detail}"


@pytest.fixture
def tower(real_images: Path, tmp_path: Path) -> Path:
    """A file to be damaged: 42 values, and one leaf page at the end."""
    shutil.copyfile(real_images / "native_simulated/lsun/tower_val_lmdb/data.mdb", tmp_path / "tower.mdb")
    whole = (tmp_path / "tower.mdb").read_bytes()
    assert struct.unpack_from("<QHH", whole, len(whole) - PAGE) == (len(whole) // PAGE - 1, 0, 2)
    return tmp_path / "tower.mdb"


@pytest.mark.parametrize("name", ["church_outdoor_val_lmdb", "tower_val_lmdb"])
def test_keys_and_values_of_real_files_are_those_of_liblmdb(real_images, name):
    data = real_images / "native_simulated" / "lsun" / name / "data.mdb"
    assert by_us(data) == by_liblmdb(data)


def test_keys_and_values_of_a_large_tree_with_holes_are_those_of_liblmdb(tmp_path):
    choice = random.Random(3)
    data = write(tmp_path / "a", {key_of(i): bytes([i % 256]) * choice.choice([0, 1, 9, 150]) for i in range(20_000)})
    with lmdb.open(str(data.parent), map_size=2**30, sync=False) as env:
        for _ in range(4):
            with env.begin(write=True) as txn:
                for i in choice.sample(range(20_000), 400):
                    txn.delete(key_of(i))
                    txn.put(key_of(-i), os.urandom(choice.choice([500, 2030, 2040, 4080, 4081, 9_000, 30_000])))
        with env.begin(write=True) as txn:
            txn.put(b"k" * 511, os.urandom(3_000_000))
            assert txn.stat()["depth"] >= 3
    ours = by_us(data)
    assert ours == by_liblmdb(data)
    assert list(ours) == sorted(ours)
    with pytest.raises(Rejected, match="missing"):
        Mdb(data).get(b"no such key")


def grown(folder: Path) -> Iterator[set[bytes]]:
    """The keys of an LMDB in `folder` after each of 30 transactions."""
    choice, keys = random.Random(59), []
    with lmdb.open(str(folder), map_size=2**28, sync=False) as env:
        for turn in range(30):
            with env.begin(write=True) as txn:
                for number in range(choice.randrange(1, 60)):
                    if keys and choice.random() < 0.5:
                        txn.delete(keys.pop(choice.randrange(len(keys))))
                    else:
                        keys.append(key_of(100 * turn + number))
                        txn.put(keys[-1], bytes(choice.choice([10, 500, 3000, 9000, 40_000])))
            yield set(keys)


def test_an_intact_file_may_be_shorter_than_its_header_says(tmp_path):
    """liblmdb does not write pages that a transaction took and gave back, so a rule on the size alone is wrong."""
    short = 0
    for keys in grown(tmp_path):
        mdb = Mdb(tmp_path / "data.mdb")
        short += (tmp_path / "data.mdb").stat().st_size < (mdb._last + 1) * PAGE
        assert {key for key, _ in mdb.lengths()} == keys
    assert short


def test_a_file_is_read_from_the_middle_of_another_and_not_beyond(tower):
    whole = tower.read_bytes()
    tower.write_bytes(b"before" + whole + whole)
    mdb = Mdb(tower, 6, len(whole))
    key = max(mdb.lengths(), key=lambda row: row[1])[0]
    assert hashlib.sha1(mdb.get(key)).hexdigest().encode() == key
    with pytest.raises(Rejected, match="is cut"):
        list(Mdb(tower, 6, len(whole) - 1).lengths())


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"", "truncated: is an empty file"),
        (b"\x01", "truncated: is no LMDB, or cut after 1 bytes"),
        (bytes(3 * PAGE), "unreadable: begins with nothing but zeros"),
        (b"\xff\xd8\xff\xe0" + b"x" * PAGE, "not an image: is not the file of an LMDB"),
        (bytes(16) + b"\xde\xc0\xef\xbe\x02" + bytes(PAGE), "only format 1 is read"),
        (bytes(12) + b"\xde\xc0\xef\xbe\x01" + bytes(PAGE), "32-bit"),
        (bytes(16) + b"\xbe\xef\xc0\xde\x00\x00\x00\x01" + bytes(PAGE), "big-endian"),
        (bytes(16) + b"\xde\xc0\xef\xbe\x01" + bytes(2 * PAGE), "is damaged (meta page 0"),
    ],
)
def test_what_does_not_begin_as_an_lmdb_is_named(tmp_path, head, said):
    (tmp_path / "data.mdb").write_bytes(head)
    assert said in refusal(tmp_path / "data.mdb")


def test_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "data.mdb")
    assert "not a regular file" in refusal(tmp_path / "data.mdb")


def test_a_tree_that_is_cut_is_found_wherever_it_is_cut(tower):
    size = tower.stat().st_size
    for cut in (size - 1, size - PAGE, size * 99 // 100, size * 3 // 10, 2 * PAGE, PAGE + 50, PAGE, 150, 60):
        os.truncate(tower, cut)
        assert "truncated: is cut" in refusal(tower), cut


def test_values_that_are_cut_off_are_found_by_the_listing(tmp_path):
    data = write(tmp_path / "a", {key_of(i): bytes(3 * PAGE) for i in range(9)})  # here the tree lies before them
    whole = data.stat().st_size
    assert len(by_us(data)) == 9
    os.truncate(data, whole - PAGE)
    assert f"truncated: is cut: {whole - PAGE} bytes are there, it had up to {whole}" in refusal(data)


def test_a_damaged_value_page_costs_its_value_alone(tower):
    keys = [key for key, _ in Mdb(tower).lengths()]
    whole = tower.read_bytes()
    head = whole.index(Mdb(tower).get(keys[7])) - 16
    for change in (b"\xff", bytes(16), struct.pack("<QHHI", head // PAGE, 0, 4, 1)):
        tower.write_bytes(whole[:head] + change + whole[head + len(change) :])
        mdb = Mdb(tower)
        assert [key for key, _ in mdb.lengths()] == keys
        with pytest.raises(Rejected, match=rf"unreadable.*damaged \(page {head // PAGE}\)"):
            mdb.get(keys[7])
        assert all(hashlib.sha1(mdb.get(k)).hexdigest().encode() == k for k in keys if k != keys[7])


def test_pages_that_form_a_circle_or_come_twice_are_damage(tmp_path):
    data = write(tmp_path / "a", {key_of(i): b"x" for i in range(2000)})
    whole = bytearray(data.read_bytes())
    kinds = {struct.unpack_from("<H", whole, at + 10)[0]: at for at in range(2 * PAGE, len(whole), PAGE)}
    branch, leaf = kinds[1], kinds[2]
    count = (struct.unpack_from("<H", whole, branch + 12)[0] - 16) // 2
    for child, said in ((branch, "is damaged (page"), (leaf, "are out of order")):
        for at in struct.unpack_from(f"<{count}H", whole, branch + 16):
            struct.pack_into("<I", whole, branch + at, child // PAGE)
        data.write_bytes(whole)
        assert said in refusal(data)


@pytest.mark.parametrize(
    ("place", "form", "number", "said"),
    [
        (40, "<I", 4097, "is damaged (pages of 4097 bytes)"),
        (92, "<H", 4, "several values a key"),  # MDB_DUPSORT
        (94, "<H", 33, "is damaged (42 entries in a tree of depth 33)"),
        (94, "<H", 0, "is damaged (42 entries in a tree of depth 0)"),
        (94, "<H", 2, "is damaged (page 165)"),
        (120, "<Q", 43, "is damaged (42 entries found, its header says 43)"),
        (128, "<Q", 2**60, f"is damaged (page {2**60} of 2..165)"),
    ],
)
def test_a_header_that_contradicts_the_tree_is_damage(tower, place, form, number, said):
    whole = bytearray(tower.read_bytes())
    for meta in (0, PAGE):
        struct.pack_into(form, whole, meta + place, number)
    tower.write_bytes(whole)
    assert said in refusal(tower)


def test_databases_with_names_are_refused(tmp_path):
    with lmdb.open(str(tmp_path), map_size=2**24, max_dbs=1, sync=False) as env:
        with env.begin(write=True, db=env.open_db(b"images")) as txn:
            txn.put(key_of(1), b"x")
    assert "databases with names" in refusal(tmp_path / "data.mdb")
