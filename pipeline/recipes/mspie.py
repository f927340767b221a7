"""Positional Encoding as Spatial Inductive Bias in GANs (2012.05217): its experiments, row by row."""

from pipeline.families.mspie import MSPIEConfig
from pipeline.plan import DataConfig, RunConfig


def table5_f() -> RunConfig:
    """MS-PIE StyleGAN2, sinusoidal code, expand, zero padding, C2: 256, 384 and 512 px (Table 5, row f).

    Command: graticule submit mspie.table5_f --data DIR --cluster NAME --gpus 8
    Data: FFHQ at 512 px
    Cost: 26.4 M images, 64.5 EFLOP: 179 GPU-hours at a sustained 100 TFLOP/s; the paper used 8 V100 of 32 GB
    Published: FID 2.93 at 512 px, 4.27 at 256 px (25 M images, mean of three seeds)
    Measured:
    """
    return RunConfig(
        recipe="mspie.table5_f",
        family=MSPIEConfig(),
        data=DataConfig(size_px=512),
        batch_size=24,
        total_kimg=26_400,
    )
