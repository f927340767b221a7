"""The tables of MS-PIE (2012.05217) that are tables of runs: 2 and 5, its larger runs, PGGAN and DCGAN.

FID is that of the best checkpoint before D has seen so many images, precision and recall are those of that checkpoint.
Which of Tables 3, 4 and 6 the three of sliced Wasserstein distances are is not known to us. Table 1 states properties
of codes, which tests hold; SinGAN's results are pictures (recipes mspie.singan_*, `graticule sample`). Neither is here.
"""

from pipeline.plan import ExecConfig, RunConfig
from pipeline.recipes import find
from pipeline.tables.columns import (
    SMALL_METRICS,
    SMALL_NOTE,
    fid,
    name_of,
    precision_recall,
    small,
    small_exec,
    small_measures,
    swd,
)
from pipeline.tables.table import Asked, Axes, Comparison, Form, Measure, Row, Table

PAPER = "MS-PIE (2012.05217)"
FID, PR = "fid50k_50k_mmgeneration", "pr10k3_10k"
SEEDS = (0, 1, 2)
FULL = ExecConfig(gpus=8, milestone_kimg=1000)
SMALL_KIMG = 0.25
FID_NOTE = (
    "Published are means of three seeds; the best of a length is chosen among the checkpoints that are kept for good, "
    "one every million images. The paper says neither by which program FID was computed nor how reals were brought to "
    f"256 px: {FID} on reals reduced by Lanczos is our reading, so gaps between rows say more than their height."
)

# --- Table 2

TABLE2 = {  # row: generator, FID of the best of 10 and of 20 M images, precision, recall
    "a": ("StyleGAN2", "6.32", "5.62", "76.85", "50.41"),
    "b": ("a with bilinear up-sampling and convolution", "5.79", "5.68", "76.78", "50.46"),
    "c": ("b without padding", "6.45", "6.13", "73.71", "51.73"),
    "d": ("c with the Cartesian grid", "6.31", "6.07", "73.01", "52.90"),
    "e": ("c with the sinusoidal code", "6.40", "5.86", "72.94", "52.87"),
}
FID_10M = fid(FID, 256, "FID, 10 M", until_kimg=10_000.0, best=True)
FID_20M = fid(FID, 256, "FID, 20 M", best=True)  # the whole of a run
MEASURES2 = (FID_10M, FID_20M, *precision_recall(PR, 256, at_best_of=FID_20M.key))


def table2_rows(form: Form) -> list[Row]:
    """a to e."""
    out = []
    for letter, (generator, *published) in TABLE2.items():
        run = find(f"mspie.table2_{letter}").make()
        labels = {"px": _largest(run), "generator": f"{letter}: {generator}"}
        if form == "full":
            out.append(
                Row(letter, labels, run, published={m.key: p for m, p in zip(MEASURES2, published, strict=True)})
            )
        else:
            run = run.tiny()
            out.append(small(letter, labels | {"px": _largest(run)}, run, SMALL_KIMG))
    return out


def _largest(run: RunConfig) -> int:
    return max(side for side, _ in run.family.sizes())


def _against(m: Measure, rows: dict[str, str], one: str, other: str, published: str) -> Comparison:
    return Comparison(
        title=f"{one} against {other}",
        metric=m.key,
        column="generator",
        variant=f"{one}: {rows[one]}",
        against=f"{other}: {rows[other]}",
        published=published,
    )


def _pairs(m: Measure, rows: dict[str, str], values: dict[str, str], pairs: tuple[str, ...]) -> list[Comparison]:
    """Of "ab": a against b, both as published."""
    return [_against(m, rows, a, b, f"{values[a]} against {values[b]}") for a, b in pairs]


