"""A job that trains several runs, one after the other in one process: the start of Python and torch is paid once.

Imports nothing heavy, so that a job hears signals from its first moments. Knows nothing of why they belong together.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs.preempt import StopFlag, install, requeue
from jobs.status import is_done
from jobs.submit import TrainJob
from jobs.world import World, join
from pipeline.errors import WorkError


class TrainSeveral(TrainJob):
    """What one job runs on every rank: several run folders in their order.

    Asked to stop, it saves the run in hand and goes back into the queue, as TrainJob does. A run that fails is told in
    its events.jsonl and does not stop the others: the job ends badly once all had their turn. On more than one rank it
    ends at once, as ranks that a failure left in different places cannot meet again.
    """

    def __init__(self, folders: Sequence[Path], nodes: int, gpus: int):
        super().__init__(folders[0], nodes, gpus)
        self.folders = [str(folder) for folder in folders]
        self.failed: dict[str, str] = {}  # folder -> error; goes with the job through the queue

    def __call__(self) -> str:
        flag = install()
        world = join(self.nodes, self.gpus)
        for folder in self.folders:
            if folder in self.failed or is_done(Path(folder)):
                continue
            self.folder = folder
            if self._stopped(flag, world) or self._train_one(flag, world) == "stopped":
                requeue(flag, world.rank)
                return "stopped"
        if self.failed:
            raise WorkError(f"{len(self.failed)} of {len(self.folders)} runs failed: {failures(self.failed)}")
        return "done"

    def _stopped(self, flag: StopFlag, world: World) -> bool:
        """Between two runs; ranks that may have heard of it at different times ask each other, inside the run."""
        return world.size == 1 and flag()

    def _train_one(self, flag: StopFlag, world: World) -> str:
        began = time.time()
        try:
            return self.train(flag)
        except Exception as e:
            self.failed[self.folder] = f"{type(e).__name__}: {e}"[:500]
            if world.rank == 0:
                tell_failure(Path(self.folder), self.failed[self.folder], began)
            if world.size > 1:
                raise
            print(f"graticule: {self.folder}: {self.failed[self.folder]}; the next one", flush=True)
            return "failed"


def tell_failure(folder: Path, error: str, began: float) -> None:
    """In events.jsonl, unless the attempt that began then has told it there itself."""
    from pipeline.tracking import jsonl

    events = jsonl.read(folder / jsonl.EVENTS)
    if not any(e["event"] == "failed" and e["time"] >= began for e in events):
        last = events[-1] if events else {}
        record = {"time": time.time(), "nimg": last.get("nimg", 0), "attempt": last.get("attempt", 0)}
        jsonl.append(folder / jsonl.EVENTS, {**record, "event": "failed", "error": error})


def failures(failed: Mapping[str, str]) -> str:
    """Folder -> error, as one line."""
    return "; ".join(f"{Path(folder).name} ({error})" for folder, error in failed.items())
