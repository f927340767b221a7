"""Gradients and Adam whole on every rank: one process, or data parallel over gloo or nccl.

After a phase's backward passes the gradients are summed over ranks in one flat all-reduce. Torch's DDP wrapper is
not used: it rebuilds its buckets after the first iteration, so beyond two ranks the order of a resumed run's sums
would differ from that of an undisturbed one, and it needs care wherever `autograd.grad` enters a loss (R1, path
length). Knows no loss.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.phases import AdamSpec
from pipeline.training.engine import Engine


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


class Replicated:
    """The Update of a network that every rank holds whole. fp16: a loss scaler of its own."""

    def __init__(self, engine: Engine, net: nn.Module, adam: AdamSpec):
        self._engine, self._net = engine, net
        self.optimizer = torch.optim.Adam(net.parameters(), lr=0.0, betas=adam.betas, eps=adam.eps)
        self._scaled = engine.precision == "fp16"
        self._scaler = torch.amp.GradScaler(engine.device.type, enabled=self._scaled)
        self._tree = GradientTree(net)

    def begin(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        self._tree = GradientTree(self._net)

    def backward(self, loss: Tensor) -> None:
        self._scaler.scale(loss).backward()
        self._tree.take()

    def step(self) -> Tensor:
        """Differs from reference: StyleGAN replaces single values that are not finite, here the sum counts as zero."""
        grads = self._tree.total()
        flat = torch.cat([g.reshape(-1) for g in grads])
        self._engine.all_reduce(flat)
        finite = flat.sum().isfinite()
        if self._scaled:  # it skips the step by itself, and overflows until it has found its scale
            finite = finite | (self._scaler.get_scale() >= 1)
        else:
            flat.masked_fill_(~finite, 0)
        parts = flat.split([g.numel() for g in grads])
        self._tree.give([part.view_as(g) for part, g in zip(parts, grads, strict=True)])
        self._scaler.step(self.optimizer)
        self._scaler.update()
        return finite

    def whole(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def weights(self) -> dict[str, Tensor]:
        return on_cpu(self._net.state_dict()) if self._engine.is_main else {}

    def state(self) -> dict[str, Any]:
        return on_cpu(self.optimizer.state_dict()) if self._engine.is_main else {}

    def load(self, weights: dict[str, Tensor], state: dict[str, Any], scaler: dict[str, float]) -> None:
        self._net.load_state_dict(weights)
        self.optimizer.load_state_dict(state)
        if self._scaled and scaler:
            moved = {"scale": scaler["scale"], "_growth_tracker": int(scaler["_growth_tracker"])}
            self._scaler.load_state_dict(self._scaler.state_dict() | moved)

    def scaler(self) -> dict[str, float]:
        return {name: float(value) for name, value in self._scaler.state_dict().items()}


def on_cpu(value: Any) -> Any:
    """A copy of nested dicts, lists and tensors that training no longer touches."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True).contiguous()
    if isinstance(value, dict):
        return {k: on_cpu(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(on_cpu(v) for v in value)
    return value
