"""PGGAN's networks against arithmetic, and its levels against each other: growing is exact at both ends of a fade."""

from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from pipeline.chance import rng
from pipeline.layers.posenc import sinusoidal
from pipeline.models.pggan import PGGANDiscriminatorConfig, PGGANGeneratorConfig
from pipeline.models.stylegan2 import broadcast_w
from pipeline.phases import Generator
from pipeline.spec import UserError
from pipeline.training.ema import update_ema

SMALL = PGGANGeneratorConfig(resolution_px=16, channel_max=8, z_dim=8)
ROWS = {"a": SMALL, "b": SMALL.replace(padding=False), "c": SMALL.replace(padding=False, head="spe")}
WIDTH = {4: 512, 8: 512, 16: 512, 32: 512, 64: 256, 128: 128, 256: 64, 512: 32, 1024: 16}


def parameters(config) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in config.build().parameters())


def images(G, size, n=4):
    z = torch.randn(n, G.z_dim, generator=torch.Generator().manual_seed(1))
    return G.synthesis(broadcast_w(G.mapping(z), 1), size, None)


def conv(i: int, o: int, k: int) -> int:
    return i * o * k * k + o


@pytest.mark.parametrize("px", [128, 1024])
def test_parameters_are_those_of_the_arithmetic(px):
    sides = [s for s in WIDTH if s <= px]
    pairs = [(WIDTH[a], WIDTH[b]) for a, b in pairwise(sides)]
    g = 512 * 512 * 16 + 512 + conv(512, 512, 3) + sum(conv(WIDTH[s], 3, 1) for s in sides)
    g += sum(conv(a, b, 3) + conv(b, b, 3) for a, b in pairs)
    d = conv(513, 512, 3) + 512 * 16 * 512 + 512 + 512 + 1 + sum(conv(3, WIDTH[s], 1) for s in sides)
    d += sum(conv(b, b, 3) + conv(b, a, 3) for a, b in pairs)
    assert parameters(PGGANGeneratorConfig(resolution_px=px)) == g
    assert parameters(PGGANDiscriminatorConfig(resolution_px=px)) == d
    assert (g, d) == {128: (22_933_394, 22_941_313), 1024: (23_079_115, 23_087_249)}[px]  # 1024: as published
    free = parameters(PGGANGeneratorConfig(resolution_px=px, padding=False, head="spe"))
    assert free - g == 512 * 512 * 20  # a first map of 6x6


def test_gains_are_sqrt_2_and_1_where_an_image_or_a_logit_comes_out():
    G, D = SMALL.build(), PGGANDiscriminatorConfig(resolution_px=16, channel_max=8).build()
    layers = {"conv": G.conv, "block": G.blocks[0].conv0, "from": D.from_rgbs[0], "fc0": D.fc0}
    for name, layer in layers.items():
        assert layer.scale == pytest.approx((2 / layer.weight[0].numel()) ** 0.5), name
    assert G.fc.scale == pytest.approx((2 / 8) ** 0.5 / 4)
    assert (G.to_rgbs[1].scale, D.fc1.scale) == pytest.approx((8**-0.5, 8**-0.5))


@pytest.mark.parametrize("row", ROWS)
def test_each_level_makes_its_size_and_others_square_or_not(row):
    G = ROWS[row].build()
    assert isinstance(G, Generator)
    for level, side in enumerate((4, 8, 16)):
        G.grow(level)
        assert G.native_size == (side, side)
        for size in ((side, side), (3 * side, 2 * side), (side, side + (1 << level))):
            G.check_size(size)
            img = images(G, size)
            assert img.shape == (4, 3, *size)
            assert img.std() > 0.01
    with pytest.raises(UserError, match="size=16x18 must be multiples of 4 for this generator; the nearest is 16"):
        G.check_size((16, 18))


