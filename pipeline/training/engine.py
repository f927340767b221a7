"""The one file that knows accelerate and reduces gradients: one process, or data parallel over gloo or nccl.

Networks stay plain modules; after a phase's backward passes their gradients are summed over ranks in one flat
all-reduce. Torch's DDP wrapper is not used: it rebuilds its buckets after the first iteration, so beyond two
ranks the order of a resumed run's sums would differ from that of an undisturbed one, and it needs care wherever
`autograd.grad` enters a loss (R1, path length). Control messages travel over gloo and never wait for a GPU.
"""

import os
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from pipeline.spec import UserError

R = TypeVar("R")
MIXED = {"fp32": "no", "bf16": "bf16"}


class Engine:
    """This rank's place among all ranks. `world` and `rank` are what came up, checked against what was asked."""

    def __init__(self, precision: str, world: int):
        launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        if launched not in ("no", MIXED[precision]):
            raise UserError(
                f"accelerate launch --mixed_precision {launched} contradicts precision={precision!r} of the run; "
                f"drop the flag, or --set precision={launched}"
            )
        os.environ["ACCELERATE_MIXED_PRECISION"] = MIXED[precision]
        self.accelerator = Accelerator(mixed_precision=MIXED[precision], cpu=not torch.cuda.is_available())
        self.device, self.rank, self.world = (
            self.accelerator.device,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        self._control: Any = dist.new_group(backend="gloo") if self.world > 1 else None
        self._check_world(world)

    def _check_world(self, asked: int) -> None:
        if self.world != asked:
            raise UserError(
                f"exec.nodes * exec.gpus asks for {asked} ranks, {self.world} came up (WORLD_SIZE="
                f"{os.environ.get('WORLD_SIZE', 'unset')} on {socket.gethostname()}); start it with torchrun "
                f"--nproc-per-node, srun or graticule submit, or set exec.nodes and exec.gpus to match"
            )
        places = self.gather((self.rank, socket.gethostname(), os.getpid()))
        if sorted(rank for rank, _, _ in places) != list(range(asked)):
            raise UserError(f"ranks do not number 0..{asked - 1}: {places}; the launcher gave two processes one rank")

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def autocast(self) -> AbstractContextManager:
        """The precision of forward passes."""
        return self.accelerator.autocast()

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def sum_grads(self, grads: list[Tensor]) -> list[Tensor]:
        """Sum over ranks, in one flat all-reduce."""
        if self.world == 1:
            return grads
        flat = torch.cat([g.reshape(-1) for g in grads])
        dist.all_reduce(flat)
        parts = flat.split([g.numel() for g in grads])
        return [part.view_as(g) for part, g in zip(parts, grads, strict=True)]

    def sum(self, values: Sequence[float]) -> list[float]:
        """Elementwise float64 sum of host numbers over ranks."""
        total = torch.tensor(values, dtype=torch.float64)
        if self.world > 1:
            dist.all_reduce(total, group=self._control)
        return total.tolist()

    def any(self, flag: bool) -> bool:
        """True on every rank when true on one."""
        return self.sum([float(flag)])[0] > 0

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order, on every rank."""
        if self.world == 1:
            return [value]
        out: list[Any] = [None] * self.world
        dist.all_gather_object(out, value, group=self._control)
        return out

    def on_main(self, work: Callable[[], R]) -> R:
        """Run on rank 0 and hand its result to all; its exception is raised on every rank, so none hangs."""
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = work()
            except Exception as e:
                outcome[1] = e
        if self.world > 1:
            error = outcome[1]
            sent: list[Any] = [
                outcome[0],
                None if error is None else (isinstance(error, UserError), f"{error}"),
            ]
            dist.broadcast_object_list(sent, src=0, group=self._control)
            if not self.is_main and sent[1] is not None:
                user, text = sent[1]
                raise UserError(text) if user else RuntimeError(f"rank 0 failed: {text}")
            outcome[0] = sent[0]
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Copy rank 0's values over everyone's."""
        if self.world > 1:
            for t in tensors:
                dist.broadcast(t, src=0)

    def close(self, *, failed: bool) -> None:
        """Leave the process group; another engine may be made in this process afterwards.

        A rank that failed does not wait for the others, who may be waiting for it: its exit ends the job.
        """
        if self.world > 1 and not failed:
            dist.barrier(group=self._control)
            dist.destroy_process_group()
        if self.world == 1 or not failed:
            AcceleratorState._reset_state(reset_partial_state=True)
        os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
