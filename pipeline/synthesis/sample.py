"""Sampling: seeds in, uint8 images out, at any size the generator allows.

An image is a function of (weights, seed, size, truncation_psi) alone: latent and noise are keyed by the seed, so
neither the batch it is made in nor its neighbours matter.
"""

import json
import os
from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.chance import key, rng
from pipeline.models import GENERATORS
from pipeline.models.stylegan2 import broadcast_w
from pipeline.spec import UserError, to_uint8

MEAN_W_SAMPLES = 4096
PIXELS_AT_ONCE = 1 << 18  # of one forward; bounds memory at large sizes


class Stopped(Exception):  # noqa: N818  # no error
    """Sampling was asked to end before it was done."""


def load_generator(config_json: Path, weights: Path, device: str = "cpu") -> nn.Module:
    """Rebuild G_ema, in evaluation mode, from a run's config.json and a safetensors file."""
    config = json.loads(Path(config_json).read_text())["family"]["G"]
    net = GENERATORS[config["kind"]].model_validate(config).build()
    net.load_state_dict(load_file(weights))
    return net.to(device).eval().requires_grad_(False)


def parse_size(text: str) -> tuple[int, int] | None:
    """'48' or '48x64' (height x width); '' is None, the native size."""
    if not text:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(p.isdecimal() and int(p) > 0 for p in parts):
        raise UserError(f"size={text!r}: expected N or HxW in pixels, for example 512 or 384x512")
    return (int(parts[0]), int(parts[-1]))


def parse_seeds(text: str) -> list[int]:
    """'0-15', '3' or '1,5,7-9'."""
    seeds: list[int] = []
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if not low.isdecimal() or (dash and not high.isdecimal()):
            raise UserError(f"seeds={text!r}: expected numbers and ranges, for example 0-15 or 1,5,7-9")
        seeds += range(int(low), int(high or low) + 1)
    if not seeds:
        raise UserError(f"seeds={text!r} names no seed; write low-high, for example 0-15")
    return seeds


@torch.no_grad()
def mean_w(G: Any, device: torch.device) -> Float[Tensor, " w_dim"]:
    """The centre of w for truncation, over a fixed set of latents."""
    z = rng("mean_w").standard_normal((MEAN_W_SAMPLES, G.z_dim), dtype=np.float32)
    return G.mapping(torch.from_numpy(z).to(device)).mean(dim=0)


@torch.no_grad()
def generate(
    G: Any,
    seeds: Sequence[int],
    size: tuple[int, int] | None = None,
    truncation_psi: float = 1.0,
    stop: Callable[[], bool] = lambda: False,
) -> np.ndarray:
    """uint8 [n, h, w, 3] of a phases.Generator; size None is its native size.

    `truncation_psi` moves w towards its mean: w' = mean + psi (w - mean). Raises UserError for a size that the
    generator cannot make, and Stopped when `stop` turns true between two forwards.
    """
    h, w_px = size = size or tuple(G.native_size)
    G.check_size(size)
    device = next(G.parameters()).device
    z = np.stack([rng("sample", int(s)).standard_normal(G.z_dim, dtype=np.float32) for s in seeds])
    w = G.mapping(torch.from_numpy(z).to(device))
    if truncation_psi != 1:
        w = torch.lerp(mean_w(G, device), w, truncation_psi)
    noise = [key("sample noise", int(s)) >> 65 for s in seeds]
    at_once = max(1, PIXELS_AT_ONCE // (h * w_px))
    images = []
    for i in range(0, len(z), at_once):
        if stop():
            raise Stopped(f"{i} of {len(z)} images are made")
        ws = broadcast_w(w[i : i + at_once], G.num_ws)
        images.append(to_uint8(G.synthesis(ws, size, tuple(noise[i : i + at_once]))))
    return torch.cat(images).permute(0, 2, 3, 1).cpu().numpy()


def grid(images: np.ndarray, columns: int | None = None) -> np.ndarray:
    """uint8 [n, h, w, 3] as one picture, row by row; missing cells are black."""
    n, h, w, c = images.shape
    columns = columns or ceil(n**0.5)
    rows = ceil(n / columns)
    cells = np.zeros((rows * columns, h, w, c), np.uint8)
    cells[:n] = images
    return cells.reshape(rows, columns, h, w, c).swapaxes(1, 2).reshape(rows * h, columns * w, c)


def save_png(path: Path, image: UInt8[np.ndarray, "h w 3"]) -> None:
    """Write a PNG under a temporary name, then rename."""
    temp = path.with_name(f".{path.name}.tmp")
    Image.fromarray(image).save(temp, format="PNG")
    os.replace(temp, path)
