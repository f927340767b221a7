"""submitit's executors as a cluster file wants them: what sbatch is given, what a job's shell does before it starts.

Differs from submitit's own ways: the local executor runs `setup` below its controller, whose pid is the job's id,
and no Slurm is needed to show a submission file. Deliberately knows nothing of what the jobs run.
"""

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jobs.cluster import Cluster
from jobs.preempt import DELAY
from pipeline.errors import UserError


def executor_for(
    place: Path, cluster: Cluster, nodes: int, gpus: int, name: str, *, code: Path, after: Sequence[str] = ()
) -> Any:
    """submitit's executor with files in `place`: a task for each GPU, or one a node if gpus=0.

    `code`: the folder that jobs import this project from. `after`: ids of jobs that must have ended before; with
    Slurm, ended badly, or else the job is dropped.
    """
    if cluster.executor == "local":
        return _local(place, cluster, gpus, name, code, after)
    return _slurm(place, cluster, nodes, gpus, name, code, after)


def _prologue(cluster: Cluster, tasks: int, code: Path) -> list[str]:
    """After the cluster file's own lines, so that nothing is found before `code`; neither is the working folder."""
    return [
        f"export {DELAY}={cluster.signal_delay_s}",
        *cluster.prologue(tasks),
        f"export PYTHONSAFEPATH=1 PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}",
    ]


def _start(python: str) -> str:
    """Signals that come before Python has its handlers are ignored, instead of killing the rank."""
    return f'trap "" USR2 TERM; exec {python} "$@"'


def _start_and_linger(python: str) -> str:
    """The same; a rank that failed or was killed leaves its shell behind for a while.

    srun ends all ranks in the moment in which one ends badly: so the others can say first which one, where, and what
    it did last. 2, 70, 75, 143, 144: ends of all ranks, which have said why.
    """
    ended = "code=$?; case $code in 0|2|70|75|143|144) ;; 1) sleep 10 ;; *) sleep 30 ;; esac; exit $code"
    return f'trap "" USR2 TERM; {python} "$@"; {ended}'


def _local(place: Path, cluster: Cluster, gpus: int, name: str, code: Path, after: Sequence[str]) -> Any:
    from jobs.local import LocalExecutor

    tasks = max(gpus, 1)
    script = ['trap "" USR2', *_prologue(cluster, tasks, code), _start(cluster.python or shlex.quote(sys.executable))]
    python = shlex.join(["bash", "-c", "\n".join(script), name])
    options = {"max_num_timeout": cluster.max_num_timeout, "python": python}
    executor = LocalExecutor(place, code=code, after=after, **options)
    executor.update_parameters(
        tasks_per_node=tasks, timeout_min=cluster.timeout_min, signal_delay_s=cluster.signal_delay_s
    )
    return executor


def _slurm(place: Path, cluster: Cluster, nodes: int, gpus: int, name: str, code: Path, after: Sequence[str]) -> Any:
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
        "setup": ["trap : USR2", *_prologue(cluster, tasks, code)],
        "additional_parameters": {"requeue": True, **cluster.additional_parameters, **_only_after(cluster, after)},
        # a dead rank must not leave the others waiting; since 22.05 a step does not inherit --cpus-per-task
        "srun_args": [
            "--kill-on-bad-exit=1",
            *([f"--cpus-per-task={cpus}"] if cpus else []),
            *cluster.srun_args,
        ],
    }
    start = _start_and_linger if nodes * tasks > 1 else _start
    python = shlex.join(["bash", "-c", start(cluster.python or shlex.quote(sys.executable)), name])
    executor = Executor(place, max_num_timeout=cluster.max_num_timeout, python=python)
    executor.update_parameters(**parameters)
    return executor


def _only_after(cluster: Cluster, jobs: Sequence[str]) -> dict[str, str]:
    """Of all of them, not of the last alone: a job that was dropped counts as one that ended badly."""
    if not jobs:
        return {}
    own = cluster.additional_parameters.get("dependency")
    return {"dependency": f"{own}," * bool(own) + f"afternotok:{':'.join(jobs)}", "kill-on-invalid-dep": "yes"}


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
