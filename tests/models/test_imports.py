"""Public checkpoints: state dicts made here, key for key as public code names them, and a forward pass in its terms.

The forward below knows their names and nothing of ours: modulated weights sample by sample, filters tap by tap,
transposed convolutions as zeros put in and a convolution. Noise is the one thing shared: our maps, given to both.
"""

import argparse
import pickle
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from pipeline.cli_import import _rows_that_fit
from pipeline.layers.noise import noise_maps
from pipeline.models.imports import STYLES, check_complete, load_checkpoint, misfits, read
from pipeline.models.mspie import MSPIEGeneratorConfig
from pipeline.models.stylegan2 import DiscriminatorConfig, broadcast_w
from pipeline.spec import UserError
from pipeline.synthesis.sample import load_generator

C, PX, LAYERS = 8, 16, 2  # channels everywhere, pixels (4, 8, 16), mapping layers
MM = "linear.weight_orig"


@dataclass(frozen=True)
class Names:
    """Where a code base keeps each weight: prefixes of layers, and how their tensors are called."""

    mapping: tuple[str, ...]
    const: str
    convs: tuple[str, ...]
    rgbs: tuple[str, ...]
    from_rgb: tuple[str, str]
    blocks: tuple[tuple[str, str, str, str, str], ...]  # conv0 and its bias, conv1 and its bias, skip
    final: tuple[str, str]
    fcs: tuple[tuple[str, str], ...]
    linear: str = "weight"
    weight: str = "conv.weight"
    affine: str = "conv.modulation"
    noise: str = "noise.weight"
    bias: str = "activate.bias"
    batched: bool = True  # [1, ...] in front of const, modulated weights and biases of toRGB
    bgr: bool = False
    buffers: dict[str, tuple[int, ...]] = field(default_factory=dict)
    filters: tuple[str, ...] = ()
    D_filters: tuple[str, ...] = ()


