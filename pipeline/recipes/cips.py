"""Image Generators with Conditionally-Independent Pixel Synthesis (2011.13775): its experiments.

Table 3 trained on 4.8 M images in batches of 16. Unverified: for Tables 1, 2 and 5 the paper says only that it trained
longer; 25 M images in batches of 32 (the release's batch) are our reading, and so are all layers of one width, without
coordinates for D. The released code is another network: release_skips and release_residual.
"""

from typing import Any

from pipeline.families.cips import CIPSConfig
from pipeline.models.cips import CIPSGeneratorConfig, Variant
from pipeline.models.cips_discriminator import CIPSDiscriminatorConfig
from pipeline.plan import DataConfig, RunConfig


def _run(
    name: str,
    family: CIPSConfig,
    *,
    batch_size: int = 32,
    total_kimg: float | int = 25_000,
) -> RunConfig:
    return RunConfig(
        recipe=f"cips.{name}",
        family=family,
        data=DataConfig(size_px=family.stored_px()),
        batch_size=batch_size,
        total_kimg=total_kimg,
    )


def _table1(name: str, **changes: Any) -> RunConfig:
    """256 px, row "skips"."""
    return _run(f"table1_{name}", CIPSConfig(**changes))


def _table3(variant: Variant) -> RunConfig:
    name = "main" if variant == "skips" else variant
    return _run(f"table3_{name}", CIPSConfig(G=CIPSGeneratorConfig(variant=variant)), batch_size=16, total_kimg=4_800)


def _table5(name: str, patch_px: int) -> RunConfig:
    """Strides of 1, 2 ... 256 / patch_px, equally often; which ones the table was made with is not said."""
    D = CIPSDiscriminatorConfig(resolution_px=patch_px, mbstd_group=4)
    return _run(f"table5_{name}_{patch_px}", CIPSConfig(D=D, patch_px=patch_px))


def table1_ffhq() -> RunConfig:
    """CIPS main at 256 px on FFHQ (Table 1; Table 5, patch 256).

    Command: graticule submit cips.table1_ffhq --data DIR --cluster NAME --gpus 8
    Data: FFHQ at 256 px
    Cost: 25.0 M images, 74.6 EFLOP: 207 GPU-hours at a sustained 100 TFLOP/s
    Published: FID 4.38, StyleGAN2 3.83; images seen unverified
    Measured:
    """
    return _table1("ffhq")


def table1_churches() -> RunConfig:
    """CIPS main at 256 px on churches (Table 1; Table 5, patch 256).

    Command: graticule submit cips.table1_churches --data DIR --cluster NAME --gpus 8
    Data: LSUN churches (outdoor) at 256 px
    Cost: 25.0 M images, 74.6 EFLOP: 207 GPU-hours at a sustained 100 TFLOP/s
    Published: FID 2.92, StyleGAN2 3.86; images seen unverified
    Measured:
    """
    return _table1("churches")


def table1_landscapes() -> RunConfig:
    """CIPS main at 256 px on landscapes (Table 1).

    Command: graticule submit cips.table1_landscapes --data DIR --cluster NAME --gpus 8
    Data: a folder of landscapes at 256 px; the paper's 60,000 from Flickr are not public
    Cost: 25.0 M images, 74.6 EFLOP: 207 GPU-hours at a sustained 100 TFLOP/s
    Published: FID 3.61, StyleGAN2 2.36; images seen unverified, as is the variant: the released weights are
        residual
    Measured:
    """
    return _table1("landscapes")


def table1_sat_buildings() -> RunConfig:
    """CIPS main at 256 px on satellite pictures of buildings (Table 1).

    Command: graticule submit cips.table1_sat_buildings --data DIR --cluster NAME --gpus 8
    Data: a folder of squares at 300 px (280,741 in the paper); random crops of 256, turned by quarters
    Cost: 25.0 M images, 74.6 EFLOP: 207 GPU-hours at a sustained 100 TFLOP/s
    Published: FID 69.67, StyleGAN2 73.67; images seen unverified
    Measured:
    """
    return _table1("sat_buildings", crop_of_px=300, rotate=True)


def table1_sat_landscapes() -> RunConfig:
    """CIPS main at 256 px on satellite pictures of landscapes (Table 1).

    Command: graticule submit cips.table1_sat_landscapes --data DIR --cluster NAME --gpus 8
    Data: a folder of squares at 512 px (2,608 in the paper); random crops of 256
    Cost: 25.0 M images, 74.6 EFLOP: 207 GPU-hours at a sustained 100 TFLOP/s
    Published: FID 48.47, StyleGAN2 51.54; images seen unverified
    Measured:
    """
    return _table1("sat_landscapes", crop_of_px=512)


