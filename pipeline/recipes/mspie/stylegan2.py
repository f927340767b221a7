"""MS-PIE on StyleGAN2 (2012.05217, Section 4.1): Table 2 (one size), Table 5 (several) and its larger runs.

Published FIDs are of the best checkpoint before D has seen so many real images; precision and recall are per cent.
Unverified: no configuration of Table 2 was released. Its rows are read as row a with other blocks: bilinear and then
a convolution, without the blur (b); then without padding, with the heads of Table 5's rows h, i and k (c, d, e).
Differs from reference: without padding the RGB skip path has none either (family.G.padded_skip=true is the
release's); scale probabilities are the paper's, which the release's code does not apply; reals are antialiased.
Knows nothing of how rows are compared.
"""

from pipeline.families.mspie import MSPIEConfig
from pipeline.models.mspie import MSPIEGeneratorConfig
from pipeline.models.stylegan2 import DiscriminatorConfig
from pipeline.plan import DataConfig, RunConfig

_G = MSPIEGeneratorConfig()
_STOCK = _G.replace(head="const", resize="interp", block="deconv")
_UNPADDED = _G.replace(block="up_conv", padding="none")
_D = DiscriminatorConfig(mbstd_group=3, pool=2)
_STOCK_D = DiscriminatorConfig(mbstd_group=3)


def _run(
    name: str,
    G: MSPIEGeneratorConfig,
    D: DiscriminatorConfig = _D,
    scales: tuple[int, ...] = (0, 2, 4),
    *,
    batch_size: int = 24,
    total_kimg: float | int = 26_400,
) -> RunConfig:
    """Half of the iterations at the first of several scales. Beyond 512 px, the reals are stored at 1024."""
    probs = (1.0,) if len(scales) == 1 else (0.5, 0.25, 0.25)
    family = MSPIEConfig(G=G, D=D, scales=scales, scale_probs=probs)
    largest = max(side for side, _ in family.sizes())
    return RunConfig(
        recipe=f"mspie.{name}",
        family=family,
        data=DataConfig(size_px=1024 if largest > 512 else largest),
        batch_size=batch_size,
        total_kimg=total_kimg,
    )


def table2_a() -> RunConfig:
    """StyleGAN2, learned constant, C2, 256 px (Table 2, row a).

    Command: graticule submit mspie.table2_a --data DIR --cluster NAME --gpus 8
    Data: FFHQ at 256 px
    Cost: 20.0 M images, 23.7 EFLOP: 66 GPU-hours at a sustained 100 TFLOP/s; the paper used 8 V100
    Published: FID 6.32 / 5.62 (10 / 20 M images), precision 76.85, recall 50.41; mean of three seeds
    Measured:
    """
    return _run("table2_a", _STOCK, _STOCK_D, (0,), total_kimg=20_000)


def table2_b() -> RunConfig:
    """StyleGAN2 at 256 px, as row a, with bilinear up-sampling and convolution (Table 2, row b).

    Command: graticule submit mspie.table2_b --data DIR --cluster NAME --gpus 8
    Data: FFHQ at 256 px
    Cost: 20.0 M images, 30.7 EFLOP: 85 GPU-hours at a sustained 100 TFLOP/s; the paper used 8 V100
    Published: FID 5.79 / 5.68 (10 / 20 M images), precision 76.78, recall 50.46; mean of three seeds
    Measured:
    """
    return _run("table2_b", _STOCK.replace(block="up_conv"), _STOCK_D, (0,), total_kimg=20_000)


def table2_c() -> RunConfig:
    """StyleGAN2 at 256 px, as row b, without padding (Table 2, row c).

    Command: graticule submit mspie.table2_c --data DIR --cluster NAME --gpus 8
    Data: FFHQ at 256 px
    Cost: 20.0 M images, 31.0 EFLOP: 86 GPU-hours at a sustained 100 TFLOP/s; the paper used 8 V100
    Published: FID 6.45 / 6.13 (10 / 20 M images), precision 73.71, recall 51.73; mean of three seeds
    Measured:
    """
    return _run("table2_c", _UNPADDED.replace(head="const", resize="interp"), _STOCK_D, (0,), total_kimg=20_000)


def table2_d() -> RunConfig:
    """StyleGAN2 at 256 px, as row c, with the Cartesian grid (Table 2, row d).

    Command: graticule submit mspie.table2_d --data DIR --cluster NAME --gpus 8
    Data: FFHQ at 256 px
    Cost: 20.0 M images, 31.0 EFLOP: 86 GPU-hours at a sustained 100 TFLOP/s; the paper used 8 V100
    Published: FID 6.31 / 6.07 (10 / 20 M images), precision 73.01, recall 52.90; mean of three seeds
    Measured:
    """
    return _run("table2_d", _UNPADDED.replace(head="csg"), _STOCK_D, (0,), total_kimg=20_000)


