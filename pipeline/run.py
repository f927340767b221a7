"""The composition root: the table of contents of the project.

`plan_run` makes a run's folder from a recipe's configuration and a prepared data set; `train_folder` trains what
a folder describes, on one rank or many, from its newest valid checkpoint. Everything else is wired here and
defined elsewhere.
"""

import json
import os
import platform
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from pydantic import field_validator
from torch import nn

from pipeline.chance import key
from pipeline.config import Config, fingerprint, write_atomic
from pipeline.data.feed import batches, check_sets, is_url, manifest_of
from pipeline.plan import ExecConfig, RunConfig, check, check_data, dataset_id, run_name
from pipeline.spec import UserError
from pipeline.synthesis.sample import generate, grid, save_png
from pipeline.tracking import console, jsonl
from pipeline.tracking.mirror import Mirror
from pipeline.tracking.system import system_metrics
from pipeline.training import checkpoint
from pipeline.training.engine import Engine
from pipeline.training.loop import Outcome, Outlets, Schedule, Training, train

PACKAGES = (
    "torch",
    "accelerate",
    "numpy",
    "webdataset",
    "mlflow",
    "submitit",
    "safetensors",
    "simplejpeg",
    "pillow",
)
GRID_SEEDS = range(16)  # fixed latents of the sample grids


class Launch(Config):
    """exec.json: how the newest attempt is executed, and where its data lie."""

    exec: ExecConfig
    data: tuple[str, ...]  # folders or URLs

    @field_validator("data", mode="before")
    @classmethod
    def _one_set(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


Data = str | Path | Sequence[str | Path]  # one prepared set or several


def sets_of(data: Data) -> tuple[str, ...]:
    """Prepared sets as a run records them: absolute folders, URLs as they are."""
    several = [data] if isinstance(data, str | Path) else data
    return tuple(str(s) if is_url(str(s)) else str(Path(s).absolute()) for s in several)


def resolve(run: RunConfig, exec_: ExecConfig, data: Data, *, full: bool = True) -> RunConfig:
    """The run on these sets: its dataset_id filled in, everything checked that can be without training.

    With full=False no shard is looked at, which on a cluster's file system takes its time.
    """
    check(run, exec_)
    sets = sets_of(data)
    check_sets(sets, run.data, exec_.reader)
    manifests = [manifest_of(one, full=full) for one in sets]
    check_data(run, exec_, sets, manifests)
    return run.replace(data=run.data.replace(dataset_id=dataset_id(sets, manifests)))


def folder_of(run: RunConfig, exec_: ExecConfig, data: Data, runs: Path) -> Path:
    """Where this run lives, or will. Writes nothing, and looks at no shard."""
    return runs.absolute() / run_name(resolve(run, exec_, data, full=False))


def plan_run(
    run: RunConfig, exec_: ExecConfig, data: Data, runs: Path, overrides: list[str], *, full: bool = True
) -> Path:
    """Make, or find, the run's folder. Raises UserError in one line; nothing is written in that case.

    Of the ranks of a job that all call it, one with full=True is enough.
    """
    run = resolve(run, exec_, data, full=full)
    folder = runs.absolute() / run_name(run)
    launch = Launch(exec=exec_, data=sets_of(data))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "config.json").exists():
            write_atomic(folder / "config.json", run.to_json())
            write_atomic(folder / "overrides", "".join(f"{o}\n" for o in overrides))
        write_atomic(folder / "exec.json", launch.to_json())
    except OSError as e:
        raise UserError(
            f"runs={str(runs)!r} cannot be written ({e.strerror}); choose another folder with --runs"
        ) from e
    if read_run(folder) != run:
        raise UserError(f"{folder / 'config.json'} was changed since the run began; move the folder away or restore it")
    return folder


