"""GANs of GeoPos (2401.01951): WGAN-GP on hands of American sign language, by label, and a GAN on faces.

Known: WGAN-GP with labels, 36 of them (0-9, a-z), for hands, shown as the best of 10 by critic score for each label;
for faces that Conv collapsed at epoch 250-300, CoordConv within 30 and GeoConv not by 450. All else is our choice:
64 px; DCGAN's networks, coordinates in G and D; a label enters G as an embedding beside z and D as a projection
(1802.05637); WGAN-GP's customary 5 updates of D for one of G, penalty 10, Adam(0, 0.9) at 1e-4, batch 64; no mirroring,
no average of G. Data sets are unverified too: hands as in the 36 folders of Kaggle's ayuraj/asl-dataset (about 2,500
pictures), CelebA's 202,599 faces, of which 450 epochs are 91,200 kimg. Collapse is measured (tracking/collapse.py).
asl_geo_spe and asl_geo_csg cross GeoConv with MS-PIE's codes at the head, which no paper did.
"""

from typing import Literal

from pipeline.families.dcgan import DCGANConfig
from pipeline.layers.coords import CoordSpec, Mode
from pipeline.models.dcgan import DCGANDiscriminatorConfig, DCGANGeneratorConfig
from pipeline.plan import DataConfig, RunConfig

SIZE_PX = 64


def _run(
    name: str, mode: Mode, *, num_classes: int, total_kimg: float | int, head: Literal["none", "spe", "csg"] = "none"
) -> RunConfig:
    coords = CoordSpec(mode=mode)
    family = DCGANConfig(
        G=DCGANGeneratorConfig(resolution_px=SIZE_PX, coords=coords, num_classes=num_classes, head=head),
        D=DCGANDiscriminatorConfig(resolution_px=SIZE_PX, coords=coords, num_classes=num_classes),
        beta1=0.0,
        diversity_interval=16,
    )
    return RunConfig(
        recipe=f"geopos.{name}",
        family=family,
        data=DataConfig(size_px=SIZE_PX, mirror=False),
        batch_size=64,
        total_kimg=total_kimg,
    )


def _asl(name: str, mode: Mode, head: Literal["none", "spe", "csg"] = "none") -> RunConfig:
    return _run(name, mode, num_classes=36, total_kimg=6_400, head=head)


def _faces(name: str, mode: Mode) -> RunConfig:
    return _run(name, mode, num_classes=0, total_kimg=91_200)


def asl_conv() -> RunConfig:
    """WGAN-GP on hands by label, 64 px: ordinary convolutions.

    Command: graticule submit geopos.asl_conv --data DIR --cluster NAME --gpus 1
    Data: ASL hands of 36 labels at 64 px (prep asl); another number: --set family.G.num_classes=N
        family.D.num_classes=N
    Cost: 6.4 M images, 21 PFLOP: 0.06 GPU-hours at a sustained 100 TFLOP/s
    Published: no number; pictures, the best of 10 by critic score for each label
    Measured:
    """
    return _asl("asl_conv", "none")


def asl_coord() -> RunConfig:
    """WGAN-GP on hands by label, 64 px: CoordConv.

    Command: graticule submit geopos.asl_coord --data DIR --cluster NAME --gpus 1
    Data: ASL hands of 36 labels at 64 px (prep asl); another number: --set family.G.num_classes=N
        family.D.num_classes=N
    Cost: 6.4 M images, 22 PFLOP: 0.06 GPU-hours at a sustained 100 TFLOP/s
    Published: no number; pictures, the best of 10 by critic score for each label
    Measured:
    """
    return _asl("asl_coord", "coord")


def asl_geo() -> RunConfig:
    """WGAN-GP on hands by label, 64 px: GeoConv.

    Command: graticule submit geopos.asl_geo --data DIR --cluster NAME --gpus 1
    Data: ASL hands of 36 labels at 64 px (prep asl); another number: --set family.G.num_classes=N
        family.D.num_classes=N
    Cost: 6.4 M images, 22 PFLOP: 0.06 GPU-hours at a sustained 100 TFLOP/s
    Published: no number; pictures, the best of 10 by critic score for each label
    Measured:
    """
    return _asl("asl_geo", "geo")


def asl_geo_spe() -> RunConfig:
    """WGAN-GP on hands by label, 64 px: GeoConv, sinusoidal code at the head.

    Command: graticule submit geopos.asl_geo_spe --data DIR --cluster NAME --gpus 1
    Data: ASL hands of 36 labels at 64 px (prep asl); another number: --set family.G.num_classes=N
        family.D.num_classes=N
    Cost: 6.4 M images, 22 PFLOP: 0.06 GPU-hours at a sustained 100 TFLOP/s
    Published: not published
    Measured:
    """
    return _asl("asl_geo_spe", "geo", head="spe")


def asl_geo_csg() -> RunConfig:
    """WGAN-GP on hands by label, 64 px: GeoConv, Cartesian grid at the head.

    Command: graticule submit geopos.asl_geo_csg --data DIR --cluster NAME --gpus 1
    Data: ASL hands of 36 labels at 64 px (prep asl); another number: --set family.G.num_classes=N
        family.D.num_classes=N
    Cost: 6.4 M images, 22 PFLOP: 0.06 GPU-hours at a sustained 100 TFLOP/s
    Published: not published
    Measured:
    """
    return _asl("asl_geo_csg", "geo", head="csg")


def faces_conv() -> RunConfig:
    """WGAN-GP on faces, 64 px: ordinary convolutions.

    Command: graticule submit geopos.faces_conv --data DIR --cluster NAME --gpus 1
    Data: CelebA at 64 px (prep celeba)
    Cost: 91.2 M images, 0.3 EFLOP: 1 GPU-hours at a sustained 100 TFLOP/s
    Published: collapse at epoch 250-300 of 450; an epoch is 202.6 kimg of CelebA, if that is the set
    Measured:
    """
    return _faces("faces_conv", "none")


def faces_coord() -> RunConfig:
    """WGAN-GP on faces, 64 px: CoordConv.

    Command: graticule submit geopos.faces_coord --data DIR --cluster NAME --gpus 1
    Data: CelebA at 64 px (prep celeba)
    Cost: 91.2 M images, 0.3 EFLOP: 1 GPU-hours at a sustained 100 TFLOP/s
    Published: collapse within 30 epochs; an epoch is 202.6 kimg of CelebA, if that is the set
    Measured:
    """
    return _faces("faces_coord", "coord")


def faces_geo() -> RunConfig:
    """WGAN-GP on faces, 64 px: GeoConv.

    Command: graticule submit geopos.faces_geo --data DIR --cluster NAME --gpus 1
    Data: CelebA at 64 px (prep celeba)
    Cost: 91.2 M images, 0.3 EFLOP: 1 GPU-hours at a sustained 100 TFLOP/s
    Published: no collapse by epoch 450; an epoch is 202.6 kimg of CelebA, if that is the set
    Measured:
    """
    return _faces("faces_geo", "geo")
