"""Multi-level sliced Wasserstein distance of patches (PGGAN, 1710.10196, section 5; used by MS-PIE, 2012.05217).

Laplacian levels of each picture, random 7x7 patches of each level, every channel of a set to mean 0 and deviation 1,
one-dimensional Wasserstein distances along random directions. Draws are functions of (seed, level, picture number), and
the pyramid is exact in float64, so batches and ranks do not matter. Knows no data set, generator or file of results.
Differs from reference: with one seed both sets take their patches at the same places, so that a set is 0 from itself;
independent places, as there, are those of two seeds.
"""

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32, Float64, UInt8
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from pipeline.chance import rng
from pipeline.config import Config
from pipeline.errors import UserError, WorkError

CPU = torch.device("cpu")
IMAGES_AT_ONCE = 32  # 5 MB in float64: stays in the cache
DIRECTIONS_AT_ONCE = 16  # 2.1 million patches x 16 in float64: 270 MB a set

Patches = Mapping[int, Float32[Tensor, "n p c k k"]]  # by side of the level in px


class SlicedConfig(Config):
    """The protocol; its defaults are those of PGGAN, and of swd16k."""

    images: int = Field(default=16384, ge=1)  # of each set
    patches: int = Field(default=128, ge=1)  # of each picture and level
    patch_px: int = Field(default=7, ge=1)
    least_px: int = Field(default=16, ge=4)  # side of the last level
    repeats: int = Field(default=4, ge=1)
    directions: int = Field(default=128, ge=1)  # of each repeat
    # Parity: mmgeneration filters with zeros (mid grey) around the picture, enlarges by nearest before the filter,
    # divides by N - 1, and keeps the four largest levels. Its samples are not quantised; ours are.
    parity: Literal["tkarras", "mmgeneration"] = "tkarras"

    @model_validator(mode="after")
    def _patches_fit(self) -> "SlicedConfig":
        if self.patch_px > self.least_px:
            raise ValueError(f"patch_px={self.patch_px} must be at most least_px={self.least_px}")
        return self

    def levels(self, size: tuple[int, int]) -> tuple[int, ...]:
        """Sides of the levels in px, largest first; UserError unless h = w = least_px times a power of two."""
        h, w = size
        doublings = math.log2(h / self.least_px) if h == w and h >= self.least_px else 0.5
        if doublings % 1:
            sides = ", ".join(str(self.least_px << i) for i in range(4))
            raise UserError(
                f"swd: pictures of {h}x{w} px; it takes squares of {sides}, ... px (least_px={self.least_px} times a "
                f"power of two); measure at one of these sizes"
            )
        sides = tuple(h >> i for i in range(int(doublings) + 1))
        return sides[:4] if self.parity == "mmgeneration" else sides


def filtered(x: Float64[Tensor, "n c h w"], stride: int, around: Literal["reflect", "constant"]) -> Tensor:
    """Binomial filter (1, 4, 6, 4, 1) / 16 both ways, then every `stride`-th pixel; mirror or zeros at the borders."""
    x = F.pad(x, (2, 2, 2, 2), mode=around)
    for axis in (2, 3):
        a, b, c, d, e = x.unfold(axis, 5, stride).unbind(dim=-1)
        x = (a + e) / 16 + (b + d) / 4 + c * 0.375
    return x


def halved(x: Float64[Tensor, "n c h w"], parity: str = "tkarras") -> Float64[Tensor, "n c h/2 w/2"]:
    return filtered(x, 2, "reflect" if parity == "tkarras" else "constant")


def doubled(x: Float64[Tensor, "n c h w"], parity: str = "tkarras") -> Float64[Tensor, "n c 2*h 2*w"]:
    if parity == "mmgeneration":
        return filtered(x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3), 1, "constant")
    n, c, h, w = x.shape
    spread = x.new_zeros(n, c, 2 * h, 2 * w)
    spread[..., ::2, ::2] = x
    return 4 * filtered(spread, 1, "reflect")


