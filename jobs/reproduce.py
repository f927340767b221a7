"""A table's runs as an array of jobs, each of which trains its share of them, and measures what the table asks for.

Run folders are ordinary ones: what is done is left alone, what was stopped goes on, and the same command again submits
what is neither done nor at work. Done is what is trained and measured. Knows nothing of what a table shows.
"""

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from jobs import ledger
from jobs.cluster import Cluster
from jobs.evaluate import UNMEASURED, check_metrics
from jobs.executors import asking, executor_for
from jobs.several import TrainSeveral, failures
from jobs.status import is_done
from jobs.submit import check_cluster, record_job, shown, snapshot
from pipeline.data.manifest import INDEX, MANIFEST
from pipeline.errors import UserError, WorkError
from pipeline.evaluation import Question, lacking
from pipeline.tables import book
from pipeline.tables.given import folders_of, sets_given
from pipeline.tables.measured import state_of
from pipeline.tables.table import DataSet, Form, Row, Table
from pipeline.tracking import jsonl

if TYPE_CHECKING:
    import submitit

POLL_SEC = (0.5, 10.0)  # between looks at the runs and the queue: at first, and in the long run
Progress = Callable[[str], contextlib.AbstractContextManager[Callable[[int, int], None]]]


# --- data


def prepare_sets(sets: Sequence[DataSet], root: Path, workers: int, progress: Progress) -> None:
    """Make those that are missing; a set that is there already is left as it is, a half-made one is finished.

    `progress(name)`: a context manager around the making of a set, which gives a callable (done, total).
    """
    from dataprep.sources import open_source
    from dataprep.transform import Transform
    from dataprep.writer import prepare_all

    for one in sets:
        origin = open_source(one.source, None, one.split)
        how = {root / one.folder: Transform(size_px=one.size_px, crop=origin.crop)}
        with progress(f"prep {one.folder}") as told:
            prepare_all(origin, how, split=one.split, workers=workers, progress=told)


def is_there(folder: Path) -> bool:
    """Is a prepared set whole?"""
    return all((folder / name).is_file() for name in (MANIFEST, INDEX))


def sets_of(rows: Sequence[Row]) -> list[DataSet]:
    """All that the rows need and that can be made here, each once."""
    return list(dict.fromkeys(one for row in rows if row.data for one in (row.data, *row.validation)))


# --- planning


@dataclass(frozen=True)
class Plan:
    """What there is to do: the run folder of each (row, seed), several of which may share one."""

    table: Table
    form: Form
    runs: Path
    folders: Mapping[tuple[str, int], Path]
    gpus: int
    questions: Mapping[Path, Question] = field(default_factory=dict)  # asked of a run once it is trained
    _finished: set[Path] = field(default_factory=set, compare=False)  # found done: to ask reads every checkpoint

    def unique(self) -> list[Path]:
        """Run folders in the table's order."""
        return list(dict.fromkeys(self.folders.values()))

    def at_work(self) -> set[Path] | None:
        """Those that a queued or running job has, done or not; None if Slurm does not answer."""
        entries = [entry for folder in self.unique() for entry in ledger.submissions(folder)]
        slurm = ledger.queue() if any(e.executor == "slurm" for e in entries) else {}
        return None if slurm is None else {f for f in self.unique() if ledger.alive(f, slurm)}

    def states(self) -> dict[Path, str]:
        """done, failed, at work, left; "at work" also while its job is at another run."""
        busy, out = self.at_work() or set(), {}
        for folder in self.unique():
            state = "done" if self.is_done(folder) else "failed" if self.failure(folder) else ""
            out[folder] = state or ("at work" if folder in busy else "left")
        return out

    def is_done(self, folder: Path) -> bool:
        """Trained, and nothing is lacking of what is asked."""
        if folder not in self._finished and is_done(folder):
            if not (folder in self.questions and lacking(folder, self.questions[folder])):
                self._finished.add(folder)
        return folder in self._finished

    def failure(self, folder: Path) -> str:
        """The error of its training or evaluation, where nothing was tried since; "" if there is none."""
        state, said = state_of(folder)
        if state == "failed":
            return said or "failed"
        return evaluation_failure(folder) if state == "done" else ""

    def todo(self) -> list[Path]:
        """Neither done nor at work; WorkError if that cannot be known."""
        busy = self.at_work()
        if busy is None:
            raise WorkError("some of these runs have jobs, and squeue does not answer; run the command again later")
        return [folder for folder in self.unique() if folder not in busy and not self.is_done(folder)]