@pytest.mark.parametrize("row", ROWS)
def test_g_at_the_start_of_a_fade_is_the_level_below_enlarged_and_at_its_end_the_level_itself(row):
    G = ROWS[row].build()
    for level in (1, 2):
        G.grow(level - 1)
        below = F.interpolate(images(G, (16 >> (3 - level), 16 >> (3 - level))), scale_factor=2, mode="nearest")
        size = (16 >> (2 - level), 16 >> (2 - level))
        G.grow(level, 0)
        assert torch.equal(images(G, size), below)
        G.grow(level)
        full = images(G, size)
        G.grow(level, 0.25)
        torch.testing.assert_close(images(G, size), 0.75 * below + 0.25 * full)
        G.grow(level, 1 - 1e-9)  # takes the way of a fade
        torch.testing.assert_close(images(G, size), full)
        assert not torch.allclose(full, below)


def test_d_at_the_start_of_a_fade_sees_what_the_level_below_sees_of_the_reduced_image():
    D = PGGANDiscriminatorConfig(resolution_px=16, channel_max=8).build()
    img = torch.randn(4, 3, 16, 16)
    D.grow(1)
    below = D(F.avg_pool2d(img, 2))
    D.grow(2, 0)
    assert torch.equal(D(img), below)
    D.grow(2)
    full = D(img)
    D.grow(2, 1 - 1e-9)
    torch.testing.assert_close(D(img), full)
    assert not torch.allclose(full, below)
    with pytest.raises(ValueError, match="D is at 16 px, images are 8x8"):
        D(img[:, :, :8, :8])


def test_levels_that_are_not_in_use_get_no_gradient():
    G, D = SMALL.build(), PGGANDiscriminatorConfig(resolution_px=16, channel_max=8).build()
    for net in (G, D):
        net.grow(1, 0.5)
    D(images(G, (8, 8))).sum().backward()
    unused = {n for net in (G, D) for n, p in net.named_parameters() if p.grad is None}
    assert {n.rpartition(".")[0] for n in unused} == {"blocks.1.conv0", "blocks.1.conv1", "to_rgbs.2", "from_rgbs.2"}


def test_where_a_network_stands_travels_with_its_weights():
    G = SMALL.build()
    ema, other = deepcopy(G), SMALL.build()
    G.grow(2, 1 / 3)
    update_ema(ema, G, 8, 1.0)
    other.load_state_dict(ema.state_dict())
    assert (other.level, other.fade) == (2, 1 / 3)
    assert other.native_size == (16, 16)
    for level, fade in ((3, 1), (-1, 1), (1, 1.5)):
        with pytest.raises(ValueError, match=f"level={level} of 3"):
            G.grow(level, fade)


@pytest.mark.parametrize("size", [(16, 16), (24, 20)])
def test_without_padding_a_constant_first_map_becomes_a_constant_image_and_with_padding_it_does_not(size):
    spread = {}
    for row in ("a", "b"):
        G = ROWS[row].build()
        G.grow(2, 0.5)
        around = 0 if row == "a" else 2
        first = torch.randn(2, 8, 1, 1).expand(-1, -1, size[0] // 4 + around, size[1] // 4 + around)
        img = G.images(first.contiguous())
        assert img.shape == (2, 3, *size)
        spread[row] = img.var(dim=(2, 3)).max().item()
    assert spread["b"] < 1e-10
    assert spread["a"] > 1e-3


@pytest.mark.parametrize("size", [(16, 16), (32, 24)])
def test_the_code_is_added_to_the_first_map_at_its_own_size(size):
    with_code, without = ROWS["c"].build(), ROWS["b"].build()
    without.load_state_dict(with_code.state_dict())
    for G in (with_code, without):
        G.grow(2)
    w = torch.from_numpy(rng("w").standard_normal((2, 8), dtype="float32"))
    grid = (size[0] // 4 + 2, size[1] // 4 + 2)
    added = with_code.first_map(w, size) - without.first_map(w, size)
    torch.testing.assert_close(added, sinusoidal(8, grid).expand(2, -1, -1, -1), atol=1e-6, rtol=0)


def test_the_first_map_at_another_size_keeps_its_corners():
    G = SMALL.build()
    w = torch.randn(2, 8)
    own, larger = G.first_map(w, (4, 4)), G.first_map(w, (6, 9))
    assert larger.shape == (2, 8, 6, 9)
    torch.testing.assert_close(larger[:, :, ::5, ::8], own[:, :, ::3, ::3])
