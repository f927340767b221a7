"""Crossing over, which no paper did: GeoPos' channels (2401.01951, Fig. 3) in the generators of MS-PIE (2012.05217).

Each is a row of MS-PIE's tables with one more input channel (CoordConv: two) in every 3x3 convolution of G; D and all
else are that row's, so that its published numbers are those to compare with. What GeoPos leaves open (how shifts are
drawn, evaluation without one) is at the defaults of family.G.coords. Knows nothing of how rows are compared.
"""

from pipeline.layers.coords import CoordSpec
from pipeline.plan import RunConfig
from pipeline.recipes.mspie.pggan import pggan_celeba_b
from pipeline.recipes.mspie.stylegan2 import table5_f


def _with_coords(name: str, row: RunConfig, coords: CoordSpec) -> RunConfig:
    G = row.family.G.replace(coords=coords)  # pyright: ignore[reportAttributeAccessIssue]
    return row.replace(recipe=f"geopos.{name}", family=row.family.replace(G=G))


def stylegan2_geo() -> RunConfig:
    """MS-PIE StyleGAN2 as mspie.table5_f, with GeoConv in G: 256, 384 and 512 px.

    Command: graticule submit geopos.stylegan2_geo --data DIR --cluster NAME --gpus 8
    Data: FFHQ at 512 px
    Cost: 26.4 M images, 64.6 EFLOP: 180 GPU-hours at a sustained 100 TFLOP/s
    Published: not published
    Measured:
    """
    return _with_coords("stylegan2_geo", table5_f(), CoordSpec(mode="geo"))


def stylegan2_coord() -> RunConfig:
    """MS-PIE StyleGAN2 as mspie.table5_f, with CoordConv in G: 256, 384 and 512 px.

    Command: graticule submit geopos.stylegan2_coord --data DIR --cluster NAME --gpus 8
    Data: FFHQ at 512 px
    Cost: 26.4 M images, 64.7 EFLOP: 180 GPU-hours at a sustained 100 TFLOP/s
    Published: not published
    Measured:
    """
    return _with_coords("stylegan2_coord", table5_f(), CoordSpec(mode="coord"))


def pggan_geo() -> RunConfig:
    """PGGAN on CelebA as mspie.pggan_celeba_b (no padding, no code), 128 px, with GeoConv in G.

    Command: graticule submit geopos.pggan_geo --data DIR --cluster NAME --gpus 8
    Data: CelebA, the original's 128 px window (graticule prep celeba)
    Cost: 12.0 M images, 6.0 EFLOP: 17 GPU-hours at a sustained 100 TFLOP/s
    Published: not published
    Measured:
    """
    return _with_coords("pggan_geo", pggan_celeba_b(), CoordSpec(mode="geo"))