ROSINALITY = Names(
    mapping=("style.1", "style.2"),
    const="input.input",
    convs=("conv1", "convs.0", "convs.1", "convs.2", "convs.3"),
    rgbs=("to_rgb1", "to_rgbs.0", "to_rgbs.1"),
    from_rgb=("convs.0.0.weight", "convs.0.1.bias"),
    blocks=tuple(
        (f"{b}.conv1.0.weight", f"{b}.conv1.1.bias", f"{b}.conv2.1.weight", f"{b}.conv2.2.bias", f"{b}.skip.1.weight")
        for b in ("convs.1", "convs.2")
    ),
    final=("final_conv.0.weight", "final_conv.1.bias"),
    fcs=tuple((f"final_linear.{i}.weight", f"final_linear.{i}.bias") for i in (0, 1)),
    buffers={"noises.noise_0": (1, 1, 4, 4), "noises.noise_4": (1, 1, 16, 16)},
    filters=("convs.0.conv.blur.kernel", "convs.2.conv.blur.kernel", "to_rgbs.0.upsample.kernel"),
    D_filters=("convs.1.conv2.0.kernel", "convs.1.skip.0.kernel", "convs.2.conv2.0.kernel"),
)
MMGENERATION = Names(
    mapping=("style_mapping.1", "style_mapping.2"),
    const="constant_input.input",
    convs=ROSINALITY.convs,
    rgbs=ROSINALITY.rgbs,
    from_rgb=("convs.0.0.conv.weight_orig", "convs.0.1.bias"),
    blocks=tuple(
        (
            f"{b}.conv1.0.conv.weight_orig",
            f"{b}.conv1.1.bias",
            f"{b}.conv2.1.conv.weight_orig",
            f"{b}.conv2.2.bias",
            f"{b}.skip.1.conv.weight_orig",
        )
        for b in ("convs.1", "convs.2")
    ),
    final=("final_conv.0.conv.weight_orig", "final_conv.1.bias"),
    fcs=tuple((f"final_linear.{i}.{MM}", f"final_linear.{i}.bias") for i in (0, 1)),
    linear=MM,
    weight="conv.weight_orig",
    affine="conv.style_modulation",
    noise="noise_injector.weight",
    bgr=True,
    buffers={"injected_noise_0": (1, 1, 4, 4), "head_pos_enc._float_tensor": (1,)},
    filters=("to_rgbs.0.upsample.kernel", "to_rgbs.1.upsample.kernel"),
    D_filters=("convs.2.conv2.0.kernel", "convs.2.skip.0.kernel"),
)
NVLABS = Names(
    mapping=("mapping.fc0", "mapping.fc1"),
    const="synthesis.b4.const",
    convs=tuple(f"synthesis.{c}" for c in ("b4.conv1", "b8.conv0", "b8.conv1", "b16.conv0", "b16.conv1")),
    rgbs=("synthesis.b4.torgb", "synthesis.b8.torgb", "synthesis.b16.torgb"),
    from_rgb=("b16.fromrgb.weight", "b16.fromrgb.bias"),
    blocks=tuple(
        (f"{b}.conv0.weight", f"{b}.conv0.bias", f"{b}.conv1.weight", f"{b}.conv1.bias", f"{b}.skip.weight")
        for b in ("b16", "b8")
    ),
    final=("b4.conv.weight", "b4.conv.bias"),
    fcs=(("b4.fc.weight", "b4.fc.bias"), ("b4.out.weight", "b4.out.bias")),
    weight="weight",
    affine="affine",
    noise="noise_strength",
    bias="bias",
    batched=False,
    buffers={"mapping.w_avg": (C,), "synthesis.b8.conv0.noise_const": (8, 8), "synthesis.b4.conv1.noise_const": (4, 4)},
    filters=("synthesis.b4.resample_filter", "synthesis.b8.resample_filter", "synthesis.b8.conv0.resample_filter"),
    D_filters=(
        "b16.resample_filter",
        "b16.fromrgb.resample_filter",
        "b8.conv1.resample_filter",
        "b4.conv.resample_filter",
    ),
)
NAMES = {"rosinality": ROSINALITY, "mmgeneration": MMGENERATION, "nvlabs": NVLABS}
SKIP = " --set family.G.padded_skip=true"
TAPS = torch.outer(torch.tensor([1.0, 3.0, 3.0, 1.0]), torch.tensor([1.0, 3.0, 3.0, 1.0])) / 64


def generator_dict(names: Names, head: str = "const", head_px: int = 4, px: int = PX) -> dict[str, torch.Tensor]:
    one = (1,) if names.batched else ()
    made = {}
    for layer in names.mapping:
        made[f"{layer}.{names.linear}"], made[f"{layer}.bias"] = torch.randn(C, C) * 100, torch.randn(C) * 10
    if head == "const":
        made[names.const] = torch.randn(*one, C, head_px, head_px)
    for i, layer in enumerate(names.convs):
        i_dim = 2 if head == "csg" and i == 0 else C
        made[f"{layer}.{names.weight}"] = torch.randn(*one, C, i_dim, 3, 3)
        made[f"{layer}.{names.affine}.{names.linear}"] = torch.randn(i_dim, C)
        made[f"{layer}.{names.affine}.bias"] = 1 + torch.randn(i_dim) / 2
        made[f"{layer}.{names.noise}"] = torch.randn(one)
        made[f"{layer}.{names.bias}"] = torch.randn(C)
    for layer in names.rgbs:
        made[f"{layer}.{names.weight}"] = torch.randn(*one, 3, C, 1, 1)
        made[f"{layer}.{names.affine}.{names.linear}"] = torch.randn(C, C)
        made[f"{layer}.{names.affine}.bias"] = 1 + torch.randn(C) / 2
        made[f"{layer}.bias"] = torch.randn(1, 3, 1, 1) if names.batched else torch.randn(3)
    made |= {key: torch.randn(shape) for key, shape in names.buffers.items()}
    return made | {key: TAPS * 4 for key in names.filters}


