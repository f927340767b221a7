"""The layers against concatenation and torch's own convolution; geoify on real models; counts against the formula."""

import pickle
from copy import deepcopy
from math import prod

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.errors import UserError
from pipeline.layers import geoconv
from pipeline.layers.coords import CoordChannels, CoordSpec, coord_layers, shifted
from pipeline.layers.geoconv import CoordConv2d, GeoConv2d, GeoConvTranspose2d
from pipeline.layers.geoify import geoify

SHAPES = {1: (9,), 2: (7, 10), 3: (5, 6, 7)}
GEO = CoordSpec(mode="geo")


def layer(kind: str, n: int, *args, **kwargs) -> nn.Module:
    return getattr(geoconv, f"{kind}{n}d")(*args, dtype=torch.float64, **kwargs)


def naive(conv, x: torch.Tensor, **kwargs) -> torch.Tensor:
    """Channels concatenated to the input of each group, then torch's convolution over all of them."""
    dims, groups, k = len(conv.kernel_size), conv.groups, conv.coords.count
    g = CoordChannels(conv.coords.spec, dims).train(conv.training)
    g.layer, g.forwards, g.shifts = conv.coords.layer, 0, conv.coords.shifts
    g = g(x[:, :0])
    wide = torch.cat([torch.cat([part, g], dim=1) for part in x.chunk(groups, dim=1)], dim=1)
    kind = getattr(nn, ("ConvTranspose" if conv.transposed else "Conv") + f"{dims}d")
    plain = kind(
        wide.shape[1], conv.out_channels, conv.kernel_size, stride=conv.stride, padding=conv.padding,
        dilation=conv.dilation, groups=groups, bias=conv.bias is not None, padding_mode=conv.padding_mode,
        dtype=torch.float64, **({"output_padding": conv.output_padding} if conv.transposed else {}),
    )  # fmt: skip
    if conv.transposed:  # [in, out / groups, ...]: a group's rows stand together
        rows = zip(conv.weight.chunk(groups, dim=0), conv.coord_weight.chunk(groups, dim=1), strict=True)
        weight = torch.cat([torch.cat(pair, dim=0) for pair in rows], dim=0)
    else:
        weight = torch.cat([conv.weight, conv.coord_weight], dim=1)
    assert weight.shape == plain.weight.shape
    assert k == conv.coord_weight.shape[0 if conv.transposed else 1]
    with torch.no_grad():
        plain.weight.copy_(weight)
        if conv.bias is not None:
            plain.bias.copy_(conv.bias)
    return plain(wide, **kwargs)


