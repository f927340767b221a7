"""Checkpoints of the CIPS release: state dicts made here, key for key, and a forward pass in its terms.

The forward below knows the release's names and nothing of ours: 1 x 1 convolutions of modulated weights, sample by
sample, embeddings by grid_sample. Noise is the one thing shared: our maps, given to both.
"""

from math import log2, sqrt

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from pipeline.layers.noise import noise_maps
from pipeline.models.cips import CIPSGeneratorConfig
from pipeline.models.imports import STYLES, check_complete, misfits, read
from pipeline.models.stylegan2 import broadcast_w
from pipeline.spec import UserError
from pipeline.synthesis.sample import load_generator

C, MAPPING = 8, 2  # channels of all layers but the last, and z and w; mapping layers
TAPERED = 128  # px with six blocks, of which the last is half as wide


def width(block):
    return C // 2 if block >= 5 else C


def modulated(name, i, o):
    affine = {"modulation.weight": (i, C), "modulation.bias": (i,)}
    return {f"{name}.conv.weight": (1, o, i, 1, 1)} | {f"{name}.conv.{k}": v for k, v in affine.items()}


def styled(name, i, o):
    return modulated(name, i, o) | {f"{name}.noise.weight": (1,), f"{name}.activate.bias": (o,)}


def names(kind, px):
    """Every key of CIPSskip's or CIPSres' state dict and its shape."""
    out = {"lff.ffm.conv.weight": (C, 2, 1, 1), "lff.ffm.conv.bias": (C,), "emb.input": (1, C, px, px)}
    out |= styled("conv1" if kind == "skip" else "linears.0", 2 * C, C)
    i = C
    for b in range(int(log2(px)) - 1):
        o = width(b)
        first, second = (f"linears.{2 * b}", f"linears.{2 * b + 1}")
        if kind == "res":
            first, second = (f"linears.{b + 1}.conv1", f"linears.{b + 1}.conv2")
            out |= {f"linears.{b + 1}.skip.0.weight": (o, i, 1, 1)} if i != o else {}
        out |= styled(first, i, o) | styled(second, o, o)
        if kind == "skip":
            out |= modulated(f"to_rgbs.{b}", o, 3) | {f"to_rgbs.{b}.bias": (1, 3, 1, 1)}
        i = o
    if kind == "res":
        out |= modulated("to_rgb_last", i, 3) | {"to_rgb_last.bias": (1, 3, 1, 1)}
    for j in range(1, MAPPING + 1):
        out |= {f"style.{j}.weight": (C, C), f"style.{j}.bias": (C,)}
    return out


def state_dict(kind="skip", px=16):
    draws = torch.Generator().manual_seed(px)
    made = {key: torch.randn(shape, generator=draws) for key, shape in names(kind, px).items()}
    return {k: v / 0.01 if k.startswith("style") else v for k, v in made.items()}


def conv(p, name, x, w, demodulate=True):
    """Sample by sample, as an ordinary convolution."""
    s = w @ p[f"{name}.conv.modulation.weight"].T / sqrt(C) + p[f"{name}.conv.modulation.bias"]
    out = []
    for one, style in zip(x, s, strict=True):
        weight = p[f"{name}.conv.weight"][0] / sqrt(len(style)) * style[:, None, None]
        if demodulate:
            weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        out.append(F.conv2d(one[None], weight))
    return torch.cat(out)


def forward(p, kind, z, size, noise, training):
    """What the release computes from z; `noise` [n, 1, h, w] for each of its layers, in order."""
    w = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
    for j in range(1, MAPPING + 1):
        w = F.leaky_relu(w @ p[f"style.{j}.weight"].T * 0.01 / sqrt(C) + p[f"style.{j}.bias"] * 0.01, 0.2) * sqrt(2)
    x, y = torch.linspace(-1, 1, size), torch.linspace(-1, 1, size)
    grid = torch.stack([x.expand(size, size), y[:, None].expand(size, size)])[None].expand(len(z), -1, -1, -1)
    fourier = torch.sin(F.conv2d(grid, p["lff.ffm.conv.weight"], p["lff.ffm.conv.bias"]))
    emb = p["emb.input"].expand(len(z), -1, -1, -1)
    if not training or size != emb.shape[2]:
        emb = F.grid_sample(emb, grid.permute(0, 2, 3, 1), padding_mode="border", align_corners=False)
    maps = iter(noise)

    def layer(name, x):
        x = conv(p, name, x, w) + p[f"{name}.noise.weight"] * next(maps)
        return F.leaky_relu(x + p[f"{name}.activate.bias"][None, :, None, None], 0.2) * sqrt(2)

    def rgb(name, x):
        return conv(p, name, x, w, demodulate=False) + p[f"{name}.bias"]

    x, image = layer("conv1" if kind == "skip" else "linears.0", torch.cat([fourier, emb], 1)), 0
    for b in range(int(log2(p["emb.input"].shape[2])) - 1):
        if kind == "skip":
            x = layer(f"linears.{2 * b + 1}", layer(f"linears.{2 * b}", x))
            image = image + rgb(f"to_rgbs.{b}", x)
        else:
            y = layer(f"linears.{b + 1}.conv2", layer(f"linears.{b + 1}.conv1", x))
            past = p.get(f"linears.{b + 1}.skip.0.weight")
            x = (y + (x if past is None else F.conv2d(x, past / sqrt(past.shape[1])))) / sqrt(2)
    return image if kind == "skip" else rgb("to_rgb_last", x)