def discriminator_dict(names: Names, pool: int = 4) -> dict[str, torch.Tensor]:
    made = {names.from_rgb[0]: torch.randn(C, 3, 1, 1), names.from_rgb[1]: torch.randn(C)}
    for conv0, bias0, conv1, bias1, skip in names.blocks:
        made |= {conv0: torch.randn(C, C, 3, 3), conv1: torch.randn(C, C, 3, 3), skip: torch.randn(C, C, 1, 1)}
        made |= {bias0: torch.randn(C), bias1: torch.randn(C)}
    made |= {names.final[0]: torch.randn(C, C + 1, 3, 3), names.final[1]: torch.randn(C)}
    for (weight, bias), shape in zip(names.fcs, ((C, C * pool**2), (1, C)), strict=True):
        made |= {weight: torch.randn(shape), bias: torch.randn(shape[0])}
    return made | {key: TAPS.clone() for key in names.D_filters}


def act(x):
    return torch.where(x > 0, x, 0.2 * x) * sqrt(2)


def upfirdn(x, up: int, down: int, pad: tuple[int, int], gain: float):
    """Zeros after each sample, pad, filter tap by tap, keep every `down`-th."""
    n, c, h, w = x.shape
    spread = x.new_zeros(n, c, h * up, w * up)
    spread[:, :, ::up, ::up] = x
    padded = F.pad(spread, (*pad, *pad))
    h, w = padded.shape[2] - 3, padded.shape[3] - 3
    taps = TAPS.to(x.dtype)
    y = sum(taps[a, b] * padded[:, :, a : a + h, b : b + w] for a in range(4) for b in range(4))
    return gain * y[:, :, ::down, ::down]


