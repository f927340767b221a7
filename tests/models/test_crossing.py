"""Coordinate channels (GeoPos) inside the generators of MS-PIE: formula, effect, shifts, sizes, precision, arithmetic.

The shifts of training, resumed and on two ranks: training/test_every_recipe.py, for the recipes of geopos.crossing.
"""

import pytest
import torch
from torch.nn import functional as F

from pipeline.config import override
from pipeline.cost import parameters
from pipeline.errors import UserError
from pipeline.layers.coords import CoordSpec, coord_layers, shifted
from pipeline.layers.equalized import EqualizedConv2d
from pipeline.layers.modulated import ModulatedConv2d
from pipeline.models.mspie import MSPIEGeneratorConfig
from pipeline.models.pggan import PGGANGeneratorConfig
from pipeline.models.stylegan2 import broadcast_w
from pipeline.recipes import find
from pipeline.synthesis.probe import padding_probe, spread
from tests.models.test_fp16_blocks import images, off, pair

GEO, COORD = CoordSpec(mode="geo"), CoordSpec(mode="coord")
RAMP = GEO.replace(padding="ramp")
MSPIE = MSPIEGeneratorConfig(num_upblocks=2, channel_max=8, z_dim=8, w_dim=8, mapping_layers=1)
PGGAN = PGGANGeneratorConfig(resolution_px=16, channel_max=8, z_dim=8)
UNPADDED = MSPIE.replace(block="up_conv", padding="none")
GENERATORS = {
    "conv_up": MSPIE,
    "up_conv": MSPIE.replace(block="up_conv"),
    "deconv": MSPIE.replace(block="deconv"),
    "unpadded": UNPADDED,
    "constant": MSPIE.replace(head="const", resize="interp"),
    "pggan": PGGAN,
    "pggan unpadded": PGGAN.replace(padding=False),
}


def built(config, coords: CoordSpec):
    """In training mode, at its last level; one initialisation."""
    torch.manual_seed(0)
    G = config.replace(coords=coords).build()
    if hasattr(G, "grow"):
        G.grow(G.levels - 1)
    return G


def draw(G, size, n: int = 2) -> torch.Tensor:
    z = torch.randn(n, G.z_dim, generator=torch.Generator().manual_seed(1))
    return G.synthesis(broadcast_w(G.mapping(z), G.num_ws), size, tuple(range(n)))


