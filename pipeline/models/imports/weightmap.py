"""What a weight map is made of: rules from the names of a public code base to ours, and what a checkpoint is.

A rule takes one pattern of their names, each name is used, dropped on purpose or refused, and what comes out is
compared with the network that a configuration builds: name by name, shape by shape. Knows no style and no file.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.layers.resample import fir_kernel
from pipeline.models.cips import CIPSGeneratorConfig
from pipeline.models.mspie import HEAD_PX, MSPIEGeneratorConfig
from pipeline.models.stylegan2 import DiscriminatorConfig, channels_at
from pipeline.spec import UserError

MULTIPLIERS = range(1, 17)  # of channels, that a checkpoint's widths are tried with

Weights = dict[str, Tensor]
Generator = MSPIEGeneratorConfig | CIPSGeneratorConfig
Settings = dict[str, tuple[Any, ...]]  # field of a configuration -> the values that fit a checkpoint
Change = Callable[[Tensor], Tensor]
Name = str | Callable[[re.Match[str]], str]


@dataclass(frozen=True)
class Take:
    """Their key becomes `ours`, a template of the match or a function of it; `change` makes our tensor of theirs."""

    theirs: str
    ours: Name
    change: Change = lambda t: t


@dataclass(frozen=True)
class Drop:
    """Their key has no part in what we compute; `allowed` looks at its tensor, `why` says what else it would mean."""

    theirs: str
    allowed: Callable[[Tensor], bool] = lambda t: True
    why: str = ""


@dataclass(frozen=True)
class Refuse:
    """Their key belongs to a network that is none of ours."""

    theirs: str
    why: str


Rule = Take | Drop | Refuse


@dataclass(frozen=True)
class Style:
    """One public code base. `nets`: what its checkpoints call our networks; `outer`: what else stands beside them."""

    nets: Mapping[str, str]
    outer: str
    generator: Callable[[Collection[str]], Iterable[Rule]]
    discriminator: Callable[[Collection[str]], Iterable[Rule]]
    is_generator: str  # how some names of each generator begin, and none of a discriminator
    blocks: Callable[[Collection[str]], tuple[str, ...]] = lambda _: ()  # values of MSPIEGeneratorConfig.block
    family: str = "mspie"  # kind of the families whose recipes take it
    settings: Callable[[Weights, str], Settings] | None = None  # of a generator that is not MS-PIE's
    within: str | None = None  # the entry of a file that holds all networks


@dataclass(frozen=True)
class Found:
    """One network of a checkpoint: its weights under our names, what was dropped, which settings fit."""

    weights: Weights
    dropped: tuple[str, ...]
    settings: Settings


def is_fir(kernel: Tensor) -> bool:
    """Is this the [1, 3, 3, 1] filter, at any gain?"""
    ours = fir_kernel(torch.device("cpu"), torch.float32)
    total = kernel.float().sum()
    return kernel.shape == ours.shape and bool(total > 0) and torch.allclose(kernel.float() / total, ours, atol=1e-5)


def drop_filters(theirs: str) -> Drop:
    return Drop(theirs, is_fir, "its low-pass filter is not [1, 3, 3, 1]")


def squeeze0(t: Tensor) -> Tensor:
    return t.squeeze(0)


def scalar(t: Tensor) -> Tensor:
    return t.squeeze()


def numbered(group: str, leaf: str, add: int) -> Name:
    """`group`.N.`leaf` with N the pattern's group n plus `add`; `leaf` may be a template of the match."""
    return lambda m: f"{group}.{int(m['n']) + add}.{m.expand(leaf)}"


def listed(first: str, rest: str, group: str, leaves: Mapping[str, tuple[str, Change]]) -> list[Rule]:
    """Where they give number 0 a name of its own, `first`, and count the others from 0 under `rest`."""
    rules: list[Rule] = []
    for theirs, (ours, change) in leaves.items():
        rules.append(Take(rf"{first}\.{theirs}", f"{group}.0.{ours}", change))
        rules.append(Take(rf"{rest}\.(?P<n>\d+)\.{theirs}", numbered(group, ours, 1), change))
    return rules


def same(t: Tensor) -> Tensor:
    return t


def _named(entry: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(key): value for key, value in entry.items()}


def networks(tree: Mapping[str, Any], style: Style, where: str) -> dict[str, dict[str, Any]]:
    """Those of "G", "G_ema" and "D" that a checkpoint holds, with the names its authors gave inside each.

    A file holds them as entries, or under prefixes, or is one network alone.
    """
    inner = tree.get(style.within) if style.within else None
    tree = _named(inner if isinstance(inner, Mapping) else tree)
    entries = {ours: tree[theirs] for theirs, ours in style.nets.items() if isinstance(tree.get(theirs), Mapping)}
    if found := {ours: _named(entry) for ours, entry in entries.items()}:
        strangers = [key for key in tree if key not in style.nets and not re.fullmatch(style.outer, key)]
    else:
        found, strangers = {}, []
        for key, value in tree.items():
            head, _, rest = key.partition(".")
            if head in style.nets:
                found.setdefault(style.nets[head], {})[rest] = value
            elif not re.fullmatch(style.outer, key):
                strangers.append(key)
        if not found and strangers:
            alone = "G_ema" if any(key.startswith(style.is_generator) for key in strangers) else "D"
            return {alone: {key: tree[key] for key in strangers}}
    if strangers or not found:
        names = ", ".join(style.nets)
        seen = f"{strangers[0]!r} is none" if strangers else "there is none"
        raise UserError(f"{where}: expected networks {names} of this style, {seen}; check --style")
    return found


