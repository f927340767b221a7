"""The composition root: the table of contents of the project.

`plan_run` makes a run's folder from a recipe's configuration and a prepared data set; `train_folder` trains what
a folder describes, on one rank or many, from its newest valid checkpoint. Everything else is wired here and in
attempt.py, and defined elsewhere.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import field_validator

from pipeline.attempt import attempt
from pipeline.config import Config, write_atomic
from pipeline.data.feed import check_sets, is_url, manifest_of
from pipeline.plan import ExecConfig, RunConfig, check, check_data, check_validation, dataset_id, run_name
from pipeline.spec import UserError
from pipeline.training import checkpoint
from pipeline.training.loop import Outcome


class Launch(Config):
    """exec.json: how the newest attempt is executed, and where its data lie."""

    exec: ExecConfig
    data: tuple[str, ...]  # folders or URLs
    validation: tuple[str, ...] = ()  # folders that are measured, not trained on

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


def folder_of(run: RunConfig, exec_: ExecConfig, data: Data, runs: Path, validation: Sequence[Path] = ()) -> Path:
    """Where this run lives, or will. Writes nothing, and looks at no shard; held-out sets are checked, too."""
    run = resolve(run, exec_, data, full=False)
    _held_out(run, validation, full=False)
    return runs.absolute() / run_name(run)


def _held_out(run: RunConfig, validation: Sequence[Path], *, full: bool) -> tuple[str, ...]:
    """Absolute folders of held-out sets that go with the run."""
    held_out = tuple(str(one.absolute()) for one in validation)
    if len({Path(one).name for one in held_out}) < len(held_out):
        raise UserError(f"validation={list(held_out)}: folders of one name; rename one")
    for one in held_out:
        check_validation(run, one, manifest_of(one, full=full))
    return held_out


def plan_run(
    run: RunConfig,
    exec_: ExecConfig,
    data: Data,
    runs: Path,
    overrides: list[str],
    *,
    full: bool = True,
    validation: Sequence[Path] = (),
) -> Path:
    """Make, or find, the run's folder. Raises UserError in one line; nothing is written in that case.

    Of the ranks of a job that all call it, one with full=True is enough. `validation`: prepared folders of held-out
    images; they do not name the run, as they change no result.
    """
    run = resolve(run, exec_, data, full=full)
    held_out = _held_out(run, validation, full=full)
    folder = runs.absolute() / run_name(run)
    launch = Launch(exec=exec_, data=sets_of(data), validation=held_out)
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
    return attempt(folder, run, launch.exec, launch.data, should_stop, launch.validation)
