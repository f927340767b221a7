"""Columns and forms that tables of generators share: evaluation metrics by name, and what stands for them when small.

The small form trains a recipe's `tiny()` on bundled photographs and measures what needs no detector file. It shows that
a row can be trained, measured and reported; none of its numbers is comparable with a published one. Knows no paper.
"""

from collections.abc import Mapping

from pipeline.plan import ExecConfig, RunConfig
from pipeline.tables.table import Asked, DataSet, Label, Measure, Row

SMALL_METRICS = ("swd256", "spectra256")
SMALL_NOTE = (
    "The small form trains narrow networks for a short while at few pixels on photographs that Python packages carry, "
    "and measures sliced Wasserstein distances and spectra on 256 images: none of its numbers says "
    "anything of the paper."
)


def name_of(metric: str, size_px: int) -> str:
    """Of a number in metrics.jsonl: `graticule evaluate` with this metric at this size."""
    return f"Metrics/{metric}/{size_px}px"


def fid(metric: str, size_px: int, title: str, *, until_kimg: float | None = None, best: bool = False) -> Measure:
    """Last, or best, with as many digits as papers print."""
    return Measure(name_of(metric, size_px), title, "lower", best=best, until_kimg=until_kimg)


def precision_recall(
    metric: str, size_px: int, suffix: str = "", *, at_best_of: str = "", percent: bool = True
) -> tuple[Measure, Measure]:
    """`suffix` tells columns of several sizes apart."""

    def one(which: str) -> Measure:
        name, digits = f"{name_of(metric, size_px)}/{which}", 4 if percent else 3
        return Measure(name, f"{which}{suffix}", "higher", digits=digits, percent=percent, at_best_of=at_best_of)

    return one("precision"), one("recall")


def swd(metric: str, size_px: int, levels_px: tuple[int, ...]) -> tuple[Measure, ...]:
    """Distances times 1000 of these levels of the pyramid, and the mean of those of 32 px and above."""
    words = {f"/{px}": f"{px} px" for px in levels_px} | {"/avg32": "average"}
    name = name_of(metric, size_px)
    return tuple(Measure(f"{name}{suffix}", f"SWD x 1000, {said}", "lower", digits=4) for suffix, said in words.items())


def small_measures(*sizes_px: int) -> tuple[Measure, ...]:
    """What SMALL_METRICS give at these sizes."""
    titles = {"swd256": "SWD x 1000", "spectra256": "spectra, dB"}
    return tuple(
        Measure(name_of(metric, px), f"{title}, {px} px", "lower")
        for px in sizes_px
        for metric, title in titles.items()
    )


# --- small forms

SMALL_EXEC = ExecConfig(workers=1, track=False, status_kimg=0.05, sample_kimg=1000, checkpoint_kimg=1000)


def small_exec(kimg: float | int) -> ExecConfig:
    """Of runs of this length: measured half-way too, so that there is a curve."""
    return SMALL_EXEC.replace(checkpoint_kimg=kimg / 2)


def small(
    name: str,
    labels: Mapping[str, Label],
    run: RunConfig,
    kimg: float | int,
    asked: Asked | None = None,
    metrics: Mapping[str, str] | None = None,
) -> Row:
    """A row of a tiny run of this length on bundled photographs."""
    run = run.replace(total_kimg=kimg)
    photos = DataSet("photos", None, run.data.size_px)
    return Row(name, labels, run, data=photos, asked=asked, metrics=metrics or {})
