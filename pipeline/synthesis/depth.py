"""What a network for depth makes of the photographs of a set of pairs, beside what was measured; as colours.

Bright is near, dark is far, on a logarithmic scale; black is where nothing was measured. Knows no run and no file but
the weights that it is told to load.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors.torch import load_file
from torch import Tensor

from pipeline.data.reader import ShardReader
from pipeline.models.unet import UNet, UNetConfig
from pipeline.objectives.depth import measured, measures, unstacked
from pipeline.phases import FamilyConfig
from pipeline.spec import UserError, to_float
from pipeline.synthesis.pictures import Row, enlarged

LEAST_PX = 96  # smaller pictures are enlarged in whole pixels, at most to this
NEAR_TO_FAR = ((255, 243, 176), (250, 164, 74), (214, 76, 92), (128, 46, 128), (40, 34, 92))  # lightness falls evenly


def load_unet(family: FamilyConfig, weights: Path) -> UNet:
    """In evaluation mode, from a safetensors file; UserError where the family has no network for depth."""
    config = getattr(family, "G", None)
    if not isinstance(config, UNetConfig):
        raise UserError(f"run: family.kind={family.kind!r} predicts no depth; give a run of a depth recipe")
    net = config.build()
    net.load_state_dict(load_file(weights))
    return net.eval().requires_grad_(False)


def coloured(depth: Float[Tensor, "1 h w"], near: float, far: float) -> UInt8[np.ndarray, "h w 3"]:
    """Metres as colours between `near` and `far`; what is 0 is black."""
    ramp = np.array(NEAR_TO_FAR, dtype=np.float64)
    metres = depth[0].double().cpu().numpy()
    at = np.log(np.clip(metres, near, far) / near) / np.log(far / near) * (len(ramp) - 1)
    colours = np.stack([np.interp(at, range(len(ramp)), ramp[:, c]) for c in range(3)], axis=-1)
    return np.where(metres[..., None] > 0, np.rint(colours), 0).astype(np.uint8)


def rows(G: UNet, data: Path, count: int) -> tuple[list[Row], dict[str, list[float] | list[int]]]:
    """Rows of a sheet (photographs, measured, predicted) and the measures, of pairs at even distances in a set."""
    set_, side = ShardReader(data), G.cfg.image_px
    if set_.shape != (2 * side, side, 3):
        raise UserError(f"data={str(data)!r}: give pairs of {side} px (graticule prep depth --size {side})")
    count = min(len(set_), count)
    samples = [i * len(set_) // count for i in range(count)]
    stored = torch.stack([torch.from_numpy(set_.read(i)[0]) for i in samples])
    photographs, depth = unstacked(stored)
    mask = measured(depth, G.cfg.min_m, G.cfg.max_m)
    predicted = torch.cat([G(to_float(one)) for one in photographs.split(1)])
    found = {name: values.tolist() for name, values in measures(predicted, depth, mask).items()}
    known = depth[mask] if mask.any() else predicted
    near, far = float(known.min()), float(known.max()) + 1e-6
    text = f"{near:.3g} m (bright) to {far:.3g} m (dark)"
    errors = ", ".join(f"{e:.3f}" for e in found["abs_rel"])
    made = {
        "photographs": list(photographs.permute(0, 2, 3, 1).cpu().numpy()),
        f"measured depth: {text}, black: none": [coloured(d, near, far) for d in depth],
        f"predicted depth, AbsRel {errors}": [coloured(d, near, far) for d in predicted],
    }
    zoom = max(1, LEAST_PX // stored.shape[-1])
    return [(words, [enlarged(one, zoom) for one in row]) for words, row in made.items()], found | {"samples": samples}
