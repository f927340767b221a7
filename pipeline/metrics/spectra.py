"""How far apart the azimuthal power spectra of two sets of pictures are (CIPS, 2011.13775, Figure 7, as a number).

Ring r holds the frequencies that are r cycles a side away from zero, r = 0 ... N/2 for N px; its power is that of
pipeline.synthesis.spectra, which draws the same curves: |F|^2 of the grey picture in [-1, 1] over its number of pixels.
The paper draws curves and defines no distance; this one is ours. Knows no data set and no generator.
"""

from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Float64, Int64, UInt8
from pydantic import Field
from torch import Tensor

from pipeline.config import Config
from pipeline.errors import UserError

GREY = (0.299, 0.587, 0.114)
LEAST = 1e-12  # power that counts as none: -120 dB
FLAT = 1e-6  # a range of 20 ln|F| that counts as none: rounding alone gives 1e-13


class SpectraConfig(Config):
    """5000 pictures of each set, as in the paper."""

    images: int = Field(default=5000, ge=1)
    # "ring1": the power of each ring over that of ring 1, so that contrast does not count; "power": as it is.
    # Parity: "durall" (2003.01826, whom the paper cites) takes means of 20 ln|F| over whole radii about the middle of
    # the picture, half a pixel beside zero frequency, leaves out the first and the last, and brings each picture's to
    # 0 ... 1.
    profile: Literal["ring1", "power", "durall"] = "ring1"


def grey(img: UInt8[Tensor, "n 3 h w"]) -> Float64[Tensor, "n h w"]:
    """Luma in [-1, 1]."""
    weights = torch.tensor(GREY, dtype=torch.float64, device=img.device)
    return torch.einsum("nchw,c->nhw", img.double() / 127.5 - 1, weights)


@lru_cache(maxsize=8)
def _by_radius(h: int, w: int, durall: bool) -> tuple[Int64[Tensor, " hw"], list[int]]:
    """Frequencies of a transform by rising ring, and how many lie in each."""
    if durall:
        y, x = (torch.fft.ifftshift(torch.arange(n, dtype=torch.float64) - (n - 1) / 2) for n in (h, w))
        ring = torch.hypot(y[:, None], x[None, :]).long()
    else:
        y, x = (torch.fft.fftfreq(n, dtype=torch.float64) * min(h, w) for n in (h, w))
        ring = torch.hypot(y[:, None], x[None, :]).round().long()
    return ring.flatten().argsort(stable=True), ring.flatten().bincount().tolist()


def ring_means(maps: Float64[Tensor, "n h w"], durall: bool = False) -> Float64[Tensor, "n r"]:
    """Means over each ring of a map that has the zero frequency at [0, 0]; a ring without frequencies is 0."""
    order, counts = _by_radius(maps.shape[1], maps.shape[2], durall)
    parts = maps.flatten(1)[:, order.to(maps.device)].split(counts, dim=1)
    return torch.stack([part.sum(dim=1) / max(part.shape[1], 1) for part in parts], dim=1)


def ring_power(images: Float64[Tensor, "n h w"]) -> Float64[Tensor, "n r"]:
    """Of rings 0 to N/2, N the shorter side, without the corners beyond; white noise has its variance everywhere."""
    h, w = images.shape[1:]
    return ring_means(torch.fft.fft2(images).abs().square() / (h * w))[:, : min(h, w) // 2 + 1]


def durall_profile(images: Float64[Tensor, "n h w"]) -> Float64[Tensor, "n r"]:
    """0 ... 1, from the second to the last radius but one; of a picture without differences, 0."""
    decibels = 20 * torch.fft.fft2(images).abs().clamp(min=1e-8).log()
    rows = ring_means(decibels, durall=True)[:, 1:-1]
    low, high = rows.amin(dim=1, keepdim=True), rows.amax(dim=1, keepdim=True)
    return (rows - low) / (high - low).clamp(min=FLAT)


def profiles(img: UInt8[Tensor, "n 3 h w"], config: SpectraConfig) -> Float64[Tensor, "n r"]:
    """One row a picture, for `spectra_distance`; rows do not depend on the batch."""
    return durall_profile(grey(img)) if config.profile == "durall" else ring_power(grey(img))


def spectra_distance(real: Float64[Tensor, "n r"], fake: Float64[Tensor, "m r"], config: SpectraConfig) -> float:
    """Root mean square, over rings 1 to N/2, of the difference in dB of the sets' mean powers, each over its ring 1.

    Of the first `images` rows of each; UserError if there are fewer. With "power" not over ring 1; with "durall" of the
    mean profiles themselves, in parts of 1.
    """
    means = []
    for which, rows in (("the real set", real), ("the generated set", fake)):
        if len(rows) < config.images:
            raise UserError(
                f"spectra: {which} holds {len(rows)} pictures, the protocol compares {config.images} of each set; give "
                f"more, or ask for images={len(rows)}"
            )
        means.append(rows[: config.images].mean(dim=0))
    if config.profile != "durall":
        means = [10 * mean[1:].clamp(min=LEAST).log10() for mean in means]
    if config.profile == "ring1":
        means = [mean - mean[0] for mean in means]
    return float((means[0] - means[1]).square().mean().sqrt())
