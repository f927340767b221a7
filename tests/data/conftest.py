import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataprep.sources.folder import Folder
from dataprep.transform import Transform
from dataprep.writer import prepare
from pipeline.data import remote
from tests.data.server import Server


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Callable[[str], Path]:
    """prepared('png', 'jpg', 'webp' or 'raw'): ten 12 px noise images of two classes in shards of four."""
    root = tmp_path_factory.mktemp("prepared")
    rng = np.random.default_rng(0)
    for i in range(10):
        file = root / "images" / "ab"[i // 6] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(file)
    for encoding in ("png", "jpg", "webp", "raw"):
        transform = Transform(size_px=12, encoding=encoding)
        prepare(Folder(root / "images"), root / encoding, transform, shard_size=4)
    return lambda encoding: root / encoding


@pytest.fixture
def copy(prepared, tmp_path) -> Callable[[str], Path]:
    """copy('png'): a prepared set that may be damaged."""

    def make(encoding: str) -> Path:
        return Path(shutil.copytree(prepared(encoding), tmp_path / encoding))

    return make


@pytest.fixture
def served(tmp_path, monkeypatch) -> Iterator[Callable[[Path], Server]]:
    """served(folder): an HTTP server of a copy of it; those who stream from it lose no time when it fails."""
    monkeypatch.setattr(remote, "PAUSES_SEC", (0.01,) * 4)
    with contextlib.ExitStack() as stack:
        yield lambda root: stack.enter_context(contextlib.closing(Server(shutil.copytree(root, tmp_path / "set"))))
