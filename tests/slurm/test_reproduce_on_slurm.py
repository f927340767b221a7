"""A table of three rows on a real Slurm, by the commands that a user types: one killed in the middle, one failing."""

import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from jobs import ledger
from pipeline import tables
from pipeline.config import override
from pipeline.tables import book
from pipeline.tables.table import Asked, Form, Measure, Row
from tests.slurm.drive import LabRun
from tests.tables.toy import BROKEN, TOY

pytestmark = pytest.mark.slurm
LONG_KIMG = 0.64  # forty iterations: time enough to kill


SIZED = {name: f"Metrics/{name}/16px" for name in ("swd64", "spectra64")}


def rows(form: Form) -> list[Row]:
    more = [f"total_kimg={LONG_KIMG}", "family.G.size_px=16", "family.D.resolution_px=16"]
    return [dataclasses.replace(row, run=override(row.run, more)) for row in TOY.rows("full")]


MEASURED = {
    "rows": rows,
    "seeds": (0,),
    "asked": {"small": Asked(metrics=tuple(SIZED), checkpoints="newest")},
    "measures": tuple(Measure(metric, name, "lower") for name, metric in SIZED.items()),
    "comparisons": (),
}


@pytest.fixture
def lab(lab_file) -> Iterator[Path]:
    """Its cluster file; no job outlives the test."""
    yield lab_file
    subprocess.run(["scancel", f"--user={os.getuid()}"], check=True)
    deadline = time.monotonic() + 30
    while ledger.slurm_states() and time.monotonic() < deadline:
        time.sleep(0.2)


def test_reproduce_trains_and_measures_what_was_killed_and_report_says_what_failed(
    lab, graticule, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(tables.TABLES, TOY.name, dataclasses.replace(TOY, **MEASURED))
    words = ["reproduce", TOY.name, "--cluster", lab, "--parallel", 2]
    code, out, err = graticule(*words)
    assert code == 0, err
    assert "toy.widths, small: 3 runs: 3 left" in out
    assert out.count("submitted job") == 3
    planned = book.read(Path("runs"), TOY, "small")
    narrow, broken, wide = runs = [LabRun.of(tmp_path / "runs" / entry.folder) for entry in planned.runs]
    assert len({run.job_id for run in runs}) == 3, "a task of the array each"

    code, out, err = graticule(*words)
    assert code == 0, err
    assert "submitted job" not in out, "all are at work"

    narrow.wait(lambda: narrow.lines() >= 2 and narrow.events("checkpoint"), "the first trains")
    assert wide.events() == [] or broken.events("failed"), "two at a time"
    process = next(p for p in psutil.process_iter() if _trains(p, narrow.job_id))
    process.send_signal(signal.SIGKILL)
    for run in runs:
        run.wait(lambda run=run: ledger.alive(run.folder) is None, "its job has ended", pause_sec=0.5)
    assert narrow.story() == ["start"]
    assert broken.story() == ["start", "failed"]
    assert wide.story() == ["start", "done"]
    text = graticule("report", TOY.name)[1]
    assert [name for name in ("narrow", BROKEN, "wide") if not _cells(text, name)] == ["narrow", BROKEN]
    before = _cells(text, "wide")

    code, out, err = graticule(*words, "--jobs", 1, "--wait")
    assert code == 1
    assert "3 runs: 1 done, 1 failed, 1 left" in out
    assert f"1 of 3 runs failed: {broken.folder.name} (WorkError: losses or gradients were not finite" in err
    assert narrow.story() == ["start", "resume", "done"]
    assert broken.story().count("failed") == 2
    assert wide.story() == ["start", "done"], "left as it is"

    code, out, err = graticule("report", TOY.name)
    assert code == 0, err
    assert "2 of 3 cells (row x seed) are done" in out
    assert f"`{BROKEN}`, seed 0: failed: WorkError: losses or gradients were not finite" in out
    assert [len(_cells(out, name)) for name in ("narrow", BROKEN, "wide")] == [2, 0, 2]
    assert _cells(out, "wide") == before
    statistics = list((tmp_path / "data" / "photos-32" / "reference").iterdir())
    assert len(statistics) == 2, "made once of each metric, and shared"
    assert len(list((tmp_path / "runs" / ledger.ARRAYS).glob("*/code"))) == 2, "one copy of the code a submission"


def _cells(report: str, row: str) -> list[str]:
    """What the report's line of a row has measured."""
    lines = [[cell.strip() for cell in line.split("|")] for line in report.splitlines() if line.startswith("| ")]
    (line,) = [line for line in lines if line[1] == row]
    return [found for name in SIZED if (found := line[lines[0].index(name)])]


def _trains(process: psutil.Process, job_id: str) -> bool:
    """Is it the one rank of this job? An array task's SLURM_JOB_ID is a number of its own."""
    try:
        env, command = process.environ(), process.cmdline()
    except psutil.Error:
        return False
    array, _, task = job_id.partition("_")
    ours = (env.get("SLURM_ARRAY_JOB_ID"), env.get("SLURM_ARRAY_TASK_ID")) == (array, task)
    return ours and "SLURM_STEP_ID" in env and "submitit.core._submit" in command and Path(command[0]).name != "bash"
