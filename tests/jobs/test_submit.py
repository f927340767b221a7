"""The local executor end to end with a stand-in for training, and what sbatch is given and answers.

Successors and arrays are seen here as what Slurm is asked for; tests/slurm has the real ones.
"""

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
from pipeline import provenance
from pipeline.errors import UserError, WorkError
from tests.runs import CIPS, assert_bitwise_equal, final_state

cloudpickle.register_pickle_by_value(sys.modules[__name__])
STEPS = 60


class Counting(submit.TrainJob):
    """Counts to STEPS in a file of each rank; stops where the flag says so and goes on from there."""

    def train(self, should_stop) -> str:
        rank = os.environ["RANK"]
        assert os.environ["WORLD_SIZE"] == "2"
        path = Path(self.folder) / f"rank{rank}"
        count = len(path.read_text().split()) if path.exists() else 0
        print(f"rank {rank} from {count}, {os.environ['FLAVOUR']}, {os.environ['CUDA_VISIBLE_DEVICES']}", flush=True)
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
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
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
    assert "from 0, plain vanilla, 2,3" in logs(run)[0].read_text()

    again = submit.submit(run, CLUSTER, nodes=1, gpus=2, name=run.name)
    assert again.results() == ["done", "done"]
    again.wait()
    entries = ledger.submissions(run)
    assert [e.number for e in entries] == [1, 2]
    assert [e.job_id for e in entries] == [job.job_id, again.job_id]
    assert [(e.cluster, e.nodes, e.gpus) for e in entries] == [("local", 1, 2)] * 2


def test_cancelled_job_ends_without_a_result_and_is_not_started_again(run):
    job = start(run)
    assert cancel(run) == [job.job_id]
    job._process.wait(timeout=30)
    assert ledger.alive(run) is None
    assert run_status(run).state == "stopped"
    assert not list(run.glob("jobs/001/*_result.pkl"))
    assert len((run / "rank0").read_text().split()) < STEPS
    with pytest.raises(UserError, match="has no live job"):
        cancel(run)


