"""The weight map of state dicts in the manner of NVlabs' StyleGAN2 in PyTorch (2006.06676): G, G_ema and D.

Layers are named by resolution. Raw weights mean the same as ours. Its published files are pickles of classes, which
are refused: this map is for what `state_dict()` of such networks saves. It holds names, and none of that code.
"""

import re
from collections.abc import Callable, Collection

from pipeline.models.imports.weightmap import Drop, Refuse, Rule, Style, Take, drop_filters, scalar

CONDITIONAL = "a class-conditional network"


def _doublings(text: str) -> int:
    """Doublings of 4 that make a resolution: '4' -> 0, '8' -> 1."""
    return int(text).bit_length() - 3


def _conv(leaf: str) -> Callable[[re.Match[str]], str]:
    return lambda m: f"convs.{2 * _doublings(m['px']) - 1 + int(m['n'])}.{m.expand(leaf)}"


def _to_rgb(leaf: str) -> Callable[[re.Match[str]], str]:
    return lambda m: f"to_rgbs.{_doublings(m['px'])}.{m.expand(leaf)}"


def _generator(_: Collection[str]) -> list[Rule]:
    block = r"synthesis\.b(?P<px>\d+)"
    conv, to_rgb = rf"{block}\.conv(?P<n>[01])", rf"{block}\.torgb"
    return [
        Take(r"mapping\.fc(?P<n>\d+)\.(?P<p>weight|bias)", r"mapping.layers.\g<n>.\g<p>"),
        Take(r"synthesis\.b4\.const", "const"),
        Take(rf"{conv}\.weight", _conv("conv.weight")),
        Take(rf"{conv}\.affine\.(?P<p>weight|bias)", _conv(r"conv.affine.\g<p>")),
        Take(rf"{conv}\.noise_strength", _conv("noise_strength"), scalar),
        Take(rf"{conv}\.bias", _conv("bias")),
        Take(rf"{to_rgb}\.weight", _to_rgb("conv.weight")),
        Take(rf"{to_rgb}\.affine\.(?P<p>weight|bias)", _to_rgb(r"conv.affine.\g<p>")),
        Take(rf"{to_rgb}\.bias", _to_rgb("bias")),
        Drop(rf"{conv}\.noise_const"),
        Drop(r"mapping\.w_avg"),
        drop_filters(rf"{block}\.(conv[01]\.)?resample_filter"),
        Refuse(r"mapping\.embed\..*", CONDITIONAL),
        Refuse(rf"{block}\.skip\..*", "a generator of the 'resnet' architecture"),
        Refuse(r"synthesis\.(input|L\d).*", "StyleGAN3"),
    ]


def _discriminator(keys: Collection[str]) -> list[Rule]:
    sides = [int(m[1]) for key in keys if (m := re.match(r"b(\d{1,5})\.", key))]
    largest = max(sides, default=4)
    block = r"b(?P<px>\d+)"

    def at(leaf: str) -> Callable[[re.Match[str]], str]:
        return lambda m: f"blocks.{_doublings(str(largest)) - _doublings(m['px'])}.{m.expand(leaf)}"

    return [
        Take(rf"b{largest}\.fromrgb\.(?P<p>weight|bias)", r"from_rgb.\g<p>"),
        Take(r"b4\.conv\.(?P<p>weight|bias)", r"conv.\g<p>"),
        Take(r"b4\.fc\.(?P<p>weight|bias)", r"fc0.\g<p>"),
        Take(r"b4\.out\.(?P<p>weight|bias)", r"fc1.\g<p>"),
        Take(rf"{block}\.conv(?P<n>[01])\.(?P<p>weight|bias)", at(r"conv\g<n>.\g<p>")),
        Take(rf"{block}\.skip\.weight", at("skip.weight")),
        drop_filters(rf"{block}\.((fromrgb|conv[01]?|skip)\.)?resample_filter"),
        Refuse(rf"{block}\.fromrgb\..*", "a discriminator of the 'skip' architecture"),
        Refuse(r"mapping\..*", CONDITIONAL),
    ]


STYLE = Style(
    nets={"G_ema": "G_ema", "G": "G", "D": "D"},
    outer=r"training_set_kwargs|augment_pipe(\..*)?",
    generator=_generator,
    discriminator=_discriminator,
    is_generator="synthesis.",
    blocks=lambda _: ("deconv",),
)
