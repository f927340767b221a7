"""CIPS against published counts, Table 3's variants, and its defining property: pixels are independent."""

from math import sqrt

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from pipeline.cost import activations, multiply_adds, parameters
from pipeline.layers.equalized import lrelu
from pipeline.layers.modulated import BiasLeakyReLU
from pipeline.layers.posenc import pixel_coordinates
from pipeline.models.cips import CIPSGeneratorConfig
from pipeline.recipes import find
from pipeline.spec import UserError

TINY = CIPSGeneratorConfig(size_px=16, width=12, z_dim=8, w_dim=8, mapping_layers=2)
VARIANTS = ("skips", "base", "ne", "no_fourier", "residual", "sine")


def made(**changes):
    """A tiny generator with no zeros in it."""
    net = TINY.replace(**changes).build()
    with torch.no_grad():
        for layer in net.layers:
            layer.bias.normal_()
            if net.cfg.noise:
                layer.noise_strength.fill_(0.1)
        for to_rgb in net.to_rgbs:
            to_rgb.bias.normal_()
    return net


@pytest.fixture
def G():  # noqa: N802 - the field's name
    return made()


def test_main_has_the_published_parameter_count():
    assert parameters(find("cips.table3_main").make().family)["G"] == 45_911_076


@pytest.mark.parametrize(
    ("changes", "count", "num_ws"),
    [
        ({"variant": "base"}, 43_800_593, 14 + 1),
        ({"variant": "ne"}, 10_247_697, 14 + 1),
        ({"variant": "no_fourier"}, 43_800_593 - 1_536 - 512 * 512 - 512 * 513, 14 + 1),
        ({"variant": "sine"}, 43_800_593 - 1_536 - 512 * 512 - 512 * 513, 14 + 1),
        ({"variant": "residual"}, 45_911_076 - 6 * 264_195, 15 + 1),
        ({"taper": True}, 44_317_092, 15 + 7),
        ({"taper": True, "variant": "residual"}, 43_027_858, 15 + 1),
        ({"size_px": 1024, "embedding_px": 256}, 45_911_076, 15 + 7),
        ({"cylinder_px": 768}, 45_911_076 + 512 * 256 * 512 + 512, 15 + 7),
    ],
)
def test_every_variant_has_its_parameter_count(changes, count, num_ws):
    with torch.device("meta"):
        G = CIPSGeneratorConfig(**changes).build()
    assert sum(p.numel() for p in G.parameters()) == count
    assert G.num_ws == num_ws


@pytest.mark.parametrize(
    ("changes", "gmac"),
    [({"variant": "base"}, 257.87), ({"taper": True}, 222.91), ({"taper": True, "variant": "residual"}, 233.09)],
)
def test_variants_have_the_derived_multiply_adds(changes, gmac):
    family = find("cips.table3_main").make().family
    (macs,) = multiply_adds(family.replace(G=family.G.replace(**changes)), "G").values()
    assert macs / 1e9 == pytest.approx(gmac, rel=1e-3)


def test_without_noise_strengths_it_has_fifteen_parameters_less():
    with torch.device("meta"):
        G = CIPSGeneratorConfig(noise=False).build()
    assert sum(p.numel() for p in G.parameters()) == 45_911_061
    assert (len(G.layers), len(G.to_rgbs), G.num_ws) == (15, 7, 22)


def test_main_has_the_derived_multiply_adds():
    (macs,) = multiply_adds(find("cips.table3_main").make().family, "G").values()
    assert macs / 1e9 == pytest.approx(275.65, rel=5e-4)


def test_what_an_image_keeps_for_backward_is_one_output_a_layer():
    """15 maps of 128 MiB, and the weights of one sample; what the batch shares, the input, is not an image's."""
    family = find("cips.table3_main").make().family
    (kept,) = activations(family, "G").values()
    assert 15 * 128 < kept / 2**20 < 15 * 128 + 60
    (of_base,) = activations(family.replace(G=family.G.replace(variant="base")), "G").values()
    assert of_base / kept == pytest.approx(14 / 15, rel=0.01)


def test_a_subset_of_coordinates_gives_the_subset_of_the_image(G):
    ws = torch.randn(2, G.num_ws, 8)
    whole = G.synthesis(ws, (16, 16), None).flatten(2)
    picked = torch.randperm(256)[:40]
    some = G.pixels(ws, pixel_coordinates((16, 16))[picked])
    torch.testing.assert_close(some.mT, whole[:, :, picked], rtol=1e-5, atol=1e-5)


