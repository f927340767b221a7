"""The nasty cases of native data sets, one test an item: LMDBs, archives, lists, and the writing of shards.

take(path, source, size, ...) goes the whole way and accounts for every entry by name (outcomes.py). Full disks,
kills, dead workers and runs side by side are in test_disk.py and test_runs.py.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import lmdb
import numpy as np
import pytest
from PIL import Image

from dataprep.sources import open_source
from dataprep.transform import Transform
from dataprep.verify import verify
from dataprep.writer import prepare
from pipeline.data.manifest import read_index
from tests.dataprep.outcomes import TAKEN, jpg, lay, png, refused
from tests.stress import natives
from tests.stress.natives import encoded, picture

# LMDB


@pytest.fixture
def tower(tmp_path) -> Path:
    (tmp_path / "lsun").mkdir()
    natives.lsun(tmp_path / "lsun")
    return tmp_path / "lsun" / "tower_val_lmdb"


def test_lmdb_truncated_html_empty_missing_renamed_read_only_or_given_as_a_file(take, tower, tmp_path):
    whole = take(tower, "lsun").manifest
    assert (whole.count, whole.count_in) == (40, 40)
    os.chmod(tower, 0o555)
    assert take(tower / "data.mdb", "lsun").manifest == whole
    os.chmod(tower, 0o755)
    assert [p.name for p in tower.iterdir()] == ["data.mdb"]
    for name in ("cat", "test_lmdb"):
        shutil.copytree(tower, tmp_path / name)
        (tmp_path / name / "lock.mdb").write_bytes(b"foreign")
        assert take(tmp_path / name, "lsun").manifest.count == 40
    data = (tower / "data.mdb").read_bytes()
    for bad in (data[: len(data) * 99 // 100 // 512 * 512], data[:5000], b"<html>Quota exceeded", b"", bytes(9999)):
        (tower / "data.mdb").write_bytes(bad)
        refused(lambda: take(tower, "lsun"))
    (tower / "data.mdb").unlink()
    refused(lambda: take(tower, "lsun"))


def test_lmdb_wrong_path_creates_nothing_and_one_file_is_opened_twice(take, tower, tmp_path):
    refused(lambda: take(tmp_path / "wrong_lmdb", "lsun"))
    assert not (tmp_path / "wrong_lmdb").exists()
    with lmdb.open(str(tower), readonly=True, lock=False):
        one, two = open_source("lsun", tower), open_source("lsun", tower)
        entry = one.entries(8)[0]
        assert one.read(entry) == two.read(two.entries(8)[0])
        manifest = prepare(one, tmp_path / "two", Transform(size_px=8), workers=2, shard_size=9, on_error="skip")
    assert manifest.count == 40


def test_lmdb_values_empty_or_no_image_keys_not_hex_and_webp_mixed_with_jpeg(take, tmp_path):
    values = {
        b"%040x" % 1: jpg(1),
        b"%040x" % 2: b"",
        b"%040x" % 3: b"x" * 300,
        b"%040x" % 4: encoded(picture(4), "WEBP"),
    }
    with lmdb.open(str(tmp_path / "x_lmdb")) as environment, environment.begin(write=True) as transaction:
        for key, value in {**values, b"not hex": jpg(5)}.items():
            transaction.put(key, value)
    done = take(tmp_path / "x_lmdb", "lsun")
    assert list(done.of.values()).count("not an image") == 2
    assert done.manifest.count == 3
    assert any("'not hex'" in note for note in done.notes)


def test_lmdb_entries_against_images_taken_and_resume_in_the_middle(take, tower, tmp_path, contents, monkeypatch):
    assert take(tower, "lsun").manifest.count == 40
    monkeypatch.setattr("dataprep.writer.PROGRESS_SEC", 0.0)

    def stop(done: int, total: int) -> None:
        if done >= 20:
            raise KeyboardInterrupt

    words = {"shard_size": 7, "on_error": "skip"}
    with pytest.raises(KeyboardInterrupt):
        prepare(open_source("lsun", tower), tmp_path / "resumed", Transform(size_px=8), progress=stop, **words)
    assert len(list(tmp_path.glob("resumed/*.tar"))) == 2
    prepare(open_source("lsun", tower), tmp_path / "resumed", Transform(size_px=8), **words)
    assert contents(tmp_path / "resumed") == contents(tmp_path / "set0")


@pytest.mark.parametrize("program", ["rosinality", "caffe"])
def test_lmdbs_of_other_programs_are_recognised(take, tmp_path, program):
    datum = b"\x08\x03\x10\x18\x18\x18\x22\x80\x04" + bytes(512)
    values = {"rosinality": {b"length": b"1", b"256-00000": jpg()}, "caffe": {b"00000000": datum}}[program]
    with lmdb.open(str(tmp_path / "x_lmdb")) as environment, environment.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key, value)
    assert {"rosinality": "rosinality", "caffe": "Caffe Datum"}[program] in refused(
        lambda: take(tmp_path / "x_lmdb", "lsun")
    )


# Archives


def test_zip_truncated_encrypted_deflated_doubled_nested_or_with_a_wrong_crc(take, tmp_path):
    def pack(name: str, files: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> Path:
        with zipfile.ZipFile(tmp_path / name, "w", how) as archive:
            for member, data in files.items():
                archive.writestr(member, data)
        return tmp_path / name

    files = {"a\\1.png": png(1), "b/2.png": png(2), "__MACOSX/a/._1.png": b"x", "c/": b"", "b/in.zip": b"PK\x03\x04"}
    stored, deflated = pack("s.zip", files), pack("d.zip", files, zipfile.ZIP_DEFLATED)
    assert take(stored).of == take(deflated).of == {"a/1.png": TAKEN, "b/2.png": TAKEN}
    data = bytearray(stored.read_bytes())
    (tmp_path / "cut.zip").write_bytes(data[:-30])
    assert "cut or damaged zip" in refused(lambda: take(tmp_path / "cut.zip"))
    data[data.index(b"IDAT") + 9] ^= 1
    (tmp_path / "crc.zip").write_bytes(data)
    assert take(tmp_path / "crc.zip").of == {"a/1.png": "unreadable", "b/2.png": TAKEN}
    locked = bytearray(stored.read_bytes())
    locked[locked.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(locked)
    assert take(tmp_path / "locked.zip").of == {"a/1.png": "unreadable", "b/2.png": TAKEN}
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        archive.writestr("1.png", png(1)), archive.writestr("1.png", png(2))
    assert "twice" in refused(lambda: take(tmp_path / "twice.zip"))


def test_path_traversal_and_bombs_in_zips_and_no_such_names_in_shards(take, tmp_path):
    names = ["../../up.png", "/abs.png", "C:\\x.png", "b/../c.png"]
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i, name in enumerate(names):
            archive.writestr(name, png(i))
        link = zipfile.ZipInfo("link.png")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("zeros.png", bytes(50_000_000))
    before = {p for p in tmp_path.parent.rglob("*") if "set" not in str(p.relative_to(tmp_path.parent))}
    done = take(tmp_path / "x.zip")
    assert done.of.pop("link.png") == "unreadable"
    assert done.of.pop("zeros.png") == "not an image"
    assert set(done.of.values()) == {TAKEN}
    assert len(done.of) == 4
    assert {p for p in tmp_path.parent.rglob("*") if "set" not in str(p.relative_to(tmp_path.parent))} == before
    with tarfile.open(tmp_path / "set0" / "shard-00000.tar") as tar:
        assert all(m.name.partition(".")[0].isdigit() for m in tar)


def test_tfrecord_wrong_length_or_crc_truncated_record_and_wrong_level(take, tmp_path):
    natives.tfrecord(tmp_path)
    file = tmp_path / "ffhq-r04.tfrecords"
    assert set(take(file, "ffhq", 16).of.values()) == {TAKEN}
    assert "--size 16" in refused(lambda: take(file, "ffhq", 8))
    data = bytearray(file.read_bytes())
    file.write_bytes(data[:-5])
    assert sorted(take(file, "ffhq", 16).of.values()) == [TAKEN] * 5 + ["truncated"]
    file.write_bytes(data[:300] + bytes([data[300] ^ 1]) + data[301:])
    assert sorted(take(file, "ffhq", 16).of.values()) == [TAKEN] * 5 + ["unreadable"]
    data[0] ^= 1
    file.write_bytes(data)
    refused(lambda: take(file, "ffhq", 16))


# Lists


@pytest.fixture
def home(tmp_path) -> Path:
    (tmp_path / "celeba").mkdir()
    natives.celeba(tmp_path / "celeba")
    return tmp_path / "celeba"


def test_celeba_lists_of_other_counts_ends_orders_forms_and_sums(take, home, tmp_path):
    first = take(home, "celeba", 128)
    assert set(first.of.values()) == {TAKEN}
    assert any("not the published bytes (MD5)" in n for n in first.notes)
    rows = (home / "list_eval_partition.txt").read_text().split()
    pairs = list(zip(rows[::2], rows[1::2], strict=True))
    (home / "list_eval_partition.txt").unlink()
    text = "\ufeffimage_id,partition\r\n" + "".join(f"{n} ,{p}\r\n" for n, p in reversed(pairs))
    (home / "list_eval_partition.csv").write_text(text)
    again = take(home, "celeba", 128)
    assert again.about == first.about
    attributes = (home / "list_attr_celeba.txt").read_text().replace("8\n", "202599\n", 1).splitlines(keepends=True)
    (home / "list_attr_celeba.txt").write_text("".join(attributes[:-1]) + attributes[-1].replace("000008", "000009"))
    done = take(home, "celeba", 128)
    assert done.of["000009.jpg"] == "missing"
    assert sum(v == TAKEN for v in done.of.values()) == 8
    assert any("says 202599 images and has 8 rows" in n for n in done.notes)
    (home / "list_eval_partition.csv").write_text(text.replace(",1", ",3"))
    assert "3" in refused(lambda: take(home, "celeba", 128))


def test_ffhq_json_gaps_wrong_sums_missing_thumbnails_only_jpeg_and_flat_names(take, tmp_path):
    (tmp_path / "x").mkdir()
    natives.ffhq(tmp_path / "x")
    root = tmp_path / "x" / "ffhq"
    done = take(root, "ffhq", 32)
    assert [(a["index"], a["category"]) for a in done.about.values()] == [
        *[(i, "training") for i in range(3)],
        (60000, "validation"),
    ]
    assert list(take(root, "ffhq", 32, split="validation").of) == ["60000/60000.png"]
    files = sorted(root.rglob("*.png"))
    files[0].write_bytes(files[0].read_bytes() + b"x")
    files[1].write_bytes(files[2].read_bytes())
    files[2].unlink()
    assert sorted(take(root, "ffhq", 32).of.items()) == [
        *[("00000/00000.png", "checksum"), ("00000/00001.png", "checksum"), ("00000/00002.png", "missing")],
        ("60000/60000.png", TAKEN),
    ]
    flat = lay(tmp_path / "flat", {f"{i:05d}.jpg": encoded(picture(i, 128, 128), "JPEG") for i in (0, 7)})
    done = take(flat, "ffhq", 32)
    assert done.of == {"00000.jpg": TAKEN, "00007.jpg": TAKEN}
    assert any("lossy" in n for n in done.notes)
    assert any("no ffhq-dataset-v2.json" in n for n in done.notes)


def test_dataset_json_labels_null_int_list_or_incomplete(take, tmp_path):
    root = lay(tmp_path / "f", {"0/a.png": png(0), "0/b.png": png(1)})

    def labels(value: object) -> list[int]:
        (root / "dataset.json").write_text(json.dumps({"labels": value}))
        return [a["label"] for a in take(root).about.values()]

    assert labels(None) == [-1, -1]
    assert labels([["0/a.png", 3], ["0/b.png", 1]]) == [3, 1]
    assert labels([["0/a.png", [0, 1]], ["0/b.png", [1, 0]]]) == [1, 0]
    assert "gives no label to 1 of 2" in refused(lambda: labels([["0/a.png", 3]]))


# Writing shards


def test_killed_at_any_byte_a_run_leaves_no_half_shard_and_continues_to_the_same_bytes(tmp_path, contents):
    root = lay(tmp_path / "f", {f"{i:02d}.png": png(i) for i in range(12)})
    code = (
        "import sys; from pathlib import Path; from dataprep.sources.folder import Folder; "
        "from dataprep.transform import Transform; from dataprep.writer import prepare\n"
        "prepare(Folder(Path(sys.argv[1])), Path(sys.argv[2]), Transform(size_px=8), shard_size=4)"
    )
    prepare(open_source("folder", root), tmp_path / "whole", Transform(size_px=8), shard_size=4)
    limited = ["bash", "-c", 'ulimit -f 8; exec "$@"', "-", sys.executable, "-c", code, root, tmp_path / "set"]
    assert subprocess.run(limited, capture_output=True).returncode != 0  # at byte 8192 of the first shard
    assert not list((tmp_path / "set").glob("shard-*.tar"))
    prepare(open_source("folder", root), tmp_path / "set", Transform(size_px=8), shard_size=4)
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")


def test_other_parameters_and_shards_left_over_from_a_larger_run_are_refused(tmp_path, contents):
    root, out = lay(tmp_path / "f", {f"{i}.png": png(i) for i in range(4)}), tmp_path / "set"
    prepare(open_source("folder", root), out, Transform(size_px=8), shard_size=1)
    before = contents(out)
    for transform in (Transform(size_px=8, filter="box"), Transform(size_px=4)):
        assert "made otherwise" in refused(
            lambda t=transform: prepare(open_source("folder", root), out, t, shard_size=1)
        )
    (out / "index.bin").unlink()
    (root / "3.png").unlink()
    assert "holds" in refused(lambda: prepare(open_source("folder", root), out, Transform(size_px=8), shard_size=1))
    assert contents(out) == {k: v for k, v in before.items() if k != "index.bin"}


def test_shards_tell_nothing_of_host_user_path_or_time_also_with_long_names(take, tmp_path):
    names = ["x" * 200 + ".png", "\u00e9" * 100 + ".png"]
    take(lay(tmp_path / "f", {n: png(i) for i, n in enumerate(names)}))
    with tarfile.open(tmp_path / "set0" / "shard-00000.tar") as tar:
        facts = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, bool(m.pax_headers)) for m in tar}
    assert facts == {(0, 0, 0, "", "", 0o644, False)}
    assert not any(os.fsencode(tmp_path) in f.read_bytes() for f in (tmp_path / "set0").iterdir())


@pytest.mark.parametrize(("count", "counts"), [(7, [7]), (8, [7, 1]), (1, [1])])
def test_shard_exactly_at_the_limit_one_more_and_fewer_samples_than_shards(take, tmp_path, count, counts):
    done = take(lay(tmp_path / "f", {f"{i}.png": png(i) for i in range(count)}))
    assert [s.count for s in done.manifest.shards] == counts


def test_zero_samples_are_an_error_and_leave_nothing(take, tmp_path):
    (tmp_path / "f").mkdir()
    refused(lambda: take(tmp_path / "f"))
    assert "none of 1 images" in refused(lambda: take(lay(tmp_path / "f", {"a.png": b""})))
    assert not (tmp_path / "set0").exists()


def test_index_agrees_with_tar_and_cut_flipped_or_swapped_shards_are_found(take, tmp_path):
    done = take(lay(tmp_path / "f", {f"{c}/{i}.png": png(i) for i, c in enumerate("aabbbccc")}))
    out, rows = tmp_path / "set0", read_index(tmp_path / "set0").copy()
    assert np.bincount(rows["label"]).tolist() == [2, 3, 3]
    for shard in done.manifest.shards:
        assert hashlib.sha256((out / shard.name).read_bytes()).hexdigest() == shard.sha256
    first, other = (out / s.name for s in done.manifest.shards)
    data, swap = first.read_bytes(), other.read_bytes()
    flipped = data[:700] + bytes([data[700] ^ 1]) + data[701:]
    for bad, said in [(data[:-512], "(cut)"), (data[: 512 * 6], "(cut)"), (flipped, "damaged"), (swap, "swapped")]:
        first.write_bytes(bad)
        (problem,) = verify(out)
        assert problem.startswith("shard-00000.tar: ")
        assert said in problem


def test_1_and_64_workers_give_equal_bytes(tmp_path, contents):
    root = lay(tmp_path / "f", {f"{i}.png": png(i) for i in range(6)} | {"bad.png": b""})
    for workers in (1, 64):
        words = {"workers": workers, "shard_size": 3, "on_error": "skip"}
        prepare(open_source("folder", root), tmp_path / f"set{workers}", Transform(size_px=8), **words)
    assert contents(tmp_path / "set1") == contents(tmp_path / "set64")


def test_resize_golden_values_and_versions_of_the_libraries_are_recorded(take, tmp_path):
    ramp = np.arange(16 * 16 * 3, dtype=np.uint32).reshape(16, 16, 3) * 37 % 256
    root = lay(tmp_path / "f", {"a.png": encoded(Image.fromarray(ramp.astype(np.uint8)), "PNG")})
    seen = {f: take(root, filter=f) for f in ("box", "lanczos", "bicubic", "area")}
    golden = {"box": (72, 109, 146), "lanczos": (103, 100, 154), "bicubic": (104, 107, 148), "area": (72, 109, 146)}
    assert all(np.abs(seen[f].images["a.png"][3, 4] - np.array(v)).max() <= 1 for f, v in golden.items())
    assert {"pillow", "numpy"} <= seen["box"].manifest.versions.keys()
