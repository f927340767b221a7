"""What a Question means for a folder: which weights at which sizes, which metrics, and against which images.

Everything that a user can have wrong is found here, before anything is written: UserErrors of one line. Loads the
generator, to see what it makes, and the detectors. Knows no formula.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.data.filters import find_filter
from pipeline.data.manifest import load_manifest
from pipeline.errors import UserError
from pipeline.evaluation.ledger import Weights, check_local, chosen, is_model
from pipeline.evaluation.question import Question, Size, parse_size
from pipeline.metrics.extract import Extractor, extractor_of
from pipeline.metrics.protocols import Protocol, metric_name, parse
from pipeline.metrics.reference import Reference, View, check_view
from pipeline.run import Launch, read_run
from pipeline.synthesis.sample import load_generator


@dataclass(frozen=True, eq=False)
class Number:
    """One metric at one size. `name`: of its record; values append their suffix."""

    asked: str  # the user's word
    name: str
    protocol: Protocol
    extractor: Extractor
    reference: Reference
    n_real: int

    @property
    def prefix(self) -> str:
        """Before the names of its tensors where those of several extractors lie together."""
        return f"{digest(self.extractor.key)}/"


@dataclass(frozen=True, eq=False)
class Part:
    """All numbers at one size. `filter`: of reals or fakes that are resized, "" where none is."""

    size: Size
    filter: str
    numbers: tuple[Number, ...]


@dataclass(frozen=True, eq=False)
class Task:
    """One checkpoint. `trained`: the sizes that are measured where none is asked for."""

    weights: Weights
    parts: tuple[Part, ...]
    trained: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """`left_out`: checkpoints that do not make what is asked for, a line each."""

    tasks: tuple[Task, ...]
    dataset_id: str
    left_out: tuple[str, ...]


def plan(folder: Path, question: Question, device: str = "cpu") -> Plan:
    """All tasks; UserError in one line for what is off. Writes nothing."""
    return _Planner(folder, question, device).plan()


class _Planner:
    def __init__(self, folder: Path, question: Question, device: str):
        self.folder, self.question, self.device = folder, question, device
        self.protocols = {text: parse(text) for text in question.metrics}
        find_filter(question.filter)
        self.weights = chosen(folder, question)
        self.run = read_run(folder)
        self.data = self._set()
        self.manifest = load_manifest(self.data)
        self._extractors: dict[tuple[str, int], Extractor] = {}  # a detector serves all metrics of a size
        self._references: dict[tuple[View, str], Reference] = {}
        self._parts: dict[Size, Part] = {}
        self._trained: tuple[Size, ...] = ()

    def plan(self) -> Plan:
        if self.run.data.dataset_id != self.manifest.dataset_id and not self.question.data:
            raise UserError(
                f"data={str(self.data)!r} is data set {self.manifest.dataset_id}, this run was made with "
                f"{self.run.data.dataset_id}; say with --data where that set is"
            )
        tasks, left_out = [], []
        for one in self.weights:
            try:
                trained = self._sizes_of(one)
            except UserError as e:
                if len(self.weights) == 1:
                    raise
                left_out.append(f"{one.name} is left out: {e}")
                continue
            sizes = [parse_size(text) for text in self.question.sizes] or trained
            tasks.append(Task(one, tuple(map(self._part, sizes)), tuple(map(str, trained))))
        if not tasks:
            raise UserError(left_out[-1])
        self._check_filter(tasks)
        return Plan(tuple(tasks), self.manifest.dataset_id, tuple(left_out))

    def _set(self) -> Path:
        """The folder of the set to compare with."""
        given, path = self.question.data, self.folder / "exec.json"
        if not given:
            if is_model(self.folder) or not path.is_file():
                raise UserError(f"data: {self.folder} has no data set of its own; say with --data what to compare with")
            sets = Launch.from_json(path.read_text(), where=str(path)).data
            if len(sets) != 1:
                raise UserError(
                    f"data: {self.folder} is trained on a mix of {len(sets)} sets; say with --data which images to "
                    "compare with"
                )
            given = sets[0]
        check_local(given)
        return Path(given)

    def _sizes_of(self, one: Weights) -> tuple[Size, ...]:
        """What these weights are measured at if nothing is asked for; UserError where that, or what is asked, is not
        made, is no square, or wants other classes than the set has."""
        family = self.run.family
        if self._trained and not family.staged():
            return self._trained
        G: Any = load_generator(self.folder / "config.json", one.file)
        classes, there = getattr(G, "num_classes", 0), len(self.manifest.classes)
        if classes and classes != there:
            raise UserError(
                f"data={str(self.data)!r} has {there} classes, the generator has {classes}; give the set that it was "
                "trained on, or one with these classes"
            )
        height, width = G.native_size
        made = [(height, width)] if family.staged() or height != width else list(family.sizes())
        if other := [f"{h}x{w}" for h, w in made if h != w]:
            raise UserError(f"{one.name}: the generator makes {other[0]} px; metrics compare squares")
        for size in map(parse_size, self.question.sizes):
            if (size.made_px, size.made_px) not in made:
                sides = ", ".join(str(h) for h, _ in made)
                raise UserError(f"size={str(size)!r}: {one.name} was not trained at {size.made_px} px; use {sides}")
        self._trained = tuple(Size(h) for h, _ in made)
        return self._trained

    def _part(self, size: Size) -> Part:
        if size not in self._parts:
            share = self.run.family.G.size_px / self.run.family.stored_px() if self._crops else 1  # type: ignore
            stored = round(share * self.manifest.size_px) == size.px
            view_filter = "" if stored else self.question.filter
            check_view(self.manifest, size.px, view_filter, share, self.data)
            numbers = [self._number(text, p, size, view_filter, share) for text, p in self.protocols.items()]
            used = self.question.filter if view_filter or size.of_px else ""
            self._parts[size] = Part(size, used, tuple({number.name: number for number in numbers}.values()))
        return self._parts[size]

    @cached_property
    def _crops(self) -> bool:
        """Is the run trained on random crops of its stored images?"""
        return bool(getattr(self.run.family, "crop_of_px", None))

    def _number(self, text: str, protocol: Protocol, size: Size, filter: str, share: float | int) -> Number:
        key = (protocol.detector or text, size.px)
        if key not in self._extractors:
            self._extractors[key] = extractor_of(protocol, size.px, self.device)
        extractor = self._extractors[key]
        turned = bool(getattr(self.run.family, "rotate", False))
        view = View(size.px, filter, protocol.mirror, protocol.stored_order, share, turned)
        place = Path(self.question.references) if self.question.references else None
        known = (view, digest(extractor.key))
        if known not in self._references:
            self._references[known] = Reference(self.data, view, extractor, place)
        reference = self._references[known]
        n = reference.n(protocol.real, protocol.name)
        if n < protocol.least:
            raise UserError(
                f"metric={text!r} needs {protocol.least} real images, data={str(self.data)!r} holds {n}; give more"
            )
        reference.check_writable(n)
        name = metric_name(protocol, extractor.label, size.px, size.of_px) + self._beside(filter or size.of_px)
        return Number(text, name, protocol, extractor, reference, n)

    def _beside(self, resized: object) -> str:
        """What a name says where images, filter or seeds are not the usual ones: such numbers are other numbers."""
        words = []
        if self.run.data.dataset_id not in ("", self.manifest.dataset_id):
            words.append(f"vs_{self.manifest.dataset_id[:8]}")
        if resized and self.question.filter != _usual("filter"):
            words.append(self.question.filter)
        if self.question.seed:
            words.append(f"seed{self.question.seed}")
        return "".join(f"_{word}" for word in words)

    def _check_filter(self, tasks: Sequence[Task]) -> None:
        if self.question.filter != _usual("filter") and not any(part.filter for task in tasks for part in task.parts):
            raise UserError(
                f"filter={self.question.filter!r}: nothing is resized, {self.data} is stored at the size that is "
                "measured; leave it out"
            )


def _usual(field: str) -> Any:
    return Question.model_fields[field].default


def digest(key: Any) -> str:
    """Eight hex digits of what is JSON."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:8]
