"""The MS-PIE generator: its head, its blocks, its skip path, its noise, at sizes of any aspect. Tiny networks."""

import pytest
import torch
from torch.nn import functional as F

from pipeline.families.mspie import MSPIEConfig
from pipeline.layers.posenc import sinusoidal
from pipeline.layers.resample import bilinear_up, fir_up
from pipeline.models.mspie import MSPIEGeneratorConfig, StyledConv
from pipeline.models.stylegan2 import DiscriminatorConfig, broadcast_w, mix_styles
from pipeline.spec import UserError

TINY = MSPIEGeneratorConfig(num_upblocks=2, channel_max=8, z_dim=8, w_dim=8, mapping_layers=2)
UP_CONV = TINY.replace(block="up_conv")
UNPADDED = UP_CONV.replace(padding="none")
BLOCKS = {
    "conv_up": TINY,
    "up_conv": UP_CONV,
    "deconv": TINY.replace(block="deconv"),
    "unpadded": UNPADDED,
    "unpadded but for its skip path": UNPADDED.replace(padded_skip=True),
}
each_block = pytest.mark.parametrize("config", BLOCKS.values(), ids=BLOCKS)


@each_block
def test_sides_may_differ(config):
    G = config.build()
    img = G.synthesis(torch.zeros(2, G.num_ws, 8), (16, 24), (1, 2))
    assert img.shape == (2, 3, 16, 24)
    padded = [(1, 4, 6), (1, 8, 12), (1, 8, 12), (1, 16, 24), (1, 16, 24)]
    unpadded = [(1, 4, 6), (1, 10, 14), (1, 8, 12), (1, 18, 26), (1, 16, 24)]
    assert G.noise_shapes((16, 24)) == (padded if config.padding == "zero" else unpadded)


@pytest.mark.parametrize("config", [TINY, BLOCKS["deconv"], UP_CONV, UNPADDED])
def test_an_up_sampling_convolution_is_the_formula_of_its_block(config):
    layer = StyledConv(4, 6, 8, config.padding, up=config.block)
    x, w = torch.randn(2, 4, 5, 7), torch.randn(2, 8)
    with torch.no_grad():
        layer.noise_strength.fill_(0.7)
        layer.bias.normal_()
    if config.block == "up_conv":
        y = layer.conv(bilinear_up(x, 0 if config.padding == "zero" else 4), w)
    else:
        y = layer.conv(x, w) if config.block == "deconv" else bilinear_up(layer.conv(x, w))
    assert y.shape[2:] == ((12, 16) if config.padding == "none" else (10, 14))
    noise = torch.randn(2, 1, *y.shape[2:])
    expected = F.leaky_relu(y + 0.7 * noise + layer.bias[:, None, None], 0.2) * 2**0.5
    torch.testing.assert_close(layer(x, w, noise), expected)


@each_block
def test_weights_fit_every_kind_of_block_but_a_learned_constant_its_padding(config):
    """Blocks differ in what they do with the same parameters."""
    a, b = TINY.replace(head="csg").build(), config.replace(head="csg").build()
    b.load_state_dict(a.state_dict())
    ws = torch.randn(1, 6, 8)
    same = torch.allclose(a.synthesis(ws, (16, 16), None), b.synthesis(ws, (16, 16), None), atol=1e-3)
    assert same == (config is TINY)
    side = 4 if config.padding == "zero" else 6
    assert config.replace(head="const", resize="interp").build().const.shape == (8, side, side)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"padding": "none"}, "padding='none' needs block='up_conv', not 'conv_up'"),
        ({"padding": "none", "block": "deconv"}, "padding='none' needs block='up_conv', not 'deconv'"),
        ({"padded_skip": True}, "padded_skip=true needs padding='none'"),
        ({"padded_skip": True, "block": "up_conv"}, "padded_skip=true needs padding='none'"),
        ({"head": "const"}, "a learned constant is 'interp'"),
    ],
)
def test_combinations_without_a_meaning_are_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        TINY.replace(**changes)


def test_discriminator_runs_on_every_size_when_pooled():
    D = DiscriminatorConfig(resolution_px=32, channel_max=8, mbstd_group=2, pool=2).build()
    assert all(D(torch.randn(2, 3, side, side)).shape == (2,) for side in (32, 48, 64))