T2 = Table(
    name="mspie.table2",
    title="padding and positional codes in StyleGAN2 at 256 px",
    place=f"{PAPER}, Table 2",
    rows=table2_rows,
    measures=MEASURES2,
    axes=Axes(x="px", line="generator"),
    comparisons=tuple(
        _pairs(
            FID_20M,
            {letter: row[0] for letter, row in TABLE2.items()},
            {letter: row[2] for letter, row in TABLE2.items()},
            ("ab", "bc", "dc", "ec"),
        )
    ),
    seeds=SEEDS,
    needs="FFHQ at 256 px",
    exec={"full": FULL, "small": small_exec(SMALL_KIMG)},
    notes=(FID_NOTE, "No configuration of this table was released: rows are read from its text.", SMALL_NOTE),
    small_measures=small_measures(32),
    asked={"full": Asked((FID, PR)), "small": Asked(SMALL_METRICS)},
)

# --- Table 5

TABLE5 = {  # row: generator, padding; then FID of 20 and 25 M, precision and recall at 512 px, the same at 256 px
    "a": ("StyleGAN2, 256 px only", "zero", "", "", "", "", "5.62", "5.56", "75.92", "51.24"),
    "b": ("StyleGAN2, 512 px only", "zero", "3.47", "3.41", "75.88", "54.61", "5.00", "4.91", "75.65", "54.58"),
    "c": ("constant, interpolated", "zero", "3.46", "3.35", "73.84", "55.77", "4.82", "4.50", "72.75", "55.42"),
    "d": ("Cartesian grid", "zero", "3.59", "3.50", "73.28", "56.16", "4.74", "4.71", "73.34", "55.07"),
    "e": ("sinusoidal code, interpolated", "zero", "3.41", "3.15", "74.13", "56.88", "4.99", "4.73", "73.28", "56.93"),
    "f": ("sinusoidal code, expanded", "zero", "3.31", "2.93", "73.51", "57.32", "4.79", "4.27", "73.48", "55.69"),
    "g": ("f with half the channels", "zero", "3.65", "3.40", "73.05", "56.45", "5.54", "4.83", "73.59", "54.29"),
    "h": ("constant, interpolated", "none", "4.99", "4.01", "72.81", "54.35", "5.67", "5.11", "72.37", "55.52"),
    "i": ("Cartesian grid", "none", "3.96", "3.76", "73.26", "54.71", "5.30", "5.09", "70.74", "56.06"),
    "j": ("sinusoidal code, interpolated", "none", "4.80", "4.23", "73.11", "54.63", "5.89", "5.38", "71.21", "56.21"),
    "k": ("sinusoidal code, expanded", "none", "4.46", "4.17", "73.05", "51.07", "6.08", "5.59", "72.65", "49.74"),
}
LENGTHS = {20_000.0: "20 M", 25_000.0: "25 M"}


def _table5_measures(size_px: int) -> tuple[Measure, ...]:
    at = f", {size_px} px"
    fids = [fid(FID, size_px, f"FID{at}, {m}", until_kimg=kimg, best=True) for kimg, m in LENGTHS.items()]
    return (*fids, *precision_recall(PR, size_px, at, at_best_of=fids[-1].key))


MEASURES5 = (*_table5_measures(512), *_table5_measures(256))
SIZES5 = {"full": (512, 256), "small": (64, 32)}


def table5_rows(form: Form) -> list[Row]:
    """a to k: c to k are trained at three sizes, a and b at one; b's smaller images are its larger ones reduced."""
    large, less = SIZES5[form]
    out = []
    for letter, (generator, padding, *published) in TABLE5.items():
        run = find(f"mspie.table5_{letter}").make()
        labels = {"padding": padding, "generator": f"{letter}: {generator}"}
        sizes = {"a": (str(less),), "b": (str(large), f"{less}of{large}")}.get(letter, (str(large), str(less)))
        measures = MEASURES5 if form == "full" else small_measures(*SIZES5["small"])
        own = {m.metric: m.metric.replace(f"/{less}px", f"/{less}px_of_{large}px") for m in measures if letter == "b"}
        if form == "full":
            printed = {m.key: p for m, p in zip(MEASURES5, published, strict=True) if p}
            asked = Asked((FID, PR), sizes)
            out.append(Row(letter, labels, run, printed, set=f"ffhq{run.data.size_px}", metrics=own, asked=asked))
        else:
            asked = Asked(SMALL_METRICS, sizes)
            out.append(small(letter, labels, _tiny(run), SMALL_KIMG, asked=asked, metrics=own))
    return out


