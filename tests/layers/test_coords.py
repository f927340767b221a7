"""Coordinate channels against their formulas, and their draws as functions of seed, sample, layer and forward."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from pipeline.chance import Chance
from pipeline.layers.coords import CoordChannels, CoordSpec, coord_layers, shifted, shifted_by

CPU = torch.device("cpu")
GEO = CoordSpec(mode="geo")
ZERO = torch.zeros(4, 1, 3, 5)


class Net(nn.Module):
    """Layers of channels side by side, and a parameter."""

    def __init__(self, *specs: CoordSpec, dims: int = 2):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.layers = nn.ModuleList([CoordChannels(s, dims) for s in specs])

    def forward(self, x):
        return torch.cat([layer(x)[:, x.shape[1] :] for layer in self.layers], dim=1)


def shifts(net: Net, seeds=(5, 6, 7, 8), batch_seed: int = 9, forwards: int = 1) -> torch.Tensor:
    """[forwards, samples, channels]: what is added to the ramp."""
    with shifted([net], seeds, batch_seed):
        x = ZERO[: len(seeds)]
        ys = torch.stack([net(x) for _ in range(forwards)])
    ramp = torch.cat([c.ramp((3, 5), CPU) for c in net.layers])
    assert torch.allclose((ys - ramp).std(dim=(3, 4)), torch.zeros(1), atol=1e-5)
    return (ys - ramp).mean(dim=(3, 4))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"shift": "normal"}, "shift='normal' has no effect with mode='none'"),
        ({"mode": "coord", "draw": "batch"}, "draw='batch' has no effect with mode='coord'"),
        ({"mode": "unshifted", "stochastic_eval": True}, "stochastic_eval=True has no effect"),
        ({"padding": "ramp"}, "padding='ramp' has no effect with mode='none'"),
        ({"mode": "geo", "radius": True}, "radius=True has no effect with mode='geo'"),
        ({"mode": "geo", "shift_range": (1.0, 1.0)}, r"shift_range=\[1.0, 1.0\]: the first must be the smaller"),
        ({"mode": "geo", "coord_range": (1.0, -1.0)}, r"coord_range=\[1.0, -1.0\]"),
        ({"mode": "geo", "coord_range": (0.0, float("inf"))}, "finite"),
        ({"mode": "polar"}, "Input should be"),
    ],
)
def test_values_without_effect_or_sense_are_refused(fields, words):
    with pytest.raises(ValidationError, match=words):
        CoordSpec(**fields)


def test_the_ramp_of_a_5_by_5_grid_is_the_papers():
    i = torch.arange(5.0)
    torch.testing.assert_close(CoordChannels(GEO).ramp((5, 5), CPU)[0], (i[:, None] + i) / 4)


@pytest.mark.parametrize(("mode", "low"), [("axes", 0.0), ("coord", -1.0), ("coord_shifted", -1.0)])
def test_each_axis_spans_its_range_in_its_own_order(mode, low):
    r = CoordChannels(CoordSpec(mode=mode, radius=True), 3).ramp((3, 5, 4), CPU)
    for d, length in enumerate((3, 5, 4)):
        line = r[d][tuple(slice(None) if e == d else 1 for e in range(3))]
        torch.testing.assert_close(line, torch.linspace(low, 1, length))
        assert r[d].std(dim=d).min() > 0
        assert r[d].std(dim=[e for e in range(3) if e != d]).max() == 0
    torch.testing.assert_close(r[3], r[:3].square().sum(0).sqrt())


@pytest.mark.parametrize("mode", ["geo", "axes", "coord"])
def test_margins_go_on_with_the_same_slope_and_one_pixel_has_the_first_coordinate(mode):
    c = CoordChannels(CoordSpec(mode=mode, coord_range=(-2.0, 3.0)), 2)
    wide, plain = c.ramp((4, 6), CPU, [(1, 2), (0, 3)]), c.ramp((4, 6), CPU)
    torch.testing.assert_close(wide[:, 1:5, :6], plain)
    assert wide.diff(n=2, dim=1).abs().max() < 1e-5 > wide.diff(n=2, dim=2).abs().max()
    assert set(c.ramp((1, 1), CPU).flatten().tolist()) == {-4.0 if mode == "geo" else -2.0}


def test_channels_come_behind_the_input_in_its_type():
    x = torch.randn(2, 3, 4, 5, dtype=torch.float16)
    y = CoordChannels(CoordSpec(mode="coord")).eval()(x)
    assert (y.shape, y.dtype) == ((2, 5, 4, 5), torch.float16)
    assert torch.equal(y[:, :3], x)
    exact = CoordChannels(GEO).eval()(x[:, :0].double())[0, 0]
    assert torch.equal(exact, torch.arange(4).double()[:, None] / 3 + torch.arange(5).double() / 4)
    assert CoordChannels(CoordSpec())(x) is x


def test_channels_and_layers_are_counted():
    counts = {
        m: [CoordSpec(mode=m).channels(n) for n in (1, 2, 3)] for m in ("none", "geo", "unshifted", "axes", "coord")
    }
    assert counts == {"none": [0] * 3, "geo": [1] * 3, "unshifted": [1] * 3, "axes": [1, 2, 3], "coord": [1, 2, 3]}
    assert CoordSpec(mode="coord", radius=True).channels(2) == 3
    first = GEO.replace(layers="first")
    assert [first.at(i).mode for i in range(2)] == ["geo", "none"]
    assert [GEO.at(i).mode for i in range(2)] == ["geo", "geo"]
    net = Net(first.at(0), first.at(1), CoordSpec(mode="coord"))
    assert coord_layers(net) == [net.layers[0], net.layers[2]]


VALUES = {
    "mode": "axes",
    "shift": "normal",
    "shift_range": (0.0, 0.5),
    "draw": "batch",
    "per_layer": False,
    "stochastic_eval": True,
    "coord_range": (-1.0, 2.0),
}


@pytest.mark.parametrize("field", VALUES)
def test_every_field_has_an_effect(field):
    """layers, radius and padding: above, and in test_geoconv.py."""

    def result(spec: CoordSpec) -> list[torch.Tensor]:
        net = Net(spec, spec)
        with shifted([net], [1, 2, 3, 4], 5):
            return [net(ZERO), net.eval()(ZERO)]

    plain, other = result(GEO), result(GEO.replace(**{field: VALUES[field]}))
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(plain, other, strict=True))


def test_shifts_do_not_depend_on_how_a_batch_is_cut_or_ordered():
    for draw in ("sample", "batch"):
        net = Net(GEO.replace(draw=draw), CoordSpec(mode="axes", draw=draw))
        whole = shifts(net, (5, 6, 7, 8), forwards=2)
        parts = torch.cat([shifts(net, (5,), forwards=2), shifts(net, (6, 7, 8), forwards=2)], dim=1)
        assert torch.equal(whole, parts)
        assert torch.equal(whole[:, [2, 0]], shifts(net, (7, 5), forwards=2))


def test_draws_of_samples_layers_and_forwards_differ_and_those_of_a_batch_do_not():
    s = shifts(Net(GEO, GEO), forwards=2)
    assert s.unique().numel() == s.numel() == 2 * 4 * 2
    b = shifts(Net(GEO.replace(draw="batch"), GEO.replace(draw="batch")), forwards=2)
    assert torch.equal(b, b[:, :1].expand_as(b))
    assert b[:, 0].unique().numel() == 4
    assert not torch.equal(b, shifts(Net(GEO.replace(draw="batch")), batch_seed=10, forwards=2))


def test_layers_can_share_a_shift_which_is_then_that_of_the_first():
    shared = GEO.replace(per_layer=False)
    s = shifts(Net(shared, shared, shared), forwards=2)
    torch.testing.assert_close(s, s[..., :1].expand_as(s))
    assert s[:, :, 0].unique().numel() == 8
    torch.testing.assert_close(s[..., :1], shifts(Net(GEO), forwards=2))


def test_which_channels_are_shifted_together():
    axes = shifts(Net(CoordSpec(mode="axes", radius=True)))[0]
    assert axes[:, :2].unique().numel() == 8
    assert not axes[:, 2].any()  # the radius stays
    together = shifts(Net(CoordSpec(mode="coord_shifted", radius=True)))[0]
    torch.testing.assert_close(together[:, 0], together[:, 1])
    assert together[:, 0].unique().numel() == 4
    assert not together[:, 2].any()
    for mode in ("coord", "unshifted"):
        assert not shifts(Net(CoordSpec(mode=mode))).any()


@pytest.mark.parametrize("known", [True, False])
def test_shifts_have_the_moments_of_their_distribution(known):
    seeds = range(20000)
    for shift, deviation in (("uniform", 3 / 12**0.5), ("normal", 1.5)):
        c = CoordChannels(GEO.replace(shift=shift, shift_range=(-1.0, 2.0)))
        if known:
            u = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000  # the quantiles, in place of draws
            c.shifts = Quantiles(u[:, None].expand(-1, 3))
        s = c.shift(len(seeds), CPU).double()
        assert s.shape == (20000, 1)
        tolerance = 1e-3 if known else 0.05
        assert abs(s.mean() - 0.5) < tolerance
        assert abs(s.std() - deviation) < tolerance
        assert (s.min() >= -1 and s.max() <= 2) == (shift == "uniform")


class Quantiles:
    """Draws that are given."""

    def __init__(self, u: torch.Tensor):
        self.u, self.seeds = u, {"sample": range(len(u))}

    def of(self, layer: int, forward: int, draw: str) -> torch.Tensor:
        return self.u


def test_draws_are_uniform_over_seeds():
    s = shifts(Net(GEO), range(3))  # the function itself
    assert s.abs().max() <= 1
    net = Net(GEO)
    with shifted([net], range(2000), 0):
        u = net.layers[0].shift(2000, CPU)
    assert abs(u.mean()) < 0.05
    assert abs(u.std() - 2 / 12**0.5) < 0.03


def test_evaluation_is_unshifted_unless_asked():
    net = Net(GEO).eval()
    assert not shifts(net).any()
    assert torch.equal(net(ZERO), net(ZERO))
    asked = Net(GEO.replace(stochastic_eval=True)).eval()
    assert shifts(asked).unique().numel() == 4
    assert torch.equal(shifts(asked), shifts(asked.train()))


def test_outside_of_training_draws_are_torchs_own():
    for draw, many in (("sample", 4), ("batch", 1)):
        net = Net(GEO.replace(draw=draw))
        torch.manual_seed(1)
        a, b = net(ZERO), net(ZERO)
        torch.manual_seed(1)
        assert torch.equal(net(ZERO), a)
        assert not torch.equal(a, b)
        assert a[:, 0, 0, 0].unique().numel() == many


def test_networks_have_draws_of_their_own_and_a_shared_one_those_of_its_last_place():
    a, b = Net(GEO), Net(GEO)
    with shifted([a, b], [1, 2, 3, 4], 5):
        first, second = a(ZERO), b(ZERO)
    assert not torch.equal(first, second)
    with shifted([a], [1, 2, 3, 4], 5):
        assert torch.equal(a(ZERO), first)
    with shifted([a, a], [1, 2, 3, 4], 5):
        a(ZERO)
    assert (a.layers[0].shifts, a.layers[0].forwards) == (None, 0)


def test_what_was_before_is_restored_also_after_an_error():
    net = Net(GEO, GEO)
    with shifted([net], [1, 2, 3, 4], 5):
        first, second = net(ZERO), net(ZERO)
    with shifted([net], [1, 2, 3, 4], 5):
        assert torch.equal(net(ZERO), first)
        with pytest.raises(ValueError, match="4 samples, but shifts were drawn for 2"), shifted([net], [8, 9], 5):
            net(ZERO)
        assert torch.equal(net(ZERO), second)
    assert all((c.shifts, c.forwards, c.layer) == (None, 0, 0) for c in net.layers)

    def nets():
        yield net
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"), shifted(nets(), [1], 2):
        pass
    assert all(c.shifts is None for c in net.layers)


def test_shifts_of_a_run_follow_from_seed_phase_image_and_iteration():
    def of(draw: str = "sample", seed: int = 0, scope: str = "G", nimg: int = 8, ids=(8, 9, 10, 11)) -> torch.Tensor:
        net = Net(GEO.replace(draw=draw))
        with shifted_by([net], Chance(seed, scope, nimg, tuple(ids), CPU)):
            return net(torch.zeros(len(ids), 1, 3, 5))

    assert torch.equal(of(), of())
    assert torch.equal(of()[2:], of(ids=(10, 11)))
    assert torch.equal(of("batch")[2:], of("batch", ids=(10, 11)))
    for change in ({"seed": 1}, {"scope": "D"}):
        assert not torch.equal(of(), of(**change))
        assert not torch.equal(of("batch"), of("batch", **change))
    assert not torch.equal(of("batch"), of("batch", nimg=12))


def test_a_network_without_parameters_and_one_without_shifts_are_served():
    c = CoordChannels(GEO)
    with shifted([c], [1, 2], 3):
        assert c(torch.zeros(2, 1, 2, 2)).shape == (2, 2, 2, 2)
    net = Net(CoordSpec(mode="coord"))
    with shifted_by([net], Chance(0, "G", 0, (0,), CPU)):
        assert net.layers[0].shifts is None
