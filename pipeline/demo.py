"""`graticule demo`: the main job, end to end, on bundled photographs, in a few minutes on two CPU cores.

Prepares photographs, submits a tiny recipe through submitit to this machine, preempts it once on purpose, lets it
resume, registers the model in MLflow and draws one picture. Only calls what the commands call.
"""

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import psutil
from rich.progress import BarColumn, Progress, TextColumn
from torch import nn

from dataprep.sources import open_source
from dataprep.transform import Transform
from dataprep.writer import prepare
from jobs.cluster import load_cluster
from jobs.status import cancel, logs, run_status
from jobs.submit import check_cluster, submit
from pipeline.plan import ExecConfig, check, override_all
from pipeline.recipes import find
from pipeline.run import model_name, newest_checkpoint, plan_run
from pipeline.synthesis import dense, foveated
from pipeline.synthesis.pictures import enlarged, sheet
from pipeline.synthesis.pixels import styles
from pipeline.synthesis.sample import generate, grid, load_generator, save_png
from pipeline.tracking.client import tracking_uri
from pipeline.tracking.registry import fetch, register

RECIPES = {"mspie": "mspie.table5_f", "cips": "cips.table3_main"}
SETTINGS = {  # what makes a few minutes of a tiny network worth looking at
    "mspie": ["total_kimg=20", "family.r1_gamma=1"],
    "cips": ["total_kimg=20", "family.r1_gamma=1"],
}
EXEC = ["exec.status_kimg=0.25", "exec.checkpoint_kimg=2", "exec.sample_kimg=4", "exec.workers=1"]
WIDTH_PX, ALIAS = 512, "demo"
SHOWN, ZOOM, PERCENT = 16, 2, (5, 25, 50, 100)  # of a method that makes each pixel alone
POLL_SEC, PATIENCE_SEC = 0.5, 15


