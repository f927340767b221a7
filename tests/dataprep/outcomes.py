"""What becomes of a native set: through its source, `prepare` with on_error="skip", and verify; none may be lost."""

import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from dataprep.sources import open_source
from dataprep.transform import Transform
from dataprep.verify import verify
from dataprep.writer import prepare
from pipeline.data.manifest import Manifest
from pipeline.data.reader import ShardReader
from pipeline.errors import UserError
from tests.stress.natives import encoded, picture

TAKEN = "taken"


@dataclass
class Outcome:
    """Every entry by its name."""

    manifest: Manifest
    of: dict[str, str]  # TAKEN, or the reason of the rejection
    images: dict[str, np.ndarray]  # of those taken, [h, w, 3]
    about: dict[str, dict]  # their .json
    notes: tuple[str, ...]


def outcome(
    temp: Path, path: Path, source: str = "folder", size: int = 8, split: str | None = None, **words
) -> Outcome:
    """Writes to temp/set0, set1, ...; `words` go to the Transform."""
    origin, out = open_source(source, path, split), temp / f"set{len(list(temp.glob('set*')))}"
    transform = Transform(size_px=size, **{"crop": origin.crop, **words})
    manifest = prepare(origin, out, transform, split=split, on_error="skip", shard_size=7)
    assert verify(out) == []
    about, reader = [], ShardReader(out)
    for shard in manifest.shards:
        with tarfile.open(out / shard.name) as tar:
            about += [json.load(tar.extractfile(m)) for m in tar if m.name.endswith(".json")]  # type: ignore[arg-type]
    of = {a["name"]: TAKEN for a in about}
    if manifest.rejected:
        rows = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
        of |= {r["name"]: r["reason"] for r in rows}
    names = [e.name for e in origin.entries(size)]
    assert sorted(of) == sorted(names)
    assert manifest.count_in == len(names) == manifest.count + sum(manifest.rejected.values())
    images = {a["name"]: np.asarray(reader.read(i)[0]).transpose(1, 2, 0) for i, a in enumerate(about)}
    return Outcome(manifest, of, images, {a["name"]: a for a in about}, tuple(origin.notes))


def lay(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def png(i: int = 0, **words) -> bytes:
    return encoded(picture(i, **words), "PNG")


def jpg(i: int = 0, **words) -> bytes:
    return encoded(picture(i), "JPEG", **words)


def refused(call: Callable[[], object]) -> str:
    """The one line of a UserError."""
    with pytest.raises(UserError) as e:
        call()
    assert len(str(e.value).splitlines()) == 1
    return str(e.value)
