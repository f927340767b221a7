"""The way back into the queue of a real Slurm, in runs that write a line a life instead of training.

Time limit and preemption told apart, chains of successors where scontrol is missing, arrays, the submitted code.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cloudpickle
import pytest

from jobs import ledger, submit
from jobs.cluster import Cluster, load_cluster
from jobs.status import cancel, logs, run_status
from tests.jobs.sources import Sources

pytestmark = pytest.mark.slurm
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Lives(submit.TrainJob):
    """Goes on until the file `enough` is there, and then ends as the file says."""

    def train(self, should_stop) -> str:
        run, rank = Path(self.folder), os.environ["RANK"]
        with open(run / f"lives{rank}", "a") as f:
            f.write(os.environ["SLURM_JOB_ID"] + "\n")
        while not (run / "enough").exists():
            if should_stop():
                if rank == "0":
                    event(run, "preempt", cause=should_stop.why())
                return "stopped"
            time.sleep(0.05)
        if rank == "0":
            event(run, "done")
        if text := (run / "enough").read_text():
            os._exit(int(text))
        return "done"


def event(run: Path, name: str, **facts: str) -> None:
    with open(run / "events.jsonl", "a") as f:
        f.write(json.dumps({"event": name, **facts}) + "\n")


@pytest.fixture(autouse=True)
def _lives(monkeypatch):
    monkeypatch.setattr(submit, "TrainJob", Lives)
    yield
    subprocess.run(["scancel", f"--user={os.getuid()}"], check=True)
    deadline = time.monotonic() + 30
    while ledger.slurm_states() and time.monotonic() < deadline:
        time.sleep(0.2)


@pytest.fixture
def site() -> Cluster:
    return load_cluster("lab").replace(mem_gb=1)


@pytest.fixture
def without_scontrol(site, tmp_path) -> Cluster:
    """A cluster whose compute nodes have squeue, and nothing else of Slurm."""
    only = tmp_path / "only"
    only.mkdir()
    (only / "squeue").symlink_to("/usr/bin/squeue")
    return site.replace(python=f"/usr/bin/env PATH={only} {sys.executable}", successors=3)


def make(runs: Path, *names: str) -> list[Path]:
    for name in names:
        (runs / name).mkdir(parents=True)
        (runs / name / "config.json").write_text('{"total_kimg": 1}')
    return [runs / name for name in names]


def start(run: Path, cluster: Cluster, ranks: int = 1):
    return submit.submit(run, cluster, nodes=1, gpus=ranks, name="x")


def wait(condition: Callable[[], object], *runs: Path, sec: float = 60) -> None:
    deadline = time.monotonic() + sec
    while not condition():
        said = "\n".join(f"== {p}\n{p.read_text()[-1500:]}" for run in runs for p in logs(run))
        assert time.monotonic() < deadline, f"{subprocess.getoutput('squeue --states=all')}\n{said}"
        time.sleep(0.1)


def lives(run: Path, rank: int = 0) -> list[str]:
    path = run / f"lives{rank}"
    return path.read_text().split() if path.exists() else []


def preempt(job_id: str) -> None:
    subprocess.run(["scancel", "--signal=USR2", job_id], check=True)


def causes(run: Path) -> list[str]:
    lines = map(json.loads, (run / "events.jsonl").read_text().splitlines())
    return [line["cause"] for line in lines if "cause" in line]


def test_time_limit_and_preemption_are_told_apart_in_a_job_of_two_minutes(tmp_path, site):
    (run,) = make(tmp_path, "a")
    job = start(run, site.replace(timeout_min=2, signal_delay_s=20, max_num_timeout=1), ranks=2)
    wait(lambda: len(lives(run)) == 1, run)
    preempt(job.job_id)
    wait(lambda: len(lives(run)) == 2, run)
    assert job.submission()._timeout_countdown == 1
    wait(lambda: len(lives(run)) == 3, run, sec=180)
    assert job.submission()._timeout_countdown == 0
    (run / "enough").touch()
    wait(lambda: ledger.alive(run) is None, run)
    assert causes(run) == ["preemption", "time limit"]
    row = run_status(run)
    assert (row.state, row.preempted, row.time_limits) == ("done", 1, 1)


def test_a_job_with_a_limit_of_ten_minutes_has_all_its_time_outs_left_after_a_preemption(tmp_path, site):
    (run,) = make(tmp_path, "a")
    job = start(run, site.replace(timeout_min=10, max_num_timeout=0))
    wait(lambda: lives(run), run)
    high = ["sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
    subprocess.run(high, check=True)
    wait(lambda: len(lives(run)) == 2, run)
    assert causes(run) == ["preemption"]
    assert cancel(run) == [job.job_id]
    wait(lambda: ledger.alive(run) is None, run)
    assert causes(run) == ["preemption", "cancelled"]
    assert run_status(run).state == "stopped"


def test_a_signal_in_the_first_moments_of_a_job_does_not_kill_it(tmp_path, site):
    (run,) = make(tmp_path, "a")
    (run / "enough").touch()
    job = start(run, site)
    while not lives(run):  # all the way through the start of Python
        subprocess.run(["scancel", "--signal=USR2", job.job_id], check=False, stderr=subprocess.DEVNULL)
        subprocess.run(["scancel", "--signal=TERM", job.job_id], check=False, stderr=subprocess.DEVNULL)
        assert ledger.alive(run) or lives(run), "\n".join(p.read_text() for p in logs(run))
    wait(lambda: ledger.alive(run) is None, run)
    assert run_status(run).state == "done"


def test_without_scontrol_the_next_successor_goes_on_and_the_rest_of_the_chain_drops_out(tmp_path, without_scontrol):
    (run,) = make(tmp_path / "runs", "a")
    start(run, without_scontrol, ranks=2)
    chain = [entry.job_id for entry in ledger.submissions(run)]
    assert len(chain) == 4
    wait(lambda: lives(run) == chain[:1] and lives(run, 1) == chain[:1], run)
    assert run_status(run).state == "running"
    preempt(chain[0])
    wait(lambda: lives(run) == chain[:2], run)
    first = run / "jobs" / "001"
    assert not list(first.glob("*_result.pkl"))
    said = (first / f"{chain[0]}_0_log.out").read_text()
    assert "saved; scontrol is not on this node: the next of 3 queued successors goes on" in said
    assert [path.parent.name for path in logs(run)] == ["002"] * 4
    (run / "enough").touch()
    wait(lambda: ledger.alive(run) is None, run)
    assert lives(run) == chain[:2]
    states = subprocess.run(
        ["squeue", "--noheader", "--states=all", "--format=%i %T", f"--jobs={','.join(chain)}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert sorted(line.split()[1] for line in states.splitlines()) == ["CANCELLED", "CANCELLED", "COMPLETED", "FAILED"]
    assert run_status(run).state == "done"


def test_a_successor_of_a_run_that_ended_in_the_last_moment_has_nothing_to_do(tmp_path, without_scontrol):
    (run,) = make(tmp_path / "runs", "a")
    start(run, without_scontrol)
    (run / "enough").write_text("1")
    wait(lambda: ledger.alive(run) is None, run)
    assert len(lives(run)) == 1
    second = ledger.submissions(run)[1]
    assert "nothing is left to this successor" in (second.folder(run) / f"{second.job_id}_0_log.out").read_text()
    assert not list((run / "jobs" / "003").glob("*.out"))


def test_cancel_takes_the_whole_chain(tmp_path, without_scontrol):
    (run,) = make(tmp_path / "runs", "a")
    start(run, without_scontrol)
    wait(lambda: lives(run), run)
    assert cancel(run) == [entry.job_id for entry in ledger.submissions(run)]
    wait(lambda: ledger.alive(run) is None, run)
    assert len(lives(run)) == 1
    assert causes(run) == ["cancelled"]
    assert run_status(run).state == "stopped"


def test_runs_of_an_array_are_preempted_requeued_and_cancelled_one_by_one(tmp_path, site):
    runs = make(tmp_path, "a", "b", "c")
    jobs = submit.submit_array(runs, site, nodes=1, gpus=1, name="x", parallelism=2)
    wait(lambda: lives(runs[0]) and lives(runs[1]), *runs)
    assert [run_status(run).state for run in runs] == ["running", "running", "queued"]
    preempt(jobs[1].job_id)
    wait(lambda: causes_so_far(runs[1]) == ["preemption"], *runs)
    (runs[0] / "enough").touch()
    wait(lambda: lives(runs[2]) and len(lives(runs[1])) == 2, *runs)
    preempt(jobs[2].job_id)  # this one has the id of the array
    wait(lambda: len(lives(runs[2])) == 2, *runs)
    assert lives(runs[2])[0] == jobs[2].job_id.partition("_")[0]
    assert cancel(runs[2]) == [jobs[2].job_id]
    (runs[1] / "enough").touch()
    wait(lambda: not any(ledger.alive(run) for run in runs), *runs)
    assert [len(lives(run)) for run in runs] == [1, 2, 2]
    assert [run_status(run).state for run in runs] == ["done", "done", "stopped"]
    assert {entry.folder(run).resolve() for run in runs for entry in ledger.submissions(run)} == {
        tmp_path / ".arrays" / "001"
    }


def causes_so_far(run: Path) -> list[str]:
    return causes(run) if (run / "events.jsonl").exists() else []


def test_each_run_of_an_array_has_its_own_successor(tmp_path, without_scontrol):
    runs = make(tmp_path / "runs", "a", "b")
    submit.submit_array(runs, without_scontrol.replace(successors=1), nodes=1, gpus=1, name="x")
    wait(lambda: lives(runs[0]) and lives(runs[1]), *runs)
    (runs[0] / "enough").touch()
    preempt(ledger.submissions(runs[1])[0].job_id)
    wait(lambda: len(lives(runs[1])) == 2, *runs)
    (runs[1] / "enough").touch()
    wait(lambda: not any(ledger.alive(run) for run in runs), *runs)
    assert [len(lives(run)) for run in runs] == [1, 2]
    assert [run_status(run).state for run in runs] == ["done", "done"]


def test_edits_before_the_start_and_between_two_lives_reach_no_job(tmp_path):
    sources, cluster = Sources(tmp_path / "src"), tmp_path / "held.toml"
    lab = (Path(__file__).resolve().parents[2] / "slurm" / "lab.toml").read_text()
    cluster.write_text(lab.replace("[env]", "[additional_parameters]\nhold = true\n[env]\nPYTHONPATH = '/from/env'"))
    runs = [tmp_path / "runs" / name for name in "ab"]
    job_ids = sources.submit(cluster, *runs)
    sources.edit()
    subprocess.run(["scontrol", "release", job_ids[0].partition("_")[0]], check=True)
    seen = ["old", f"{tmp_path}/runs/.arrays/001/code:/from/env"]
    wait(lambda: lives(runs[0]) == seen == lives(runs[1]), *runs)
    preempt(job_ids[1])
    wait(lambda: lives(runs[1]) == seen * 2, *runs)
    for run in runs:
        (run / "enough").touch()
    wait(lambda: not any(ledger.alive(run) for run in runs), *runs)
    assert lives(runs[0]) == seen
