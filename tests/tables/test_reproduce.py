"""Runs of a table in shares: real trainings in this process, and local jobs with a stand-in for training."""

import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cloudpickle
import psutil
import pytest

from jobs import ledger, reproduce, several
from jobs.cluster import LOCAL, Cluster
from jobs.status import run_status
from pipeline import tables
from pipeline.errors import UserError, WorkError
from pipeline.evaluation import Question
from pipeline.tables.measured import state_of
from pipeline.tables.table import Asked
from tests.tables.toy import BROKEN, TOY

cloudpickle.register_pickle_by_value(sys.modules[__name__])
QUESTION = Question(metrics=("swd64",))


class Writing(several.TrainSeveral):
    """Each run is done once the file `enough` is beside it; a run whose `enough` says so fails."""

    def train(self, should_stop) -> str:
        run = Path(self.folder)
        tell(run, "start", pid=os.getpid(), threads=os.environ["OMP_NUM_THREADS"])
        while not (run / "enough").exists():
            if should_stop():
                tell(run, "preempt", cause=should_stop.why())
                return "stopped"
            time.sleep(0.02)
        if said := (run / "enough").read_text():
            raise RuntimeError(said)
        tell(run, "done")
        return "done"

    def lacks(self) -> bool:
        return not (Path(self.folder) / "measured").exists()

    def measure(self, should_stop, world) -> str:
        """Ends at once, or as `unmeasurable` beside it says."""
        run = Path(self.folder)
        if (run / "unmeasurable").exists():
            if said := (run / "unmeasurable").read_text():
                raise RuntimeError(said)
            os.kill(os.getpid(), signal.SIGUSR2)
            return "stopped"
        (run / "measured").touch()
        return "done"


def tell(run: Path, event: str, **facts: object) -> None:
    with open(run / "events.jsonl", "a") as f:
        f.write(json.dumps({"nimg": 0, "time": time.time(), "attempt": 1, "event": event, **facts}) + "\n")


def story(run: Path) -> list[str]:
    path = run / "events.jsonl"
    return [json.loads(line)["event"] for line in path.read_text().splitlines()] if path.exists() else []


def wait(condition: Callable[[], object], what: str, sec: float = 60) -> None:
    deadline = time.monotonic() + sec
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(tables.TABLES, TOY.name, TOY)
    return TOY


@pytest.fixture
def handlers():
    """Those of this process, put back."""
    before = {s: signal.getsignal(s) for s in (signal.SIGUSR2, signal.SIGTERM)}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """planned(n): a plan of n empty run folders, trained by Writing; no job outlives its test."""
    monkeypatch.setattr(reproduce, "TrainSeveral", Writing)

    def make(n: int) -> reproduce.Plan:
        folders = {}
        for i in range(n):
            run = tmp_path / "runs" / f"toy-{i}"
            run.mkdir(parents=True)
            (run / "config.json").write_text('{"total_kimg": 1}')
            folders["row", i] = run
        return reproduce.Plan(TOY, "small", tmp_path / "runs", folders, gpus=1)

    yield make
    for run in tmp_path.glob("runs/toy-*"):
        for entry in ledger.submissions(run):
            if ledger.is_controller(entry.job_id, entry.folder(run)):
                controller = psutil.Process(int(entry.job_id))
                for process in [controller, *controller.children(recursive=True)]:
                    process.kill()


def test_a_run_that_fails_does_not_stop_the_others_of_its_share(toy, photos, tmp_path, handlers):
    (tmp_path / "photos-32").symlink_to(photos(32))
    plan = reproduce.plan(toy, "full", tmp_path / "runs", seeds=[0], root=tmp_path)
    runs = {row: folder for (row, _), folder in plan.folders.items()}
    assert plan.todo() == list(runs.values())
    with pytest.raises(WorkError, match=f"1 of 3 runs failed: {runs[BROKEN].name} .*not finite"):
        several.TrainSeveral(plan.todo(), 1, 1)()
    assert [state_of(run)[0] for run in runs.values()] == ["done", "failed", "done"]
    assert "not finite" in state_of(runs[BROKEN])[1]
    assert story(runs[BROKEN]).count("failed") == 1, "told by the attempt; not once more"
    assert plan.todo() == [runs[BROKEN]]
    again = reproduce.plan(toy, "full", tmp_path / "runs", seeds=[0], root=tmp_path)
    assert again.folders == plan.folders
    with pytest.raises(WorkError, match=r"1 of 3 runs failed: .*; the same command again submits them"):
        reproduce.wait(again, lambda done, total: None)