def evaluation_failure(folder: Path) -> str:
    """The error of the newest job of a run, if that could not measure it."""
    since = max((entry.time for entry in ledger.submissions(folder)), default=0.0)
    told = [e for e in jsonl.read(folder / jsonl.EVENTS) if e.get("event") == UNMEASURED and e["time"] >= since]
    return f"evaluation: {' '.join(str(told[-1].get('error', '')).split())}" if told else ""


def questions_of(table: Table, form: Form) -> dict[str, Question]:
    """Row -> what is asked of its runs. UserError, before anything is made, where a detector is not there."""
    asked = {row.name: found for row in table.rows(form) if (found := table.asked_of(row, form))}
    made = {name: Question(metrics=a.metrics, sizes=a.sizes, checkpoints=a.checkpoints) for name, a in asked.items()}
    for question in dict.fromkeys(made.values()):
        check_metrics(question)
    return made


def plan(
    table: Table,
    form: Form,
    runs: Path,
    *,
    seeds: Sequence[int],
    data: Sequence[str | Path] = (),
    validation: Sequence[Path] = (),
    root: Path,
    gpus: int | None = None,
    dry: bool = False,
) -> Plan:
    """Make, or find, the folder of every row with every seed, and write the table's file; `dry`: write nothing.

    The data sets are there; `data` is as --data has it, and rows whose set is not given are left out.
    """
    from pipeline.run import folder_of, plan_run

    asked, given = questions_of(table, form), sets_given(table, form, data)
    usual = table.exec_of(form)
    exec_ = usual.replace(gpus=gpus or usual.gpus)
    folders: dict[tuple[str, int], Path] = {}
    questions: dict[Path, Question] = {}
    looked_at: set[object] = set()  # sets whose shards were seen to be there
    for row in table.rows(form):
        ours = [root / row.data.folder] if row.data else folders_of(row, given)
        if ours is None:
            continue
        held_out = [root / one.folder for one in row.validation] if row.data else list(validation)
        for seed in seeds:
            full = (key := tuple(ours + held_out)) not in looked_at
            run = row.run.replace(seed=seed)
            if dry:
                folders[row.name, seed] = folder_of(run, exec_, ours, runs)
                continue
            folders[row.name, seed] = plan_run(run, exec_, ours, runs, [], full=full, validation=held_out)
            looked_at.add(key)
        if row.name in asked:
            questions |= {folders[row.name, seed]: asked[row.name] for seed in seeds}
    if not dry:
        book.write(runs, table, form, folders)
    return Plan(table, form, runs, folders, exec_.gpus, questions)


def check_given(table: Table, form: Form, data: Sequence[str | Path], validation: Sequence[Path]) -> None:
    """Refuse a table without the sets that only the user has, sets that it does not look at, and one without runs."""
    if not table.trains(form):
        raise UserError(f"table={table.name!r} has nothing to train: `graticule report {table.name}` prints it")
    theirs = any(row.data is None for row in table.rows(form))
    if theirs and (
        lacking := ["--data DIR"] * (not data) + ["--validation DIR"] * (not validation and table.validates(form))
    ):
        raise UserError(
            f"table={table.name!r} needs {lacking[0]}: {table.needs or 'prepared sets'} (graticule prep makes them)"
        )
    if theirs and validation and not table.validates(form):
        raise UserError(f"table={table.name!r} measures nothing on held-out images; leave --validation out")
    sets_given(table, form, data)
    if not theirs and (data or validation):
        option = "--data" if data else "--validation"
        raise UserError(f"table={table.name!r} makes its own data sets; leave {option} out, or say --data-root DIR")


# --- submission


def shares(folders: Sequence[Path], jobs: int) -> list[list[Path]]:
    """One list a job, dealt in turn, so that rows of different cost are spread."""
    return [share for i in range(jobs) if (share := list(folders[i::jobs]))]


