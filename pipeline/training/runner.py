"""One phase: forward and backward over this rank's microbatches, then one update of its network.

Only the phase's network is trainable meanwhile. Per-sample terms are divided by the global batch size and
summed, so microbatches and ranks only change the order of additions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor, nn

from pipeline.chance import Chance
from pipeline.layers.coords import shifted_by
from pipeline.phases import Family, Knobs, Phase, Step
from pipeline.spec import Batch
from pipeline.training.engine import Engine, Update
from pipeline.training.stats import Stats


@dataclass(frozen=True)
class Microbatch:
    """Real images of some positions of the global batch, on the device at this iteration's size."""

    ids: tuple[int, ...]  # global image numbers
    real: Tensor
    c: Tensor


def to_device(family: Family, batch: Batch, ids: Sequence[int], size: tuple[int, int], device: torch.device):
    """Move one microbatch over and bring it to this iteration's size."""
    img = batch.img.to(device, non_blocking=True)
    real = family.present(img, ids, size) if family.present else family.resize(img, size)
    return Microbatch(tuple(ids), real, batch.label.to(device, non_blocking=True))


def run_phase(
    phase: Phase,
    nets: Mapping[str, nn.Module],
    update: Update,
    microbatches: Sequence[Microbatch],
    *,
    knobs: Knobs,
    seed: int,
    nimg: int,
    batch_size: int,
    feedback: dict[str, float],
    engine: Engine,
    stats: Stats,
) -> tuple[dict[str, float], Tensor]:
    """Update one network; returns the feedback state after it, and whether losses and gradients were finite.

    The latter is a bool scalar on the device, of this rank's losses and the gradients of all.
    """
    for name, net in nets.items():
        net.requires_grad_(name == phase.net)
    update.begin(knobs.lr[phase.net])
    due, window, losses = phase.due(nimg // batch_size), Stats(), []
    for micro in microbatches:
        step = Step(
            real=micro.real,
            size=knobs.size,
            chance=Chance(seed, phase.name, nimg, micro.ids, engine.device),
            due=due,
            feedback=feedback,
            c=micro.c,
        )
        with shifted_by(nets.values(), step.chance), engine.autocast():
            terms = phase.loss(nets, step)
        weighted = [terms[t] * phase.lazy.get(t, 1) for t in phase.terms if t in terms]
        loss = torch.stack(weighted).sum() / batch_size
        update.backward(loss)
        losses.append(loss.detach())
        stats.add({f"Loss/{phase.name}/{name}": value for name, value in terms.items()})
        if phase.learn and due:
            window.add(terms)
    finite = update.step() & torch.stack(losses).sum().isfinite()
    if phase.learn and due:
        learned = phase.learn(feedback, window.take(engine))
        feedback = feedback | {name: value for name, value in learned.items() if isfinite(value)}
    return feedback, finite