def modulated(x, weight, style, *, demodulate: bool, block: str = "", padding: int = 0):
    """One sample after the other, its own weights."""
    weight = weight.flatten(0, weight.ndim - 4)
    out = []
    for sample, s in zip(x, style, strict=True):
        w = weight / sqrt(weight[0].numel()) * s[None, :, None, None]
        if demodulate:
            w = w / (w.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        sample = sample[None]
        if block == "deconv":
            zeros = sample.new_zeros(1, sample.shape[1], 2 * sample.shape[2] - 1, 2 * sample.shape[3] - 1)
            zeros[:, :, ::2, ::2] = sample
            y = upfirdn(F.conv2d(F.pad(zeros, (2, 2, 2, 2)), w.flip(2, 3)), 1, 1, (1, 1), 4)
        elif block == "up_conv":
            y = F.conv2d(bilinear(sample, 4), w)
        else:
            y = F.conv2d(sample, w, padding=padding)
            y = bilinear(y, 0) if block == "conv_up" else y
        out.append(y)
    return torch.cat(out)


def bilinear(x, margin: int):
    size = [2 * side + margin for side in x.shape[2:]]
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def affine(made, layer: str, names: Names, w):
    weight, bias = made[f"{layer}.{names.affine}.{names.linear}"], made[f"{layer}.{names.affine}.bias"]
    return w @ weight.T / sqrt(weight.shape[1]) + bias


def their_images(made, names: Names, z, maps, block: str, padding: int):
    made, z = {k: t.double() for k, t in made.items()}, z.double()
    w = z / z.square().mean(dim=1, keepdim=True).sqrt()
    for layer in names.mapping:
        w = act(w @ made[f"{layer}.{names.linear}"].T * (0.01 / sqrt(C)) + 0.01 * made[f"{layer}.bias"])
    if names.const in made:
        x = made[names.const].reshape(C, *made[names.const].shape[-2:])
    else:
        ends = torch.linspace(-1, 1, 4, dtype=torch.float64)
        x = torch.stack(torch.meshgrid(ends, ends, indexing="xy"))
    x, img = x.expand(len(z), -1, -1, -1), None
    for i, layer in enumerate(names.convs):
        style = affine(made, layer, names, w)
        how = block if i % 2 else ""
        y = modulated(x, made[f"{layer}.{names.weight}"], style, demodulate=True, block=how, padding=padding)
        y = y + made[f"{layer}.{names.noise}"].reshape(()) * maps[i].double()
        x = act(y + made[f"{layer}.{names.bias}"].reshape(1, C, 1, 1))
        if i % 2 == 0:
            layer = names.rgbs[i // 2]
            rgb = modulated(x, made[f"{layer}.{names.weight}"], affine(made, layer, names, w), demodulate=False)
            rgb = rgb + made[f"{layer}.bias"].reshape(1, 3, 1, 1)
            img = rgb if img is None else rgb + upfirdn(img, 2, 1, (2, 1), 4)
    return img.flip(1) if names.bgr else img


def their_logits(made, names: Names, img, pool: int | None):
    made, img = {k: t.double() for k, t in made.items()}, img.double()

    def conv(x, key: str, bias: str = "", **kwargs):
        y = F.conv2d(x, made[key] / sqrt(made[key][0].numel()), **kwargs)
        return act(y + made[bias].reshape(1, -1, 1, 1)) if bias else y

    x = conv(img.flip(1) if names.bgr else img, *names.from_rgb)
    for conv0, bias0, conv1, bias1, skip in names.blocks:
        y = conv(upfirdn(conv(x, conv0, bias0, padding=1), 1, 1, (2, 2), 1), conv1, bias1, stride=2)
        x = (y + conv(upfirdn(x, 1, 2, (1, 1), 1), skip)) / sqrt(2)
    std = ((x - x.mean(dim=0)).square().mean(dim=0) + 1e-8).sqrt().mean()
    x = conv(torch.cat([x, std.expand(len(x), 1, *x.shape[2:])], dim=1), *names.final, padding=1)
    x = (F.adaptive_avg_pool2d(x, pool) if pool else x).flatten(1)
    (w0, b0), (w1, b1) = names.fcs
    x = act(x @ made[w0].T / sqrt(made[w0].shape[1]) + made[b0])
    return (x @ made[w1].T / sqrt(C) + made[b1]).squeeze(1)


G = MSPIEGeneratorConfig(
    head="const",
    resize="interp",
    block="deconv",
    num_upblocks=2,
    channel_max=C,
    z_dim=C,
    w_dim=C,
    mapping_layers=LAYERS,
)
D = DiscriminatorConfig(resolution_px=PX, channel_max=C, mbstd_group=2)
UNPADDED = G.replace(block="up_conv", padding="none", padded_skip=True)


@pytest.mark.parametrize(
    ("style", "config", "head_px"),
    [
        ("rosinality", G, 4),
        ("nvlabs", G, 4),
        ("mmgeneration", G.replace(head="csg", block="conv_up", resize="expand"), 4),
        ("mmgeneration", UNPADDED, 6),
    ],
)
def test_an_imported_generator_makes_the_images_of_the_public_code(style, config, head_px):
    names = NAMES[style]
    made = generator_dict(names, config.head, head_px)
    found = read(made, STYLES[style], "x")["G_ema"]
    assert not misfits(found.settings, config)
    check_complete(found.weights, config, "x")
    net = config.build()
    net.load_state_dict(found.weights)
    z = torch.randn(2, C)
    with torch.no_grad():
        ours = net.synthesis(broadcast_w(net.mapping(z), net.num_ws), (PX, PX), (5, 6))
        maps = noise_maps((5, 6), net.noise_shapes((PX, PX)), z.device)
        theirs = their_images(made, names, z, maps, config.block, int(config.padding == "zero"))
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()
    assert set(found.dropped) == {*names.buffers, *names.filters}


@pytest.mark.parametrize("style", NAMES)
def test_an_imported_discriminator_gives_the_logits_of_the_public_code(style):
    names, pool = NAMES[style], 2 if style == "mmgeneration" else None
    made = discriminator_dict(names, pool or 4)
    found, config = read(made, STYLES[style], "x")["D"], D.replace(pool=pool)
    assert not misfits(found.settings, config)
    check_complete(found.weights, config, "x")
    net = config.build()
    net.load_state_dict(found.weights)
    img = torch.randn(2, 3, PX, PX)
    with torch.no_grad():
        ours, theirs = net(img), their_logits(made, names, img, pool)
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


WRAPPED = {
    "rosinality": lambda g, d: {"g": g, "g_ema": g, "d": d, "g_optim": {}, "args": argparse.Namespace(size=16)},
    "mmgeneration": lambda g, d: {
        "meta": {"iter": 1},
        "state_dict": {f"generator_ema.{k}": t for k, t in g.items()} | {f"discriminator.{k}": t for k, t in d.items()},
    },
    "nvlabs": lambda g, d: {"G_ema": g, "D": d, "training_set_kwargs": {}},
}


@pytest.mark.parametrize("style", NAMES)
def test_networks_are_found_in_the_files_that_public_training_writes(style, tmp_path):
    names = NAMES[style]
    g, d = generator_dict(names), discriminator_dict(names)
    torch.save(WRAPPED[style](g, d), tmp_path / "x.pt")
    nets = read(load_checkpoint(tmp_path / "x.pt"), STYLES[style], "x")
    assert {"G_ema", "D"} <= set(nets)
    prefix = next(iter(STYLES[style].nets))
    save_file({f"{prefix}.{k}": t.contiguous() for k, t in g.items()}, tmp_path / "x.safetensors")
    flat = read(load_checkpoint(tmp_path / "x.safetensors"), STYLES[style], "x")
    assert set(flat) == {"G_ema"}
    for name, tensor in nets["G_ema"].weights.items():
        assert torch.equal(tensor, flat["G_ema"].weights[name]), name


class Stranger:
    """Stands for a class of the authors'; reading it would run `touch`."""

    def __init__(self, touch: Path):
        self.touch = touch

    def __reduce__(self):
        return Path.touch, (self.touch,)


@pytest.mark.parametrize("name", ["network.pkl", "network.pt"])
def test_a_pickle_of_classes_is_refused_and_none_of_it_is_run(tmp_path, name):
    content = {"G_ema": Stranger(tmp_path / "ran")}
    if name.endswith("pkl"):
        (tmp_path / name).write_bytes(pickle.dumps(content))
    else:
        torch.save(content, tmp_path / name)
    with pytest.raises(UserError, match=r"refused; .*save_file\(G.state_dict\(\)") as refused:
        load_checkpoint(tmp_path / name)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("absent.pt", None, "no such file"),
        ("cut.safetensors", b"\x08\0\0\0", "cut short"),
        ("text.pth", b"<html>", "6 bytes of something else"),
        ("empty.pt", b"", "damaged, or no checkpoint"),
        ("cut.pt", b"PK\3\4and no more", "damaged, or no checkpoint"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        load_checkpoint(tmp_path / name)


def take_over(made, style: str) -> None:
    for net, found in read(made, STYLES[style], "x").items():
        check_complete(found.weights, D if net == "D" else G, "x")


def broken(key: str, to: torch.Tensor | None, style: str = "rosinality", of=generator_dict):
    made = of(NAMES[style])
    if to is None:
        del made[key]
    else:
        made[key] = to
    return style, made


@pytest.mark.parametrize(
    ("checkpoint", "said"),
    [
        (broken("convs.3.activate.bias", None), "nothing in it is our 'convs.4.bias'"),
        (broken("convs.3.extra", torch.ones(1)), "'convs.3.extra' is no weight"),
        (broken("convs.3.activate.bias", torch.ones(C + 1)), r"'convs.4.bias' has shape \(9,\)"),
        (broken("convs.9.activate.bias", torch.ones(C)), "it has 'convs.10.bias'"),
        (broken("convs.0.conv.blur.kernel", torch.ones(4, 4)), r"low-pass filter is not \[1, 3, 3, 1\]"),
        (
            broken("convs.0.0.conv.weight_orig", torch.ones(3), "mmgeneration", discriminator_dict),
            "is no weight of ours",
        ),
        (broken("mapping.embed.weight", torch.ones(C, C), "nvlabs"), "class-conditional"),
        (broken("synthesis.b8.skip.weight", torch.ones(C, C, 1, 1), "nvlabs"), "'resnet' architecture"),
        (broken("synthesis.L0_36_512.weight", torch.ones(1), "nvlabs"), "StyleGAN3"),
        (broken("b8.fromrgb.weight", torch.ones(1), "nvlabs", discriminator_dict), "'skip' architecture"),
        (("nvlabs", generator_dict(ROSINALITY)), "check --style"),
        (("rosinality", {}), "check --style"),
        (broken("conv1.conv.weight", torch.ones(1)), r"'convs.0.conv.weight' has shape \(\)"),
        (broken("style.1.weight", torch.ones(C, 0)), r"'mapping.layers.0.weight' has shape \(8, 0\)"),
        (broken("style.2.bias", torch.ones(C, dtype=torch.int64)), "'style.2.bias' is torch.int64"),
        (broken(f"convs.{'9' * 5000}.activate.bias", torch.ones(C)), "is no weight of ours"),
        (broken("synthesis.b9.conv0.bias", torch.ones(C), "nvlabs"), "are both our 'convs.1.bias'"),
        (broken("synthesis.b0.conv0.bias", torch.ones(C), "nvlabs"), "it has 'convs.-7.bias'"),
        (("mmgeneration", {"state_dict": 3}), "check --style"),
        (("nvlabs", {"D": {1: torch.ones(1)}}), "'1' is no weight"),
        (("rosinality", {"to_rgb1.bias": 3}), "is int, no weights"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(checkpoint, said):
    style, made = checkpoint
    with pytest.raises(UserError, match=said) as refused:
        take_over(made, style)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        (G.replace(head="spe"), {"head": ("const",)}),
        (G.replace(num_upblocks=3), {"num_upblocks": (2,)}),
        (G.replace(mapping_layers=8), {"mapping_layers": (2,)}),
        (G.replace(channel_max=16), {"channel_max": (8,)}),
        (G.replace(w_dim=16), {"w_dim": (8,)}),
        (G.replace(z_dim=16), {"z_dim": (8,)}),
        (G.replace(block="conv_up"), {"block": ("deconv",)}),
        (G.replace(head="csg", resize="expand"), {"head": ("const",), "resize": ("interp",)}),
        (UNPADDED, {"block": ("deconv",), "padding": ("zero",)}),
    ],
)
def test_a_checkpoint_of_another_row_is_told_by_its_settings(config, wrong):
    assert misfits(read(generator_dict(ROSINALITY), STYLES["rosinality"], "x")["G_ema"].settings, config) == wrong


@pytest.mark.parametrize("pool", [None, 2, 4])
@pytest.mark.parametrize("style", NAMES)
def test_a_discriminator_of_another_row_is_told_by_its_settings(style, pool):
    found = read(discriminator_dict(NAMES[style], pool or 4), STYLES[style], "x")["D"]
    assert not misfits(found.settings, D.replace(pool=pool))
    wrong = D.replace(pool=3, resolution_px=32, channel_max=16)
    assert set(misfits(found.settings, wrong)) == {"pool", "resolution_px", "channel_max"}


def test_the_release_pads_its_skip_path_without_saying_so_in_any_weight():
    found = read(generator_dict(MMGENERATION, head_px=6), STYLES["mmgeneration"], "x")["G_ema"]
    assert misfits(found.settings, UNPADDED.replace(padded_skip=False)) == {"padded_skip": (True,)}


@pytest.mark.parametrize(
    ("recipe", "rows"),
    [
        ("mspie.table5_i", ["table5_d", f"table5_i{SKIP}"]),
        ("mspie.table5_h", [f"table5_h{SKIP}"]),
        ("mspie.table5_c", ["table5_c"]),
        ("mspie.table5_f", ["table5_e", "table5_f", f"table5_j{SKIP}", f"table5_k{SKIP}", "table5_f_896"]),
        ("mspie.table5_g", ["table5_g"]),
    ],
)
def test_the_rows_that_a_published_checkpoint_may_be_of_are_named(recipe, rows):
    """Full widths, on the meta device: our state dicts, back under their names."""
    from pipeline.recipes import find

    family = find(recipe).make().family
    with torch.device("meta"):
        nets = {"G_ema": family.G.build().state_dict(), "D": family.D.build().state_dict()}
    theirs = {f"generator_ema.{backwards_g(k)}": t for k, t in nets["G_ema"].items()}
    theirs |= {f"discriminator.{backwards_d(k)}": t for k, t in nets["D"].items()}
    for key in [k for k in theirs if k.endswith(("conv.weight_orig", "constant_input.input")) and "_ema" in k]:
        theirs[key] = theirs[key][None]
    found = read({"state_dict": theirs}, STYLES["mmgeneration"], "x")
    assert list(_rows_that_fit(found)) == [f"mspie.{row}" for row in rows]


def backwards_g(key: str) -> str:
    group, *rest = key.split(".")
    if group == "const":
        return "constant_input.input"
    if group == "mapping":
        return f"style_mapping.{int(rest[1]) + 1}.{MM if rest[2] == 'weight' else 'bias'}"
    i, leaf = int(rest[0]), ".".join(rest[1:])
    first = {"convs": "conv1", "to_rgbs": "to_rgb1"}[group]
    own = {"noise_strength": "noise_injector.weight", "bias": "activate.bias" if group == "convs" else "bias"}
    own |= {"conv.affine.weight": f"conv.style_modulation.{MM}", "conv.affine.bias": "conv.style_modulation.bias"}
    return f"{first if i == 0 else f'{group}.{i - 1}'}.{own.get(leaf, 'conv.weight_orig')}"


def backwards_d(key: str) -> str:
    group, *rest = key.split(".")
    if group == "blocks":
        block, layer, leaf = rest
        order = ("conv0.weight", "conv0.bias", "conv1.weight", "conv1.bias", "skip.weight")
        return MMGENERATION.blocks[0][order.index(f"{layer}.{leaf}")].replace("convs.1", f"convs.{int(block) + 1}", 1)
    pairs = {"from_rgb": MMGENERATION.from_rgb, "conv": MMGENERATION.final}
    pairs |= {"fc0": MMGENERATION.fcs[0], "fc1": MMGENERATION.fcs[1]}
    return pairs[group][rest[0] == "bias"]


SMALL = [
    *("family.G.num_upblocks=2", f"family.G.channel_max={C}", f"family.G.z_dim={C}", f"family.G.w_dim={C}"),
    *(f"family.G.mapping_layers={LAYERS}", f"family.D.resolution_px={PX}", f"family.D.channel_max={C}"),
]


def words(file: Path, out: Path, recipe: str = "mspie.table5_a", style: str = "rosinality", more: tuple[str, ...] = ()):
    sets = [w for s in (*SMALL, *more) for w in ("--set", s)]
    return ["import", file, recipe, "--style", style, "--out", out, *sets]


def test_the_command_makes_a_folder_that_is_sampled_as_the_checkpoint_is(graticule, tmp_path):
    made = generator_dict(ROSINALITY)
    torch.save({"g_ema": made, "d": discriminator_dict(ROSINALITY)}, tmp_path / "x.pt")
    code, out, err = graticule(*words(tmp_path / "x.pt", tmp_path / "out"))
    assert code == 0, err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["D.safetensors", "G_ema.safetensors", "config.json"]
    assert f"graticule sample {tmp_path / 'out'}" in out
    net = load_generator(tmp_path / "out" / "config.json", tmp_path / "out" / "G_ema.safetensors")
    z = torch.randn(2, C)
    ours = net.synthesis(broadcast_w(net.mapping(z), net.num_ws), (PX, PX), (1, 2))
    maps = noise_maps((1, 2), net.noise_shapes((PX, PX)), z.device)
    theirs = their_images(made, ROSINALITY, z, maps, "deconv", 1)
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()
    code, _, err = graticule(*words(tmp_path / "x.pt", tmp_path / "out"))
    assert code == 2
    assert "is there already" in err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"recipe": "mspie.table5_f"}, "family.G.head='spe', the checkpoint's is 'const'; no recipe fits as it is"),
        ({"recipe": "mspie.table5_c"}, "family.G.block='conv_up', the checkpoint's is 'deconv'"),
        ({"style": "rosinalty"}, "did you mean 'rosinality'?"),
        ({"style": "nvlabs"}, "check --style"),
        ({"file": "absent.pt"}, "no such file"),
        ({"file": "d.safetensors"}, "holds a discriminator and no generator"),
        ({"more": ("exec.gpus=2",)}, "'exec' is not a known key"),
        ({"more": ("family.D.pool=2",)}, "is None or 4; no recipe fits as it is; --set family.D.pool=null may"),
        ({"out": "x.safetensors/out"}, "cannot be written"),
    ],
)
def test_a_wrong_word_to_import_writes_nothing(graticule, tmp_path, change, said):
    save_file(
        {f"g.{k}": t for k, t in generator_dict(ROSINALITY).items()}
        | {f"d.{k}": t for k, t in discriminator_dict(ROSINALITY).items()},
        tmp_path / "x.safetensors",
    )
    save_file(discriminator_dict(ROSINALITY), tmp_path / "d.safetensors")
    file = tmp_path / change.pop("file", "x.safetensors")
    before = sorted(tmp_path.rglob("*"))
    code, _, err = graticule(*words(file, tmp_path / change.pop("out", "out"), **change))
    assert code == 2, err
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_cannot_be_completed_is_not_left_behind(graticule, tmp_path, monkeypatch):
    torch.save({"g": generator_dict(ROSINALITY)}, tmp_path / "x.pt")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    code, _, err = graticule(*words(tmp_path / "x.pt", tmp_path / "out"))
    assert code == 2
    assert "No space left" in err
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt"]


