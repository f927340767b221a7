"""GeoPos (2401.01951), synthetic tasks: the centre of mass (Fig. 4) and positional bias, as ordinary runs.

Each task with an ordinary convolution, CoordConv and GeoConv. Of the centre of mass the paper gives ratios over a sweep
of layers and filters, which `graticule reproduce geopos.com` repeats; of positional bias, no number. Sizes, networks,
optimizer and length are our choice. The centre of mass has a dense layer over the last map, which knows places by
itself. Positional bias has that map's mean, which knows none: there only coordinates, and what zero padding tells, say
where a letter is. Padding tells much at 32 px: an ordinary convolution is no network without positions.
"""

from typing import Literal

from pipeline.families.supervised import SupervisedConfig
from pipeline.layers.coords import CoordSpec
from pipeline.models.coordnet import CoordNetConfig
from pipeline.plan import DataConfig, RunConfig

Mode = Literal["none", "coord", "geo"]
_CLASSES = {"identity": 24, "relative": 4, "absolute": 9}


def _com(name: str, mode: Mode) -> RunConfig:
    return RunConfig(
        recipe=f"geopos.{name}",
        family=SupervisedConfig(G=CoordNetConfig(layers=3, filters=16, coords=CoordSpec(mode=mode))),
        data=DataConfig(size_px=32, mirror=True),  # the target follows the image
        batch_size=64,
        total_kimg=64,
    )


def _bias(name: str, task: str, mode: Mode) -> RunConfig:
    G = CoordNetConfig(layers=4, filters=24, coords=CoordSpec(mode=mode), pool="mean", outputs=_CLASSES[task])
    return RunConfig(
        recipe=f"geopos.{name}",
        family=SupervisedConfig(task="classify", G=G, lr=2e-3),
        data=DataConfig(size_px=32, mirror=False),  # a mirrored letter is none, and left is not right
        batch_size=64,
        total_kimg=96,
    )


def com_conv() -> RunConfig:
    """Centre of mass of seven densities, an ordinary convolution.

    Command: graticule submit geopos.com_conv --data DIR --validation DIR --cluster NAME
    Data: graticule prep densities --size 32 --split train; held out: validation
    Cost: 0.064 M images, 0.1 TFLOP, minutes on one CPU core
    Published: GeoConv's loss 46% below convolution's and 57% below CoordConv's over the sweep (no absolute number)
    Measured:
    """
    return _com("com_conv", "none")


def com_coord() -> RunConfig:
    """Centre of mass of seven densities, CoordConv.

    Command: graticule submit geopos.com_coord --data DIR --validation DIR --cluster NAME
    Data: graticule prep densities --size 32 --split train; held out: validation
    Cost: 0.064 M images, 0.2 TFLOP, minutes on one CPU core
    Published: GeoConv's loss 46% below convolution's and 57% below CoordConv's over the sweep (no absolute number)
    Measured:
    """
    return _com("com_coord", "coord")


def com_geo() -> RunConfig:
    """Centre of mass of seven densities, GeoConv.

    Command: graticule submit geopos.com_geo --data DIR --validation DIR --cluster NAME
    Data: graticule prep densities --size 32 --split train; held out: validation
    Cost: 0.064 M images, 0.1 TFLOP, minutes on one CPU core
    Published: GeoConv's loss 46% below convolution's and 57% below CoordConv's over the sweep (no absolute number)
    Measured:
    """
    return _com("com_geo", "geo")


def bias_identity_conv() -> RunConfig:
    """Positional bias: which letter, an ordinary convolution.

    Command: graticule submit geopos.bias_identity_conv --data DIR --validation DIR --validation DIR --cluster NAME
    Data: graticule prep glyphs --size 32 --split identity-train; held out: identity-seen, identity-unseen
    Cost: 0.096 M images, 0.4 TFLOP, minutes on one CPU core
    Published: not published as a number
    Measured:
    """
    return _bias("bias_identity_conv", "identity", "none")


