"""MS-PIE on SinGAN (2012.05217, Section 4.3, Appendix E): one image, its pyramid, and where position comes from.

Published results are pictures, no numbers. Defaults are of an image of 186x248 px, whose pyramid has the nine stages of
the release's balloons. Of another image give its height and width, and 2 kimg for each of its stages:
`--set family.G.image_px=[H,W] --set total_kimg=...`; then `data.size_px`, the stored side, is its longer side.
Knows nothing of how variants are compared.
"""

from pipeline.families.singan import SinGANConfig
from pipeline.models.singan import SinGANDiscriminatorConfig, SinGANGeneratorConfig
from pipeline.plan import DataConfig, RunConfig

_G = SinGANGeneratorConfig()
_BOHEMIAN = _G.replace(image_px=(370, 500), max_px=500)
_NO_NORM = SinGANDiscriminatorConfig(norm="none")


def _run(name: str, G: SinGANGeneratorConfig, D: SinGANDiscriminatorConfig = SinGANDiscriminatorConfig()) -> RunConfig:
    """Every stage to its end; one image is one iteration, and is never mirrored."""
    family = SinGANConfig(G=G, D=D)
    stages, largest = len(family.sizes()), max(family.sizes()[-1])
    return RunConfig(
        recipe=f"mspie.{name}",
        family=family,
        data=DataConfig(size_px=largest, mirror=False),
        batch_size=1,
        total_kimg=stages * family.stage_kimg,
    )


def singan_original() -> RunConfig:
    """SinGAN as published: zeros around the input of every block, no code.

    Command: graticule submit mspie.singan_original --data DIR --cluster NAME
    Data: one image of 186x248 px: graticule prep folder PATH --crop stretch --size 248
    Cost: 0.018 M images (9 stages), 8 PFLOP: 0.02 GPU-hours at a sustained 100 TFLOP/s, which
        small images one by one do not reach
    Published: SinGAN's own pictures (1905.01164)
    Measured:
    """
    return _run("singan_original", _G)


def singan_csg() -> RunConfig:
    """SinGAN, Cartesian grid in the first stage's noise, every convolution zero-padded.

    Command: graticule submit mspie.singan_csg --data DIR --cluster NAME
    Data: one image of 186x248 px: graticule prep folder PATH --crop stretch --size 248
    Cost: 0.018 M images (9 stages), 8 PFLOP: 0.02 GPU-hours at a sustained 100 TFLOP/s, which
        small images one by one do not reach
    Published: pictures, no number
    Measured:
    """
    return _run("singan_csg", _G.replace(padding="conv", head="csg"))


def singan_spe8() -> RunConfig:
    """SinGAN, sinusoidal code of 8 channels, every convolution zero-padded.

    Command: graticule submit mspie.singan_spe8 --data DIR --cluster NAME
    Data: one image of 186x248 px: graticule prep folder PATH --crop stretch --size 248
    Cost: 0.018 M images (9 stages), 8 PFLOP: 0.02 GPU-hours at a sustained 100 TFLOP/s, which
        small images one by one do not reach
    Published: pictures, no number
    Measured:
    """
    return _run("singan_spe8", _G.replace(padding="conv", head="spe"))


def singan_spe16() -> RunConfig:
    """SinGAN, sinusoidal code of 16 channels, every convolution zero-padded, 370x500 px (Bohemian Rhapsody).

    Command: graticule submit mspie.singan_spe16 --data DIR --cluster NAME
    Data: one image of 370x500 px: graticule prep folder PATH --crop stretch --size 500
    Cost: 0.024 M images (12 stages), 64 PFLOP: 0.18 GPU-hours at a sustained 100 TFLOP/s, which
        small images one by one do not reach
    Published: pictures, no number
    Measured:
    """
    return _run("singan_spe16", _BOHEMIAN.replace(padding="conv", head="spe", spe_channels=16))


def singan_padding_free() -> RunConfig:
    """SinGAN without padding, no code: larger noise maps, interpolated images, D without norm.

    Command: graticule submit mspie.singan_padding_free --data DIR --cluster NAME
    Data: one image of 186x248 px: graticule prep folder PATH --crop stretch --size 248
    Cost: 0.018 M images (9 stages), 8 PFLOP: 0.02 GPU-hours at a sustained 100 TFLOP/s, which
        small images one by one do not reach
    Published: pictures, no number
    Measured:
    """
    return _run("singan_padding_free", _G.replace(padding="none"), _NO_NORM)


def singan_padding_free_csg() -> RunConfig:
    """SinGAN without padding, Cartesian grid in the first stage's noise, D without norm.

    Command: graticule submit mspie.singan_padding_free_csg --data DIR --cluster NAME
    Data: one image of 186x248 px: graticule prep folder PATH --crop stretch --size 248
    Cost: 0.018 M images (9 stages), 8 PFLOP: 0.02 GPU-hours at a sustained 100 TFLOP/s, which
        small images one by one do not reach
    Published: pictures, no number
    Measured:
    """
    return _run("singan_padding_free_csg", _G.replace(padding="none", head="csg"), _NO_NORM)


def singan_padding_free_spe8() -> RunConfig:
    """SinGAN without padding, sinusoidal code of 8 channels, D without norm.

    Command: graticule submit mspie.singan_padding_free_spe8 --data DIR --cluster NAME
    Data: one image of 186x248 px: graticule prep folder PATH --crop stretch --size 248
    Cost: 0.018 M images (9 stages), 8 PFLOP: 0.02 GPU-hours at a sustained 100 TFLOP/s, which
        small images one by one do not reach
    Published: pictures, no number
    Measured:
    """
    return _run("singan_padding_free_spe8", _G.replace(padding="none", head="spe"), _NO_NORM)
