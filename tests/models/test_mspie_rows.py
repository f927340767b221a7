"""Every row of Tables 2 and 5: parameters, multiply-adds and sizes as published or derived.

Full-size networks live on the meta device.
"""

from functools import cache

import pytest
import torch

from pipeline.cost import multiply_adds, parameters
from pipeline.families.mspie import MSPIEConfig
from pipeline.models.mspie import MSPIEGeneratorConfig
from pipeline.models.stylegan2 import DiscriminatorConfig
from pipeline.recipes import find, recipes

CONST4, CONST6, SPE, CSG = 30_034_338, 30_044_578, 30_026_146, 27_414_436  # parameters of G at C2
D_STOCK, D_POOLED = 28_864_129, 25_718_401
PADDED, UNPADDED, HALF = (45.1, 101.5, 180.5), (85.8, 191.5, 339), (14.9, 33.5, 59.6)  # 10^9 multiply-adds of G
D_MACS, D_HALF = (46.5, 104.7, 186.1), (15.4, 34.6, 61.5)
ROWS = {
    "table2_a": (CONST4, D_STOCK, (45.1,), (46.5,)),
    "table2_b": (CONST4, D_STOCK, None, (46.5,)),
    "table2_c": (CONST6, D_STOCK, (85.8,), (46.5,)),
    "table2_d": (CSG, D_STOCK, (85.8,), (46.5,)),
    "table2_e": (SPE, D_STOCK, (85.8,), (46.5,)),
    "table5_a": (CONST4, D_STOCK, (45.1,), (46.5,)),
    "table5_b": (30_276_583, 28_982_849, None, None),
    "table5_c": (CONST4, D_POOLED, PADDED, D_MACS),
    "table5_d": (CSG, D_POOLED, PADDED, D_MACS),
    "table5_e": (SPE, D_POOLED, PADDED, D_MACS),
    "table5_f": (SPE, D_POOLED, PADDED, D_MACS),
    "table5_g": (24_759_266, 20_855_361, HALF, D_HALF),
    "table5_h": (CONST6, D_POOLED, UNPADDED, D_MACS),
    "table5_i": (CSG, D_POOLED, UNPADDED, D_MACS),
    "table5_j": (SPE, D_POOLED, UNPADDED, D_MACS),
    "table5_k": (SPE, D_POOLED, UNPADDED, D_MACS),
    "table5_f_896": (SPE, D_POOLED, (45.1, 180.5, 553), (46.5, 186.1, 570)),
    "table5_f_1024": (24_759_266, D_POOLED, (14.9, 59.6, 238), (46.5, 186.1, 744.4)),
}
each_row = pytest.mark.parametrize("row", ROWS)


def count(config) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in config.build().parameters())


def test_every_row_is_here():
    of_stylegan2 = {name for name, r in recipes().items() if r.make.__module__.endswith("mspie.stylegan2")}
    assert of_stylegan2 == {f"mspie.{row}" for row in ROWS}


@each_row
def test_rows_have_the_published_parameter_counts(row):
    assert parameters(find(f"mspie.{row}").make().family) == dict(zip("GD", ROWS[row], strict=False))


@pytest.mark.parametrize(
    ("config", "published"),
    [
        (MSPIEGeneratorConfig(head="const", resize="interp", num_upblocks=8), 30_370_060),
        (MSPIEGeneratorConfig(head="const", resize="interp", channel_multiplier=1), 24_767_458),
        (DiscriminatorConfig(channel_multiplier=1), 24_001_089),
        (DiscriminatorConfig(resolution_px=1024), 29_012_513),
    ],
)
def test_what_is_in_no_row_has_the_published_parameter_counts(config, published):
    assert count(config) == published


def assert_printed(macs: int, printed: float) -> None:
    """Equal within the digits in which it is printed."""
    assert abs(macs / 1e9 - printed) <= (0.5 if printed == int(printed) else 0.05), (macs, printed)


