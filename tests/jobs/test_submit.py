"""The local executor end to end with a stand-in for training, and what sbatch is given and answers."""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

import cloudpickle
import psutil
import pytest

from jobs import ledger, submit
from jobs.cluster import LOCAL, Cluster, load_cluster
from jobs.status import cancel, logs, run_status
from pipeline.errors import UserError

cloudpickle.register_pickle_by_value(sys.modules[__name__])
STEPS = 60


class Counting(submit.TrainJob):
    """Counts to STEPS in a file of each rank; stops where the flag says so and goes on from there."""

    def train(self, should_stop) -> str:
        rank = os.environ["RANK"]
        assert os.environ["WORLD_SIZE"] == "2"
        path = Path(self.folder) / f"rank{rank}"
        count = len(path.read_text().split()) if path.exists() else 0
        print(f"rank {rank} from {count}, {os.environ['FLAVOUR']}", flush=True)
        while count < STEPS:
            if should_stop():
                return "stopped"
            count += 1
            with open(path, "a") as f:
                f.write(f"{os.getpid()} ")
            time.sleep(0.05)
        return "done"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(submit, "TrainJob", Counting)
    folder = tmp_path / "toy-0a1b2c3d"
    folder.mkdir()
    (folder / "config.json").write_text('{"total_kimg": 1}')
    return folder


CLUSTER = LOCAL.replace(env={"FLAVOUR": "plain vanilla"})


def start(run: Path):
    job = submit.submit(run, CLUSTER, nodes=1, gpus=2, name=run.name)
    deadline = time.monotonic() + 60
    while not all((run / f"rank{r}").exists() for r in range(2)):
        assert time.monotonic() < deadline, "\n".join(p.read_text() for p in logs(run))
        time.sleep(0.02)
    return job


def test_preempted_job_starts_again_where_it_stopped_and_finishes(run):
    job = start(run)
    assert run_status(run).state == "running"
    with pytest.raises(UserError, match=f"has job {job.job_id} already"):
        submit.submit(run, CLUSTER, nodes=1, gpus=2, name=run.name)
    for task in psutil.Process(int(job.job_id)).children():
        task.send_signal(signal.SIGUSR2)
    assert job.results() == ["done", "done"]
    job.wait()
    for rank in range(2):
        pids = (run / f"rank{rank}").read_text().split()
        assert len(pids) == STEPS, "nothing lost, nothing repeated"
        assert len(set(pids)) == 2, "two lives"
    assert [p.name for p in logs(run)] == [
        f"{job.job_id}_{rank}_log.{stream}" for rank in range(2) for stream in ("out", "err")
    ]
    assert "from 0, plain vanilla" in logs(run)[0].read_text()

    again = submit.submit(run, CLUSTER, nodes=1, gpus=2, name=run.name)
    assert again.results() == ["done", "done"]
    again.wait()
    entries = ledger.submissions(run)
    assert [e.number for e in entries] == [1, 2]
    assert [e.job_id for e in entries] == [job.job_id, again.job_id]
    assert [(e.cluster, e.nodes, e.gpus) for e in entries] == [("local", 1, 2)] * 2


def test_cancelled_job_ends_without_a_result_and_is_not_started_again(run):
    job = start(run)
    assert cancel(run) == job.job_id
    job._process.wait(timeout=30)
    assert ledger.alive(run) is None
    assert run_status(run).state == "stopped"
    assert not list(run.glob("jobs/001/*_result.pkl"))
    assert len((run / "rank0").read_text().split()) < STEPS
    with pytest.raises(UserError, match="has no live job"):
        cancel(run)


def test_slurm_absent_is_one_line_with_advice(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="sbatch is not on PATH; use --cluster local") as e:
        submit.submit(tmp_path, load_cluster("lab"), nodes=1, gpus=1, name="x")
    assert "\n" not in str(e.value)
    assert not list(tmp_path.iterdir())


def fake(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def test_refusal_of_sbatch_is_one_line(tmp_path, monkeypatch):
    fake(tmp_path / "sbatch", "echo 'sbatch: error: invalid partition specified: moon' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    cluster = Cluster(executor="slurm", name="site", timeout_min=5, partition="moon")
    with pytest.raises(UserError, match=r"cluster='site': sbatch refused the job: .*invalid partition") as e:
        submit.submit(tmp_path / "run", cluster, nodes=1, gpus=1, name="x")
    assert "\n" not in str(e.value)
    assert ledger.submissions(tmp_path / "run") == []


def test_submitted_file_is_the_one_that_the_dry_run_shows(tmp_path, monkeypatch):
    fake(tmp_path / "sbatch", "echo Submitted batch job 42")
    fake(tmp_path / "squeue", "echo 42 PENDING")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    cluster, run = Cluster(executor="slurm", name="site", timeout_min=5), tmp_path / "run"
    shown = submit.sbatch_text(run, cluster, nodes=2, gpus=4, name="x")
    submit.submit(run, cluster, nodes=2, gpus=4, name="x")
    assert (run / "jobs/001/42_submission.sh").read_text() == shown
    assert json.loads((run / "jobs/submitted.jsonl").read_text())["job_id"] == "42"
    assert run_status(run).state == "queued"
    with pytest.raises(UserError, match=r"has job 42 already \(pending on site\)"):
        submit.submit(run, cluster, nodes=2, gpus=4, name="x")


def test_submitting_from_inside_a_job_hides_that_job(tmp_path, monkeypatch):
    fake(tmp_path / "sbatch", f"env > {tmp_path}/seen; echo Submitted batch job 42")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in ("SLURM_JOB_ID", "SLURM_CONF", "RANK", "TORCHELASTIC_RUN_ID", "SUBMITIT_EXECUTOR"):
        monkeypatch.setenv(name, "1")
    submit.submit(tmp_path / "run", Cluster(executor="slurm", timeout_min=5), nodes=1, gpus=1, name="x")
    names = {line.split("=")[0] for line in (tmp_path / "seen").read_text().splitlines()}
    assert "SLURM_CONF" in names
    assert not names & {"SLURM_JOB_ID", "RANK", "TORCHELASTIC_RUN_ID", "SUBMITIT_EXECUTOR"}
    assert os.environ["RANK"] == "1"


def test_numbered_folders_are_claimed_once(tmp_path):
    assert [ledger.claim(tmp_path) for _ in range(3)] == [1, 2, 3]


def test_reused_pid_is_not_taken_for_a_live_job(tmp_path):
    entry = ledger.Submission(1, str(os.getpid()), "local", "local", socket.gethostname(), 0.0, 1, 1)
    (tmp_path / "jobs").mkdir()
    ledger.record(tmp_path, entry)
    assert ledger.alive(tmp_path) is None
