"""One image at a time: against the tar module and Pillow, and with every kind of damage."""

import io
import multiprocessing
import os
import tarfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data import reader as reader_module
from pipeline.data.manifest import RECORD, read_index
from pipeline.data.reader import DataError, ShardReader
from pipeline.errors import WorkError

ENCODINGS = ("png", "jpg", "webp", "raw")


def by_hand(root: Path) -> list[np.ndarray]:
    images = []
    for shard in sorted(root.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for name in tar.getnames():
                if not name.endswith(".json"):
                    data = io.BytesIO(tar.extractfile(name).read())  # type: ignore[union-attr]
                    image = np.load(data) if name.endswith(".npy") else np.asarray(Image.open(data))
                    images.append(image.transpose(2, 0, 1))
    return images


def place_of(root: Path, i: int) -> tuple[Path, int, int]:
    """Shard, offset and length of sample i."""
    offset, length, _ = read_index(root)[i].item()
    return root / f"shard-{i // 4:05d}.tar", offset, length


def overwrite(root: Path, i: int, data: bytes) -> None:
    shard, offset, length = place_of(root, i)
    assert len(data) <= length
    whole = bytearray(shard.read_bytes())
    whole[offset : offset + length] = data.ljust(length, b"\0")
    shard.write_bytes(whole)


@pytest.mark.parametrize("encoding", ENCODINGS)
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


def test_more_shards_than_open_files_are_read_and_files_close_with_the_reader(prepared, monkeypatch):
    monkeypatch.setattr(reader_module, "OPEN_SHARDS", 2)
    before = len(os.listdir("/proc/self/fd"))
    reader = ShardReader(prepared("png"))
    assert [reader.read(i)[1] for i in (0, 4, 8, 0, 8, 4)] == [0, 0, 1, 0, 1, 0]
    assert len(os.listdir("/proc/self/fd")) - before <= 3  # the index is one
    del reader
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_reader_in_use_works_in_another_process(prepared):
    reader = ShardReader(prepared("png"))
    expected = reader.read(0)[0], reader.read(9)[0]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:  # forking threads may hang
        got = list(pool.map(reader.read, [0, 9]))
    assert all(np.array_equal(e, g) for e, (g, _) in zip(expected, got, strict=True))
    assert np.array_equal(reader.read(0)[0], expected[0])


def _zeros(root: Path) -> None:
    overwrite(root, 5, b"")


def _cut(root: Path) -> None:
    shard, offset, length = place_of(root, 5)
    os.truncate(shard, offset + length // 2)


def _vanished(root: Path) -> None:
    (root / "shard-00001.tar").unlink()


def _unreadable(root: Path) -> None:
    (root / "shard-00001.tar").unlink()
    (root / "shard-00001.tar").mkdir()  # opens, and then every read is an error of the kernel's


def _smaller(root: Path) -> None:
    _replace(root, np.zeros((8, 12, 3), np.uint8))


def _larger(root: Path) -> None:
    _replace(root, np.zeros((13, 12, 3), np.uint8))


def _replace(root: Path, image: np.ndarray) -> None:
    """A sound image of another shape in the place of sample 5."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, {"jpg": "JPEG"}.get(root.name, root.name))
    overwrite(root, 5, out.getvalue())


@pytest.mark.parametrize(
    ("damage", "encodings", "said"),
    [
        (_zeros, ("png", "jpg", "webp"), "cannot be read"),
        (_cut, ENCODINGS, r"\d+ of \d+ bytes"),
        (_vanished, ENCODINGS, "No such file"),
        (_unreadable, ENCODINGS, "Is a directory"),
        (_smaller, ("png", "jpg", "webp"), "12x8|8, 12, 3"),
        (_larger, ("png", "jpg", "webp"), "12x13|13, 12, 3"),
    ],
)
def test_damage_is_an_error_that_names_file_sample_and_key(copy, damage, encodings, said):
    for encoding in encodings:
        root = copy(encoding)
        reader = ShardReader(root)
        damage(root)
        reader.read(3)
        key = r"000000005" if damage not in (_vanished, _unreadable) else "unknown"
        with pytest.raises(DataError, match=rf"shard-00001\.tar: sample 5 \(key {key}\).*graticule verify") as caught:
            reader.read(5)
        assert caught.match(said)
        assert isinstance(caught.value, WorkError)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("row", "said"),
    [((0, 1, 0), r"shard-00001\.tar: sample 5"), ((2**60, 9, 0), "offset"), ((512, 2**32 - 1, 0), "length")],
)
def test_an_index_that_points_elsewhere_is_an_error_before_memory_is_taken(copy, row, said):
    root = copy("png")
    reader = ShardReader(root)
    with open(root / "index.bin", "r+b") as f:
        f.seek(5 * RECORD.itemsize)
        f.write(np.array(row, RECORD).tobytes())
    reader.read(4)
    with pytest.raises(DataError, match=said):
        reader.read(5)
    os.truncate(root / "index.bin", 20)
    with pytest.raises(DataError, match=r"index\.bin: sample 5 \(key unknown\)"):
        reader.read(5)


def test_a_label_without_a_class_is_an_error(copy):
    root = copy("png")
    reader = ShardReader(root)
    with open(root / "index.bin", "r+b") as f:
        f.seek(6 * RECORD.itemsize - 4)
        f.write((2).to_bytes(4, "little"))
    with pytest.raises(DataError, match="label 2"):
        reader.read(5)


def test_reading_ahead_names_the_bytes_of_the_images_in_every_shard_they_lie_in(prepared, monkeypatch):
    reader, asked = ShardReader(prepared("png")), []
    real = os.posix_fadvise

    def fadvise(fd: int, offset: int, length: int, advice: int) -> None:
        asked.append((Path(os.readlink(f"/proc/self/fd/{fd}")).name, offset, offset + length))
        assert advice == os.POSIX_FADV_WILLNEED
        real(fd, offset, length, advice)

    monkeypatch.setattr(reader_module.os, "posix_fadvise", fadvise)
    reader.read_ahead(2, 7)  # samples 2 to 8 of shards of four
    rows = read_index(prepared("png"))
    end = rows["offset"] + rows["length"]
    expected = [(0, 2, 3), (1, 4, 7), (2, 8, 8)]
    assert asked == [(f"shard-{s:05d}.tar", rows["offset"][a], end[b]) for s, a, b in expected]


def test_announcing_what_is_not_there_is_left_to_the_reading(copy):
    root = copy("png")
    reader = ShardReader(root)
    _vanished(root)
    os.truncate(root / "index.bin", 3 * RECORD.itemsize)
    reader.read_ahead(2, 7)