def translate(theirs: Mapping[str, Any], rules: Iterable[Rule], where: str) -> tuple[Weights, tuple[str, ...]]:
    """Our names and tensors (float32), and the names that were dropped; UserError at the first that has no rule."""
    rules, weights, dropped = list(rules), {}, []
    for key, value in theirs.items():
        rule, match = next(((r, m) for r in rules if (m := re.fullmatch(r.theirs, key))), (None, None))
        if rule is None or match is None:
            raise UserError(f"{where}: {key!r} is no weight of this style's; check --style, or see docs/imports.md")
        if isinstance(rule, Refuse):
            raise UserError(f"{where}: {key!r} belongs to {rule.why}, which no recipe has")
        if not isinstance(value, Tensor) or value.layout != torch.strided or not value.is_floating_point():
            raise UserError(f"{where}: {key!r} is {getattr(value, 'dtype', type(value).__name__)}, no weights")
        if isinstance(rule, Drop):
            if not rule.allowed(value):
                raise UserError(f"{where}: {key!r}: {rule.why}, so no recipe computes the same")
            dropped.append(key)
            continue
        try:
            name = match.expand(rule.ours) if isinstance(rule.ours, str) else rule.ours(match)
            tensor = rule.change(value).float().contiguous()
        except (RuntimeError, IndexError, ValueError) as e:  # too few axes; a number of thousands of digits
            raise UserError(f"{where}: {key!r} of shape {tuple(value.shape)} is no weight of ours") from e
        if name in weights:
            raise UserError(f"{where}: {key!r} and another key are both our {name!r}")
        weights[name] = tensor
    return weights, tuple(dropped)


def count(weights: Weights, pattern: str) -> int:
    return len({m[1] for key in weights if (m := re.match(pattern, key))})


def _need(weights: Weights, key: str, where: str) -> Tensor:
    if key not in weights:
        raise UserError(f"{where}: nothing in it is our {key!r}; the file is incomplete")
    return weights[key]


def shape(weights: Weights, key: str, axes: int, where: str) -> tuple[int, ...]:
    sides = tuple(_need(weights, key, where).shape)
    if len(sides) != axes or 0 in sides:
        raise UserError(f"{where}: our {key!r} has shape {sides} there, which has not {axes} axes or is empty")
    return sides


def _multipliers(sides: Iterable[int], widths: list[int], channel_max: int) -> tuple[int, ...]:
    sides = list(sides)
    return tuple(m for m in MULTIPLIERS if [channels_at(side, m, channel_max) for side in sides] == widths)


def generator_settings(weights: Weights, blocks: tuple[str, ...], where: str) -> Settings:
    """Fields of MSPIEGeneratorConfig that the weights tell; the up-sampling is told by the style."""
    first = shape(weights, "convs.0.conv.weight", 4, where)
    mapping = shape(weights, "mapping.layers.0.weight", 2, where)
    upblocks = count(weights, r"to_rgbs\.(\d+)\.") - 1
    widths = [shape(weights, f"convs.{2 * i}.conv.weight", 4, where)[0] for i in range(upblocks + 1)]
    settings: Settings = {
        "num_upblocks": (upblocks,),
        "head": ("const",) if "const" in weights else ("csg",) if first[1] == 2 else ("spe",),
        "mapping_layers": (count(weights, r"mapping\.layers\.(\d+)\."),),
        "z_dim": (mapping[1],),
        "w_dim": (mapping[0],),
        "channel_max": (first[0],),
        "channel_multiplier": _multipliers((HEAD_PX << i for i in range(upblocks + 1)), widths, first[0]),
        "block": blocks,
        "padded_skip": (True,),  # where there is no padding: all public code pads the RGB skip path
    }
    if "const" in weights:
        side = shape(weights, "const", 3, where)[2]
        settings |= {"resize": ("interp",), "padding": ("none",) if side == HEAD_PX + 2 else ("zero",)}
    return settings


def discriminator_settings(weights: Weights, where: str) -> Settings:
    """Fields of DiscriminatorConfig that the weights tell."""
    conv, fc = shape(weights, "conv.weight", 4, where), shape(weights, "fc0.weight", 2, where)
    blocks = count(weights, r"blocks\.(\d+)\.")
    names = ["from_rgb.weight", *(f"blocks.{i}.conv1.weight" for i in range(blocks))]
    widths = [shape(weights, name, 4, where)[0] for name in names]
    side = round((fc[1] / conv[0]) ** 0.5)
    sides = [HEAD_PX << i for i in reversed(range(blocks + 1))]
    return {
        "resolution_px": (HEAD_PX << blocks,),
        "channel_max": (conv[0],),
        "channel_multiplier": _multipliers(sides, widths, conv[0]),
        "pool": (None, 4) if side == 4 else (side,),
    }


def misfits(settings: Settings, config: Generator | DiscriminatorConfig) -> Settings:
    """The fields of a configuration that are not the checkpoint's, and the values that would be."""
    told = dict(settings)
    if getattr(config, "padding", "") == "zero":
        told.pop("padded_skip", None)  # says nothing there
    if isinstance(config, CIPSGeneratorConfig) and (config.embedding_px,) == told.get("size_px"):
        told.pop("size_px")  # embeddings alone have a side; it may be looked up on a larger grid
    return {field: fits for field, fits in told.items() if getattr(config, field) not in fits}


def check_complete(weights: Weights, config: Generator | DiscriminatorConfig, where: str) -> None:
    """UserError at the first weight of the configured network that is missing, too much or of another shape."""
    with torch.device("meta"):
        ours = config.build().state_dict()
    for name, tensor in ours.items():
        shape = tuple(_need(weights, name, where).shape)
        if shape != tuple(tensor.shape):
            raise UserError(f"{where}: our {name!r} has shape {shape} there, this recipe's is {tuple(tensor.shape)}")
    for name in weights:
        if name not in ours:
            raise UserError(f"{where}: it has {name!r}, this recipe's network has not")
