"""The MS-PIE generator against published sizes and counts. Full-size networks live on the meta device."""

import pytest
import torch

from pipeline.cost import multiply_adds, parameters
from pipeline.families.mspie import MSPIEConfig
from pipeline.layers.posenc import sinusoidal
from pipeline.models.mspie import MSPIEGeneratorConfig
from pipeline.models.stylegan2 import DiscriminatorConfig, broadcast_w, mix_styles
from pipeline.recipes import find
from pipeline.spec import UserError

TINY = MSPIEGeneratorConfig(num_upblocks=2, channel_max=8, z_dim=8, w_dim=8, mapping_layers=2)


def count(config) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in config.build().parameters())


def test_row_f_has_the_published_parameter_counts():
    assert parameters(find("mspie.table5_f").make().family) == {"G": 30_026_146, "D": 25_718_401}


@pytest.mark.parametrize(
    ("config", "published"),
    [
        (MSPIEGeneratorConfig(head="const", resize="interp"), 30_034_338),
        (MSPIEGeneratorConfig(head="csg"), 27_414_436),
        (MSPIEGeneratorConfig(channel_multiplier=1), 24_759_266),
        (DiscriminatorConfig(), 28_864_129),
        (DiscriminatorConfig(channel_multiplier=1, pool=2), 20_855_361),
        (DiscriminatorConfig(channel_multiplier=1), 24_001_089),
        (DiscriminatorConfig(resolution_px=1024), 29_012_513),
    ],
)
def test_variants_have_the_published_parameter_counts(config, published):
    assert count(config) == published


def test_row_f_has_the_derived_multiply_adds_at_each_size():
    family = find("mspie.table5_f").make().family
    G = [round(m / 1e9, 1) for m in multiply_adds(family, "G").values()]
    D = [round(m / 1e9, 1) for m in multiply_adds(family, "D").values()]
    assert (G, D) == ([45.1, 101.5, 180.5], [46.5, 104.7, 186.1])


@pytest.mark.parametrize(("s", "side"), [(0, 256), (2, 384), (4, 512), (10, 896), (12, 1024)])
def test_size_table_of_row_f(s, side):
    """Head 4 + s; blocks double it six times; 14 styles and 13 noise maps at every scale."""
    with torch.device("meta"):
        G = MSPIEGeneratorConfig().build()
        assert (G.num_ws, len(G.noise_shapes((side, side)))) == (14, 13)
        sides = [shape[1] for shape in G.noise_shapes((side, side))]
        assert sides[0] == 4 + s
        assert sides[1::2] == sides[2::2] == [(4 + s) << i for i in range(1, 7)]
        img = G.synthesis(torch.zeros(1, 14, 512), (side, side), None)
    assert img.shape == (1, 3, side, side)


def test_sides_may_differ():
    G = TINY.build()
    img = G.synthesis(torch.zeros(2, G.num_ws, 8), (16, 24), (1, 2))
    assert img.shape == (2, 3, 16, 24)
    assert G.noise_shapes((16, 24)) == [(1, 4, 6), (1, 8, 12), (1, 8, 12), (1, 16, 24), (1, 16, 24)]


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


@pytest.mark.parametrize("resize", ["expand", "interp"])
def test_head_at_other_sizes_is_rebuilt_or_interpolated(resize):
    G = TINY.replace(resize=resize).build()
    base, larger = G.head((16, 16)), G.head((32, 24))
    assert torch.equal(base, sinusoidal(8, (4, 4)))
    assert larger.shape == (8, 8, 6)
    assert torch.equal(larger, sinusoidal(8, (8, 6))) == (resize == "expand")
    torch.testing.assert_close(larger[:, 0, 0], base[:, 0, 0])


def test_the_image_is_the_sum_of_skip_contributions():
    """With all but the first toRGB silenced, the image is that one upsampled."""
    from pipeline.layers.resample import fir_up

    G, ws = TINY.build(), torch.randn(2, 6, 8)
    with torch.no_grad():
        for to_rgb in list(G.to_rgbs)[1:]:
            to_rgb.conv.weight.zero_()
        x = G.convs[0](G.head((16, 16)).expand(2, -1, -1, -1), ws[:, 0], None)
        first = G.to_rgbs[0](x, ws[:, 1], None)
        torch.testing.assert_close(G.synthesis(ws, (16, 16), None), fir_up(fir_up(first)))


def test_noise_enters_through_its_strength_and_only_by_seed():
    G, ws = TINY.build(), torch.randn(2, 6, 8)
    silent = G.synthesis(ws, (16, 16), None)
    assert torch.equal(G.synthesis(ws, (16, 16), (1, 2)), silent)  # strengths start at zero
    with torch.no_grad():
        for conv in G.convs:
            conv.noise_strength.fill_(0.5)
    noisy = G.synthesis(ws, (16, 16), (1, 2))
    assert not torch.allclose(noisy, silent)
    torch.testing.assert_close(G.synthesis(ws[1:], (16, 16), (2,)), noisy[1:], rtol=1e-5, atol=1e-5)


def test_mixed_styles_change_at_the_crossover():
    w, other = torch.zeros(2, 3), torch.ones(2, 3)
    assert mix_styles(w, other, 5, 2)[0, :, 0].tolist() == [0, 0, 1, 1, 1]
    assert torch.equal(mix_styles(w, other, 5, 5), broadcast_w(w, 5))


def test_deep_and_shallow_base_sizes_agree_between_g_and_d():
    with pytest.raises(ValueError, match="base size 16"):
        MSPIEConfig(G=TINY)
