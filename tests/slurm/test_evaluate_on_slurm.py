"""A run measured on a real Slurm while it trains: behind all else in the queue, killed in the middle, on two nodes."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import ledger
from jobs.cluster import NICE
from jobs.status import cancel, logs, run_status
from pipeline.evaluation import Question, evaluate
from pipeline.evaluation.ledger import measured
from tests.slurm.drive import PATIENCE_SEC, LabRun, slurm

pytestmark = pytest.mark.slurm
METRICS = ("swd64", "spectra1k")


def wait(run: LabRun, condition: Callable[[], object], what: str, pause_sec: float = 0.05) -> None:
    deadline = time.monotonic() + PATIENCE_SEC
    while not condition():
        texts = [f"== {p}\n{p.read_text()[-1500:]}" for p in logs(run.folder / ledger.EVALUATION)]
        assert time.monotonic() < deadline, "\n".join([what, run.papers(), *texts])
        time.sleep(pause_sec)


def blocks(run: LabRun) -> list[Path]:
    """Of fakes."""
    return list((run.folder / ledger.EVALUATION).glob("[0-9]*/*/*/*.safetensors"))


def told_of(job_id: str, name: str) -> str:
    """A fact of a job as scontrol tells it."""
    words = dict(word.split("=", 1) for word in slurm("scontrol", "show", "job", job_id).split() if "=" in word)
    return words[name]


def test_it_runs_beside_training_is_requeued_in_the_middle_and_has_the_numbers_of_one_quiet_process(
    new_run, lab_file, graticule, tmp_path
):
    run = new_run("total_kimg=100", "exec.checkpoint_kimg=0.36")  # longer than the test
    run.submit(nodes=1)
    words = ["evaluate", run.folder, *(w for name in METRICS for w in ("--metric", name)), "--size", 32]
    words += ["--cluster", lab_file, "--nodes", 2, "--follow"]
    code, out, err = graticule(*words)
    assert code == 0, err
    (entry,) = ledger.submissions(run.folder / ledger.EVALUATION)
    assert f"submitted job {entry.job_id}" in out
    assert told_of(entry.job_id, "Nice") == str(NICE)
    assert told_of(run.job_id, "Nice") == "0"
    code, _, err = graticule(*words)
    assert code == 2
    assert f"is being measured by job {entry.job_id} already" in err

    wait(run, lambda: blocks(run), "fakes of the first checkpoint")
    assert run_status(run.folder).state == "running", "training goes on"
    assert run_status(run.folder).evaluation_ids == (entry.job_id,)
    assert run_status(run.folder).job_ids == (run.job_id,)
    slurm("scontrol", "requeue", entry.job_id)
    half = len(blocks(run))
    wait(run, lambda: measured(run.folder), "the first number")
    assert told_of(entry.job_id, "Restarts") == "1"
    assert half < 4, "it was in the middle"

    cancel(run.folder)
    wait(run, lambda: ledger.alive(run.folder / ledger.EVALUATION) is None, "it ends when the run does", 0.5)
    assert told_of(entry.job_id, "JobState") == "COMPLETED"
    assert run.story() == ["start", "preempt: cancelled"]
    found = measured(run.folder)
    newest = max(int(p.name) for p in run.folder.glob("checkpoints/[0-9]*"))
    assert {name for nimg, name in found if nimg == newest} == {f"Metrics/{name}/32px" for name in METRICS}
    assert not blocks(run), "nothing is left of what they were made from"
    records = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert len([r for r in records if "of" in r]) == len(found), "each number once"

    quiet = tmp_path / "quiet" / run.folder.name
    shutil.copytree(run.folder, quiet, ignore=lambda *_: ["metrics.jsonl", "evaluation", "jobs", "inbox"])
    there = {int(p.name) for p in quiet.glob("checkpoints/[0-9]*")}
    kimg = ",".join(f"{nimg / 1000:g}" for nimg in sorted({nimg for nimg, _ in found} & there))
    question = Question(metrics=METRICS, sizes=("32",), checkpoints=kimg, references=str(tmp_path / "references"))
    assert evaluate(quiet, question) == "done"
    alone = measured(quiet)
    assert {key for key in found if key[0] in there} == set(alone)
    assert {key: found[key]["metrics"] for key in alone} == {key: one["metrics"] for key, one in alone.items()}
