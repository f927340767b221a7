"""Evaluations as local jobs with a stand-in for measuring, and what Slurm is asked for; tests/slurm has real ones."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cloudpickle
import psutil
import pytest

from jobs import evaluate, ledger
from jobs.cluster import LOCAL, NICE, Cluster, Evaluation, load_cluster
from jobs.status import cancel, logs, run_status, status
from jobs.submit import check_free
from pipeline.errors import UserError
from pipeline.evaluation import Question
from tests.runs import CIPS

cloudpickle.register_pickle_by_value(sys.modules[__name__])
QUESTION = Question(metrics=("swd64",))


class Measuring(evaluate.EvaluateJob):
    """Measures a checkpoint once the file `enough` is there; two ranks meet in the files that they leave."""

    def lacks(self) -> bool:
        run = Path(self.folder)
        return any(not (run / f"measured-{c.name}").exists() for c in run.glob("checkpoints/*"))

    def measure(self, should_stop, world) -> str:
        run = Path(self.folder)
        assert evaluate.question_in(self.question) == QUESTION
        with open(run / f"rank{world.rank}of{world.size}", "a") as f:
            f.write(f"{os.getpid()} ")
        while not (run / "enough").exists():
            if should_stop():
                return "stopped"
            time.sleep(0.02)
        for checkpoint in run.glob("checkpoints/*"):
            (run / f"measured-{checkpoint.name}").touch()
        return "done"


def event(run: Path, name: str) -> None:
    with open(run / "events.jsonl", "a") as f:
        f.write(json.dumps({"nimg": 0, "time": time.time(), "attempt": 1, "event": name}) + "\n")


def wait(condition: Callable[[], object], what: str, sec: float = 60) -> None:
    deadline = time.monotonic() + sec
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run with a checkpoint; no job of it outlives its test."""
    monkeypatch.setattr(evaluate, "EvaluateJob", Measuring)
    folder = tmp_path / "toy-0a1b2c3d"
    (folder / "checkpoints" / "000000001000").mkdir(parents=True)
    (folder / "config.json").write_text('{"total_kimg": 1}')
    yield folder
    for place in (folder, folder / ledger.EVALUATION):
        for entry in ledger.submissions(place):
            if ledger.is_controller(entry.job_id, entry.folder(place)):
                controller = psutil.Process(int(entry.job_id))
                for process in [*controller.children(recursive=True), controller]:
                    process.kill()


def start(run: Path, gpus: int = 1, follow: bool = False):
    job = evaluate.submit_evaluation(run, QUESTION, LOCAL, nodes=1, gpus=gpus, follow=follow)
    wait(lambda: len(list(run.glob("rank*"))) == gpus, "all ranks measure")
    return job


def test_a_stopped_evaluation_goes_on_on_all_ranks_and_the_run_knows_no_job_of_it(run):
    event(run, "done")
    job = start(run, gpus=2)
    assert run_status(run).state == "done", "its training is what counts"
    assert status(run.parent)[0].job_ids == ()
    assert status(run.parent)[0].evaluation_ids == (job.job_id,)
    check_free(run)
    assert logs(run) == []
    with pytest.raises(UserError, match="has no live job"):
        cancel(run)
    with pytest.raises(UserError, match=f"being measured by job {job.job_id} already .*graticule cancel"):
        evaluate.submit_evaluation(run, QUESTION, LOCAL, nodes=1, gpus=1)
    for process in psutil.Process(int(job.job_id)).children():
        process.send_signal(signal.SIGUSR2)
    wait(lambda: all(len((run / f"rank{r}of2").read_text().split()) == 2 for r in range(2)), "two lives")
    (run / "enough").touch()
    assert job.results() == ["done", "done"]
    job.wait()
    assert (run / "measured-000000001000").exists()
    assert len(logs(run / ledger.EVALUATION)) == 4
    assert status(run.parent)[0].evaluation_ids == ()
    assert not (run / "jobs").exists()


