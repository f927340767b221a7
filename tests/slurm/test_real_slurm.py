"""Training on two nodes of a real Slurm: undisturbed, preempted, with a rank killed, cancelled.

All runs are the same recipe and seed, so all must end in the weights of the undisturbed one, byte by byte.
"""

import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from jobs import ledger
from jobs.cluster import load_cluster
from jobs.status import cancel, logs, run_status
from jobs.submit import sbatch_text
from jobs.submit import submit as submit_job
from pipeline.errors import UserError

pytestmark = pytest.mark.slurm
TOTAL_KIMG = 0.36
SETS = {
    "total_kimg": TOTAL_KIMG,
    "exec.status_kimg": 0.024,
    "exec.checkpoint_kimg": 0.12,
    "exec.track": "false",
    "exec.workers": 0,
}


def submit(runs: Path, data: Path) -> Path:
    """graticule submit on 2 nodes x 2 ranks; the run's folder."""
    command = [
        Path(sys.executable).with_name("graticule"),
        "submit",
        "mspie.table5_f",
        "--tiny",
        "--data",
        data,
    ]
    command += ["--runs", runs, "--cluster", "lab", "--nodes", "2", "--gpus", "2"]
    command += [word for key, value in SETS.items() for word in ("--set", f"{key}={value}")]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    (run,) = runs.iterdir()
    return run


def wait(run: Path, condition: Callable[[], bool], what: str, sec: float = 90) -> None:
    deadline = time.monotonic() + sec
    while not condition():
        ended = ledger.alive(run) is None and not condition()
        if ended or time.monotonic() > deadline:
            text = "\n".join(f"== {p}\n{p.read_text()[-1500:]}" for p in logs(run))
            raise AssertionError(
                f"{'job ended before' if ended else f'not within {sec} s'}: {what}; {run_status(run)}\n{text}"
            )
        time.sleep(0.2)


def wait_ended(run: Path) -> str:
    wait(run, lambda: ledger.alive(run) is None, "the job leaves Slurm")
    return run_status(run).state


def wait_under_way(run: Path, attempt: int = 1) -> None:
    def lines() -> int:
        path = run / "metrics.jsonl"
        records = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
        return sum(record["attempt"] == attempt for record in records)

    wait(run, lambda: lines() >= 2, f"attempt {attempt} trains")


def events(run: Path) -> list[str]:
    return [json.loads(line)["event"] for line in (run / "events.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, str]:
    newest = max((run / "checkpoints").glob("[0-9]*"))
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(newest.glob("*.safetensors"))}


def rank_process(run: Path, rank: int) -> psutil.Process:
    """From the lab every process of every node is visible."""
    job_id = ledger.submissions(run)[-1].job_id
    for process in psutil.process_iter():
        try:
            env = process.environ()
        except psutil.Error:
            continue
        ours = env.get("SLURM_JOB_ID") == job_id and "SLURM_STEP_ID" in env
        if ours and env.get("SLURM_PROCID") == str(rank) and "python" in process.name():
            return process
    raise AssertionError(f"no process of rank {rank}")


@pytest.fixture(autouse=True)
def _no_job_survives_its_test():
    yield
    subprocess.run(["scancel", f"--user={os.getuid()}"], check=True)
    deadline = time.monotonic() + 30
    while ledger.slurm_states() and time.monotonic() < deadline:
        time.sleep(0.2)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, data) -> Path:
    run = submit(tmp_path_factory.mktemp("undisturbed"), data)
    assert wait_ended(run) == "done"
    return run


def test_two_nodes_of_two_ranks_train_to_the_end(undisturbed):
    start = (undisturbed / "events.jsonl").read_text().splitlines()[0]
    assert json.loads(start)["world"] == 4
    assert len(weights(undisturbed)) == 3, "G, D and G_ema"
    row = run_status(undisturbed)
    assert (row.state, row.attempts, row.kimg) == ("done", 1, TOTAL_KIMG)
    assert [p.name.split("_", 1)[1] for p in logs(undisturbed)] == [
        f"{rank}_log.{stream}" for rank in range(4) for stream in ("out", "err")
    ]


