"""NaN or Inf in losses and gradients: counted by iteration, over all ranks, without making the device wait.

An iteration's flags are read at a boundary that depends on the number of iterations alone, never on how far a device
has come, so all ranks speak of the same iteration and decide alike. Deliberately knows no engine: the caller takes the
sum over ranks.
"""

import json
import math
from collections import deque
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from pipeline.config import write_atomic


@dataclass(frozen=True)
class Closed:
    """The flags of one iteration, on their way to the host."""

    nimg: int
    names: tuple[str, ...]
    finite: Tensor | None  # bool [names], in host memory; None without names
    arrived: torch.cuda.Event | None  # None: there already

    def bad_names(self) -> list[str]:
        """What was not finite; waits for the copy, which an iteration later is there as a rule."""
        if self.arrived is not None:
            self.arrived.synchronize()
        flags = [] if self.finite is None else self.finite.tolist()
        return [name for name, finite in zip(self.names, flags, strict=True) if not finite]


class Health:
    """Iterations in a row with a loss or gradient that was not finite on any rank.

    At each boundary: `bad_now`, its sum over ranks, `count`. On CUDA `bad_now` reads the iteration before the last one
    closed, whose copy to the host had a whole iteration to arrive; elsewhere the last one. Before weights are saved,
    and at the end, also the last one must be known: repeat the three with `bad_now(last=True)`.
    """

    def __init__(self, limit: int, device: torch.device):
        if limit < 1:
            raise ValueError(f"limit={limit}: at least one iteration")
        self.limit, self.in_a_row = limit, 0
        self.culprits: dict[int, list[str]] = {}
        """nimg -> what was not finite on this rank (maybe nothing, if another rank's was), of the bad ones in a row."""
        self._late = 1 if device.type == "cuda" else 0
        self._open: dict[str, Tensor] = {}
        self._closed: deque[Closed] = deque()
        self._read: tuple[int, list[str]] | None = None  # not counted yet

    def note(self, name: str, finite: Bool[Tensor, ""]) -> None:
        """Something of this iteration, such as "D/gradient"; a name may come again, from another microbatch."""
        self._open[name] = self._open[name] & finite if name in self._open else finite

    def close_iteration(self, nimg: int) -> None:
        """The iteration that began at image nimg is complete; its flags set out for the host."""
        names, finite, arrived = tuple(self._open), None, None
        if names:
            flags = torch.stack(list(self._open.values()))
            if flags.is_cuda:
                finite = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True)
                finite.copy_(flags, non_blocking=True)
                arrived = torch.cuda.Event(blocking=True)
                arrived.record()
            else:
                finite = flags
        self._open.clear()
        self._closed.append(Closed(nimg, names, finite, arrived))

    def bad_now(self, *, last: bool = False) -> bool:
        """Was the iteration that is due on this rank bad? False also when none is due.

        One is due when more than one is unread (CUDA) or any (elsewhere, or with `last`): the same on all ranks, as
        all make the same calls.
        """
        self._read = None
        if len(self._closed) <= (0 if last else self._late):
            return False
        closed = self._closed.popleft()
        self._read = closed.nimg, closed.bad_names()
        return bool(self._read[1])

    def count(self, any_bad: bool) -> None:
        """What the ranks together say of the iteration that `bad_now` read; nothing to count when it read none."""
        if self._read is None:
            return
        if any_bad:
            nimg, names = self._read
            self.in_a_row += 1
            self.culprits[nimg] = names
        else:
            self.in_a_row = 0
            self.culprits.clear()
        self._read = None

    @property
    def exceeded(self) -> bool:
        """True from the limit-th bad iteration in a row, on all ranks at the same boundary."""
        return self.in_a_row >= self.limit


def report(path: Path, nimg: int, rows: Mapping[str, Any]) -> Path:
    """Write `rows` to <path>/not-finite-<nimg>.json, all or nothing; OSError when the disk does not take it.

    NaN and infinities become "nan", "inf" and "-inf", which JSON has no numbers for.
    """
    out = path / f"not-finite-{nimg:012d}.json"
    write_atomic(out, json.dumps(_plain({"nimg": nimg, **rows}), indent=2, allow_nan=False) + "\n")
    return out


def _plain(value: Any) -> Any:
    """The same in JSON's types."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, Sequence | Set) and not isinstance(value, str):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, int | str) else str(value)
