"""TFRecords of FFHQ, made here by an independent writer: Google's protobuf for the message, CRC-32C bit by bit."""

import pickle
import re
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from PIL import Image

from dataprep.rejected import Rejected
from dataprep.sources import open_source, tfrecord
from dataprep.sources.ffhq import Ffhq
from pipeline.errors import UserError

POLYNOMIAL = 0x82F63B78  # Castagnoli, reflected
TABLE = []
for byte in range(256):
    for _ in range(8):
        byte = byte >> 1 ^ (POLYNOMIAL if byte & 1 else 0)
    TABLE.append(byte)


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) % 2**32 + 0xA282EAD8) % 2**32)


def framed(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def example_class(packed: bool):
    """tensorflow/core/example/{example,feature}.proto, with int64 lists packed or not."""
    file = descriptor_pb2.FileDescriptorProto(name=f"{packed}.proto", package="t", syntax="proto3")
    repeated, optional, message = 3, 1, 11

    def add(parent, name, *fields):
        made = parent.add(name=name)
        for number, (field, label, kind) in enumerate(fields, 1):
            one = made.field.add(name=field, number=number, label=label)
            if isinstance(kind, str):
                one.type, one.type_name = message, f".t.{kind}"
            else:
                one.type = kind
                if kind == 3:
                    one.options.packed = packed
        return made

    add(file.message_type, "BytesList", ("value", repeated, 12))
    add(file.message_type, "FloatList", ("value", repeated, 2))
    add(file.message_type, "Int64List", ("value", repeated, 3))
    kinds = ("bytes_list", optional, "BytesList"), ("float_list", optional, "FloatList")
    add(file.message_type, "Feature", *kinds, ("int64_list", optional, "Int64List"))
    features = add(file.message_type, "Features", ("feature", repeated, "Features.FeatureEntry"))
    entry = add(features.nested_type, "FeatureEntry", ("key", optional, 9), ("value", optional, "Feature"))
    entry.options.map_entry = True
    add(file.message_type, "Example", ("features", optional, "Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))


EXAMPLES = {packed: example_class(packed) for packed in (True, False)}


def message(pixels: np.ndarray, shape: Iterable[int] | None = None, packed: bool = True, **more: bytes) -> bytes:
    """An Example of an array [H, W, C]."""
    chw = pixels.transpose(2, 0, 1)
    example = EXAMPLES[packed]()
    features = example.features.feature
    features["shape"].int64_list.value.extend(chw.shape if shape is None else shape)
    features["data"].bytes_list.value.append(chw.tobytes())
    for name, value in more.items():
        features[name].bytes_list.value.append(value)
        features[name + "_weight"].float_list.value.append(0.5)
    return example.SerializeToString(deterministic=True)


@pytest.fixture(scope="module")
def faces(real_images) -> list[np.ndarray]:
    """Twelve thumbnails as the PNGs hold them."""
    root = real_images / "native_simulated" / "ffhq" / "thumbnails128x128" / "00000"
    return [np.asarray(Image.open(p)) for p in sorted(root.iterdir())[:12]]


def reduced(face: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(face).resize((side, side), Image.Resampling.BOX))


@pytest.fixture
def levels(faces, tmp_path) -> Path:
    """tfrecords/ffhq with the levels of 16 and 32 px."""
    folder = tmp_path / "tfrecords" / "ffhq"
    folder.mkdir(parents=True)
    for level in (4, 5):
        records = (framed(message(reduced(f, 1 << level), packed=level == 4)) for f in faces)
        (folder / f"ffhq-r{level:02d}.tfrecords").write_bytes(b"".join(records))
    return folder


def one_level(levels: Path) -> tuple[Path, list[int]]:
    path = levels / "ffhq-r05.tfrecords"
    return path, [at for at, _ in tfrecord.offsets(path)]


def test_the_checksum_is_crc32c_masked():
    assert crc32c(b"123456789") == 0xE3069283  # the published check value, of the writer here
    for data in (b"", b"123456789", bytes(range(256)) * 9):
        assert struct.pack("<I", tfrecord.masked_crc(data)) == masked(data)


@pytest.mark.parametrize("where", ["ffhq-r05.tfrecords", ".", "..", "../.."])
def test_records_give_the_pixels_of_the_level_asked_for_from_file_folder_and_root(levels, faces, where):
    source = open_source("ffhq", levels / where)
    entries = source.entries(32)
    assert [e.key for e in entries] == [b"ffhq-r05.tfrecords:%06d" % i for i in range(12)]
    worker = pickle.loads(pickle.dumps(source))
    for entry, face in zip(entries, faces, strict=True):
        assert np.array_equal(np.asarray(worker.read(entry)), reduced(face, 32))
        assert (entry.label, worker.about(entry)) == (-1, {})
    assert any("order" in n for n in source.notes)
    assert any("12 records; all of FFHQ is 70000" in n for n in source.notes)


def test_integers_are_read_packed_and_one_by_one_and_other_features_are_passed_over(faces, tmp_path):
    path = tmp_path / "x.tfrecords"
    assert message(faces[0], packed=True) != message(faces[0], packed=False)
    messages = [message(faces[0], packed=p, a_note=b"seen", zz=b"") for p in (True, False)]
    path.write_bytes(b"".join(map(framed, messages)))
    for at, whole in tfrecord.offsets(path):
        assert whole
        assert np.array_equal(tfrecord.read_image(path, at), faces[0])


def test_the_level_is_that_of_the_shape_not_of_the_name(levels, faces):
    (levels / "ffhq-r04.tfrecords").rename(levels / "x")
    (levels / "ffhq-r05.tfrecords").rename(levels / "ffhq-r04.tfrecords")
    (levels / "x").rename(levels / "ffhq-r05.tfrecords")
    source = Ffhq(levels)
    entry = source.entries(16)[3]
    assert entry.key == b"ffhq-r05.tfrecords:000003"
    assert np.array_equal(np.asarray(source.read(entry)), reduced(faces[3], 16))


@pytest.mark.parametrize(
    ("where", "size_px", "said"),
    [
        ("ffhq-r05.tfrecords", 16, r"size=16.*ffhq-r05.tfrecords 32 px.*give ffhq-r04.tfrecords \(16 px\).*--size 32"),
        ("ffhq-r04.tfrecords", 1024, r"size=1024.*r04.tfrecords 16 px.*give ffhq-r10.tfrecords.*--size 16.*PNGs"),
        (".", 64, r"16 px, ffhq-r05.tfrecords 32 px.*ffhq-r06.tfrecords"),
        (".", 48, r"powers of two"),
    ],
)
def test_a_tfrecord_of_the_wrong_level_is_refused_and_the_one_needed_is_named(levels, where, size_px, said):
    with pytest.raises(UserError, match=said) as e:
        Ffhq(levels / where).entries(size_px)
    assert "\n" not in str(e.value)


def test_two_files_of_one_level_are_refused(levels):
    (levels / "copy.tfrecords").write_bytes((levels / "ffhq-r05.tfrecords").read_bytes())
    with pytest.raises(UserError, match=r"copy.tfrecords and ffhq-r05.tfrecords both hold 32 px"):
        Ffhq(levels).entries(32)


def test_a_split_of_tfrecords_is_refused_as_their_order_is_unknown(levels):
    with pytest.raises(UserError, match="order"):
        Ffhq(levels, "training").entries(32)


@pytest.mark.parametrize("left", [1, 11, 12, 40, -1])
def test_a_cut_last_record_is_an_entry_refused_as_truncated(levels, left):
    path, at = one_level(levels)
    path.write_bytes(path.read_bytes()[: at[-1] + left if left > 0 else left])
    source = Ffhq(path)
    entries = source.entries(32)
    assert [e.refused.reason if e.refused else None for e in entries] == [None] * 11 + ["truncated"]
    with pytest.raises(Rejected, match=r"truncated|unreadable"):
        source.read(entries[11])
    assert source.read(entries[10]).size == (32, 32)


def test_a_wrong_length_checksum_ends_the_listing_with_its_offset(levels):
    path, at = one_level(levels)
    data = bytearray(path.read_bytes())
    data[at[7] + 2] ^= 1  # in the length
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"damaged at byte {at[7]}") as e:
        Ffhq(path).entries(32)
    assert "\n" not in str(e.value)


def test_a_flipped_byte_of_the_data_is_rejected_and_the_rest_is_read(levels):
    path, at = one_level(levels)
    data = bytearray(path.read_bytes())
    data[at[0] + 900] ^= 1  # also the record that would tell the level
    path.write_bytes(data)
    source = Ffhq(path)
    entries = source.entries(32)
    with pytest.raises(Rejected) as e:
        source.read(entries[0])
    assert (e.value.reason, e.value.detail) == ("unreadable", f"wrong CRC-32C of the record at byte {at[0]}")
    assert all(source.read(entry).size == (32, 32) for entry in entries[1:])


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (lambda f: message(f, shape=(3, 32, 31)), "shape"),
        (lambda f: message(f, shape=(32, 32, 3)), "shape"),
        (lambda f: message(f, shape=(3, 32 * 32)), "shape"),
        (lambda f: message(f, shape=(3, -32, -32)), "shape"),
        (lambda f: message(f[:16, :16]), "16x16 in a TFRecord of 32 px"),
        (lambda f: message(f[:, :16]), "16x32"),
        (lambda f: message(f[..., :1]), "shape"),
        (lambda f: message(f)[:-9], "no protobuf Example"),
        (lambda f: b"\xff" * 40, "no protobuf Example"),
        (lambda f: b"", "'shape'"),
        (lambda f: message(f).replace(b"data", b"dota"), "'data'"),
        (lambda f: b"<html>Quota exceeded</html>", "no protobuf Example"),
    ],
)
def test_a_record_that_is_no_image_of_the_level_is_rejected(faces, tmp_path, bad, said):
    path, good = tmp_path / "x.tfrecords", reduced(faces[0], 32)
    path.write_bytes(framed(message(good)) + framed(bad(good)) + framed(message(good)))
    source = Ffhq(path)
    entries = source.entries(32)
    with pytest.raises(Rejected) as e:
        source.read(entries[1])
    assert e.value.reason == "unreadable"
    assert said in e.value.detail
    assert np.array_equal(np.asarray(source.read(entries[2])), good)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><title>Google Drive - Quota exceeded</title>", "Quota exceeded"),
        (b"\x89PNG" * 99, "is no TFRecord"),
        (framed(b"\x0a\x00")[:-3], "it is cut"),
        (framed(b"\x0a\x00") * 20, "no feature"),
    ],
)
def test_a_file_without_images_is_refused_in_one_line(tmp_path, data, said):
    path = tmp_path / "ffhq-r05.tfrecords"
    path.write_bytes(data)
    with pytest.raises(UserError, match=re.escape(str(path))) as e:
        Ffhq(path).entries(32)
    assert said in str(e.value)
    assert "\n" not in str(e.value)


