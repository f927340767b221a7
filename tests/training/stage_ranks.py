"""What the pair of processes of test_stages.py does: train runs of two ranks, one after the other.

`RANK=... PORTS=... python tests/training/stage_ranks.py FOLDER ITERATIONS FOLDER ITERATIONS ...`
"""

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from pipeline.run import train_folder


def after(iterations: int) -> Callable[[], bool]:
    """should_stop of a run without samples, which asks once before each iteration."""
    polls = iter(range(10**9))
    return lambda: next(polls) >= iterations


def main(words: list[str]) -> None:
    for port, folder, iterations in zip(os.environ["PORTS"].split(), words[::2], words[1::2], strict=True):
        os.environ["MASTER_PORT"] = port
        train_folder(Path(folder), should_stop=after(int(iterations)))


if __name__ == "__main__":
    warnings.simplefilter("error")
    main(sys.argv[1:])
