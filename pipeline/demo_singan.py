"""`graticule demo --method singan`: three variants of SinGAN on two bundled photographs, and one picture of them.

Six real trainings, two at a time, at 56 px and 16 channels; then each generator paints one and a half times as wide
as it was trained (MS-PIE, 2012.05217, Section 4.3). Only calls what the commands call.
"""

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dataprep.sources import open_source
from dataprep.sources.photos import photograph
from dataprep.transform import Transform
from dataprep.writer import prepare
from pipeline.errors import WorkError
from pipeline.plan import ExecConfig, override_all
from pipeline.recipes import find
from pipeline.run import newest_checkpoint, plan_run, train_folder
from pipeline.synthesis.sample import generate, load_generator, save_png

PHOTOGRAPHS = ("china", "flower")
VARIANTS = ("mspie.singan_original", "mspie.singan_padding_free", "mspie.singan_padding_free_csg")
LONGEST_PX, WIDER, SEEDS, ENLARGED, GAP_PX = 56, 1.5, range(2), 2, 4
SETTINGS = ["family.G.min_px=16", "family.G.shrink=0.65", f"family.G.max_px={LONGEST_PX}", "family.G.channels=16"]
SETTINGS += [
    "family.lr=0.001",
    "family.D.channels=16",
    "family.stage_kimg=0.2",
    "family.decay_kimg=0.16",
    f"data.size_px={LONGEST_PX}",
]
EXEC = ["exec.status_kimg=0.2", "exec.sample_kimg=100", "exec.checkpoint_kimg=0.2", "exec.workers=0"]


def run(out: Path, overrides: list[str]) -> None:
    """Photographs, trainings and picture below `out`; run again, it goes on where it was."""
    began, folders = time.monotonic(), {}
    for photo in PHOTOGRAPHS:
        data = _one_image_set(out, photo)
        folders |= {(photo, recipe): _plan(out, data, photo, recipe, overrides) for recipe in VARIANTS}
    at_once = min(2, os.cpu_count() or 1)
    print(f"training {len(folders)} runs, {at_once} at a time", flush=True)
    with ProcessPoolExecutor(at_once, mp_context=multiprocessing.get_context("spawn")) as pool:
        outcomes = list(pool.map(_train, folders.values()))
    if set(outcomes) != {"done"}:
        raise WorkError(f"the runs ended as {', '.join(outcomes)}; run the same command again to go on")
    picture = out / "singan.png"
    save_png(picture, _stack([row for photo in PHOTOGRAPHS for row in _rows(photo, folders)], axis=0))
    print(f"\ndone in {time.monotonic() - began:.0f} s\npicture: {picture}")


def _one_image_set(out: Path, photo: str) -> Path:
    """A prepared set that holds one photograph, squeezed to a square."""
    place, data = out / "photographs" / photo, out / f"{photo}-{LONGEST_PX}px"
    place.mkdir(parents=True, exist_ok=True)
    photograph(photo).convert("RGB").save(place / f"{photo}.png")
    prepare(open_source("folder", place), data, Transform(size_px=LONGEST_PX, crop="stretch"))
    return data


def _plan(out: Path, data: Path, photo: str, recipe: str, overrides: list[str]) -> Path:
    width, height = photograph(photo).size
    settings = [*SETTINGS, f"family.G.image_px=[{height}, {width}]", *EXEC, *overrides]
    run, exec_ = override_all(find(recipe).make(), ExecConfig(), settings)
    if not any(o.startswith("total_kimg=") for o in overrides):
        family: Any = run.family
        run = run.replace(total_kimg=len(family.sizes()) * family.stage_kimg)
    print(f"{photo}: {run.recipe}, stages {', '.join(f'{h}x{w}' for h, w in run.family.sizes())}", flush=True)
    return plan_run(run, exec_, data, out / "runs", settings)


def _train(folder: Path) -> str:
    torch.set_num_threads(1)
    return train_folder(folder, should_stop=lambda: False)


def _rows(photo: str, folders: dict[tuple[str, str], Path]) -> list[np.ndarray]:
    """One row a seed: the training image (in the first), then what each variant makes."""
    made, real = [], None
    for recipe in VARIANTS:
        folder = folders[photo, recipe]
        G: Any = load_generator(folder / "config.json", newest_checkpoint(folder) / "G_ema.safetensors")
        h, w = G.native_size
        real = np.asarray(photograph(photo).convert("RGB").resize((w, h), Image.Resampling.BICUBIC))
        made.append(generate(G, SEEDS, (h, round(WIDER * w))))
    assert real is not None
    firsts = [real, *[np.full_like(real, 255) for _ in SEEDS[1:]]]
    return [_stack([_larger(image) for image in row], axis=1) for row in zip(firsts, *made, strict=True)]


def _larger(image: np.ndarray) -> np.ndarray:
    return image.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)


def _stack(parts: list[np.ndarray], axis: int) -> np.ndarray:
    """Pictures beside or below each other, on white."""
    length = max(p.shape[1 - axis] for p in parts)
    cells = []
    for i, part in enumerate(parts):
        after = [[0, 0], [0, 0], [0, 0]]
        after[axis][1], after[1 - axis][1] = GAP_PX if i < len(parts) - 1 else 0, length - part.shape[1 - axis]
        cells.append(np.pad(part, after, constant_values=255))
    return np.concatenate(cells, axis=axis)
