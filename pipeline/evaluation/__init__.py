"""Evaluation: how good the EMA generator of a run is, by protocols that say all, against the images of a set.

Any number of workers answer one Question together, and meet in files alone: fakes and references are stores of blocks
that whoever comes fills. So numbers depend neither on how many there are nor on kills. Knows no detector and no
formula (pipeline.metrics) and nothing of Slurm (jobs). Importing this, and `lacking`, costs no torch.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pipeline.evaluation.ledger import lacking as lacking
from pipeline.evaluation.ledger import numbers_of as numbers_of
from pipeline.evaluation.question import Question as Question

Outcome = Literal["done", "stopped"]


def evaluate(
    folder: Path,
    question: Question,
    *,
    worker: int = 0,
    workers: int = 1,
    device: str = "cpu",
    should_stop: Callable[[], bool] = lambda: False,
    told: Callable[[str, int, int], None] = lambda what, done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Measure what is lacking of `question` for a run, or a folder with config.json and G_ema.safetensors.

    All workers call it; worker 0 writes the numbers, the others end when there is nothing left to make. "stopped":
    `should_stop` turned true between two blocks; the same call again goes on from there. `told`: what is made, images
    done and in all; `say`: one line, worker 0's. UserErrors of `check` come before anything is written.
    """
    from pipeline.evaluation.work import Work

    return Work(folder, question, worker, workers, device, should_stop, told, say).go()


def check(folder: Path, question: Question) -> None:
    """UserError, one line, for all that `evaluate` would refuse; writes nothing. Loads detectors and a generator."""
    from pipeline.evaluation.plan import plan

    plan(folder, question)


def device_of(local_rank: int) -> str:
    """Where the worker of this rank of a node computes: a GPU of its own where there are some."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return f"cuda:{local_rank % count}" if count else "cpu"
