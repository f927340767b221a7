"""A table of three rows whose networks have a few thousand parameters and train in a second on bundled photographs."""

from pipeline.config import override
from pipeline.plan import ExecConfig, RunConfig
from pipeline.recipes import find
from pipeline.tables.table import Axes, Comparison, DataSet, Form, Measure, Row, Table
from tests.runs import CIPS, FEW_PIXELS, SMALL

LOSS = "Loss/D/adv"
PUBLISHED = {"wide": {LOSS: "0.7"}}
KIMG = 0.032
BROKEN = "broken"  # its losses are not finite from the second iteration on
EXEC = ExecConfig(workers=0, track=False, not_finite_limit=1, sample_kimg=100, status_kimg=0.016, checkpoint_kimg=0.016)


def run_of(width: int, *sets: str) -> RunConfig:
    run = find(CIPS).make().tiny()
    few = [*SMALL[CIPS], *FEW_PIXELS[CIPS], "data.size_px=32", f"total_kimg={KIMG}", f"family.G.width={width}"]
    return override(run, [*few, *sets])


def rows(form: Form) -> list[Row]:
    """ "full" has a row that fails."""
    data = DataSet("photos", None, 32)
    out = [
        Row(name, {"variant": name, "x": 1}, run_of(width), PUBLISHED.get(name, {}), data)
        for name, width in (("narrow", 8), ("wide", 12))
    ]
    if form == "full":
        out.insert(1, Row(BROKEN, {"variant": BROKEN, "x": 1}, run_of(8, "family.lr=1e30"), data=data))
    return out


TOY = Table(
    name="toy.widths",
    title="narrow and wide",
    place="Table 0",
    rows=rows,
    measures=(Measure(LOSS, "loss of D", "lower"),),
    axes=Axes(x="x", line="variant"),
    comparisons=(Comparison("wide against narrow", LOSS, "variant", "wide", "narrow", published="10% lower"),),
    seeds=(0, 1),
    exec={"small": EXEC, "full": EXEC},
)
