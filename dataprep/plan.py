"""What one run of `prep` makes: the entries of a source, cut into shards, for one folder or several.

Shard i holds entries [i*S, (i+1)*S) in every folder. Jobs are built when they are wanted: those of millions of
entries at once would be a second copy of the list. Reads no image and writes nothing.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import features

from dataprep.shard import Job, OnError, Target
from dataprep.sources.entry import Entries, Source, planes_of
from dataprep.transform import Transform
from pipeline.errors import UserError

OWN = {"size_px", "filter", "encoding", "quality"}  # what sizes made in one pass need not share
CODECS = ("libjpeg_turbo", "littlecms2", "webp", "zlib", "zlib_ng")  # inside Pillow, versioned apart


@dataclass(frozen=True)
class Plan:
    """The shards of one source in each target."""

    source: Source
    split: str
    entries: Entries
    targets: tuple[Target, ...]
    shard_size: int
    on_error: OnError

    @property
    def shards(self) -> int:
        return -(-len(self.entries) // self.shard_size)

    def count(self, numbers: Iterable[int]) -> int:
        """Entries of some shards."""
        sizes = (min(self.shard_size, len(self.entries) - n * self.shard_size) for n in numbers)
        return sum(sizes)

    def job(self, number: int, targets: Iterable[Target]) -> Job:
        first = number * self.shard_size
        entries = self.entries[first : first + self.shard_size]
        return Job(number, first, entries, self.source, self.source.classes, tuple(targets), self.on_error)


def make_plan(
    source: Source,
    transforms: Mapping[Path, Transform],
    *,
    split: str | None = None,
    shard_size: int = 1000,
    on_error: OnError = "stop",
) -> Plan:
    """List the source. UserError where the words make no sense or do not go together."""
    if shard_size < 1:
        raise UserError(f"shard_size={shard_size}: must be 1 or more")
    if on_error not in ("stop", "skip"):
        raise UserError(f"on_error={on_error!r}: must be 'stop' or 'skip'")
    _check_together(transforms)
    listed = None
    targets = []
    for out, transform in transforms.items():
        transform = transform.of_planes(planes_of(source))
        entries = source.entries(transform.size_px)
        digest = entries.digest()
        listed = listed or (entries, digest)
        if digest != listed[1]:
            sizes = ", ".join(str(t.size_px) for t in transforms.values())
            raise UserError(
                f"size={sizes}: source {source.name!r} offers other images at another size; give one --size at a time"
            )
        words = [source.name, split or "", source.classes, shard_size, transform.named()]
        plan = hashlib.sha256(json.dumps(words).encode() + digest).hexdigest()
        targets.append(Target(out, transform, plan, _versions()))
    assert listed is not None
    if not len(listed[0]):
        raise UserError(f"PATH: source {source.name!r} finds no images there; give a folder that holds some")
    return Plan(source, split or "", listed[0], tuple(targets), shard_size, on_error)


def _check_together(transforms: Mapping[Path, Transform]) -> None:
    if not transforms:
        raise UserError("out: no folder to make; give one for each size")
    if len({out.resolve() for out in transforms}) < len(transforms):
        raise UserError(f"out={', '.join(map(str, transforms))}: one folder twice; give each size its own")
    first, *others = transforms.values()
    for field in sorted(set(Transform.model_fields) - OWN):
        if any(getattr(t, field) != getattr(first, field) for t in others):
            raise UserError(f"{field}: sizes made in one pass share it; prepare them one after the other")


def _versions() -> dict[str, str]:
    """Of all that has a hand in pixels and bytes."""
    packages = {name: importlib.metadata.version(name) for name in ("pillow", "numpy")}
    return {**packages, **{name: str(features.version(name) or "none") for name in CODECS}}
