"""The verb `graticule look best`: samples chosen by the critic of their run, as GeoPos (2401.01951) shows its hands.

Thin; the choice is made in synthesis/best.py. `look` is that of cli_pictures.py, handed on with this verb in it.
"""

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli_pictures import beside, look, png
from pipeline.cli_synthesis import RUNS, Model, Opened, Out, Runs, open_model
from pipeline.errors import UserError

if TYPE_CHECKING:
    from torch import nn


@look.command()
def best(
    model: Model,
    of: Annotated[int, typer.Option(min=2, help="Samples of which one is chosen, for each label.")] = 10,
    cells: Annotated[int, typer.Option(min=1, help="Of each sheet, where there are no classes.")] = 36,
    rows: Annotated[int | None, typer.Option(min=1, help="Of each sheet; as many as columns if not given.")] = None,
    out: Out = None,
    runs: Runs = RUNS,
) -> None:
    """The first sample of each label, and beside it the best of several by critic score; scores go to .json beside."""
    from pipeline.synthesis.best import best_of
    from pipeline.synthesis.pictures import sheet
    from pipeline.synthesis.sample import grid

    opened = open_model(model, runs, "look-best", png(out))
    D, classes = _critic(opened), getattr(opened.G, "num_classes", 0)
    found = best_of(opened.G, D, classes or cells, of)
    columns = None if rows is None else -(-len(found.first) // rows)
    what = "label" if classes else "cell"
    text = f"left: the first sample of each {what}; right: the best 1 of {of} by critic score"
    opened.save(sheet([(text, [grid(found.first, columns), grid(found.chosen, columns)])]), {"of": of, "rows": rows})
    for name, scores in {"first": found.scores[:, 0], "best": found.scores.max(axis=1), "all": found.scores}.items():
        print(f"{name}: critic score {scores.mean():.4g} on average, standard deviation {scores.std():.4g}")
    print(f"the {of} of a {what}: standard deviation {found.scores.std(axis=1).mean():.4g} on average")
    beside(opened, {"of": of, "picked": found.picked, "scores": found.scores.tolist()})
    opened.tell(f"first and best 1 of {of} samples of {len(found.first)} {what}s by critic score from {model}")


def _critic(opened: Opened) -> "nn.Module":
    """D of the run's newest checkpoint, in evaluation mode; UserError for one that does not score images alone."""
    from safetensors.torch import load_file

    from pipeline.families.dcgan import DCGANConfig
    from pipeline.run import read_run

    if opened.run is None:
        raise UserError("look best needs the critic, which is not registered with a model; give a run folder")
    family = read_run(opened.run).family
    if not isinstance(family, DCGANConfig):
        raise UserError(f"look best is for runs of dcgan, whose D scores an image by itself, not of {family.kind!r}")
    D = family.build(0).nets["D"]
    D.load_state_dict(load_file(opened.run / "checkpoints" / opened.nimg / "D.safetensors"))
    return D.eval().requires_grad_(False)