def test_no_pixel_depends_on_another_pixels_coordinates(G):
    ws, coords = torch.randn(1, G.num_ws, 8), pixel_coordinates((4, 4)).clone().requires_grad_()
    out = G.pixels(ws, coords)
    (grad,) = torch.autograd.grad(out[0, 5].sum(), coords)
    assert grad[5].abs().sum() > 0
    grad[5] = 0
    assert grad.abs().sum() == 0


def test_every_second_pixel_of_the_dense_grid_is_the_native_image(G):
    ws = torch.randn(2, G.num_ws, 8)
    dense, native = G.synthesis(ws, (31, 31), None), G.synthesis(ws, (16, 16), None)
    torch.testing.assert_close(dense[:, :, ::2, ::2], native, rtol=1e-4, atol=1e-4)


def test_embeddings_are_exact_on_pixels_and_bilinear_between(G):
    with torch.no_grad():
        table = G.embedding.weight.reshape(16, 16, 12)
        assert torch.equal(G.embedding(pixel_coordinates((16, 16))), G.embedding.weight)
        x = (2 * 3.25 / 15 - 1, 2 * 7.5 / 15 - 1)  # column 3.25, row 7.5
        expected = 0.5 * (0.75 * table[7, 3] + 0.25 * table[7, 4]) + 0.5 * (0.75 * table[8, 3] + 0.25 * table[8, 4])
        torch.testing.assert_close(G.embedding(torch.tensor([x]))[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_image_is_the_sum_of_its_contributions(variant):
    G = made(variant=variant)
    ws = torch.randn(2, G.num_ws, 8)
    with torch.no_grad():
        whole, parts = G.synthesis(ws, (16, 16), (1, 2)), G.contributions(ws, (16, 16), (1, 2))
        assert len(parts) == len(G.to_rgbs) == (3 if variant == "skips" else 1)
        torch.testing.assert_close(sum(parts), whole)
        for i, to_rgb in enumerate(G.to_rgbs):  # each is the image of its own toRGB
            others = [t for t in G.to_rgbs if t is not to_rgb]
            saved = [(p, p.clone()) for t in others for p in (t.fc.weight, t.bias)]
            for p, _ in saved:
                p.zero_()
            torch.testing.assert_close(G.synthesis(ws, (16, 16), (1, 2)), parts[i])
            for p, was in saved:
                p.copy_(was)


def test_noise_is_per_pixel_and_can_be_switched_off(G):
    ws = torch.randn(2, G.num_ws, 8)
    assert not torch.allclose(G.synthesis(ws, (16, 16), (1, 2)), G.synthesis(ws, (16, 16), None))
    quiet = TINY.replace(noise=False).build()
    assert torch.equal(quiet.synthesis(ws, (16, 16), (1, 2)), quiet.synthesis(ws, (16, 16), None))


def test_sides_may_differ_and_rows_are_height(G):
    ws = torch.randn(1, G.num_ws, 8)
    wide, square = G.synthesis(ws, (16, 31), None), G.synthesis(ws, (16, 16), None)
    assert wide.shape == (1, 3, 16, 31)
    torch.testing.assert_close(wide[:, :, :, ::2], square, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="at least 2"):
        G.check_size((1, 8))


def naive(G, ws, coords):
    """The network sample by sample and pixel by pixel, from its parameters and the paper's formulas alone."""
    p, v = dict(G.named_parameters()), G.cfg.variant
    side, act = G.cfg.size_px, torch.sin if v == "sine" else lambda x: F.leaky_relu(x, 0.2) * sqrt(2)

    def modfc(name, x, w, demodulate=True):
        B = p[f"{name}.weight"] / sqrt(len(x))
        s = p[f"{name}.affine.weight"] @ w / sqrt(len(w)) + p[f"{name}.affine.bias"]
        rows = [s * row for row in B]
        return torch.stack([(row / (row @ row + 1e-8).sqrt() if demodulate else row) @ x for row in rows])

    def colour(w, xy):
        code = [torch.sin(p["fourier.weight"] @ xy + p["fourier.bias"])] if v not in ("no_fourier", "sine") else []
        if v != "ne":
            col, row = ((xy + 1) / 2 * (side - 1)).round().int().tolist()
            code.append(p["embedding.weight"][row * side + col])
        x, rgb, n, before = torch.cat(code), torch.zeros(3), len(G.layers), torch.zeros(1)
        first = 1 if v in ("skips", "residual") else 0
        for k in range(n):
            before = x if (k - first) % 2 == 0 else before
            x = act(modfc(f"layers.{k}.fc", x, w[k]) + p[f"layers.{k}.bias"])
            if k >= first and (k - first) % 2 == 1:
                b = (k - first) // 2
                if v == "residual":
                    past = p.get(f"shortcuts.{b}.weight")
                    x = (x + (before if past is None else past @ before / sqrt(len(before)))) / sqrt(2)
                t = b if v == "skips" else 0
                if v == "skips" or k == n - 1:
                    rgb = rgb + modfc(f"to_rgbs.{t}.fc", x, w[n + t], False) + p[f"to_rgbs.{t}.bias"]
        return rgb

    return torch.stack([torch.stack([colour(w, xy) for xy in coords]) for w in ws])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("taper", [False, True])
def test_every_variant_is_its_formula(variant, taper):
    """128 px has six blocks, of which the last is narrower where tapered."""
    G = made(variant=variant, taper=taper, size_px=128 if taper else 16, width=6)
    ws, picked = torch.randn(2, G.num_ws, 8), torch.tensor([0, 5, 77, 255])
    coords = pixel_coordinates(G.native_size)[picked]
    with torch.no_grad():
        expected = naive(G, ws, coords)
        torch.testing.assert_close(G.pixels(ws, coords), expected, rtol=1e-4, atol=1e-4)
        image = G.synthesis(ws, G.native_size, None).flatten(2)[:, :, picked]
        torch.testing.assert_close(image.mT, expected, rtol=1e-4, atol=1e-4)


def test_each_layer_has_a_style_of_its_own(G):
    ws = torch.randn(1, G.num_ws, 8)
    with torch.no_grad():
        before = G.synthesis(ws, (16, 16), None)
        for k in range(G.num_ws):
            other = ws.clone()
            other[:, k] = torch.randn(8)
            assert not torch.allclose(G.synthesis(other, (16, 16), None), before), k


@pytest.mark.parametrize("with_shift", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bias_and_activation_in_one_are_the_plain_ones_bit_for_bit(with_shift, dtype):
    x, shift, bias, grad = (torch.randn(s).to(dtype) for s in ((2, 9, 7), (2, 9, 1), (7,), (2, 9, 7)))
    x[0, 0] = -bias - shift[0, 0]  # zeros
    results = []
    for act in (BiasLeakyReLU.of, lambda x, s, b: lrelu((x if s is None else x + s) + b)):
        leaves = [t.clone().requires_grad_() for t in (x, shift, bias)]
        y = act(leaves[0] * 1, leaves[1] if with_shift else None, leaves[2])
        results.append([y, *torch.autograd.grad(y, [leaves[0], leaves[2], *leaves[1:2][:with_shift]], grad)])
    for ours, plain in zip(*results, strict=True):
        assert torch.equal(ours, plain)


def test_bias_and_activation_in_one_can_be_differentiated_twice():
    x, shift, bias = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 3, 2), (2, 3, 1), (2,)))
    torch.autograd.gradgradcheck(lambda x, s, b: BiasLeakyReLU.of(x * 1, s, b), (x, shift, bias))


