"""The verbs of the command line that train a paper's table and print it. Thin; definitions live elsewhere."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli_data import CPUS, Bar
from pipeline.cli_synthesis import RUNS, Runs
from pipeline.errors import UserError

if TYPE_CHECKING:
    from jobs.reproduce import Plan
    from pipeline.tables.table import Form, Table

TableName = Annotated[str, typer.Argument(metavar="TABLE", help="For example geopos.com.")]
Full = Annotated[
    bool, typer.Option("--full/--small", help="As long as the paper's, for GPUs; or short, for two cores.")
]
Given = Annotated[
    list[str] | None,
    typer.Option(metavar="DIR", help="For tables that cannot make their own sets; NAME=DIR where rows want several."),
]
HeldOut = Annotated[list[Path] | None, typer.Option(metavar="DIR", help="For tables that measure on held-out images.")]


def reproduce(
    table: TableName,
    full: Full = False,
    data: Given = None,
    validation: HeldOut = None,
    data_root: Annotated[Path, typer.Option(metavar="DIR", help="Where sets that it makes go.")] = Path("data"),
    runs: Runs = RUNS,
    cluster: Annotated[str, typer.Option(help="local, a name in slurm/, or a TOML file.")] = "local",
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Each trains its share of the runs; one a core, or on Slurm one a run.")
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="Ranks of a job, one a GPU; the table's if not given.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="For example 0-2; the table's if not given.")] = None,
    parallel: Annotated[int | None, typer.Option(min=1, help="Jobs at a time on Slurm; all if not given.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Until all runs are done, with their progress.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")] = False,
) -> None:
    """Train and measure every row of a paper's table with every seed; the same command again does what is left."""
    from jobs import reproduce as work
    from jobs.cluster import load_cluster
    from jobs.submit import check_cluster
    from pipeline.lock import locked
    from pipeline.tables.book import FOLDER

    wanted, form = _find(table, full)
    place = load_cluster(cluster)
    check_cluster(place, nodes=1)
    work.check_parallel(place, parallel)
    work.check_given(wanted, form, data or (), validation or ())
    work.questions_of(wanted, form)
    words = {"seeds": _seeds(seeds, wanted), "data": data or (), "validation": validation or (), "root": data_root}
    sets = work.sets_of(wanted.rows(form))
    if dry_run:
        if missing := [one for one in sets if not work.is_there(data_root / one.folder)]:
            for one in missing:
                print(f"would prepare {data_root / one.folder}")
            count = len(wanted.rows(form)) * len(words["seeds"])
            print(f"would then train {count} rows x seeds; run folders are named once the data sets are there")
            return
        planned = work.plan(wanted, form, runs, gpus=gpus, dry=True, **words)
        _tell(planned)
        print(work.text_of(planned, place, jobs=jobs, parallel=parallel), end="")
        return
    work.prepare_sets(sets, data_root, CPUS, lambda name: Bar(name, "images"))
    planned = work.plan(wanted, form, runs, gpus=gpus, **words)
    busy = f"table={table!r}: {{holder}} is submitting it; wait for that"
    with locked(runs / FOLDER / f".{wanted.name}.{form}.lock", busy):
        _tell(planned)
        submitted = work.submit(planned, place, jobs=jobs, parallel=parallel)
    for share, job in submitted:
        print(f"submitted job {job.job_id} on {place.name}: {len(share)} runs", flush=True)
    if wait:
        with Bar(f"reproduce {table}", "runs") as progress:
            work.wait(planned, progress)
    elif not submitted:
        print("nothing is left to submit")
    print(f"see it with: graticule report {table}{' --full' if full else ''} --runs {runs}")


def report(
    table: TableName,
    full: Full = False,
    runs: Runs = RUNS,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="RUNS/tables/TABLE.FORM if not given.")] = None,
    track: Annotated[bool, typer.Option("--track", help="Also bring the table's runs together in MLflow.")] = False,
) -> None:
    """A paper's table with published and measured numbers side by side: Markdown here, and files with plots."""
    from pipeline.tables.book import FOLDER
    from pipeline.tables.report import track_report, write_report

    wanted, form = _find(table, full)
    place = out or runs / FOLDER / f"{wanted.name}.{form}"
    print(write_report(wanted, form, runs, place), end="")
    if track:
        try:
            parent = track_report(wanted, form, runs, place)
        except UserError as e:  # the report is written, and an outage costs nothing but the same command again
            print(f"graticule: the report is not in MLflow: {e}", file=sys.stderr)
        else:
            print(f"graticule: in MLflow as run {parent}", file=sys.stderr)


VERBS = (reproduce, report)


def _find(name: str, full: bool) -> "tuple[Table, Form]":
    from pipeline.tables import find

    return find(name), "full" if full else "small"


def _seeds(text: str | None, table: "Table") -> tuple[int, ...]:
    from pipeline.synthesis.sample import parse_seeds

    return tuple(dict.fromkeys(parse_seeds(text))) if text is not None else table.seeds


def _tell(planned: "Plan") -> None:
    states = list(planned.states().values())
    told = [f"{n} {state}" for state in ("done", "failed", "at work", "left") if (n := states.count(state))]
    print(f"{planned.table.name}, {planned.form}: {len(states)} runs: {', '.join(told)}")
    made = {name for name, _ in planned.folders}
    if left_out := [row.name for row in planned.table.rows(planned.form) if row.name not in made]:
        print(f"left out, as their sets are not given: {', '.join(left_out)}")