def run_demo(method: str, out: Path, overrides: list[str]) -> None:
    """Everything from photographs to a registered model and a picture; prints how it goes."""
    began = time.monotonic()
    settings = [*SETTINGS[method], *EXEC, *overrides]
    run, exec_ = override_all(find(RECIPES[method]).make().tiny(), ExecConfig(), settings)
    if not any(o.startswith(("exec.gpus=", "exec.batch_gpu=")) for o in overrides):
        gpus = 2 if (os.cpu_count() or 1) > 1 and run.batch_size % (2 * run.family.group) == 0 else 1
        exec_ = exec_.replace(gpus=gpus, batch_gpu=run.batch_size // gpus)
    cluster = load_cluster("local")
    check_cluster(cluster, exec_.nodes)
    check(run, exec_)
    data, runs = out / f"photos-{run.data.size_px}px", out / "runs"

    print(f"1/5 photographs bundled with scikit-image and scikit-learn -> {data}", flush=True)
    source, transform = open_source("photos"), Transform(size_px=run.data.size_px)
    manifest = prepare(source, data, transform, workers=os.cpu_count() or 1)
    print(f"    {manifest.count} crops of {manifest.size_px} px, data set {manifest.dataset_id}", flush=True)

    folder = plan_run(run, exec_, data, runs, settings)
    print(f"2/5 {run.recipe} (tiny) on {exec_.gpus} ranks through submitit -> {folder}", flush=True)
    if run_status(folder).state != "done":
        submit(folder, cluster, nodes=exec_.nodes, gpus=exec_.gpus, name=run.recipe)
    print(f"3/5 training {run.total_kimg:g} kimg, with one preemption on purpose half-way", flush=True)
    try:
        _watch(folder, run.total_kimg)
    except KeyboardInterrupt:
        cancel(folder)
        raise

    print("4/5 registering the model in MLflow", flush=True)
    name = model_name(run)
    version = register(folder, name=name, alias=ALIAS, checkpoint=newest_checkpoint(folder))
    model = f"models:/{name}@{ALIAS}"

    print(f"5/5 drawing with {model} (version {version})", flush=True)
    fetched = fetch(model, runs)
    G = load_generator(fetched / "config.json", fetched / "G_ema.safetensors")
    picture = out / f"{method}.png"
    save_png(picture, _per_pixel(G) if method == "cips" else _sizes(G, run.family.sizes()))

    uri = tracking_uri(runs)
    print(f"\ndone in {time.monotonic() - began:.0f} s, {run_status(folder).attempts} attempts of one run")
    print(f"picture:   {picture}")
    print(f"MLflow UI: mlflow ui --backend-store-uri {uri}")
    print(f"next:      graticule sample {model} --runs {runs} --size {_untrained(method)} --grid larger.png")


def _untrained(method: str) -> int:
    """A size that the demo's generator was not trained at."""
    return {"mspie": 96, "cips": 100}[method]


def _watch(folder: Path, total_kimg: float) -> None:
    """Show progress until the run is done; half-way, send its ranks the signal that a scheduler would."""
    preempted, ended, text = False, 0, "{task.fields[kimg]:6.2f} kimg  {task.fields[speed]}  {task.fields[left]}"
    columns = (TextColumn("    {task.description}"), BarColumn(), TextColumn(text))
    with Progress(*columns) as progress:
        bar = progress.add_task("starting", total=total_kimg, kimg=0.0, speed="", left="")
        say = progress.console.print
        while (row := run_status(folder)).state != "done":
            ended = ended + 1 if row.state in ("failed", "stopped") else 0
            if ended * POLL_SEC > PATIENCE_SEC:
                raise RuntimeError(f"training ended early; see {', '.join(map(str, logs(folder)))}")
            preempted = preempted or _preempt_at(row.kimg, total_kimg / 2, folder, say)
            speed = f"{row.img_per_sec:.0f} img/s" if row.img_per_sec else ""
            left = f"{row.eta_sec:.0f} s to go" if row.eta_sec is not None else ""
            progress.update(bar, description=row.state, completed=row.kimg, kimg=row.kimg, speed=speed, left=left)
            time.sleep(POLL_SEC)
        progress.update(bar, description="done", completed=total_kimg, kimg=row.kimg, speed="", left="")


def _preempt_at(kimg: float, half: float, folder: Path, say: Callable[..., None]) -> bool:
    if kimg < half:
        return False
    ranks = [p for p in psutil.process_iter(["cmdline"]) if _is_rank(p, folder)]
    for p in ranks:
        p.send_signal(signal.SIGUSR2)
    say(f"    preempting {len(ranks)} ranks at {kimg:g} kimg: they save, leave, and are started again")
    return bool(ranks)


def _is_rank(process: psutil.Process, folder: Path) -> bool:
    line = process.info["cmdline"] or []
    return "submitit.core._submit" in line and any(str(folder) in part for part in line)


def _sizes(G: nn.Module, sizes: Sequence[tuple[int, int]]) -> np.ndarray:
    """One row a size, as many of the same latents as fit, left-aligned on white."""
    rows = [
        grid(images, columns=len(images)) for images in (generate(G, range(WIDTH_PX // w), (h, w)) for h, w in sizes)
    ]
    canvas = np.full((sum(r.shape[0] for r in rows), WIDTH_PX, 3), 255, np.uint8)
    top = 0
    for r in rows:
        canvas[top : top + r.shape[0], : r.shape[1]] = r
        top += r.shape[0]
    return canvas


def _per_pixel(G: nn.Module) -> np.ndarray:
    """Samples; of the two with most contrast a grid four times as dense, beside Lanczos; a part of one's pixels."""
    native = generate(G, range(SHOWN))
    seeds = [int(i) for i in native.std(axis=(1, 2, 3)).argsort()[:-3:-1]]
    rows = [("samples of seeds 0, 1, 2 ...", [enlarged(grid(native, SHOWN // 2), ZOOM)])]
    rows += dense.rows(dense.dense(G, seeds, 4), seeds)
    computed, filled = foveated.rows(G, styles(G, seeds[:1]), native.shape[1:3], PERCENT)
    text = f"seed {seeds[0]}: {', '.join(f'{p:g}' for p in PERCENT)} % of the pixels"
    rows += [(text, [enlarged(p, 2 * ZOOM) for p in computed])]
    rows += [("the others interpolated", [enlarged(p, 2 * ZOOM) for p in filled])]
    return sheet(rows)