@pytest.mark.parametrize("variant", ["skips", "residual"])
def test_recomputing_blocks_changes_no_bit_of_result_or_gradient_and_keeps_less(variant):
    G, kept = made(variant=variant), [0, 0]
    ws, out = torch.randn(8, G.num_ws, 8), []

    def pack(t):
        kept[G.recompute] += t.numel()
        return t

    for G.recompute in (False, True):
        G.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            image = G.synthesis(ws, (16, 16), tuple(range(8)))
        image.square().sum().backward()
        out.append([image, *(p.grad for name, p in G.named_parameters() if not name.startswith("mapping"))])
    assert kept[True] < kept[False] / 3
    assert all(torch.equal(a, b) for a, b in zip(*out, strict=True))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cylinder_px": 8}, "at least size_px"),
        ({"cylinder_px": 32, "lookup": "half_pixel"}, "no cylinder"),
        ({"variant": "ne", "embedding_px": 8}, "no embeddings"),
        ({"embedding_px": 12}, "power of two"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, said):
    with pytest.raises(ValidationError, match=said):
        TINY.replace(**changes)


def test_fourier_features_are_sines_with_the_released_initialisation():
    fourier = CIPSGeneratorConfig(size_px=8, width=2000).build().fourier
    assert 2.0 < fourier.weight.abs().max() <= (9 / 2) ** 0.5
    assert 0.65 < fourier.bias.abs().max() <= 0.5**0.5
    coords = torch.tensor([[0.3, -0.8]])
    expected = torch.sin(fourier.weight @ coords[0] + fourier.bias)
    torch.testing.assert_close(fourier(coords)[0], expected)
