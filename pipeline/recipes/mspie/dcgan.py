"""MS-PIE on DCGAN with up-convolutions and WGAN-GP (2012.05217, Section 4): LSUN bedroom, one of Tables 3, 4 and 6.

Rows: a, padded; b, without padding; c, as b with the sinusoidal code at the head. Published figures are sliced
Wasserstein distances. Unverified: the paper states architecture style and loss alone. Optimizers, batch and length
are those of mmgeneration's WGAN-GP at 128 px: 160 thousand updates of D with a batch of 64, every fifth with one of G,
no mirroring.
"""

from pipeline.families.dcgan import DCGANConfig
from pipeline.models.dcgan import DCGANGeneratorConfig
from pipeline.plan import DataConfig, RunConfig

_A = DCGANGeneratorConfig()
_B = _A.replace(padding=False)
_C = _B.replace(head="spe")


def _run(name: str, G: DCGANGeneratorConfig) -> RunConfig:
    return RunConfig(
        recipe=f"mspie.{name}",
        family=DCGANConfig(G=G),
        data=DataConfig(size_px=128, mirror=False),
        batch_size=64,
        total_kimg=10_240,
    )


def dcgan_bedroom_a() -> RunConfig:
    """DCGAN on LSUN bedroom, 128 px, up-sampling and convolution (row a).

    Command: graticule submit mspie.dcgan_bedroom_a --data DIR --cluster NAME --gpus 1
    Data: LSUN bedroom at 128 px, centre crop
    Cost: 10.2 M images, 0.2 EFLOP: 1 GPU-hours at a sustained 100 TFLOP/s
    Published: SWD x 1000 of 11.82 / 17.30 / 28.10 at 128 / 64 / 32 px, 19.07 on average
    Measured:
    """
    return _run("dcgan_bedroom_a", _A)


def dcgan_bedroom_b() -> RunConfig:
    """DCGAN on LSUN bedroom, 128 px, without padding (row b).

    Command: graticule submit mspie.dcgan_bedroom_b --data DIR --cluster NAME --gpus 1
    Data: LSUN bedroom at 128 px, centre crop
    Cost: 10.2 M images, 0.2 EFLOP: 1 GPU-hours at a sustained 100 TFLOP/s
    Published: SWD x 1000 of 22.21 / 27.26 / 44.24 at 128 / 64 / 32 px, 31.24 on average
    Measured:
    """
    return _run("dcgan_bedroom_b", _B)


def dcgan_bedroom_c() -> RunConfig:
    """DCGAN on LSUN bedroom, 128 px, without padding, sinusoidal code at the head (row c).

    Command: graticule submit mspie.dcgan_bedroom_c --data DIR --cluster NAME --gpus 1
    Data: LSUN bedroom at 128 px, centre crop
    Cost: 10.2 M images, 0.2 EFLOP: 1 GPU-hours at a sustained 100 TFLOP/s
    Published: SWD x 1000 of 14.75 / 16.52 / 22.53 at 128 / 64 / 32 px, 17.93 on average
    Measured:
    """
    return _run("dcgan_bedroom_c", _C)
