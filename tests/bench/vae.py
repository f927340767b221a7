"""Losses of VAEs over seeds: a table of means with 95% intervals, curves and reconstructions (`docs/geopos_vae.md`).

`python tests/bench/vae.py RUNS [DATA PICTURE.png]`: RUNS holds finished runs of one length that differ in kind of
convolution and seed alone; images of DATA are reconstructed by those of the smallest seed. Intervals are Student's
over seeds; those of a difference are of seeds in pairs, as one seed has the same order of images and the same draws of
z whatever the convolutions.
"""

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy.stats import t as student

from pipeline.data.reader import ShardReader
from pipeline.run import Launch, newest_checkpoint, read_run
from pipeline.synthesis.pictures import Panel, chart, enlarged, sheet
from pipeline.synthesis.reconstruct import reconstructed
from pipeline.synthesis.sample import load_generator, save_png
from pipeline.tracking import jsonl
from pipeline.training.engine import Engine
from pipeline.training.validation import Validation

SHOWN = 10  # images
KINDS = {"none": "Conv", "coord": "CoordConv", "geo": "GeoConv"}
MEASURES = {"training": "Loss/G/loss", "validation": "Validation/loss"}
TRAINED_ON = "loss of the training images"


Curves = dict[str, dict[int, dict[int, dict[str, float]]]]


def curves(runs: Path) -> tuple[Curves, dict[str, Path]]:
    """Kind of convolution -> seed -> nimg -> metrics; and a run of each kind, of the smallest seed."""
    found: Curves = defaultdict(dict)
    folders: dict[str, dict[int, Path]] = defaultdict(dict)
    for folder in sorted(runs.glob("*/config.json")):
        run = read_run(folder.parent)
        kind = KINDS[run.family.G.coords.mode]  # type: ignore[attr-defined]
        lines = jsonl.metrics(folder.parent / "metrics.jsonl")
        assert run.seed not in found[kind], f"two runs of {kind} with seed {run.seed}"
        found[kind][run.seed] = {m["nimg"]: m["metrics"] for m in lines}
        found[kind][run.seed][lines[-1]["nimg"]] |= {TRAINED_ON: at_the_end(folder.parent)}
        folders[kind][run.seed] = folder.parent
    ordered = {kind: dict(sorted(found[kind].items())) for kind in KINDS.values()}
    return ordered, {kind: folders[kind][min(folders[kind])] for kind in ordered}


def at_the_end(folder: Path) -> float:
    """Loss of the last checkpoint on the images that it was trained on, measured as validation is: no shifts."""
    run, launch = read_run(folder), Launch.from_json((folder / "exec.json").read_text())
    G = load_generator(folder / "config.json", newest_checkpoint(folder) / "G_ema.safetensors")
    engine = Engine(run.precision, 1)
    family, micro = run.family.build(run.seed), launch.exec.microbatch(run)
    found = Validation(family, {"": Path(launch.data[0])}, engine, run.seed, micro, 0)({"G": G})
    engine.close(failed=False)
    return found[MEASURES["validation"]]


def interval(values: np.ndarray) -> str:
    """Mean and half the width of its 95% interval."""
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():.2f} ± {half:.2f}"


def main(runs: Path, data: Path | None = None, picture: Path | None = None) -> None:
    found, folders = curves(runs)
    marks = sorted(next(iter(found["Conv"].values())))
    print(f"| loss, nats an image | {' | '.join(found)} | GeoConv - Conv | GeoConv - CoordConv |")
    print("| --- " * 6 + "|")
    rows = [(f"{name}, at {marks[-1] / 1000:g} kimg", key, lambda c: c[marks[-1]]) for name, key in MEASURES.items()]
    rows.append(("of the training images, without shifts", TRAINED_ON, lambda c: c[marks[-1]]))
    rows.append(("validation, at its best", MEASURES["validation"], lambda c: min(c.values(), key=_validation)))
    for name, key, at in rows:
        values = {kind: np.array([at(c)[key] for c in seeds.values()]) for kind, seeds in found.items()}
        cells = [interval(v) for v in values.values()]
        cells += [interval(values["GeoConv"] - values[other]) for other in ("Conv", "CoordConv")]
        print(f"| {name} | {' | '.join(cells)} |")
    print(f"\nSeeds: {', '.join(map(str, found['Conv']))}")
    if picture and data:
        save_png(picture, drawn(found, folders, data))


def drawn(found: Curves, folders: dict[str, Path], data: Path) -> np.ndarray:
    """Curves, held-out images, and what each kind makes of them."""
    marks = sorted(next(iter(found["Conv"].values())))
    panels = [
        Panel(
            f"{name}: from {marks[1] / 1000:g} kimg on, {marks[0] / 1000:g} kimg a point",
            {k: np.array([np.mean([c[n][key] for c in s.values()]) for n in marks[1:]]) for k, s in found.items()},
        )
        for name, key in MEASURES.items()
    ]
    reader = ShardReader(data)
    shown = np.stack([reader.read(i)[0].transpose(1, 2, 0) for i in range(min(SHOWN, len(reader)))])
    rows = [("loss, mean of the seeds", [chart(panels, columns=2)]), ("held out", [enlarged(i, 2) for i in shown])]
    for kind, folder in folders.items():
        G = load_generator(folder / "config.json", newest_checkpoint(folder) / "G_ema.safetensors")
        rows.append((f"{kind}, one seed", [enlarged(i, 2) for i in reconstructed(G, shown)]))
    return sheet(rows)


def _validation(metrics: dict[str, float]) -> float:
    return metrics[MEASURES["validation"]]


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
