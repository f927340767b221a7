"""From two filled stores to the numbers of a protocol, with what there is to say about them.

Features are read block by block for FID, level by level for SWD, and at once where all pairs of images count. Knows
nothing of how stores were filled; `name` tells the tensors of one extractor from those of others in the same store.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.metrics.extract import FEATURES, LEVEL, PROFILES, SEED, sliced_config, spectra_config
from pipeline.metrics.frechet import fid
from pipeline.metrics.kernel import kid_of_subsets
from pipeline.metrics.manifold import density_coverage, precision_recall
from pipeline.metrics.moments import moments
from pipeline.metrics.protocols import KID_SUBSET, KID_SUBSETS, Protocol
from pipeline.metrics.sliced import level_distance
from pipeline.metrics.spectra import spectra_distance
from pipeline.metrics.store import Store

AVERAGE_PX = 32  # MS-PIE averages levels of that side and above


@dataclass(frozen=True)
class Measured:
    """Values by what is appended to the metric's name: {"": 5.6}, or {"/precision": 0.7, "/recall": 0.5}."""

    values: dict[str, float]
    notes: tuple[str, ...] = ()


def compute(protocol: Protocol, real: Store, n_real: int, fake: Store, name: str = "", device: str = "cpu") -> Measured:
    """The values of a protocol from the first n_real rows of one store and the first `protocol.fake` of the other.

    `name` stands before the tensors' names in the fakes' store. UserError: too few images. WorkError: a feature that
    is nan or infinite, with the image's number.
    """
    least = max(protocol.least, protocol.fake if protocol.kind in ("swd", "spectra") else 0)
    for whose, there, wanted in (("real", n_real, least), ("fake", fake.count, protocol.fake)):
        if there < wanted:
            raise UserError(f"{protocol.name} needs {wanted:,} {whose} images, there are {there:,}; give it more")
    where = torch.device(device)
    if protocol.kind == "swd":
        return _swd(protocol, real, fake, name, where)
    if protocol.kind == "spectra":
        reals, fakes = real.rows(PROFILES, protocol.fake), fake.rows(name + PROFILES, protocol.fake)
        return Measured({"": spectra_distance(reals, fakes, spectra_config(protocol))})
    if protocol.kind == "fid":
        pairs = (("real", real, FEATURES, n_real), ("fake", fake, name + FEATURES, protocol.fake))
        of_real, of_fake = (moments((x.to(where) for x in of.batches(key, n)), whose) for whose, of, key, n in pairs)
        found = fid(of_real, of_fake, protocol.variant)  # pyright: ignore[reportArgumentType]
        return Measured({"": found.distance}, found.notes)
    return _of_pairs(
        protocol, real.rows(FEATURES, n_real).to(where), fake.rows(name + FEATURES, protocol.fake).to(where)
    )


def _of_pairs(protocol: Protocol, real: Tensor, fake: Tensor) -> Measured:
    if protocol.kind == "kid":
        found = kid_of_subsets(real, fake, SEED, KID_SUBSETS, KID_SUBSET)
        notes = [f"deviation over {KID_SUBSETS} subsets: {found.std:.3g}"]
        if (n := min(len(real), len(fake))) < KID_SUBSET:
            notes.append(f"subsets of {n} images, not {KID_SUBSET}: there are no more")
        return Measured({"": found.mean}, tuple(notes))
    if protocol.kind == "pr":
        pr = precision_recall(real, fake, protocol.k, protocol.variant)  # pyright: ignore[reportArgumentType]
        return Measured({"/precision": pr.precision, "/recall": pr.recall})
    dc = density_coverage(real, fake, protocol.k)
    return Measured({"/density": dc.density, "/coverage": dc.coverage})


def _swd(protocol: Protocol, real: Store, fake: Store, name: str, device: torch.device) -> Measured:
    """Level by level: 2 x 1.23 GB for 16384 images of each set."""
    config = sliced_config(protocol)
    sides = sorted((int(key.removeprefix(LEVEL)) for key in real.read(real.blocks(1)[0])), reverse=True)
    by_side = {}
    for side in sides:
        level = f"{LEVEL}{side}"
        reals, fakes = (of.rows(key, protocol.fake).numpy() for of, key in ((real, level), (fake, name + level)))
        by_side[side] = 1000 * level_distance(reals, fakes, config, SEED, device)
    values = {"": _mean(list(by_side.values()))} | {f"/{side}": value for side, value in by_side.items()}
    large = [value for side, value in by_side.items() if side >= AVERAGE_PX]
    return Measured(values | ({f"/avg{AVERAGE_PX}": _mean(large)} if large else {}))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
