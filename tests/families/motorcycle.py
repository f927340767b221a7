"""Real pairs of photograph and depth without a download: crops of the motorcycle that comes with scikit-image.

One scene of Middlebury 2014 (Scharstein et al.), the left picture and its measured disparities; depth = baseline *
focal length / (disparity + offset), by the published calibration for this size. Training crops lie in the left two
thirds, held-out ones in the right third, and share no pixel: `python -m tests.families.motorcycle OUT`.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

FOCAL_PX, BASELINE_MM, OFFSET_PX = 994.978, 193.001, 31.086
WIDTH, HEIGHT, BORDER = 741, 500, 494  # of the picture; the first column that is held out


def scene() -> tuple[np.ndarray, np.ndarray]:
    """uint8 [500, 741, 3], and uint16 [500, 741] millimetres, 0 where none were measured."""
    spec = find_spec("skimage")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0], "data")
    with np.load(folder / "motorcycle_disp.npz") as stored:
        disparity = stored["arr_0"].astype(np.float64)
    there = np.isfinite(disparity) & (disparity > 0)
    mm = BASELINE_MM * FOCAL_PX / (np.where(there, disparity, 1.0) + OFFSET_PX)
    with Image.open(folder / "motorcycle_left.png") as photograph:
        return np.asarray(photograph.convert("RGB")), np.where(there, np.rint(mm), 0).astype(np.uint16)


def write_pairs(root: Path, side: int = 160, stride: int = 20, held_out_stride: int = 60) -> tuple[Path, Path]:
    """Folders with rgb/ and depth/ below `root`: train and held_out."""
    rgb, mm = scene()
    parts = {"train": (0, BORDER, stride), "held_out": (BORDER, WIDTH, held_out_stride)}
    for name, (first, end, step) in parts.items():
        for kind in ("rgb", "depth"):
            (root / name / kind).mkdir(parents=True)
        for y in range(0, HEIGHT - side + 1, step):
            for x in range(first, end - side + 1, step):
                for kind, pixels in (("rgb", rgb), ("depth", mm)):
                    crop = np.ascontiguousarray(pixels[y : y + side, x : x + side])
                    Image.fromarray(crop).save(root / name / kind / f"{y:03d}-{x:03d}.png")
    return root / "train", root / "held_out"


if __name__ == "__main__":
    write_pairs(Path(sys.argv[1]))
