"""The best of so many samples by the score of the critic that they were trained against, beside the first of each.

GeoPos (2401.01951) shows hands so: best of 10 by critic score for each label. A critic likes what it has not yet
learned to refuse, and a choice of 1 in N hides how N - 1 look: the unselected sheet belongs beside it. Cell j has the
seeds j, j + cells, j + 2 cells ..., all of them of label j where there are classes. Knows no files and no families.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, UInt8

from pipeline.spec import to_float
from pipeline.synthesis.sample import generate, labels_of

AT_ONCE = 64  # images of one forward of the critic


@dataclass(frozen=True)
class Best:
    """A cell each of `first` and `chosen`, whose sample is number `picked` of the row of `scores`."""

    first: UInt8[np.ndarray, "cells h w 3"]
    chosen: UInt8[np.ndarray, "cells h w 3"]
    scores: Float64[np.ndarray, "cells of"]
    picked: list[int]


@torch.no_grad()
def scores_of(G: Any, D: Any, seeds: range, images: UInt8[np.ndarray, "n h w 3"]) -> Float64[np.ndarray, " n"]:
    """The critic's, of the pictures as they are stored; each by its seed's label where there are classes."""
    device, labels = next(D.parameters()).device, labels_of(G, seeds)
    found = []
    for i in range(0, len(images), AT_ONCE):
        img = to_float(torch.from_numpy(images[i : i + AT_ONCE]).permute(0, 3, 1, 2).to(device))
        found.append(D(img) if labels is None else D(img, torch.tensor(labels[i : i + AT_ONCE], device=device)))
    return torch.cat(found).double().cpu().numpy()


def best_of(G: Any, D: Any, cells: int, of: int) -> Best:
    """`of` samples for each cell; G and D in evaluation mode. With classes `cells` is their number."""
    rounds, scores = [], []
    for i in range(of):
        seeds = range(i * cells, (i + 1) * cells)
        rounds.append(generate(G, seeds))
        scores.append(scores_of(G, D, seeds, rounds[-1]))
    table = np.stack(scores, axis=1)
    picked = table.argmax(axis=1).tolist()
    chosen = np.stack([rounds[k][cell] for cell, k in enumerate(picked)])
    return Best(rounds[0], chosen, table, picked)