def _tiny(run: RunConfig) -> RunConfig:
    """As tiny(), but what tells rows apart stays: row b's further block for 64 px, row g's half the channels."""
    net, tiny = run.family.G, run.tiny()  # type: ignore[attr-defined]
    more, width = net.num_upblocks - 6, 32 if net.channel_multiplier == 2 else 16
    G = tiny.family.G  # type: ignore[attr-defined]
    G = G.replace(num_upblocks=G.num_upblocks + more, channel_max=width)
    D = tiny.family.D.replace(resolution_px=G.base_px(), channel_max=width)  # type: ignore[attr-defined]
    family = tiny.family.replace(G=G, D=D)
    return tiny.replace(family=family, data=tiny.data.replace(size_px=family.stored_px()))


GENERATORS5 = {letter: row[0] for letter, row in TABLE5.items()}
T5 = Table(
    name="mspie.table5",
    title="one generator for 256, 384 and 512 px, by head, resizing and padding",
    place=f"{PAPER}, Table 5",
    rows=table5_rows,
    measures=MEASURES5,
    axes=Axes(x="padding", line="generator"),
    comparisons=tuple(
        c
        for m, column in ((MEASURES5[1], 3), (MEASURES5[5], 7))  # FID of 25 M at 512 and 256 px
        for c in _pairs(m, GENERATORS5, {k: row[column] for k, row in TABLE5.items()}, ("fc", "fe", "fg", "ih"))
    ),
    seeds=SEEDS,
    needs="ffhq256 (row a) and ffhq512 (all others): FFHQ at 256 and at 512 px",
    exec={"full": FULL, "small": small_exec(SMALL_KIMG)},
    notes=(
        FID_NOTE,
        "Row b's numbers at 256 px are of its images of 512 px, reduced; the paper does not say by which filter.",
        SMALL_NOTE,
    ),
    small_measures=small_measures(*SIZES5["small"]),
)

# --- larger runs

LARGER = {896: ("f", "4.10", "72.21", "50.29"), 1024: ("f, G of half the channels", "6.24", "71.79", "49.92")}
LARGER_FID = fid(FID, 896, "FID, largest size", best=True)
LARGER_MEASURES = (LARGER_FID, *precision_recall(PR, 896, at_best_of=LARGER_FID.key))


def larger_rows(form: Form) -> list[Row]:
    """Row f up to 896 and 1024 px. Small: up to 56 and 64 px, of which distances of patches take only the second."""
    out = []
    for side, (generator, *published) in LARGER.items():
        run = find(f"mspie.table5_f_{side}").make()
        name, measures = f"f-{side}", LARGER_MEASURES
        if form == "small":
            run, measures = run.tiny(), SMALL_LARGER
        largest = _largest(run)
        labels = {"sizes": ", ".join(str(s) for s, _ in run.family.sizes()), "generator": generator}
        own = {m.metric: m.metric.replace(f"/{896 if form == 'full' else 64}px", f"/{largest}px") for m in measures}
        if form == "full":
            printed = {m.key: p for m, p in zip(measures, published, strict=True)}
            out.append(Row(name, labels, run, printed, metrics=own, asked=Asked((FID, PR), (str(largest),))))
        else:
            asked = Asked(SMALL_METRICS[1:], (str(largest),))
            out.append(small(name, labels, run, SMALL_KIMG, asked=asked, metrics=own))
    return out