def pyramid(img: UInt8[Tensor, "n c h w"], levels: int, parity: str = "tkarras") -> list[Float64[Tensor, "n c _ _"]]:
    """Laplacian levels in units of uint8, finest first; the last is the remaining small picture itself.

    Sums of dyadic fractions: exact in float64 to five halvings, whatever the order, the batch or the device.
    """
    rest = img.double() if parity == "tkarras" else img.double() - 127.5
    made = []
    for _ in range(levels - 1):
        small = halved(rest, parity)
        made.append(rest - doubled(small, parity))
        rest = small
    return [*made, rest]


def rebuilt(levels: Sequence[Float64[Tensor, "n c _ _"]], parity: str = "tkarras") -> Float64[Tensor, "n c h w"]:
    """The picture of a pyramid."""
    img = levels[-1]
    for level in reversed(levels[:-1]):
        img = level + doubled(img, parity)
    return img if parity == "tkarras" else img + 127.5


def patches(
    img: UInt8[Tensor, "n c h w"], numbers: Sequence[int], config: SlicedConfig, seed: int = 0
) -> dict[int, Float32[Tensor, "n p c k k"]]:
    """Patches of every level, wholly inside it, where (seed, level, number of the picture in its set) puts them."""
    k = config.patch_px
    sides = config.levels((img.shape[2], img.shape[3]))
    which = torch.arange(len(img), device=img.device)[:, None]
    made = {}
    for side, level in zip(sides, pyramid(img, len(sides), config.parity), strict=True):
        draws = [rng(seed, "swd patches", side, i).integers(side - k + 1, size=(2, config.patches)) for i in numbers]
        y, x = torch.from_numpy(np.stack(draws)).to(img.device).unbind(dim=1)
        made[side] = level.float().unfold(2, k, 1).unfold(3, k, 1)[which, :, y, x]
    return made


class PatchSet:
    """The patches of one set, float32, each picture's at its number: 1.23 GB a level for 16384 RGB pictures.

    That is 4.9 GB for 128 px. With a folder they lie in files there, of which only what is read need be in memory.
    """

    def __init__(
        self, side_px: int, config: SlicedConfig, channels: int = 3, folder: Path | None = None, name: str = "swd"
    ):
        self.config, self.side_px = config, side_px
        self.found = np.zeros(config.images, dtype=bool)
        shape = (config.images, config.patches, channels, config.patch_px, config.patch_px)
        self.levels = {
            side: np.empty(shape, np.float32) if folder is None else _mapped(folder / f"{name}-px{side}.f32", shape)
            for side in config.levels((side_px, side_px))
        }

    def add(self, made: Patches, numbers: Sequence[int]) -> None:
        """What `patches` gave for pictures of these numbers, in any order, from any rank; 0 <= number < images."""
        at = np.asarray(numbers, dtype=np.int64)
        if len(at) and not 0 <= at.min() <= at.max() < self.config.images:
            raise ValueError(f"swd: picture numbers {at.min()} to {at.max()}, not in 0 to {self.config.images - 1}")
        given, wanted = ({side: tuple(of.shape[1:]) for side, of in sets.items()} for sets in (made, self.levels))
        if given != wanted or any(len(rows) != len(at) for rows in made.values()):
            raise ValueError(f"swd: patches {given} by level for {len(at)} pictures; this set holds {wanted}")
        for side, level in self.levels.items():
            level[at] = made[side].cpu().numpy()
        self.found[at] = True

    def check_complete(self, which: str) -> None:
        """UserError that names how many pictures there are and how many are wanted."""
        if not self.found.all():
            raise UserError(
                f"swd: {which} holds {self.found.sum()} pictures, the protocol compares {self.config.images} of each "
                f"set; give more, or ask for images={self.found.sum()} (not comparable with swd16k)"
            )


