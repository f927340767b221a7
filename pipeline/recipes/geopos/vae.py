"""The variational autoencoders of GeoPos (2401.01951) on CelebA: z of 256, 384 and 512 dimensions, seeds 0 to 4.

Each with ordinary convolutions, CoordConv and GeoConv, in an architecture that is otherwise equal; the paper compares
training and validation loss. Unverified: images of 64 px, 3.256 M of them (20 times the train part), a batch of 64, no
mirroring, so that the held-out part is seen as the train part is; the network is that of models/vae.py.
"""

from pipeline.families.vae import VAEConfig
from pipeline.layers.coords import CoordSpec
from pipeline.models.vae import VAEGeneratorConfig
from pipeline.plan import DataConfig, RunConfig

_CONV, _COORD, _GEO = CoordSpec(), CoordSpec(mode="coord"), CoordSpec(mode="geo")


def _run(name: str, z_dim: int, coords: CoordSpec) -> RunConfig:
    return RunConfig(
        recipe=f"geopos.{name}",
        family=VAEConfig(G=VAEGeneratorConfig(z_dim=z_dim, coords=coords)),
        data=DataConfig(size_px=64, mirror=False),
        batch_size=64,
        total_kimg=3_256,
    )


def vae_256_conv() -> RunConfig:
    """VAE on CelebA, 64 px, z of 256, ordinary convolutions.

    Command: graticule submit geopos.vae_256_conv --data DIR --validation DIR --cluster NAME --seeds 0-4
    Data: CelebA's train part at 64 px (prep celeba PATH --split train); to validate, its val part
    Cost: 3.3 M images, 7 PFLOP: 0.02 GPU-hours at a sustained 100 TFLOP/s
    Published: GeoConv's loss 10-25% lower, 95% interval 5-11 times narrower, over seeds 0-4 (no absolute number)
    Measured:
    """
    return _run("vae_256_conv", 256, _CONV)


def vae_256_coord() -> RunConfig:
    """VAE on CelebA, 64 px, z of 256, CoordConv.

    Command: graticule submit geopos.vae_256_coord --data DIR --validation DIR --cluster NAME --seeds 0-4
    Data: CelebA's train part at 64 px (prep celeba PATH --split train); to validate, its val part
    Cost: 3.3 M images, 7 PFLOP: 0.02 GPU-hours at a sustained 100 TFLOP/s
    Published: GeoConv's loss 10-25% lower, 95% interval 5-11 times narrower, over seeds 0-4 (no absolute number)
    Measured:
    """
    return _run("vae_256_coord", 256, _COORD)


def vae_256_geo() -> RunConfig:
    """VAE on CelebA, 64 px, z of 256, GeoConv.

    Command: graticule submit geopos.vae_256_geo --data DIR --validation DIR --cluster NAME --seeds 0-4
    Data: CelebA's train part at 64 px (prep celeba PATH --split train); to validate, its val part
    Cost: 3.3 M images, 7 PFLOP: 0.02 GPU-hours at a sustained 100 TFLOP/s
    Published: GeoConv's loss 10-25% lower, 95% interval 5-11 times narrower, over seeds 0-4 (no absolute number)
    Measured:
    """
    return _run("vae_256_geo", 256, _GEO)


def vae_384_conv() -> RunConfig:
    """VAE on CelebA, 64 px, z of 384, ordinary convolutions.

    Command: graticule submit geopos.vae_384_conv --data DIR --validation DIR --cluster NAME --seeds 0-4
    Data: CelebA's train part at 64 px (prep celeba PATH --split train); to validate, its val part
    Cost: 3.3 M images, 7 PFLOP: 0.02 GPU-hours at a sustained 100 TFLOP/s
    Published: GeoConv's loss 10-25% lower, 95% interval 5-11 times narrower, over seeds 0-4 (no absolute number)
    Measured:
    """
    return _run("vae_384_conv", 384, _CONV)


def vae_384_coord() -> RunConfig:
    """VAE on CelebA, 64 px, z of 384, CoordConv.

    Command: graticule submit geopos.vae_384_coord --data DIR --validation DIR --cluster NAME --seeds 0-4
    Data: CelebA's train part at 64 px (prep celeba PATH --split train); to validate, its val part
    Cost: 3.3 M images, 7 PFLOP: 0.02 GPU-hours at a sustained 100 TFLOP/s
    Published: GeoConv's loss 10-25% lower, 95% interval 5-11 times narrower, over seeds 0-4 (no absolute number)
    Measured:
    """
    return _run("vae_384_coord", 384, _COORD)


def vae_384_geo() -> RunConfig:
    """VAE on CelebA, 64 px, z of 384, GeoConv.

    Command: graticule submit geopos.vae_384_geo --data DIR --validation DIR --cluster NAME --seeds 0-4
    Data: CelebA's train part at 64 px (prep celeba PATH --split train); to validate, its val part
    Cost: 3.3 M images, 7 PFLOP: 0.02 GPU-hours at a sustained 100 TFLOP/s
    Published: GeoConv's loss 10-25% lower, 95% interval 5-11 times narrower, over seeds 0-4 (no absolute number)
    Measured:
    """
    return _run("vae_384_geo", 384, _GEO)


def vae_512_conv() -> RunConfig:
    """VAE on CelebA, 64 px, z of 512, ordinary convolutions.

    Command: graticule submit geopos.vae_512_conv --data DIR --validation DIR --cluster NAME --seeds 0-4
    Data: CelebA's train part at 64 px (prep celeba PATH --split train); to validate, its val part
    Cost: 3.3 M images, 7 PFLOP: 0.02 GPU-hours at a sustained 100 TFLOP/s
    Published: GeoConv's loss 10-25% lower, 95% interval 5-11 times narrower, over seeds 0-4 (no absolute number)
    Measured:
    """
    return _run("vae_512_conv", 512, _CONV)


def vae_512_coord() -> RunConfig:
    """VAE on CelebA, 64 px, z of 512, CoordConv.

    Command: graticule submit geopos.vae_512_coord --data DIR --validation DIR --cluster NAME --seeds 0-4
    Data: CelebA's train part at 64 px (prep celeba PATH --split train); to validate, its val part
    Cost: 3.3 M images, 7 PFLOP: 0.02 GPU-hours at a sustained 100 TFLOP/s
    Published: GeoConv's loss 10-25% lower, 95% interval 5-11 times narrower, over seeds 0-4 (no absolute number)
    Measured:
    """
    return _run("vae_512_coord", 512, _COORD)


def vae_512_geo() -> RunConfig:
    """VAE on CelebA, 64 px, z of 512, GeoConv.

    Command: graticule submit geopos.vae_512_geo --data DIR --validation DIR --cluster NAME --seeds 0-4
    Data: CelebA's train part at 64 px (prep celeba PATH --split train); to validate, its val part
    Cost: 3.3 M images, 7 PFLOP: 0.02 GPU-hours at a sustained 100 TFLOP/s
    Published: GeoConv's loss 10-25% lower, 95% interval 5-11 times narrower, over seeds 0-4 (no absolute number)
    Measured:
    """
    return _run("vae_512_geo", 512, _GEO)