def test_rows_take_the_set_that_they_name_and_those_without_one_are_left_out(toy, photos, tmp_path):
    rows = [dataclasses.replace(row, data=None, set=row.name) for row in toy.rows("small")]
    table = dataclasses.replace(toy, rows=lambda form: rows)
    given = [f"wide={photos(32)}"]
    reproduce.check_given(table, "small", given, [])
    plan = reproduce.plan(table, "small", tmp_path / "runs", seeds=[0], data=given, root=tmp_path)
    assert set(plan.folders) == {("wide", 0)}
    with pytest.raises(UserError, match="needs --data DIR"):
        reproduce.check_given(table, "small", [], [])
    with pytest.raises(UserError, match="does not say which set it is"):
        reproduce.check_given(table, "small", ["/d"], [])
    with pytest.raises(UserError, match="measures nothing on held-out images; leave --validation out"):
        reproduce.check_given(table, "small", given, [tmp_path])
    with pytest.raises(UserError, match=r"needs --validation DIR: photographs with depth"):
        reproduce.check_given(tables.find("geopos.depth"), "full", ["/d"], [])
    with pytest.raises(UserError, match=r"nothing to train: `graticule report cips\.table4`"):
        reproduce.check_given(tables.find("cips.table4"), "full", [], [])


def test_rows_are_asked_what_is_their_own():
    rows = {row.name: row for row in tables.find("mspie.table5").rows("small")}
    questions = reproduce.questions_of(tables.find("mspie.table5"), "small")
    assert questions.keys() == rows.keys()
    assert {name: questions[name].sizes for name in "abc"} == {"a": ("32",), "b": ("64", "32of64"), "c": ("64", "32")}


def test_a_share_that_is_asked_to_stop_leaves_its_runs_where_they_are(planned, handlers):
    first, second = planned(2).unique()
    job = Writing([first, second], 1, 1)
    (first / "enough").touch()
    (second / "config.json").rename(second / "gone")  # nothing reads it: the stop comes first
    trained = job.train

    def train_then_signal(flag) -> str:
        outcome = trained(flag)
        os.kill(os.getpid(), signal.SIGUSR2)
        return outcome

    job.train = train_then_signal
    assert job() == "stopped"
    assert (story(first), story(second)) == (["start", "done"], [])
    (second / "enough").touch()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    assert Writing([first, second], 1, 1)() == "done"
    assert (story(first), story(second)) == (["start", "done"], ["start", "done"])