def read_run(folder: Path) -> RunConfig:
    """A folder's RunConfig; UserError when it is no run."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"run={str(folder)!r} has no config.json: not a run folder (`graticule status` lists runs)")
    return RunConfig.from_json(path.read_text(), where=str(path))


def model_name(run: RunConfig) -> str:
    """The default name in the registry, which allows no dots."""
    return run.recipe.replace(".", "-")


def newest_checkpoint(folder: Path) -> Path:
    """The newest valid checkpoint of a run; UserError when there is none."""
    found, passed = checkpoint.newest_valid(folder / "checkpoints")
    if found is None:
        detail = f" ({'; '.join(passed)})" if passed else ""
        raise UserError(f"run={str(folder)!r} has no valid checkpoint yet{detail}; train it first")
    return found


def train_folder(folder: Path, *, should_stop: Callable[[], bool]) -> Outcome:
    """Train, or go on training, the run in this folder on this rank; all ranks of the job call it."""
    run = read_run(folder)
    launch = Launch.from_json((folder / "exec.json").read_text(), where=str(folder / "exec.json"))
    check(run, launch.exec)
    engine = Engine(run.precision, launch.exec.world())
    failed = True
    try:
        outcome = _train(folder, run, launch, engine, should_stop)
        failed = False
        return outcome
    finally:
        engine.close(failed=failed)


def _train(folder: Path, run: RunConfig, launch: Launch, engine: Engine, should_stop: Callable[[], bool]) -> Outcome:
    exec_, sets = launch.exec, launch.data
    engine.on_main(lambda: check_data(run, exec_, sets, [manifest_of(one) for one in sets]))
    torch.manual_seed(key(run.seed, "init") >> 65)
    family = run.family.build(run.seed)
    training = Training(family, engine)
    checkpoints = folder / "checkpoints"
    found, passed = engine.on_main(lambda: checkpoint.newest_valid(checkpoints))
    if found is None and passed:
        raise UserError(f"{checkpoints} holds no valid checkpoint ({'; '.join(passed)}); move it away to start anew")
    if found is not None:
        training.restore(checkpoint.load(found, fingerprint(run)))

    log = RunLog(folder, run, exec_, engine)
    for problem in passed:
        log.event("passed over", training.nimg, checkpoint=problem)
    stream = batches(
        sets,
        run.data,
        reader=exec_.reader,
        seed=run.seed,
        nimg=training.nimg,
        batch_size=run.batch_size,
        slices=exec_.slices(run, engine.rank),
        rank=engine.rank,
        world=engine.world,
        workers=exec_.workers,
    )
    log.start(training.nimg)
    schedule = Schedule(
        seed=run.seed,
        batch_size=run.batch_size,
        total_kimg=run.total_kimg,
        status_kimg=exec_.status_kimg,
        sample_kimg=exec_.sample_kimg,
        checkpoint_kimg=exec_.checkpoint_kimg,
        keep=exec_.keep,
        slices=exec_.slices(run, engine.rank),
        checkpoints=checkpoints,
        fingerprint=fingerprint(run),
    )
    outlets = Outlets(log.metrics, log.sample, log.event)
    outcome: Outcome = "stopped"
    try:
        outcome = train(training, stream, engine, schedule, should_stop=should_stop, outlets=outlets)
        return outcome
    finally:
        stream.close()  # ends its threads
        log.close(final=outcome == "done")


class RunLog:
    """What rank 0 writes of a run: metrics.jsonl, events.jsonl, samples/, environment.json; and their mirror."""

    def __init__(self, folder: Path, run: RunConfig, exec_: ExecConfig, engine: Engine):
        self.folder, self.run, self.engine, self.exec = folder, run, engine, exec_
        self.attempt, self._mirror = 0, None
        self.sizes = run.family.sizes()

    def start(self, nimg: int) -> None:
        hosts = self.engine.gather(socket.gethostname())
        self.engine.on_main(lambda: self._start(nimg, sorted(set(hosts))))

    def _start(self, nimg: int, hosts: list[str]) -> None:
        events = jsonl.read(self.folder / "events.jsonl")
        self.attempt = 1 + sum(e["event"] in ("start", "resume") for e in events)
        (self.folder / "samples").mkdir(exist_ok=True)
        write_atomic(self.folder / "environment.json", json.dumps(environment(self.engine, hosts), indent=2) + "\n")
        facts = {"world": self.engine.world, "host": ", ".join(hosts), "job_id": job_id()}
        self.event("resume" if self.attempt > 1 else "start", nimg, **facts)
        print(
            f"{self.folder.name}: attempt {self.attempt} at kimg {nimg / 1000:g}, {self.engine.world} rank(s)",
            flush=True,
        )
        if self.exec.track:
            self._mirror = Mirror(self.folder)
            self._mirror.start()

    def metrics(self, nimg: int, values: Mapping[str, float]) -> None:
        device = self.engine.device
        system = system_metrics(device.index if device.type == "cuda" else None)
        record = {"nimg": nimg, "time": time.time(), "attempt": self.attempt, "metrics": {**values, **system}}
        jsonl.append(self.folder / "metrics.jsonl", record)
        print(console.tick(record, self.run.total_kimg), flush=True)

    def event(self, name: str, nimg: int, **facts: object) -> None:
        if self.engine.is_main:
            record = {"time": time.time(), "nimg": nimg, "attempt": self.attempt, "event": name, **facts}
            jsonl.append(self.folder / "events.jsonl", record)

    def sample(self, nimg: int, G_ema: nn.Module) -> None:
        for h, w in self.sizes:
            path = self.folder / "samples" / f"{nimg:012d}-{h}x{w}.png"
            save_png(path, grid(generate(G_ema, GRID_SEEDS, (h, w))))

    def close(self, *, final: bool) -> None:
        if self._mirror is not None:
            self._mirror.close(final=final)


def job_id() -> str:
    """Of the scheduler, or of submitit's local controller; empty where nobody queued this process."""
    return os.environ.get("SLURM_JOB_ID") or os.environ.get("SUBMITIT_LOCAL_JOB_ID", "")


def environment(engine: Engine, hosts: list[str]) -> dict[str, object]:
    """What this attempt runs on; what cannot be found out is left out."""
    out: dict[str, object] = {"python": platform.python_version(), "hosts": hosts, "world": engine.world}
    for name in PACKAGES:
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    out["device"] = torch.cuda.get_device_name(engine.device) if engine.device.type == "cuda" else platform.processor()
    out["job_id"] = job_id()
    repository = Path(__file__).resolve().parent.parent
    for name, command in {"git_sha": ["rev-parse", "HEAD"], "git_diff": ["diff", "HEAD"]}.items():
        try:
            done = subprocess.run(["git", "-C", str(repository), *command], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            out[name] = done.stdout.strip()[:200_000]
    return out