def table2_e() -> RunConfig:
    """StyleGAN2 at 256 px, as row c, with the sinusoidal code (Table 2, row e).

    Command: graticule submit mspie.table2_e --data DIR --cluster NAME --gpus 8
    Data: FFHQ at 256 px
    Cost: 20.0 M images, 31.0 EFLOP: 86 GPU-hours at a sustained 100 TFLOP/s; the paper used 8 V100
    Published: FID 6.40 / 5.86 (10 / 20 M images), precision 72.94, recall 52.87; mean of three seeds
    Measured:
    """
    return _run("table2_e", _UNPADDED, _STOCK_D, (0,), total_kimg=20_000)


def table5_a() -> RunConfig:
    """StyleGAN2, learned constant, stock blocks, C2: 256 px only (Table 5, row a).

    Command: graticule submit mspie.table5_a --data DIR --cluster NAME --gpus 8
    Data: FFHQ at 256 px
    Cost: 26.4 M images, 31.3 EFLOP: 87 GPU-hours at a sustained 100 TFLOP/s; the paper used 8 V100
    Published: FID 5.62 / 5.56 (20 / 25 M images), precision 75.92, recall 51.24 at 256 px; mean of three seeds
    Measured:
    """
    return _run("table5_a", _STOCK, _STOCK_D, (0,))


def table5_b() -> RunConfig:
    """StyleGAN2, learned constant, stock blocks, C2: 512 px only (Table 5, row b).

    Command: graticule submit mspie.table5_b --data DIR --cluster NAME --gpus 8
    Data: FFHQ at 512 px
    Cost: 26.4 M images, 41.4 EFLOP: 115 GPU-hours at a sustained 100 TFLOP/s; the paper used 8 V100
    Published: FID 3.47 / 3.41 (20 / 25 M images), precision 75.88, recall 54.61 at 512 px; FID 5.00 / 4.91, precision
      75.65, recall 54.58 at 256 px (of reduced 512 px images); mean of three seeds
    Measured:
    """
    return _run("table5_b", _STOCK.replace(num_upblocks=7), _STOCK_D.replace(resolution_px=512), (0,))


def table5_c() -> RunConfig:
    """MS-PIE StyleGAN2, learned constant, interpolated, zero padding, C2: 256, 384 and 512 px (Table 5, row c).

    Command: graticule submit mspie.table5_c --data DIR --cluster NAME --gpus 8
    Data: FFHQ at 512 px
    Cost: 26.4 M images, 64.5 EFLOP: 179 GPU-hours at a sustained 100 TFLOP/s; the paper used 8 V100
    Published: FID 3.46 / 3.35 (20 / 25 M images), precision 73.84, recall 55.77 at 512 px; FID 4.82 / 4.50, precision
      72.75, recall 55.42 at 256 px; mean of three seeds
    Measured:
    """
    return _run("table5_c", _G.replace(head="const", resize="interp"))


def table5_d() -> RunConfig:
    """MS-PIE StyleGAN2, Cartesian grid, zero padding, C2: 256, 384 and 512 px (Table 5, row d).

    Command: graticule submit mspie.table5_d --data DIR --cluster NAME --gpus 8
    Data: FFHQ at 512 px
    Cost: 26.4 M images, 64.5 EFLOP: 179 GPU-hours at a sustained 100 TFLOP/s; the paper used 8 V100
    Published: FID 3.59 / 3.50 (20 / 25 M images), precision 73.28, recall 56.16 at 512 px; FID 4.74 / 4.71, precision
      73.34, recall 55.07 at 256 px; mean of three seeds
    Measured:
    """
    return _run("table5_d", _G.replace(head="csg"))


def table5_e() -> RunConfig:
    """MS-PIE StyleGAN2, sinusoidal code, interpolated, zero padding, C2: 256, 384 and 512 px (Table 5, row e).

    Command: graticule submit mspie.table5_e --data DIR --cluster NAME --gpus 8
    Data: FFHQ at 512 px
    Cost: 26.4 M images, 64.5 EFLOP: 179 GPU-hours at a sustained 100 TFLOP/s; the paper used 8 V100
    Published: FID 3.41 / 3.15 (20 / 25 M images), precision 74.13, recall 56.88 at 512 px; FID 4.99 / 4.73, precision
      73.28, recall 56.93 at 256 px; mean of three seeds
    Measured:
    """
    return _run("table5_e", _G.replace(resize="interp"))


def table5_f() -> RunConfig:
    """MS-PIE StyleGAN2, sinusoidal code, expand, zero padding, C2: 256, 384 and 512 px (Table 5, row f).

    Command: graticule submit mspie.table5_f --data DIR --cluster NAME --gpus 8
    Data: FFHQ at 512 px
    Cost: 26.4 M images, 64.5 EFLOP: 179 GPU-hours at a sustained 100 TFLOP/s; the paper used 8 V100 of 32 GB
    Published: FID 3.31 / 2.93 (20 / 25 M images), precision 73.51, recall 57.32 at 512 px; FID 4.79 / 4.27, precision
      73.48, recall 55.69 at 256 px; mean of three seeds
    Measured:
    """
    return _run("table5_f", _G)


