"""Image Generators with Conditionally-Independent Pixel Synthesis (2011.13775): its experiments."""

from pipeline.families.cips import CIPSConfig
from pipeline.plan import DataConfig, RunConfig


def table3_main() -> RunConfig:
    """CIPS main: Fourier features and coordinate embeddings, RGB skips, 256 px (Table 3, row main).

    Command: graticule submit cips.table3_main --data DIR --cluster NAME --gpus 4
    Data: FFHQ at 256 px
    Cost: 4.8 M images, 14.3 EFLOP: 40 GPU-hours at a sustained 100 TFLOP/s
    Published: FID 6.31 at 256 px (4.8 M images)
    Measured:
    """
    return RunConfig(
        recipe="cips.table3_main",
        family=CIPSConfig(),
        data=DataConfig(size_px=256),
        batch_size=16,
        total_kimg=4_800,
    )