def jobs_of(cluster: Cluster, wanted: int | None, todo: int) -> int:
    """How many jobs: on this machine one a core, on a cluster one a run, if nothing else is asked for."""
    usual = os.cpu_count() or 1 if cluster.executor == "local" else todo
    return max(1, min(wanted or usual, todo))


def place_of(cluster: Cluster, gpus: int, jobs: int) -> Cluster:
    """The cluster as these jobs want it: on one machine they share its cores."""
    if cluster.successors:
        raise UserError(
            f"cluster={cluster.name!r}: successors={cluster.successors} has no effect on the jobs of a table, which "
            "train several runs each; set it to 0, and run the same command again where a job could not requeue itself"
        )
    if cluster.executor == "local" and cluster.cpus_per_task is None:
        return cluster.replace(cpus_per_task=max(1, (os.cpu_count() or 1) // (gpus * jobs)))
    return cluster


def check_parallel(cluster: Cluster, parallel: int | None) -> None:
    """Refuse a limit where there is no queue."""
    if parallel is not None and cluster.executor == "local":
        raise UserError(
            f"parallel={parallel}: cluster {cluster.name!r} is this one machine, whose jobs all run at a time; give "
            f"--jobs {parallel}"
        )


def submit(
    plan: Plan, cluster: Cluster, *, jobs: int | None = None, parallel: int | None = None
) -> "list[tuple[list[Path], submitit.Job[str]]]":
    """Queue what is neither done nor at work: each share with its job. None where nothing is left."""
    check_cluster(cluster, 1)
    check_parallel(cluster, parallel)
    todo = plan.todo()
    if not todo:
        return []
    count = jobs_of(cluster, jobs, len(todo))
    cluster = place_of(cluster, plan.gpus, count)
    dealt = shares(todo, count)
    place = ledger.claim_array(plan.runs.absolute())
    code = snapshot(place)
    numbers = {folder: ledger.claim(folder, place) for folder in todo}
    executor = executor_for(place, cluster, 1, plan.gpus, plan.table.name, code=code)
    work = [TrainSeveral(share, 1, plan.gpus, plan.questions) for share in dealt]
    if cluster.executor == "slurm":
        executor.update_parameters(array_parallelism=parallel or len(work))
    began = time.time()  # a job may be at work before all are written down
    with asking(cluster):
        submitted = executor.submit_array(work) if len(work) > 1 else [executor.submit(work[0])]
    for share, job in zip(dealt, submitted, strict=True):
        for folder in share:
            record_job(folder, numbers[folder], job, cluster, 1, plan.gpus, several=len(share) > 1, began=began)
    return list(zip(dealt, submitted, strict=True))


def text_of(plan_: Plan, cluster: Cluster, *, jobs: int | None = None, parallel: int | None = None) -> str:
    """What `submit` would give to sbatch, or start here. Changes nothing."""
    todo = plan_.todo()
    if not todo:
        return ""
    count = jobs_of(cluster, jobs, len(todo))
    cluster = place_of(cluster, plan_.gpus, count)
    more = {"map_count": count, "array_parallelism": parallel or count} if count > 1 else {}
    place = ledger.array_folder(plan_.runs.absolute())
    return shown(place, cluster, 1, plan_.gpus, plan_.table.name, **more)


def wait(plan: Plan, progress: Callable[[int, int], None]) -> None:
    """Until no job is at work on any of its runs; WorkError, with the failed ones, unless all are done."""
    total, pause = len(plan.unique()), POLL_SEC[0]
    while True:
        busy = plan.at_work()  # asked first: what ends meanwhile is counted
        states = plan.states()
        progress(list(states.values()).count("done"), total)
        if busy is not None and not busy:
            break
        time.sleep(pause)
        pause = min(pause * 1.2, POLL_SEC[1])
    failed = {str(folder): plan.failure(folder) for folder, state in states.items() if state == "failed"}
    left = [folder for folder, state in states.items() if state not in ("done", "failed")]
    if failed or left:
        said = [f"{len(failed)} of {total} runs failed: {failures(failed)}"] if failed else []
        said += [f"{len(left)} of {total} are not done ({left[0].name}, ...)"] if left else []
        raise WorkError("; ".join(said) + "; the same command again submits them")
