"""Jobs of this machine live as often as they are told to, in real processes that count instead of training."""

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cloudpickle
import psutil
import pytest

from jobs import ledger, local, submit
from jobs.cluster import LOCAL
from jobs.preempt import LOCAL_END
from jobs.status import cancel, logs, run_status

cloudpickle.register_pickle_by_value(sys.modules[__name__])
SPIN = "while :; do sleep 0.05; done"


class Lives(submit.TrainJob):
    """Writes a line a life, with what it counts; goes on until the file `enough` is there."""

    def train(self, should_stop) -> str:
        run, rank = Path(self.folder), os.environ["RANK"]
        with open(run / f"lives{rank}", "a") as f:
            f.write(f"{os.getpid()}\n")
        while not (run / "enough").exists():
            if should_stop():
                with open(run / f"causes{rank}", "a") as f:
                    f.write(f"{should_stop.why()}\n")
                return "stopped"
            time.sleep(0.01)
        return "done"


@pytest.fixture(autouse=True)
def _no_process_survives_its_test(tmp_path, monkeypatch):
    monkeypatch.setattr(submit, "TrainJob", Lives)
    yield
    for folder in tmp_path.rglob("jobs"):
        for entry in ledger.submissions(folder.parent):
            if ledger.is_controller(entry.job_id, entry.folder(folder.parent)):
                controller = psutil.Process(int(entry.job_id))
                for process in [controller, *controller.children(recursive=True)]:
                    process.kill()


def make(runs: Path, name: str) -> Path:
    run = runs / name
    run.mkdir(parents=True)
    (run / "config.json").write_text('{"total_kimg": 1}')
    return run


@pytest.fixture
def run(tmp_path) -> Path:
    return make(tmp_path, "toy-0a1b2c3d")


def start(run: Path, gpus: int = 1, **limits: int):
    return submit.submit(run, LOCAL.replace(**limits), nodes=1, gpus=gpus, name="toy")


def wait(condition: Callable[[], object], *runs: Path, sec: float = 60) -> None:
    deadline = time.monotonic() + sec
    while not condition():
        assert time.monotonic() < deadline, "\n".join(p.read_text() for run in runs for p in logs(run))
        time.sleep(0.02)


def lives(run: Path, rank: int = 0) -> list[int]:
    path = run / f"lives{rank}"
    return [int(line) for line in path.read_text().splitlines() if line] if path.exists() else []


def causes(run: Path) -> list[str]:
    return (run / "causes0").read_text().splitlines()


def end(job) -> int:
    return job._process.wait(timeout=60)


def test_a_job_is_preempted_more_often_than_submitit_allows(run):
    job = start(run)
    for life in range(1, 7):
        wait(lambda n=life: len(lives(run)) == n, run)
        os.kill(int(job.job_id), signal.SIGUSR2)  # as good as to its ranks
    wait(lambda: len(lives(run)) == 7, run)
    (run / "enough").touch()
    assert job.result() == "done"
    assert end(job) == 0
    assert causes(run) == ["preemption"] * 6
    assert job.submission()._timeout_countdown == LOCAL.max_num_timeout


def test_time_limits_count_down_and_their_end_is_told(run):
    job = start(run, timeout_min=1, signal_delay_s=58, max_num_timeout=1)
    end(job)
    assert causes(run) == ["time limit", "time limit"]
    assert "saved; this job has used up its time limits: submit again to resume" in logs(run)[0].read_text()
    assert not list(run.glob("jobs/001/*_result.pkl"))


