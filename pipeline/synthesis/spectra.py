"""Which spatial frequencies pictures hold: magnitude spectra and their azimuthal mean (CIPS, 2011.13775, Figure 7).

|F|^2 of the grey picture in [-1, 1] over its number of pixels, so that white noise has its variance everywhere.
Differs from reference (Durall et al., 2003.01826): rings lie around the zero frequency itself, power is averaged and
not decibels, and no picture is normalised by itself. Knows no generator and no data set.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from pipeline.synthesis.pictures import enlarged

GREY = (0.299, 0.587, 0.114)
LEAST = 1e-12  # power that counts as none: -120 dB


@dataclass(frozen=True)
class Spectrum:
    """Means over so many pictures, in float64."""

    count: int
    magnitude_db: Float[np.ndarray, "h w"]  # mean of 20 log10 |F|, zero frequency at [h // 2, w // 2]
    power: Float[np.ndarray, " r"]  # of the ring that is r cycles a side away from it

    def profile_db(self) -> Float[np.ndarray, " r"]:
        return 10 * np.log10(self.power.clip(LEAST))


def power(images: Float[np.ndarray, "n h w"]) -> Float[np.ndarray, "n h w"]:
    """|F|^2 over the number of pixels, zero frequency in the middle."""
    h, w = images.shape[1:]
    return np.fft.fftshift(np.abs(np.fft.fft2(images)) ** 2, axes=(1, 2)) / (h * w)


def rings(size: tuple[int, int]) -> np.ndarray:
    """Of each frequency, its whole distance from zero in cycles along the shorter side."""
    y, x = (np.fft.fftshift(np.fft.fftfreq(n)) * min(size) for n in size)
    return np.rint(np.hypot(y[:, None], x[None, :])).astype(np.int64)


def azimuthal(power: Float[np.ndarray, "h w"]) -> Float[np.ndarray, " r"]:
    """The mean over each ring, from the zero frequency to the corner; a ring without frequencies is 0."""
    ring = rings(power.shape).ravel()
    counts = np.bincount(ring)
    return np.bincount(ring, power.ravel()) / counts.clip(1)


def spectrum(batches: Iterable[UInt8[np.ndarray, "_ h w 3"]]) -> Spectrum:
    """Of all pictures together, which have one size."""
    count, total, decibels = 0, np.zeros(()), np.zeros(())
    for images in batches:
        found = power((images / 127.5 - 1) @ np.array(GREY))
        count += len(images)
        total = total + found.sum(axis=0)
        decibels = decibels + (10 * np.log10(found.clip(LEAST))).sum(axis=0)
    return Spectrum(count, decibels / count, azimuthal(total / count))


def as_picture(
    maps: Mapping[str, Float[np.ndarray, "h w"]], side_px: int = 192
) -> dict[str, UInt8[np.ndarray, "H W 3"]]:
    """Grey pictures of maps on one scale, from the least to the largest value of all, enlarged to about this side."""
    low, high = min(float(m.min()) for m in maps.values()), max(float(m.max()) for m in maps.values())
    high = high if high > low else low + 1
    made = {}
    for name, m in maps.items():
        zoom = max(1, side_px // max(m.shape))
        grey = ((m - low) / (high - low) * 255).round().astype(np.uint8)
        made[name] = enlarged(grey[..., None].repeat(3, axis=2), zoom)
    return made
