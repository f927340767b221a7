"""DCGAN's networks against arithmetic; an image depends on nothing beside it, in training nor in evaluation."""

from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from pipeline.layers.coords import CoordSpec, shifted
from pipeline.models.dcgan import DCGANDiscriminatorConfig, DCGANGeneratorConfig
from pipeline.models.stylegan2 import broadcast_w
from pipeline.phases import Generator
from pipeline.spec import UserError
from pipeline.synthesis.sample import generate

SMALL = DCGANGeneratorConfig(resolution_px=16, channel_base=8, z_dim=8, bn_group=4)
ROWS = {"a": SMALL, "b": SMALL.replace(padding=False), "c": SMALL.replace(padding=False, head="spe")}


def images(G, z, size=(16, 16)):
    return G.synthesis(broadcast_w(G.mapping(z), 1), size, None)


def test_parameters_are_those_of_the_arithmetic():
    width = [1024, 512, 256, 128, 64, 3]
    g = 100 * 1024 * 16 + sum(2 * c for c in width[:-1])  # dense, batch norms
    g += sum(a * b * 9 for a, b in pairwise(width)) + 3  # convolutions; bias of the last
    width.reverse()
    d = sum(a * b * 16 + b for a, b in pairwise(width)) + 1024 * 16 + 1
    with torch.device("meta"):
        nets = [DCGANGeneratorConfig().build(), DCGANDiscriminatorConfig().build()]
    assert [sum(p.numel() for p in net.parameters()) for net in nets] == [g, d] == [7_910_979, 11_162_561]


def test_weights_start_as_dcgan_starts_them():
    G, D = SMALL.replace(channel_base=32).build(), DCGANDiscriminatorConfig(resolution_px=32).build()
    for net in (G, D):
        for name, p in net.named_parameters():
            if name.endswith("bias"):
                assert not p.any()
            else:
                assert p.mean().item() == pytest.approx(float(p.ndim == 1), abs=0.01), name
                assert p.std().item() == pytest.approx(0.02, rel=0.25), name


@pytest.mark.parametrize("row", ROWS)
def test_it_makes_sizes_never_trained_square_or_not(row):
    G = ROWS[row].build().eval()
    assert isinstance(G, Generator)
    for size in ((16, 16), (32, 24), (4, 28)):
        G.check_size(size)
        img = images(G, torch.randn(3, 8), size)
        assert img.shape == (3, 3, *size)
        assert img.std() > 1e-4
    with pytest.raises(UserError, match="size=16x18 must be multiples of 4 for this generator; the nearest is 16"):
        G.check_size((16, 18))


@pytest.mark.parametrize("row", ROWS)
def test_in_evaluation_an_image_is_a_function_of_its_latent_alone(row):
    G, z = ROWS[row].build().eval(), torch.randn(5, 8)
    together = images(G, z)
    torch.testing.assert_close(images(G, z[3:4]), together[3:4])
    torch.testing.assert_close(images(G, z.flip(0)), together.flip(0))


def test_the_latents_whose_statistics_hold_look_in_evaluation_as_in_training():
    G = ROWS["c"].build()
    z = G.standing(torch.device("cpu"))
    torch.testing.assert_close(images(G, z), images(G.eval(), z))
    other = torch.randn(4, 8)
    assert not torch.allclose(images(G.train(), other), images(G.eval(), other), atol=1e-3)


def test_samples_are_the_same_alone_and_in_company():
    G = ROWS["c"].build().eval()
    for p in G.parameters():
        p.data *= 5  # off the grey in the middle
    apart = abs(generate(G, [7], (24, 16)).astype(int) - generate(G, [1, 7, 3], (24, 16))[1:2])
    assert apart.max() <= 1
    assert generate(G, [7]).std() > 10


def test_in_training_a_group_depends_on_itself_alone_and_must_be_whole():
    G, z = SMALL.build(), torch.randn(8, 8)
    torch.testing.assert_close(images(G, z)[4:], images(G, z[4:]))
    changed = images(G, torch.cat([z[:1] + 1, z[1:]]))
    assert not torch.allclose(changed[1], images(G, z)[1], atol=1e-6)
    with pytest.raises(ValueError, match="6 samples do not form groups of 4"):
        images(G, z[:6])


