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


class GradientTree:
    """Sums the gradients of microbatches in pairs, pairs of pairs and so on, in their order in the global batch.

    Where each of two ranks holds half of 2^k microbatches, its sum is a branch of the tree that one rank would build:
    one rank and two then compute the same bits. Costs one copy of the gradients for each level.
    """

    def __init__(self, net: nn.Module):
        self._params = list(net.parameters())
        self._branches: list[tuple[int, list[Tensor]]] = []  # (height, sums), higher ones first

    def take(self) -> None:
        """Move the gradients of one backward pass in; a parameter without one counts as zero."""
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._params]
        for p in self._params:
            p.grad = None
        height = 0
        while self._branches and self._branches[-1][0] == height:
            grads = _add(self._branches.pop()[1], grads)
            height += 1
        self._branches.append((height, grads))

    def total(self) -> list[Tensor]:
        """The sum of all that was taken."""
        _, grads = self._branches.pop()
        while self._branches:
            grads = _add(self._branches.pop()[1], grads)
        return grads

    def give(self, grads: list[Tensor]) -> None:
        """Hand gradients to the optimizer."""
        for p, grad in zip(self._params, grads, strict=True):
            p.grad = grad


def _add(a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
    return [x.add_(y) for x, y in zip(a, b, strict=True)]


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
    due, window, tree = phase.due(nimg // batch_size), Stats(), GradientTree(nets[phase.net])
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
        tree.take()
        stats.add({f"Loss/{phase.name}/{name}": value for name, value in terms.items()})
        if phase.learn and due:
            window.add(terms)
    tree.give(engine.sum_grads(tree.total()))
    optimizer.step()
    if phase.learn and due:
        return feedback | phase.learn(feedback, window.take(engine))
    return feedback
