"""What the metrics of a protocol are computed from, image by image: features, patches of a pyramid, or power spectra.

An image's rows follow from its pixels and its number alone, so any process may make any block of them (store.py).
Detectors are those of detectors.py, fed as they say. Knows neither where images come from nor what is made of rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from jaxtyping import UInt8
from torch import Tensor

from pipeline.errors import WorkError
from pipeline.metrics.detectors import load_detector
from pipeline.metrics.protocols import Protocol
from pipeline.metrics.sliced import SlicedConfig, patches
from pipeline.metrics.spectra import SpectraConfig, profiles

SEED = 0  # of patches and directions; both sets take patches at the same places

FEATURES, PROFILES, LEVEL = "features", "profiles", "px"  # names in stores; LEVEL is followed by the side of a level


@dataclass(frozen=True, eq=False)
class Extractor:
    """uint8 images and their numbers -> tensors by name, rows in the order of the images.

    `label` goes into names of metrics and folders. `key` holds all that decides the tensors but for rounding: the
    device and the versions of libraries are not in it. Two with equal keys make equal tensors.
    """

    label: str
    key: dict[str, str | int]
    make: Callable[[Tensor, Sequence[int]], dict[str, Tensor]]

    def __call__(
        self,
        img: UInt8[Tensor, "n 3 h w"],
        numbers: Sequence[int],
        called: Callable[[int], str] = lambda number: f"image {number}",
    ) -> dict[str, Tensor]:
        """`numbers`: of the images in their set, from 0; one each. WorkError names the first image with a feature that
        is nan or infinite, by what it is `called`: now, not after hours, and so that no store keeps it."""
        assert len(img) == len(numbers), (len(img), len(numbers))
        made = self.make(img, numbers)
        for name, rows in made.items():
            bad = ~rows.flatten(1).isfinite().all(dim=1)
            if bad.any():
                which = called(int(numbers[int(bad.nonzero()[0])]))
                raise WorkError(
                    f"{which}: {self.label} makes {name} of it that are not finite ({int(bad.sum())} of these "
                    f"{len(bad)} images); look at it, and at the precision that the detector runs in"
                )
        return made


def extractor_of(protocol: Protocol, size_px: int, device: str = "cpu", batch: int = 16) -> Extractor:
    """Load what a protocol needs for images of that side. UserError: no detector, or no levels at that size.

    `batch`: images at a time in the detector; change it with care: it changes features by rounding.
    """
    if protocol.kind == "swd":
        return _patches(sliced_config(protocol), size_px, device)
    if protocol.kind == "spectra":
        return _profiles(spectra_config(protocol), device)
    return _features(protocol.detector, device, batch)


def sliced_config(protocol: Protocol) -> SlicedConfig:
    return SlicedConfig(images=protocol.fake, parity=cast(Literal["tkarras", "mmgeneration"], protocol.variant))


def spectra_config(protocol: Protocol) -> SpectraConfig:
    return SpectraConfig(images=protocol.fake, profile=cast(Literal["ring1", "power", "durall"], protocol.variant))


def _features(name: str, device: str, batch: int) -> Extractor:
    detector = load_detector(name, device=device, batch=batch)

    def make(img: Tensor, numbers: Sequence[int]) -> dict[str, Tensor]:
        return {FEATURES: detector(img)}

    options = detector.options.model_dump_json()
    return Extractor(detector.label, {"of": FEATURES, "sha256": detector.sha256, "options": options}, make)


def _patches(config: SlicedConfig, size_px: int, device: str) -> Extractor:
    config.levels((size_px, size_px))  # refuses what has no such pyramid

    def make(img: Tensor, numbers: Sequence[int]) -> dict[str, Tensor]:
        made = patches(img.to(torch.device(device)), numbers, config, SEED)
        return {f"{LEVEL}{side}": rows for side, rows in made.items()}

    later = {"images", "repeats", "directions"}  # do not change the patches of an image
    return Extractor("swd", {"of": "patches", "seed": SEED, **config.model_dump(exclude=later)}, make)


def _profiles(config: SpectraConfig, device: str) -> Extractor:
    def make(img: Tensor, numbers: Sequence[int]) -> dict[str, Tensor]:
        return {PROFILES: profiles(img.to(torch.device(device)), config)}

    durall = config.profile == "durall"  # the others are two distances of the same profiles
    return Extractor("spectra", {"of": PROFILES, "durall": int(durall)}, make)
