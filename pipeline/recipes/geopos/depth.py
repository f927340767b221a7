"""Depth from one photograph (GeoPos, 2401.01951, version 2): a U-Net of convolutions, CoordConvs or GeoConvs.

Version 2 of the paper has it; its data, network, loss, length and figures are not known to us. Everything
here is our choice: rooms as in NYUv2 at 128 px, 0.5 to 10 m, scale-invariant loss with 0.5, Adam at 1e-4. The three
differ in their coordinate channels alone (equal architecture, so GeoConv and CoordConv have a few more weights).
"""

from pipeline.families.depth import DepthConfig
from pipeline.layers.coords import CoordSpec, Mode
from pipeline.models.unet import UNetConfig
from pipeline.plan import DataConfig, RunConfig


def _run(name: str, mode: Mode) -> RunConfig:
    return RunConfig(
        recipe=f"geopos.{name}",
        family=DepthConfig(G=UNetConfig(coords=CoordSpec(mode=mode))),
        data=DataConfig(size_px=128),
        batch_size=32,
        total_kimg=1000,
    )


def depth_conv() -> RunConfig:
    """Depth from one photograph, 128 px, U-Net of ordinary convolutions.

    Command: graticule submit geopos.depth_conv --data DIR --validation DIR --cluster NAME --gpus 1
    Data: indoor photographs with depth maps (NYUv2 or alike) at 128 px, centre crop, and held-out ones
    Cost: 1.0 M images, 76 PFLOP: 0.21 GPU-hours at a sustained 100 TFLOP/s
    Published: not published as a number we could verify
    Measured:
    """
    return _run("depth_conv", "none")


def depth_coord() -> RunConfig:
    """Depth from one photograph, 128 px, U-Net of CoordConvs.

    Command: graticule submit geopos.depth_coord --data DIR --validation DIR --cluster NAME --gpus 1
    Data: indoor photographs with depth maps (NYUv2 or alike) at 128 px, centre crop, and held-out ones
    Cost: 1.0 M images, 77 PFLOP: 0.21 GPU-hours at a sustained 100 TFLOP/s
    Published: not published as a number we could verify
    Measured:
    """
    return _run("depth_coord", "coord")


def depth_geo() -> RunConfig:
    """Depth from one photograph, 128 px, U-Net of GeoConvs.

    Command: graticule submit geopos.depth_geo --data DIR --validation DIR --cluster NAME --gpus 1
    Data: indoor photographs with depth maps (NYUv2 or alike) at 128 px, centre crop, and held-out ones
    Cost: 1.0 M images, 77 PFLOP: 0.21 GPU-hours at a sustained 100 TFLOP/s
    Published: not published as a number we could verify
    Measured:
    """
    return _run("depth_geo", "geo")