def test_training_that_is_preempted_here_ends_in_the_weights_of_an_undisturbed_one(runner):
    mine, undisturbed = runner(CIPS), runner(CIPS)
    folder = mine.plan("total_kimg=0.24", "exec.checkpoint_kimg=100")
    job = submit.submit(folder, LOCAL.replace(cpus_per_task=1), nodes=1, gpus=1, name="x")  # threads change bits
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists():
        assert time.monotonic() < deadline, "\n".join(p.read_text() for p in logs(folder))
        time.sleep(0.02)
    psutil.Process(int(job.job_id)).children()[0].send_signal(signal.SIGUSR2)
    assert job.result() == "done"
    job.wait()
    told = [json.loads(line)["event"] for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [event for event in told if event != "checkpoint"] == ["start", "preempt", "resume", "done"]
    assert_bitwise_equal(final_state(folder), final_state(undisturbed.train_here("total_kimg=0.24")))


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


def test_code_that_cannot_be_copied_is_one_line_and_nothing_is_submitted(tmp_path, site, monkeypatch):
    def full(place: Path) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(provenance, "snapshot_code", full)
    (run,) = planned(tmp_path, "a")
    with pytest.raises(WorkError, match=r"jobs/001: the code cannot be copied .*\(No space left on device\); nothing"):
        submit.submit(run, SITE, nodes=1, gpus=1, name="x")
    assert not (site / "1.sh").exists()


def test_numbered_folders_are_claimed_once(tmp_path):
    assert [ledger.claim(tmp_path) for _ in range(3)] == [1, 2, 3]


def test_reused_pid_is_not_taken_for_a_live_job(tmp_path):
    entry = ledger.Submission(1, str(os.getpid()), "local", "local", socket.gethostname(), 0.0, 1, 1)
    (tmp_path / "jobs").mkdir()
    ledger.record(tmp_path, entry)
    assert ledger.alive(tmp_path) is None


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A Slurm of shell scripts, to see what it is asked for; jobs 1, 2, ... wait until the test says otherwise."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    count = f"n=$(($(cat {bin_}/n 2>/dev/null || echo 0) + 1)); echo $n > {bin_}/n"
    fake(bin_ / "sbatch", f"{count}; cp $1 {bin_}/$n.sh; echo $n PENDING >> {bin_}/queue; echo Submitted batch job $n")
    fake(bin_ / "squeue", f"cat {bin_}/queue")
    fake(bin_ / "scancel", f"echo $* >> {bin_}/cancelled; sed -i /^$1/d {bin_}/queue")
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    return bin_


SITE = Cluster(executor="slurm", name="site", timeout_min=60, additional_parameters={"dependency": "singleton"})


def planned(runs: Path, *names: str) -> list[Path]:
    for name in names:
        (runs / name).mkdir(parents=True)
        (runs / name / "config.json").write_text('{"total_kimg": 1}')
    return [runs / name for name in names]


def asked_for(script: Path) -> list[str]:
    lines = script.read_text().splitlines()
    return [line.removeprefix("#SBATCH --") for line in lines if "dependency" in line or "kill-on-invalid" in line]


def test_successors_depend_on_the_failure_of_all_before_them_and_are_one_with_the_first(tmp_path, site):
    (run,) = planned(tmp_path, "a")
    cluster = SITE.replace(successors=2)
    first = submit.submit(run, cluster, nodes=1, gpus=1, name="x")
    assert asked_for(site / "1.sh") == ["dependency=singleton"]
    assert asked_for(site / "2.sh") == ["dependency=singleton,afternotok:1", "kill-on-invalid-dep=yes"]
    assert asked_for(site / "3.sh") == ["dependency=singleton,afternotok:1:2", "kill-on-invalid-dep=yes"]
    entries = ledger.submissions(run)
    assert [(e.number, e.job_id, list(e.after)) for e in entries] == [
        (1, "1", []),
        (2, "2", ["1"]),
        (3, "3", ["1", "2"]),
    ]
    works = [submitit_job(run, e).submission().function for e in entries]
    assert [(w.place, w.successors) for w in works] == [(0, 2), (1, 2), (2, 2)]
    for number in (1, 2, 3):
        assert f"PYTHONPATH={run}/jobs/001/code" in (site / f"{number}.sh").read_text(), "one snapshot"

    (site / "queue").write_text("1 RUNNING\n2 PENDING\n3 PENDING\n")
    assert run_status(run).state == "running"
    with pytest.raises(UserError, match=r"has job 1 already \(running on site\)"):
        submit.submit(run, cluster, nodes=1, gpus=1, name="x")
    (site / "queue").write_text("2 PENDING\n3 PENDING\n")
    with pytest.raises(UserError, match=r"has job 2 already \(pending on site\)"):
        submit.submit(run, cluster, nodes=1, gpus=1, name="x")
    (run / "events.jsonl").write_text('{"event": "done", "nimg": 1000}\n')
    assert run_status(run).state == "done", "its successors leave the queue by themselves"
    (run / "events.jsonl").unlink()
    (site / "queue").write_text("1 RUNNING\n2 PENDING\n3 PENDING\n")
    assert cancel(run) == ["1", "2", "3"]
    assert (site / "cancelled").read_text().split() == ["3", "2", "1"], "none may see the end of its predecessor"
    assert run_status(run).state == "stopped"
    assert first.job_id == "1"


def submitit_job(run: Path, entry: ledger.Submission):
    from submitit.slurm.slurm import SlurmJob

    return SlurmJob(entry.folder(run), entry.job_id)


def test_a_successor_of_a_done_run_has_nothing_to_do(tmp_path, monkeypatch, capsys):
    (run,) = planned(tmp_path, "a")
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the handlers are not what this is about
    ran = []
    monkeypatch.setattr(submit.TrainJob, "train", lambda self, flag: ran.append(1) or "done")
    (run / "events.jsonl").write_text('{"event": "done", "nimg": 8}\n{"event": "resume", "nimg": 4}\n')
    assert submit.TrainJob(run, 1, 1, 1, 2)() == "done"
    assert len(ran) == 1
    (run / "events.jsonl").write_text('{"event": "start"}\n{"event": "done"}\n{"event": "sync"}\n')
    assert submit.TrainJob(run, 1, 1, 1, 2)() == "done"
    assert len(ran) == 1
    assert "nothing is left to this successor" in capsys.readouterr().out
    assert submit.TrainJob(run, 1, 1, 0, 2)() == "done"
    assert len(ran) == 2, "the first one was asked for"


def test_a_refused_successor_tells_what_is_queued(tmp_path, site):
    (run,) = planned(tmp_path, "a")
    sbatch = (site / "sbatch").read_text()
    fake(
        site / "sbatch",
        f"[ -e {site}/2.sh ] && {{ echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2; exit 1; }}\n{sbatch}",
    )
    with pytest.raises(UserError, match=r"QOSMaxSubmit.*; job 1 is queued with 1 of 3 successors") as e:
        submit.submit(run, SITE.replace(successors=3), nodes=1, gpus=1, name="x")
    assert "\n" not in str(e.value)
    assert [entry.job_id for entry in ledger.submissions(run)] == ["1", "2"]


def test_an_array_is_one_submission_with_a_folder_of_its_own_and_a_link_from_each_run(tmp_path, site):
    runs = planned(tmp_path / "runs", "a", "b", "c")
    submit.submit(runs[1], SITE, nodes=2, gpus=4, name="x")
    (site / "queue").write_text("")
    words = {"nodes": 2, "gpus": 4, "name": "x", "parallelism": 2}
    shown = submit.array_text(runs, SITE, **words)
    assert not (tmp_path / "runs" / ".arrays").exists()
    jobs = submit.submit_array(runs, SITE, **words)
    assert [job.job_id for job in jobs] == ["2_0", "2_1", "2_2"]
    text = (site / "2.sh").read_text()
    assert shown == text + "".join(f"# {i}: {run}\n" for i, run in enumerate(runs))
    assert "#SBATCH --array=0-2%2\n" in text
    place = tmp_path / "runs" / ".arrays" / "001"
    assert f"PYTHONPATH={place}/code" in text
    assert (place / "code" / "jobs" / "submit.py").exists()
    assert [os.readlink(run / "jobs" / n) for run, n in zip(runs, ("001", "002", "001"), strict=True)] == [
        "../../.arrays/001"
    ] * 3
    assert [job.submission().function.folder for job in jobs] == [str(run) for run in runs]

    (site / "queue").write_text("2_0 RUNNING\n2_1 PENDING\n")
    assert [run_status(run).state for run in runs] == ["running", "queued", "stopped"]
    with pytest.raises(UserError, match="has job 2_1 already"):
        submit.submit_array(runs[1:], SITE, **words)
    for name in ("2_0_0_log.out", "2_1_0_log.out", "2_1_10_log.out", "2_1_2_log.err"):
        (place / name).touch()
    assert [path.name for path in logs(runs[1])] == ["2_1_0_log.out", "2_1_2_log.err", "2_1_10_log.out"]
    assert cancel(runs[1]) == ["2_1"]
    assert (site / "cancelled").read_text() == "2_1\n"
    assert [run_status(run).state for run in runs] == ["running", "stopped", "stopped"]


def test_each_run_of_an_array_has_its_own_successors(tmp_path, site):
    runs = planned(tmp_path, "a", "b")
    submit.submit_array(runs, SITE.replace(successors=1, additional_parameters={}), nodes=1, gpus=1, name="x")
    assert [asked_for(site / f"{n}.sh") for n in (1, 2, 3)] == [
        [],
        ["dependency=afternotok:1_0", "kill-on-invalid-dep=yes"],
        ["dependency=afternotok:1_1", "kill-on-invalid-dep=yes"],
    ]
    assert [[e.job_id for e in ledger.submissions(run)] for run in runs] == [["1_0", "2"], ["1_1", "3"]]


def test_an_array_of_one_is_an_ordinary_submission(tmp_path, site):
    runs = planned(tmp_path, "a")
    (job,) = submit.submit_array(runs, SITE, nodes=1, gpus=1, name="x")
    assert job.job_id == "1"
    assert not (tmp_path / ".arrays").exists()


def test_runs_that_cannot_be_one_array_are_refused(tmp_path, site):
    (run,), (other,) = planned(tmp_path / "a", "x"), planned(tmp_path / "b", "x")
    for folders in ([run, run], [run, other]):
        with pytest.raises(UserError, match="an array needs different runs of one folder"):
            submit.submit_array(folders, SITE, nodes=1, gpus=1, name="x")
    with pytest.raises(UserError, match="parallel=2: cluster 'local' is this one machine"):
        submit.array_text([run, other], CLUSTER, nodes=1, gpus=1, name="x", parallelism=2)
