"""The weight map of rosinality's StyleGAN2 in PyTorch (1912.04958): its g, g_ema and d.

Raw weights mean the same as ours, N(0, 1) over lr_mul and scaled when they are used, so nothing is multiplied; both
convolve transposed without flipping. Fixed noise and filters are buffers, and dropped. Knows no file.
"""

from collections.abc import Collection

import torch

from pipeline.models.imports.weightmap import (
    Change,
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

AFFINE = (r"conv\.modulation\.(?P<p>weight|bias)", (r"conv.affine.\g<p>", same))


def _generator(_: Collection[str]) -> list[Rule]:
    weight = (r"conv\.weight", ("conv.weight", squeeze0))
    noise = (r"noise\.weight", ("noise_strength", scalar))
    return [
        Take(r"style\.(?P<n>\d+)\.(?P<p>weight|bias)", numbered("mapping.layers", r"\g<p>", -1)),
        Take(r"input\.input", "const", squeeze0),
        *listed("conv1", "convs", "convs", dict([weight, AFFINE, noise, (r"activate\.bias", ("bias", same))])),
        *listed("to_rgb1", "to_rgbs", "to_rgbs", dict([weight, AFFINE, ("bias", ("bias", torch.flatten))])),
        Drop(r"noises\.noise_\d+"),
        drop_filters(r"convs\.\d+\.conv\.blur\.kernel"),
        drop_filters(r"to_rgbs\.\d+\.upsample\.kernel"),
    ]


def discriminator(conv: str, linear: str, from_rgb: Change = same) -> list[Rule]:
    """Rules of d; `conv` and `linear` are what the weights of such layers are called in a port of it."""
    n = r"convs\.(?P<n>\d+)"
    return [
        Take(rf"convs\.0\.0\.{conv}", "from_rgb.weight", from_rgb),
        Take(r"convs\.0\.1\.bias", "from_rgb.bias"),
        Take(rf"{n}\.conv1\.0\.{conv}", numbered("blocks", "conv0.weight", -1)),
        Take(rf"{n}\.conv1\.1\.bias", numbered("blocks", "conv0.bias", -1)),
        Take(rf"{n}\.conv2\.1\.{conv}", numbered("blocks", "conv1.weight", -1)),
        Take(rf"{n}\.conv2\.2\.bias", numbered("blocks", "conv1.bias", -1)),
        Take(rf"{n}\.skip\.1\.{conv}", numbered("blocks", "skip.weight", -1)),
        Take(rf"final_conv\.0\.{conv}", "conv.weight"),
        Take(r"final_conv\.1\.bias", "conv.bias"),
        Take(rf"final_linear\.(?P<n>[01])\.{linear}", r"fc\g<n>.weight"),
        Take(r"final_linear\.(?P<n>[01])\.bias", r"fc\g<n>.bias"),
        drop_filters(rf"{n}\.(conv2|skip)\.0\.kernel"),
    ]


STYLE = Style(
    nets={"g_ema": "G_ema", "g": "G", "d": "D"},
    outer=r"g_optim|d_optim|args|ada_aug_p|latent_avg|iter",
    generator=_generator,
    discriminator=lambda _: discriminator("weight", "weight"),
    is_generator="to_rgb1.",
    blocks=lambda _: ("deconv",),
)
