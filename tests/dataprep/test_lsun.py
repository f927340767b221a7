"""LSUN's LMDBs, intact, cut, damaged and foreign. liblmdb is the reference for what is read."""

import hashlib
import io
import os
import pickle
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import lmdb
import numpy as np
import pytest
from PIL import Image

from dataprep.rejected import Rejected
from dataprep.sources import lsun as lsun_module
from dataprep.sources.lsun import Lsun
from dataprep.transform import Transform
from dataprep.writer import prepare
from pipeline.errors import UserError

PAGE = 4096


def picture(number: int, form: str = "JPEG") -> bytes:
    noise = np.random.default_rng(number).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, form)
    return out.getvalue()


def key_of(number: int) -> bytes:
    return hashlib.sha1(str(number).encode()).hexdigest().encode()


def write(folder: Path, values: dict[bytes, bytes], **options) -> Path:
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=2**30, sync=False, **options) as env, env.begin(write=True) as txn:
        for key, value in values.items():
            txn.put(key, value)
    (folder / "lock.mdb").unlink()
    return folder


def refusal(path: Path | None, split: str | None = None) -> str:
    with pytest.raises(UserError) as e:
        Lsun(path, split).entries(8)
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.fixture(scope="module")
def lsun(real_images: Path) -> Path:
    return real_images / "native_simulated" / "lsun"


