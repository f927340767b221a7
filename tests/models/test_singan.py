"""SinGAN's networks against the published pyramid, their size arithmetic, and what padding does to position."""

import math
from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from pipeline.cost import parameters
from pipeline.layers.posenc import cartesian, sinusoidal
from pipeline.models.singan import SinGANDiscriminatorConfig, SinGANGeneratorConfig, pyramid, resized
from pipeline.recipes import find
from pipeline.spec import UserError
from pipeline.synthesis.sample import generate

SMALL = SinGANGeneratorConfig(image_px=(33, 49), min_px=12, max_px=25, channels=4)
PADDINGS, HEADS = ("input", "conv", "none"), ("none", "csg", "spe")


def grown(cfg: SinGANGeneratorConfig = SMALL, amplitude: float = 0.5):
    """A generator at its last stage, with noise in every stage and outputs far from zero."""
    G = cfg.build()
    G.at(len(G.sizes) - 1)
    G.amplitudes[1:] = amplitude
    with torch.no_grad():
        for block in G.blocks:
            block.convs[-1].weight.mul_(20)
    return G.requires_grad_(False)


def fake(G, size=None, seeds=(1,)):
    return G.synthesis(torch.zeros(len(seeds), 1, 1), size or G.native_size, seeds)


@pytest.mark.parametrize(
    ("image_px", "max_px", "stages"),
    [
        ((370, 500), 500, 12),  # ceil(9.37) + 1 = 11 stages below the last
        ((370, 500), 250, 9),  # as many, less ceil(2.41) for the reduction to half
        ((186, 248), 250, 9),  # ceil(6.98) + 1 = 8; the release's balloons
        ((500, 370), 500, 12),
    ],
)
def test_the_pyramid_is_that_of_the_formula(image_px, max_px, stages):
    sizes = pyramid(image_px, 25, max_px, 0.75)
    assert len(sizes) == stages
    fit = min(max_px / max(image_px), 1)
    assert sizes[-1] == tuple(int(side * fit + 0.5) for side in image_px)
    assert min(sizes[0]) == 25
    factor = (25 / min(sizes[-1])) ** (1 / (stages - 1))
    for below, above in pairwise(sizes):
        assert all(abs(a * factor - b) <= 1 for a, b in zip(above, below, strict=True))
    assert sizes[-2] == tuple(math.floor(side * factor + 0.5) for side in sizes[-1])


def test_the_sizes_of_half_a_bohemian_by_hand():
    """185 x 250, factor (25 / 185)^(1 / 8) = 0.77864."""
    expected = ((25, 34), (32, 43), (41, 56), (53, 72), (68, 92), (87, 118), (112, 152), (144, 195), (185, 250))
    assert pyramid((370, 500), 25, 250, 0.75) == expected


@pytest.mark.parametrize("words", [{"image_px": (20, 300)}, {"image_px": (30, 600)}, {"min_px": 186}])
def test_an_image_too_small_for_two_stages_is_refused(words):
    with pytest.raises(ValidationError, match="take a larger image, or lower min_px"):
        SinGANGeneratorConfig(**words)


@pytest.mark.parametrize("words", [{"spe_channels": 16}, {"convention": "paper"}, {"head": "spe", "spe_channels": 6}])
def test_values_without_effect_are_refused(words):
    with pytest.raises(ValidationError, match=r"has no effect|multiple of 4"):
        SinGANGeneratorConfig(**words)


def test_parameters_are_those_counted_by_hand():
    """Balloons: widths 4 x 32, 4 x 64, 128; convolutions without bias but the last, two numbers a normed channel."""

    def block(inputs: int, width: int, outputs: int) -> int:
        return 9 * width * (inputs + 3 * width + outputs) + outputs + 4 * 2 * width

    widths = [32] * 4 + [64] * 4 + [128]
    counted = parameters(find("mspie.singan_original").make().family)
    assert counted == {"G": sum(block(3, w, 3) for w in widths), "D": sum(block(3, w, 1) for w in widths)}
    csg = parameters(find("mspie.singan_csg").make().family)["G"]
    assert csg == counted["G"] - 9 * 32  # two channels enter the first stage, not three
    spe16 = find("mspie.singan_spe16").make().family
    assert parameters(spe16)["G"] == block(16, 32, 3) + sum(block(3, w, 3) for w in [32] * 3 + [64] * 4 + [128] * 4)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("head", HEADS)
