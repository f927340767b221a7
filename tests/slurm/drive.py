"""Runs on the lab cluster, steered from outside as users, administrators and power cuts steer them."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from jobs import ledger
from jobs.cluster import Cluster, load_cluster
from jobs.status import logs, run_status
from jobs.submit import submit
from pipeline.plan import ExecConfig, override_all
from pipeline.recipes import find
from pipeline.run import plan_run
from tests.runs import MSPIE, SMALL, assert_bitwise_equal, final_state

TOTAL_KIMG = 0.36  # 30 iterations, some seconds: time enough to act
SETS = [*SMALL[MSPIE], f"total_kimg={TOTAL_KIMG}", "exec.status_kimg=0.024", "exec.checkpoint_kimg=0.12"]
SETS += ["exec.sample_kimg=100", "exec.track=false", "exec.workers=0"]
LAB_SH = Path(__file__).resolve().parents[2] / "slurm" / "lab.sh"
PATIENCE_SEC = 150  # for what takes 15 s on two quiet cores


def lab_cluster(**changes: Any) -> Cluster:
    """The lab, with room for several jobs on a node."""
    return load_cluster("lab").replace(mem_gb=1, **changes)


class LabRun:
    """One small run on the cluster: started, disturbed, watched."""

    def __init__(self, runs: Path, data: Path, *sets: str):
        self.runs, self.data, self.sets = runs, data, sets
        self.folder = Path()

    def submit(self, nodes: int = 2, gpus: int = 1, cluster: Cluster | None = None) -> str:
        """Queue it, or queue it again; the job's id."""
        shape = [f"exec.nodes={nodes}", f"exec.gpus={gpus}"]
        run, exec_ = override_all(find(MSPIE).make().tiny(), ExecConfig(), [*SETS, *self.sets, *shape])
        self.folder = plan_run(run, exec_, self.data, self.runs, list(self.sets))
        return submit(self.folder, cluster or lab_cluster(), nodes=nodes, gpus=gpus, name="x").job_id

    @classmethod
    def of(cls, folder: Path) -> "LabRun":
        """A run that was submitted already."""
        run = cls(folder.parent, Path())
        run.folder = folder
        return run

    # --- what it does
    def events(self, *names: str) -> list[dict[str, Any]]:
        """Of these names, or all."""
        path = self.folder / "events.jsonl"
        found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [event for event in found if event["event"] in names or not names]

    def story(self) -> list[str]:
        """Names of all events but checkpoints; those of a stop with their cause."""
        told = (f"{e['event']}: {e['cause']}" if "cause" in e else e["event"] for e in self.events())
        return [name for name in told if name != "checkpoint"]

    def lines(self, attempt: int = 1) -> int:
        """Lines of metrics of an attempt."""
        path = self.folder / "metrics.jsonl"
        records = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
        return sum(record["attempt"] == attempt for record in records)

    def process(self, rank: int) -> psutil.Process | None:
        """From the lab every process of every node is visible."""
        job_id = self.job_id
        for pid in psutil.pids():
            try:
                process = psutil.Process(pid)
                env, command = process.environ(), process.cmdline()
            except psutil.Error:
                continue
            ours = env.get("SLURM_JOB_ID") == job_id and "SLURM_STEP_ID" in env
            python = "submitit.core._submit" in command and Path(command[0]).name != "bash"  # waiting for it
            if ours and env.get("SLURM_PROCID") == str(rank) and python:
                return process
        return None

    def restarts(self) -> int:
        """How often Slurm requeued the newest job."""
        return int(slurm("squeue", "--noheader", "--states=all", "--Format=RestartCnt", f"--jobs={self.job_id}"))

    def hosts(self) -> str:
        """Of the newest job, as Slurm writes them."""
        return slurm("squeue", "--noheader", "--format=%N", f"--jobs={self.job_id}").strip()

    @property
    def job_id(self) -> str:
        """The newest submission's."""
        return ledger.submissions(self.folder)[-1].job_id

    # --- waiting for it
    def wait(
        self, condition: Callable[[], object], what: str, sec: float = PATIENCE_SEC, pause_sec: float = 0.02
    ) -> None:
        """Until it is so; AssertionError with the ends of all logs if the job ends before, or after so long."""
        deadline, look = time.monotonic() + sec, 0.0
        while not condition():
            now = time.monotonic()
            if now > deadline or (now > look and ledger.alive(self.folder) is None and not condition()):
                why = f"not within {sec} s" if now > deadline else "job ended before"
                raise AssertionError(f"{why}: {what}; {run_status(self.folder)}\n{self.papers()}")
            look = max(look, now + 1) if now > look else look
            time.sleep(pause_sec)

    def wait_for(self, event: str, times: int = 1) -> None:
        self.wait(lambda: len(self.events(event)) >= times, f"{event} in events.jsonl, {times} times")

    def wait_under_way(self, attempt: int = 1) -> None:
        self.wait(lambda: self.lines(attempt) >= 2, f"attempt {attempt} trains")

    def end(self, sec: float = PATIENCE_SEC) -> str:
        """Wait until no job of it is left; its state."""
        self.wait(lambda: ledger.alive(self.folder) is None, "no job is left in Slurm", sec)
        return run_status(self.folder).state

    def papers(self) -> str:
        """Events, the queue, and the ends of all logs."""
        queue = subprocess.getoutput(
            "squeue --states=all --Format=JobArrayID,State,Reason,NodeList,RestartCnt | tail -5"
        )
        texts = [f"== {p}\n{p.read_text()[-1500:]}" for p in logs(self.folder)]
        return "\n".join([*map(str, self.events()), queue, *texts])

    # --- what is done to it
    def signal(self, name: str, *options: str) -> None:
        """Through Slurm, to all processes of the step; with --full to the batch script too."""
        slurm("scancel", *options, f"--signal={name}", self.job_id)

    def assert_ends_like(self, other: "LabRun") -> None:
        """To the end, in the very bits: G, D, G_ema and both optimizers."""
        assert self.end() == "done", self.papers()
        ends = [max(run.folder.glob("checkpoints/[0-9]*")).name for run in (self, other)]
        assert ends == [f"{round(TOTAL_KIMG * 1000):012d}"] * 2
        assert_bitwise_equal(final_state(other.folder), final_state(self.folder))

    def compare(self, other: "LabRun") -> None:
        a, b = final_state(other.folder), final_state(self.folder)
        for name in a:
            print(name, float((a[name].double() - b[name].double()).norm()), float(a[name].double().norm()))

    def clear(self) -> None:
        """Leave no job behind."""
        places = (self.folder, self.folder / ledger.EVALUATION)
        ids = [entry.job_id for place in places for entry in ledger.submissions(place)]
        if ids:
            subprocess.run(["scancel", *ids], check=False, stderr=subprocess.DEVNULL)
            deadline = time.monotonic() + 30
            while any(ledger.live(place) for place in places) and time.monotonic() < deadline:
                time.sleep(0.1)


def slurm(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def node(verb: str, name: str) -> None:
    """kill-node or start-node."""
    subprocess.run([str(LAB_SH), verb, name], check=True, timeout=60)