def test_runs_of_an_array_wait_for_each_other(tmp_path):
    runs = [make(tmp_path, f"toy-{i}") for i in range(3)]
    jobs = submit.submit_array(runs, LOCAL, nodes=1, gpus=1, name="toy")
    wait(lambda: lives(runs[0]), *runs)
    assert [run_status(run).state for run in runs] == ["running", "queued", "queued"]
    assert cancel(runs[1]) == [jobs[1].job_id]
    end(jobs[1])
    (runs[2] / "enough").touch()
    psutil.Process(lives(runs[0])[0]).send_signal(signal.SIGUSR2)
    wait(lambda: len(lives(runs[0])) == 2, *runs)
    assert not lives(runs[2]), "it waits for all lives"
    (runs[0] / "enough").touch()
    assert jobs[2].result() == "done"
    assert [end(job) for job in jobs] == [0, 143, 0]
    assert not lives(runs[1])
    assert run_status(runs[1]).state == "stopped"
    for run, job in zip(runs, jobs, strict=True):
        (entry,) = ledger.submissions(run)
        assert entry.folder(run).resolve() == tmp_path / ".arrays" / "001"
        assert all(job.job_id in path.name for path in logs(run))
    assert len(logs(runs[0])) == 2


@pytest.fixture
def controller(tmp_path, monkeypatch):
    """script, ranks -> a controller of such shells in this process; $SUBMITIT_LOCAL_GLOBALID is the rank."""
    before = {s: signal.getsignal(s) for s in (signal.SIGUSR2, signal.SIGTERM)}
    made = []

    def make(script: str, ranks: int = 1, timeout_s: int = 60, signal_delay_s: int = 1) -> local.PatientController:
        values = {"NTASKS": ranks, "TIMEOUT_S": timeout_s, "SIGNAL_DELAY_S": signal_delay_s, "WITH_SHELL": ""}
        for name, value in values.items():
            monkeypatch.setenv(f"SUBMITIT_LOCAL_{name}", str(value))
        monkeypatch.setenv("SUBMITIT_LOCAL_COMMAND", shlex.join(["bash", "-c", f"cd {tmp_path}\n{script}"]))
        monkeypatch.setenv("SUBMITIT_STDERR_TO_STDOUT", "")
        monkeypatch.setenv(LOCAL_END, "")
        made.append(local.PatientController(tmp_path))
        return made[-1]

    yield make
    for one in made:
        tasks = list(one.tasks)
        one.kill_tasks()
        for task in tasks:
            task.wait(10)
    for signum, handler in before.items():
        signal.signal(signum, handler)


def test_a_failed_rank_takes_the_others_along(controller, monkeypatch):
    monkeypatch.setattr(local, "FAILED_SEC", 0.2)
    one = controller("[ $SUBMITIT_LOCAL_GLOBALID = 0 ] && exec sleep 60; exit 3", ranks=2)
    one.start_tasks()
    sleeper = one.tasks[0]
    assert one.wait() == [None, 3]
    one.kill_tasks()
    assert sleeper.wait(10) == -signal.SIGINT


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGUSR2, 144), (signal.SIGTERM, 143)])
def test_a_signal_that_comes_before_a_rank_can_hear_it_is_repeated(signum, code, controller, monkeypatch, tmp_path):
    monkeypatch.setattr(local, "AGAIN_SEC", 0.1)
    one = controller("trap '' USR2 TERM; touch deaf; sleep 0.5; trap 'exit 144' USR2; trap 'exit 143' TERM; " + SPIN)
    one.start_tasks()
    wait((tmp_path / "deaf").exists)
    os.kill(os.getpid(), signum)
    assert one.wait() == [code]


def test_the_time_limit_is_announced_and_then_enforced(controller):
    one = controller("trap 'touch warned' USR2; " + SPIN, timeout_s=2, signal_delay_s=1)
    one.start_tasks()
    assert time.time() < float(os.environ[LOCAL_END]) <= time.time() + 2
    assert one.wait() == [None]
    assert (one.folder / "warned").exists()


def test_a_cancel_that_comes_between_two_lives_is_not_lost(controller, tmp_path):
    one = controller("echo x >> lives; exit 144")
    starts = []

    def cancelled_then() -> None:
        if starts:
            os.kill(os.getpid(), signal.SIGTERM)
        starts.append(1)
        local.PatientController.start_tasks(one)

    one.start_tasks = cancelled_then
    with pytest.raises(SystemExit) as e:
        one.run(max_retry=3)
    assert e.value.code == 143
    assert (tmp_path / "lives").read_text() == "x\n"