def bias_identity_coord() -> RunConfig:
    """Positional bias: which letter, CoordConv.

    Command: graticule submit geopos.bias_identity_coord --data DIR --validation DIR --validation DIR --cluster NAME
    Data: graticule prep glyphs --size 32 --split identity-train; held out: identity-seen, identity-unseen
    Cost: 0.096 M images, 0.5 TFLOP, minutes on one CPU core
    Published: not published as a number
    Measured:
    """
    return _bias("bias_identity_coord", "identity", "coord")


def bias_identity_geo() -> RunConfig:
    """Positional bias: which letter, GeoConv.

    Command: graticule submit geopos.bias_identity_geo --data DIR --validation DIR --validation DIR --cluster NAME
    Data: graticule prep glyphs --size 32 --split identity-train; held out: identity-seen, identity-unseen
    Cost: 0.096 M images, 0.4 TFLOP, minutes on one CPU core
    Published: not published as a number
    Measured:
    """
    return _bias("bias_identity_geo", "identity", "geo")


def bias_relative_conv() -> RunConfig:
    """Positional bias: where one letter lies from another, an ordinary convolution.

    Command: graticule submit geopos.bias_relative_conv --data DIR --validation DIR --validation DIR --cluster NAME
    Data: graticule prep glyphs --size 32 --split relative-train; held out: relative-seen, relative-unseen
    Cost: 0.096 M images, 0.4 TFLOP, minutes on one CPU core
    Published: not published as a number
    Measured:
    """
    return _bias("bias_relative_conv", "relative", "none")


def bias_relative_coord() -> RunConfig:
    """Positional bias: where one letter lies from another, CoordConv.

    Command: graticule submit geopos.bias_relative_coord --data DIR --validation DIR --validation DIR --cluster NAME
    Data: graticule prep glyphs --size 32 --split relative-train; held out: relative-seen, relative-unseen
    Cost: 0.096 M images, 0.5 TFLOP, minutes on one CPU core
    Published: not published as a number
    Measured:
    """
    return _bias("bias_relative_coord", "relative", "coord")


def bias_relative_geo() -> RunConfig:
    """Positional bias: where one letter lies from another, GeoConv.

    Command: graticule submit geopos.bias_relative_geo --data DIR --validation DIR --validation DIR --cluster NAME
    Data: graticule prep glyphs --size 32 --split relative-train; held out: relative-seen, relative-unseen
    Cost: 0.096 M images, 0.4 TFLOP, minutes on one CPU core
    Published: not published as a number
    Measured:
    """
    return _bias("bias_relative_geo", "relative", "geo")


def bias_absolute_conv() -> RunConfig:
    """Positional bias: in which part of the image a letter lies, an ordinary convolution.

    Command: graticule submit geopos.bias_absolute_conv --data DIR --validation DIR --cluster NAME
    Data: graticule prep glyphs --size 32 --split absolute-train; held out: absolute-seen
    Cost: 0.096 M images, 0.4 TFLOP, minutes on one CPU core
    Published: not published as a number
    Measured:
    """
    return _bias("bias_absolute_conv", "absolute", "none")


def bias_absolute_coord() -> RunConfig:
    """Positional bias: in which part of the image a letter lies, CoordConv.

    Command: graticule submit geopos.bias_absolute_coord --data DIR --validation DIR --cluster NAME
    Data: graticule prep glyphs --size 32 --split absolute-train; held out: absolute-seen
    Cost: 0.096 M images, 0.5 TFLOP, minutes on one CPU core
    Published: not published as a number
    Measured:
    """
    return _bias("bias_absolute_coord", "absolute", "coord")


def bias_absolute_geo() -> RunConfig:
    """Positional bias: in which part of the image a letter lies, GeoConv.

    Command: graticule submit geopos.bias_absolute_geo --data DIR --validation DIR --cluster NAME
    Data: graticule prep glyphs --size 32 --split absolute-train; held out: absolute-seen
    Cost: 0.096 M images, 0.4 TFLOP, minutes on one CPU core
    Published: not published as a number
    Measured:
    """
    return _bias("bias_absolute_geo", "absolute", "geo")