@pytest.fixture
def tower(lsun: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    folder = tmp_path / "tower_val_lmdb"
    folder.mkdir()
    shutil.copyfile(lsun / "tower_val_lmdb" / "data.mdb", folder / "data.mdb")
    return folder


@pytest.mark.parametrize(("name", "count"), [("church_outdoor_val_lmdb", 84), ("tower_val_lmdb", 42)])
def test_the_real_lmdbs_give_the_published_keys_bytes_and_sizes(lsun, name, count):
    rows = [line.split("\t") for line in (lsun / "keys.tsv").read_text().splitlines()]
    expected = {r[1]: (int(r[2]), (int(r[3]), int(r[4]))) for r in rows if r[0] == name}
    source = Lsun(lsun / name)
    entries = source.entries(8)
    assert {e.name: (e.at, source.read(e).size) for e in entries} == expected
    assert [e.name for e in entries] == sorted(expected)
    assert len(entries) == count
    assert set(source.about(entries[0])) == {"category", "split"}
    assert source.classes == ()
    assert source.notes == (f"LSUN's category {name[:-9]}, split val",)


def test_folder_file_zips_and_the_folder_around_are_one_data_set(lsun, tower, tmp_path):
    packed = tmp_path / "tower_val_lmdb.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("__MACOSX/tower_val_lmdb/data.mdb", b"litter")
        z.write(tower / "data.mdb", "tower_val_lmdb/data.mdb")
    around = tmp_path / "around"
    shutil.copytree(tower, around / "tower_val_lmdb")
    paths = [tower, tower / "data.mdb", lsun / "tower_val_lmdb.zip", packed, around]
    sources = [Lsun(p) for p in paths]
    assert len({s.entries(8).digest() for s in sources}) == 1
    seen = {(e.key, s.read(e).tobytes(), *s.about(e).values()) for s in sources for e in s.entries(8)}
    assert len(seen) == 42
    assert "unzip it once" in sources[3].notes[0]
    assert not [n for s in sources for n in s.notes if "unzip" in n and s is not sources[3]]


def test_workers_share_the_unpacked_zip_and_write_the_bytes_of_the_folder(tower, tmp_path):
    packed = tmp_path / "tower_val_lmdb.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as z:
        z.write(tower / "data.mdb", "tower_val_lmdb/data.mdb")
    source = Lsun(packed)
    shape = Transform(size_px=32)
    ours = prepare(source, tmp_path / "zip", shape, workers=2, shard_size=20)
    plain = prepare(Lsun(tower), tmp_path / "folder", shape, shard_size=20)
    assert (ours.dataset_id, ours.plan_sha256, ours.count) == (plain.dataset_id, plain.plan_sha256, 42)
    worker = pickle.loads(pickle.dumps(source))
    assert worker._place == source._place
    assert len(pickle.dumps(source)) < 500
    elsewhere = Lsun(packed, None, source._place._replace(inode=source._place.inode + 10**9))
    assert elsewhere._place.path != source._place.path, "not the file that another host has under this name"


def test_a_killed_run_leaves_no_unpacked_copy(tower, tmp_path):
    packed, temp = tmp_path / "a.zip", tmp_path / "temp"
    temp.mkdir()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as z:
        z.write(tower / "data.mdb", "data.mdb")
    code = f"from pathlib import Path; from dataprep.sources.lsun import Lsun; s = Lsun(Path({str(packed)!r}))"
    code += "; print(len(s.entries(8)), flush=True); import time; time.sleep(60)"
    env = {**os.environ, "TMPDIR": str(temp)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout
        assert process.stdout.readline() == "42\n"
        process.send_signal(signal.SIGKILL)
    assert list(temp.iterdir()) == []


def test_zips_that_cannot_be_read_are_user_errors(tower, tmp_path, monkeypatch):
    def zipped(method: int, *names: str) -> Path:
        with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as z:
            for name in names:
                z.write(tower / "data.mdb", name)
        return tmp_path / "a.zip"

    assert "no data.mdb in this zip (x/a.jpg)" in refusal(zipped(0, "x/a.jpg"))
    assert "holds 2 LMDBs (a/data.mdb, b/data.mdb)" in refusal(zipped(0, "a/data.mdb", "b/data.mdb"))
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        whole = zipped(method, "data.mdb").read_bytes()
        (tmp_path / "a.zip").write_bytes(whole[: len(whole) // 2])
        assert "cut or damaged" in refusal(tmp_path / "a.zip")
        at = whole.rindex(b"PK\x01\x02") + 8
        (tmp_path / "a.zip").write_bytes(whole[:at] + b"\1" + whole[at + 1 :])
        assert "encrypted" in refusal(tmp_path / "a.zip")
    middle = len(whole) // 2
    (tmp_path / "a.zip").write_bytes(whole[:middle] + bytes(100) + whole[middle + 100 :])
    assert "damaged zip" in refusal(tmp_path / "a.zip")
    (tmp_path / "a.zip").write_bytes(whole)
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(lsun_module.shutil, "disk_usage", lambda place: full)
    assert "needs 679936 bytes" in refusal(tmp_path / "a.zip")


def test_a_zip_of_zeros_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("cat/data.mdb", bytes(10_000_000))
    monkeypatch.setattr(lsun_module.shutil, "copyfileobj", lambda *_: pytest.fail("unpacked"))
    assert "nothing but zeros" in refusal(tmp_path / "bomb.zip")


def test_a_cut_lmdb_is_refused_before_an_image_is_read(tower):
    data = tower / "data.mdb"
    size = data.stat().st_size
    cuts = {1, 20, 150, PAGE, PAGE + 50, 2 * PAGE, size * 3 // 10, size * 99 // 100, size - PAGE, size - 1}
    for cut in sorted(cuts, reverse=True):
        os.truncate(data, cut)
        said = "is cut" if cut >= 24 else f"is no LMDB, or cut after {cut} bytes"
        assert said in refusal(tower) or not any((tower / "data.mdb").read_bytes()), cut
    os.truncate(data, 0)
    assert "is an empty file" in refusal(tower)


def test_an_lmdb_that_shrinks_during_the_run_costs_images_not_the_process(tower):
    source = Lsun(tower)
    entries = source.entries(8)
    os.truncate(tower / "data.mdb", 300_000)
    outcomes = set()
    for entry in entries:
        try:
            outcomes.add(source.read(entry).mode)
        except Rejected as e:
            outcomes.add(e.reason)
    assert outcomes == {"RGB", "truncated"}


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"", "empty file"),
        (b"<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title>", "Quota exceeded"),
        (bytes(3 * PAGE), "nothing but zeros"),
        (b"\xff\xd8\xff\xe0" + b"x" * PAGE, "not the file of an LMDB"),
        (bytes(16) + b"\xde\xc0\xef\xbe\x02" + bytes(PAGE), "only format 1 is read"),
        (bytes(12) + b"\xde\xc0\xef\xbe\x01" + bytes(PAGE), "32-bit"),
        (bytes(16) + b"\xbe\xef\xc0\xde\x00\x00\x00\x01" + bytes(PAGE), "big-endian"),
        (bytes(16) + b"\xde\xc0\xef\xbe\x01" + bytes(2 * PAGE), "damaged"),
        (b"\x01", "is no LMDB, or cut after 1 bytes"),
        (b"PK", "cut or damaged"),
    ],
)
def test_what_is_no_lmdb_is_named_in_one_line(tmp_path, head, said):
    (tmp_path / "data.mdb").write_bytes(head)
    assert said in refusal(tmp_path)


def mutated(whole: bytes, seed: int) -> bytes:
    """Bits, words and pages changed, most often in the pages that hold the tree."""
    choice, out = random.Random(seed), bytearray(whole)
    pages = len(whole) // PAGE
    tree = [0, 1, pages - 1]
    near = choice.choice(tree) * PAGE + choice.choice([choice.randrange(200), PAGE - 1 - choice.randrange(1500)])
    kind = choice.randrange(7)
    if kind == 0:
        out[choice.randrange(len(out))] ^= 1 << choice.randrange(8)
    elif kind == 1:
        out[near] ^= 1 << choice.randrange(8)
    elif kind == 2:
        struct.pack_into("<H", out, near & ~1, choice.choice([0, 1, 2, 4, 16, 0x7FFF, 0xFFFF]))
    elif kind == 3:
        del out[choice.randrange(len(out)) :]
    else:
        a, b = choice.randrange(pages) * PAGE, choice.choice(tree) * PAGE
        out[a : a + PAGE] = (bytes(PAGE), whole[b : b + PAGE], choice.randbytes(PAGE))[kind - 4]
    return bytes(out)


def test_300_damaged_lmdbs_end_in_user_errors_images_or_rejections(tower):
    whole, refused, read, lost = (tower / "data.mdb").read_bytes(), 0, 0, 0
    assert struct.unpack_from("<QHH", whole, len(whole) - PAGE) == (len(whole) // PAGE - 1, 0, 2), "the leaf page"
    started = time.monotonic()
    for seed in range(300):
        (tower / "data.mdb").write_bytes(mutated(whole, seed))
        try:
            source = Lsun(tower)
            entries = source.entries(8)
        except UserError:
            refused += 1
            continue
        assert len(entries) == 42
        for entry in entries[seed % 4 :: 4]:
            try:
                source.read(entry)
                read += 1
            except Rejected:
                lost += 1
    assert min(refused, read, lost) > 10
    assert time.monotonic() - started < 60


def test_reading_creates_and_changes_nothing(lsun, tower, tmp_path):
    before = (tower / "data.mdb").stat()
    for _ in range(2):  # open twice at once
        source = Lsun(tower)
        source.read(source.entries(8)[0])
    after = (tower / "data.mdb").stat()
    assert (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)
    assert [p.name for p in tower.iterdir()] == ["data.mdb"]
    assert "no such file or folder" in refusal(tmp_path / "nothing_lmdb")
    assert not (tmp_path / "nothing_lmdb").exists()
    (tmp_path / "empty").mkdir()
    assert "no data.mdb in it" in refusal(tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []


def test_paths_that_name_no_single_lmdb_are_refused_with_what_is_there(lsun, tmp_path):
    assert "holds 2 LMDBs (church_outdoor_val_lmdb, tower_val_lmdb); give one of them" in refusal(lsun)
    assert "PATH is missing" in refusal(None)
    (tmp_path / "a_train_lmdb.zip").write_bytes(b"")
    assert "but zips (a_train_lmdb.zip)" in refusal(tmp_path)
    os.mkfifo(tmp_path / "data.mdb")
    assert "no data.mdb in it" in refusal(tmp_path)
    assert "not a regular file" in refusal(tmp_path / "data.mdb")


def test_split_is_refused_and_the_folder_named_instead(tower):
    assert "church_outdoor_train_lmdb" in refusal(tower, "train")


def test_category_and_split_come_from_the_name_of_the_folder(tmp_path):
    values = {key_of(1): picture(1)}
    about = {}
    for name in ("dining_room_train_lmdb", "test_lmdb", "tv-monitor"):
        source = Lsun(write(tmp_path / name, values) / "data.mdb")
        about[name] = source.about(source.entries(8)[0])
        assert bool(source.notes) == bool(about[name])
    (tmp_path / "link").symlink_to(tmp_path / "test_lmdb")
    assert Lsun(tmp_path / "link").notes == ("LSUN's split test",)
    assert about == {
        "dining_room_train_lmdb": {"category": "dining_room", "split": "train"},
        "test_lmdb": {"split": "test"},
        "tv-monitor": {},
    }


def test_webp_and_jpeg_may_mix_and_bad_values_are_rejected_one_by_one(tmp_path):
    whole = picture(3)
    values = [picture(1), picture(2, "WEBP"), picture(3, "PNG"), b"", b"hello", whole[: len(whole) // 2]]
    source = Lsun(write(tmp_path / "cat", {key_of(i): v for i, v in enumerate(values)}))
    outcome = {}
    for entry in source.entries(8):
        try:
            outcome[entry.key] = source.read(entry).size
        except Rejected as e:
            outcome[entry.key] = e.reason
    expected = [(24, 24)] * 3 + ["not an image"] * 2 + ["truncated"]
    assert outcome == {key_of(i): o for i, o in enumerate(expected)}


def test_webp_without_a_decoder_is_said_at_the_start(lsun, monkeypatch):
    monkeypatch.setattr(lsun_module.features, "check", lambda name: name != "webp")
    assert "cannot decode; pip install" in refusal(lsun / "church_outdoor_val_lmdb")
    assert len(Lsun(lsun / "tower_val_lmdb").entries(8)) == 42


def test_lmdbs_of_other_programs_are_recognised(tmp_path):
    resized = {b"256-%05d" % i: picture(i) for i in range(3)}
    for name, values in {
        "rosinality": {**resized, b"length": b"3"},
        "unfinished": resized,
        "cips": {**{b"%07d" % i: picture(i) for i in range(3)}, b"length": b"3"},
    }.items():
        assert "pictures already resized" in refusal(write(tmp_path / name, values)), name
    raw = b"\x08\x03\x10\x80\x02\x18\x80\x02\x22\x80\x80\x0c" + bytes(256 * 256 * 3) + b"\x28\x01"
    encoded = b"\x22\x80\x0a" + picture(1) + b"\x28\x01\x38\x01"
    for name, datum in {"raw": raw, "encoded": encoded}.items():
        assert "Caffe Datum" in refusal(write(tmp_path / name, {b"00000000_a.jpg": datum}))
    assert "the LMDB is empty" in refusal(write(tmp_path / "empty", {}))


def test_other_keys_are_taken_with_a_note(tmp_path):
    source = Lsun(write(tmp_path / "a", {b"0001.png": picture(1), b"z\xff": picture(2)}))
    assert [source.read(e).size for e in source.entries(8)] == [(24, 24)] * 2
    assert source.notes == ("keys such as '0001.png' are not LSUN's 40 hexadecimal digits: another LMDB of images?",)
