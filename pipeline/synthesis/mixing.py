"""Whose w says what: styles of some layers from another seed (CIPS, 2011.13775, Figure 19).

w of B replaces w of A in groups of layers. The paper's eight groups of 256 px are taken to be the first ModFC and the
seven blocks, each with its toRGB; variants without that first layer have the blocks alone.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from pipeline.spec import UserError
from pipeline.synthesis.pixels import per_pixel, styles
from pipeline.synthesis.sample import noise_seed, render


def groups(G: Any) -> list[list[int]]:
    """Positions in ws of each group; a toRGB belongs to its block, a single one to the last."""
    G = per_pixel(G)
    layers, to_rgbs = len(G.layers), len(G.to_rgbs)
    found = [[i] for i in range(G.first)] + [[a, a + 1] for a in range(G.first, layers, 2)]
    for i in range(to_rgbs):
        found[i - to_rgbs].append(layers + i)
    return found


def thirds(G: Any) -> list[tuple[int, int]]:
    """The paper's ranges 1-2, 3-5 and 6-8 of eight groups, in proportion for other depths; from 1, ends included."""
    n = len(groups(G))
    a, b = max(1, round(n * 2 / 8)), max(2, round(n * 5 / 8))
    return [(first, last) for first, last in ((1, a), (a + 1, b), (b + 1, n)) if first <= last]


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
