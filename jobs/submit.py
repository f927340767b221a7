"""Submission through submitit: the callable that a job runs, and what is submitted together.

A run with a live job is refused. A run may have successors, queued behind it on a cluster where jobs cannot put
themselves back into the queue; several runs may be one array. Deliberately knows nothing of training beyond
`train_folder(folder, should_stop) -> "done" | "stopped"`.
"""

import shutil
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs import ledger
from jobs.cluster import Cluster
from jobs.executors import asking, executor_for
from jobs.ledger import Submission
from jobs.preempt import StopFlag, install, requeue
from jobs.status import is_done
from jobs.world import join
from pipeline.errors import UserError, WorkError

if TYPE_CHECKING:
    import submitit

CODE = "code"  # the snapshot in the folder of a submission
Work = Callable[[int, int], "TrainJob"]  # place in a chain of jobs, successors of its first one -> what it runs


class TrainJob:
    """What a job runs on every rank: train a run folder until done, or stopped and queued again.

    `place` in a chain of 1 + `successors` jobs of this run: 0 is the first one.
    """

    def __init__(self, folder: Path, nodes: int, gpus: int, place: int = 0, successors: int = 0):
        self.folder, self.nodes, self.gpus = str(folder), nodes, gpus
        self.place, self.successors = place, successors

    def __call__(self) -> str:
        flag = install(self.successors - self.place)
        if self.place and is_done(Path(self.folder)):
            print("the run is done: nothing is left to this successor", flush=True)
            return "done"
        world = join(self.nodes, self.gpus)
        outcome = self.train(flag)
        if outcome == "stopped":
            requeue(flag, world.rank)
        return outcome

    def train(self, should_stop: StopFlag) -> str:
        from pipeline.run import train_folder

        return train_folder(Path(self.folder), should_stop=should_stop)

    def checkpoint(self) -> Any:
        """Called by submitit when it requeues; the run folder is all there is to know."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def check_cluster(cluster: Cluster, nodes: int) -> None:
    """Refuse what this cluster cannot do from here, before anything is written."""
    if cluster.executor == "slurm" and shutil.which("sbatch") is None:
        raise UserError("cluster: sbatch is not on PATH; use --cluster local, or submit from the login node")
    if cluster.executor == "local" and nodes > 1:
        raise UserError(
            f"nodes={nodes}: cluster {cluster.name!r} is this one machine; use --nodes 1 or a Slurm cluster"
        )


def check_free(folder: Path) -> None:
    """Refuse a run that a job is working on, before anything of it is touched."""
    if found := ledger.alive(folder):
        entry, state = found
        raise UserError(
            f"run={str(folder)!r} has job {entry.job_id} already ({state.lower()} on {entry.cluster}); "
            "wait for it, or graticule cancel it first"
        )


def submit(folder: Path, cluster: Cluster, *, nodes: int, gpus: int, name: str) -> "submitit.Job[str]":
    """Queue a run, or start it on this machine in the background. UserError when that cannot work."""
    folder = folder.resolve()
    check_cluster(cluster, nodes)
    check_free(folder)
    return submit_chain(folder, cluster, partial(TrainJob, folder, nodes, gpus), nodes=nodes, gpus=gpus, name=name)


def submit_chain(
    folder: Path, cluster: Cluster, work: Work, *, nodes: int, gpus: int, name: str
) -> "submitit.Job[str]":
    """Queue a job that writes down what it is in `folder`/jobs, and its successors where the cluster has any."""
    number = ledger.claim(folder)
    place = ledger.number_folder(folder, number)
    code = snapshot(place)
    executor = executor_for(place, cluster, nodes, gpus, name, code=code)
    with asking(cluster):
        job = executor.submit(work(0, cluster.successors))
    first = record_job(folder, number, job, cluster, nodes, gpus)
    _queue_successors(folder, first, cluster, name, code, work)
    return job


def submit_array(
    folders: Sequence[Path], cluster: Cluster, *, nodes: int, gpus: int, name: str, parallelism: int | None = None
) -> "list[submitit.Job[str]]":
    """Queue several runs of one folder as one array, of which at most `parallelism` run at a time; None: all.

    One run is an ordinary submission. Each is preempted, requeued, cancelled and resumed by itself. On this machine,
    which has no queue, each waits for those before it to end, well or not; parallelism is refused there.
    """
    folders = [folder.resolve() for folder in folders]
    check_array(folders, cluster, nodes, parallelism)
    if len(folders) == 1:
        return [submit(folders[0], cluster, nodes=nodes, gpus=gpus, name=name)]
    for folder in folders:
        check_free(folder)
    place = ledger.claim_array(folders[0].parent)
    code = snapshot(place)
    numbers = [ledger.claim(folder, place) for folder in folders]
    work = [TrainJob(folder, nodes, gpus, 0, cluster.successors) for folder in folders]
    if cluster.executor == "local":
        return _one_after_the_other(place, cluster, name, code, list(zip(folders, numbers, work, strict=True)))
    executor = executor_for(place, cluster, nodes, gpus, name, code=code)
    executor.update_parameters(array_parallelism=parallelism or len(folders))
    with asking(cluster):
        jobs = executor.submit_array(work)
    firsts = [record_job(f, n, job, cluster, nodes, gpus) for f, n, job in zip(folders, numbers, jobs, strict=True)]
    for folder, first in zip(folders, firsts, strict=True):
        _queue_successors(folder, first, cluster, name, code, partial(TrainJob, folder, nodes, gpus))
    return jobs


def check_array(folders: Sequence[Path], cluster: Cluster, nodes: int, parallelism: int | None) -> None:
    """Refuse what cannot be one array, before anything is written."""
    check_cluster(cluster, nodes)
    if len(set(folders)) < len(folders) or len({folder.parent for folder in folders}) != 1:
        raise UserError("an array needs different runs of one folder; leave out what is named twice")
    _check_parallelism(cluster, parallelism)


def _check_parallelism(cluster: Cluster, parallelism: int | None) -> None:
    if parallelism is not None and cluster.executor == "local":
        raise UserError(
            f"parallel={parallelism}: cluster {cluster.name!r} is this one machine, which trains one run after the "
            "other; leave --parallel out"
        )


def _one_after_the_other(
    place: Path, cluster: Cluster, name: str, code: Path, work: list[tuple[Path, int, TrainJob]]
) -> "list[submitit.Job[str]]":
    jobs: list[Any] = []
    for folder, number, job in work:
        before = tuple(earlier.job_id for earlier in jobs)
        executor = executor_for(place, cluster, job.nodes, job.gpus, name, code=code, after=before)
        with asking(cluster):
            jobs.append(executor.submit(job))
        record_job(folder, number, jobs[-1], cluster, job.nodes, job.gpus, after=before)
    return jobs


def snapshot(place: Path) -> Path:
    """Copy this project's code into the folder of a submission; the folder to import it from."""
    from pipeline.provenance import snapshot_code

    try:
        snapshot_code(place)
    except OSError as e:
        raise WorkError(f"{place}: the code cannot be copied there ({e.strerror or e}); nothing was submitted") from e
    return place / CODE