@pytest.mark.parametrize("size", [(16, 16), (24, 20)])
def test_without_padding_a_constant_first_map_becomes_a_constant_image_and_with_padding_it_does_not(size):
    spread = {}
    for row in ("a", "b"):
        G = ROWS[row].build()
        first = torch.randn(4, 16, 1, 1).expand(-1, -1, size[0] // 4, size[1] // 4)
        img = G.images(first.contiguous())
        assert img.shape == (4, 3, *size)
        spread[row] = img.var(dim=(2, 3)).max().item()
    assert spread["b"] < 1e-12
    assert spread["a"] > 1e-6


def test_d_is_strided_convolutions_alone():
    D, img = DCGANDiscriminatorConfig(resolution_px=16, channel_base=4).build(), torch.randn(3, 3, 16, 16)
    x = img
    for conv in D.convs:
        x = F.leaky_relu(F.conv2d(x, conv.weight, conv.bias, stride=2, padding=1), 0.2)
    assert x.shape == (3, 8, 4, 4)
    torch.testing.assert_close(D(img), (x * D.last.weight).sum(dim=(1, 2, 3)))
    assert torch.equal(D(img)[1:2], D(img[1:2]))


def test_what_cannot_carry_a_code_is_refused():
    with pytest.raises(ValueError, match="channel_base=1 gives 2 channels, not a multiple of 4"):
        SMALL.replace(channel_base=1, head="spe")


GEO, COORD = CoordSpec(mode="geo"), CoordSpec(mode="coord")


def test_coordinate_channels_cost_what_the_arithmetic_says_and_are_everywhere_but_at_the_dense_layers():
    """(channels) x kernel x outputs for each convolution: CoordConv has one channel more than GeoConv in 2-D."""

    def count(config) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in config.build().parameters())

    g, d = DCGANGeneratorConfig(), DCGANDiscriminatorConfig()
    of_g, of_d = 9 * (512 + 256 + 128 + 64 + 3), 16 * (64 + 128 + 256 + 512 + 1024)
    for config, own in ((g, of_g), (d, of_d)):
        none, geo, coord = (count(config.replace(coords=spec)) for spec in (CoordSpec(), GEO, COORD))
        assert (geo - none, coord - geo) == (own, own)
    first = g.replace(coords=GEO.replace(layers="first"))
    assert count(first) - count(g) == 9 * 512


def test_coordinates_are_appended_before_each_convolution_of_d():
    D = DCGANDiscriminatorConfig(resolution_px=16, channel_base=4, coords=COORD).build()
    img = x = torch.randn(3, 3, 16, 16)
    for conv in D.convs:
        side = torch.linspace(-1, 1, x.shape[2])
        grid = torch.stack(torch.meshgrid(side, side, indexing="ij")).expand(3, -1, -1, -1)
        x = F.leaky_relu(F.conv2d(torch.cat([x, grid], dim=1), conv.weight, conv.bias, stride=2, padding=1), 0.2)
    torch.testing.assert_close(D(img), (x * D.last.weight).sum(dim=(1, 2, 3)))


def test_with_geoconv_training_is_random_and_evaluation_is_not():
    G, z = SMALL.replace(coords=GEO).build(), torch.randn(4, 8)
    assert not torch.equal(images(G, z), images(G, z))
    G.eval()
    assert torch.equal(images(G, z), images(G, z))


def of_all_but_the_last(config) -> float:
    """How much shifts of other seeds change an image, but for the last convolution's own, which nothing normalises."""
    G, z, images_of = config.replace(padding=False).build(), torch.randn(4, 8), {}
    with torch.no_grad():
        for blind in (False, True):
            if blind:
                G.norms[-1].weight.zero_()
            for seed in (0, 10):
                with shifted([G], range(seed, seed + 4), seed):
                    images_of[blind, seed] = images(G, z).atanh()
    change = {blind: images_of[blind, 0] - images_of[blind, 10] for blind in (False, True)}
    return float((change[False] - change[True]).abs().max())


def test_a_shift_that_batch_norm_cancels_is_warned_of():
    for sets in ({"coords": GEO.replace(draw="batch")}, {"coords": GEO, "bn_group": 1}):
        with pytest.warns(UserWarning, match="batch norm averages over has one shift, which it cancels") as said:
            cancelled = of_all_but_the_last(SMALL.replace(**sets))
        assert len(said) == 1
        assert cancelled < 1e-4
    assert of_all_but_the_last(SMALL.replace(coords=GEO)) > 1e-3  # without a warning, which would be an error


def test_the_cartesian_grid_is_appended_to_the_first_map():
    G = SMALL.replace(head="csg").build()
    assert G.convs[0].in_channels == 16 + 2
    assert G.convs[1].in_channels == 8
    first = G.first_map(torch.randn(4, 8), (16, 32))
    assert first.shape == (4, 18, 4, 8)
    torch.testing.assert_close(first[0, 16, 0], torch.linspace(-1, 1, 8))
    torch.testing.assert_close(first[3, 17, :, 0], torch.linspace(-1, 1, 4))
    assert images(G.eval(), torch.randn(1, 8), (32, 24)).shape == (1, 3, 32, 24)


def test_ramps_beyond_the_border_are_refused():
    for config in (SMALL, DCGANDiscriminatorConfig()):
        with pytest.raises(ValueError, match=r"coords\.padding='ramp' is not made for this network"):
            config.replace(coords=GEO.replace(padding="ramp"))
