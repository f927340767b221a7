"""A table of a paper as data: its rows, what is measured of each, what is compared, and what was published.

A row is a RunConfig trained once for each seed. Everything here is a plain value: how rows are submitted, read and
printed is decided elsewhere, and nothing knows a paper by name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pipeline.plan import ExecConfig, RunConfig

Form = Literal["small", "full"]
"""small: documented, for two CPU cores; full: as published, or as long as it takes, for GPUs."""
Label = str | int


@dataclass(frozen=True)
class DataSet:
    """A prepared set that needs no download: the words that `graticule prep` would be given."""

    source: str
    split: str | None
    size_px: int

    @property
    def folder(self) -> str:
        """Its name below the folder of data sets."""
        return "-".join(filter(None, (self.source, self.split, str(self.size_px))))


@dataclass(frozen=True)
class Asked:
    """What a row's checkpoints are measured by, once it is trained: the words of `graticule evaluate`."""

    metrics: tuple[str, ...]  # protocols
    sizes: tuple[str, ...] = ()  # all that are trained, if none is given
    checkpoints: str = "all"  # all that are kept, or newest


@dataclass(frozen=True)
class Row:
    """One line of a table; `run` is trained once for each seed."""

    name: str  # unique in its table
    labels: Mapping[str, Label]  # column -> what stands in it
    run: RunConfig
    published: Mapping[str, str] = field(default_factory=dict)  # key of a measure -> as the paper prints it
    data: DataSet | None = None  # None: given by the user
    set: str = ""  # without `data`, which of several sets the user gives: --data NAME=DIR
    validation: tuple[DataSet, ...] = ()  # with `data`; otherwise the user's
    metrics: Mapping[str, str] = field(default_factory=dict)  # a measure's metric -> its name in these runs, if another
    asked: Asked | None = None  # where it is evaluated otherwise than the table's other rows; no metrics: not at all


@dataclass(frozen=True)
class Measure:
    """A number of metrics.jsonl that is a column.

    The last one of a run, or the best before so many images: papers print the best checkpoint of a length. `of` takes
    it from the configuration instead: no run is needed.
    """

    metric: str  # its name in metrics.jsonl; columns of one table that share it differ in `until_kimg`
    title: str
    better: Literal["lower", "higher"]
    digits: int = 3  # significant ones
    percent: bool = False  # a share of 1, shown times 100
    best: bool = False  # the best of the run's values, not the last
    until_kimg: float | None = None  # only values up to so many thousand images
    at_best_of: str = ""  # the key of another measure: this metric's value at the nimg of that one's best
    of: Callable[[RunConfig], float] | None = None

    @property
    def key(self) -> str:
        """What `Row.published` and comparisons name it by: the metric, and "@kimg" where there is a limit."""
        return self.metric if self.until_kimg is None else f"{self.metric}@{self.until_kimg:g}"


@dataclass(frozen=True)
class Comparison:
    """One variant against another, over all pairs of rows that agree in the other labels.

    `kind`: relative, by how much of the other's mean the variant's is lower (or higher, where higher is better);
    difference, the same in units of the measure. Positive is always in favour of the variant.
    """

    title: str
    metric: str  # key of a measure
    column: str  # the label that tells the two apart
    variant: Label
    against: Label
    within: Mapping[str, Label] = field(default_factory=dict)  # only rows with these labels
    kind: Literal["relative", "difference"] = "relative"
    published: str = ""  # as the paper states it
    claim: Literal["better", ""] = "better"  # the sign that the paper states, if it states any


@dataclass(frozen=True)
class Axes:
    """Which labels a plot is spread over."""

    x: str
    line: str
    panel: str = ""


@dataclass(frozen=True)
class Table:
    """A table or figure of a paper."""

    name: str
    title: str
    place: str  # in the paper
    rows: Callable[[Form], Sequence[Row]]
    measures: tuple[Measure, ...]
    axes: Axes
    comparisons: tuple[Comparison, ...] = ()
    group: str = ""  # the label whose values are reported in parts of their own
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    exec: Mapping[str, ExecConfig] = field(default_factory=dict)  # form -> how its runs are executed
    needs: str = ""  # the sets that the user must have, where the rows have none
    notes: tuple[str, ...] = ()  # what a reader must know to read the numbers
    small_measures: tuple[Measure, ...] = ()  # of the small form, where they are others
    asked: Mapping[str, Asked] = field(default_factory=dict)  # form -> what is evaluated; nothing if not given

    def exec_of(self, form: Form) -> ExecConfig:
        """How a form's runs are executed."""
        return self.exec.get(form, ExecConfig())

    def columns(self, form: Form) -> tuple[Measure, ...]:
        """A form's measures."""
        return self.small_measures if form == "small" and self.small_measures else self.measures

    def asked_of(self, row: Row, form: Form) -> Asked | None:
        """What this row's checkpoints are measured by; None: nothing."""
        asked = row.asked or self.asked.get(form)
        return asked if asked and asked.metrics else None

    def trains(self, form: Form) -> bool:
        """False where all columns come from configurations: there is nothing to run."""
        return any(m.of is None for m in self.columns(form))

    def validates(self, form: Form) -> bool:
        """Whether a column is measured on held-out images, so that rows without `data` need --validation."""
        return any(m.metric.startswith("Validation/") for m in self.columns(form))

    def measure(self, key: str) -> Measure:
        """The column of that key."""
        return next(m for m in (*self.measures, *self.small_measures) if m.key == key)

    def groups(self, rows: Sequence[Row]) -> dict[Label, list[Row]]:
        """Rows by the label `group`, all in one where there is none."""
        out: dict[Label, list[Row]] = {}
        for row in rows:
            out.setdefault(row.labels[self.group] if self.group else "", []).append(row)
        return out