@pytest.mark.parametrize("way", ["USR2", "TERM", "priority"])
def test_preempted_run_is_saved_requeued_and_ends_in_the_same_weights(way, tmp_path, data, undisturbed):
    run = submit(tmp_path, data)
    wait_under_way(run)
    job_id = ledger.submissions(run)[-1].job_id
    if way == "priority":
        high = [
            "sbatch",
            "--partition=high",
            "--nodes=2",
            "--exclusive",
            "--output=/dev/null",
            "--wrap=sleep 1",
        ]
        subprocess.run(high, check=True)
    else:
        reach = ["--full"] if way == "USR2" else []  # the batch shell too; TERM would make srun end the step
        subprocess.run(["scancel", *reach, f"--signal={way}", job_id], check=True)
    wait(run, lambda: "preempt" in events(run), "all ranks save")
    wait_under_way(run, attempt=2)
    with pytest.raises(UserError, match=f"has job {job_id} already"):
        submit_job(run, load_cluster("lab"), nodes=2, gpus=2, name="again")
    assert wait_ended(run) == "done"
    told = [e for e in events(run) if e != "checkpoint"]
    assert told == ["start", "preempt", "resume", "done"]
    assert run_status(run).job_ids == (job_id,), "the same job, requeued"
    assert weights(run) == weights(undisturbed)


def test_killed_rank_fails_the_job_fast_and_the_next_submission_resumes(tmp_path, data, undisturbed):
    run = submit(tmp_path, data)
    wait(run, lambda: (run / "events.jsonl").exists() and "checkpoint" in events(run), "a checkpoint")
    rank_process(run, 3).kill()
    wait(run, lambda: ledger.alive(run) is None, "the other ranks end", sec=90)
    assert run_status(run).state == "failed"
    assert submit(tmp_path, data) == run
    assert wait_ended(run) == "done"
    told = [e for e in events(run) if e not in ("checkpoint", "failed")]
    assert told == ["start", "watchdog", "resume", "done"]
    assert len(run_status(run).job_ids) == 2
    assert weights(run) == weights(undisturbed)


def test_cancelled_run_is_saved_and_not_requeued(tmp_path, data):
    run = submit(tmp_path, data)
    wait_under_way(run)
    cancel(run)
    assert wait_ended(run) == "stopped"
    time.sleep(2)
    assert ledger.alive(run) is None
    with pytest.raises(UserError, match="no live job"):
        cancel(run)


JOIN = """
import json, os, socket
from jobs.world import join
w = join()
host = socket.gethostname(), os.environ["SLURM_NODEID"]
print(json.dumps([w.rank, w.size, w.local_rank, w.local_size, w.launcher, host, os.environ["MASTER_PORT"]]))
"""


@pytest.mark.parametrize("tasks", [4, 3])
def test_plain_srun_is_joined_even_when_tasks_are_spread_unevenly(tasks):
    srun = ["srun", "--nodes=2", f"--ntasks={tasks}", sys.executable, "-c", JOIN]
    done = subprocess.run(srun, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    ranks = sorted(json.loads(line) for line in done.stdout.splitlines())
    assert [(rank, size, launcher) for rank, size, _, _, launcher, _, _ in ranks] == [
        (rank, tasks, "srun") for rank in range(tasks)
    ]
    hosts = [tuple(host) for *_, host, _ in ranks]
    assert len(set(hosts)) == 2
    assert [local_size for _, _, _, local_size, *_ in ranks] == [hosts.count(host) for host in hosts]
    assert len({port for *_, port in ranks}) == 1


def test_batch_script_without_srun_is_refused(tmp_path):
    out = tmp_path / "out"
    wrap = f"--wrap={shlex.join([sys.executable, '-c', JOIN])}"
    done = subprocess.run(["sbatch", "--wait", "--ntasks=2", f"--output={out}", wrap], capture_output=True)
    assert done.returncode == 1
    assert "SLURM_NTASKS=2, but this process was not started by srun" in out.read_text()


def test_sbatch_accepts_the_file_of_a_dry_run(tmp_path):
    cluster, file = load_cluster("lab"), tmp_path / "job.sh"
    for request in (None, "gres", "gpus_per_node"):
        shown = cluster.replace(gpu_request=request, additional_parameters={"comment": "a b"})
        file.write_text(sbatch_text(tmp_path, shown, nodes=2, gpus=2, name="x"))
        done = subprocess.run(["sbatch", "--test-only", file], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "to start at" in done.stderr


def test_unknown_partition_is_refused_in_one_line(tmp_path):
    cluster = load_cluster("lab").replace(partition="moon")
    with pytest.raises(UserError, match=r"sbatch refused the job: .*invalid partition") as e:
        submit_job(tmp_path, cluster, nodes=1, gpus=1, name="x")
    assert "\n" not in str(e.value)