def test_every_variant_makes_every_stage_any_size_and_aspect(padding, head):
    G = grown(SMALL.replace(padding=padding, head=head))
    wider = 10 if padding == "none" else 0
    channels = {"none": 1, "csg": 2, "spe": 8}[head]
    for stage, native in enumerate(SMALL.sizes()):
        G.at(stage)
        assert G.native_size == native
        for size in (native, (native[0], round(1.5 * native[1])), (native[1], native[0])):
            shapes = G.noise_shapes(G.sizes_at(size))
            assert len(shapes) == stage + 1
            assert shapes[-1] == (channels if stage == 0 else 3, size[0] + wider, size[1] + wider)
            out = fake(G, size, (3, 4))
            assert out.shape == (2, 3, *size)
            assert out.isfinite().all()
            assert not torch.equal(out[0], out[1])
    assert G.blocks[0].convs[0].in_channels == {"none": 3, "csg": 2, "spe": 8}[head]


def test_stages_of_a_wider_image_are_all_as_much_wider():
    G = grown()
    assert G.sizes_at(G.native_size) == list(SMALL.sizes()) == [(12, 18), (14, 21), (17, 25)]
    assert G.sizes_at((17, 50)) == [(12, 36), (14, 42), (17, 50)]


@pytest.mark.parametrize("padding", PADDINGS)
def test_a_size_below_the_receptive_field_is_refused_and_the_smallest_is_named(padding):
    G = grown(SMALL.replace(padding=padding))
    with pytest.raises(UserError, match=r"size=14x25: the first stage would be 10x18.*smallest size is 15x15$"):
        G.check_size((14, 25))
    G.check_size((15, 15))
    assert min(G.sizes_at((15, 15))[0]) == 11
    assert generate(G, [0], (15, 15)).shape == (1, 15, 15, 3)


def test_a_block_sees_eleven_pixels():
    D = SinGANDiscriminatorConfig(norm="none", channels=4).build(1)
    x = torch.randn(1, 3, 15, 17, requires_grad=True)
    out = D(x)
    assert out.shape == (1, 1, 5, 7)
    (grad,) = torch.autograd.grad(out[0, 0, 2, 3], x)
    rows, columns = grad[0].abs().sum(0).nonzero().unbind(1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2, 12, 3, 13)


@pytest.mark.parametrize("padding", PADDINGS)
def test_constant_noise_gives_a_uniform_image_without_padding_and_borders_with_it(padding):
    """Without the norms, which divide a constant's rounding by the root of 1e-5 in each layer."""
    G = grown(SMALL.replace(padding=padding))
    for block in G.blocks:
        block.norms = nn.ModuleList(nn.Identity() for _ in block.norms)
        for conv in block.convs[:-1]:
            conv.weight.mul_(20)
    sizes = G.sizes_at((17, 38))
    maps = [torch.full((1, *shape), 0.7) for shape in G.noise_shapes(sizes)]
    out = G.advance(G.below(maps, sizes), maps[-1])
    spread = (out.amax(dim=(2, 3)) - out.amin(dim=(2, 3))).max()
    if padding == "none":
        assert spread < 1e-4
        assert out.abs().max() > 0.01
    else:
        assert spread > 0.01


@pytest.mark.parametrize(("head", "channels"), [("csg", 2), ("spe", 8)])
@pytest.mark.parametrize("padding", ["conv", "none"])
@pytest.mark.parametrize("convention", ["release", "paper"])
def test_the_first_stages_noise_is_the_code_plus_normal_noise(head, channels, padding, convention):
    G = SMALL.replace(head=head, padding=padding, convention=convention).build()
    entered = []
    G.blocks[0].register_forward_pre_hook(lambda _module, inputs: entered.append(inputs[0]))
    for size in ((12, 18), (12, 27)):
        h, w = (side + G.wider for side in size)
        code = cartesian((h, w), convention) if head == "csg" else sinusoidal(channels, (h, w), convention)
        entered.clear()
        fake(G, size, tuple(range(40)))
        noise = entered[0] - code
        assert noise.shape[1:] == code.shape
        assert noise.mean(dim=0).abs().max() < 0.9
        assert noise.std() == pytest.approx(1, abs=0.03)


