"""One phase: forward and backward over this rank's microbatches, one reduction, one optimizer step.

Only the phase's network is trainable meanwhile. Per-sample terms are divided by the global batch size and
summed, so microbatches and ranks only change the order of additions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.chance import Chance
from pipeline.phases import Family, Knobs, Phase, Step
from pipeline.spec import Batch
from pipeline.training.engine import Engine
from pipeline.training.stats import Stats


@dataclass(frozen=True)
class Microbatch:
    """Real images of some positions of the global batch, on the device at this iteration's size."""

    ids: tuple[int, ...]  # global image numbers
    real: Tensor


def to_device(family: Family, batch: Batch, ids: Sequence[int], size: tuple[int, int], device: torch.device):
    """Move one microbatch over and bring it to this iteration's size."""
    img = batch.img.to(device, non_blocking=True)
    return Microbatch(tuple(ids), family.resize(img, size))


def run_phase(
    phase: Phase,
    nets: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    microbatches: Sequence[Microbatch],
    *,
    knobs: Knobs,
    seed: int,
    nimg: int,
    batch_size: int,
    feedback: dict[str, float],
    engine: Engine,
    stats: Stats,
) -> dict[str, float]:
    """Update one network; returns the feedback state after it."""
    for name, net in nets.items():
        net.requires_grad_(name == phase.net)
    for group in optimizer.param_groups:
        group["lr"] = knobs.lr[phase.net]
    optimizer.zero_grad(set_to_none=True)
    due, window = phase.due(nimg // batch_size), Stats()
    for micro in microbatches:
        step = Step(
            real=micro.real,
            size=knobs.size,
            chance=Chance(seed, phase.name, nimg, micro.ids, engine.device),
            due=due,
            feedback=feedback,
        )
        with engine.autocast():
            terms = phase.loss(nets, step)
        weighted = [terms[t] * phase.lazy.get(t, 1) for t in phase.terms if t in terms]
        engine.backward(torch.stack(weighted).sum() / batch_size)
        stats.add({f"Loss/{phase.name}/{name}": value for name, value in terms.items()})
        if phase.learn and due:
            window.add(terms)
    engine.sum_grads(nets[phase.net])
    optimizer.step()
    if phase.learn and due:
        return feedback | phase.learn(feedback, window.take(engine))
    return feedback
