"""The verbs that make and look at data sets, as users meet them: exit codes, what is printed where, Ctrl-C."""

import json
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from pipeline import cli_data
from pipeline.data.manifest import load_manifest
from pipeline.errors import WorkError
from tests.runs import GRATICULE


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two classes of three pictures and a damaged one."""
    for i in range(6):
        file = tmp_path / "images" / "ab"[i // 3] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(file)
    (tmp_path / "images" / "a" / "bad.jpg").write_bytes(b"<html>")
    (tmp_path / "images" / "README").write_text("about")
    return tmp_path / "images"


def test_several_sizes_are_several_sets_and_every_word_counts(graticule, folder, tmp_path):
    words = ["--size", "16,8", "--crop", "none", "--filter", "area", "--icc", "drop", "--encoding", "webp"]
    more = ["--quality", 80, "--shard-size", 2, "--workers", 1, "--on-error", "skip"]
    code, out, err = graticule("prep", "folder", folder, "--out", tmp_path / "x", *words, *more)
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "note: passed over: 1 other files, the first is 'README'"
    for size in (16, 8):
        m = load_manifest(tmp_path / "x" / str(size))
        assert (m.size_px, m.crop, m.filter, m.icc, m.encoding, m.quality) == (size, "none", "area", "drop", "webp", 80)
        assert (m.count, len(m.shards), m.rejected) == (6, 4, {"not an image": 1})
        assert f"x/{size}: 6 images of {size} px in 4 shards, data set {m.dataset_id}" in out
    assert out.count("in 7, rejected: 1 not an image") == 2


def test_one_size_is_the_folder_itself_and_a_finished_set_is_told_again(graticule, folder, tmp_path):
    words = ["prep", "folder", folder, "--out", tmp_path / "x", "--size", 8, "--workers", 1, "--on-error", "skip"]
    first, again = graticule(*words), graticule(*words)
    assert first == again
    assert first[0] == 0
    assert load_manifest(tmp_path / "x").count == 6


def test_the_first_bad_image_ends_prep_with_one_line(graticule, folder, tmp_path):
    code, _, err = graticule("prep", "folder", folder, "--out", tmp_path / "x", "--size", 8, "--workers", 1)
    assert code == 2
    assert err.startswith("graticule: a/bad.jpg: not an image (")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "x").exists()


def test_ctrl_c_says_that_the_same_command_continues_and_it_does(tmp_path):
    words = [GRATICULE, "prep", "photos", "--out", tmp_path / "x", "--size", "512", "--encoding", "jpg"]
    words += ["--shard-size", "3", "--workers", "1"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while not list(tmp_path.glob("x/*.tar")):
        assert process.poll() is None, "ended before it could be stopped"
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "graticule: prep: stopped; the same command continues from here\n"
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert load_manifest(tmp_path / "x").count == 73


def test_a_failing_disk_is_one_line_and_exit_code_1(folder, tmp_path):
    words = f"{GRATICULE} prep folder {folder} --out {tmp_path}/x --size 8 --workers 1 --on-error skip"
    done = subprocess.run(["bash", "-c", f"ulimit -f 8; {words}"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "again to continue" in done.stderr


def test_what_the_system_refuses_is_one_line():
    with pytest.raises(WorkError, match=r"^verify: /a/b: Input/output error$"), cli_data._at_work("verify"):
        raise OSError(5, "Input/output error", "/a/b")
    with pytest.raises(typer.Exit), cli_data._at_work("verify"):
        raise KeyboardInterrupt


def test_verify_prints_each_problem_and_fails(graticule, folder, tmp_path):
    graticule("prep", "folder", folder, "--out", tmp_path / "x", "--size", 8, "--shard-size", 3, "--on-error", "skip")
    code, out, _ = graticule("verify", tmp_path / "x")
    assert (code, out) == (0, f"{tmp_path / 'x'}: 6 images in 3 shards, all as the manifest says\n")
    for shard in (0, 2):
        (tmp_path / "x" / f"shard-0000{shard}.tar").write_bytes(b"")
    code, out, err = graticule("verify", tmp_path / "x", "--workers", 1)
    assert (code, err) == (1, "")
    assert [line.split(":")[0] for line in out.splitlines()] == ["shard-00000.tar", "shard-00002.tar"]


def test_inspect_shows_tables_or_json_and_writes_a_sheet_only_when_asked(graticule, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    graticule("prep", "folder", folder, "--out", "x", "--size", 8, "--on-error", "skip")
    before = sorted(tmp_path.rglob("*"))
    code, out, _ = graticule("inspect", "x")
    assert code == 0
    assert "6 of 7 in, 1 rejected" in out
    assert "a/bad.jpg" in out
    assert sorted(tmp_path.rglob("*")) == before
    code, out, _ = graticule("inspect", "x", "--json", "--grid", "grid.png", "--images", 4)
    assert code == 0
    assert json.loads(out)["class_counts"] == [3, 3]
    with Image.open("grid.png") as sheet:
        assert sheet.size == (16, 16)


def test_speed_and_time_left_count_this_run_alone(monkeypatch, capsys):
    clock = iter((0.0, 100.0, 110.0, 150.0))
    monkeypatch.setattr(cli_data.time, "monotonic", lambda: next(clock))
    with cli_data.Bar("prep x", "images", notes=lambda: ["a remark"]) as progress:
        progress(500, 1000)  # by an earlier run
        progress(600, 1000)
        progress(700, 1000)
    out, err = capsys.readouterr()
    assert out == "note: a remark\n"
    assert err.splitlines() == [
        "prep x: 500 of 1,000 images",
        "prep x: 700 of 1,000 images, 4.0/s, 0:01:15 left",
    ]


def test_notes_are_printed_where_there_was_no_work_to_do_but_not_where_it_failed(capsys):
    with cli_data.Bar("x", "images", notes=lambda: ["a remark"]):
        pass
    assert capsys.readouterr().out == "note: a remark\n"
    with pytest.raises(WorkError), cli_data.Bar("x", "images", notes=lambda: ["a remark"]):
        raise WorkError("failed")
    assert capsys.readouterr().out == ""
