"""Files below a folder and inside a zip: one order, one set of rules. The zip reader is compared with zipfile."""

import os
import pickle
import random
import stat
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import pytest

from dataprep.rejected import Rejected
from dataprep.sources.tree import FolderTree, ZipTree, is_image_head, is_image_name, open_tree, refuse_page
from dataprep.sources.zipindex import ZipIndex
from pipeline.errors import UserError

PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)
WANTED = "a folder of images or a zip"
AWKWARD = ["a/1.png", "a.png", "a-b/1.png", "a/b/c.png", "B.png", "10.png", "2.png", "\u00e9.png", "with space\n.png"]


def pack(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def lay(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def patch(path: Path, *changes: tuple[bytes, int, bytes]) -> Path:
    """Overwrite bytes at an offset from the first place where a signature stands."""
    data = bytearray(path.read_bytes())
    for signature, offset, new in changes:
        at = data.index(signature) + offset
        data[at : at + len(new)] = new
    path.write_bytes(data)
    return path


def outcome(tree, key: bytes, head: bool = False) -> bytes | str:
    try:
        return tree.head(key) if head else tree.read(key)
    except Rejected as e:
        return e.reason


def keys(tree) -> list[bytes]:
    return [f.key for f in tree.files()]


def test_a_folder_and_its_zip_hold_the_same_files_in_the_order_of_their_bytes(tmp_path):
    files = {name: name.encode() * 3 for name in AWKWARD}
    folder = open_tree(lay(tmp_path / "f", files), WANTED)
    archive = open_tree(pack(tmp_path / "named.jpg", files, zipfile.ZIP_DEFLATED), WANTED)
    expected = sorted(n.encode() for n in files)
    assert keys(folder) == keys(archive) == expected
    for file, packed in zip(folder.files(), archive.files(), strict=True):
        data = files[file.key.decode()]
        assert folder.read(file.key) == archive.read(file.key) == data
        assert folder.head(file.key) == archive.head(file.key) == data[:16]
        assert (file.size, file.at, packed.size, packed.at) == (len(data), len(data), len(data), zlib.crc32(data))


def test_litter_of_desktops_is_passed_over_in_both(tmp_path):
    litter = ["._a.png", ".hidden/b.png", "__MACOSX/c.png", "d/__MACOSX/._c.png", "Thumbs.db", "d/thumbs.DB"]
    litter += ["desktop.ini", ".DS_Store", "a.png:Zone.Identifier"]
    files = dict.fromkeys(["a.png", "12:30.png", "x..png", *litter], b"x")
    assert keys(FolderTree(lay(tmp_path / "f", files))) == [b"12:30.png", b"a.png", b"x..png"]
    assert keys(ZipTree(pack(tmp_path / "z", files))) == [b"12:30.png", b"a.png", b"x..png"]


def test_links_and_devices_are_offered_by_name_and_never_opened(tmp_path):
    root = lay(tmp_path / "f", {"a.png": b"1", "sub/b.png": b"2", "gone": b"3"})
    for link, target in [("l.png", "a.png"), ("d.png", "nothing"), ("self.png", "self.png"), ("dir.png", "sub")]:
        (root / link).symlink_to(target)
    (root / "loop").symlink_to(root)
    (root / "no name of an image").symlink_to("nothing")
    for pipe in ("p.png", "q"):
        os.mkfifo(root / pipe)
    tree = FolderTree(root)
    found = {f.key: f.at for f in tree.files()}
    (root / "gone").unlink()
    assert found == {b"a.png": 1, b"l.png": 1, b"gone": 1, b"sub/b.png": 1, b"d.png": -1, b"self.png": -1, b"p.png": -1}
    seen = {k: outcome(tree, k) for k in found}
    assert (seen[b"l.png"], seen[b"d.png"], seen[b"gone"], outcome(tree, b"a.png/x")) == (b"1", *["missing"] * 3)
    assert seen[b"self.png"] == seen[b"p.png"] == "unreadable"


def test_names_of_any_bytes_are_read_from_a_folder(tmp_path):
    (tmp_path / "f").mkdir()
    with open(os.fsencode(tmp_path / "f") + b"/\xff\xfe.png", "wb") as f:
        f.write(b"1")
    assert [(k, FolderTree(tmp_path / "f").read(k)) for k in keys(FolderTree(tmp_path / "f"))] == [
        (b"\xff\xfe.png", b"1")
    ]


@pytest.mark.parametrize("kind", [FolderTree, ZipTree])
def test_trees_pickle_to_their_path(tmp_path, kind):
    files = {f"{i}.png": b"1" for i in range(99)}
    tree = kind(lay(tmp_path / "f", files) if kind is FolderTree else pack(tmp_path / "z", files))
    assert len(keys(tree)) == 99
    assert len(pickle.dumps(tree)) < 400
    assert pickle.loads(pickle.dumps(tree)).read(b"7.png") == b"1"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("before", [0, 77])
@pytest.mark.parametrize("comment", [0, 65535])
def test_the_index_agrees_with_the_standard_library(tmp_path, monkeypatch, method, wide, before, comment):
    if wide:
        monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 20)
        monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    rng = random.Random(1)
    files = {f"{rng.randrange(9)}/\u00e9{i}": rng.randbytes(rng.choice([0, 1, 100, 5000])) * 3 for i in range(40)}
    pack(tmp_path / "z", files, method)
    with zipfile.ZipFile(tmp_path / "z", "a") as archive:
        archive.comment = b"c" * comment
    (tmp_path / "z").write_bytes(bytes(before) + (tmp_path / "z").read_bytes())
    index = ZipIndex(tmp_path / "z")
    with zipfile.ZipFile(tmp_path / "z") as archive:
        expected = sorted((i.filename.encode(), i.file_size, i.CRC) for i in archive.infolist())
        assert [(m.name, m.size, m.crc) for m in index] == expected
        assert all(index.read(m, 10**6) == archive.read(m.name.decode()) for m in index)


def test_members_beyond_four_gibibytes_are_read(tmp_path):
    with (tmp_path / "z").open("wb") as f:
        f.seek(5 * 2**30)  # a hole: takes no room
        with zipfile.ZipFile(f, "w") as archive:
            archive.writestr("a.png", PNG)
            archive.writestr("b.png", b"2")
    assert [ZipTree(tmp_path / "z").read(f.key) for f in ZipTree(tmp_path / "z").files()] == [PNG, b"2"]


def test_directory_entries_backslashes_and_hostile_names_are_names_and_nothing_more(tmp_path):
    names = ["d/", "d\\1.png", "../x.png", "/abs.png", "C:\\x.png", "./y.png", "a/./z.png"]
    tree = ZipTree(pack(tmp_path / "z", dict.fromkeys(names, b"1")))
    assert keys(tree) == [b"../x.png", b"/abs.png", b"C:/x.png", b"a/z.png", b"d/1.png", b"y.png"]
    assert {outcome(tree, k) for k in keys(tree)} == {b"1"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["z"]


@pytest.mark.parametrize(
    ("stored", "shown"),
    [(b"\x82.png", "\u00e9.png"), ("\u00e9.png".encode(), "\u00e9.png"), (b"e.png", "e.png")],
    ids=["cp437", "UTF-8 without its flag, as macOS writes it", "ASCII"],
)
def test_old_names_are_read_as_the_packer_meant_them(tmp_path, stored, shown):
    name = "x" * (len(stored) - 4) + ".png"
    path = pack(tmp_path / "z", {name: b"1"})
    path.write_bytes(path.read_bytes().replace(name.encode(), stored))
    assert keys(ZipTree(path)) == [shown.encode()]
    assert ZipTree(path).read(shown.encode()) == b"1"


def test_a_unicode_name_beside_an_old_one_is_taken_if_it_belongs_to_it(tmp_path):
    field = b"\1" + zlib.crc32(b"\x82.png").to_bytes(4, "little") + "\u0416.png".encode()
    for name, expected in ((b"\x82.png", "\u0416.png"), (b"\x81.png", "\u00fc.png")):
        info = zipfile.ZipInfo("x.png")
        info.extra = struct.pack("<2H", 0x7075, len(field)) + field
        with zipfile.ZipFile(tmp_path / "z", "w") as archive:
            archive.writestr(info, b"1")
        (tmp_path / "z").write_bytes((tmp_path / "z").read_bytes().replace(b"x.png", name))
        assert keys(ZipTree(tmp_path / "z")) == [expected.encode()]


LOCAL, CENTRAL = b"PK\3\4", b"PK\1\2"
DAMAGE = {  # changes to a zip with one deflated member -> reason
    "encrypted": ([(LOCAL, 6, b"\1"), (CENTRAL, 8, b"\1")], "unreadable"),
    "wrong CRC": ([(CENTRAL, 16, b"\0\0\0\0")], "unreadable"),
    "an unknown method": ([(CENTRAL, 10, b"\x63\0")], "unreadable"),
    "the place of something else": ([(LOCAL, 0, b"none")], "unreadable"),
    "a place after the end": ([(CENTRAL, 42, b"\xf0\xff\xff\xff")], "unreadable"),
    "no deflate": ([(LOCAL, 30 + 5, b"\xff" * 8)], "unreadable"),
    "a link": ([(CENTRAL, 38, struct.pack("<L", (stat.S_IFLNK | 0o777) << 16))], "unreadable"),
    "less than it says": ([(CENTRAL, 24, struct.pack("<L", 10**6))], "truncated"),
    "more than it says": ([(CENTRAL, 24, struct.pack("<L", 10))], "unreadable"),
    "more bytes than the zip": ([(CENTRAL, 20, struct.pack("<L", 10**6))], "truncated"),
    "a bomb": ([(CENTRAL, 24, struct.pack("<L", 2**30 + 1))], "too large"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_member_is_rejected_by_its_reason_and_the_others_are_read(tmp_path, what):
    changes, reason = DAMAGE[what]
    data = bytes(range(256)) * 9
    path = pack(tmp_path / "z", {"a.png": data, "b.png": data}, zipfile.ZIP_DEFLATED)
    tree = ZipTree(patch(path, *changes))
    assert keys(tree) == [b"a.png", b"b.png"]
    assert (outcome(tree, b"a.png"), outcome(tree, b"b.png"), outcome(tree, b"c.png")) == (reason, data, "missing")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_unpack_without_bound_are_not_read(tmp_path, method):
    assert outcome(ZipTree(pack(tmp_path / "z", {"a.png": PNG}, method)), b"a.png") == "unreadable"


def test_a_member_that_lies_about_its_size_yields_no_more_than_it_says(tmp_path):
    path = pack(tmp_path / "z", {"a.png": bytes(2**26)}, zipfile.ZIP_DEFLATED)
    tree = ZipTree(patch(path, (CENTRAL, 24, struct.pack("<L", 1000))))
    tracemalloc.start()
    assert outcome(tree, b"a.png") == "unreadable"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


def test_a_file_of_more_than_a_gibibyte_is_not_read(tmp_path):
    with (tmp_path / "a.png").open("wb") as f:
        f.truncate(2**30 + 1)
    assert outcome(FolderTree(tmp_path), b"a.png") == "too large"


@pytest.mark.parametrize("second", ["a/1.png", "a\\1.png"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice_refuses_the_zip(tmp_path, second):
    with zipfile.ZipFile(tmp_path / "z", "w") as archive:
        for name in ("a/1.png", "b.png", second):
            archive.writestr(name, name)
    with pytest.raises(UserError, match=r"holds 'a/1.png' twice; unpack it"):
        ZipTree(tmp_path / "z").files()


def test_a_zip_cut_anywhere_is_refused_in_one_line(tmp_path):
    path = pack(tmp_path / "z", {f"{i}.png": PNG * 9 for i in range(9)})
    whole = path.read_bytes()
    for length in range(4, len(whole) - 1, 97):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut or damaged zip.*download it again") as e:
            open_tree(path, WANTED).files()
        assert "\n" not in str(e.value)


def test_a_directory_with_fewer_members_than_it_says_is_damaged(tmp_path):
    path = patch(pack(tmp_path / "z", {"a.png": PNG}), (b"PK\5\6", 10, b"\2\0"))
    with pytest.raises(UserError, match="has 1 members and says otherwise"):
        open_tree(path, WANTED).files()


def test_a_part_of_a_split_zip_says_so(tmp_path):
    path = patch(pack(tmp_path / "z", {"a.png": PNG}), (b"PK\5\6", 4, b"\2\0"))
    with pytest.raises(UserError, match=r"spans several files.*zip -s 0"):
        open_tree(path, WANTED).files()


NO_TREES = {
    "page.zip": (b"<!DOCTYPE html><title>Google Drive - Quota exceeded</title>", "Quota exceeded.*download it again"),
    "login.zip": (b"\xef\xbb\xbf\n <HTML><body>sign in", "a web page.*download it again"),
    "x.7z": (b"7z\xbc\xaf'\x1c\0\4", "7z archive.*unpack it first"),
    "x.7z.002": (b"\0\1\2\3", "multi-part archive.*unpack it first"),
    "x.tar.gz": (b"\x1f\x8b\x08", "gzip archive"),
    "x.tar": (bytes(257) + b"ustar\0", "tar archive"),
    "x.rar": (b"Rar!\x1a\7", "rar archive"),
    "data.mdb": (bytes(16) + b"\xde\xc0\xef\xbe", "LMDB.*lsun"),
    "x.zip": (b"PKnot", "no zip|but is none"),
    "a.png": (PNG, "single image"),
    "empty.zip": (b"", "empty file"),
    "notes.txt": (b"text", "not a folder.*no zip"),
}


@pytest.mark.parametrize("name", NO_TREES)
def test_what_is_no_tree_is_named_with_advice_in_one_line(tmp_path, name):
    data, said = NO_TREES[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=said) as e:
        open_tree(tmp_path / name, WANTED)
    assert "\n" not in str(e.value)
    assert name in str(e.value)


def test_no_path_a_wrong_path_a_device_and_an_lmdb_folder_are_refused(tmp_path):
    lay(tmp_path / "church_lmdb", {"data.mdb": b"x"})
    os.mkfifo(tmp_path / "pipe")
    for path, said in [
        (None, "PATH is missing: give a folder of images or a zip"),
        (tmp_path / "no", "no such file or folder; give a folder"),
        (tmp_path / ("x" * 300), "name too long; give a folder"),
        (tmp_path / "pipe", "neither a file nor a folder"),
        (tmp_path / "church_lmdb", "LMDB.*lsun"),
    ]:
        with pytest.raises(UserError, match=said):
            open_tree(path, WANTED)


def test_a_folder_that_cannot_be_listed_stops_and_is_named(tmp_path):
    tree = FolderTree(lay(tmp_path / "gone\udcff", {}))
    with pytest.raises(UserError, match=r"cannot list .*gone.xff/: No such"):
        keys(tree)


def test_real_images_are_told_by_their_first_bytes_and_text_is_not(real_images):
    for path in sorted((real_images / "originals").rglob("*")):
        if path.is_file():
            known = is_image_head(path.read_bytes()[:16])
            assert known == (is_image_name(os.fsencode(path.name)) or path.suffix == ".mpo"), path
    other = [
        b"",
        b"B",
        b"BM",
        b"RIFF\0\0\0\0WAVE",
        b"MThd",
        b"%PDF-1.4",
        b"{}",
        b"\0\0\0\x18ftypmp42",
        b"BMW is a car.....",
    ]
    assert not any(is_image_head(h) for h in other)
    assert is_image_head(b"\0\0\0\x1cftypavif\0\0\0\0")
    assert is_image_head(b"\0\0\0\x18ftypheic\0\0\0\0")


def test_a_page_in_place_of_a_list_is_refused(tmp_path):
    refuse_page(tmp_path / "a.txt", b"000001.jpg 0\n")
    with pytest.raises(UserError, match=r"a\.txt: is a web page"):
        refuse_page(tmp_path / "a.txt", b"\r\n<html><head>")


def test_zips_with_flipped_bytes_end_in_one_line_or_a_rejection(tmp_path):
    rng = random.Random(2)
    path = pack(tmp_path / "z", {f"\u00e9/{i}.png": PNG * 9 for i in range(4)}, zipfile.ZIP_DEFLATED)
    whole = path.read_bytes()
    seen = set()
    for _ in range(1500):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] = rng.choice([0, 1, 255, rng.randrange(256)])
        path.write_bytes(data)
        try:
            tree = open_tree(path, WANTED)
            for file in tree.files():
                seen.add(type(outcome(tree, file.key)))
                seen.add(type(outcome(tree, file.key, head=True)))
        except UserError as e:
            seen.add(str(e).count("\n"))
    assert seen == {bytes, str, 0}
