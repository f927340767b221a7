"""What is derived of GeoConv: relative not absolute (2.1), filter collapse (2.2), equivalence (2.3), and the trap of
normalisation. Ranks are numerical, in float64; docs/geoconv.md holds what tests/bench/geo_theorems.py prints."""

import re
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.layers import geoconv
from pipeline.layers.coords import CoordSpec, shifted
from pipeline.layers.geoconv import GeoConv2d
from pipeline.layers.geoify import geoify, shift_effect
from tests.bench.geo_theorems import KINDS, TABLES, contains, leak, rank, span, trap

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "geoconv.md").read_text()
GEO, COORD = KINDS["GeoConv"], KINDS["CoordConv"]


def outputs(conv: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Of one sample, for two shifts."""
    ys = []
    for seed in (1, 2):
        with shifted([conv], [seed], seed):
            ys.append(conv(x)[0])
    return ys


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("kernel", [3, 5])
def test_2_1_away_from_the_border_a_shift_moves_all_pixels_alike(n, kernel):
    conv = getattr(geoconv, f"GeoConv{n}d")(2, 3, kernel, padding="same", dtype=torch.float64)
    a, b = outputs(conv, torch.randn(1, 2, *[9] * n, dtype=torch.float64))
    change, width = b - a, kernel // 2
    inner = change[(slice(None), *[slice(width, -width)] * n)].flatten(1)
    assert inner.std(dim=1).max() < 1e-12 < inner.abs().min()
    assert change.flatten(1).std(dim=1).min() > 1e-4  # the border shows absolute position
    assert (change[(slice(None), *[4] * (n - 1), 0)] - inner[:, 0]).abs().min() > 1e-4


@pytest.mark.parametrize("n", [1, 2, 3])
def test_2_1_the_output_ignores_the_shift_exactly_if_the_filter_sums_to_zero(n):
    conv = getattr(geoconv, f"GeoConv{n}d")(1, 4, 3, dtype=torch.float64)
    x = torch.randn(1, 1, *[7] * n, dtype=torch.float64)
    sums = conv.coord_weight.detach().flatten(1).sum(1)
    a, b = outputs(conv, x)
    assert ((b - a).flatten(1).abs().amax(1) / sums.abs()).std() < 1e-12  # in proportion to the sum
    conv.coord_weight.data -= conv.coord_weight.data.flatten(1).mean(1).reshape(4, 1, *[1] * n)
    a, b = outputs(conv, x)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    padded = getattr(geoconv, f"GeoConv{n}d")(1, 4, 3, padding=1, dtype=torch.float64)
    padded.load_state_dict(conv.state_dict())
    a, b = outputs(padded, x)
    assert (a - b).abs().max() > 1e-3  # but for the border


@pytest.mark.parametrize(("n", "kernel"), [(1, 3), (2, 3), (2, 5), (3, 3)])
def test_2_1_the_border_leaks_the_share_of_the_filter_that_lies_outside(n, kernel):
    away = leak(n, kernel, 9, GEO)
    inside = (kernel // 2 + 1) / kernel
    torch.testing.assert_close(away.flatten()[0].item(), 1 - inside**n, rtol=1e-5, atol=0)
    torch.testing.assert_close(away[(0, *[4] * (n - 1))].item(), 1 - inside, rtol=1e-5, atol=0)
    assert away[(slice(kernel // 2, -(kernel // 2)),) * n].max() < 1e-7
    assert leak(n, kernel, 9, GEO.replace(padding="ramp")).max() < 1e-7


@pytest.mark.parametrize(("n", "kernel", "r"), [(1, 3, 9), (1, 6, 12), (2, 3, 6), (2, 5, 9), (3, 2, 5), (3, 3, 6)])
def test_2_2_inside_filters_collapse_to_n_plus_1_dimensions_and_to_2(n, kernel, r):
    shape = range(r, r + n)  # not square
    coord = span(COORD, shape, kernel, 0)
    for seed in (None, 1, 2):
        geo = span(GEO, shape, kernel, 0, seed)
        assert (rank(geo), rank(coord)) == (2, n + 1)
        assert contains(geo, coord) == (n == 1)
        assert contains(coord, geo)


TABLE = [
    (5, 3, 10, 15), (5, 5, 25, 25), (6, 3, 10, 15), (6, 5, 26, 35), (6, 7, 36, 36),
    (8, 3, 10, 15), (8, 5, 26, 35), (8, 7, 50, 63), (8, 9, 64, 64),
]  # fmt: skip


@pytest.mark.parametrize(("r", "kernel", "geo_rank", "coord_rank"), TABLE)
def test_2_3_with_zeros_around_geoconv_contains_coordconv_exactly_if_the_kernel_is_no_smaller(
    r, kernel, geo_rank, coord_rank
):
    coord = span(COORD, [r, r], kernel, "same")
    for seed in (None, 1, 2):
        geo = span(GEO, [r, r], kernel, "same", seed)
        assert (rank(geo), rank(coord)) == (geo_rank, coord_rank)
        assert contains(geo, coord) == (kernel >= r)


@pytest.mark.parametrize(("r", "kernel"), [(4, 3), (6, 5), (8, 3)])
def test_2_3_without_padding_it_never_does_while_there_is_more_than_one_pixel(r, kernel):
    assert not contains(span(GEO, [r, r], kernel, 0), span(COORD, [r, r], kernel, 0))
    assert contains(span(GEO, [kernel, kernel], kernel, 0), span(COORD, [kernel, kernel], kernel, 0))


@pytest.mark.parametrize(
    ("norm", "draw", "cancelled"),
    [
        ("none", "batch", False),
        ("batch", "sample", False),
        ("batch", "batch", True),
        ("instance", "sample", True),
        ("instance", "batch", True),
        ("group, 2 groups", "sample", False),
        ("layer, over channels and space", "sample", False),
        ("layer, over space", "sample", True),
    ],
)
def test_a_norm_cancels_a_shift_that_is_the_same_wherever_it_averages(norm, draw, cancelled):
    without, zeros = trap(norm, draw, "none"), trap(norm, draw, "zero")
    if cancelled:
        assert without < 1e-5  # exactly
        assert 0.01 < zeros < 0.3  # the border's share is left
    else:
        assert min(without, zeros) > 0.3


def warned(net: nn.Module, spec: CoordSpec) -> str:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        geoify(net, spec)
    assert len(seen) < 2
    return str(seen[0].message) if seen else ""


BATCH = CoordSpec(mode="geo", draw="batch")


@pytest.mark.parametrize(
    ("spec", "norm", "trapped"),
    [
        (BATCH, nn.BatchNorm2d(4), True),
        (GEO, nn.BatchNorm2d(4), False),
        (COORD, nn.BatchNorm2d(4), False),
        (COORD, nn.InstanceNorm2d(4), False),
        (BATCH, nn.InstanceNorm2d(4), True),
        (GEO, nn.InstanceNorm2d(4), True),
        (GEO, nn.GroupNorm(4, 4), True),
        (GEO, nn.GroupNorm(2, 4), False),
        (GEO, nn.LayerNorm([6, 6]), True),
        (GEO, nn.LayerNorm([4, 6, 6]), False),
        (GEO, nn.Sequential(nn.Identity(), nn.InstanceNorm2d(4)), True),
        (GEO, nn.Sequential(nn.ReLU(), nn.InstanceNorm2d(4)), False),
    ],
)
def test_geoify_warns_exactly_where_the_measured_shift_is_gone(spec, norm, trapped):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), norm)
    assert bool(warned(net, spec)) == trapped
    assert (shift_effect(net, torch.randn(4, 3, 8, 8)) < 1e-5) == (trapped or not spec.shifts)


def test_the_warning_names_all_and_is_one_line():
    net = nn.Module()
    net.body = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3)), nn.BatchNorm2d(4)
    )
    text = warned(net, BATCH)
    assert ": body.0.0 by body.0.1, body.0.3 by body.1;" in text
    assert "draw='sample'" in text
    assert "\n" not in text


def test_shift_effect_leaves_the_model_as_it_was_and_holds_other_randomness():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout()).eval()
    geoify(net)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.get_rng_state()
    effect = shift_effect(net, torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert effect > 0.1
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(m.training for m in net.modules())
    conv = GeoConv2d(1, 1, 3, coords=BATCH)
    assert shift_effect(nn.Sequential(conv, nn.BatchNorm2d(1), nn.Dropout()), torch.randn(2, 1, 8, 8)) < 1e-5


@pytest.mark.parametrize("name", TABLES)
def test_the_page_shows_what_the_script_prints(name):
    assert f"<!-- {name} -->\n{TABLES[name]()}<!-- end of {name} -->" in PAGE


def test_the_example_of_the_page_runs():
    code = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert code
    for block in code:
        exec(block, {})


def test_the_page_lists_every_field_with_its_default():
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)`", PAGE, flags=re.MULTILINE))
    fields = {k: f.default for k, f in CoordSpec.model_fields.items()}
    assert rows == {k: (list(v) if isinstance(v, tuple) else v).__str__() for k, v in fields.items()}