@pytest.mark.parametrize(
    ("size", "use"),
    [
        ((21, 21), "20x20 or 24x24"),
        ((21, 32), "20x32 or 24x32"),
        ((30, 21), "28x20 or 32x24"),
        ((3, 16), "4x16"),
        ((1, 9), "4x8 or 4x12"),
    ],
)
def test_a_size_that_cannot_be_made_is_refused_with_the_nearest_ones(size, use):
    G = TINY.build()
    with pytest.raises(UserError, match=rf"^size={size[0]}x{size[1]}: .* multiples of 4, at least 4, .*; use {use}$"):
        G.check_size(size)
    for one in use.split(" or "):
        h, w = map(int, one.split("x"))
        G.check_size((h, w))
        assert G.synthesis(torch.zeros(1, G.num_ws, 8), (h, w), (1,)).shape == (1, 3, h, w)


@pytest.mark.parametrize("config", [TINY, UNPADDED])
@pytest.mark.parametrize("resize", ["expand", "interp"])
def test_head_at_other_sizes_is_rebuilt_or_interpolated(resize, config):
    G, more = config.replace(resize=resize).build(), 0 if config is TINY else 2
    base, larger = G.head((16, 16)), G.head((32, 24))
    assert torch.equal(base, sinusoidal(8, (4 + more, 4 + more)))
    assert larger.shape == (8, 8 + more, 6 + more)
    assert torch.equal(larger, sinusoidal(8, (8 + more, 6 + more))) == (resize == "expand")
    torch.testing.assert_close(larger[:, 0, 0], base[:, 0, 0])


@pytest.mark.parametrize("config", [TINY, UNPADDED])
@pytest.mark.parametrize("size", [(32, 24), (8, 16), (16, 20)])
def test_interpolating_the_grid_is_rebuilding_it_in_the_release_but_not_in_the_paper(size, config):
    def head(**changes):
        return config.replace(head="csg", **changes).build().head(size)

    torch.testing.assert_close(head(resize="interp"), head(resize="expand"), rtol=0, atol=1e-6)
    paper = [head(resize=resize, convention="paper") for resize in ("interp", "expand")]
    assert not torch.allclose(*paper, atol=1e-2)


@each_block
def test_the_image_is_the_sum_of_skip_contributions(config):
    """With all but the first toRGB silenced, the image is that one upsampled."""
    G, ws = config.build(), torch.randn(2, 6, 8)
    up = bilinear_up if config is UNPADDED else fir_up
    with torch.no_grad():
        for to_rgb in list(G.to_rgbs)[1:]:
            to_rgb.conv.weight.zero_()
        x = G.convs[0](G.head((16, 16)).expand(2, -1, -1, -1), ws[:, 0], None)
        first = G.to_rgbs[0](x, ws[:, 1], None)
        torch.testing.assert_close(G.synthesis(ws, (16, 16), None), up(up(first)))


@each_block
@pytest.mark.parametrize("size", [(16, 16), (24, 16), (32, 40)])
def test_noise_enters_each_layer_through_its_strength_and_only_by_seed(size, config):
    G, ws = config.build(), torch.randn(2, 6, 8)
    silent = G.synthesis(ws, size, None)
    assert torch.equal(G.synthesis(ws, size, (1, 2)), silent)  # strengths start at zero
    seen = [silent]
    for conv in G.convs:
        with torch.no_grad():
            conv.noise_strength.fill_(0.5)
        seen.append(G.synthesis(ws, size, (1, 2)))
        assert not torch.allclose(seen[-1], seen[-2])
    assert torch.equal(G.synthesis(ws, size, (1, 2)), seen[-1])
    torch.testing.assert_close(G.synthesis(ws[1:], size, (2,)), seen[-1][1:], rtol=1e-5, atol=1e-5)


@each_block
def test_blocks_in_float16_make_the_image_of_float32_within_rounding(config):
    plain, reduced = config.build(), config.replace(fp16_blocks=2).build()
    reduced.load_state_dict(plain.state_dict())
    ws = torch.randn(2, plain.num_ws, 8)
    img, img16 = (G.synthesis(ws, (16, 24), (1, 2)) for G in (plain, reduced))
    assert img16.dtype == torch.float32
    assert 0 < (img16 - img).norm() / img.norm() < 5e-3


def test_mixed_styles_change_at_the_crossover():
    w, other = torch.zeros(2, 3), torch.ones(2, 3)
    assert mix_styles(w, other, 5, 2)[0, :, 0].tolist() == [0, 0, 1, 1, 1]
    assert torch.equal(mix_styles(w, other, 5, 5), broadcast_w(w, 5))


def test_deep_and_shallow_base_sizes_agree_between_g_and_d():
    with pytest.raises(ValueError, match="base size 16"):
        MSPIEConfig(G=TINY)
