"""The weight map of mmgeneration's StyleGAN2 and MS-PIE (2012.05217): its generator, generator_ema, discriminator.

A port of rosinality's, with the same meaning of raw weights under other names. It trains on BGR, so the outputs of
ToRGB and the inputs of fromRGB are flipped. A constant or a code at the head, 4 or 6 pixels wide, as the row has it.
"""

from collections.abc import Collection

from torch import Tensor

from pipeline.models.imports.rosinality import discriminator
from pipeline.models.imports.weightmap import (
    Drop,
    Rule,
    Style,
    Take,
    drop_filters,
    listed,
    numbered,
    same,
    scalar,
    squeeze0,
)

LINEAR = r"linear\.weight_orig"


def rgb_first(t: Tensor) -> Tensor:
    """[1, 3, i, 1, 1] or [1, 3, 1, 1] in BGR -> [3, i, 1, 1] or [3] in RGB."""
    t = t.squeeze(0).flip(0)
    return t if t.ndim == 4 else t.flatten()


def rgb_second(t: Tensor) -> Tensor:
    """[o, 3, 1, 1] in BGR -> the same in RGB."""
    return t.flip(1)


def _generator(_: Collection[str]) -> list[Rule]:
    affine = {
        rf"conv\.style_modulation\.{LINEAR}": ("conv.affine.weight", same),
        r"conv\.style_modulation\.bias": ("conv.affine.bias", same),
    }
    conv = {
        r"conv\.weight_orig": ("conv.weight", squeeze0),
        r"noise_injector\.weight": ("noise_strength", scalar),
        r"activate\.bias": ("bias", same),
    }
    to_rgb = {r"conv\.weight_orig": ("conv.weight", rgb_first), "bias": ("bias", rgb_first)}
    return [
        Take(rf"style_mapping\.(?P<n>\d+)\.{LINEAR}", numbered("mapping.layers", "weight", -1)),
        Take(r"style_mapping\.(?P<n>\d+)\.bias", numbered("mapping.layers", "bias", -1)),
        Take(r"constant_input\.input", "const", squeeze0),
        *listed("conv1", "convs", "convs", conv | affine),
        *listed("to_rgb1", "to_rgbs", "to_rgbs", to_rgb | affine),
        Drop(r"injected_noise_(\d+_)?\d+"),
        Drop(r"head_pos_enc\._float_tensor"),
        drop_filters(r"convs\.\d+\.conv\.blur\.kernel"),
        drop_filters(r"to_rgbs\.\d+\.upsample\.kernel"),
    ]


def _blocks(keys: Collection[str]) -> tuple[str, ...]:
    """Only the transposed convolution has a filter behind it; the other two differ in no weight."""
    return ("deconv",) if any(key.endswith("conv.blur.kernel") for key in keys) else ("conv_up", "up_conv")


STYLE = Style(
    nets={"generator_ema": "G_ema", "generator": "G", "discriminator": "D"},
    outer=r"(gen|disc)_auxiliary_losses?\..*|meta|optimizer|hook_msgs|message_hub|param_schedulers|iteration",
    generator=_generator,
    discriminator=lambda _: discriminator(r"conv\.weight_orig", LINEAR, rgb_second),
    is_generator="to_rgb1.",
    blocks=_blocks,
    within="state_dict",
)
