"""The record of a run while the disk refuses it. What is compared: what was appended, and what is read back."""

import os
import threading

import pytest

from pipeline.tracking import journal, jsonl
from pipeline.tracking.journal import Journal
from tests.tracking.small_disk import small_disk

FULL = "metrics.jsonl: No space left on device; keeping lines in memory, training goes on\n"


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", size_kb=256) as disk:
        yield disk


def numbers(path):
    return [r["n"] for r in jsonl.read(path)]


def test_a_journal_on_a_healthy_disk_writes_at_once_and_says_nothing(tmp_path, capsys):
    j = Journal(tmp_path / "metrics.jsonl")
    for n in range(3):
        j.append({"n": n})
        assert numbers(j.path) == list(range(n + 1))
    assert j.close() == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("room_bytes", range(0, 16_384, 4096))
def test_a_full_disk_costs_one_line_on_stderr_and_no_record(disk, capsys, room_bytes):
    j = Journal(disk.path / "metrics.jsonl")
    j.append({"n": 0, "more": "x" * 3000})
    disk.fill(but_bytes=room_bytes)  # some lines are cut at a block's end, and closed off later
    for n in range(1, 20):
        j.append({"n": n, "more": "x" * 3000})
    assert capsys.readouterr().err == FULL
    there = numbers(j.path)
    assert 0 < len(there) < 20
    assert there == list(range(len(there)))
    disk.make_room()
    j.append({"n": 20})
    assert numbers(j.path) == list(range(21))
    assert j.close() == 0
    assert capsys.readouterr().err == "metrics.jsonl: lines are written again\n"


def test_close_writes_what_is_owed_if_there_is_room_by_then(disk):
    j = Journal(disk.path / "metrics.jsonl")
    disk.fill()
    for n in range(5):
        j.append({"n": n})
    disk.make_room()
    assert j.close() == 0
    assert numbers(j.path) == [0, 1, 2, 3, 4]


def test_close_on_a_disk_still_full_says_how_much_is_lost(disk, capsys):
    j = Journal(disk.path / "metrics.jsonl")
    disk.fill()
    for n in range(5):
        j.append({"n": n})
    assert j.close() == 5
    assert capsys.readouterr().err == FULL + "metrics.jsonl: 5 records are lost: there was no room for them\n"
    assert j.close() == 5


def test_a_disk_that_turns_read_only_and_back_loses_nothing(disk, capsys):
    j = Journal(disk.path / "events.jsonl")
    j.append({"n": 0})
    disk.read_only(True)
    j.append({"n": 1})
    j.append({"n": 2})
    assert "events.jsonl: Read-only file system; keeping lines" in capsys.readouterr().err
    assert numbers(j.path) == [0]
    disk.read_only(False)
    j.append({"n": 3})
    assert numbers(j.path) == [0, 1, 2, 3]


def test_a_folder_that_comes_back_later_gets_every_record(tmp_path):
    j = Journal(tmp_path / "later" / "metrics.jsonl")
    j.append({"n": 0})
    (tmp_path / "later").mkdir()
    j.append({"n": 1})
    assert numbers(j.path) == [0, 1]


def test_memory_is_bounded_and_the_oldest_go_first(disk, capsys, monkeypatch):
    monkeypatch.setattr(journal, "MAX_OWED", 10)
    j = Journal(disk.path / "metrics.jsonl")
    disk.fill()
    for n in range(25):
        j.append({"n": n})
    disk.make_room()
    j.append({"n": 25})
    assert numbers(j.path) == list(range(15, 26))
    assert j.close() == 15
    assert "lines are written again; 15 records are lost" in capsys.readouterr().err


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_write_cut_anywhere_is_neither_torn_nor_doubled(tmp_path, monkeypatch, cut):
    """A fake: os.write that stops after so many bytes, as no disk does on command."""
    j = Journal(tmp_path / "metrics.jsonl")
    j.append({"n": 0})
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:cut]))
    j.append({"n": 1})  # eight bytes and a newline
    monkeypatch.setattr(os, "write", real)
    j.append({"n": 2})
    assert numbers(j.path) == [0, 1, 2]


def test_a_line_that_lacks_only_its_newline_is_whole_after_close(tmp_path, monkeypatch):
    j = Journal(tmp_path / "metrics.jsonl")
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[: len(data) - 1]))
    j.append({"n": 1})
    monkeypatch.setattr(os, "write", real)
    assert numbers(j.path) == []
    assert j.close() == 0
    assert numbers(j.path) == [1]


def test_a_line_whose_fsync_failed_is_not_written_twice(tmp_path, monkeypatch):
    """A fake: fsync fails as it does on NFS, where the server may have the line all the same."""
    j = Journal(tmp_path / "metrics.jsonl")
    real = os.fsync

    def fails(fd):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    j.append({"n": 0})
    monkeypatch.setattr(os, "fsync", real)
    j.append({"n": 1})
    assert numbers(j.path) == [0, 1]


def test_threads_lose_and_tear_nothing_while_the_disk_is_full(disk):
    j = Journal(disk.path / "events.jsonl")
    disk.fill(but_bytes=20_000)

    def work(first):
        for n in range(first, first + 100):
            j.append({"n": n, "more": "x" * 100})

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 100, 200)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(numbers(j.path)) < 300
    disk.make_room()
    assert j.close() == 0
    found = numbers(j.path)
    assert sorted(found) == list(range(300))
    for first in (0, 100, 200):  # each thread's own order is kept
        mine = [n for n in found if first <= n < first + 100]
        assert mine == sorted(mine)


def test_a_record_that_is_no_json_is_the_callers_mistake_and_harms_no_other(tmp_path):
    j = Journal(tmp_path / "metrics.jsonl")
    with pytest.raises(TypeError):
        j.append({"n": object()})
    j.append({"n": 1})
    assert numbers(j.path) == [1]
