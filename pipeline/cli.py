"""The command line: thin verbs, heavy imports inside them. Definitions live elsewhere.

Exit codes: 0 done, 1 failed while working, 2 the user's words are off (one line on stderr, no traceback).
"""

import contextlib
import json
import sys
import warnings
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline import cli_critic, cli_data, cli_evaluate, cli_import, cli_synthesis, cli_tables
from pipeline.cli_synthesis import RUNS, Runs
from pipeline.errors import UserError, WorkError

if TYPE_CHECKING:
    from pipeline.plan import ExecConfig, RunConfig

app = typer.Typer(
    help="Train coordinate-aware image generators on a Slurm cluster: sharded data, exact resume, MLflow.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

for verb in (
    *cli_data.VERBS,
    *cli_synthesis.VERBS,
    *cli_import.VERBS,
    *cli_tables.VERBS,
    *cli_evaluate.VERBS,
):
    app.command(verb.__name__.rstrip("_"))(verb)
app.add_typer(cli_synthesis.probe, name="probe")
app.add_typer(cli_critic.look, name="look")

Sets = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override, e.g. batch_size=16.")]
Tiny = Annotated[bool, typer.Option("--tiny", help="Shrink the recipe to what two CPU cores can train.")]
Data = Annotated[
    list[str], typer.Option(metavar="DIR|URL", help="Prepared data set (see graticule prep). Several are mixed.")
]
Validation = Annotated[
    list[Path] | None,
    typer.Option(metavar="DIR", help="Prepared set to measure on, not to train on. Several allowed."),
]


def main() -> None:
    """Entry point: turns a user's mistake into one line and exit code 2."""
    warnings.formatwarning = lambda message, *_, **__: f"graticule: {message}\n"
    with contextlib.suppress(AttributeError):  # paths may hold bytes that are no UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        if code := app(standalone_mode=False):  # of typer.Exit, which is not raised here
            sys.exit(code)
    except (UserError, WorkError) as e:
        print("graticule:", "\\n".join(str(e).splitlines()), file=sys.stderr)
        sys.exit(2 if isinstance(e, UserError) else 1)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except Exception as e:
        if hasattr(e, "format_message"):  # click's complaints about options
            print(f"graticule: {e.format_message()} (see --help)", file=sys.stderr)  # type: ignore[attr-defined]
            sys.exit(2)
        raise


@app.command()
def recipes(
    paper: Annotated[str, typer.Argument(help="Only those of one paper, for example mspie; all if not given.")] = "",
    markdown: Annotated[bool, typer.Option("--markdown", help="As a Markdown table.")] = False,
    encodings: Annotated[bool, typer.Option("--encodings", help="Which encoding works with which family.")] = False,
) -> None:
    """What can be trained, and what was published."""
    if encodings:
        from pipeline.families.encodings import markdown as table_of_encodings

        if paper or markdown:
            raise UserError(f"--encodings is a table of its own; leave out {'--markdown' if markdown else repr(paper)}")
        print("\n".join(table_of_encodings()))
        return
    from rich.console import Console
    from rich.table import Table

    from pipeline.recipes import COLUMNS, markdown_table
    from pipeline.recipes import recipes as all_recipes

    known = all_recipes()
    found = {name: r for name, r in known.items() if paper in ("", name.partition(".")[0])}
    if not found:
        papers = dict.fromkeys(name.partition(".")[0] for name in known)
        raise UserError(f"paper={paper!r}: no recipe of that paper; there are {', '.join(papers)}")
    if markdown:
        print("\n".join(markdown_table(found.values())))
        return
    table = Table("recipe", "what", *(fact.lower() for fact in COLUMNS))
    for r in found.values():
        table.add_row(r.name, r.title, *(r.facts[fact] for fact in COLUMNS))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


@app.command()
def show(recipe: str, set_: Sets = None, tiny: Tiny = False) -> None:
    """The resolved configuration, and parameters, multiply-adds and activation memory of each network."""
    from pipeline.cost import activations, multiply_adds, parameters, training_flop
    from pipeline.plan import check, run_name

    run, exec_ = _configure(recipe, set_, tiny)
    check(run, exec_)
    print(json.dumps({**run.model_dump(mode="json"), "exec": exec_.model_dump(mode="json")}, indent=2))
    print(f"# {run_name(run)} (before the data set is known)")
    for name, count in parameters(run.family).items():
        sizes = ", ".join(f"{macs / 1e9:.4g} G at {h}x{w}" for (h, w), macs in multiply_adds(run.family, name).items())
        print(f"# {name}: {count:,} parameters; multiply-adds an image: {sizes}")
        kept = {size: b for size, b in activations(run.family, name).items() if b}
        if kept:  # what is counted of a generator of one image alone does not grow with the batch
            sizes = ", ".join(f"{b / 2**30:.3g} GiB at {h}x{w}" for (h, w), b in kept.items())
            print(f"# {name}: kept for backward, an image in fp32: {sizes}")
    flop = training_flop(run.family, run.total_kimg)
    print(f"# training: {flop / 1e12:.4g} TFLOP an image, {flop * run.total_kimg * 1e3 / 1e18:.4g} EFLOP in all")


@app.command()
def train(
    recipe: str,
    data: Data,
    validation: Validation = None,
    set_: Sets = None,
    tiny: Tiny = False,
    runs: Runs = RUNS,
) -> None:
    """Train here: one process, or one rank under torchrun, accelerate launch or srun."""
    from jobs.preempt import install, requeue
    from jobs.world import join

    flag = install()
    run, exec_ = _configure(recipe, set_, tiny)
    world = join()
    if "exec.nodes" not in _keys(set_) and "exec.gpus" not in _keys(set_):
        exec_ = exec_.replace(nodes=max(1, world.size // world.local_size), gpus=world.local_size)
    else:
        world = join(exec_.nodes, exec_.gpus)
    from jobs.submit import check_free
    from pipeline.run import folder_of, plan_run, train_folder
    from pipeline.training.engine import check_launcher

    check_launcher(run.precision)
    check_free(folder_of(run, exec_, data, runs))
    folder = plan_run(run, exec_, data, runs, set_ or [], full=world.rank == 0, validation=validation or ())
    if train_folder(folder, should_stop=flag) == "stopped":
        requeue(flag, world.rank)


@app.command()
def submit(
    recipe: str,
    data: Data,
    cluster: Annotated[str, typer.Option(help="local, a name in slurm/, or a TOML file.")] = "local",
    nodes: Annotated[int | None, typer.Option(min=1, help="1 if not given.")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="Ranks on each node, one a GPU; 1 if not given.")] = None,
    seeds: Annotated[str | None, typer.Option(help="One run for each, as one array: for example 0-2 or 1,5.")] = None,
    parallel: Annotated[int | None, typer.Option(min=1, help="How many of them at a time; all if not given.")] = None,
    validation: Validation = None,
    set_: Sets = None,
    tiny: Tiny = False,
    runs: Runs = RUNS,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the submission file; write nothing.")] = False,
) -> None:
    """Queue a run through submitit; the same recipe again resumes it."""
    from jobs.cluster import load_cluster
    from jobs.submit import array_text, check_array, check_free, submit_array
    from pipeline.run import folder_of, plan_run

    place = load_cluster(cluster)
    options = {"nodes": nodes, "gpus": gpus}
    more = [f"exec.{name}={value}" for name, value in options.items() if value is not None]
    if twice := _keys(more) & _keys(set_):
        raise UserError(f"--set {min(twice)} and --{min(twice)[5:]} are both given; leave one out")
    overrides = [[*(set_ or []), *seed] for seed in _seeds(seeds, parallel, set_)]
    planned = [_configure(recipe, [*o, *more], tiny) for o in overrides]
    folders = [folder_of(*run, data, runs, validation or ()) for run in planned]
    run, exec_ = planned[0]
    shape = {"nodes": exec_.nodes, "gpus": exec_.gpus, "name": run.recipe, "parallelism": parallel}
    if dry_run:
        print(array_text(folders, place, **shape), end="")
        return
    check_array(folders, place, exec_.nodes, parallel)
    for folder in folders:
        check_free(folder)
    for i, o in enumerate(overrides):
        plan_run(*planned[i], data, runs, o, full=i == 0, validation=validation or ())
    jobs = submit_array(folders, place, **shape)
    for job, folder in zip(jobs, folders, strict=True):
        print(f"submitted job {job.job_id} on {place.name}: {folder}")
    print(f"follow it with: graticule status --runs {runs}; graticule logs {folders[0]}")


def _seeds(seeds: str | None, parallel: int | None, set_: list[str] | None) -> list[list[str]]:
    """Overrides of each run of a submission."""
    from pipeline.synthesis.sample import parse_seeds

    if seeds is not None and "seed" in _keys(set_):
        raise UserError("--set seed and --seeds are both given; leave one out")
    runs = [[f"seed={n}"] for n in dict.fromkeys(parse_seeds(seeds))] if seeds is not None else [[]]
    if parallel is not None and len(runs) == 1:
        raise UserError(f"parallel={parallel}: has no effect without several --seeds; leave it out")
    return runs


@app.command()
def status(runs: Runs = RUNS) -> None:
    """All runs: state, progress, speed, time to go, last checkpoint, attempts."""
    from rich.console import Console
    from rich.table import Table

    from jobs.status import status as rows

    if not runs.is_dir():
        raise UserError(f"runs={str(runs)!r}: no such folder; start a run, or say where they are with --runs")
    progress = ("kimg", "of", "s/kimg", "img/s", "to go", "saved kimg")
    table = Table("run", "state", *progress, "attempts", "preempted", "time limits", "jobs")
    for r in rows(runs):
        left = "" if r.eta_sec is None else str(timedelta(seconds=round(r.eta_sec)))
        speed = [_number(n) for n in (r.kimg, r.total_kimg, r.sec_per_kimg, r.img_per_sec)]
        counts = map(str, (r.attempts, r.preempted, r.time_limits))
        jobs = ", ".join([*r.job_ids, *(f"{i} (evaluation)" for i in r.evaluation_ids)])
        table.add_row(r.run, r.state, *speed, left, _number(r.checkpoint_kimg), *counts, jobs)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


@app.command()
def logs(
    run: Annotated[Path, typer.Argument(help="Run folder, or RUN/evaluation.")],
    rank: Annotated[int, typer.Option(min=0)] = 0,
    lines: Annotated[int, typer.Option(min=1, help="Lines from the end.")] = 40,
) -> None:
    """What the newest job of a run printed."""
    from jobs.status import logs as log_files

    files = [f for f in log_files(run) if f.name.endswith((f"_{rank}_log.out", f"_{rank}_log.err"))]
    if not files:
        raise UserError(f"rank={rank}: no log of that rank in {run}; the job may not have started yet")
    for file in files:
        text = file.read_text(errors="replace").splitlines()[-lines:]
        print(f"== {file}", *text, sep="\n")


@app.command()
def cancel(run: Annotated[Path, typer.Argument(help="Run folder, or RUN/evaluation.")]) -> None:
    """Stop a run's job after a checkpoint, without queueing it again; its successors too."""
    from jobs.status import cancel as cancel_job

    print(f"job {', '.join(cancel_job(run))} of {run} is asked to save and end; the same command again resumes it")


@app.command()
def register(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    name: Annotated[str | None, typer.Option(help="Model name; the recipe's if not given.")] = None,
    alias: Annotated[str | None, typer.Option(help="For example champion.")] = None,
) -> None:
    """Register the newest checkpoint's G_ema as a model in MLflow."""
    from pipeline.run import model_name, newest_checkpoint, read_run
    from pipeline.tracking.registry import register as register_model

    model = name or model_name(read_run(run))
    version = register_model(run, name=model, alias=alias, checkpoint=newest_checkpoint(run))
    print(f"models:/{model}{'@' + alias if alias else '/' + version} is version {version}")


@app.command()
def sync(run: Annotated[Path, typer.Argument(help="Run folder.")]) -> None:
    """Replay into MLflow what it has not seen yet."""
    from pipeline.run import read_run
    from pipeline.tracking.mirror import sync as sync_run

    read_run(run)
    print(f"{run}: {sync_run(run)} records sent")


@app.command()
def doctor(cluster: Annotated[str | None, typer.Option(help="Also check this cluster.")] = None) -> None:
    """What this machine and cluster can do, with the mend for what they can't."""
    from jobs.doctor import checks

    found, marks = checks(cluster), {True: "ok  ", False: "FAIL", None: "--  "}
    for c in found:
        print(f"{marks[c.ok]} {c.name:<22} {c.found}" + (f"  ->  {c.mend}" if c.ok is not True and c.mend else ""))
    if any(c.ok is False for c in found):
        raise typer.Exit(1)


@app.command()
def demo(
    method: Annotated[Literal["mspie", "cips", "singan"], typer.Option(help="Which method to train.")] = "mspie",
    out: Annotated[Path, typer.Option(help="Folder for data, run and picture.")] = Path("demo"),
    set_: Sets = None,
) -> None:
    """The main job, end to end, on bundled photographs, in a few minutes on two CPU cores."""
    if method == "singan":
        from pipeline.demo_singan import run

        return run(out, set_ or [])
    from pipeline.demo import run_demo

    run_demo(method, out, set_ or [])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _keys(assignments: list[str] | None) -> set[str]:
    return {a.partition("=")[0] for a in assignments or []}


def _configure(recipe: str, assignments: list[str] | None, tiny: bool) -> "tuple[RunConfig, ExecConfig]":
    from pipeline.plan import ExecConfig, override_all
    from pipeline.recipes import find

    run = find(recipe).make()
    return override_all(run.tiny() if tiny else run, ExecConfig(), assignments or [])


if __name__ == "__main__":
    main()