@cache
def macs_at(family: MSPIEConfig, name: str, s: int) -> int:
    """Of one image of a network at one scale."""
    (macs,) = multiply_adds(family.replace(scales=(s,), scale_probs=(1,)), name).values()
    return macs


@each_row
def test_rows_have_the_derived_multiply_adds(row):
    """Of one row of each kind at every size, of others at their largest. A constant costs what the full code does."""
    family = find(f"mspie.{row}").make().family
    head = "spe" if family.G.head == "const" else family.G.head
    for name, printed in zip("GD", ROWS[row][2:], strict=True):
        if not printed:
            continue
        nets = {"G": family.G.replace(head=head, resize="expand")} if name == "G" else {"D": family.D}
        alike = MSPIEConfig(**nets, scales=(0,), scale_probs=(1,))
        at = list(zip(family.scales, printed, strict=True))
        for s, one in at if row in ("table5_f", "table5_g", "table5_k") else at[-1:]:
            macs = macs_at(alike, name, s)
            if name == "G" and head == "csg":  # printed are those of 512 channels at the head
                macs += 9 * (512 - 2) * 512 * (4 + s) ** 2
            assert_printed(macs, one)


def test_the_discriminator_of_half_width_has_its_derived_multiply_adds_at_1024():
    family = find("mspie.table5_g").make().family.replace(scales=(0, 4, 12))
    assert round(multiply_adds(family, "D")[1024, 1024] / 1e9) == 246


def sides_of(G, size: tuple[int, int]) -> list[tuple[int, int]]:
    """What each convolution puts out, for an image of this size."""
    seen = []
    hooks = [conv.register_forward_hook(lambda _m, _i, out: seen.append(tuple(out.shape[2:]))) for conv in G.convs]
    with torch.device("meta"), torch.no_grad():
        assert G.synthesis(torch.zeros(1, G.num_ws, 512), size, None).shape == (1, 3, *size)
    for hook in hooks:
        hook.remove()
    return seen


@each_row
def test_size_table_of_every_row(row):
    """Head 4 + s, or 6 + s; blocks double the grid; 14 styles and 13 noise maps at every scale.

    Convolutions put out what noise maps are made for: looked at in one row of each kind.
    """
    cfg = find(f"mspie.{row}").make().family.G
    n, more = cfg.num_upblocks, 2 if cfg.padding == "none" else 0
    with torch.device("meta"):
        G = cfg.build()
    assert (n, G.num_ws, len(G.convs)) == ((7, 16, 15) if row == "table5_b" else (6, 14, 13))
    for s, t in [(0, 0), (2, 2), (4, 4), (10, 10), (12, 12), (0, 4)]:
        h, w = 4 + s, 4 + t
        size = (h << n, w << n)
        G.check_size(size)
        with torch.device("meta"):
            assert G.head(size).shape[1:] == (h + more, w + more)
        maps = [shape[1:] for shape in G.noise_shapes(size)]
        assert maps[0::2] == [(h << i, w << i) for i in range(n + 1)]
        assert maps[1::2] == [((h << i) + more, (w << i) + more) for i in range(1, n + 1)]
        if row in ("table2_b", "table5_a", "table5_f", "table5_k") and (s, t) in ((2, 2), (0, 4)):
            assert sides_of(G, size) == maps


@each_row
def test_tiny_keeps_what_makes_the_row(row):
    """That each trains, resumes and samples is in training/test_every_recipe.py."""
    whole = find(f"mspie.{row}").make()
    small = whole.tiny().family
    kept = ("head", "resize", "convention", "block", "padding", "padded_skip", "channel_multiplier")
    assert all(getattr(small.G, field) == getattr(whole.family.G, field) for field in kept)
    assert (small.D.pool, small.scales) == (whole.family.D.pool, whole.family.scales)
    assert 2 <= small.G.num_upblocks <= 3
    assert max(small.G.channel_max, small.D.channel_max) <= 32
    assert max(small.sizes()) <= (64, 64)