def test_it_is_cancelled_by_its_own_folder(run):
    job = start(run)
    assert cancel(run / ledger.EVALUATION) == [job.job_id]
    job._process.wait(timeout=30)
    assert ledger.alive(run / ledger.EVALUATION) is None
    assert not list(run.glob("measured*"))


def test_one_that_follows_measures_each_checkpoint_until_the_run_has_ended(run):
    (run / "enough").touch()
    first = run / "checkpoints" / "000000001000"
    first.rmdir()
    event(run, "start")
    job = evaluate.submit_evaluation(run, QUESTION, LOCAL, nodes=1, gpus=1, follow=True)
    first.mkdir()
    wait((run / "measured-000000001000").exists, "the first")
    (run / "checkpoints" / "000000002000").mkdir()
    wait((run / "measured-000000002000").exists, "the second")
    assert ledger.alive(run / ledger.EVALUATION), "the run goes on"
    (run / "checkpoints" / "000000003000").mkdir()
    event(run, "done")
    assert job.result() == "done"
    job.wait()
    assert (run / "measured-000000003000").exists(), "the last one is not left out"


def test_one_that_waits_for_a_checkpoint_hears_a_stop(run, monkeypatch):
    monkeypatch.setattr(evaluate, "POLL_SEC", (60.0, 60.0))
    (run / "enough").touch()
    event(run, "start")
    flag = evaluate.StopFlag()
    threading.Timer(1.0, flag.raised, [signal.SIGTERM]).start()
    began = time.monotonic()
    job = Measuring(run, QUESTION, 1, 1, follow=True)
    assert job._until_the_run_ends(flag, evaluate.World(0, 1, 0, 1, "none")) == "stopped"
    assert time.monotonic() - began < 10
    assert (run / "measured-000000001000").exists()


@pytest.mark.parametrize(
    ("events", "submitted", "queue", "ended"),
    [
        (["start", "done"], "", {}, True),
        (["start"], "", {}, False),  # somebody trains it by hand, and has just written
        (["start", "failed"], "7", {}, True),
        (["start", "failed"], "7", {"7": "PENDING"}, False),
        (["start", "preempt"], "7", {"7": "RUNNING"}, False),
        (["start", "checkpoint"], "7", {}, True),  # killed, and not queued again
        (["start", "checkpoint"], "7", None, False),  # this node cannot ask: not as long as it writes
    ],
)
def test_a_run_has_ended_when_it_is_done_or_nobody_is_at_work(run, monkeypatch, events, submitted, queue, ended):
    monkeypatch.setattr(ledger, "queue", lambda: queue)
    for name in events:
        event(run, name)
    if submitted:
        ledger.claim(run)
        ledger.record(run, ledger.Submission(1, submitted, "slurm", "lab", "here", time.time(), 1, 1))
    assert evaluate.has_ended(run) == ended
    if queue is None:
        long_ago = time.time() - 2 * evaluate.FRESH_SEC
        os.utime(run / "events.jsonl", (long_ago, long_ago))
        assert evaluate.has_ended(run)


