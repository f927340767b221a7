"""Damage done to a prepared folder, each kind found and named by verify, and most by load_manifest already."""

import hashlib
import json
import os
import shutil
import tarfile
import threading
from pathlib import Path

import pytest
from PIL import Image

from dataprep.sources.folder import Folder
from dataprep.transform import Transform
from dataprep.verify import _sha256, samples, verify
from dataprep.writer import prepare
from pipeline.data.manifest import INDEX, MANIFEST, RECORD, Manifest, load_manifest, read_index
from pipeline.errors import UserError


@pytest.fixture
def root(images, tmp_path) -> Path:
    """Eight images of two classes in shards of 3, 3 and 2."""
    source = Folder(images(*[f"{c}/{i}.png" for c in "ab" for i in range(4)], size=8))
    prepare(source, tmp_path / "set", Transform(size_px=8), shard_size=3)
    return tmp_path / "set"


def change(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def member(shard: Path, name: str) -> tarfile.TarInfo:
    with tarfile.open(shard) as tar:
        return tar.getmember(name)


def manifest_as_it_is(root: Path) -> Manifest:
    return Manifest.from_json((root / MANIFEST).read_text())


def signed(root: Path, manifest: Manifest) -> None:
    """A manifest that agrees with itself, whatever it says."""
    (root / MANIFEST).write_text(manifest.replace(dataset_id=manifest.identity()).to_json())


def test_a_sound_set_has_no_problems_and_progress_counts_bytes(root):
    seen = []
    assert verify(root, progress=lambda done, total: seen.append((done, total))) == []
    total = sum(f.stat().st_size for f in root.glob("*.tar"))
    assert seen[-1] == (total, total)


@pytest.mark.parametrize("workers", [1, 8])
def test_any_number_of_threads_finds_the_same(root, workers):
    change(root / "shard-00001.tar", 700)
    assert verify(root, workers=workers) == verify(root)


def test_an_interrupted_verify_leaves_no_threads(root):
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        verify(root, progress=interrupt)
    assert threading.active_count() == before
    empty = hashlib.sha256().hexdigest()
    assert _sha256(root / "shard-00000.tar", lambda n: False) == empty, "read on after it was told to stop"


@pytest.mark.parametrize(
    ("name", "part", "said"),
    [
        ("000000004.png", "header", "no tar header behind '000000003.json' (byte "),
        ("000000004.png", "data", "sample 000000004 cannot be decoded"),
        ("000000004.json", "header", "no tar header behind '000000004.png' (byte "),
        ("000000004.json", "data", "the .json of sample 000000004 cannot be read"),
        ("000000005.json", "padding", "its sha256 is wrong, though every image still decodes"),
    ],
)
def test_a_flipped_byte_is_found_by_verify_alone_and_its_sample_named(root, name, part, said):
    shard = root / "shard-00001.tar"
    found = member(shard, name)
    change(shard, {"header": found.offset, "data": found.offset_data, "padding": found.offset_data + 511}[part])
    load_manifest(root)
    (problem,) = verify(root)
    assert problem.startswith("shard-00001.tar: damaged: " + said)
    assert problem.endswith("; copy it again or prepare anew")


def test_a_flipped_label_is_named(root):
    shard = root / "shard-00001.tar"
    data = shard.read_bytes()
    shard.write_bytes(data.replace(b'"label": 1', b'"label": 0', 1))
    (problem,) = verify(root)
    assert "damaged: sample 000000004 has label 0, index.bin says 1" in problem


@pytest.mark.parametrize(
    ("left", "said"),
    [(19, ""), (12, ": the tar ends behind '000000002.json'"), (4, ": the tar ends behind '000000000.json'")],
)
def test_a_shard_cut_at_a_tar_block_is_named(root, left, said):
    shard = root / "shard-00000.tar"
    shard.write_bytes(shard.read_bytes()[: 512 * left])
    with pytest.raises(UserError, match=r"shard-00000\.tar: has \d+ bytes"):
        load_manifest(root)
    (problem,) = verify(root)
    assert (
        problem == f"shard-00000.tar: ends after {512 * left} of 10240 bytes (cut){said}; copy it again or prepare anew"
    )


def test_bytes_behind_the_end_of_a_shard_are_named(root):
    shard = root / "shard-00000.tar"
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes() + b"more")
    (problem,) = verify(root)
    assert f"shard-00000.tar: has {size + 4} bytes, {size} were written: zeros behind" in problem


