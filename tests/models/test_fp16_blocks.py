"""The largest resolutions in float16: against float32, at magnitudes where plain float16 overflows, and refusals."""

from collections import Counter

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.layers.equalized import LIMIT, EqualizedConv2d, limited, lrelu
from pipeline.layers.modulated import ModulatedConv2d
from pipeline.models.mspie import MSPIEGeneratorConfig
from pipeline.models.stylegan2 import DiscriminatorConfig, DownBlock, broadcast_w
from pipeline.objectives.penalties import path_lengths, r1
from pipeline.plan import ExecConfig, RunConfig, override_all
from pipeline.recipes import find
from pipeline.spec import UserError
from tests.runs import CIPS, MSPIE

G_CONFIG = MSPIEGeneratorConfig(num_upblocks=3, channel_max=16, z_dim=8, w_dim=8, mapping_layers=2)
D_CONFIG = DiscriminatorConfig(resolution_px=32, channel_max=16, mbstd_group=2, pool=2)
HALF = torch.float16


def pair(config, blocks: int):
    """The same network in float32 and with so many blocks in float16."""
    plain, reduced = config.build(), config.replace(fp16_blocks=blocks).build()
    reduced.load_state_dict(plain.state_dict())
    return plain, reduced


def off(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative distance of a from b."""
    return ((a - b).norm() / b.norm()).item()


def flat(tensors) -> torch.Tensor:
    return torch.cat([t.flatten() for t in tensors])


def weight_grads(net, loss: torch.Tensor, *, skip: str = "mapping") -> torch.Tensor:
    params = [p for name, p in net.named_parameters() if not name.startswith(skip)]
    return flat(torch.autograd.grad(loss, params, allow_unused=True, materialize_grads=True))


def images(G, w: torch.Tensor, size=(32, 48)) -> torch.Tensor:
    return G.synthesis(broadcast_w(w, G.num_ws), size, tuple(range(len(w))))


class Convolutions(TorchDispatchMode):
    """Counts 3x3 convolutions by type and height of their input."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default and args[1].shape[2] == 3:
            self.seen[args[0].dtype, args[0].shape[2]] += 1
        return func(*args, **(kwargs or {}))


def test_without_blocks_the_layers_compute_the_bits_of_their_formulas():
    """float32 networks, and so all runs made before the field came, are what they were: values and gradients."""
    x, w = torch.randn(2, 5, 6, 8), torch.randn(2, 7)
    mod, conv = ModulatedConv2d(5, 4, 3, 7), EqualizedConv2d(5, 4, 3, padding=1)

    def modulated(layer):
        s = layer.affine(w)
        d = torch.rsqrt(s.square() @ (layer.weight * layer.scale).square().sum(dim=(2, 3)).T + 1e-8)
        y = F.conv2d(x * s[:, :, None, None], layer.weight * layer.scale, padding=1)
        return y * d[:, :, None, None]

    def equalized(layer):
        return F.conv2d(x, layer.weight * layer.scale, layer.bias, padding=1)

    for layer, actual, formula in ((mod, mod(x, w), modulated), (conv, conv(x), equalized)):
        assert torch.equal(actual, formula(layer))
        grads = torch.autograd.grad(actual.square().sum(), list(layer.parameters()))
        expected = torch.autograd.grad(formula(layer).square().sum(), list(layer.parameters()))
        assert all(map(torch.equal, grads, expected))
    huge = torch.tensor([1e30, -1e30])
    assert torch.equal(limited(huge), huge)


def test_exactly_the_largest_blocks_run_in_float16():
    for blocks, sides in ((0, []), (1, [16, 32]), (2, [8, 16, 16, 32]), (3, [4, 8, 8, 16, 16, 32])):
        _, G = pair(G_CONFIG, blocks)
        with Convolutions() as count:
            img = images(G, torch.randn(2, 8), (32, 32))
        assert sorted(side for (dtype, side), n in count.seen.items() for _ in range(n) if dtype == HALF) == sides
        assert sum(count.seen.values()) == 7
        assert img.dtype == torch.float32
    for blocks, sides in ((0, []), (1, [33, 32]), (2, [17, 16, 33, 32]), (3, [9, 8, 17, 16, 33, 32])):
        _, D = pair(D_CONFIG, blocks)
        with Convolutions() as count:
            logits = D(torch.randn(2, 3, 32, 32))
        halves = sorted(side for (dtype, side), n in count.seen.items() for _ in range(n) if dtype == HALF)
        assert halves == sorted(sides)
        assert sum(count.seen.values()) == 7
        assert logits.dtype == torch.float32


@pytest.mark.parametrize("blocks", [1, 3])
def test_values_and_gradients_are_those_of_float32_within_rounding(blocks):
    (G, g16), (D, d16) = pair(G_CONFIG, blocks), pair(D_CONFIG, blocks)
    with torch.no_grad():
        for net in (G, g16):
            for conv in net.convs:
                conv.noise_strength.fill_(0.1)
    w, real = torch.randn(4, 8), torch.rand(4, 3, 32, 48) * 2 - 1
    img, img16 = images(G, w), images(g16, w)
    assert 0 < off(img16, img) < 5e-3
    direction = torch.randn_like(img)
    assert off(weight_grads(g16, (img16 * direction).mean()), weight_grads(G, (img * direction).mean())) < 6e-2
    logits, logits16 = D(real), d16(real)
    assert 0 < off(logits16, logits) < 5e-3
    assert off(weight_grads(d16, logits16.mean() / 24), weight_grads(D, logits.mean() / 24)) < 1e-2
    assert {t.dtype for net in (g16, d16) for t in net.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("magnitude", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("demodulate", [True, False])
def test_modulation_in_float16_is_that_of_float32_at_any_magnitude(demodulate, magnitude):
    layer = ModulatedConv2d(16, 8, 3, 6, demodulate=demodulate)
    x, w = torch.randn(3, 16, 6, 6), torch.randn(3, 6)
    with torch.no_grad():
        layer.affine.weight *= magnitude
        layer.affine.bias *= magnitude
        layer.weight *= torch.logspace(-2, 3, 8)[:, None, None, None]  # rows of very unequal size
    exact, reduced = layer(x, w), layer(x.half(), w)
    for row in range(8):
        assert off(reduced[:, row].float(), exact[:, row]) < 3e-3
    target = torch.randn_like(exact) / exact.detach().abs().mean()
    grads, expected = (torch.autograd.grad((y * target).sum(), list(layer.parameters())) for y in (reduced, exact))
    for grad, wanted in zip(grads, expected, strict=True):
        assert off(grad, wanted) < 2e-2


def test_plain_float16_overflows_where_the_modulation_here_does_not():
    layer = ModulatedConv2d(64, 8, 3, 6)
    x, w = 100 * torch.randn(2, 64, 4, 4), 1000 * torch.randn(2, 6)
    s = layer.affine(w)
    naive = F.conv2d(x.half() * s.half()[:, :, None, None], (layer.weight * layer.scale).half(), padding=1)
    assert not naive.isfinite().all()
    y = layer(x.half(), w)
    assert y.isfinite().all()
    assert off(y.float(), layer(x, w)) < 3e-3
    assert all(g.isfinite().all() for g in torch.autograd.grad(y.float().square().mean(), list(layer.parameters())))


def test_gradients_stay_finite_in_whole_networks_whose_values_exceed_float16():
    """Styles of 10^6 in G; in D weights a thousand times as large, whose products pass 65504 in the first block."""
    _, G = pair(G_CONFIG, 3)
    img = images(G, 1e6 * torch.randn(2, 8))
    assert img.isfinite().all()
    assert img.abs().max() > 65504  # the image itself is float32 and is not cut
    assert weight_grads(G, img.tanh().mean()).isfinite().all()

    _, D = pair(D_CONFIG, 3)
    with torch.no_grad():
        for p in D.blocks.parameters():
            p *= 1000
    real = torch.rand(2, 3, 32, 32).requires_grad_()
    x = lrelu(D.from_rgb(real.half()))
    raw = D.blocks[0].conv0(x).abs().max() * 1000  # what the second convolution would sum
    assert raw > 65504
    logits = D(real)
    assert logits.isfinite().all()
    assert weight_grads(D, logits.sum() + r1(logits, real).sum()).isfinite().all()


def test_float16_activations_end_at_the_limit_and_overflow_never_becomes_nan():
    over = torch.tensor([float("inf"), -float("inf"), 300.0, -3e4, 1.0], dtype=HALF, requires_grad=True)
    assert limited(over).tolist() == [LIMIT, -LIMIT, LIMIT, -LIMIT, 1.0]
    (grad,) = torch.autograd.grad(lrelu(over).float().sum(), over)
    assert grad.isfinite().all()
    block = DownBlock(4, 4)
    with torch.no_grad():
        block.skip.weight.fill_(1e3)
    assert block(torch.full((1, 4, 8, 8), 250.0, dtype=HALF)).abs().max() == LIMIT


@pytest.mark.parametrize("blocks", [1, 3])
def test_path_length_and_r1_differentiate_twice_through_float16(blocks):
    """R1 also of a D with a tenth of the slope. Beside rounding, the bounds hold the leaky ReLUs that it flips."""
    w = torch.randn(2, 8)
    found = []
    for G in pair(G_CONFIG, blocks):
        ws = broadcast_w(w, G.num_ws).contiguous().requires_grad_()
        img = G.synthesis(ws, (32, 32), (1, 2))
        y = torch.randn(img.shape, generator=torch.Generator().manual_seed(0))
        lengths = path_lengths(img, ws, y)
        found.append((lengths, weight_grads(G, lengths.square().mean())))
    (length, grad), (length16, grad16) = found
    assert 0 < off(length16, length) < 5e-2
    assert 0 < off(grad16, grad) < 1e-1

    real = (torch.rand(2, 3, 32, 32) * 2 - 1).requires_grad_()
    nets = pair(D_CONFIG, blocks)
    with torch.no_grad():
        for D in nets:
            D.fc1.weight *= 0.1
    (penalty, grad), (penalty16, grad16) = ((p := r1(D(real), real), weight_grads(D, p.mean())) for D in nets)
    assert 0 < off(penalty16, penalty) < 5e-2
    assert 0 < off(grad16, grad) < 1e-1


def test_more_blocks_than_there_are_and_both_ways_at_once_are_refused_in_one_line():
    with pytest.raises(ValueError, match=r"fp16_blocks=4 is more than num_upblocks=3"):
        G_CONFIG.replace(fp16_blocks=4)
    with pytest.raises(ValueError, match=r"fp16_blocks=4 is more than the 3 blocks at 32 px"):
        D_CONFIG.replace(fp16_blocks=4)
    run = find(MSPIE).make()

    def told(recipe: str, *sets: str) -> str:
        with pytest.raises(UserError) as refusal:
            override_all(find(recipe).make(), ExecConfig(), sets)
        assert "\n" not in str(refusal.value)
        return str(refusal.value)

    for net in "GD":
        for precision in ("bf16", "fp16"):
            text = told(MSPIE, f"family.{net}.fp16_blocks=2", f"precision={precision}")
            assert f"family.{net}.fp16_blocks=2 needs precision='fp32', not '{precision}'" in text
    assert "'fp16_blocks' is not a known key" in told(CIPS, "family.G.fp16_blocks=1")
    both = override_all(run, ExecConfig(), ["family.G.fp16_blocks=4", "family.D.fp16_blocks=4"])[0]
    assert RunConfig.from_json(both.to_json()) == both
