"""Sampling: seeds in, uint8 images out, at any size the generator allows.

An image is a function of (weights, seed, label, size, truncation_psi) alone: latent and noise are keyed by the seed,
so neither the batch it is made in nor its neighbours matter. Where there are classes, those of seeds follow in turn.
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
from pipeline.layers.coords import shifted
from pipeline.models import GENERATORS
from pipeline.models.stylegan2 import broadcast_w
from pipeline.spec import UserError, to_uint8

MEAN_W_SAMPLES = 4096
SHIFT_OF_ALL = 0  # seeds the shift of generators that draw one for a batch, in evaluation too
PIXELS_AT_ONCE = 1 << 18  # of one forward; bounds memory at large sizes


class Stopped(Exception):  # noqa: N818  # no error
    """Sampling was asked to end before it was done."""


def load_generator(config_json: Path, weights: Path, device: str = "cpu") -> nn.Module:
    """Rebuild G_ema, in evaluation mode, from a run's config.json and a safetensors file."""
    family = json.loads(Path(config_json).read_text())["family"]
    config = family["G"]
    if config["kind"] not in GENERATORS:
        raise UserError(f"family.kind={family['kind']!r} makes no images from latents: there is nothing to sample")
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


def parse_seeds(text: str, what: str = "seeds") -> list[int]:
    """'0-15', '3' or '1,5,7-9'; `what` is the option that a UserError names."""
    numbers: list[int] = []
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if not low.isdecimal() or (dash and not high.isdecimal()):
            raise UserError(f"{what}={text!r}: expected numbers and ranges, for example 0-15 or 1,5,7-9")
        numbers += range(int(low), int(high or low) + 1)
    if not numbers:
        raise UserError(f"{what}={text!r} names none; write low-high, for example 0-15")
    return numbers


def labels_of(G: Any, seeds: Sequence[int], labels: Sequence[int] | None = None) -> list[int] | None:
    """A label each seed: those given, or the classes in turn (seed modulo their number); None without classes.

    UserError for labels that G does not have.
    """
    classes = getattr(G, "num_classes", 0)
    if labels is None:
        return [int(s) % classes for s in seeds] if classes else None
    if len(labels) != len(seeds):
        raise ValueError(f"{len(labels)} labels for {len(seeds)} seeds")
    for label in labels:
        if not 0 <= label < classes:
            there = f"has {classes} classes; use 0-{classes - 1}" if classes else "has no classes; leave it out"
            raise UserError(f"label={label}: this model {there}")
    return list(labels)


def _mapped(G: Any, z: Float[Tensor, "n z_dim"], labels: Sequence[int] | None) -> Float[Tensor, "n w_dim"]:
    return G.mapping(z) if labels is None else G.mapping(z, torch.tensor(labels, device=z.device))


@torch.no_grad()
def mean_w(G: Any, device: torch.device, label: int | None = None) -> Float[Tensor, " w_dim"]:
    """The centre of w for truncation, over a fixed set of latents; of this class where there are classes."""
    z = torch.from_numpy(rng("mean_w").standard_normal((MEAN_W_SAMPLES, G.z_dim), dtype=np.float32)).to(device)
    return _mapped(G, z, None if label is None else [label] * MEAN_W_SAMPLES).mean(dim=0)


def sample_z(G: Any, seeds: Sequence[int]) -> Float[Tensor, "n z_dim"]:
    """The latents of these seeds, on G's device."""
    z = np.stack([rng("sample", int(s)).standard_normal(G.z_dim, dtype=np.float32) for s in seeds])
    return torch.from_numpy(z).to(next(G.parameters()).device)


def noise_seed(seed: int) -> int:
    """What the noise maps of this seed's image are drawn from."""
    return key("sample noise", int(seed)) >> 65


@torch.no_grad()
def map_z(
    G: Any, z: Float[Tensor, "n z_dim"], truncation_psi: float = 1.0, labels: Sequence[int] | None = None
) -> Float[Tensor, "n w_dim"]:
    """w of latents; `truncation_psi` moves it towards its mean, that of its class: w' = mean + psi (w - mean)."""
    w = _mapped(G, z, labels)
    if truncation_psi == 1:
        return w
    if labels is None:
        return torch.lerp(mean_w(G, z.device), w, truncation_psi)
    centres = {label: mean_w(G, z.device, label) for label in set(labels)}
    return torch.lerp(torch.stack([centres[label] for label in labels]), w, truncation_psi)


@torch.no_grad()
def render(
    G: Any,
    ws: Float[Tensor, "n num_ws w_dim"],
    size: tuple[int, int] | None,
    noise: Sequence[int],
    stop: Callable[[], bool] = lambda: False,
) -> np.ndarray:
    """uint8 [n, h, w, 3] of styles and a noise seed each, a bounded number of pixels at a time.

    Size None is the native one. Raises UserError for a size that the generator cannot make, and Stopped when `stop`
    turns true between two forwards.
    """
    h, w_px = size = size or tuple(G.native_size)
    G.check_size(size)
    at_once = max(1, PIXELS_AT_ONCE // (h * w_px))
    images = []
    for i in range(0, len(ws), at_once):
        if stop():
            raise Stopped(f"{i} of {len(ws)} images are made")
        seeds = tuple(noise[i : i + at_once])
        with shifted([G], seeds, SHIFT_OF_ALL):
            images.append(to_uint8(G.synthesis(ws[i : i + at_once], size, seeds)))
    return torch.cat(images).permute(0, 2, 3, 1).cpu().numpy()


def generate(
    G: Any,
    seeds: Sequence[int],
    size: tuple[int, int] | None = None,
    truncation_psi: float = 1.0,
    stop: Callable[[], bool] = lambda: False,
    labels: Sequence[int] | None = None,
) -> np.ndarray:
    """uint8 [n, h, w, 3] of a phases.Generator, with errors of `render` and `labels_of`; truncation as in `map_z`."""
    w = map_z(G, sample_z(G, seeds), truncation_psi, labels_of(G, seeds, labels))
    ws = broadcast_w(w, G.num_ws)
    return render(G, ws, size, [noise_seed(s) for s in seeds], stop)


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
