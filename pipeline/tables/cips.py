"""The tables of CIPS (2011.13775): FID of five sets, precision and recall, ablations, parameters, patches.

FID is the release's: torch-fidelity, against the first 50,000 images as they are stored. Lengths beyond Table 3's are
our reading (recipes/cips.py); the last checkpoint counts. Figures are pictures, which other verbs make. Does not know
how a number is taken.
"""

from collections.abc import Mapping

from pipeline.cost import parameters
from pipeline.plan import ExecConfig, RunConfig
from pipeline.recipes import find
from pipeline.tables.columns import SMALL_METRICS, SMALL_NOTE, fid, name_of, precision_recall, small, small_exec
from pipeline.tables.columns import small_measures as small_measures_at
from pipeline.tables.table import Asked, Axes, Comparison, Form, Label, Measure, Row, Table

PAPER = "CIPS (2011.13775)"
FID, FID_FULL, PR = "fid50k_first50k_fidelity", "fid50k_full_fidelity", "pr50k3_full"
FID_256 = fid(FID, 256, "FID")
SMALL_MEASURES = small_measures_at(32)
SMALL_ASKED = Asked(SMALL_METRICS, ("32",))
SMALL_KIMG = 0.5
LONG_NOTE = (
    "The paper does not say how many images its models saw: 25 million are our reading, and the last checkpoint counts."
)
ASKED = {"full": Asked((FID,), ("256",)), "small": SMALL_ASKED}


def _row(
    form: Form,
    name: str,
    recipe: str,
    labels: Mapping[str, Label],
    published: Mapping[str, str],
    which: str = "",
    metrics: Mapping[str, str] | None = None,
    asked: Asked | None = None,
) -> Row:
    run = find(f"cips.{recipe}").make()
    if form == "small":
        return small(name, labels, run.tiny(), SMALL_KIMG)
    return Row(name, labels, run, published, set=which, metrics=metrics or {}, asked=asked)


# --- Table 1

PRINTED1 = {  # set: name, FID, StyleGAN2's FID
    "ffhq": ("FFHQ", "4.38", "3.83"),
    "churches": ("LSUN churches", "2.92", "3.86"),
    "landscapes": ("landscapes", "3.61", "2.36"),
    "sat_buildings": ("satellite, buildings", "69.67", "73.67"),
    "sat_landscapes": ("satellite, landscapes", "48.47", "51.54"),
}


def table1_rows(form: Form) -> list[Row]:
    """Sets. The two of satellite pictures are compared with a crop of each picture, as they are trained on crops."""
    out = []
    for key, (title, published, other) in PRINTED1.items():
        labels = {"set": title, "generator": "CIPS", "StyleGAN2, published": other}
        few = key == "sat_landscapes"  # 2,608 pictures
        metrics = {FID_256.metric: name_of(FID_FULL, 256)} if few else {}
        said = {FID_256.key: published}
        asked = Asked((FID_FULL,), ("256",)) if few and form == "full" else None
        out.append(_row(form, key, f"table1_{key}", labels, said, key, metrics, asked))
    return out


TABLE1 = Table(
    name="cips.table1",
    title="CIPS at 256 px on five sets",
    place=f"{PAPER}, Table 1",
    rows=table1_rows,
    measures=(FID_256,),
    axes=Axes(x="set", line="generator"),
    seeds=(0,),
    needs="ffhq, churches (LSUN), landscapes at 256 px, sat_buildings at 300 px, sat_landscapes at 512 px; a row whose "
    "set is not given is left out",
    exec={"full": ExecConfig(gpus=8, milestone_kimg=1000), "small": small_exec(SMALL_KIMG)},
    notes=(
        LONG_NOTE,
        "The two satellite sets are trained on random crops; which crops the paper compared with is not known to us. "
        f"Ours is one random crop of each picture; {FID_FULL} for landscapes, of which there are but 2,608.",
        SMALL_NOTE,
    ),
    small_measures=SMALL_MEASURES,
    asked=ASKED,
)

# --- Table 2

PRECISION, RECALL = precision_recall(PR, 256, percent=False)


def table2_rows(form: Form) -> list[Row]:
    """One: the run of Table 1's FFHQ, which is trained once for both."""
    labels = {"set": "FFHQ", "generator": "CIPS", "StyleGAN2, published": "0.609 and 0.513"}
    return [_row(form, "ffhq", "table1_ffhq", labels, {PRECISION.key: "0.613", RECALL.key: "0.493"})]


TABLE2 = Table(
    name="cips.table2",
    title="precision and recall of CIPS at 256 px on FFHQ",
    place=f"{PAPER}, Table 2",
    rows=table2_rows,
    measures=(PRECISION, RECALL),
    axes=Axes(x="set", line="generator"),
    seeds=(0,),
    needs="FFHQ at 256 px",
    exec={"full": ExecConfig(gpus=8, milestone_kimg=1000), "small": small_exec(SMALL_KIMG)},
    notes=(
        f"The paper names neither features nor k nor how many images: {PR} is our reading. The run is Table 1's.",
        LONG_NOTE,
        SMALL_NOTE,
    ),
    small_measures=SMALL_MEASURES,
    asked={"full": Asked((PR,), ("256",)), "small": SMALL_ASKED},
)

# --- Table 3

