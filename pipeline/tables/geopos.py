"""The tables of GeoPos (2401.01951): centre of mass, positional bias, autoencoders, depth, faces and hands.

The paper publishes ratios, epochs and pictures, and no number of a row; what had to be chosen beside it is said in the
recipes and notes. Each variant is ordinary convolution, CoordConv or GeoConv; five seeds, as the paper has for its
autoencoders, and one for what is long or a picture. Crossings with MS-PIE, which no paper did, are recipes alone.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pipeline.config import Config
from pipeline.models.coordnet import match_parameters
from pipeline.plan import ExecConfig, RunConfig
from pipeline.recipes import find
from pipeline.tables.columns import small
from pipeline.tables.table import Axes, Comparison, DataSet, Form, Label, Measure, Row, Table

VARIANTS = {"conv": "Conv", "coord": "CoordConv", "geo": "GeoConv"}
ARCHITECTURE, PARAMETERS = "equal architecture", "equal parameters"
SMALL = ExecConfig(workers=1, track=False, status_kimg=2, sample_kimg=1000, validate_kimg=4, checkpoint_kimg=8)

# --- centre of mass (Fig. 4)

SWEEP = {"small": ((2, 4), (8, 16)), "full": ((2, 3, 4, 6), (8, 16, 32, 64))}  # layers, filters
COM_KIMG = {"small": 32.0, "full": 320.0}


def com_rows(form: Form) -> list[Row]:
    """Variants x layers x filters, twice: all else equal, and filters chosen for as many parameters as CoordConv's."""
    out = []
    for budget in (ARCHITECTURE, PARAMETERS):
        for layers in SWEEP[form][0]:
            for filters in SWEEP[form][1]:
                out += [_com_row(form, budget, kind, layers, filters) for kind in VARIANTS]
    return out


def _com_row(form: Form, budget: str, kind: str, layers: int, filters: int) -> Row:
    run = _sized(f"geopos.com_{kind}", layers, filters).replace(total_kimg=COM_KIMG[form])
    if budget == PARAMETERS and kind != "coord":
        target = _net(_sized("geopos.com_coord", layers, filters)).parameters()
        run = _with_net(run, match_parameters(_net(run), target))
    labels = {"variant": VARIANTS[kind], "layers": layers, "filters": filters, "budget": budget}
    name = f"{kind}-{layers}x{filters}-{budget.replace(' ', '-')}"
    data, held_out = (DataSet("densities", split, run.data.size_px) for split in ("train", "validation"))
    return Row(name, labels, run, data=data, validation=(held_out,))


def _sized(recipe: str, layers: int, filters: int) -> RunConfig:
    run = find(recipe).make()
    return _with_net(run, _net(run).replace(layers=layers, filters=filters))


def _with_net(run: RunConfig, net: Config) -> RunConfig:
    return run.replace(family=run.family.replace(G=net))


def _net(run: RunConfig) -> Any:
    return run.family.G  # type: ignore[attr-defined]  # every family here has one


def _geo_against(
    metric: str,
    published: Mapping[str, str],
    within: Mapping[str, Label] | None = None,
    kind: Literal["relative", "difference"] = "relative",
) -> list[Comparison]:
    """GeoConv against each of the others, with what the paper states of it."""
    place = "".join(f", {value}" for value in (within or {}).values())
    return [
        Comparison(
            title=f"GeoConv against {other}{place}",
            metric=metric,
            column="variant",
            variant="GeoConv",
            against=other,
            within=within or {},
            kind=kind,
            published=said,
            claim="better" if said else "",
        )
        for other, said in published.items()
    ]


COM = Table(
    name="geopos.com",
    title="centre of mass by Conv, CoordConv and GeoConv",
    place="GeoPos (2401.01951), Fig. 4",
    rows=com_rows,
    measures=(Measure("Validation/mse", "validation loss", "lower"),),
    axes=Axes(x="filters", line="variant", panel="layers"),
    comparisons=tuple(
        c
        for budget in (ARCHITECTURE, PARAMETERS)
        for c in _geo_against(
            "Validation/mse", {"Conv": "46% lower", "CoordConv": "57% lower"}, within={"budget": budget}
        )
    ),
    group="budget",
    exec={"small": SMALL, "full": ExecConfig(validate_kimg=10, checkpoint_kimg=50)},
    notes=(
        "The paper publishes two ratios and no number of a row. Densities, image size, widths, optimizer and length "
        "are our choice; the loss is the mean squared error on 700 held-out images.",
        "Equal parameters: Conv and GeoConv with the filters that come nearest to CoordConv's count.",
    ),
)

# --- positional bias

