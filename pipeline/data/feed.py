"""Where a run's images come from: one set or a mix in folders, an FFCV copy of one, or a set behind a URL.

`check_sets` and `check_copy` refuse what cannot be read together, `manifest_of` finds out what a set is, `batches`
opens it; the readers themselves are imported when they are wanted. Knows no reader's format.
"""

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pipeline.data.manifest import Manifest, load_manifest
from pipeline.errors import UserError
from pipeline.spec import Batch


@runtime_checkable
class Presentation(Protocol):
    """How the images of a run are presented (DataConfig)."""

    @property
    def mirror(self) -> bool: ...
    @property
    def weights(self) -> tuple[int, ...]: ...
    @property
    def shuffle_block(self) -> int: ...
    @property
    def shuffle_window(self) -> int: ...


def is_url(one: str) -> bool:
    return "://" in one


def check_sets(sets: Sequence[str], config: Presentation, reader: str) -> None:
    """Refuse, in one line, sets and settings that do not go together."""
    weights, several = list(config.weights), len(sets) > 1
    urls = [one for one in sets if is_url(one)]
    if several and len(weights) != len(sets):
        example = [1] * len(sets)
        raise UserError(
            f"data: {len(sets)} sets, and data.weights={weights}; say how many images of each are shown, for example "
            f"--set data.weights='{example}'"
        )
    if not several and weights:
        raise UserError(
            f"data.weights={weights}: there is one set and nothing to mix; leave it out, or give more --data"
        )
    if several and (urls or reader != "tar"):
        seen = f"data={urls[0]!r} is a URL" if urls else f"exec.reader={reader!r}"
        raise UserError(f"{seen}: only prepared folders read with exec.reader=tar can be mixed; give one --data")
    if urls and reader != "tar":
        raise UserError(f"exec.reader={reader!r}: data={urls[0]!r} is a URL and streamed; leave exec.reader out")
    if urls and config.shuffle_block > 1:
        raise UserError(f"data.shuffle_block={config.shuffle_block}: has no effect on a URL; leave it out")


def identity_of(one: str, manifest: Manifest) -> str:
    """What a run remembers of a set. Streamed, it comes in another order: a run on it is another run."""
    return f"streamed:{manifest.dataset_id}" if is_url(one) else manifest.dataset_id


def check_copy(one: str, manifest: Manifest, reader: str) -> None:
    """UserError unless there is a copy of this set for a reader that wants one."""
    if reader == "beton":
        from pipeline.data import beton

        beton.check_copy(Path(one), manifest)


def manifest_of(one: str, *, full: bool = True) -> Manifest:
    """The manifest of a folder or URL; UserError in one line when it is no prepared set. `full`: see load_manifest."""
    if is_url(one):
        from pipeline.data.stream import load_manifest as load_remote_manifest

        return load_remote_manifest(one)
    return load_manifest(Path(one), full=full)


def batches(
    sets: Sequence[str],
    config: Presentation,
    *,
    reader: str,
    seed: int,
    nimg: int,
    batch_size: int,
    slices: Sequence[range],
    rank: int,
    world: int,
    workers: int,
) -> Generator[Batch, None, None]:
    """This rank's microbatches, without end: one for each of `slices`, then of the next global batch.

    What they hold follows from (config, seed, nimg), but for a URL, whose order depends on rank and world.
    """
    check_sets(sets, config, reader)
    place: dict[str, Any] = {"seed": seed, "mirror": config.mirror, "nimg": nimg, "batch_size": batch_size}
    place |= {"slices": slices, "workers": workers}
    if is_url(sets[0]):
        from pipeline.data import stream

        return stream.batches(sets[0], **place, rank=rank, world=world)
    place |= {"shuffle_block": config.shuffle_block, "shuffle_window": config.shuffle_window}
    if reader == "beton":
        from pipeline.data import beton

        return beton.batches(Path(sets[0]), **place)
    from pipeline.data import reader as tar

    return tar.batches([Path(s) for s in sets], **place, weights=config.weights)
