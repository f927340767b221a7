"""The three theorems of GeoPos (2401.01951) and the normalisation trap in numbers: the tables of docs/geoconv.md.

`python tests/bench/geo_theorems.py` prints Markdown, in some seconds. The ranks are those of the linear map from all
filters of a layer, and its bias, to the output over an empty input, in float64; shifts are the layers' own draws.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[2]))
from pipeline.layers import geoconv
from pipeline.layers.coords import CoordSpec, shifted
from pipeline.layers.geoify import shift_effect

KINDS = {"GeoConv": CoordSpec(mode="geo"), "CoordConv": CoordSpec(mode="coord")}
TOLERANCE = 1e-9  # of singular values, beside the largest


def span(spec: CoordSpec, shape: Sequence[int], kernel: int, padding: str | int, seed: int | None = None) -> Tensor:
    """What each filter and the bias make of an empty image: [parameters, pixels]; a seed shifts it."""
    n, one_by_one = len(shape), spec.channels(len(shape)) * kernel ** len(shape)
    conv = getattr(geoconv, f"GeoConv{n}d")(
        1, one_by_one + 1, kernel, padding=padding, coords=spec, dtype=torch.float64
    ).train(seed is not None)
    with torch.no_grad():
        conv.coord_weight.copy_(torch.eye(one_by_one + 1, one_by_one).reshape(conv.coord_weight.shape))
        conv.bias.copy_(F.one_hot(torch.tensor(one_by_one), one_by_one + 1))
        with shifted([conv], [seed or 0], seed or 0):
            return conv(torch.zeros(1, 1, *shape, dtype=torch.float64))[0].flatten(1)


def rank(*spans: Tensor) -> int:
    sizes = torch.linalg.svdvals(torch.cat(spans))
    return int((sizes > TOLERANCE * sizes[0]).sum())


def contains(geo: Tensor, coord: Tensor) -> bool:
    """Can the first layer make whatever the second can?"""
    return rank(geo, coord) == rank(geo)


def leak(n: int, kernel: int, r: int, spec: CoordSpec, padding: str = "same") -> Tensor:
    """|change of y(p; s) - y(centre; s)| for 1 more of s and a box filter that sums to 1: [r, ...]."""
    conv = getattr(geoconv, f"GeoConv{n}d")(1, 1, kernel, padding=padding, coords=spec, dtype=torch.float64)
    x = torch.zeros(1, 1, *[r] * n, dtype=torch.float64)
    ys, ss = [], []
    with torch.no_grad():
        conv.coord_weight.fill_(1 / kernel**n)
        for seed in (0, 1):
            with shifted([conv], [seed], seed):
                ss.append(conv.coords.shift(1, x.device).double())
            with shifted([conv], [seed], seed):
                ys.append(conv(x)[0, 0])
    change = (ys[1] - ys[0]) / (ss[1] - ss[0]).reshape([1] * n)
    return (change - change[tuple(length // 2 for length in change.shape)]).abs()


def parameters(n: int, kernel: int, c_in: int, c_out: int) -> list[int]:
    layers = [
        getattr(where, f"{name}{n}d") for where, name in ((nn, "Conv"), (geoconv, "GeoConv"), (geoconv, "CoordConv"))
    ]
    return [sum(p.numel() for p in layer(c_in, c_out, kernel).parameters()) for layer in layers]


NORMS = {
    "none": nn.Identity,
    "batch": lambda: nn.BatchNorm2d(8),
    "instance": lambda: nn.InstanceNorm2d(8),
    "group, 2 groups": lambda: nn.GroupNorm(2, 8),
    "layer, over channels and space": lambda: nn.LayerNorm([8, 16, 16]),
    "layer, over space": lambda: nn.LayerNorm([16, 16]),
}


def trap(norm: str, draw: Literal["sample", "batch"], padding: Literal["none", "zero"]) -> float:
    """What is left of the shift behind a convolution and a norm: |y' - y| / |y|."""
    torch.manual_seed(0)
    spec, zeros = CoordSpec(mode="geo", draw=draw), padding == "zero"
    conv = geoconv.GeoConv2d(3, 8, 3, padding=int(zeros), coords=spec)
    size = 16 if zeros else 18
    return shift_effect(nn.Sequential(conv, NORMS[norm]()), torch.randn(8, 3, size, size))


def table(head: str, rows: list[list[object]]) -> str:
    """Markdown; `head`: names between bars."""
    names = head.split("|")
    lines = [names, ["---"] * len(names), *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def counts() -> str:
    rows = []
    for n in (1, 2, 3):
        conv, geo, coord = parameters(n, 3, 64, 64)
        rows.append([n, f"{conv:,}", f"{geo:,}", f"{coord:,}", f"{geo - conv:,}", f"{coord - geo:,}"])
    return table("n|Conv|GeoConv|CoordConv|GeoConv - Conv|CoordConv - GeoConv", rows)


def relative() -> str:
    """2.1: where the shift shows which pixel it is."""
    rows = []
    for n, kernel, r in ((1, 3, 9), (2, 3, 9), (2, 5, 9), (3, 3, 7)):
        away = [leak(n, kernel, r, CoordSpec(mode="geo", padding=p)) for p in ("zero", "ramp")]
        width = kernel // 2
        inner = away[0][(slice(width, -width),) * n].max()
        edge = away[0][(0, *[r // 2] * (n - 1))]
        rows.append([n, kernel, *(f"{v:.3f}" for v in (inner, edge, away[0].flatten()[0], away[1].max()))])
    return table("n|k|interior|middle of a side|corner|anywhere, ramp goes on", rows)


def collapse() -> str:
    """2.2: ranks in the interior."""
    rows = []
    for n, kernel, r in ((1, 3, 9), (1, 5, 12), (2, 3, 9), (2, 5, 9), (3, 3, 6)):
        ranks = [rank(span(spec, [r] * n, kernel, 0)) for spec in KINDS.values()]
        filters = [spec.channels(n) * kernel**n for spec in KINDS.values()]
        rows.append([n, kernel, *(f"{m} of {f + 1}" for m, f in zip(ranks, filters, strict=True))])
    return table("n|k|GeoConv|CoordConv", rows)


SQUARES = [(5, 3), (5, 5), (6, 3), (6, 5), (6, 7), (8, 3), (8, 5), (8, 7), (8, 9)]


def equivalence() -> str:
    """2.3: ranks over the whole image, zeros beyond the border."""
    rows = []
    for r, kernel in SQUARES:
        coord = span(KINDS["CoordConv"], [r, r], kernel, "same")
        geos = [span(KINDS["GeoConv"], [r, r], kernel, "same", seed) for seed in (None, 1)]
        yes = ["yes" if contains(geo, coord) else "no" for geo in geos]
        rows.append([r, kernel, rank(coord), rank(geos[0]), yes[0], rank(geos[1]), yes[1]])
    return table("r|k|CoordConv|GeoConv, s = 0|contains it|GeoConv, shifted|contains it", rows)


def norms() -> str:
    rows = []
    for norm in NORMS:
        cells = [trap(norm, draw, padding) for draw in ("sample", "batch") for padding in ("none", "zero")]
        rows.append([norm, *(f"{v:.2f}" for v in cells)])
    head = "a shift each sample, no padding|a sample, zeros|a shift each batch, no padding|a batch, zeros"
    return table("norm behind the convolution|" + head, rows)


TABLES = {f.__name__: f for f in (counts, relative, collapse, equivalence, norms)}

if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, make in TABLES.items():
        print(f"<!-- {name} -->\n{make()}<!-- end of {name} -->\n")