TASKS = {"identity": ("seen", "unseen"), "relative": ("seen", "unseen"), "absolute": ("seen",)}
SEEN, UNSEEN = "Validation/seen/accuracy", "Validation/unseen/accuracy"
BIAS_KIMG = {"small": 36.0, "full": 240.0}


def bias_rows(form: Form) -> list[Row]:
    """Tasks x variants."""
    return [_bias_row(form, task, kind) for task in TASKS for kind in VARIANTS]


def _bias_row(form: Form, task: str, kind: str) -> Row:
    run = find(f"geopos.bias_{task}_{kind}").make().replace(total_kimg=BIAS_KIMG[form])
    splits = TASKS[task]
    one = len(splits) == 1  # a single held-out set has no name in its metrics
    metrics = {
        f"Validation/{split}/accuracy": "Validation/accuracy" if one else f"Validation/{task}-{split}/accuracy"
        for split in splits
    }
    return Row(
        f"{task}-{kind}",
        {"task": task, "variant": VARIANTS[kind]},
        run,
        data=DataSet("glyphs", f"{task}-train", run.data.size_px),
        validation=tuple(DataSet("glyphs", f"{task}-{split}", run.data.size_px) for split in splits),
        metrics=metrics,
    )


BIAS = Table(
    name="geopos.bias",
    title="positional bias: Greek letters where they were trained, and elsewhere",
    place="GeoPos (2401.01951), classification by absolute and relative position",
    rows=bias_rows,
    measures=(
        Measure(SEEN, "accuracy where trained", "higher", percent=True),
        Measure(UNSEEN, "accuracy elsewhere", "higher", percent=True),
    ),
    axes=Axes(x="task", line="variant"),
    comparisons=tuple(
        c
        for metric, tasks in ((UNSEEN, ("identity", "relative")), (SEEN, ("absolute",)))
        for task in tasks
        for c in _geo_against(metric, {"Conv": "", "CoordConv": ""}, within={"task": task}, kind="difference")
    ),
    exec={"small": SMALL, "full": ExecConfig(validate_kimg=20, checkpoint_kimg=100)},
    notes=(
        "Letters, placement and splits are our choice; of the paper's experiment no number is known to us. identity "
        "and relative are trained in the upper left quarter and measured there and wholly outside of it; absolute asks "
        "where a letter lies, so there is no elsewhere.",
        "Chance is 4.2% for identity (24 letters), 25% for relative, 11.1% for absolute.",
    ),
)

# --- variational autoencoders

SIZES = (256, 384, 512)
VAE_KIMG: dict[str, float | None] = {"small": 16.0, "full": None}  # None: the recipe's


def vae_rows(form: Form) -> list[Row]:
    """Sizes of z x variants; small: narrow networks at fewer pixels, whose numbers say nothing of the paper's."""
    out = []
    for d in SIZES:
        for kind, variant in VARIANTS.items():
            run, kimg = find(f"geopos.vae_{d}_{kind}").make(), VAE_KIMG[form]
            if kimg is not None:
                small = _net(run).replace(resolution_px=32, channel_base=8)
                run = _with_net(run, small).replace(data=run.data.replace(size_px=32), total_kimg=kimg)
            out.append(Row(f"d{d}-{kind}", {"d": d, "variant": variant}, run))
    return out


VAE = Table(
    name="geopos.vae",
    title="autoencoders of 256, 384 and 512 dimensions by Conv, CoordConv and GeoConv",
    place="GeoPos (2401.01951), VAE on CelebA",
    rows=vae_rows,
    measures=(
        Measure("Validation/loss", "validation loss", "lower", digits=5),
        Measure("Validation/reconstruction", "validation reconstruction", "lower", digits=5),
        Measure("Loss/G/loss", "training loss", "lower", digits=5),
    ),
    axes=Axes(x="d", line="variant"),
    comparisons=tuple(
        c
        for metric in ("Validation/loss", "Loss/G/loss")
        for c in _geo_against(metric, {"Conv": "10-25% lower", "CoordConv": "10-25% lower"})
    ),
    needs="CelebA's train part at --size 64 (32 for the small form) as --data, its val part as --validation",
    exec={"small": SMALL, "full": ExecConfig(validate_kimg=160, checkpoint_kimg=160)},
    notes=(
        "The paper publishes ratios (losses 10-25% lower, intervals 5-11 times narrower) and no number of a row; "
        "likelihood, weights, image size and length are our choice. Losses are nats an image.",
    ),
)

# --- depth


def depth_rows(form: Form) -> list[Row]:
    """Variants; small: narrow networks at 32 px, whose numbers say nothing of the paper's."""
    out = []
    for kind, variant in VARIANTS.items():
        run = find(f"geopos.depth_{kind}").make()
        run = run if form == "full" else run.tiny().replace(total_kimg=8.0)
        out.append(Row(kind, {"px": run.data.size_px, "variant": variant}, run))
    return out


