"""A job runs the code that was submitted, whatever becomes of the sources before it starts and between its lives."""

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from jobs import ledger
from jobs.cluster import Cluster
from jobs.executors import executor_for
from jobs.preempt import NOT_QUEUED
from jobs.status import logs
from pipeline.training.watchdog import EXIT
from tests.jobs.sources import Sources

SRUN = 'while [ "$1" != bash ]; do shift; done; exec "$@"'


@pytest.fixture
def sources(tmp_path) -> Sources:
    return Sources(tmp_path / "src")


def lives(run: Path, number: int) -> list[str]:
    """What its lives wrote, once there are that many."""
    deadline = time.monotonic() + 60
    while True:
        lines = (run / "lives0").read_text().splitlines() if (run / "lives0").exists() else []
        if len(lines) == number:
            return lines
        assert time.monotonic() < deadline, "\n".join(p.read_text() for p in logs(run))
        time.sleep(0.02)


def test_edits_before_the_start_and_between_two_lives_reach_no_job(sources, tmp_path):
    run, hold, cluster = tmp_path / "runs" / "a", tmp_path / "hold", tmp_path / "here.toml"
    hold.touch()
    setup = [f"while [ -e {hold} ]; do sleep 0.05; done", "export PYTHONPATH=/from/setup"]
    cluster.write_text(f'executor = "local"\nsetup = {setup!r}\n[env]\nPYTHONPATH = "/from/env"\n')
    (job_id,) = sources.submit(cluster, run)
    sources.edit()
    hold.unlink()
    seen = [f"old {run}/jobs/001/code:/from/env"]
    assert lives(run, 1) == seen
    os.kill(int(job_id), signal.SIGUSR2)
    assert lives(run, 2) == seen * 2
    (run / "enough").touch()
    deadline = time.monotonic() + 30
    while psutil.pid_exists(int(job_id)) and ledger.alive(run):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert list(run.glob("jobs/001/*_result.pkl"))


@pytest.mark.parametrize(
    ("setup", "env", "before", "behind"),
    [
        ((), {}, None, ""),
        ((), {}, "/old", ":/old"),
        (("export PYTHONPATH=/setup:$PYTHONPATH",), {}, "/old", ":/setup:/old"),
        (("export PYTHONPATH=/setup",), {"PYTHONPATH": "/e n v"}, "/old", ":/e n v"),
        (("unset PYTHONPATH", "set -eu"), {}, "/old", ""),
    ],
)
@pytest.mark.parametrize("executor", ["local", "slurm"])
def test_whatever_setup_and_env_do_to_the_path_stays_behind(executor, setup, env, before, behind, tmp_path):
    """The real lines in a real shell; `python` is a stand-in that shows what it would search."""
    show = tmp_path / "show"
    show.write_text('#!/bin/sh\necho "$PYTHONPATH|$PYTHONSAFEPATH"\n')
    show.chmod(0o755)
    site = Cluster(executor=executor, timeout_min=5, setup=setup, env=env, python=str(show))
    made = executor_for(tmp_path / "x", site, 1, 1, "x", code=tmp_path / "a b" / "code")
    script = made._submitit_command_str
    if executor == "slurm":
        (tmp_path / "srun").write_text(f"#!/bin/sh\n{SRUN}\n")
        (tmp_path / "srun").chmod(0o755)
        script = made._make_submission_file_text(script, uid="")
    around = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **({"PYTHONPATH": before} if before else {})}
    done = subprocess.run(["bash", "-c", script], env=around, capture_output=True, text=True, timeout=60)
    assert done.stdout == f"{tmp_path}/a b/code{behind}|1\n", done.stderr


@pytest.mark.parametrize(
    ("end", "gpus", "code", "slept"),
    [
        ("exit 0", 2, 0, ""),
        ("exit 2", 2, 2, ""),
        (f"exit {EXIT}", 2, EXIT, ""),
        (f"exit {NOT_QUEUED}", 2, NOT_QUEUED, ""),
        ("exit 143", 2, 143, ""),
        ("exit 1", 2, 1, "10"),
        ("kill -KILL $$", 2, 137, "30"),
        ("kill -KILL $$", 1, 137, ""),  # nobody else is there
    ],
)
def test_a_rank_that_failed_by_itself_stays_until_others_could_name_it(end, gpus, code, slept, tmp_path):
    """srun would end them at once. The real lines in a real shell; `sleep` only says for how long."""
    for name, text in {"rank": end, "sleep": "echo $1", "srun": SRUN}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    site = Cluster(executor="slurm", timeout_min=5, python=str(tmp_path / "rank"))
    made = executor_for(tmp_path / "x", site, 1, gpus, "x", code=tmp_path / "code")
    script = made._make_submission_file_text(made._submitit_command_str, uid="")
    around = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env=around, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (code, slept), done.stderr
