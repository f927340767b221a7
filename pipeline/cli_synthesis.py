"""The verbs of the command line that make pictures of a trained generator. Thin; definitions live elsewhere.

Without --out the picture of a run folder goes to RUN/pictures, and from there to MLflow where that answers.
"""

import hashlib
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline.errors import UserError, WorkError

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

RUNS = Path("runs")
LONGEST_NAME = 120  # characters of a picture's name

Runs = Annotated[Path, typer.Option(envvar="GRATICULE_RUNS", help="Folder that holds the run folders.")]
Model = Annotated[str, typer.Argument(help="models:/NAME@ALIAS, models:/NAME/VERSION or a run folder.")]
Size = Annotated[str, typer.Option(help="N or HxW; the native size if not given.")]
Psi = Annotated[float, typer.Option(help="Truncation; 1: none.")]
Out = Annotated[Path | None, typer.Option(help="PNG; if not given in RUN/pictures, or here for a registered model.")]

probe = typer.Typer(help="What padding does: to a trained generator, and to noise.")


def sample(
    model: Model,
    seeds: Annotated[str, typer.Option(help="For example 0-15 or 1,5,7-9.")] = "0-15",
    size: Size = "",
    truncation_psi: Psi = 1.0,
    grid: Out = None,
    columns: Annotated[int | None, typer.Option(min=1)] = None,
    label: Annotated[
        str, typer.Option(help="Class of all images: a number from 0, or a name of the run's set; else all in turn.")
    ] = "",
    chunk_px: Annotated[
        int | None, typer.Option(min=1, help="Pixels computed together, by a generator that makes each alone (cips).")
    ] = None,
    runs: Runs = RUNS,
) -> None:
    """A grid of images, at any size the model allows."""
    from pipeline.synthesis.sample import generate, parse_seeds, parse_size
    from pipeline.synthesis.sample import grid as tile

    wanted, numbers = parse_size(size), parse_seeds(seeds)
    opened = open_model(model, runs, "sample", grid, "grid")
    if chunk_px:
        from pipeline.synthesis.pixels import per_pixel

        per_pixel(opened.G).pixels_at_once = chunk_px
    labels = [label_of(opened, label)] * len(numbers) if label else None
    images = generate(opened.G, numbers, wanted, truncation_psi, labels=labels)
    words = {"px": px(images), "seeds": seeds, "psi": unless_1(truncation_psi), "columns": columns, "label": label}
    opened.save(tile(images, columns), words)
    opened.tell(f"{len(images)} images of {px(images)} px from {model}")


def interpolate(
    model: Model,
    seeds: Annotated[str, typer.Option(help="Where the way leads through.")] = "0,1,2",
    frames: Annotated[int, typer.Option(min=2, help="From a seed to the next, both included.")] = 9,
    space: Annotated[Literal["w", "z"], typer.Option(help="Straight in w, or along the sphere of z.")] = "w",
    size: Size = "",
    truncation_psi: Psi = 1.0,
    out: Out = None,
    animate: Annotated[bool, typer.Option("--animate", help="Also an animated PNG beside it.")] = False,
    runs: Runs = RUNS,
) -> None:
    """Frames on the way between latents, a row from each seed to the next; the noise stays that of the first."""
    import numpy as np

    from pipeline.synthesis.interpolate import interpolate as ways
    from pipeline.synthesis.pictures import save_animation
    from pipeline.synthesis.sample import grid, parse_seeds, parse_size

    wanted, numbers = parse_size(size), parse_seeds(seeds)
    opened = open_model(model, runs, "interpolate", out)
    legs = ways(opened.G, numbers, frames, space, wanted, truncation_psi)
    images = legs.reshape(-1, *legs.shape[2:])
    words = {"px": px(images), "seeds": seeds, "frames": frames, "space": space, "psi": unless_1(truncation_psi)}
    opened.save(grid(images, frames), words)
    if animate:
        once = np.concatenate([legs[0, :1], *(leg[1:] for leg in legs)])  # what two legs share is shown once
        opened.write(opened.path.with_stem(f"{opened.path.stem}-animated"), lambda path: save_animation(path, once))
    opened.tell(f"{len(images)} frames of {px(images)} px from {model}")