DEPTH = Table(
    name="geopos.depth",
    title="depth from one photograph by Conv, CoordConv and GeoConv",
    place="GeoPos (2401.01951, version 2), monocular depth",
    rows=depth_rows,
    measures=(
        Measure("Validation/abs_rel", "mean of |error| / depth", "lower"),
        Measure("Validation/rmse", "RMSE, m", "lower"),
        Measure("Validation/delta1", "off by a factor below 1.25", "higher", percent=True),
    ),
    axes=Axes(x="px", line="variant"),
    comparisons=tuple(_geo_against("Validation/abs_rel", {"Conv": "", "CoordConv": ""})),
    needs="photographs with depth (graticule prep depth) at --size 128 (32 for the small form) as --data, held-out "
    "ones as --validation",
    exec={"small": SMALL, "full": ExecConfig()},
    notes=("Of the paper's experiment no number is known to us; data, network, loss and length are our choice.",),
)

# --- faces and hands

DIVERSITY = "Collapse/diversity"
EPOCH_KIMG = 202.599  # of CelebA
EPOCHS = (30, 300, 450)
COLLAPSED = {"coord": (30, "collapsed"), "conv": (300, "collapsed (epoch 250-300)"), "geo": (450, "not collapsed")}
GAN_SMALL = SMALL.replace(status_kimg=0.25, checkpoint_kimg=1000.0)


def _diversity(epoch: int) -> Measure:
    until = round(epoch * EPOCH_KIMG, 0) if epoch < 450 else None  # the last epoch is the end of the run
    return Measure(DIVERSITY, f"diversity, epoch {epoch}", "higher", until_kimg=until)


FACES_MEASURES = {epoch: _diversity(epoch) for epoch in EPOCHS}


def faces_rows(form: Form) -> list[Row]:
    """Variants."""
    return [_gan_row(form, "faces", kind) for kind in VARIANTS]


def hands_rows(form: Form) -> list[Row]:
    """Variants; small: the ten photographs for labels."""
    return [_gan_row(form, "asl", kind) for kind in VARIANTS]


def _gan_row(form: Form, what: str, kind: str) -> Row:
    run = find(f"geopos.{what}_{kind}").make()
    if form == "full":
        epoch, said = COLLAPSED[kind]
        published = {FACES_MEASURES[epoch].key: said} if what == "faces" else {}
        return Row(kind, {"px": run.data.size_px, "variant": VARIANTS[kind]}, run, published)
    run = run.tiny()
    if what == "asl":
        net, critic = _net(run).replace(num_classes=10), run.family.D.replace(num_classes=10)  # type: ignore[attr-defined]
        run = run.replace(family=run.family.replace(G=net, D=critic))
    return small(kind, {"px": run.data.size_px, "variant": VARIANTS[kind]}, run, 4.0)


DIVERSITY_NOTE = (
    "Diversity is how far apart two fakes are, over how far apart two reals are (RMS over pixels, one status window); "
    "below 0.1 for five windows counts as collapsed, which is an event in events.jsonl."
)
FACES = Table(
    name="geopos.faces",
    title="when a GAN on faces collapses, by Conv, CoordConv and GeoConv",
    place="GeoPos (2401.01951), GAN on faces",
    rows=faces_rows,
    measures=tuple(FACES_MEASURES.values()),
    small_measures=(Measure(DIVERSITY, "diversity", "higher"),),
    axes=Axes(x="px", line="variant"),
    seeds=(0,),
    needs="CelebA at 64 px",
    exec={"small": GAN_SMALL, "full": ExecConfig(status_kimg=40)},
    notes=(
        "Published is when each collapsed, not how that was seen, nor on which set; an epoch is 202,599 faces here.",
        DIVERSITY_NOTE,
    ),
)
HANDS = Table(
    name="geopos.asl",
    title="hands by label, by Conv, CoordConv and GeoConv",
    place="GeoPos (2401.01951), American sign language",
    rows=hands_rows,
    measures=(Measure(DIVERSITY, "diversity", "higher"),),
    axes=Axes(x="px", line="variant"),
    seeds=(0,),
    needs="ASL hands of 36 labels at 64 px (graticule prep asl)",
    exec={"small": GAN_SMALL, "full": ExecConfig()},
    notes=(
        "The paper prints pictures, the best of 10 by critic score for each label (`graticule best` makes them), and "
        "no number.",
        DIVERSITY_NOTE,
    ),
)

TABLES = (COM, BIAS, VAE, DEPTH, FACES, HANDS)
