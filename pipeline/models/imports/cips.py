"""The weight map of the CIPS release (2011.13775): CIPSskip and CIPSres, and the discriminator it trains.

Built of rosinality's modules, so raw weights mean the same. Its sides, widths and blocks are told by shapes; how it
looks embeddings up outside training (`lookup=half_pixel`) is told by none.
"""

from collections.abc import Collection

import torch
from torch import Tensor

from pipeline.models.cips import CIPSGeneratorConfig
from pipeline.models.imports import rosinality
from pipeline.models.imports.weightmap import (
    Change,
    Name,
    Refuse,
    Rule,
    Settings,
    Style,
    Take,
    Weights,
    count,
    numbered,
    same,
    scalar,
    shape,
)
from pipeline.spec import UserError


def _square(t: Tensor) -> Tensor:
    """[o, i, 1, 1] or [1, o, i, 1, 1] -> [o, i]."""
    return t.reshape(t.shape[-4], t.shape[-3])


def _table(t: Tensor) -> Tensor:
    """[1, c, h, w] -> [h * w, c], row by row."""
    return t.squeeze(0).flatten(1).T


def _layer(theirs: str, ours: str, add: int, factor: int = 1) -> list[Rule]:
    """A modulated layer; theirs numbers it n, ours factor * n + add."""

    def at(leaf: str) -> Name:
        return lambda m: f"{ours}.{factor * int(m.groupdict().get('n') or 0) + add}.{m.expand(leaf)}"

    leaves: dict[str, tuple[str, Change]] = {
        r"conv\.weight": ("fc.weight", _square),
        r"conv\.modulation\.(?P<p>weight|bias)": (r"fc.affine.\g<p>", same),
    }
    if ours == "layers":
        leaves |= {r"noise\.weight": ("noise_strength", scalar), r"activate\.bias": ("bias", same)}
    else:
        leaves |= {"bias": ("bias", torch.flatten)}
    return [Take(rf"{theirs}\.{leaf}", at(name), change) for leaf, (name, change) in leaves.items()]


def _generator(keys: Collection[str]) -> list[Rule]:
    residual = any(key.startswith("to_rgb_last.") for key in keys)
    n = r"linears\.(?P<n>\d+)"
    if residual:
        body = [
            *_layer(r"linears\.0", "layers", 0),
            *_layer(rf"{n}\.conv1", "layers", -1, 2),
            *_layer(rf"{n}\.conv2", "layers", 0, 2),
            Take(rf"{n}\.skip\.0\.weight", numbered("shortcuts", "weight", -1), _square),
            *_layer("to_rgb_last", "to_rgbs", 0),
        ]
    else:
        body = [
            *_layer("conv1", "layers", 0),
            *_layer(n, "layers", 1),
            *_layer(r"to_rgbs\.(?P<n>\d+)", "to_rgbs", 0),
        ]
    return [
        Take(r"style\.(?P<n>\d+)\.(?P<p>weight|bias)", numbered("mapping.layers", r"\g<p>", -1)),
        Take(r"lff\.ffm\.conv\.weight", "fourier.weight", _square),
        Take(r"lff\.ffm\.conv\.bias", "fourier.bias"),
        Take(r"emb\.input", "embedding.weight", _table),
        *body,
        Refuse(r"(conv1|linears\.\d+(\.conv[12])?)\.bias", "a network with the activation sin or sinrelu"),
    ]


def _settings(weights: Weights, where: str) -> Settings:
    """Fields of CIPSGeneratorConfig that the weights tell."""
    mapping = shape(weights, "mapping.layers.0.weight", 2, where)
    pixels, width = shape(weights, "embedding.weight", 2, where)
    side = round(pixels**0.5)
    rgbs, layers = count(weights, r"to_rgbs\.(\d+)\."), count(weights, r"layers\.(\d+)\.")
    variant = "residual" if rgbs == 1 else "skips"
    outs = [shape(weights, f"layers.{i}.fc.weight", 2, where)[0] for i in range(layers)]
    try:
        built = [CIPSGeneratorConfig(size_px=side, width=width, variant=variant, taper=t) for t in (False, True)]
    except ValueError as e:
        raise UserError(f"{where}: embeddings of {pixels} pixels, which is no power of two squared") from e
    fits = [c.taper for c in built if outs == [width, *(c.block_width(i // 2) for i in range(2 * c.num_blocks))]]
    return {
        "variant": (variant,),
        "size_px": (side,),
        "width": (width,),
        "z_dim": (mapping[1],),
        "w_dim": (mapping[0],),
        "mapping_layers": (count(weights, r"mapping\.layers\.(\d+)\."),),
        "noise": ("layers.0.noise_strength" in weights,),
        "taper": tuple(fits),
        "cylinder_px": (None,),
    }


STYLE = Style(
    nets={"g_ema": "G_ema", "g": "G", "d": "D"},
    outer=r"g_optim|d_optim|args|iter",
    generator=_generator,
    discriminator=rosinality.STYLE.discriminator,
    is_generator="lff.",
    family="cips",
    settings=_settings,
)