PRINTED3 = {  # recipe: name of the row, FID
    "base": ("base", "6.71"),
    "ne": ("no embeddings", "12.71"),
    "no_fourier": ("no Fourier features", "10.18"),
    "main": ("main", "6.31"),
    "residual": ("residual", "6.52"),
    "sine": ("sine", "10.0"),
}


def table3_rows(form: Form) -> list[Row]:
    """Variants."""
    out = []
    for key, (variant, published) in PRINTED3.items():
        labels = {"px": 256 if form == "full" else 32, "variant": variant}
        out.append(_row(form, key, f"table3_{key}", labels, {FID_256.key: published}))
    return out


def _against_base(other: str, one: str = "base") -> Comparison:
    (better, low), (worse, high) = PRINTED3[one], PRINTED3[other]
    return Comparison(
        title=f"{better} against {worse}",
        metric=FID_256.key,
        column="variant",
        variant=better,
        against=worse,
        published=f"{low} against {high}",
    )


TABLE3 = Table(
    name="cips.table3",
    title="what CIPS consists of, at 256 px on FFHQ",
    place=f"{PAPER}, Table 3",
    rows=table3_rows,
    measures=(FID_256,),
    axes=Axes(x="px", line="variant"),
    comparisons=(
        _against_base("ne"),
        _against_base("no_fourier"),
        _against_base("base", "main"),
        _against_base("residual", "main"),
        _against_base("sine"),
    ),
    seeds=(0,),
    needs="FFHQ at 256 px",
    exec={"full": ExecConfig(gpus=4, milestone_kimg=400), "small": small_exec(SMALL_KIMG)},
    notes=(
        "4.8 million images in batches of 16, as the paper has it; the last checkpoint counts. What the inputs of the "
        "rows without embeddings or Fourier features, and of sine, consist of is our choice (models/cips.py).",
        SMALL_NOTE,
    ),
    small_measures=SMALL_MEASURES,
    asked=ASKED,
)

# --- Table 4

PRINTED4 = {  # row: recipe, millions of parameters
    "StyleGAN2": ("mspie.table2_a", "30.0"),
    "CIPS main": ("cips.table3_main", "45.9"),
    "CIPS base": ("cips.table3_base", "43.8"),
    "CIPS, no embeddings": ("cips.table3_ne", "10.2"),
}


def millions(run: RunConfig) -> float:
    """Trainable parameters of G, in millions."""
    return parameters(run.family)["G"] / 1e6


PARAMETERS = Measure("parameters", "parameters of G, millions", "lower", of=millions)


def table4_rows(form: Form) -> list[Row]:
    """Generators, the same in both forms: nothing is trained."""
    made = [(find(recipe).make(), name, said) for name, (recipe, said) in PRINTED4.items()]
    return [Row(run.recipe, {"px": 256, "generator": name}, run, {PARAMETERS.key: said}) for run, name, said in made]


TABLE4 = Table(
    name="cips.table4",
    title="sizes of generators at 256 px",
    place=f"{PAPER}, Table 4",
    rows=table4_rows,
    measures=(PARAMETERS,),
    axes=Axes(x="px", line="generator"),
    seeds=(0,),
    notes=(
        "Counted from the configurations; nothing is trained. CIPS counts a noise strength for each layer. Without "
        "embeddings the paper's 10.2 fit 1024 Fourier features in their place, and not 512 features alone (9.7).",
    ),
)

# --- Table 5

PRINTED5 = {  # set: name, side of the patch -> FID
    "ffhq": ("FFHQ", {256: "4.38", 128: "9.08", 64: "11.79"}),
    "churches": ("LSUN churches", {256: "2.92", 128: "7.08", 64: "11.53"}),
}


def table5_rows(form: Form) -> list[Row]:
    """Sets x sides of patches; whole images are the runs of Table 1."""
    out = []
    for key, (title, published) in PRINTED5.items():
        for side, said in published.items():
            recipe = f"table1_{key}" if side == 256 else f"table5_{key}_{side}"
            labels = {"set": title, "patch": side if form == "full" else side // 8}
            out.append(_row(form, f"{key}-{side}", recipe, labels, {FID_256.key: said}, key))
    return out


def _whole_against(side: int) -> Comparison:
    told = "; ".join(f"{title}: {p[256]} against {p[side]}" for title, p in PRINTED5.values())
    return Comparison(f"whole images against patches of {side}", FID_256.key, "patch", 256, side, published=told)


TABLE5 = Table(
    name="cips.table5",
    title="CIPS at 256 px trained on patches",
    place=f"{PAPER}, Table 5",
    rows=table5_rows,
    measures=(FID_256,),
    axes=Axes(x="patch", line="set"),
    comparisons=(_whole_against(128), _whole_against(64)),
    seeds=(0,),
    needs="ffhq and churches (LSUN) at 256 px; a row whose set is not given is left out",
    exec={"full": ExecConfig(gpus=8, milestone_kimg=1000), "small": small_exec(SMALL_KIMG)},
    notes=(
        LONG_NOTE,
        "Which strides the table was made with is not said: here all powers of two, equally often.",
        "Whole images are the runs of cips.table1.",
        SMALL_NOTE,
    ),
    small_measures=SMALL_MEASURES,
    asked=ASKED,
)

TABLES = (TABLE1, TABLE2, TABLE3, TABLE4, TABLE5)
