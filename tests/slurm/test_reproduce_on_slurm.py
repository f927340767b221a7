"""A table of three rows on a real Slurm, by the commands that a user types: one killed in the middle, one failing."""

import dataclasses
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from jobs import ledger
from pipeline import tables
from pipeline.tables import book
from pipeline.tables.table import Form, Row
from tests.slurm.drive import LabRun
from tests.tables.toy import BROKEN, TOY

pytestmark = pytest.mark.slurm
LONG_KIMG = 0.64  # forty iterations: time enough to kill


def rows(form: Form) -> list[Row]:
    return [dataclasses.replace(row, run=row.run.replace(total_kimg=LONG_KIMG)) for row in TOY.rows("full")]


@pytest.fixture
def lab(lab_file) -> Iterator[Path]:
    """Its cluster file; no job outlives the test."""
    yield lab_file
    subprocess.run(["scancel", f"--user={os.getuid()}"], check=True)
    deadline = time.monotonic() + 30
    while ledger.slurm_states() and time.monotonic() < deadline:
        time.sleep(0.2)


def test_reproduce_finishes_what_was_killed_and_report_says_what_failed(lab, graticule, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(tables.TABLES, TOY.name, dataclasses.replace(TOY, rows=rows, seeds=(0,)))
    words = ["reproduce", TOY.name, "--cluster", lab, "--jobs", 2, "--parallel", 2]
    code, out, err = graticule(*words)
    assert code == 0, err
    assert "toy.widths, small: 3 runs: 3 left" in out
    assert out.count("submitted job") == 2
    planned = book.read(Path("runs"), TOY, "small")
    narrow, broken, wide = (LabRun.of(tmp_path / "runs" / entry.folder) for entry in planned.runs)
    assert narrow.job_id == wide.job_id != broken.job_id, "two of them share a job"

    code, out, err = graticule(*words)
    assert code == 0, err
    assert "submitted job" not in out, "all are at work"

    narrow.wait(lambda: narrow.lines() >= 2 and narrow.events("checkpoint"), "the first of the share trains")
    process = next(p for p in psutil.process_iter() if _trains(p, narrow.job_id))
    process.send_signal(signal.SIGKILL)
    for run in (narrow, broken):
        run.wait(lambda run=run: ledger.alive(run.folder) is None, "its job has ended")
    assert narrow.story() == ["start"]
    assert broken.story() == ["start", "failed"]
    assert wide.story() == []

    code, out, err = graticule(*words, "--wait")
    assert code == 1
    assert "3 runs: 1 failed, 2 left" in out
    assert f"1 of 3 runs failed: {broken.folder.name} (WorkError: losses or gradients were not finite" in err
    assert narrow.story() == ["start", "resume", "done"]
    assert wide.story() == ["start", "done"]
    assert broken.story() == ["start", "failed", "start", "failed"] or broken.story().count("failed") == 2

    code, out, err = graticule("report", TOY.name)
    assert code == 0, err
    assert "2 of 3 cells (row x seed) are done" in out
    assert f"`{BROKEN}`, seed 0: failed: WorkError: losses or gradients were not finite" in out
    assert len([line for line in out.splitlines() if line.endswith("| 1 done |")]) == 2


def _trains(process: psutil.Process, job_id: str) -> bool:
    """Is it the one rank of this job? An array task's SLURM_JOB_ID is a number of its own."""
    try:
        env, command = process.environ(), process.cmdline()
    except psutil.Error:
        return False
    array, _, task = job_id.partition("_")
    ours = (env.get("SLURM_ARRAY_JOB_ID"), env.get("SLURM_ARRAY_TASK_ID")) == (array, task)
    return ours and "SLURM_STEP_ID" in env and "submitit.core._submit" in command and Path(command[0]).name != "bash"
