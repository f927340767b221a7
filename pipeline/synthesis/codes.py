"""What the two codes of a per-pixel generator say: spectra and principal components (CIPS, 2011.13775, Figs. 4, 5, 14).

Fourier features are smooth by design; coordinate embeddings are free and learn the fine detail that many pictures
share, which shows in the high frequencies of their spectrum and in the outlines of their components.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from pipeline.synthesis.pixels import per_pixel
from pipeline.synthesis.spectra import LEAST, power


@dataclass(frozen=True)
class Components:
    """The first principal components of a field of vectors, by falling variance."""

    maps: Float[np.ndarray, "k h w"]  # projections of the centred vectors; the largest in size is positive
    explained: Float[np.ndarray, " k"]  # their parts of the whole variance

    def rgb(self) -> UInt8[np.ndarray, "h w 3"]:
        """The first three as red, green and blue, each from its least to its largest value."""
        picture = np.zeros((*self.maps.shape[1:], 3), np.uint8)
        for i, m in enumerate(self.maps[:3]):
            picture[..., i] = ((m - m.min()) / max(np.ptp(m), LEAST) * 255).round()
        return picture


@torch.no_grad()
def codes(G: Any, size: tuple[int, int] | None = None) -> dict[str, Float[np.ndarray, "h w _"]]:
    """The codes by name, as this grid reads them, in float64; a generator may have one of them alone."""
    size = size or per_pixel(G).native_size
    per_pixel(G).check_size(size)
    found = zip(("fourier", "embedding"), G.codes(size), strict=True)
    return {name: code.double().unflatten(0, size).cpu().numpy() for name, code in found if code.shape[1]}


def magnitude_db(code: Float[np.ndarray, "h w d"]) -> Float[np.ndarray, "h w"]:
    """20 log10 of the root mean square magnitude over the channels; zero frequency at [h // 2, w // 2]."""
    total = np.zeros(code.shape[:2])
    for channel in np.moveaxis(code, 2, 0):  # one at a time: a full size would take gigabytes
        total += power(channel[None])[0]
    return 10 * np.log10((total / code.shape[2]).clip(LEAST))


def components(code: Float[np.ndarray, "h w d"], k: int = 3) -> Components:
    """Principal components over all pixels, at most as many as there are channels."""
    h, w, d = code.shape
    centred = code.reshape(h * w, d) - code.mean(axis=(0, 1))
    variances, vectors = np.linalg.eigh(centred.T @ centred / (h * w))
    variances, vectors = variances[::-1].clip(0), vectors[:, ::-1][:, :k]
    maps = (centred @ vectors).T
    largest = np.take_along_axis(maps, np.abs(maps).argmax(axis=1)[:, None], axis=1)
    maps = maps * np.where(largest < 0, -1.0, 1.0)
    return Components(maps.reshape(-1, h, w), variances[:k] / max(float(variances.sum()), LEAST))
