"""The verbs of the command line that make and look at data sets. Thin; definitions live elsewhere."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.errors import UserError, WorkError

if TYPE_CHECKING:
    from dataprep.transform import Transform

CPUS = os.cpu_count() or 1
LINE_SEC = 30.0  # between two lines of progress where there is no terminal

Folder = Annotated[Path, typer.Argument(help="Prepared data set.")]


def prep(
    source: Annotated[
        str, typer.Argument(help="photos, densities, glyphs (no download), folder, ffhq, lsun, celeba, asl or depth.")
    ],
    path: Annotated[Path | None, typer.Argument(help="Where the source's images lie.")] = None,
    out: Annotated[Path, typer.Option(help="Folder to make; continues there after a kill.")] = Path("data"),
    size: Annotated[str, typer.Option(help="Stored side in pixels; 256,128 makes OUT/256 and OUT/128.")] = "256",
    crop: Annotated[str | None, typer.Option(help="The source's own if not given.")] = None,
    filter: Annotated[str | None, typer.Option(help="lanczos (default), box, bicubic or area.")] = None,
    icc: Annotated[str | None, typer.Option(help="Colour profiles: srgb (default, converted) or drop.")] = None,
    encoding: Annotated[str | None, typer.Option(help="png (default), jpg, webp or raw.")] = None,
    quality: Annotated[int | None, typer.Option(help="Of jpg (95 if not given), or of webp to make it lossy.")] = None,
    split: Annotated[str | None, typer.Option(help="Part of the data set; all of it if not given.")] = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Images in a shard.")] = 1000,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; all CPUs if not given.")] = None,
    cluster: Annotated[str | None, typer.Option(help="As for submit; here, without jobs, if not given.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="On the cluster; 1 if not given.")] = None,
    on_error: Annotated[str, typer.Option(help="stop at the first bad image, or skip and count it.")] = "stop",
) -> None:
    """Native images to shards: WebDataset tars, manifest, index."""
    from dataprep.sources import open_source
    from dataprep.writer import prepare_all

    if on_error not in ("stop", "skip"):
        raise UserError(f"on-error={on_error!r}: expected stop or skip")
    if cluster is None and jobs is not None:
        raise UserError(f"jobs={jobs}: has no effect without --cluster; give one, or --workers {jobs}")
    if cluster is not None and workers is not None:
        raise UserError(f"workers={workers}: has no effect with --cluster, whose cpus_per_task counts; leave one out")
    with _at_work("prep", "; the same command continues from here"):
        origin = open_source(source, path, split)
        words = {"crop": crop or origin.crop, "filter": filter, "icc": icc, "encoding": encoding, "quality": quality}
        sets = _sets(out, size, {name: word for name, word in words.items() if word is not None})
        with Bar(f"prep {source}", "images", notes=lambda: origin.notes) as progress:
            how: dict[str, Any] = {"split": split, "shard_size": shard_size, "on_error": on_error, "progress": progress}
            if cluster is None:
                made = prepare_all(origin, sets, workers=workers or CPUS, **how)
            else:
                from jobs.prep import run_on

                made = run_on(cluster, origin, path, sets, jobs=jobs or 1, **how)
    for folder, m in zip(sets, made, strict=True):
        print(f"{folder}: {m.count} images of {m.size_px} px in {len(m.shards)} shards, data set {m.dataset_id}")
        rejected = ", ".join(f"{n} {reason}" for reason, n in sorted(m.rejected.items())) or "none"
        print(f"in {m.count_in}, rejected: {rejected}; check with: graticule verify {folder}")


def verify(
    folder: Folder,
    workers: Annotated[int, typer.Option(min=1, help="Threads; more help on network disks.")] = min(CPUS, 8),
) -> None:
    """Every byte of the shards against manifest and index."""
    from dataprep.verify import verify as find_problems
    from pipeline.data.manifest import load_manifest

    with _at_work("verify"), Bar(f"verify {folder}", "MB", 1e6) as progress:
        problems = find_problems(folder, workers=workers, progress=progress)
    for problem in problems:
        print(problem)
    if problems:
        raise typer.Exit(1)
    manifest = load_manifest(folder)
    print(f"{folder}: {manifest.count} images in {len(manifest.shards)} shards, all as the manifest says")


def inspect(
    folder: Folder,
    grid: Annotated[Path | None, typer.Option(help="Contact sheet to write, a PNG; none if not given.")] = None,
    images: Annotated[int, typer.Option(min=1, max=4096, help="On the contact sheet, evenly spaced.")] = 64,
    json_: Annotated[bool, typer.Option("--json", help="The same facts for machines.")] = False,
) -> None:
    """What a prepared set holds: counts, classes, bytes, what was rejected and why."""
    from rich.console import Console

    from dataprep.inspect import as_json, as_tables, contact_sheet, report
    from pipeline.config import write_atomic

    with _at_work("inspect"):
        facts = report(folder)
        if grid is not None:
            sheet = contact_sheet(folder, images)
            try:
                write_atomic(grid, sheet)
            except OSError as e:
                raise UserError(f"grid={str(grid)!r} cannot be written ({e.strerror or e}); choose another file") from e
        if json_:
            print(as_json(facts))
        else:
            Console(width=None if sys.stdout.isatty() else 160).print(as_tables(facts))
            if grid is not None:
                print(f"{grid}: {min(images, facts.manifest['count'])} images in their order, row by row")


def beton(
    folder: Folder,
    workers: Annotated[int, typer.Option(min=1, help="Threads.")] = CPUS,
) -> None:
    """An FFCV copy beside the shards: same samples, same order, same pixels."""
    from pipeline.data.beton import write_beton

    with _at_work("beton"), Bar(f"beton {folder}", "images") as progress:
        path = write_beton(folder, workers=workers, progress=progress)
        print(f"{path}: {path.stat().st_size / 1e9:.2f} GB")


VERBS = (prep, verify, inspect, beton)


def _sets(out: Path, size: str, words: dict[str, Any]) -> "dict[Path, Transform]":
    """Folder -> what to store there."""
    from pydantic import ValidationError

    from dataprep.transform import Transform
    from pipeline.config import complaint

    sizes = size.split(",")
    if not all(s.isascii() and s.isdigit() for s in sizes) or len({int(s) for s in sizes}) < len(sizes):
        raise UserError(f"size={size!r}: expected pixels, or several such as 256,128,64")
    try:
        made = [Transform.model_validate({"size_px": int(s), **words}) for s in sizes]
    except ValidationError as e:
        raise UserError(f"prep: {complaint(e, Transform)}") from e
    return {out / str(t.size_px) if len(made) > 1 else out: t for t in made}


@contextlib.contextmanager
def _at_work(verb: str, more: str = "") -> Iterator[None]:
    """What the system refuses (disk full, no permission) is one line; so is Ctrl-C where `more` has advice."""
    try:
        yield
    except BrokenPipeError:  # `| head`: typer ends quietly
        raise
    except OSError as e:
        where = f"{os.fsdecode(e.filename)}: " if isinstance(e.filename, str | bytes) else ""
        raise WorkError(f"{verb}: {where}{e.strerror or e}{more}") from e
    except KeyboardInterrupt as e:
        print(f"graticule: {verb}: stopped{more}", file=sys.stderr)
        raise typer.Exit(130) from e


class Bar:
    """Progress on stderr: a bar on a terminal, elsewhere a line now and then. Speed and time left count this run.

    `notes` are asked for and printed when the work begins, or when there was none to do.
    """

    def __init__(self, what: str, unit: str, scale: float = 1.0, notes: Callable[[], Iterable[str]] = tuple):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._what, self._unit, self._scale, self._notes = what, unit, scale, notes
        self._first: float | None = None  # what an earlier run had finished
        self._began = self._spoke = time.monotonic()
        columns = TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[state]}")
        console = Console(stderr=True)
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task(what, total=None, state="")

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._progress.stop()
        if self._first is None and error is None:
            self._begin()

    def _begin(self) -> None:
        for note in self._notes():
            print(f"note: {note}", flush=True)

    def __call__(self, done: int, total: int) -> None:
        now, ready, whole = time.monotonic(), done / self._scale, total / self._scale
        if self._first is None:
            self._begin()
            self._progress.start()
            self._first, self._began = ready, now
        state = f"{ready:,.0f} of {whole:,.0f} {self._unit}"
        new, sec = ready - self._first, now - self._began
        if new > 0 and sec > 1:
            state += f", {new / sec:,.1f}/s, {timedelta(seconds=round((whole - ready) * sec / new))} left"
        self._progress.update(self._task, completed=done, total=total, state=state)
        if self._progress.disable and now - self._spoke >= LINE_SEC:
            self._spoke = now
            print(f"{self._what}: {state}", file=sys.stderr, flush=True)