def edit(
    model: Model,
    direction: Annotated[int, typer.Option(help="From 0, by falling effect on the styles.")] = 0,
    alpha: Annotated[str, typer.Option(help="LOW..HIGH or LOW..HIGH:STEP; a column each.")] = "-3..3",
    layers: Annotated[str, typer.Option(help="Of ws, for example 8,9; all if not given.")] = "",
    seeds: Annotated[str, typer.Option(help="A row each.")] = "0-3",
    size: Size = "",
    truncation_psi: Psi = 1.0,
    normalize: Annotated[bool, typer.Option("--normalize", help="As SeFa does: unit rows, toRGB included.")] = False,
    out: Out = None,
    runs: Runs = RUNS,
) -> None:
    """w + alpha v along a direction of the closed-form factorisation, in all layers or some."""
    from pipeline.synthesis.edit import edit as edited
    from pipeline.synthesis.edit import parse_alphas
    from pipeline.synthesis.sample import grid, parse_seeds, parse_size

    wanted, numbers, alphas = parse_size(size), parse_seeds(seeds), parse_alphas(alpha)
    picked = parse_seeds(layers, "layers") if layers else None
    opened = open_model(model, runs, "edit", out)
    rows = edited(opened.G, numbers, direction, alphas, picked, wanted, truncation_psi, normalize=normalize)
    images = rows.reshape(-1, *rows.shape[2:])
    words = {"px": px(images), "direction": direction, "alpha": alpha, "layers": layers, "seeds": seeds}
    words |= {"psi": unless_1(truncation_psi), "normalize": normalize or None}
    opened.save(grid(images, len(alphas)), words)
    opened.tell(f"{len(numbers)} seeds by {len(alphas)} alphas of {px(images)} px from {model}")


@probe.command()
def padding(
    model: Model,
    size: Size = "",
    seed: Annotated[int, typer.Option(min=0, help="Of the style.")] = 0,
    out: Out = None,
    runs: Runs = RUNS,
) -> None:
    """A constant in place of the code at the head: frozen borders where padded, one colour where not."""
    from rich.console import Console
    from rich.table import Table

    from pipeline.spec import to_uint8
    from pipeline.synthesis.probe import VALUES, padding_probe, spread
    from pipeline.synthesis.sample import grid, parse_size

    wanted = parse_size(size)
    opened = open_model(model, runs, "probe-padding", out)
    img = padding_probe(opened.G, VALUES, wanted, seed)
    images = to_uint8(img).permute(0, 2, 3, 1).cpu().numpy()
    table = Table("constant", "variance inside", "of the border from inside")
    for value, one in zip(VALUES, img, strict=True):
        found = spread(one)
        table.add_row(f"{value:g}", f"{found.interior:.3g}", f"{found.border:.3g}")
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    opened.save(grid(images, len(VALUES)), {"px": px(images), "seed": seed})
    opened.tell(f"constants {', '.join(f'{v:g}' for v in VALUES)} at the head, {px(images)} px from {model}")


