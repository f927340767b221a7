"""The verb that measures trained generators. Thin; definitions live in pipeline/evaluation and pipeline/metrics."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli_data import Bar
from pipeline.cli_synthesis import RUNS, Runs
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.evaluation import Question

STOPPED = 130  # the exit code of what was asked to end before it was done


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL", help="Run folders, models:/NAME@ALIAS; of several also their mean."),
    ],
    metric: Annotated[list[str], typer.Option(help="fid50k_full, pr50k3_full, swd16k ...; docs/metrics.md.")],
    size: Annotated[
        list[str] | None, typer.Option(help="Pixels, or 256of512: reduced; all trained sizes if not given.")
    ] = None,
    data: Annotated[
        str, typer.Option(metavar="DIR", help="Prepared set to compare with; that of the run if not given.")
    ] = "",
    filter: Annotated[str, typer.Option(help="Of images that are resized: lanczos, box, bicubic or area.")] = "lanczos",
    checkpoint: Annotated[str, typer.Option(help="newest, all, best, or kimg such as 1000,2000.")] = "newest",
    seed: Annotated[int, typer.Option(help="Of the fakes.")] = 0,
    batch: Annotated[int, typer.Option(help="Images of one forward of G.")] = 16,
    references: Annotated[
        Path | None, typer.Option(metavar="DIR", help="For statistics of the set; beside its shards if not given.")
    ] = None,
    runs: Runs = RUNS,
    cluster: Annotated[
        str, typer.Option(help="As a job of its own: local, a name in slurm/, or a TOML file; here if not given.")
    ] = "",
    nodes: Annotated[int | None, typer.Option(min=1, help="Of the job; 1 if not given.")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="Ranks on each node, one a GPU; 1 if not given.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="The job measures checkpoints as they appear.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the job's file; write nothing.")] = False,
) -> None:
    """Measure the EMA generator: here, as one process or one rank under torchrun or srun, or as a job of its own."""
    question = ask(
        metrics=metric,
        sizes=size or (),
        data=data if "://" in data or not data else str(Path(data).absolute()),
        filter=filter,
        checkpoints=checkpoint,
        seed=seed,
        batch=batch,
        references=str(references.absolute()) if references else "",
    )
    options = {"--nodes": nodes, "--gpus": gpus, "--follow": follow, "--dry-run": dry_run}
    if cluster:
        return submit(models, question, runs, cluster, nodes or 1, gpus or 1, follow, dry_run)
    if idle := [option for option, value in options.items() if value]:
        raise UserError(f"{idle[0]}: has no effect without a job of its own; say --cluster NAME, or leave it out")
    here(models, question, runs)


VERBS = (evaluate,)


def here(models: list[str], question: "Question", runs: Path) -> None:
    """In this process, which may be one of several ranks."""
    from jobs.preempt import install
    from jobs.world import join

    flag, world = install(), join()
    from pipeline.evaluation import check, device_of
    from pipeline.evaluation import evaluate as measure

    folders = {model: folder_of(model, runs) for model in dict.fromkeys(models)}
    if len(folders) > 1:
        for folder in folders.values():
            check(folder, question)
    for model, folder in folders.items():
        with progress(world.rank == 0) as told:
            outcome = measure(
                folder,
                question,
                worker=world.rank,
                workers=world.size,
                device=device_of(world.local_rank),
                should_stop=flag,
                told=told,
                say=lambda line: print(line, flush=True),
            )
        if outcome == "stopped":
            if world.rank == 0:
                print("stopped; the same command goes on from here", flush=True)
            raise typer.Exit(STOPPED)
        if world.rank == 0:
            _told_to_registry(model, folder, runs)
            print(f"see {folder / 'evaluation' / 'report.md'}", flush=True)
    if world.rank == 0 and len(folders) > 1:
        compare(folders, question)


def submit(
    models: list[str],
    question: "Question",
    runs: Path,
    cluster: str,
    nodes: int,
    gpus: int,
    follow: bool,
    dry_run: bool,
) -> None:
    """A job for each model."""
    from jobs.cluster import load_cluster
    from jobs.evaluate import EVALUATION, check_alone, check_asked, evaluation_text, submit_evaluation
    from jobs.submit import check_cluster

    place = load_cluster(cluster)
    folders = [folder_of(model, runs) for model in dict.fromkeys(models)]
    for folder in folders:
        check_asked(folder, question, follow=follow)
        if dry_run:
            print(evaluation_text(folder, place, nodes=nodes, gpus=gpus), end="")
    if dry_run:
        return
    check_cluster(place, nodes)
    for folder in folders:
        check_alone(folder)
    for folder in folders:
        job = submit_evaluation(folder, question, place, nodes=nodes, gpus=gpus, follow=follow)
        print(f"submitted job {job.job_id} on {place.name}: {folder}")
    print(f"follow it with: graticule logs {folders[0] / EVALUATION}; numbers go to metrics.jsonl and report.md there")


def ask(**words: Any) -> "Question":
    """A Question of the user's words; UserError in one line."""
    from pydantic import ValidationError

    from pipeline.config import complaint
    from pipeline.evaluation import Question

    try:
        return Question.model_validate(words)
    except ValidationError as e:
        raise UserError(f"evaluate: {complaint(e, Question)}") from e


def folder_of(model: str, runs: Path) -> Path:
    """A run's folder, or that of a registered model, which several ranks may fetch at once."""
    if not model.startswith("models:/"):
        return Path(model)
    from pipeline.tracking.registry import fetch

    try:
        return fetch(model, runs)
    except OSError:  # another rank has just put it there
        return fetch(model, runs)


@contextlib.contextmanager
def progress(shown: bool) -> Iterator[Any]:
    """A bar for each thing that is made, one after the other."""
    with contextlib.ExitStack() as bars:
        now: dict[str, Bar] = {}

        def told(what: str, done: int, total: int) -> None:
            if not shown:
                return
            if what not in now:
                bars.close()
                now.clear()
                now[what] = bars.enter_context(Bar(what, "images"))
            now[what](done, total)

        yield told


def compare(folders: Mapping[str, Path], question: "Question") -> None:
    """A row for each model and one for their mean, with half of its 95% interval: runs of several seeds."""
    from rich.console import Console
    from rich.table import Table

    from pipeline.evaluation import numbers_of
    from pipeline.tables.intervals import interval

    found = {model: numbers_of(folder, question) for model, folder in folders.items()}
    names = list(dict.fromkeys(name for values in found.values() for name in values))
    table = Table("", *(name.removeprefix("Metrics/") for name in names))
    for model, values in found.items():
        cells = [f"{values[n].value:.5g} (kimg {values[n].nimg / 1000:g})" if n in values else "" for n in names]
        table.add_row(Path(model).name, *cells)
    means = [interval([values[name].value for values in found.values() if name in values]) for name in names]
    table.add_row(
        "mean",
        *("" if m is None else f"{m.mean:.5g}" + (f" ± {m.high - m.mean:.2g}" if m.high else "") for m in means),
    )
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _told_to_registry(model: str, folder: Path, runs: Path) -> None:
    """A registered model's numbers stand at its version, too; without the server they are on disk alone."""
    if not model.startswith("models:/"):
        return
    from pipeline.evaluation.ledger import measured
    from pipeline.tracking.best import tag_version

    try:
        for record in measured(folder).values():
            tag_version(model, record, runs)
    except UserError as e:
        print(f"graticule: {e}; the numbers are in {folder}", file=sys.stderr)
