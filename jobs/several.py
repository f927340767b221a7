"""A job that trains several runs, one after the other in one process, and measures each: Python and torch start once.

Imports nothing heavy, so that a job hears signals from its first moments. Knows nothing of why they belong together.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.evaluate import lacks, measure, tell_unmeasured
from jobs.preempt import StopFlag, install, requeue
from jobs.status import is_done
from jobs.submit import TrainJob
from jobs.world import World, join
from pipeline.errors import WorkError

if TYPE_CHECKING:
    from pipeline.evaluation import Question


class TrainSeveral(TrainJob):
    """What one job runs on every rank: several run folders in their order, each trained, then asked its question.

    Asked to stop, it saves the run in hand and goes back into the queue, as TrainJob does. A run that fails is told in
    its events.jsonl and does not stop the others: the job ends badly once all had their turn. On more than one rank it
    ends at once, as ranks that a failure left in different places cannot meet again.
    """

    def __init__(self, folders: Sequence[Path], nodes: int, gpus: int, asked: "Mapping[Path, Question] | None" = None):
        super().__init__(folders[0], nodes, gpus)
        self.folders = [str(folder) for folder in folders]
        self.questions = {str(f): asked[f].to_json() for f in folders if asked and f in asked}
        self.failed: dict[str, str] = {}  # folder -> error; goes with the job through the queue

    def __call__(self) -> str:
        flag = install()
        world = join(self.nodes, self.gpus)
        stopped = False
        for folder in self.folders:
            self.folder = folder
            if folder in self.failed:
                continue
            if not is_done(Path(folder)):
                if self._stopped(flag, world) or (outcome := self._train_one(flag, world)) == "stopped":
                    requeue(flag, world.rank)
                    return "stopped"
                if outcome == "failed":
                    continue
            # Of several ranks one may hear of a stop after another has done its part: they meet in the next training.
            stopped |= bool(self.question) and self._measure_one(flag, world) == "stopped"
        if stopped:
            requeue(flag, world.rank)
            return "stopped"
        if self.failed:
            raise WorkError(f"{len(self.failed)} of {len(self.folders)} runs failed: {failures(self.failed)}")
        return "done"

    @property
    def question(self) -> str:
        """Of the run in hand; "" where nothing is asked."""
        return self.questions.get(self.folder, "")

    def measure(self, should_stop: StopFlag, world: World) -> str:
        return measure(Path(self.folder), self.question, should_stop, world)

    def lacks(self) -> bool:
        """Is something of this run not measured?"""
        return lacks(Path(self.folder), self.question)

    def _stopped(self, flag: StopFlag, world: World) -> bool:
        """Between two runs; ranks that may have heard of it at different times ask each other, inside the run."""
        return world.size == 1 and flag()

    def _train_one(self, flag: StopFlag, world: World) -> str:
        began = time.time()
        try:
            return self.train(flag)
        except Exception as e:
            self._note(e, world)
            if world.rank == 0:
                tell_failure(Path(self.folder), self.failed[self.folder], began)
            if world.size > 1:
                raise
            return "failed"

    def _measure_one(self, flag: StopFlag, world: World) -> str:
        try:
            if not self.lacks():
                return "done"
            return "stopped" if flag() else self.measure(flag, world)
        except Exception as e:
            self._note(e, world)
            tell_unmeasured(Path(self.folder), self.failed[self.folder])
            if world.size > 1:
                raise
            return "failed"

    def _note(self, error: Exception, world: World) -> None:
        self.failed[self.folder] = f"{type(error).__name__}: {error}"[:500]
        if world.size == 1:
            print(f"graticule: {self.folder}: {self.failed[self.folder]}; the next one", flush=True)


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
