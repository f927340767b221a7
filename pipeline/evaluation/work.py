"""One worker's part of an evaluation, and worker 0's: the numbers, the records, the report, the best checkpoints.

Reference first, then fakes, then what follows from both. Worker 0 says that a checkpoint is finished by a file, so
that nobody makes its fakes anew. Knows neither how a worker was started nor what a metric means.
"""

import contextlib
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from pipeline.evaluation.fakes import Fakes
from pipeline.evaluation.ledger import FOLDER, answers, is_model, mark_of, measured, place_of
from pipeline.evaluation.plan import Number, Part, Plan, Task, digest, plan
from pipeline.evaluation.question import Question
from pipeline.evaluation.report import write_report
from pipeline.lock import locked
from pipeline.metrics.compute import compute
from pipeline.metrics.extract import Extractor
from pipeline.metrics.protocols import better
from pipeline.metrics.reference import Reference
from pipeline.metrics.store import Store, fill
from pipeline.synthesis.sample import load_generator
from pipeline.tracking import inbox, jsonl
from pipeline.tracking.best import best_of, publish_best
from pipeline.training import checkpoint

MEANWHILE = "evaluating"  # why a checkpoint is kept while it is measured
LOCK, HANDOVER_SEC = ".measuring", 10.0  # a network file system lets go late of what a dead node held
Outcome = Literal["done", "stopped"]