CASES = [
    {"padding": 1},
    {"stride": 2, "padding": 1},
    {"padding": "same", "dilation": 2},
    {"padding": "valid", "bias": False},
    {"padding": 2, "padding_mode": "circular", "stride": 2},
    {"padding": 1, "padding_mode": "reflect", "groups": 2},
    {"padding": "same", "padding_mode": "replicate"},
]
UP = [{}, {"stride": 2, "padding": 1, "output_padding": 1}, {"stride": 3, "dilation": 2, "groups": 2, "bias": False}]
MODES = ["geo", "axes", "coord", "coord_shifted", "unshifted"]


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize(("kind", "case"), [("GeoConv", c) for c in CASES] + [("GeoConvTranspose", c) for c in UP])
def test_layers_equal_concatenation_and_torchs_convolution(n, kind, case):
    for i, mode in enumerate(MODES):
        spec = CoordSpec(mode=mode, radius=mode in ("axes", "coord"))
        conv = layer(kind, n, 4, 6, 3 if i else (4, 2, 3)[:n], coords=spec, **case)
        x = torch.randn(3, 4, *SHAPES[n], dtype=torch.float64)
        with shifted([conv], [5, 6, 7], 8):
            expected = naive(conv, x)
            torch.testing.assert_close(conv(x), expected, rtol=1e-9, atol=1e-9)
        conv.eval()
        torch.testing.assert_close(conv(x), naive(conv, x), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(conv(x[0]), conv(x)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("case", [{"padding": 2, "stride": 2}, {"padding": "same"}, {"padding": 2, "dilation": 2}])
def test_the_ramp_goes_on_beyond_the_border(n, case):
    """Against a larger image whose margin is zero for x and ramp for the channels."""
    spec = CoordSpec(mode="axes", padding="ramp")
    conv = layer("GeoConv", n, 2, 3, 4 if case["padding"] == "same" else 3, coords=spec, **case)
    x = torch.randn(2, 2, *SHAPES[n], dtype=torch.float64)
    m = (1, 2) if case["padding"] == "same" else (2, 2)
    with shifted([conv], [5, 6], 7):
        ramp = conv.coords.ramp(x.shape[2:], x.device, [m] * n, torch.float64)
        s = conv.coords.shift(2, x.device)
        g = ramp + s.reshape(2, n, *[1] * n)
    with shifted([conv], [5, 6], 7):
        wide = torch.cat([F.pad(x, m * n), g], dim=1)
        weight = torch.cat([conv.weight, conv.coord_weight], dim=1)
        convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[n]
        expected = convolve(wide, weight, conv.bias, conv.stride, 0, conv.dilation)
        torch.testing.assert_close(conv(x), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("case", [{"stride": 2, "padding": 1, "output_padding": 1}, {"dilation": 3}, {"stride": 3}])
def test_a_transposed_ramp_goes_on_too(n, case):
    """With the ramp continued, no output is nearer to a border than another: the ramp's slope is that of its middle."""
    conv = layer("GeoConvTranspose", n, 1, 1, 3, bias=False, coords=CoordSpec(mode="unshifted", padding="ramp"), **case)
    y = conv(torch.zeros(1, 1, *[8] * n, dtype=torch.float64))[0, 0]
    ends = conv(torch.zeros(1, 1, *[8] * n, dtype=torch.float64), output_size=y.shape)[0, 0]
    assert torch.equal(ends, y)
    stride = conv.stride[0]
    for d in range(n):  # the same phase of the stride, one input further: one slope throughout
        steps = y.narrow(d, stride, y.shape[d] - stride) - y.narrow(d, 0, y.shape[d] - stride)
        curve = steps.narrow(d, stride, steps.shape[d] - stride) - steps.narrow(d, 0, steps.shape[d] - stride)
        torch.testing.assert_close(curve, torch.zeros_like(curve), rtol=0, atol=1e-12)


def test_output_size_is_torchs():
    conv = GeoConvTranspose2d(2, 3, 3, stride=2, padding=1)
    x = torch.randn(2, 2, 4, 5)
    assert conv(x, output_size=(8, 10)).shape == (2, 3, 8, 10)
    assert conv(x, output_size=(7, 9)).shape == conv(x).shape == (2, 3, 7, 9)


def test_a_dimension_of_length_one_has_the_first_coordinate():
    conv = CoordConv2d(1, 2, 1, bias=False).eval()
    y = conv(torch.zeros(1, 1, 1, 5))[0, :, 0, 0]
    torch.testing.assert_close(y, -conv.coord_weight[:, :, 0, 0].sum(1))


def test_without_channels_a_layer_is_torchs_own_to_the_draw():
    torch.manual_seed(3)
    conv = GeoConv2d(3, 4, 3, coords=CoordSpec())
    torch.manual_seed(3)
    plain = nn.Conv2d(3, 4, 3)
    assert list(conv.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(conv.parameters(), plain.parameters(), strict=True))
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(conv(x), plain(x))


def test_weights_begin_as_those_of_a_convolution_over_all_channels():
    conv = GeoConv2d(6, 64, 3, groups=2, coords=CoordSpec(mode="axes"))
    bound = nn.Conv2d(5, 1, 3).weight.numel() ** -0.5  # each group sees 3 + 2 channels
    for p in conv.parameters():
        assert 0.9 * bound < p.abs().max() <= bound
    up = GeoConvTranspose2d(64, 3, 3)  # torch takes the outputs for the inputs there
    for p in (up.weight, up.coord_weight):
        assert 0.9 * (3 * 9) ** -0.5 < p.abs().max() <= (3 * 9) ** -0.5


def test_pretrained_weights_load_and_only_the_filters_of_the_channels_are_new():
    plain, conv = nn.Conv2d(3, 4, 3), GeoConv2d(3, 4, 3)
    assert conv.load_state_dict(plain.state_dict(), strict=False).missing_keys == ["coord_weight"]
    x = torch.randn(2, 3, 6, 6)
    conv.coord_weight.data.zero_()
    torch.testing.assert_close(conv(x), plain(x))
    assert isinstance(conv, nn.Conv2d)


@pytest.mark.parametrize("kind", ["GeoConv", "GeoConvTranspose"])
def test_gradients_are_those_of_finite_differences(kind):
    conv = layer(kind, 2, 1, 1, 2, coords=CoordSpec(mode="axes", padding="ramp"))

    def f(x, *params):
        with shifted([conv], [1, 2], 3):
            return torch.func.functional_call(
                conv, dict(zip(("weight", "bias", "coord_weight"), params, strict=True)), x
            )

    x = torch.randn(2, 1, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(f, (x, conv.weight, conv.bias, conv.coord_weight))


def test_coordinates_are_rounded_once_under_autocast_and_the_output_keeps_its_type():
    """Neighbours of 1000 coordinates are one bfloat16 number, and a product of two such is rounded twice."""
    conv = GeoConv2d(1, 1, 1, bias=False).eval()
    conv.weight.data.zero_()
    conv.coord_weight.data.fill_(1001.0)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(torch.zeros(1, 1, 1, 1001))
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y[0, 0, 0].double(), 1.001 * torch.arange(1001.0).double(), rtol=2**-8, atol=0)


def test_layers_have_shapes_without_memory():
    """As costs are counted."""
    with torch.device("meta"):
        assert GeoConvTranspose2d(3, 4, 4, stride=2, padding=1)(torch.zeros(2, 3, 5, 6)).shape == (2, 4, 10, 12)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("transposed", ["", "Transpose"])
def test_parameters_per_layer(n, transposed):
    kernel, out = (5, 4, 3)[:n], 7
    plain = layer_count(getattr(nn, f"Conv{transposed}{n}d")(3, out, kernel))
    geo = layer_count(getattr(geoconv, f"GeoConv{transposed}{n}d")(3, out, kernel))
    coord = layer_count(getattr(geoconv, f"CoordConv{transposed}{n}d")(3, out, kernel))
    assert geo - plain == prod(kernel) * out
    assert coord - geo == (n - 1) * prod(kernel) * out


def layer_count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


class Net(nn.Module):
    """A strided, a shared and a transposed convolution, normalisation and a head."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(3, 4, 4, stride=2, padding=1)
        self.same = nn.Conv2d(4, 4, (3, 5), padding="same", bias=False)
        self.twice = nn.ModuleList([self.same])
        self.norm = nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 2, 4, stride=2, padding=1, groups=2)
        self.head = nn.Linear(2, 5)

    def forward(self, x):
        h = self.same(self.down(x).relu()).relu()
        return self.head(self.up(self.norm(self.twice[0](h))).mean((2, 3)))


@pytest.mark.parametrize("training", [True, False])
def test_geoify_keeps_the_function_and_everything_that_was_trained(training):
    net = Net().train(training).double()
    net.same.weight.requires_grad_(False)
    before, old = dict(net.named_parameters()), deepcopy(net)
    x = torch.randn(2, 3, 8, 6, dtype=torch.float64)
    assert geoify(net) is net
    torch.testing.assert_close(net(x), old(x), rtol=1e-12, atol=1e-12)
    after = dict(net.named_parameters())
    assert all(after[name] is p for name, p in before.items())
    assert sorted(after.keys() - before.keys()) == ["down.coord_weight", "same.coord_weight", "up.coord_weight"]
    assert all(p.dtype == torch.float64 for p in net.parameters())
    assert [after[f"{m}.coord_weight"].requires_grad for m in ("down", "same", "up")] == [True, False, True]
    assert net.same is net.twice[0]
    assert all(m.training == training for m in net.modules())
    again = pickle.loads(pickle.dumps(net))
    torch.testing.assert_close(again.eval()(x), net.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize(("mode", "channels"), [("geo", 1), ("coord", 2), ("axes", 2)])
def test_parameters_of_whole_models(mode, channels):
    plain, net = Net(), geoify(Net(), CoordSpec(mode=mode))
    kernels = 16 * 4 + 15 * 4 + 16 * 2  # prod(kernel) * C_out of the three convolutions
    assert layer_count(net) - layer_count(plain) == channels * kernels
    assert {type(m).__name__ for m in net.modules() if isinstance(m, nn.Conv2d)} == {
        "CoordConv2d" if mode == "coord" else "GeoConv2d"
    }


def test_geoify_can_start_with_fresh_filters_or_in_the_first_layer_alone():
    net = geoify(Net(), keep_function=False)
    assert all(0 < m.coord_weight.abs().max() <= m.fan_in() ** -0.5 for m in (net.down, net.same, net.up))
    first = geoify(Net(), CoordSpec(mode="geo", layers="first"))
    assert [type(m).__name__ for m in (first.down, first.same, first.up)] == ["GeoConv2d", "Conv2d", "ConvTranspose2d"]
    assert len(coord_layers(first)) == 1


def test_geoify_changes_a_bare_convolution_and_keeps_its_hooks():
    conv = nn.Conv3d(2, 3, 3, padding=1, padding_mode="circular")
    seen = []
    conv.register_forward_hook(lambda *_: seen.append(1))
    x = torch.randn(1, 2, 3, 4, 5)
    expected = conv(x)
    torch.testing.assert_close(geoify(conv)(x), expected)
    assert len(seen) == 2


class Odd(nn.Conv2d):
    pass


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (nn.Sequential(nn.Conv2d(1, 1, 1), nn.LazyConv2d(3, 1)), "1 is a LazyConv2d.*call the model once"),
        (nn.Sequential(nn.Conv2d(1, 1, 1), Odd(1, 1, 1)), "1 is a Odd, not a convolution of torch's.*skip"),
        (nn.Sequential(nn.Conv2d(1, 1, 1), GeoConv2d(1, 1, 1)), "1 is a GeoConv2d, which has coordinates already"),
        (
            nn.Sequential(nn.Conv2d(1, 1, 1), nn.utils.parametrizations.spectral_norm(nn.Conv2d(1, 1, 1))),
            "ParametrizedConv2d",
        ),
        (nn.Linear(3, 3), "nothing to do"),
    ],
)
def test_what_cannot_be_converted_is_refused_and_nothing_is_changed(net, words):
    types = [type(m) for m in net.modules()]
    with pytest.raises(UserError, match=words) as e:
        geoify(net)
    assert "\n" not in str(e.value)
    assert [type(m) for m in net.modules()] == types


def test_skipped_modules_are_left_alone_and_must_exist():
    net = geoify(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Sequential(Odd(1, 1, 1), nn.Conv2d(1, 1, 1))), skip=["1"])
    assert [type(m) for m in (net[0], *net[1])] == [GeoConv2d, Odd, nn.Conv2d]
    with pytest.raises(UserError, match="skip='2'"):
        geoify(nn.Sequential(nn.Conv2d(1, 1, 1)), skip=["2"])
    with pytest.raises(UserError, match="mode='none'"):
        geoify(nn.Conv2d(1, 1, 1), GEO.replace(mode="none"))


def test_a_weight_that_is_computed_by_a_hook_stays_so():
    """weight_norm computes `weight` before each forward."""
    with pytest.warns(FutureWarning, match="weight_norm"):
        conv = nn.utils.weight_norm(nn.Conv2d(2, 3, 3))
    x = torch.randn(1, 2, 5, 5)
    expected = conv(x)
    torch.testing.assert_close(geoify(conv)(x), expected)
    assert conv.coord_weight.requires_grad