def _mapped(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A new file of zeros, its room on the disk taken at once: a full disk under a mapped file kills the process."""
    size = 4 * math.prod(shape)
    try:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as e:
        path.unlink(missing_ok=True)
        raise WorkError(
            f"{path}: no room for {size / 1e9:.2f} GB of patches ({e.strerror}); choose another folder"
        ) from e
    return np.memmap(path, np.float32, "r+", shape=shape)


def moments(
    levels: Float32[np.ndarray, "n p c k k"], unbiased: bool = False
) -> tuple[Float64[np.ndarray, " c"], Float64[np.ndarray, " c"]]:
    """Mean and standard deviation of each channel over all patches and positions, in float64."""
    shift = levels[0, 0, :, 0, 0].astype(np.float64)  # so that a flat channel has a deviation of exactly 0
    total, squares = np.zeros_like(shift), np.zeros_like(shift)
    for first in range(0, len(levels), IMAGES_AT_ONCE):
        some = levels[first : first + IMAGES_AT_ONCE].astype(np.float64) - shift[:, None, None]
        total += some.sum(axis=(0, 1, 3, 4))
        squares += np.square(some, out=some).sum(axis=(0, 1, 3, 4))
    count = levels.size // len(shift)
    variance = (squares / count - (total / count) ** 2).clip(0) * (count / (count - 1) if unbiased else 1)
    return shift + total / count, np.sqrt(variance)


def unit_directions(config: SlicedConfig, dim: int, seed: int, repeat: int) -> Float64[np.ndarray, "d {dim}"]:
    """Gaussian directions of length 1; the same for every level."""
    drawn = rng(seed, "swd directions", repeat).standard_normal((config.directions, dim))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def projections(
    level: Float32[np.ndarray, "n p c k k"],
    mean: Float64[np.ndarray, " c"],
    deviation: Float64[np.ndarray, " c"],
    directions: Float64[np.ndarray, "d c*k*k"],
    device: torch.device,
) -> Float64[Tensor, "d n*p"]:
    """Normalised patches along each direction, sorted. A channel without any variation is 0."""
    n, p, c, k, _ = level.shape
    weights = directions.reshape(-1, c, k * k) / np.where(deviation > 0, deviation, np.inf)[:, None]
    offset = torch.from_numpy(np.einsum("dcp,c->d", weights, mean)).to(device)[:, None]
    rows = torch.from_numpy(weights.reshape(len(weights), -1)).to(device)
    made = torch.empty(len(rows), n * p, dtype=torch.float64, device=device)
    for first in range(0, n, IMAGES_AT_ONCE):
        some = torch.from_numpy(level[first : first + IMAGES_AT_ONCE]).to(device).double().reshape(-1, c * k * k)
        made[:, first * p : first * p + len(some)] = rows @ some.T - offset
    if device.type != "cpu":
        return made.sort(dim=1).values
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # numpy's sort is twice as fast as torch's, in place
        list(threads.map(np.ndarray.sort, made.numpy()))
    return made


def level_distance(
    real: Float32[np.ndarray, "n p c k k"],
    fake: Float32[np.ndarray, "n p c k k"],
    config: SlicedConfig,
    seed: int = 0,
    device: torch.device = CPU,
) -> float:
    """Mean over repeats and directions of the Wasserstein-1 distance of two sets of patches, not yet times 1000.

    Above the patches themselves: 0.6 GB for two sets of 2.1 million.
    """
    sets = [(level, *moments(level, config.parity == "mmgeneration")) for level in (real, fake)]
    total = 0.0
    for repeat in range(config.repeats):
        directions = unit_directions(config, math.prod(real.shape[2:]), seed, repeat)
        for first in range(0, config.directions, DIRECTIONS_AT_ONCE):
            some = directions[first : first + DIRECTIONS_AT_ONCE]
            a, b = (projections(*each, some, device) for each in sets)
            total += float(a.sub_(b).abs_().mean(dim=1).sum())
    return total / (config.repeats * config.directions)


def sliced(real: PatchSet, fake: PatchSet, seed: int = 0, device: torch.device = CPU) -> dict[int, float]:
    """Distances times 1000 by side of the level in px, largest first. UserError if either set lacks pictures.

    PGGAN prints each and the mean of all; MS-PIE the mean of those of 32 px and above.
    """
    if (real.config, real.side_px) != (fake.config, fake.side_px):
        raise ValueError(
            f"swd: real patches by {real.config} at {real.side_px} px, not {fake.config}, {fake.side_px} px"
        )
    real.check_complete("the real set")
    fake.check_complete("the generated set")
    return {
        side: 1000 * level_distance(level, fake.levels[side], real.config, seed, device)
        for side, level in real.levels.items()
    }
