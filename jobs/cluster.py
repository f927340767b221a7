"""A cluster as one TOML file: what to ask the scheduler for, and what a job's shell does before it starts.

Every field ends up in the sbatch file or in the local controller's parameters; one without an effect is
refused. Deliberately knows nothing of runs, of submitit, or of how many nodes a run wants.
"""

import os
import shlex
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from pipeline.config import Config, complaint, nearest
from pipeline.errors import UserError

WEEK_MIN = 7 * 24 * 60
SCHEDULER_ONLY = (
    "partition",
    "account",
    "qos",
    "constraint",
    "gpu_request",
    "mem_gb",
    "srun_args",
    "additional_parameters",
    "successors",
    "evaluate",
)
NICE = 10000  # how far behind training an evaluation stands in the queue, if its cluster says nothing else


class Evaluation(Config):
    """What is asked for otherwise when the job is an evaluation: TOML table [evaluate]."""

    partition: str | None = None
    qos: str | None = None
    additional_parameters: dict[str, str | int | bool] = Field(default_factory=dict)  # added to the cluster's own


class Cluster(Config):
    """Where jobs run. TOML keys are these fields."""

    executor: Literal["local", "slurm"]  # local: processes on this machine, no queue
    name: str = ""  # shown by status; the file's name if not given
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpu_request: Literal["gres", "gpus_per_node"] | None = None  # how GPUs are asked for; None: a CPU cluster
    mem_gb: float | None = Field(default=None, gt=0)  # a node
    srun_args: tuple[str, ...] = ()
    additional_parameters: dict[str, str | int | bool] = Field(
        default_factory=dict
    )  # any other sbatch option, without its dashes
    cpus_per_task: int | None = Field(default=None, ge=1)  # a rank, its decoding threads included; sets OMP_NUM_THREADS
    timeout_min: int | None = Field(default=None, ge=1)  # local: a week if not given
    signal_delay_s: int = Field(default=120, ge=1)  # warning before the time limit: one iteration and one checkpoint
    max_num_timeout: int = Field(default=100, ge=0)  # how often a job that reached its time limit is queued again
    successors: int = Field(default=0, ge=0)  # jobs queued behind each run, to go on where a job cannot requeue itself
    setup: tuple[str, ...] = ()  # shell lines before the start: module load, conda activate
    env: dict[str, str] = Field(default_factory=dict)  # exported after `setup`, literally
    evaluate: Evaluation = Evaluation()
    python: str | None = None  # interpreter command, such as "singularity exec IMAGE python"; None: this one

    @field_validator(*SCHEDULER_ONLY)
    @classmethod
    def _only_where_a_scheduler_is(cls, value: Any, info: ValidationInfo) -> Any:
        if value and value != Evaluation() and info.data.get("executor") == "local":
            raise ValueError("has no effect with executor = 'local'; remove it, or set executor = 'slurm'")
        return value

    @field_validator("timeout_min")
    @classmethod
    def _a_limit(cls, value: int | None, info: ValidationInfo) -> int:
        if value is None and info.data.get("executor") == "slurm":
            raise ValueError("a time limit in minutes is needed with executor = 'slurm'; see sinfo")
        return value or WEEK_MIN

    @field_validator("env")
    @classmethod
    def _shell_names(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not name.isidentifier() or not name.isascii():
                raise ValueError(f"{name!r} is not a name that a shell can export; use letters, digits and _")
        return value

    def threads(self, gpus: int) -> int:
        """OMP_NUM_THREADS of one of `gpus` ranks on a node."""
        if self.cpus_per_task:
            return self.cpus_per_task
        return max(1, (os.cpu_count() or 1) // gpus) if self.executor == "local" else 1

    def for_evaluation(self) -> "Cluster":
        """The same cluster as an evaluation asks for it: of low priority, and with what [evaluate] says."""
        if self.executor == "local":
            return self
        own = self.evaluate
        return self.replace(
            partition=own.partition or self.partition,
            qos=own.qos or self.qos,
            additional_parameters={**self.additional_parameters, "nice": NICE, **own.additional_parameters},
            evaluate=Evaluation(),
        )

    def prologue(self, gpus: int) -> list[str]:
        """Shell lines that a job runs before it starts."""
        env = {"OMP_NUM_THREADS": str(self.threads(gpus)), **self.env}
        return [*self.setup, *(f"export {name}={shlex.quote(value)}" for name, value in env.items())]


LOCAL = Cluster(executor="local", name="local")


def load_cluster(name: str) -> Cluster:
    """`local`, a path ending in .toml, or NAME.toml from one of `cluster_folders()`."""
    if name.endswith(".toml"):
        return _read(Path(name))
    found = {path.stem: path for folder in reversed(cluster_folders()) for path in sorted(folder.glob("*.toml"))}
    if name in found:
        return _read(found[name])
    if name == "local":
        return LOCAL
    places = ", ".join(str(folder) for folder in cluster_folders())
    raise UserError(f"cluster={name!r} is unknown; {nearest(name, {*found, 'local'})} (looked in {places})")


def cluster_folders() -> list[Path]:
    """Where NAME.toml is looked up, nearest first."""
    extra = [Path(p) for p in os.environ.get("GRATICULE_CLUSTERS", "").split(os.pathsep) if p]
    own = Path(__file__).resolve().parents[1] / "slurm"
    return [Path("slurm"), *extra, Path.home() / ".config" / "graticule", own]


def _read(path: Path) -> Cluster:
    try:
        return Cluster.model_validate({"name": path.stem, **tomllib.loads(path.read_text())})
    except OSError as e:
        raise UserError(f"cluster={str(path)!r}: {e.strerror}; give a path or a name from slurm/") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: not valid TOML ({e})") from e
    except ValidationError as e:
        raise UserError(f"{path}: {complaint(e, Cluster)}") from e
