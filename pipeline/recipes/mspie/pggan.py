"""MS-PIE on PGGAN (2012.05217, Section 4): CelebA and LSUN bedroom at 128 px, two of Tables 3, 4 and 6.

Rows: a, the original; b, without padding; c, as b with the sinusoidal code at the head. Published figures are sliced
Wasserstein distances. Unverified: no configuration was released. The schedule is the original's preset for eight
GPUs, 12 million images with mirroring, 600 thousand for each level and each fade; which of the three tables is which,
the number of bedrooms and the size of the padding-free first map (here 6x6) are not known to us.
"""

from pipeline.families.pggan import PGGANConfig
from pipeline.models.pggan import PGGANGeneratorConfig
from pipeline.plan import DataConfig, RunConfig

_A = PGGANGeneratorConfig()
_B = _A.replace(padding=False)
_C = _B.replace(head="spe")


def _run(name: str, G: PGGANGeneratorConfig) -> RunConfig:
    return RunConfig(
        recipe=f"mspie.{name}",
        family=PGGANConfig(G=G),
        data=DataConfig(size_px=128),
        batch_size=32,
        total_kimg=12_000,
    )


def pggan_celeba_a() -> RunConfig:
    """PGGAN on CelebA, 128 px (row a).

    Command: graticule submit mspie.pggan_celeba_a --data DIR --cluster NAME --gpus 8
    Data: CelebA, the original's 128 px window (graticule prep celeba)
    Cost: 12.0 M images, 5.9 EFLOP: 16 GPU-hours at a sustained 100 TFLOP/s
    Published: SWD x 1000 of 3.162 / 4.285 / 5.000 at 128 / 64 / 32 px, 4.149 on average
    Measured:
    """
    return _run("pggan_celeba_a", _A)


def pggan_celeba_b() -> RunConfig:
    """PGGAN on CelebA, 128 px, without padding (row b).

    Command: graticule submit mspie.pggan_celeba_b --data DIR --cluster NAME --gpus 8
    Data: CelebA, the original's 128 px window (graticule prep celeba)
    Cost: 12.0 M images, 6.0 EFLOP: 17 GPU-hours at a sustained 100 TFLOP/s
    Published: SWD x 1000 of 11.169 / 6.945 / 7.488 at 128 / 64 / 32 px, 8.534 on average
    Measured:
    """
    return _run("pggan_celeba_b", _B)


def pggan_celeba_c() -> RunConfig:
    """PGGAN on CelebA, 128 px, without padding, sinusoidal code at the head (row c).

    Command: graticule submit mspie.pggan_celeba_c --data DIR --cluster NAME --gpus 8
    Data: CelebA, the original's 128 px window (graticule prep celeba)
    Cost: 12.0 M images, 6.0 EFLOP: 17 GPU-hours at a sustained 100 TFLOP/s
    Published: SWD x 1000 of 4.555 / 6.164 / 6.365 at 128 / 64 / 32 px, 5.694 on average
    Measured:
    """
    return _run("pggan_celeba_c", _C)


def pggan_bedroom_a() -> RunConfig:
    """PGGAN on LSUN bedroom, 128 px (row a).

    Command: graticule submit mspie.pggan_bedroom_a --data DIR --cluster NAME --gpus 8
    Data: LSUN bedroom at 128 px, centre crop
    Cost: 12.0 M images, 5.9 EFLOP: 16 GPU-hours at a sustained 100 TFLOP/s
    Published: SWD x 1000 of 7.473 / 5.197 / 5.214 at 128 / 64 / 32 px, 5.962 on average
    Measured:
    """
    return _run("pggan_bedroom_a", _A)


def pggan_bedroom_b() -> RunConfig:
    """PGGAN on LSUN bedroom, 128 px, without padding (row b).

    Command: graticule submit mspie.pggan_bedroom_b --data DIR --cluster NAME --gpus 8
    Data: LSUN bedroom at 128 px, centre crop
    Cost: 12.0 M images, 6.0 EFLOP: 17 GPU-hours at a sustained 100 TFLOP/s
    Published: SWD x 1000 of 13.619 / 10.043 / 6.581 at 128 / 64 / 32 px, 10.081 on average
    Measured:
    """
    return _run("pggan_bedroom_b", _B)


def pggan_bedroom_c() -> RunConfig:
    """PGGAN on LSUN bedroom, 128 px, without padding, sinusoidal code at the head (row c).

    Command: graticule submit mspie.pggan_bedroom_c --data DIR --cluster NAME --gpus 8
    Data: LSUN bedroom at 128 px, centre crop
    Cost: 12.0 M images, 6.0 EFLOP: 17 GPU-hours at a sustained 100 TFLOP/s
    Published: SWD x 1000 of 6.588 / 4.437 / 5.090 at 128 / 64 / 32 px, 5.371 on average
    Measured:
    """
    return _run("pggan_bedroom_c", _C)