def config(kind, px, **changes):
    small = CIPSGeneratorConfig(size_px=px, width=C, z_dim=C, w_dim=C, mapping_layers=MAPPING, lookup="half_pixel")
    return small.replace(variant="skips" if kind == "skip" else "residual", taper=px == TAPERED, **changes)


@pytest.mark.parametrize("kind", ["skip", "res"])
@pytest.mark.parametrize(
    ("px", "size", "training"), [(16, 16, True), (16, 16, False), (16, 25, False), (128, 12, False)]
)
def test_an_imported_network_computes_what_the_release_does(kind, px, size, training):
    theirs = state_dict(kind, px)
    found = read(theirs, STYLES["cips"], "x.pt")["G_ema"]
    assert not found.dropped
    G = config(kind, px).build().train(training)
    G.load_state_dict(found.weights)
    z, seeds = torch.randn(2, C), (3, 4)
    maps = noise_maps(seeds, [(size * size, 1)] * len(G.layers), z.device)
    with torch.no_grad():
        expected = forward(theirs, kind, z, size, [m.mT.unflatten(2, (size, size)) for m in maps], training)
        image = G.synthesis(broadcast_w(G.mapping(z), G.num_ws), (size, size), seeds)
    assert (image - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("kind", ["skip", "res"])
@pytest.mark.parametrize("px", [16, TAPERED])
def test_a_released_state_dict_is_ours_key_for_key(kind, px):
    found = read(state_dict(kind, px), STYLES["cips"], "x.pt")["G_ema"]
    check_complete(found.weights, config(kind, px), "x.pt")
    assert not misfits(found.settings, config(kind, px))
    assert set(misfits(found.settings, config(kind, px, mapping_layers=3))) == {"mapping_layers"}
    other = config(kind, px).replace(taper=px != TAPERED)
    assert set(misfits(found.settings, other)) == ({"taper"} if px == TAPERED else set())  # narrow from the sixth on
    assert set(misfits(found.settings, config(kind, px).replace(size_px=64, taper=px == TAPERED))) == {"size_px"}
    assert not misfits(found.settings, config(kind, px).replace(size_px=1024, embedding_px=px))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"linears.0.bias": (1, C, 1, 1)}, "activation sin"),
        ({"convs.0.weight": (1,)}, "is no weight of this style's"),
        ({"emb.input": (1, C, 12, 12)}, "no power of two"),
        ({"emb.input": (C,)}, "shape"),
    ],
)
def test_other_networks_are_refused_by_name(change, said):
    tree = state_dict() | {key: torch.ones(shape) for key, shape in change.items()}
    with pytest.raises(UserError, match=said):
        read(tree, STYLES["cips"], "x.pt")


def small_sets():
    fields = {"size_px": 16, "width": C, "z_dim": C, "w_dim": C, "mapping_layers": MAPPING}
    return [w for k, v in fields.items() for w in ("--set", f"family.G.{k}={v}")] + [
        "--set",
        "family.D.resolution_px=16",
    ]


def test_the_command_makes_a_folder_that_samples(graticule, tmp_path):
    save_file(state_dict(), tmp_path / "churches_g_ema.safetensors")
    words = ["import", tmp_path / "churches_g_ema.safetensors", "cips.table3_main", "--style", "cips"]
    code, out, err = graticule(*words, "--out", tmp_path / "out", *small_sets())
    assert code == 0, err
    assert "lookup=half_pixel" in out
    G = load_generator(tmp_path / "out" / "config.json", tmp_path / "out" / "G_ema.safetensors")
    assert torch.equal(G.layers[3].fc.weight, state_dict()["linears.2.conv.weight"][0, :, :, 0, 0])


def test_the_command_says_what_would_fit(graticule, tmp_path):
    torch.save({"g_ema": state_dict("res", 16), "g_optim": {}}, tmp_path / "x.pt")
    words = ["import", tmp_path / "x.pt", "cips.table3_main", "--style", "cips", "--out", tmp_path / "out"]
    code, _, err = graticule(*words)
    assert code == 2
    advised = [w for w in err.split() if w.startswith("family.") and "=" in w and not w.endswith(",")]
    assert {"family.G.variant=residual", "family.G.size_px=16", "family.D.resolution_px=16"} <= set(advised)
    code, _, err = graticule(*words, *(w for a in advised for w in ("--set", a)))
    assert code == 0, err


def test_recipes_of_other_networks_are_refused(graticule, tmp_path):
    code, _, err = graticule("import", "x.pt", "mspie.table5_a", "--style", "cips", "--out", tmp_path / "out")
    assert code == 2
    assert "no CIPS networks; use one of cips's" in err