def record_job(
    folder: Path,
    number: int,
    job: Any,
    cluster: Cluster,
    nodes: int,
    gpus: int,
    after: Sequence[str] = (),
    *,
    several: bool = False,
    began: float | None = None,
) -> Submission:
    """Write down that this job, submitted at `began` or now, works on the run in `folder`; `several`: on others too."""
    host, now = socket.gethostname(), began or time.time()
    entry = Submission(number, job.job_id, cluster.executor, cluster.name, host, now, nodes, gpus, after, several)
    ledger.record(folder, entry)
    return entry


def _queue_successors(folder: Path, first: Submission, cluster: Cluster, name: str, code: Path, work: Work) -> None:
    """Jobs of the same work, each of which starts only if all before it failed."""
    ids = [first.job_id]
    for place in range(1, cluster.successors + 1):
        number = ledger.claim(folder)
        where = ledger.number_folder(folder, number)
        executor = executor_for(where, cluster, first.nodes, first.gpus, name, code=code, after=ids)
        try:
            with asking(cluster):
                job = executor.submit(work(place, cluster.successors))
        except UserError as e:
            raise UserError(f"{e}; job {ids[0]} is queued with {place - 1} of {cluster.successors} successors") from e
        record_job(folder, number, job, cluster, first.nodes, first.gpus, after=tuple(ids))
        ids.append(job.job_id)


def sbatch_text(folder: Path, cluster: Cluster, *, nodes: int, gpus: int, name: str) -> str:
    """The file that `submit` would give to sbatch, or what it would start here. Changes nothing."""
    folder = folder.resolve()
    return shown(ledger.number_folder(folder, ledger.next_number(folder)), cluster, nodes, gpus, name)


def array_text(
    folders: Sequence[Path], cluster: Cluster, *, nodes: int, gpus: int, name: str, parallelism: int | None = None
) -> str:
    """The same for `submit_array`."""
    if len(folders) == 1:
        return sbatch_text(folders[0], cluster, nodes=nodes, gpus=gpus, name=name)
    _check_parallelism(cluster, parallelism)
    place = ledger.array_folder(folders[0].resolve().parent)
    more = {"map_count": len(folders), "array_parallelism": parallelism or len(folders)}
    tasks = "".join(f"# {i}: {folder}\n" for i, folder in enumerate(folders))
    return shown(place, cluster, nodes, gpus, name, **more) + tasks


def shown(place: Path, cluster: Cluster, nodes: int, gpus: int, name: str, **more: int) -> str:
    """The file that sbatch would be given for a submission in `place`, or what would be started here."""
    missing = [p for p in (place, *place.parents) if not p.exists()]  # deepest first
    executor = executor_for(place, cluster, nodes, gpus, name, code=place / CODE)
    for made in filter(Path.exists, missing):  # by submitit's constructor
        made.rmdir()
    command = executor._submitit_command_str
    if cluster.executor == "local":
        return f"# {gpus} processes on this machine, logs in {place}, each running:\n{command}\n"
    executor.parameters.update(more)
    text = executor._make_submission_file_text(command, uid="")
    if cluster.successors:
        text += f"# and {cluster.successors} successors of it, with --dependency=afternotok on all before them\n"
    return text