@pytest.mark.parametrize("b", [1, 2])
def test_swapped_shards_each_name_the_other(root, b):
    first, other = root / "shard-00000.tar", root / f"shard-0000{b}.tar"
    first.rename(root / "x"), other.rename(first), (root / "x").rename(other)
    assert verify(root) == [
        f"{one.name}: holds the bytes of {two.name} (renamed or swapped?); rename them back"
        for one, two in ((first, other), (other, first))
    ]


@pytest.mark.parametrize("encoding", ["png", "jpg", "webp"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_shard_of_another_set_in_place_of_one_is_foreign(images, tmp_path, encoding, count):
    transform = Transform(size_px=8, encoding=encoding)
    prepare(Folder(images("a.png", "b.png")), tmp_path / "set", transform)
    (tmp_path / "flat").mkdir()
    for i in range(count):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / "flat" / f"{i}.png")
    prepare(Folder(tmp_path / "flat"), tmp_path / "other", transform)
    shutil.copy(tmp_path / "other" / "shard-00000.tar", tmp_path / "set" / "shard-00000.tar")
    (problem,) = verify(tmp_path / "set")
    assert problem.startswith("shard-00000.tar: foreign, a shard of another set (")


@pytest.mark.parametrize("data", [b"<html>", b"", bytes(20480), b"\xff" * 20480])
def test_what_is_no_tar_is_named(root, data):
    (root / "shard-00001.tar").write_bytes(data)
    (problem,) = verify(root)
    assert problem.startswith("shard-00001.tar: ")
    assert len(problem) < 200


def test_missing_and_foreign_shards_are_named(root):
    (root / "shard-00001.tar").rename(root / "shard-00009.tar")
    (root / "a \n\u00fc\udcff.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"shard-00001\.tar: is missing"):
        load_manifest(root)
    assert verify(root) == [
        "shard-00001.tar: is missing; copy it again or prepare anew",
        "a \\n\\xfc\\udcff.tar: not in manifest.json (foreign): remove it",
        "shard-00009.tar: not in manifest.json (foreign): holds the bytes of shard-00001.tar; "
        "rename it back or remove it",
    ]


def test_several_damaged_shards_are_all_named(root):
    for shard in root.glob("*.tar"):
        shard.write_bytes(b"")
    assert len(verify(root)) == 3


@pytest.mark.parametrize("kind", ["folder", "fifo", "dangling", "unreadable"])
def test_a_shard_that_is_no_readable_file_is_named(root, kind):
    shard = root / "shard-00001.tar"
    if kind == "unreadable":
        if os.geteuid() == 0:
            pytest.skip("root reads everything")
        shard.chmod(0)
    else:
        shard.unlink()
        {"folder": shard.mkdir, "fifo": lambda: os.mkfifo(shard), "dangling": lambda: shard.symlink_to("x")}[kind]()
    (problem,) = verify(root)
    assert problem.startswith("shard-00001.tar: is missing" if kind != "unreadable" else "shard-00001.tar: cannot")


def test_a_stale_index_is_refused_and_its_first_wrong_row_named(root):
    index = read_index(root).copy()
    index[[4, 5]] = index[[5, 4]]
    (root / INDEX).write_bytes(index.tobytes())
    with pytest.raises(UserError, match=r"index\.bin: does not match"):
        load_manifest(root)
    (problem,) = verify(root)
    assert problem.startswith("index.bin: is not the index that manifest.json names (stale")
    assert "row 1 of shard-00001.tar" in problem
    assert "sample 000000004" in problem


@pytest.mark.parametrize(
    ("size", "said"), [(0, "(cut)"), (127, "(cut)"), (9 * 16, "stale or another set's"), (None, "not finished")]
)
def test_an_index_of_another_length_is_named_and_the_shards_checked_all_the_same(root, size, said):
    data = (root / INDEX).read_bytes() * 2
    (root / INDEX).unlink() if size is None else (root / INDEX).write_bytes(data[:size])
    change(root / "shard-00002.tar", 700)
    problems = verify(root)
    assert [p.split(":")[0] for p in problems] == ["index.bin", "shard-00002.tar"]
    assert said in problems[0]


@pytest.mark.parametrize("field", ["offset", "length", "label"])
def test_an_index_that_fits_its_hash_but_not_the_images_is_found(root, field):
    index = read_index(root).copy()
    index[4][field] = index[4][field] + (1 if field != "label" else -1)
    (root / INDEX).write_bytes(index.astype(RECORD).tobytes())
    signed(root, manifest_as_it_is(root).replace(index_sha256=hashlib.sha256(index.tobytes()).hexdigest()))
    load_manifest(root)
    (problem,) = verify(root)
    assert problem.startswith("index.bin: row 1 of shard-00001.tar")


def test_a_label_outside_the_class_table_is_found(root):
    signed(root, manifest_as_it_is(root).replace(classes=("a",)))
    (problem,) = verify(root)
    assert "index.bin: holds labels 0 to 1 for 1 classes" in problem


@pytest.mark.parametrize("add", ["an image", "a folder", "a link"])
def test_a_shard_that_the_writer_does_not_make_is_found_though_its_hash_is_right(root, add):
    shard = root / "shard-00002.tar"
    with tarfile.open(shard, "a", format=tarfile.USTAR_FORMAT) as tar:
        extra = tarfile.TarInfo("000000099.png")
        extra.type = {"an image": tarfile.REGTYPE, "a folder": tarfile.DIRTYPE, "a link": tarfile.SYMTYPE}[add]
        extra.linkname = "/etc/passwd"
        tar.addfile(extra)
    manifest = manifest_as_it_is(root)
    content = {"bytes": shard.stat().st_size, "sha256": hashlib.sha256(shard.read_bytes()).hexdigest()}
    signed(root, manifest.replace(shards=(*manifest.shards[:2], manifest.shards[2].replace(**content))))
    (problem,) = verify(root)
    assert problem.startswith("shard-00002.tar: is as manifest.json says, but no shard: ")


@pytest.mark.parametrize("length", [b"-0000001000", b"00000001_00", b"77777777777", b"\x80" + bytes(10)])
def test_no_header_leads_the_walk_astray(root, length):
    shard = root / "shard-00000.tar"
    data = bytearray(shard.read_bytes())
    data[124:135] = length
    data[148:155] = b"%06o\0" % (sum(data[:148]) + sum(data[156:512]) + 8 * 32)
    shard.write_bytes(data)
    (problem,) = verify(root)
    assert problem.startswith("shard-00000.tar: damaged: ")


@pytest.mark.parametrize("damage", ["size_px", "count", "not json", "not text", "deep", "digits", "empty"])
def test_an_edited_or_damaged_manifest_is_refused(root, damage):
    content = json.loads((root / MANIFEST).read_text())
    text = {
        "size_px": json.dumps({**content, "size_px": 9}).encode(),
        "count": json.dumps({**content, "count_in": 9}).encode(),
        "not json": b"{",
        "not text": b"\xff\xfe",
        "deep": b"[" * 100_000,
        "digits": b"9" * 5000,
        "empty": b"",
    }[damage]
    (root / MANIFEST).write_bytes(text)
    with pytest.raises(UserError, match=r"manifest\.json"):
        load_manifest(root)
    assert verify(root)[0].startswith("manifest.json: ")


@pytest.mark.parametrize("name", ["../shard-00000.tar", "/tmp/shard-00000.tar", "shard-00000.tar\n", "shard-1.tar", ""])
def test_a_manifest_that_names_files_elsewhere_is_refused(root, name):
    content = json.loads((root / MANIFEST).read_text())
    content["shards"][1]["name"] = name
    (root / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"shards\.1\.name") as e:
        load_manifest(root)
    assert "\n" not in str(e.value)
    assert len(verify(root)) == 1


def test_a_manifest_that_names_a_shard_twice_is_refused(root):
    content = json.loads((root / MANIFEST).read_text())
    content["shards"][1] = content["shards"][0]
    (root / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(UserError, match="two shards of one name"):
        load_manifest(root)


@pytest.mark.parametrize(
    ("text", "said"), [(None, "missing"), ("{", "damaged"), ("[]", "damaged"), ("", "names 0 images, manifest.json c")]
)
def test_a_list_of_rejected_that_does_not_name_them_all_is_found(images, tmp_path, text, said):
    root, out = images("a.png", "b.png"), tmp_path / "set"
    (root / "b.png").write_bytes(b"")
    prepare(Folder(root), out, Transform(size_px=8), on_error="skip")
    assert verify(out) == []
    (out / "rejected.jsonl").unlink() if text is None else (out / "rejected.jsonl").write_text(text)
    (problem,) = verify(out)
    assert said in problem


def test_a_folder_that_is_no_set_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="not a prepared data set"):
        verify(tmp_path)


def test_raw_samples_are_found_behind_their_header(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in (("000000000.npy", bytes(128 + 12)), ("000000000.json", b'{"label": 3}')):
            (tmp_path / name).write_bytes(data)
            tar.add(tmp_path / name, name)
    with open(tmp_path / "x.tar", "rb") as f:
        (sample,) = samples(f.fileno(), (tmp_path / "x.tar").stat().st_size, "raw")
    assert (sample.offset, sample.length, sample.label) == (512 + 128, 12, 3)