def test_jobs_of_this_machine_share_its_cores_and_what_is_left_is_submitted_again(planned, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    plan = planned(5)
    runs = plan.unique()
    jobs = reproduce.submit(plan, LOCAL, jobs=2)
    assert [share for share, _ in jobs] == [runs[0::2], runs[1::2]]
    wait(lambda: story(runs[0]) == story(runs[1]) == ["start"], "both jobs run beside each other")
    assert plan.todo() == [], "all are at work"
    assert reproduce.submit(plan, LOCAL, jobs=2) == []
    assert json.loads((runs[0] / "events.jsonl").read_text())["threads"] == "2"
    assert [run_status(run).state for run in runs] == ["running", "running", "queued", "queued", "queued"]
    (runs[1] / "enough").write_text("out of luck")
    wait(lambda: story(runs[3]) == ["start"], "the failed one does not stop the next one")
    assert run_status(runs[1]).state == "failed"
    assert state_of(runs[1]) == ("failed", "RuntimeError: out of luck")
    (runs[0] / "enough").touch()
    wait(lambda: story(runs[2]) == ["start"], "the done one is followed by the next one")
    assert run_status(runs[0]).state == "done", "its job has others to do"
    psutil.Process(json.loads((runs[2] / "events.jsonl").read_text())["pid"]).send_signal(signal.SIGUSR2)
    wait(lambda: story(runs[2]) == ["start", "preempt", "start"], "the preempted one goes on")
    assert story(runs[0]) == ["start", "done"]
    for _, job in jobs[:1]:  # power cut
        controller = psutil.Process(int(job.job_id))
        for process in [controller, *controller.children(recursive=True)]:
            process.kill()
    (runs[3] / "enough").touch()
    for _, job in jobs:
        job._process.wait(timeout=60)
    assert "1 of 2 runs failed: toy-1 (RuntimeError: out of luck)" in str(jobs[1][1].exception())
    assert plan.at_work() == set()
    assert plan.todo() == [runs[1], runs[2], runs[4]]
    for run in plan.todo():
        (run / "enough").write_text("")
    counts = []
    ((_, job),) = reproduce.submit(plan, LOCAL, jobs=1)
    reproduce.wait(plan, lambda done, total: counts.append((done, total)))
    assert job._process.wait(timeout=60) == 0
    assert counts[-1] == (5, 5)
    assert plan.todo() == []
    assert {run_status(run).state for run in runs} == {"done"}


def test_a_cluster_with_successors_and_a_silent_queue_are_refused(planned, monkeypatch):
    plan, slurm = planned(1), Cluster(executor="slurm", timeout_min=5, successors=1)
    with pytest.raises(UserError, match="successors=1 has no effect"):
        reproduce.place_of(slurm, 1, 1)
    (run,) = plan.unique()
    ledger.claim(run)
    ledger.record(run, ledger.Submission(1, "17", "slurm", "lab", "here", 0.0, 1, 1))
    monkeypatch.setattr(ledger, "queue", lambda: None)
    with pytest.raises(WorkError, match="squeue does not answer"):
        plan.todo()


@pytest.fixture
def asked(planned, monkeypatch):
    """asked(n): the same, with a question that is answered by a file `measured`."""
    monkeypatch.setattr(reproduce, "lacking", lambda folder, question: [] if (folder / "measured").exists() else ["x"])

    def make(n: int) -> reproduce.Plan:
        plan = planned(n)
        return dataclasses.replace(plan, questions=dict.fromkeys(plan.unique(), QUESTION))

    return make


def test_what_is_trained_is_measured_and_what_fails_there_is_told_and_tried_once_more(asked, handlers, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    plan = asked(3)
    runs = plan.unique()
    for run in runs:
        (run / "enough").touch()
    tell(runs[0], "done")
    assert plan.todo() == runs, "trained is not yet measured"
    (runs[1] / "unmeasurable").write_text("out of memory")
    with pytest.raises(WorkError, match=r"1 of 3 runs failed: toy-1 \(RuntimeError: out of memory\)"):
        Writing(runs, 1, 1, plan.questions)()
    assert story(runs[0]) == ["done"], "not trained again"
    assert story(runs[1]) == ["start", "done", "evaluation failed"]
    assert story(runs[2]) == ["start", "done"]
    assert [plan.states()[run] for run in runs] == ["done", "failed", "done"]
    with pytest.raises(WorkError, match=r"1 of 3 runs failed: toy-1 \(evaluation: RuntimeError: out of memory\)"):
        reproduce.wait(plan, lambda done, total: None)
    assert plan.todo() == [runs[1]]
    (runs[1] / "unmeasurable").unlink()
    assert Writing(plan.todo(), 1, 1, plan.questions)() == "done"
    assert story(runs[1])[1:] == ["done", "evaluation failed"], "only measured"
    assert set(plan.states().values()) == {"done"}
    assert Writing(runs, 1, 1)() == "done", "without a question nothing is asked"


def test_a_stop_while_it_measures_leaves_the_rest_to_the_next_life(asked, handlers, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    plan = asked(2)
    first, second = plan.unique()
    (first / "enough").touch()
    (first / "unmeasurable").touch()
    assert Writing([first, second], 1, 1, plan.questions)() == "stopped"
    assert (story(first), story(second)) == (["start", "done"], [])


def test_a_rank_that_alone_heard_of_a_stop_meets_the_others_in_the_next_training(asked, handlers, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(several, "join", lambda nodes, gpus: several.World(1, 2, 1, 2, "torchrun"))
    plan = asked(2)
    first, second = plan.unique()
    (first / "enough").touch()
    (first / "unmeasurable").touch()
    assert Writing([first, second], 1, 2, plan.questions)() == "stopped"
    assert story(second) == ["start", "preempt"]


def test_a_detector_that_is_not_there_is_refused_before_anything_is_made(toy, graticule, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRATICULE_DETECTORS", str(tmp_path))
    asked = {"small": Asked(metrics=("swd64", "fid50k_full"))}
    monkeypatch.setitem(tables.TABLES, toy.name, dataclasses.replace(toy, asked=asked))
    code, _, err = graticule("reproduce", toy.name)
    assert code == 2
    assert "detector='inception'" in err
    assert not list(tmp_path.iterdir())
    assert reproduce.questions_of(toy, "small") == {}
    asked = {"small": Asked(metrics=("swd64",), sizes=("32",))}
    questions = reproduce.questions_of(dataclasses.replace(toy, asked=asked), "small")
    assert set(questions) == {"narrow", "wide"}
    question = questions["wide"]
    assert (question.metrics, question.sizes, question.checkpoints) == (("swd64",), ("32",), "all")


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")  # the command does not wait for it
def test_the_command_says_what_it_would_do_and_then_does_nothing_twice(toy, photos, graticule, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["reproduce", TOY.name, "--seeds", "0-1"]
    code, out, err = graticule(*words, "--dry-run")
    assert code == 0, err
    assert "would prepare data/photos-32" in out
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "photos-32").symlink_to(photos(32))
    before = sorted(tmp_path.rglob("*"))
    code, out, err = graticule(*words, "--dry-run", "--jobs", 3)
    assert code == 0, err
    assert "toy.widths, small: 4 runs: 4 left" in out
    assert "submitit.core._submit" in out
    assert sorted(tmp_path.rglob("*")) == before
    assert (
        "#SBATCH --array=0-2%2" in graticule(*words, "--dry-run", "--jobs", 3, "--parallel", 2, "--cluster", "lab")[1]
    )
    monkeypatch.setattr(reproduce, "TrainSeveral", Writing)
    monkeypatch.setattr(Writing, "train", lambda self, flag: tell(Path(self.folder), "done") or "done")
    code, out, err = graticule(*words, "--wait", "--jobs", 1)
    assert code == 0, err
    assert "submitted job" in out
    assert ": 4 runs" in out
    code, out, err = graticule(*words)
    assert code == 0, err
    assert "4 runs: 4 done\nnothing is left to submit" in out
    code, out, err = graticule("report", TOY.name)
    assert code == 0, err
    assert (tmp_path / "runs" / "tables" / "toy.widths.small" / "report.html").is_file()