def test_the_first_stage_without_code_adds_one_map_to_all_colours():
    G = SMALL.build()
    entered = []
    G.blocks[0].register_forward_pre_hook(lambda _module, inputs: entered.append(inputs[0]))
    fake(G)
    assert torch.equal(entered[0][:, :1].expand(-1, 3, -1, -1), entered[0])
    assert (entered[0][:, :, :5] == 0).all()  # the original pads what enters, noise and all


def test_without_seeds_it_is_the_reconstruction_and_the_same_for_all():
    G = grown()
    ws = torch.zeros(2, 1, 1)
    out = G.synthesis(ws, G.native_size, None)
    assert torch.equal(out[0], out[1])
    maps = [G.z_star, torch.zeros(1, 3, 14, 21), torch.zeros(1, 3, 17, 25)]
    torch.testing.assert_close(out[:1], G.advance(G.below(maps, G.sizes), maps[-1]))
    assert G.synthesis(ws, (17, 38), None).shape == (2, 3, 17, 38)


def test_an_image_does_not_depend_on_its_neighbours():
    G = grown()
    torch.testing.assert_close(fake(G, seeds=(5, 6, 7))[1:2], fake(G, seeds=(6,)), rtol=1e-4, atol=1e-5)


def test_amplitudes_scale_the_noise_of_their_stage_alone():
    G = grown(amplitude=0.0)
    ws, size = torch.zeros(1, 1, 1), G.native_size
    a, b = fake(G, seeds=(1,)), G.synthesis(ws, size, (1,), torch.tensor([0.7]))
    assert not torch.allclose(a, b)
    G.amplitudes[2] = 0.7
    torch.testing.assert_close(fake(G, seeds=(1,)), b)


def test_images_grow_by_bicubic_with_aligned_corners():
    img = torch.rand(1, 3, 4, 5)
    out = resized(img, (7, 9))
    torch.testing.assert_close(out[:, :, ::6, ::8], img[:, :, ::3, ::4])
    torch.testing.assert_close(out[:, :, ::2, ::2], img)


def test_a_discriminator_without_norm_has_biases_instead():
    plain, normed = (SinGANDiscriminatorConfig(norm=norm, channels=4).build(2) for norm in ("none", "batch"))
    assert all(conv.bias is not None for block in plain.blocks for conv in block.convs)
    assert all(isinstance(norm, nn.Identity) for block in plain.blocks for norm in block.norms)
    assert [conv.bias is not None for conv in normed.blocks[0].convs] == [False] * 4 + [True]
    img = torch.randn(1, 3, 12, 12)
    with torch.no_grad():
        for conv in plain.blocks[0].convs:
            conv.weight.mul_(20)
    torch.testing.assert_close(normed(3 * img), normed(img), rtol=1e-2, atol=1e-4)  # blind to contrast
    assert not torch.allclose(plain(3 * img), plain(img), rtol=1e-2)


def test_widths_double_every_four_stages_and_a_stage_inherits_only_its_own_width():
    G = SinGANGeneratorConfig(image_px=(100, 120), channels=4, channel_max=6, head="csg").build()
    widths = [block.convs[0].out_channels for block in G.blocks]
    assert widths == [4, 4, 4, 4, 6, 6, 6]
    for k in range(1, 7):
        fresh = [p.clone() for p in G.blocks[k].parameters()]
        G.inherit(k)
        copied = k not in (1, 4)  # the code's channels enter stage 0 alone; stage 4 is wider
        for now, before, previous in zip(G.blocks[k].parameters(), fresh, G.blocks[k - 1].parameters(), strict=True):
            assert torch.equal(now, previous if copied else before)


def test_a_loaded_generator_is_at_the_stage_it_was_saved_at():
    G, other = grown(), SMALL.build()
    other.load_state_dict(G.state_dict())
    assert (other.stage, other.native_size) == (2, (17, 25))
    assert torch.equal(fake(other), fake(G))