def test_a_failure_is_told_in_the_events_of_the_run(run):
    event(run, "start")
    job = Measuring(run, QUESTION, 1, 1)
    (run / "config.json").unlink()
    with pytest.raises(UserError, match="has no config") as e:
        super(Measuring, job).measure(evaluate.StopFlag(), evaluate.World(0, 1, 0, 1, "none"))
    told = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()][-1]
    assert (told["event"], told["error"]) == ("evaluation failed", f"{type(e.value).__name__}: {e.value}"[:500])


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--follow"], "--follow: has no effect without a job of its own; say --cluster NAME"),
        (["--nodes", 2], "--nodes: has no effect"),
        (["--cluster", "local", "--nodes", 2, "--follow"], "nodes=2: cluster 'local' is this one machine"),
        (["--cluster", "local", "--follow", "--checkpoint", "best"], "checkpoint='best': one that follows a run"),
        (["--cluster", "local", "--follow", "--metric", "fid50k_ful"], "did you mean 'fid50k_full'"),
        (["--cluster", "local", "--follow", "--metric", "fid50k_full"], "detector='inception'"),
        (["--cluster", "local"], "has no valid checkpoint"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_before_anything_is_made(
    graticule, planned, monkeypatch, words, complaint
):
    monkeypatch.setenv("GRATICULE_DETECTORS", str(planned))
    before = sorted(planned.rglob("*"))
    code, _, err = graticule("evaluate", planned, "--metric", "swd64", *words)
    assert code == 2
    assert complaint in err
    assert err.count("\n") == 1
    assert sorted(planned.rglob("*")) == before


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")  # the command does not wait for it
def test_the_command_shows_and_submits_an_evaluation_of_a_run_that_waits(graticule, planned, monkeypatch):
    monkeypatch.setattr(evaluate, "EvaluateJob", Measuring)
    words = ["evaluate", planned, "--metric", "swd64", "--cluster", "local", "--gpus", 2, "--follow"]
    code, out, err = graticule(*words, "--dry-run")
    assert code == 0, err
    assert "# 2 processes on this machine" in out
    assert not (planned / ledger.EVALUATION).exists()
    code, out, err = graticule(*words)  # nobody trains it: there is nothing to wait for
    assert code == 0, err
    (entry,) = ledger.submissions(planned / ledger.EVALUATION)
    assert f"submitted job {entry.job_id} on local: {planned}" in out
    wait(lambda: ledger.alive(planned / ledger.EVALUATION) is None, "it ends")
    assert len(list((planned / ledger.EVALUATION).glob("jobs/001/*_result.pkl"))) == 2


@pytest.fixture
def planned(runner) -> Path:
    """A run that was never trained."""
    return runner(CIPS).plan()


def text(cluster: Cluster, run: Path) -> str:
    return evaluate.evaluation_text(run, cluster, nodes=2, gpus=1)


def test_slurm_is_asked_for_low_priority_and_for_what_the_cluster_file_says(run):
    plain = Cluster(executor="slurm", timeout_min=60, partition="gpu", additional_parameters={"exclude": "n1"})
    assert f"#SBATCH --nice={NICE}\n" in text(plain, run)
    assert "#SBATCH --exclude=n1\n" in text(plain, run)
    assert "#SBATCH --job-name=evaluate.toy-0a1b2c3d\n" in text(plain, run)
    other = Evaluation(partition="spare", qos="low", additional_parameters={"nice": 7})
    shown = text(plain.replace(evaluate=other), run)
    assert "#SBATCH --partition=spare\n" in shown
    assert "#SBATCH --qos=low\n" in shown
    assert "#SBATCH --nice=7\n" in shown
    assert "#SBATCH --exclude=n1\n" in shown, "what it does not say stays"
    assert "# and 2 successors of it" in text(plain.replace(successors=2), run)
    assert not (run / ledger.EVALUATION).exists(), "a dry run writes nothing"


def test_a_successor_is_an_evaluation_too(run, tmp_path, monkeypatch):
    for name, answer in (
        ("sbatch", "echo Submitted batch job $(ls BIN/../toy*/evaluation/jobs | wc -l)"),
        ("squeue", ""),
    ):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{answer.replace('BIN', str(tmp_path / 'bin'))}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    cluster = load_cluster("lab").replace(successors=1)
    evaluate.submit_evaluation(run, QUESTION, cluster, nodes=2, gpus=1, follow=True)
    first, second = ledger.submissions(run / ledger.EVALUATION)
    assert second.after == [first.job_id]
    (pickle,) = second.folder(run / ledger.EVALUATION).glob("*_submitted.pkl")
    work = cloudpickle.loads(pickle.read_bytes()).function
    assert (type(work).__name__, work.follow, work.place, work.successors) == ("Measuring", True, 1, 1)