def test_a_tfrecord_of_any_name_is_known_by_its_first_bytes(levels):
    path = levels / "ffhq-r05.tfrecords"
    path.rename(levels / "ffhq")
    assert len(Ffhq(levels / "ffhq").entries(32)) == 12


def mutated(data: bytes, chance: np.random.Generator) -> bytes:
    out = bytearray(data)
    for _ in range(chance.integers(1, 4)):  # mostly in the first bytes, where the structure is
        place = chance.integers(0, len(out)) if chance.random() < 0.3 else chance.integers(0, min(90, len(out)))
        out[place] = chance.integers(0, 256)
    return bytes(out[: chance.integers(0, len(out))] if chance.random() < 0.2 else out)


def outcome(path: Path) -> set[str]:
    seen = set()
    try:
        source = Ffhq(path)
        for entry in source.entries(32):
            seen.add(entry.refused.reason if entry.refused else "taken")
            if not entry.refused:
                source.read(entry)
    except UserError as e:
        return {str(e)}
    except Rejected as e:
        return {e.reason}
    return seen


def test_mutated_files_and_messages_end_in_a_rejection_or_one_line(levels, faces):
    path, at = one_level(levels)
    whole, good = path.read_bytes()[: at[2]], message(reduced(faces[0], 32), a_note=b"seen")
    chance = np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        path.write_bytes(mutated(whole, chance))
        seen |= outcome(path)
        path.write_bytes(framed(good) + framed(mutated(good, chance)))  # the checksums hold
        assert outcome(path) <= {"taken", "unreadable"}
    assert seen >= {"taken", "truncated", "unreadable"}
    assert all("\n" not in s and len(s) < 400 for s in seen)