def table2_ffhq() -> RunConfig:
    """CIPS main at 256 px on FFHQ, precision and recall (Table 2); cips.table1_ffhq under another name.

    Command: graticule submit cips.table2_ffhq --data DIR --cluster NAME --gpus 8
    Data: FFHQ at 256 px
    Cost: 25.0 M images, 74.6 EFLOP: 207 GPU-hours at a sustained 100 TFLOP/s
    Published: precision 0.613, recall 0.493, StyleGAN2 0.609, 0.513; features and k unstated
    Measured:
    """
    return table1_ffhq().replace(recipe="cips.table2_ffhq")


def table3_base() -> RunConfig:
    """CIPS base: one toRGB at the end, 256 px (Table 3, row base).

    Command: graticule submit cips.table3_base --data DIR --cluster NAME --gpus 4
    Data: FFHQ at 256 px
    Cost: 4.8 M images, 13.6 EFLOP: 38 GPU-hours at a sustained 100 TFLOP/s
    Published: FID 6.71 at 256 px (4.8 M images)
    Measured:
    """
    return _table3("base")


def table3_ne() -> RunConfig:
    """CIPS without coordinate embeddings, 256 px (Table 3, row NE).

    Command: graticule submit cips.table3_ne --data DIR --cluster NAME --gpus 4
    Data: FFHQ at 256 px
    Cost: 4.8 M images, 13.6 EFLOP: 38 GPU-hours at a sustained 100 TFLOP/s
    Published: FID 12.71 at 256 px (4.8 M images)
    Measured:
    """
    return _table3("ne")


def table3_no_fourier() -> RunConfig:
    """CIPS without Fourier features, 256 px (Table 3, row no Fourier).

    Command: graticule submit cips.table3_no_fourier --data DIR --cluster NAME --gpus 4
    Data: FFHQ at 256 px
    Cost: 4.8 M images, 13.0 EFLOP: 36 GPU-hours at a sustained 100 TFLOP/s
    Published: FID 10.18 at 256 px (4.8 M images)
    Measured:
    """
    return _table3("no_fourier")


def table3_main() -> RunConfig:
    """CIPS main: Fourier features and coordinate embeddings, RGB skips, 256 px (Table 3, row main).

    Command: graticule submit cips.table3_main --data DIR --cluster NAME --gpus 4
    Data: FFHQ at 256 px
    Cost: 4.8 M images, 14.3 EFLOP: 40 GPU-hours at a sustained 100 TFLOP/s
    Published: FID 6.31 at 256 px (4.8 M images)
    Measured:
    """
    return _table3("skips")


def table3_residual() -> RunConfig:
    """CIPS with residual pairs of layers, 256 px (Table 3, row residual).

    Command: graticule submit cips.table3_residual --data DIR --cluster NAME --gpus 4
    Data: FFHQ at 256 px
    Cost: 4.8 M images, 14.3 EFLOP: 40 GPU-hours at a sustained 100 TFLOP/s
    Published: FID 6.52 at 256 px (4.8 M images)
    Measured:
    """
    return _table3("residual")


def table3_sine() -> RunConfig:
    """CIPS with sines for activations, embeddings alone, 256 px (Table 3, row sine).

    Command: graticule submit cips.table3_sine --data DIR --cluster NAME --gpus 4
    Data: FFHQ at 256 px
    Cost: 4.8 M images, 13.0 EFLOP: 36 GPU-hours at a sustained 100 TFLOP/s
    Published: FID 10.0 at 256 px (4.8 M images)
    Measured:
    """
    return _table3("sine")


def table5_ffhq_128() -> RunConfig:
    """CIPS main at 256 px on FFHQ, trained on patches of 128 px (Table 5).

    Command: graticule submit cips.table5_ffhq_128 --data DIR --cluster NAME --gpus 8
    Data: FFHQ at 256 px
    Cost: 25.0 M images, 27.0 EFLOP: 75 GPU-hours at a sustained 100 TFLOP/s
    Published: FID 9.08; strides and images seen unverified
    Measured:
    """
    return _table5("ffhq", 128)


