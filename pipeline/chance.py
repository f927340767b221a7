"""Randomness as a function: names and numbers in, draws out, no state kept anywhere.

Every draw is keyed by (seed, what it is for, which sample), so a resumed run, another world size or another
microbatch size sees the same numbers. Knows nothing of what the numbers are used for.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def key(*parts: int | str) -> int:
    """128 bits that depend on every part."""
    text = "\x1f".join(f"{type(p).__name__}:{p}" for p in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def rng(*parts: int | str) -> np.random.Generator:
    """A counter-based generator for this key alone."""
    return np.random.Generator(np.random.Philox(key=key(*parts)))


@dataclass(frozen=True)
class Chance:
    """The draws open to one microbatch: sample i of it is image `ids[i]` of the run (nimg + position)."""

    seed: int
    scope: str  # phase name: D and G draw different latents
    nimg: int  # images consumed before this iteration: equal on all ranks
    ids: tuple[int, ...]  # global image numbers of this microbatch
    device: torch.device

    def normal(self, name: str, dim: int) -> Float[Tensor, "n {dim}"]:
        """N(0, 1), one independent row a sample."""
        rows = [rng(self.seed, self.scope, name, i).standard_normal(dim, dtype=np.float32) for i in self.ids]
        return torch.from_numpy(np.stack(rows)).to(self.device)

    def seeds(self, name: str) -> tuple[int, ...]:
        """One 63-bit seed a sample, for draws that are made on the device."""
        return tuple(key(self.seed, self.scope, name, i) >> 65 for i in self.ids)

    def maps(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """N(0, 1) of [n, *shape], drawn on the device from one seed a sample."""
        generator = torch.Generator(self.device)
        rows = [torch.randn(shape, generator=generator.manual_seed(s), device=self.device) for s in self.seeds(name)]
        return torch.stack(rows)

    def of(self, picked: Sequence[int]) -> "Chance":
        """The draws of some samples of this microbatch, by position in it."""
        return replace(self, ids=tuple(self.ids[i] for i in picked))

    def shared(self, name: str) -> np.random.Generator:
        """A generator that is the same for the whole global batch of this iteration."""
        return rng(self.seed, self.scope, name, self.nimg)