def of_formula(mode: str, h: int, w: int, beyond: int = 0) -> torch.Tensor:
    """Channels without shift, pixel by pixel."""
    at = [[(i / (h - 1), j / (w - 1)) for j in range(-beyond, w + beyond)] for i in range(-beyond, h + beyond)]
    ij = torch.tensor(at).permute(2, 0, 1)
    return ij.sum(0, keepdim=True) if mode == "geo" else 2 * ij - 1


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize(
    ("spec", "deconv", "padding"),
    [(GEO, False, 1), (COORD, False, 1), (GEO, False, 0), (COORD, True, None), (GEO, True, None), (RAMP, False, 1)],
)
def test_modulated_convolution_equals_one_weight_a_sample_on_the_concatenated_input(spec, deconv, padding, demodulate):
    """The channels' styles are rows of the affine map like all others, and the channels count in the norm."""
    layer = ModulatedConv2d(3, 4, 3, 5, demodulate=demodulate, padding=padding, deconv=deconv, coords=spec)
    x, w, k = torch.randn(2, 3, 4, 6), torch.randn(2, 5), layer.coords.count
    with shifted([layer], [7, 8], 9):
        s = layer.coords.shift(2, x.device)
    with shifted([layer], [7, 8], 9):
        seen = layer(x, w)
    assert layer.weight.shape == (4, 3 + k, 3, 3)
    assert layer.affine.weight.shape == (3 + k, 5)
    ramp = spec.padding == "ramp"
    for n in range(2):
        g = of_formula(spec.mode, 4, 6, beyond=int(ramp)) + (0 if s is None else s[n][:, None, None])
        full = torch.cat([F.pad(x[n], (1, 1, 1, 1)) if ramp else x[n], g])[None]
        style = w[n] @ layer.affine.weight.T / 5**0.5 + layer.affine.bias
        weight = layer.weight / (9 * (3 + k)) ** 0.5 * style[None, :, None, None]
        if demodulate:
            weight = weight / (weight.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if deconv:
            blur = (torch.outer(*2 * [torch.tensor([1.0, 3.0, 3.0, 1.0])]) / 16).expand(4, 1, 4, 4)
            wide = F.conv_transpose2d(full, weight.transpose(0, 1), stride=2)
            expected = F.conv2d(wide, blur, padding=1, groups=4)
        else:
            expected = F.conv2d(full, weight, padding=0 if ramp else padding)
        torch.testing.assert_close(seen[n : n + 1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", [GEO, COORD, RAMP])
def test_equalised_convolution_sees_the_concatenated_input(spec):
    layer, x = EqualizedConv2d(3, 4, 3, padding=1, coords=spec).eval(), torch.randn(2, 3, 5, 4)
    ramp = spec.padding == "ramp"
    g = of_formula(spec.mode, 5, 4, beyond=int(ramp)).expand(2, -1, -1, -1)
    full = torch.cat([F.pad(x, (1, 1, 1, 1)) if ramp else x, g], 1)
    expected = F.conv2d(full, layer.weight / (9 * full.shape[1]) ** 0.5, layer.bias, padding=0 if ramp else 1)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("name", GENERATORS)
def test_every_kind_of_generator_draws_with_them_at_trained_and_unseen_sizes(name):
    """Shifts are seen in training and not in evaluation, which is deterministic; and every convolution has them."""
    config = GENERATORS[name]
    G = built(config, GEO)
    assert len(coord_layers(G)) == sum(p.ndim == 4 and p.shape[2] == 3 for p in G.parameters())
    assert len(coord_layers(built(config, GEO.replace(layers="first")))) == 1
    with torch.no_grad():
        for size in ((16, 16), (32, 48)):
            trained = []
            for seeds in ([1, 2], [1, 2], [1, 3]):
                with shifted([G.train()], seeds, 0):
                    trained.append(draw(G, size))
            assert torch.equal(trained[0], trained[1])
            assert torch.equal(trained[0][0], trained[2][0])
            assert not torch.equal(trained[0][1], trained[2][1])
            with shifted([G.eval()], [1, 2], 0):
                still = draw(G, size)
            assert still.shape == (2, 3, *size)
            assert still.isfinite().all()
            assert torch.equal(still, draw(G, size))
            assert not torch.equal(still, trained[0])


@pytest.mark.parametrize("name", GENERATORS)
def test_the_channels_change_what_is_drawn_and_by_nothing_but_themselves(name):
    """With weights of zero for the channel, and the scale of the smaller fan-in, the picture is that without."""
    G, plain = built(GENERATORS[name], GEO).eval(), built(GENERATORS[name], CoordSpec()).eval()
    assert plain.state_dict().keys() == G.state_dict().keys()
    shapes = {name: p.shape for name, p in plain.state_dict().items()}
    cut = {k: v[tuple(map(slice, shapes[k]))] for k, v in G.state_dict().items()}
    plain.load_state_dict(cut)
    with torch.no_grad():
        drawn = draw(G, (16, 16))
        assert off(drawn, draw(plain, (16, 16))) > 1e-2
        for layer in G.modules():
            if isinstance(layer, ModulatedConv2d | EqualizedConv2d) and layer.coords.count:
                layer.weight[:, -1] = 0
                layer.scale *= (layer.weight.shape[1] / (layer.weight.shape[1] - 1)) ** 0.5
        torch.testing.assert_close(draw(G, (16, 16)), draw(plain, (16, 16)), rtol=1e-4, atol=1e-5)


def test_shifts_in_evaluation_on_request():
    """The one field of which training knows nothing."""
    G = built(MSPIE, GEO.replace(stochastic_eval=True)).eval()
    drawn = []
    for seeds in ([1, 2], [3, 4]):
        with shifted([G], seeds, 0), torch.no_grad():
            drawn.append(draw(G, (16, 16)))
    assert not torch.equal(*drawn)


def test_growing_uses_the_channels_of_the_levels_in_use():
    G = built(PGGAN, COORD)
    for level, fade in ((0, 1.0), (1, 0.5), (2, 0.25)):
        G.grow(level, fade)
        img = draw(G, (4 << level, 4 << level))
        grads = torch.autograd.grad(img.square().sum(), list(G.parameters()), allow_unused=True)
        used = {name for (name, p), g in zip(G.named_parameters(), grads, strict=True) if p.ndim == 4 and g is not None}
        assert {name.partition(".conv")[0] for name in used if "blocks" in name} == {
            f"blocks.{i}" for i in range(level)
        }


@pytest.mark.parametrize(
    ("mode", "channels"), [("geo", 1), ("unshifted", 1), ("axes", 2), ("coord", 2), ("coord_shifted", 2)]
)
def test_parameters_of_the_whole_stylegan2_are_those_of_the_formula(mode, channels):
    """A channel costs 9 C_out of each 3x3 convolution, and a row of w_dim + 1 of its affine map."""
    family = find("geopos.stylegan2_geo").make().family
    counts = {
        m: parameters(family.replace(G=family.G.replace(coords=CoordSpec(mode=m))))["G"] for m in ("none", "geo", mode)
    }
    out = [
        512,
        *[512] * 6,
        *[512, 512],
        *[256, 256],
        *[128, 128],
    ]  # of the 13 convolutions: 4 px; 8, 16, 32; 64 ... 256
    each = sum(9 * c_out + 513 for c_out in out)
    assert counts[mode] - counts["none"] == channels * each
    assert counts[mode] - counts["geo"] == (channels - 1) * each == (0 if channels == 1 else 55_053)


def test_parameters_of_the_whole_pggan_are_those_of_the_formula():
    family = find("geopos.pggan_geo").make().family
    counts = {
        m: parameters(family.replace(G=family.G.replace(coords=CoordSpec(mode=m))))["G"] for m in ("geo", "coord")
    }
    assert counts["coord"] - counts["geo"] == 9 * (512 + 2 * (512 + 512 + 512 + 256 + 128))


@pytest.mark.parametrize("spec", [GEO, COORD])
def test_float16_blocks_see_them_within_rounding(spec):
    """In values and in the gradient of the channels' own weights."""
    G, g16 = pair(MSPIE.replace(coords=spec), 2)
    w, seen = torch.randn(2, 8), []
    for net in (G, g16):
        with shifted([net], [1, 2], 0):
            img = images(net, w, (32, 48))
        weights = [conv.conv.weight for conv in net.convs]
        grads = torch.autograd.grad((img * torch.linspace(-1, 1, 48)).mean(), weights)
        seen.append((img.detach(), torch.cat([g[:, -spec.channels(2) :].flatten() for g in grads])))
    assert 0 < off(seen[1][0], seen[0][0]) < 5e-3
    assert 0 < off(seen[1][1], seen[0][1]) < 2e-2


def test_a_float16_ramp_of_1024_px_is_off_by_a_thousandth_where_float32_keeps_every_pixel_apart():
    """What docs/encodings.md says of it: half of the spacing between float16 numbers from 1 to 2, or from 2 to 4."""
    (g,) = built(MSPIE, COORD).convs[0].conv.coords.ramp((1, 1024), torch.device("cpu"))[1]
    geo = built(MSPIE, GEO).convs[0].conv.coords.ramp((1024, 1024), torch.device("cpu"))[0]
    for exact, worst in ((g, 2.5e-4), (geo, 5e-4), (geo + 1, 9.8e-4)):
        error = (exact.half().float() - exact).abs().max().item()
        assert 0.9 * worst < error <= worst


@pytest.mark.parametrize(
    ("config", "word"), [(UNPADDED, "padding='none'"), (PGGAN.replace(padding=False), "padding=false")]
)
def test_a_ramp_beyond_borders_that_are_never_passed_is_refused(config, word):
    with pytest.raises(UserError, match=rf"coords\.padding='ramp' has no effect with {word}"):
        override(config, ["coords.mode=geo", "coords.padding=ramp"])


def test_without_padding_and_with_a_constant_head_they_alone_tell_places_apart():
    """As `graticule probe padding` looks: one colour without them, and more than one with, at a size never trained."""
    for name, spec in (("none", CoordSpec()), ("geo", GEO), ("coord", COORD)):
        (img,) = padding_probe(built(UNPADDED, spec).eval(), (0.5,), (32, 48))
        seen = spread(img)
        assert (max(seen.interior, seen.border) < 1e-9) == (name == "none")
