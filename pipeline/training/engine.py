"""This rank among all ranks, through accelerate: device, precision of forward passes, messages between ranks.

What becomes of a network's gradients is an `Update`: `engine_replicated` keeps all of it on every rank,
`engine_deepspeed` shards it (ZeRO). These files alone know accelerate and DeepSpeed, reduce gradients or scale a
loss. Control messages travel over gloo and never wait for a GPU.
"""

import os
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor

from pipeline.errors import UserError, WorkError
from pipeline.training.watchdog import Progress

R = TypeVar("R")
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@runtime_checkable
class Update(Protocol):
    """What one network's phase does with its gradients: reduce them over ranks, step Adam, keep its state.

    Losses come from forward passes of the plain network. Every rank calls every method, in the same order.
    """

    def begin(self, lr: float) -> None:
        """Start a phase with this learning rate and no gradients."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Of one microbatch, in its order: its samples' share of the mean over the global batch."""
        ...

    def step(self) -> Tensor:
        """Sum over microbatches and ranks, step Adam; a sum that is not finite counts as zero, in fp16 as no step.

        Returns a bool scalar on the device, equal on all ranks: False when the run should worry about it.
        """
        ...

    def whole(self) -> AbstractContextManager[Any]:
        """Within it the network's parameters are all there, to be read."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """The network's whole state_dict, copied to the CPU; empty on ranks other than 0."""
        ...

    def state(self) -> dict[str, Any]:
        """Adam's whole state in the layout of torch.optim.Adam, copied to the CPU; empty on ranks other than 0."""
        ...

    def load(self, weights: dict[str, Tensor], state: dict[str, Any], scaler: dict[str, float]) -> None:
        """Continue from what `weights`, `state` and `scaler` gave, under whatever engine and number of ranks."""
        ...

    def scaler(self) -> dict[str, float]:
        """State of the loss scaler; empty without one."""
        ...


def check_launcher(precision: str) -> None:
    """UserError if `accelerate launch` was told another precision than the run has."""
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in ("no", precision):
        raise UserError(
            f"accelerate launch --mixed_precision {launched} contradicts precision={precision!r} of the run; "
            "drop the flag" + (f", or --set precision={launched}" if launched in AUTOCAST else "")
        )


def prefer_expandable_segments() -> None:
    """For CUDA's allocator, before it starts: blocks that grow, so that several image sizes share one memory.

    Without, it keeps blocks for each size, up to their sum. What the user says in the environment comes first.
    """
    said = {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"} & set(os.environ)
    if torch.cuda.is_available() and not said:
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"  # the name that every torch here reads


class Engine:
    """This rank's place among all ranks. `world` and `rank` are what came up, checked against what was asked."""

    def __init__(self, precision: str, world: int, timeout_sec: int | None = None):
        """`timeout_sec`: how long a collective may take before torch gives up; torch's default if None."""
        check_launcher(precision)
        prefer_expandable_segments()
        self.precision, self.progress = precision, Progress()
        timeout = timedelta(seconds=timeout_sec) if timeout_sec else None
        self.accelerator = Accelerator(
            mixed_precision="no",  # precision and loss scaling are ours; accelerate's wrap the networks
            cpu=not torch.cuda.is_available(),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timeout)] if timeout else [],
        )
        self.device, self.rank, self.world = (
            self.accelerator.device,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        self._control: Any = dist.new_group(backend="gloo", timeout=timeout) if self.world > 1 else None
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
        """The precision of forward passes; weights and optimizer stay float32."""
        dtype = AUTOCAST.get(self.precision)
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    def all_reduce(self, flat: Tensor) -> None:
        """Sum a tensor over ranks, in place and on its device: the same bits on all ranks.

        On the CPU 2^k ranks add in pairs, pairs of pairs and so on, in their order, so that the number of ranks does
        not show in the sum of what one rank would add that way. Elsewhere the order is the library's.
        """
        if self.world > 1:
            with self.progress.waiting("gradients of all ranks"):
                if self.device.type == "cpu" and self.world.bit_count() == 1:
                    self._add_in_pairs(flat)
                else:
                    dist.all_reduce(flat)

    def _add_in_pairs(self, flat: Tensor) -> None:
        other, distance = torch.empty_like(flat), 1
        while distance < self.world:
            partner = self.rank ^ distance
            swap = [dist.P2POp(dist.isend, flat, partner), dist.P2POp(dist.irecv, other, partner)]
            for message in dist.batch_isend_irecv(swap):
                message.wait()
            flat.add_(other)
            distance *= 2

    def sum(self, values: Sequence[float]) -> list[float]:
        """Elementwise float64 sum of host numbers over ranks."""
        total = torch.tensor(values, dtype=torch.float64)
        if self.world > 1:
            with self.progress.waiting("numbers of all ranks"):
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
        with self.progress.waiting("words of all ranks"):
            dist.all_gather_object(out, value, group=self._control)
        return out

    def everywhere(self, work: Callable[[], R]) -> R:
        """Run on every rank; if it fails on some, all raise the first of them, with its rank and host."""
        result, error = None, None
        try:
            result = work()
        except Exception as e:
            error = e
        words = (type(error).__name__, f"{error}", isinstance(error, UserError), socket.gethostname())
        failed = [(rank, told) for rank, told in enumerate(self.gather(None if error is None else words)) if told]
        if failed:
            rank, (kind, text, user, host) = failed[0]
            if self.world == 1 and error is not None:
                raise error
            if user:
                raise UserError(f"{text} (rank {rank} on {host})") from error
            raise WorkError(f"rank {rank} on {host} failed: {kind}: {text}") from error
        return result  # type: ignore[return-value]

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
                None if error is None else (type(error), f"{error}"),
            ]
            with self.progress.waiting("word from rank 0"):
                dist.broadcast_object_list(sent, src=0, group=self._control)
            if not self.is_main and sent[1] is not None:
                kind, text = sent[1]
                raise kind(text) if kind in (UserError, WorkError) else RuntimeError(f"rank 0 failed: {text}")
            outcome[0] = sent[0]
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Copy rank 0's values over everyone's."""
        if self.world > 1:
            with self.progress.waiting("tensors from rank 0"):
                for t in tensors:
                    dist.broadcast(t, src=0)

    def close(self, *, failed: bool) -> None:
        """Leave the process group; another engine may be made in this process afterwards.

        A rank that failed does not wait for the others, who may be waiting for it: its exit ends the job.
        """
        if self.world > 1 and not failed:
            dist.barrier(group=self._control)
        if self.world == 1 or not failed:
            if dist.is_initialized():  # DeepSpeed makes a group of one rank, too
                dist.destroy_process_group()
            AcceleratorState._reset_state(reset_partial_state=True)