@probe.command()
def stationarity(
    padding: Annotated[
        Literal["all", "zero", "reflect", "circular", "none"], typer.Option(help="One kind, or all beside each other.")
    ] = "all",
    layers: Annotated[int, typer.Option(min=1, help="3x3 convolutions.")] = 4,
    size: Annotated[int, typer.Option(min=4, help="Side of the output in pixels.")] = 24,
    samples: Annotated[int, typer.Option(min=2, help="To average over.")] = 16384,
    seed: Annotated[int, typer.Option(min=0, help="Of kernels and noise.")] = 0,
    out: Annotated[Path, typer.Option(help="PNG to write; the numbers go beside it, to .json.")] = Path(
        "stationarity.png"
    ),
) -> None:
    """iid noise through convolutions: mean, variance and autocorrelation by position, with and without ReLU."""
    from rich.console import Console
    from rich.table import Table

    from pipeline.config import write_atomic
    from pipeline.synthesis.pictures import chart
    from pipeline.synthesis.sample import save_png
    from pipeline.synthesis.stationarity import PADDINGS, Experiment, measure, numbers, panels

    if out.suffix != ".png":
        raise UserError(f"out={str(out)!r}: expected a name that ends in .png; the numbers go beside it, to .json")
    found = {}
    for relu in (False, True):
        experiment = Experiment(size_px=size, layers=layers, relu=relu, samples=samples, seed=seed)
        found[experiment] = {p: measure(experiment, p) for p in PADDINGS if padding in ("all", p)}
    table = Table("layers", "padding", "mean, at 0", "inside", "variance, at 0", "inside")
    for experiment, curves in found.items():
        for name, m in curves.items():
            cells = (m.mean[0], m.mean[size // 2], m.variance[0], m.variance[size // 2])
            table.add_row("ReLU" if experiment.relu else "linear", name, *(f"{c:.4f}" for c in cells))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    beside = out.with_suffix(".json")
    write(out, lambda path: save_png(path, chart(panels(found), columns=3)))
    write(beside, lambda path: write_atomic(path, json.dumps(numbers(found), indent=1) + "\n"))
    print(f"{out}: curves over {samples} samples; numbers: {beside}")


VERBS = (sample, interpolate, edit)


@dataclass
class Opened:
    """A generator, and where its picture goes."""

    G: "nn.Module"
    verb: str
    given: Path | None  # the file that the user named, if any
    option: str  # its name
    run: Path | None  # the folder, unless the model is a registered one
    nimg: str
    path: Path = Path()  # once saved

    def save(self, picture: "np.ndarray", words: Mapping[str, object]) -> None:
        """To the file that was given, or to one whose name says what it shows."""
        from pipeline.synthesis.sample import save_png

        name = "-".join(f"{key}{value}" for key, value in words.items() if value not in (None, ""))
        name = re.sub(r"[^\w.,=-]", "_", f"{self.nimg}-{name}")
        if len(name) > LONGEST_NAME:
            name = f"{name[:LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        folder = self.run / "pictures" if self.run else Path()
        self.path = self.given or folder / f"{self.verb}-{name}.png"
        self.write(self.path, lambda path: save_png(path, picture))

    def write(self, path: Path, how: Callable[[Path], None]) -> None:
        write(path, how, self.option, parents=self.given is None)

    def tell(self, text: str) -> None:
        """A line of what was made; then the way into MLflow, whose troubles cost one more line."""
        print(f"{self.path}: {text}", flush=True)
        if self.run is None or self.given is not None or not _tracked(self.run):
            return
        from pipeline.tracking.mirror import sync

        try:
            sync(self.run)
        except (UserError, WorkError) as e:
            print(f"graticule: not in MLflow yet: {e} with graticule sync {self.run}", file=sys.stderr)


def open_model(model: str, runs: Path, verb: str, out: Path | None, option: str = "out") -> Opened:
    """A registered model's generator, or that of a run's newest checkpoint."""
    from pipeline.synthesis.sample import load_generator

    if model.startswith("models:/"):
        from pipeline.tracking.registry import fetch

        folder = fetch(model, runs)
        G = load_generator(folder / "config.json", folder / "G_ema.safetensors")
        return Opened(G, verb, out, option, None, f"{folder.parent.name}-{folder.name}")
    from pipeline.run import newest_checkpoint, read_run

    run = Path(model)
    if (run / "G_ema.safetensors").is_file():  # what `graticule import` makes
        return Opened(load_generator(run / "config.json", run / "G_ema.safetensors"), verb, out, option, None, run.name)
    read_run(run)
    checkpoint = newest_checkpoint(run)
    G = load_generator(run / "config.json", checkpoint / "G_ema.safetensors")
    return Opened(G, verb, out, option, run, checkpoint.name)


def classes_of(run: Path | None) -> tuple[str, ...]:
    """Names of the classes of the set that this run is trained on; none where it is not there."""
    from pipeline.data.manifest import load_manifest
    from pipeline.run import Launch

    path = run / "exec.json" if run else None
    if path is None or not path.is_file():
        return ()
    try:
        return load_manifest(Path(Launch.from_json(path.read_text(), where=str(path)).data[0]), full=False).classes
    except UserError:
        return ()


def label_of(opened: Opened, text: str) -> int:
    """A number, or a class by its name; UserError for what the model does not have."""
    from pipeline.config import nearest

    classes: int = getattr(opened.G, "num_classes", 0)
    if not classes:
        raise UserError(f"label={text!r}: this model has no classes; leave --label out")
    if text.isdecimal():
        if int(text) < classes:
            return int(text)
        raise UserError(f"label={text}: this model has {classes} classes; use 0-{classes - 1}")
    names = classes_of(opened.run)
    if text in names:
        return names.index(text)
    how = nearest(text, names) if names else f"its data set is not there to look names up; use 0-{classes - 1}"
    raise UserError(f"label={text!r} is not a class of this model; {how}")


def _tracked(run: Path) -> bool:
    """Does MLflow know this run, or is it meant to?"""
    from pipeline.run import Launch
    from pipeline.tracking.upload import cursor_of

    path = run / "exec.json"
    wanted = path.is_file() and Launch.from_json(path.read_text(), where=str(path)).exec.track
    return wanted or cursor_of(run) is not None


def write(path: Path, how: Callable[[Path], None], option: str = "out", *, parents: bool = False) -> None:
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        how(path)
    except OSError as e:
        raise UserError(
            f"{option}={str(path)!r} cannot be written ({e.strerror or e}); choose another file with --{option}"
        ) from e


def unless_1(truncation_psi: float) -> float | None:
    return None if truncation_psi == 1 else truncation_psi


def px(images: "np.ndarray") -> str:
    """Height x width of [n, h, w, 3]."""
    return f"{images.shape[1]}x{images.shape[2]}"
