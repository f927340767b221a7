"""Whose w says what: styles of some layers from another seed, and pictures without a code (CIPS, 2011.13775).

Figure 19: w of B replaces w of A in groups of layers. Its eight groups of 256 px are taken to be the first ModFC and
the seven blocks, each with its toRGB. Figure 6: Fourier features or coordinate embeddings are zeros.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.spec import UserError
from pipeline.synthesis.pixels import per_pixel, styles
from pipeline.synthesis.sample import noise_seed, render

Code = Literal["fourier", "embedding"]
CODES: tuple[Code, ...] = get_args(Code)


def groups(G: Any) -> list[list[int]]:
    """Positions in ws of each group: the first layer, then pairs with their toRGB; a single toRGB is the last's."""
    G = per_pixel(G)
    layers, to_rgbs = len(G.layers), len(G.to_rgbs)
    found = [[0], *([i for i in (a, a + 1) if i < layers] for a in range(1, layers, 2))]
    for i in range(to_rgbs):
        found[len(found) - to_rgbs + i].append(layers + i)
    return found


def thirds(G: Any) -> list[tuple[int, int]]:
    """The paper's ranges 1-2, 3-5 and 6-8 of eight groups, in proportion for other depths; from 1, ends included."""
    n = len(groups(G))
    a, b = max(1, round(n * 2 / 8)), max(2, round(n * 5 / 8))
    return [(1, a), (a + 1, b), (b + 1, n)]


def parse_spans(text: str) -> list[tuple[int, int]]:
    """'1-2,3-5,6' as pairs; whether the groups are there is checked where they are known."""
    spans = []
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if not low.isdecimal() or (dash and not high.isdecimal()):
            raise UserError(f"layers={text!r}: expected ranges with commas, for example 1-2,3-5")
        spans.append((int(low), int(high or low)))
    return spans


def mixed(
    G: Any, a: Float[Tensor, "n num_ws w_dim"], b: Float[Tensor, "n num_ws w_dim"], span: tuple[int, int]
) -> Float[Tensor, "n num_ws w_dim"]:
    """a with the w of b in groups span[0] to span[1], numbered from 1; UserError for groups that are not there."""
    (first, last), n = span, len(groups(G))
    if not 1 <= first <= last <= n:
        raise UserError(f"layers={first}-{last}: this generator has groups 1 to {n}")
    ws = a.clone()
    for group in groups(G)[first - 1 : last]:
        ws[:, group] = b[:, group]
    return ws


def mix(
    G: Any,
    destinations: Sequence[int],
    sources: Sequence[int],
    spans: Sequence[tuple[int, int]],
    size: tuple[int, int] | None = None,
    truncation_psi: float | int = 1.0,
) -> np.ndarray:
    """uint8 [spans, destinations, sources, h, w, 3]: destinations with w of the sources; noise is the destination's."""
    to, of = (styles(G, seeds, truncation_psi) for seeds in (destinations, sources))
    images = [
        render(G, mixed(G, one[None].expand_as(of), of, span), size, [noise_seed(seed)] * len(of))
        for span in spans
        for one, seed in zip(to, destinations, strict=True)
    ]
    return np.stack(images).reshape(len(spans), len(to), *images[0].shape)


@contextmanager
def without(G: Any, code: Code) -> Iterator[None]:
    """Within it this code is zero everywhere; UserError where the generator has none."""
    module = getattr(per_pixel(G), code, None)
    if module is None:
        raise UserError(f"model={type(G).__name__} has no {code} code that could be zero")
    kept = [p.detach().clone() for p in module.parameters()]  # sin(0 p + 0) is 0 as well
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
        try:
            yield
        finally:
            for p, old in zip(module.parameters(), kept, strict=True):
                p.copy_(old)