def table5_g() -> RunConfig:
    """MS-PIE StyleGAN2, sinusoidal code, expand, zero padding, G and D C1: 256, 384 and 512 px (Table 5, row g).

    Command: graticule submit mspie.table5_g --data DIR --cluster NAME --gpus 8
    Data: FFHQ at 512 px
    Cost: 26.4 M images, 21.3 EFLOP: 59 GPU-hours at a sustained 100 TFLOP/s; the paper used 8 V100
    Published: FID 3.65 / 3.40 (20 / 25 M images), precision 73.05, recall 56.45 at 512 px; FID 5.54 / 4.83, precision
      73.59, recall 54.29 at 256 px; mean of three seeds
    Measured:
    """
    return _run("table5_g", _G.replace(channel_multiplier=1), _D.replace(channel_multiplier=1))


def table5_h() -> RunConfig:
    """MS-PIE StyleGAN2, learned constant, interpolated, no padding, C2: 256, 384 and 512 px (Table 5, row h).

    Command: graticule submit mspie.table5_h --data DIR --cluster NAME --gpus 8
    Data: FFHQ at 512 px
    Cost: 26.4 M images, 84.1 EFLOP: 234 GPU-hours at a sustained 100 TFLOP/s; the paper used 8 V100
    Published: FID 4.99 / 4.01 (20 / 25 M images), precision 72.81, recall 54.35 at 512 px; FID 5.67 / 5.11, precision
      72.37, recall 55.52 at 256 px; mean of three seeds
    Measured:
    """
    return _run("table5_h", _UNPADDED.replace(head="const", resize="interp"))


def table5_i() -> RunConfig:
    """MS-PIE StyleGAN2, Cartesian grid, no padding, C2: 256, 384 and 512 px (Table 5, row i).

    Command: graticule submit mspie.table5_i --data DIR --cluster NAME --gpus 8
    Data: FFHQ at 512 px
    Cost: 26.4 M images, 84.1 EFLOP: 234 GPU-hours at a sustained 100 TFLOP/s; the paper used 8 V100
    Published: FID 3.96 / 3.76 (20 / 25 M images), precision 73.26, recall 54.71 at 512 px; FID 5.30 / 5.09, precision
      70.74, recall 56.06 at 256 px; mean of three seeds
    Measured:
    """
    return _run("table5_i", _UNPADDED.replace(head="csg"))


def table5_j() -> RunConfig:
    """MS-PIE StyleGAN2, sinusoidal code, interpolated, no padding, C2: 256, 384 and 512 px (Table 5, row j).

    Command: graticule submit mspie.table5_j --data DIR --cluster NAME --gpus 8
    Data: FFHQ at 512 px
    Cost: 26.4 M images, 84.1 EFLOP: 234 GPU-hours at a sustained 100 TFLOP/s; the paper used 8 V100
    Published: FID 4.80 / 4.23 (20 / 25 M images), precision 73.11, recall 54.63 at 512 px; FID 5.89 / 5.38, precision
      71.21, recall 56.21 at 256 px; mean of three seeds
    Measured:
    """
    return _run("table5_j", _UNPADDED.replace(resize="interp"))


def table5_k() -> RunConfig:
    """MS-PIE StyleGAN2, sinusoidal code, expand, no padding, C2: 256, 384 and 512 px (Table 5, row k).

    Command: graticule submit mspie.table5_k --data DIR --cluster NAME --gpus 8
    Data: FFHQ at 512 px
    Cost: 26.4 M images, 84.1 EFLOP: 234 GPU-hours at a sustained 100 TFLOP/s; the paper used 8 V100
    Published: FID 4.46 / 4.17 (20 / 25 M images), precision 73.05, recall 51.07 at 512 px; FID 6.08 / 5.59, precision
      72.65, recall 49.74 at 256 px; mean of three seeds
    Measured:
    """
    return _run("table5_k", _UNPADDED)


def table5_f_896() -> RunConfig:
    """MS-PIE StyleGAN2, as row f of Table 5: 256, 512 and 896 px.

    Command: graticule submit mspie.table5_f_896 --data DIR --cluster NAME --gpus 8
    Data: FFHQ at 1024 px
    Cost: 26.4 M images, 142.8 EFLOP: 397 GPU-hours at a sustained 100 TFLOP/s; the paper used 8 V100 of 32 GB
    Published: FID 4.10, precision 72.21, recall 50.29 at 896 px; mean of three seeds
    Measured:
    """
    return _run("table5_f_896", _G, scales=(0, 4, 10))


def table5_f_1024() -> RunConfig:
    """MS-PIE StyleGAN2, as row f of Table 5 but for G, C1: 256, 512 and 1024 px.

    Command: graticule submit mspie.table5_f_1024 --data DIR --cluster NAME --gpus 8
    Data: FFHQ at 1024 px
    Cost: 24.0 M images, 121.6 EFLOP: 338 GPU-hours at a sustained 100 TFLOP/s; the paper used 8 V100 of 32 GB
    Published: FID 6.24, precision 71.79, recall 49.92 at 1024 px; mean of three seeds
    Measured:
    """
    return _run(
        "table5_f_1024",
        _G.replace(channel_multiplier=1),
        _D.replace(mbstd_group=2),
        (0, 4, 12),
        batch_size=16,
        total_kimg=24_000,
    )