SMALL_LARGER = (Measure(name_of(SMALL_METRICS[1], 64), "spectra, dB, largest size", "lower"),)
T_LARGER = Table(
    name="mspie.larger",
    title="row f of Table 5 up to 896 and 1024 px",
    place=f"{PAPER}, Section 4.1, larger images",
    rows=larger_rows,
    measures=LARGER_MEASURES,
    axes=Axes(x="sizes", line="generator"),
    seeds=SEEDS,
    needs="FFHQ at 1024 px",
    exec={"full": FULL, "small": small_exec(SMALL_KIMG)},
    notes=(FID_NOTE, "The paper does not say of how many images; the best of the whole run is shown.", SMALL_NOTE),
    small_measures=SMALL_LARGER,
)

# --- sliced Wasserstein distances

DISTANCES = {  # table -> (title, needs, rows: at 128, 64, 32 px, average)
    "pggan_celeba": (
        "PGGAN on CelebA",
        "CelebA at 128 px (graticule prep celeba)",
        {
            "a": ("3.162", "4.285", "5.000", "4.149"),
            "b": ("11.169", "6.945", "7.488", "8.534"),
            "c": ("4.555", "6.164", "6.365", "5.694"),
        },
    ),
    "pggan_bedroom": (
        "PGGAN on LSUN bedroom",
        "LSUN bedroom at 128 px",
        {
            "a": ("7.473", "5.197", "5.214", "5.962"),
            "b": ("13.619", "10.043", "6.581", "10.081"),
            "c": ("6.588", "4.437", "5.090", "5.371"),
        },
    ),
    "dcgan_bedroom": (
        "DCGAN on LSUN bedroom",
        "LSUN bedroom at 128 px",
        {
            "a": ("11.82", "17.30", "28.10", "19.07"),
            "b": ("22.21", "27.26", "44.24", "31.24"),
            "c": ("14.75", "16.52", "22.53", "17.93"),
        },
    ),
}
PADDINGS = {"a": "zero padding", "b": "no padding", "c": "no padding, sinusoidal code"}
SWD = "swd16k"
SWD_MEASURES = swd(SWD, 128, (128, 64, 32))
SWD_SMALL_KIMG = 2.0


def _distance_table(name: str) -> Table:
    title, needs, published = DISTANCES[name]

    def rows(form: Form) -> list[Row]:
        out = []
        for letter, words in PADDINGS.items():
            run = find(f"mspie.{name}_{letter}").make()
            run = run if form == "full" else run.tiny()
            labels = {"px": _largest(run), "generator": f"{letter}: {words}"}
            if form == "full":
                printed = {m.key: p for m, p in zip(SWD_MEASURES, published[letter], strict=True)}
                out.append(Row(letter, labels, run, printed))
            else:
                out.append(small(letter, labels, run, SWD_SMALL_KIMG))
        return out

    gpus = 8 if name.startswith("pggan") else 1  # as the recipes have it
    return Table(
        name=f"mspie.{name}",
        title=f"{title} at 128 px without padding, and with a sinusoidal code",
        place=f"{PAPER}, one of Tables 3, 4 and 6",
        rows=rows,
        measures=SWD_MEASURES,
        axes=Axes(x="px", line="generator"),
        comparisons=tuple(
            _pairs(SWD_MEASURES[-1], PADDINGS, {k: row[-1] for k, row in published.items()}, ("ab", "cb"))
        ),
        seeds=(0,),
        needs=needs,
        exec={"full": ExecConfig(gpus=gpus), "small": small_exec(SWD_SMALL_KIMG)},
        notes=(
            "No configuration was released, and the seeds are not stated: one here. The average is over the three "
            "levels that the paper prints, not over the pyramid's fourth (16 px).",
            SMALL_NOTE,
        ),
        small_measures=small_measures(16),
        asked={"full": Asked((SWD,), ("128",), "newest"), "small": Asked(SMALL_METRICS, ("16",), "newest")},
    )


TABLES = (T2, T5, T_LARGER, *map(_distance_table, DISTANCES))