class Work:
    """See `pipeline.evaluation.evaluate`."""

    def __init__(
        self,
        folder: Path,
        question: Question,
        worker: int,
        workers: int,
        device: str,
        should_stop: Callable[[], bool],
        told: Callable[[str, int, int], None],
        say: Callable[[str], None],
    ):
        self.folder, self.question, self.worker, self.workers = folder, question, worker, workers
        self.device, self.should_stop, self.told = device, should_stop, told
        self.say = say if worker == 0 else lambda line: None
        self._made_some = False  # fakes of the present task
        self._root = None if is_model(folder) else folder / "checkpoints"

    def go(self) -> Outcome:
        wanted = plan(self.folder, self.question, self.device)
        if self.worker:
            return self._all_of(wanted)
        busy = f"run={str(self.folder)!r}: {{holder}} is measuring it; wait until that has ended"
        with locked(self.folder / FOLDER / LOCK, busy, wait_sec=HANDOVER_SEC):
            return self._all_of(wanted)

    def _all_of(self, wanted: Plan) -> Outcome:
        for line in wanted.left_out:
            self.say(line)
        for task in wanted.tasks:
            parts = self._lacking(task, wanted.dataset_id)
            if parts and not self._measure(task, parts, wanted.dataset_id):
                return "stopped"
        if self.worker == 0 and self._root:
            for nimg in checkpoint.kept(self._root, MEANWHILE):  # of earlier ones that were killed, too
                checkpoint.release(self._root, nimg, MEANWHILE)
        return "done"

    def _lacking(self, task: Task, data: str) -> list[Part]:
        records, out = measured(self.folder), []
        for part in task.parts:
            left = []
            for number in part.numbers:
                record = records.get((task.weights.nimg, number.name))
                if answers(record, task.weights.sha256, data, part.filter, self.question.seed):
                    self.say(f"{task.weights.name}: {number.name} is measured already")
                else:
                    left.append(number)
            if left:
                out.append(Part(part.size, part.filter, tuple(left)))
        return out

    # --- all workers

    def _measure(self, task: Task, parts: list[Part], data: str) -> bool:
        """False: stopped before all was made."""
        place = place_of(self.folder, task.weights, self.question)
        finished = mark_of(place)
        if self.worker == 0:
            finished.unlink(missing_ok=True)
        if self._root:
            checkpoint.keep(self._root, task.weights.nimg, MEANWHILE)
        try:
            G = load_generator(self.folder / "config.json", task.weights.file, self.device)
        except OSError:
            G = None
        if G is None or not task.weights.intact():
            self.say(f"{task.weights.name}: its checkpoint went before it could be measured")
            return True
        stores, self._made_some = {}, False
        for part in parts:
            stores[part] = self._made(task, part, G, place, finished)
            if stores[part] is None:
                if self._made_some and finished.exists():
                    shutil.rmtree(place, ignore_errors=True)  # what came after worker 0 was done with it
                return self.worker > 0 and not self.should_stop()
        if self.worker == 0:
            del G
            self._finish(task, [record for part in parts for record in self._records(task, part, stores[part], data)])
            finished.parent.mkdir(exist_ok=True)
            finished.touch()
            shutil.rmtree(place, ignore_errors=True)
            with contextlib.suppress(OSError):
                place.parent.rmdir()  # where nothing else is kept
        return True

    def _made(self, task: Task, part: Part, G: Any, place: Path, finished: Path) -> Store | None:
        """The fakes of a size, with the reference before them; None if stopped, or finished by worker 0."""

        def stop() -> bool:
            return self.should_stop() or (self.worker > 0 and finished.exists())

        def telling(what: str) -> Callable[[int, int], None]:
            return lambda done, total: self.told(what, done, total)

        share: dict[str, Any] = {"worker": self.worker, "workers": self.workers, "stop": stop}
        for reference, n in _references(part).items():
            what = f"reference at {part.size.px} px, {reference.extractor.label}"
            if not reference.fill(n, told=telling(what), **share):
                return None
        first = part.numbers[0].reference  # labels are those of its set in one order, whatever is measured
        drawn = Reference(first.set_folder, replace(first.view, stored_order=False, mirror=False), first.extractor)
        fakes = Fakes(G, part.size, part.filter, self.question.seed, self.question.batch, drawn.labels)
        wanted: dict[str, tuple[Extractor, int]] = {}
        for number in part.numbers:
            _, count = wanted.get(number.prefix, (None, 0))
            wanted[number.prefix] = (number.extractor, max(number.protocol.fake, count))
        counts = sorted((prefix, count) for prefix, (_, count) in wanted.items())
        store = Store(place / f"{part.size}-{digest(counts)}", max(count for _, count in counts))

        def make(block: range) -> dict[str, Tensor]:
            self._made_some = True
            return fakes.make(block, wanted)

        whole = fill(store, make, told=telling(f"{task.weights.name}: fakes at {part.size} px"), **share)
        return store if whole else None

    # --- worker 0

    def _records(self, task: Task, part: Part, store: Store, data: str) -> list[dict[str, Any]]:
        return [self._record(task, part, number, store, data) for number in part.numbers]

    def _record(self, task: Task, part: Part, number: Number, store: Store, data: str) -> dict[str, Any]:
        protocol, reference = number.protocol, number.reference
        found = compute(protocol, reference.store, number.n_real, store, number.prefix, self.device)
        values = {number.name + suffix: value for suffix, value in found.values.items()}
        return {
            "nimg": task.weights.nimg,
            "time": time.time(),
            "attempt": jsonl.last(self.folder / jsonl.EVENTS).get("attempt", 0),
            "kind": number.name,
            "metrics": values,
            "of": {
                "weights": task.weights.sha256,
                "data": data,
                "filter": part.filter,
                "seed": self.question.seed,
                "says": f"{protocol.says(part.size.px)}{_more(part, reference, self.question.seed)}",
                "notes": list(found.notes),
                "better": {name: better(name.removeprefix(number.name) or protocol.kind) for name in values},
                "fakes": protocol.fake,
                "reals": number.n_real,
                "detector": number.extractor.label if protocol.detector else "",
                "metric": number.asked,
                "size": str(part.size),
                "trained": list(task.trained),
            },
        }

    def _finish(self, task: Task, records: list[dict[str, Any]]) -> None:
        for record in records:
            inbox.leave(self.folder, record)
            for name, value in record["metrics"].items():
                self.say(f"{task.weights.name}: {name} {value:.6g}")
        if self._root:
            self._keep_best(self._root)
            checkpoint.release(self._root, task.weights.nimg, MEANWHILE)
            for line in publish_best(self.folder):
                self.say(line)
        write_report(self.folder)

    def _keep_best(self, root: Path) -> None:
        """Markers of the best by each value; the earlier best's are taken away only then."""
        for name, best in best_of(self.folder).items():
            checkpoint.keep(root, best.nimg, name)
            for nimg in checkpoint.kept(root, name):
                if nimg != best.nimg:
                    checkpoint.release(root, nimg, name)


def _references(part: Part) -> dict[Reference, int]:
    """Each reference of a size, and how many of its images are wanted."""
    out: dict[Reference, int] = {}
    for number in part.numbers:
        out[number.reference] = max(number.n_real, out.get(number.reference, 0))
    return out


def _more(part: Part, reference: Reference, seed: int) -> str:
    """What a number's sentence says beyond its protocol."""
    view, said = reference.view, list[str]()
    if view.share < 1:
        said.append(f"of each real image a random crop of {view.share:.3g} of its side")
    if view.rotate:
        said.append("turned by 0 to 3 quarters")
    if view.filter:
        said.append(f"reals resized by {view.filter}")
    if part.size.of_px:
        said.append(f"fakes made at {part.size.of_px} px and reduced by {part.filter}")
    if seed:
        said.append(f"seeds from {seed} x 10^9 on")
    return f" {'; '.join(said).capitalize()}." if said else ""
