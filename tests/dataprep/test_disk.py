"""Disks that are full, over quota, read-only or gone: one line, exit code 1, nothing half-written, then it goes on."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dataprep.sources.folder import Folder
from dataprep.transform import Transform
from dataprep.writer import prepare
from pipeline.errors import UserError, WorkError

STORED = Transform(size_px=24)
NAMES = tuple(f"{i:02d}.png" for i in range(24))
PREP = """
import resource, sys
from pathlib import Path
from dataprep.sources.folder import Folder
from dataprep.transform import Transform
from dataprep.writer import prepare
from pipeline.errors import WorkError
if __name__ == "__main__":
    images, out, limit = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
    try:
        prepare(Folder(Path(images)), Path(out), Transform(size_px=24), workers=2, shard_size=4)
    except WorkError as e:
        sys.exit(str(e))
"""


@pytest.fixture
def wanted(images, tmp_path, contents) -> dict[str, bytes]:
    prepare(Folder(images(*NAMES)), tmp_path / "undisturbed", STORED, shard_size=4)
    return contents(tmp_path / "undisturbed")


def hidden(out: Path) -> list[str]:
    return [p.name for p in out.glob(".*")]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_line_and_the_run_goes_on_where_there_is_room(images, disk, contents, wanted, workers):
    source, errors, kept = Folder(images(*NAMES)), [], []
    for size_kb in range(8, 1024, 16 if workers == 1 else 120):
        out = disk(f"size={size_kb}k") / "set"
        try:
            prepare(source, out, STORED, shard_size=4, workers=workers)
            break
        except WorkError as e:
            errors.append(str(e))
            assert not hidden(out)
            kept.append(len(list(out.glob("shard-*.tar"))))
    assert errors
    for error in errors:
        assert "\n" not in error
        assert error.startswith(f"out={str(out)!r}: no space left on device")
        assert "free space and run" in error
    assert kept == sorted(kept), "a committed shard was lost"
    assert kept[-1] > 0
    assert contents(out) == wanted


def test_no_room_for_another_file_is_one_line_too(images, disk, contents, wanted):
    source = Folder(images(*NAMES))
    errors = []
    for inodes in range(2, 60):
        out = disk(f"size=1m,nr_inodes={inodes}") / "set"
        try:
            prepare(source, out, STORED, shard_size=4)
            break
        except WorkError as e:
            errors.append(str(e))
            assert not hidden(out)
    assert len(errors) > 5
    assert {("\n" in e, "no space left on device" in e) for e in errors} == {(False, True)}
    assert contents(out) == wanted


def test_a_limit_on_the_size_of_files_is_one_line_and_the_run_goes_on_without_it(images, tmp_path, contents, wanted):
    out, root = tmp_path / "set", images(*NAMES)
    largest = max(len(data) for name, data in wanted.items() if name.endswith(".tar"))
    command = [sys.executable, "-c", PREP, root, out]
    done = subprocess.run([*command, str(largest - 1)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "file too large while writing shard-0000" in done.stderr
    assert not hidden(out)
    assert subprocess.run([*command, "-1"], timeout=60).returncode == 0
    assert contents(out) == wanted


def test_a_disk_that_turns_read_only_is_one_line(images, tmp_path, disk, contents, wanted):
    source, out = Folder(images(*NAMES)), tmp_path / "disk"

    def turn(done: int, total: int) -> None:
        if done == 0:
            disk("size=1m,ro")  # over the folder in work

    with pytest.raises(
        WorkError, match=r"read-only file system while writing shard-00000\.tar; make the file system w"
    ):
        prepare(source, out, STORED, shard_size=4, progress=turn)
    with pytest.raises(UserError, match=r"cannot write there \(Read-only file system\)"):
        prepare(source, out, STORED, shard_size=4)
    disk("rw")
    prepare(source, out, STORED, shard_size=4)
    assert contents(out) == wanted
    disk("ro")
    assert prepare(source, out, STORED, shard_size=4).count == len(NAMES), "a finished set needs no writing"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_folder_deleted_under_the_run_is_one_line(images, tmp_path, contents, wanted, workers):
    source, out = Folder(images(*NAMES)), tmp_path / "set"

    def delete(done: int, total: int) -> None:
        shutil.rmtree(out, ignore_errors=True)

    with pytest.raises(
        WorkError, match=r"^out=.*no such file or directory while writing .*was the folder deleted"
    ) as e:
        prepare(source, out, STORED, shard_size=4, workers=workers, progress=delete)
    assert "\n" not in str(e.value)
    prepare(source, out, STORED, shard_size=4)
    assert contents(out) == wanted


@pytest.mark.parametrize("file", ["rejected.jsonl", "manifest.json", "index.bin"])
def test_a_disk_that_fills_up_while_the_set_is_published_names_the_file(images, tmp_path, contents, monkeypatch, file):
    root, out = images(*NAMES), tmp_path / "set"
    (root / "05.png").write_bytes(b"")
    real = os.replace

    def full(source: str, target: str | Path) -> None:
        if Path(target).name == file:
            raise OSError(28, "No space left on device")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(WorkError, match=f"no space left on device while writing {file}"):
            prepare(Folder(root), out, STORED, shard_size=4, on_error="skip")
    assert not hidden(out)
    prepare(Folder(root), out, STORED, shard_size=4, on_error="skip")
    prepare(Folder(root), tmp_path / "other", STORED, shard_size=4, on_error="skip")
    assert contents(out) == contents(tmp_path / "other")


def test_a_source_that_breaks_down_as_a_whole_is_one_line(images, tmp_path):
    class Broken(Folder):
        def read(self, entry):
            if entry.name == "09.png":
                raise OSError(5, "Input/output error")
            return super().read(entry)

    with pytest.raises(WorkError, match=r"^09\.png: cannot read it \(Input/output error\)"):
        prepare(Broken(images(*NAMES)), tmp_path / "set", STORED, shard_size=4, on_error="skip")
    assert [p.name for p in sorted((tmp_path / "set").glob("*.tar"))] == ["shard-00000.tar", "shard-00001.tar"]


def test_a_file_that_vanishes_during_the_run_is_rejected_and_counted(images, tmp_path):
    root = images(*NAMES)

    def vanish(done: int, total: int) -> None:
        time.sleep(0)
        (root / "20.png").unlink(missing_ok=True)

    manifest = prepare(Folder(root), tmp_path / "set", STORED, on_error="skip", progress=vanish)
    assert (manifest.count_in, manifest.count, sum(manifest.rejected.values())) == (24, 23, 1)
