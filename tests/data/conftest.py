from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataprep.sources.folder import Folder
from dataprep.transform import Transform
from dataprep.writer import prepare


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Callable[[str], Path]:
    """prepared('png' or 'jpg'): ten 12 px noise images of two classes in shards of four."""
    root = tmp_path_factory.mktemp("prepared")
    rng = np.random.default_rng(0)
    for i in range(10):
        file = root / "images" / "ab"[i // 6] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(file)
    for encoding in ("png", "jpg"):
        transform = Transform(size_px=12, encoding=encoding)
        prepare(Folder(root / "images"), root / encoding, transform, shard_size=4)
    return lambda encoding: root / encoding