def test_a_recipe_without_these_networks_is_refused(graticule, tmp_path):
    code, _, err = graticule("import", "x.pt", "cips.table3_main", "--style", "nvlabs", "--out", tmp_path / "out")
    assert code == 2
    assert "no StyleGAN2 networks" in err


def test_a_checkpoint_without_an_average_says_so(graticule, tmp_path):
    torch.save({"g": generator_dict(ROSINALITY)}, tmp_path / "x.pt")
    code, out, err = graticule(*words(tmp_path / "x.pt", tmp_path / "out"))
    assert code == 0, err
    assert "no moving average" in out


def test_what_a_refusal_advises_is_accepted(graticule, tmp_path):
    torch.save({"g": generator_dict(ROSINALITY)}, tmp_path / "x.pt")
    word = ["import", tmp_path / "x.pt", "mspie.table5_a", "--style", "rosinality", "--out", tmp_path / "out"]
    code, _, err = graticule(*word)
    assert code == 2
    advised = [w for w in err.split() if "=" in w and w.startswith("family") and "num_upblocks=6," not in w]
    assert set(advised) == set(SMALL) - {f"family.D.channel_max={C}"}  # there is no D to tell its width
    code, _, err = graticule(*word, *(w for a in advised for w in ("--set", a)))
    assert code == 0, err
