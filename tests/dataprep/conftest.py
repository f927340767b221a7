import functools
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.dataprep.outcomes import Outcome, outcome


@pytest.fixture(scope="session")
def real_images() -> Path:
    """Real photographs and damaged files, too large for the repository."""
    default = Path(__file__).parents[2].parent / "shared" / "data" / "real_images"
    root = Path(os.environ.get("GRATICULE_REAL_IMAGES", default))
    if not (root / "originals").is_dir():
        pytest.skip("no real images: set GRATICULE_REAL_IMAGES to a folder with originals/")
    return root


@pytest.fixture
def images(tmp_path: Path) -> Callable[..., Path]:
    """images('a.png', 'b/c.jpg', size=24): a folder of noise pictures, each name with its own."""

    def make(*names: str, size: int | tuple[int, int] = 24) -> Path:
        root = tmp_path / "images"
        for name in names:
            width, height = (size, size) if isinstance(size, int) else size
            noise = np.random.default_rng(list(name.encode())).integers(0, 256, (height, width, 3), dtype=np.uint8)
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise).save(root / name)
        return root

    return make


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """All files of a folder, by name."""
    return lambda root: {p.name: p.read_bytes() for p in sorted(root.iterdir())}


@pytest.fixture
def take(tmp_path: Path) -> Callable[..., Outcome]:
    """take(path, source="folder", size=8, split=None, ...): prepared, verified, accounted for."""
    return functools.partial(outcome, tmp_path)
