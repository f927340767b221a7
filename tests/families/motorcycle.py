"""Real pairs of photograph and depth without a download: crops of the motorcycle that comes with scikit-image.

One scene of Middlebury 2014 (Scharstein et al.), the left picture and its measured disparities; depth = baseline *
focal length / (disparity + offset), by the published calibration for this size. `train`: crops of the left two thirds;
`between`: others of the same part, halfway between those; `unseen`: crops of the right third, which share no pixel with
the others. `python -m tests.families.motorcycle OUT` writes them.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

FOCAL_PX, BASELINE_MM, OFFSET_PX = 994.978, 193.001, 31.086
WIDTH, HEIGHT, BORDER = 741, 500, 494  # of the picture; the first column of `unseen`


def scene() -> tuple[np.ndarray, np.ndarray]:
    """uint8 [500, 741, 3], and uint16 [500, 741] millimetres, 0 where none were measured."""
    spec = find_spec("skimage")
    assert spec is not None
    assert spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0], "data")
    with np.load(folder / "motorcycle_disp.npz") as stored:
        disparity = stored["arr_0"].astype(np.float64)
    there = np.isfinite(disparity) & (disparity > 0)
    mm = BASELINE_MM * FOCAL_PX / (np.where(there, disparity, 1.0) + OFFSET_PX)
    with Image.open(folder / "motorcycle_left.png") as photograph:
        return np.asarray(photograph.convert("RGB")), np.where(there, np.rint(mm), 0).astype(np.uint16)


def write_pairs(root: Path, side: int = 160, stride: int = 20) -> dict[str, Path]:
    """Folders with rgb/ and depth/ below `root`, by name."""
    rgb, mm = scene()
    half, few = stride // 2, 60  # pixels from one crop to the next where they are not trained on
    parts = {"train": (0, 0, BORDER, stride), "between": (half, half, BORDER, few), "unseen": (0, BORDER, WIDTH, few)}
    for name, (top, first, end, step) in parts.items():
        for kind in ("rgb", "depth"):
            (root / name / kind).mkdir(parents=True)
        for y in range(top, HEIGHT - side + 1, step):
            for x in range(first, end - side + 1, step):
                for kind, pixels in (("rgb", rgb), ("depth", mm)):
                    crop = np.ascontiguousarray(pixels[y : y + side, x : x + side])
                    Image.fromarray(crop).save(root / name / kind / f"{y:03d}-{x:03d}.png", compress_level=1)
    return {name: root / name for name in parts}


if __name__ == "__main__":
    write_pairs(Path(sys.argv[1]))
