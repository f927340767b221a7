"""Rows of the status table from run folders as training leaves them."""

import json
import os
import time
from pathlib import Path

import pytest

from jobs import ledger
from jobs.status import FRESH_SEC, TAIL_BYTES, cancel, logs, run_status, status
from pipeline.errors import UserError


def make(runs: Path, name: str, *events: str, nimg: int = 0, submitted: str | None = None) -> Path:
    run = runs / name
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"total_kimg": 25000}))
    attempt = 0
    for event in events:
        attempt += event in ("start", "resume")
        append(run / "events.jsonl", {"event": event, "nimg": nimg, "attempt": attempt})
    if submitted:
        (run / "jobs" / "001").mkdir(parents=True)
        ledger.record(run, ledger.Submission(1, submitted, "slurm", "site", "login1", 0.0, 1, 8))
    return run


def append(path: Path, record: dict) -> None:
    with open(path, "a") as f:
        f.write(json.dumps(record) + "\n")


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """A squeue that answers what the test says."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    def says(text: str) -> None:
        path = tmp_path / "bin" / "squeue"
        path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
        path.chmod(0o755)

    says("")
    return says


def test_progress_speed_and_rest_come_from_the_newest_lines(tmp_path, queue):
    run = make(tmp_path, "a-1", "start", "preempt", "resume", nimg=4000, submitted="7")
    for kimg, sec in ((4, 60.0), (8, 50.0)):
        metrics = {"Progress/kimg": kimg, "Timing/sec_per_kimg": sec}
        append(run / "metrics.jsonl", {"nimg": kimg * 1000, "time": 0, "attempt": 2, "metrics": metrics})
    append(run / "metrics.jsonl", {"nimg": 8000, "time": 0, "attempt": 2, "metrics": {"fid": 12.5}})
    with open(run / "metrics.jsonl", "a") as f:
        f.write('{"nimg": 99')
    for nimg in (4000, 8000):
        (run / "checkpoints" / f"{nimg:012d}").mkdir(parents=True)
    (run / "checkpoints" / ".000000012000.tmp").mkdir()
    queue("7 RUNNING")
    row = run_status(run)
    assert (row.state, row.kimg, row.total_kimg, row.checkpoint_kimg) == ("running", 8.0, 25000.0, 8.0)
    assert (row.sec_per_kimg, row.img_per_sec, row.eta_sec) == (50.0, 20.0, 24992 * 50.0)
    assert (row.attempts, row.job_ids) == (2, ("7",))


@pytest.mark.parametrize(
    ("events", "squeue", "state"),
    [
        ((), "7 PENDING", "queued"),
        (("start", "checkpoint", "preempt"), "7 PENDING", "queued"),
        (("start",), "7 COMPLETING", "running"),
        (("start", "done"), "", "done"),
        (("start", "preempt"), "", "stopped"),
        (("start", "checkpoint"), "8 RUNNING", "failed"),
        ((), "", "stopped"),
    ],
)
def test_state_of_a_submitted_run(events, squeue, state, tmp_path, queue):
    queue(squeue)
    assert run_status(make(tmp_path, "a-1", *events, submitted="7")).state == state


def test_stops_are_counted_by_their_cause_over_the_whole_life_of_a_run(tmp_path, queue):
    run = make(tmp_path, "a-1", "start")
    for cause in ("preemption", "time limit", "cancelled", "time limit", "preemption", "preemption", ""):
        append(run / "events.jsonl", {"event": "preempt", "nimg": 8, "attempt": 1, "cause": cause})
    append(run / "events.jsonl", {"event": "preempt", "nimg": 8, "attempt": 1})  # of a version without causes
    with open(run / "events.jsonl", "a") as f:
        f.writelines(json.dumps({"event": "checkpoint", "nimg": n}) + "\n" for n in range(TAIL_BYTES // 30))
    row = run_status(run)
    assert (row.preempted, row.time_limits) == (3, 2)


def test_logs_are_those_of_the_newest_job_that_has_started(tmp_path, queue):
    run = make(tmp_path, "a-1", submitted="7")
    (run / "jobs" / "002").mkdir()
    ledger.record(run, ledger.Submission(2, "8", "slurm", "site", "login1", 0.0, 1, 8, ("7",)))
    (run / "jobs" / "001" / "7_0_log.out").touch()
    assert [p.name for p in logs(run)] == ["7_0_log.out"]
    (run / "jobs" / "002" / "8_0_log.out").touch()
    assert [p.name for p in logs(run)] == ["8_0_log.out"]


def test_a_cancel_that_slurm_refuses_leaves_no_mark(tmp_path, queue):
    run = make(tmp_path, "a-1", "start", submitted="7")
    queue("7 RUNNING")
    scancel = tmp_path / "bin" / "scancel"
    scancel.write_text("#!/bin/sh\necho Access denied >&2; exit 1\n")
    scancel.chmod(0o755)
    with pytest.raises(UserError, match="scancel 7 failed: Access denied"):
        cancel(run)
    queue("")
    assert run_status(run).state == "failed"


def test_job_that_died_before_its_first_event_failed(tmp_path, queue):
    run = make(tmp_path, "a-1", submitted="7")
    for name in ("7_10_log.out", "7_2_log.err", "7_2_log.out", "6_0_log.out", "7_0_result.pkl"):
        (run / "jobs" / "001" / name).touch()
    assert run_status(run).state == "failed"
    assert [p.name for p in logs(run)] == ["7_2_log.out", "7_2_log.err", "7_10_log.out"]


def test_run_without_a_job_counts_as_running_while_it_writes(tmp_path):
    run = make(tmp_path, "a-1", "start")
    assert run_status(run).state == "running"
    old = time.time() - 2 * FRESH_SEC
    os.utime(run / "events.jsonl", (old, old))
    assert run_status(run).state == "failed"
    assert logs(run) == []


def test_table_lists_runs_by_name_and_nothing_else(tmp_path):
    make(tmp_path, "b-1", "start", "done")
    make(tmp_path, "a-1")
    (tmp_path / "scratch").mkdir()
    assert [(row.run, row.state) for row in status(tmp_path)] == [("a-1", "stopped"), ("b-1", "done")]
    assert status(tmp_path / "missing") == []


def test_long_metrics_are_read_from_their_end(tmp_path):
    run = make(tmp_path, "a-1")
    line = {"attempt": 1, "metrics": {"Timing/sec_per_kimg": 1.0, "pad": "x" * 500}}
    n = 2 * TAIL_BYTES // 500
    (run / "metrics.jsonl").write_text("".join(json.dumps({"nimg": i, **line}) + "\n" for i in range(n)))
    assert run_status(run).kimg == (n - 1) / 1000
