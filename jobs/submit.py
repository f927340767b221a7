"""Submission through submitit: the callable that a job runs, the sbatch file, one folder for each submission.

Differs from submitit's own ways: the local executor runs `setup` below its controller (whose pid is the job's
id), no Slurm is needed to show a submission file, and a run with a live job is refused. Deliberately knows
nothing of training beyond `train_folder(folder, should_stop) -> "done" | "stopped"`.
"""

import contextlib
import os
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs import ledger
from jobs.cluster import Cluster
from jobs.ledger import Submission
from jobs.preempt import StopFlag, install, requeue
from jobs.world import join
from pipeline.errors import UserError

if TYPE_CHECKING:
    import submitit


class TrainJob:
    """What a job runs on every rank: train a run folder until done, or stopped and queued again."""

    def __init__(self, folder: Path, nodes: int, gpus: int):
        self.folder, self.nodes, self.gpus = str(folder), nodes, gpus

    def __call__(self) -> str:
        flag = install()
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
    number = ledger.claim(folder)
    executor = executor_for(ledger.number_folder(folder, number), cluster, nodes, gpus, name)
    with asking(cluster):
        job = executor.submit(TrainJob(folder, nodes, gpus))
    host, now = socket.gethostname(), time.time()
    entry = Submission(number, job.job_id, cluster.executor, cluster.name, host, now, nodes, gpus)
    ledger.record(folder, entry)
    return job


def sbatch_text(folder: Path, cluster: Cluster, *, nodes: int, gpus: int, name: str) -> str:
    """The file that `submit` would give to sbatch, or what it would start here. Changes nothing."""
    folder = folder.resolve()
    place = ledger.number_folder(folder, ledger.next_number(folder))
    missing = [p for p in (place, *place.parents) if not p.exists()]  # deepest first
    executor = executor_for(place, cluster, nodes, gpus, name)
    for made in filter(Path.exists, missing):  # by submitit's constructor
        made.rmdir()
    command = executor._submitit_command_str
    if cluster.executor == "slurm":
        return executor._make_submission_file_text(command, uid="")
    return f"# {gpus} processes on this machine, logs in {place}, each running:\n{command}\n"


def executor_for(place: Path, cluster: Cluster, nodes: int, gpus: int, name: str) -> Any:
    """submitit's executor with files in `place`: a task for each GPU, or one a node if gpus=0."""
    if cluster.executor == "local":
        return _local(place, cluster, gpus, name)
    return _slurm(place, cluster, nodes, gpus, name)


def _local(place: Path, cluster: Cluster, gpus: int, name: str) -> Any:
    import submitit

    # submitit's controller hides the GPUs or narrows them to the first few: give back what is visible here
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    see = "unset CUDA_VISIBLE_DEVICES"
    if visible is not None:
        see = f"export CUDA_VISIBLE_DEVICES={shlex.quote(visible)}"
    start = f'exec {cluster.python or shlex.quote(sys.executable)} "$@"'
    # not submitit's `setup`: with a shell above it the controller may take another pid for the job's id
    tasks = max(gpus, 1)
    python = shlex.join(["bash", "-c", "\n".join([see, *cluster.prologue(tasks), start]), name])
    executor = submitit.LocalExecutor(place, max_num_timeout=cluster.max_num_timeout, python=python)
    executor.update_parameters(
        tasks_per_node=tasks, timeout_min=cluster.timeout_min, signal_delay_s=cluster.signal_delay_s
    )
    return executor


def _slurm(place: Path, cluster: Cluster, nodes: int, gpus: int, name: str) -> Any:
    import submitit

    class Executor(submitit.SlurmExecutor):
        """submitit's refuses to exist without Slurm, also when it shall only write the file."""

        @classmethod
        def affinity(cls) -> int:
            return 2

    cpus, tasks = cluster.cpus_per_task, max(gpus, 1)
    parameters = {
        "job_name": name,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "time": cluster.timeout_min,
        "nodes": nodes,
        "ntasks_per_node": tasks,
        "cpus_per_task": cpus,
        "gpus_per_node": gpus if gpus and cluster.gpu_request == "gpus_per_node" else None,
        "gres": f"gpu:{gpus}" if gpus and cluster.gpu_request == "gres" else None,
        "mem": f"{round(cluster.mem_gb * 1024)}M" if cluster.mem_gb else None,
        "wckey": None,  # some sites refuse unknown ones
        "signal_delay_s": cluster.signal_delay_s,
        # the batch shell must outlive a USR2 that reaches the whole job
        "setup": ["trap : USR2", *cluster.prologue(tasks)],
        "additional_parameters": {"requeue": True, **cluster.additional_parameters},
        # a dead rank must not leave the others waiting; since 22.05 a step does not inherit --cpus-per-task
        "srun_args": [
            "--kill-on-bad-exit=1",
            *([f"--cpus-per-task={cpus}"] if cpus else []),
            *cluster.srun_args,
        ],
    }
    executor = Executor(place, max_num_timeout=cluster.max_num_timeout, python=cluster.python)
    executor.update_parameters(**parameters)
    return executor


@contextlib.contextmanager
def asking(cluster: Cluster) -> Iterator[None]:
    """Around a submission: made from outside of any job, and a UserError if sbatch refuses it."""
    from submitit.core.utils import FailedJobError

    try:
        with _outside_of_jobs():
            yield
    except FailedJobError as e:
        said = " ".join(str(e).split())
        raise UserError(f"cluster={cluster.name!r}: sbatch refused the job: {said}") from e


@contextlib.contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Submitting from inside a job or a launcher: hide its variables, but not Slurm's configuration."""
    if not {"SLURM_JOB_ID", "SUBMITIT_EXECUTOR", "RANK"} & os.environ.keys():
        yield
        return
    from submitit.helpers import clean_env

    conf = os.environ.get("SLURM_CONF")
    with clean_env(extra_names=[n for n in os.environ if n.startswith("TORCHELASTIC_")]):
        if conf is not None:
            os.environ["SLURM_CONF"] = conf
        yield