def table5_ffhq_64() -> RunConfig:
    """CIPS main at 256 px on FFHQ, trained on patches of 64 px (Table 5).

    Command: graticule submit cips.table5_ffhq_64 --data DIR --cluster NAME --gpus 8
    Data: FFHQ at 256 px
    Cost: 25.0 M images, 10.3 EFLOP: 29 GPU-hours at a sustained 100 TFLOP/s
    Published: FID 11.79; strides and images seen unverified
    Measured:
    """
    return _table5("ffhq", 64)


def table5_churches_128() -> RunConfig:
    """CIPS main at 256 px on churches, trained on patches of 128 px (Table 5).

    Command: graticule submit cips.table5_churches_128 --data DIR --cluster NAME --gpus 8
    Data: LSUN churches (outdoor) at 256 px
    Cost: 25.0 M images, 27.0 EFLOP: 75 GPU-hours at a sustained 100 TFLOP/s
    Published: FID 7.08; strides and images seen unverified
    Measured:
    """
    return _table5("churches", 128)


def table5_churches_64() -> RunConfig:
    """CIPS main at 256 px on churches, trained on patches of 64 px (Table 5).

    Command: graticule submit cips.table5_churches_64 --data DIR --cluster NAME --gpus 8
    Data: LSUN churches (outdoor) at 256 px
    Cost: 25.0 M images, 10.3 EFLOP: 29 GPU-hours at a sustained 100 TFLOP/s
    Published: FID 11.53; strides and images seen unverified
    Measured:
    """
    return _table5("churches", 64)


def ffhq_1024() -> RunConfig:
    """CIPS main at 1024 px from embeddings of 256 px, on a grid of 256, 512, 1024 px in turn.

    Command: graticule submit cips.ffhq_1024 --data DIR --cluster NAME --gpus 8
    Data: FFHQ at 1024 px
    Cost: 4.8 M images, 46.7 EFLOP: 130 GPU-hours at a sustained 100 TFLOP/s
    Published: FID 10.07 at 1024 px (the release's README, which names no recipe: lengths are ours)
    Measured:
    """
    return _run(
        "ffhq_1024",
        CIPSConfig(
            G=CIPSGeneratorConfig(size_px=1024, embedding_px=256),
            D=CIPSDiscriminatorConfig(resolution_px=1024, mbstd_group=4),
            grow_kimg=(3_200, 800),
        ),
        total_kimg=4_800,
    ).replace(precision="bf16")  # four images in a forward keep 120 GiB for backward at 1024 px in float32


def landscapes_panorama() -> RunConfig:
    """CIPS main on a cylinder 256 px high and 768 wide, trained on crops of 256 (Figure 11).

    Command: graticule submit cips.landscapes_panorama --data DIR --cluster NAME --gpus 8
    Data: a folder of landscapes at 256 px; the paper's 60,000 from Flickr are not public
    Cost: 25.0 M images, 74.6 EFLOP: 207 GPU-hours at a sustained 100 TFLOP/s
    Published: pictures only; the cylinder's width and code are ours
    Measured:
    """
    return _run("landscapes_panorama", CIPSConfig(G=CIPSGeneratorConfig(cylinder_px=768)))


def _release(name: str, variant: Variant) -> RunConfig:
    G = CIPSGeneratorConfig(variant=variant, taper=True, lookup="half_pixel")
    return _run(f"release_{name}", CIPSConfig(G=G), total_kimg=3_200)


def release_skips() -> RunConfig:
    """CIPS as released, CIPSskip: the last blocks narrower, embeddings half a pixel off in evaluation, 256 px.

    Command: graticule submit cips.release_skips --data DIR --cluster NAME --gpus 8
    Data: FFHQ at 256 px
    Cost: 3.2 M images, 8.2 EFLOP: 23 GPU-hours at a sustained 100 TFLOP/s
    Published: no number of its own; 3.2 M images are what its author says the released weights saw
    Measured:
    """
    return _release("skips", "skips")


def release_residual() -> RunConfig:
    """CIPS as released, CIPSres: as CIPSskip, with residual pairs and one toRGB, 256 px.

    Command: graticule submit cips.release_residual --data DIR --cluster NAME --gpus 8
    Data: FFHQ at 256 px, or a folder of landscapes
    Cost: 3.2 M images, 8.5 EFLOP: 24 GPU-hours at a sustained 100 TFLOP/s
    Published: no number of its own; the released landscapes weights are of this network
    Measured:
    """
    return _release("residual", "residual")
