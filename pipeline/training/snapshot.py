"""What one checkpoint holds, in memory and as the files of one folder.

The nets are safetensors, optimizer states torch files that load with weights_only=True, then state.json, and last
manifest.json with size and sha256 of each. Writes FORMAT, reads that and the one before. Deliberately knows nothing of
other checkpoints, of publishing and of networks by name: see checkpoint.py.
"""

import errno
import hashlib
import io
import json
import math
import os
import pickle
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from pydantic import ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from pipeline.config import Config, fsync_folder
from pipeline.spec import UserError

FORMAT = 2
DTYPES = {  # names of the safetensors format
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
# All that reading a damaged, vanished or foreign folder raises.
DAMAGE = (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError)


class State(Config):
    """Everything a run feeds back to itself that is not a tensor; state.json."""

    model_config = ConfigDict(allow_inf_nan=True)  # a loss that is not finite must not prevent a checkpoint

    format: int = FORMAT
    fingerprint: str  # of the RunConfig this belongs to
    nimg: int  # real images consumed
    feedback: dict[str, float] = {}
    stats: dict[str, tuple[float, float]] = {}  # open window of metrics: name -> (sum, count)
    train_sec: float = 0.0  # time spent in training before this point, over all attempts
    scalers: dict[str, dict[str, float]] = {}  # network -> state of its fp16 loss scaler
    rollbacks: int = 0  # how often this run was taken back after values that were not finite


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds, on the CPU, no longer touched by training."""

    state: State
    nets: dict[str, dict[str, Tensor]]
    optimizers: dict[str, dict[str, Any]]  # in the layout of torch.optim.Adam.state_dict()

    @property
    def healthy(self) -> bool:
        """Is every tensor, and every number that the run feeds back to itself, finite?"""
        numbers = [*self.state.feedback.values(), *(v for s in self.state.scalers.values() for v in s.values())]
        floating = (t for t in self._tensors() if t.is_floating_point())
        return all(map(math.isfinite, numbers)) and all(bool(torch.isfinite(t).all()) for t in floating)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors; the files take a little more."""
        return sum(t.numel() * t.element_size() for t in self._tensors())

    def _tensors(self) -> Iterator[Tensor]:
        for net in self.nets.values():
            yield from net.values()
        for optimizer in self.optimizers.values():
            for entry in optimizer["state"].values():
                yield from (v for v in entry.values() if isinstance(v, Tensor))


class Entry(Config):
    """What a file must be."""

    bytes: int
    sha256: str


class Manifest(Config):
    """manifest.json."""

    format: int = FORMAT
    milestone: bool  # never pruned
    healthy: bool  # Snapshot.healthy
    files: dict[str, Entry]


def write(folder: Path, snapshot: Snapshot, *, milestone: bool) -> None:
    """All files of a checkpoint, the manifest last, each on the disk when this returns.

    Raises OSError when the disk refuses. Tensors are written from where they lie.
    """
    files = {}
    for name, net in snapshot.nets.items():
        file = f"{name}.safetensors"
        files[file] = _put(folder / file, lambda f, net=net: _write_safetensors(f, net))
    for name, optimizer in snapshot.optimizers.items():
        file = f"opt_{name}.pt"
        files[file] = _put(folder / file, lambda f, optimizer=optimizer: torch.save(optimizer, f))
    files["state.json"] = _put(folder / "state.json", lambda f: f.write(snapshot.state.to_json().encode()))
    manifest = Manifest(milestone=milestone, healthy=snapshot.healthy, files=files)
    _put(folder / "manifest.json", lambda f: f.write(manifest.to_json().encode()))
    fsync_folder(folder)


def read_manifest(folder: Path) -> Manifest:
    """UserError for a format that nothing here reads, one of DAMAGE for what is no manifest."""
    tree = json.loads((folder / "manifest.json").read_bytes())
    if tree["format"] == 1:
        return manifest_of_format1(tree)
    if tree["format"] != FORMAT:
        raise UserError(f"format {tree['format']}, this version reads 1 and {FORMAT}")
    return Manifest.model_validate(tree)


def examine(folder: Path) -> tuple[Manifest | None, str]:
    """The manifest and "" where every file is what it must be; else None and what is wrong."""
    try:
        manifest = read_manifest(folder)
    except UserError as e:
        return None, str(e)
    except DAMAGE as e:
        return None, f"manifest.json unreadable ({type(e).__name__})"
    if "state.json" not in manifest.files:
        return None, "manifest.json lists no state.json"
    for name, entry in manifest.files.items():
        try:
            with open(folder / name, "rb") as f:
                same = os.fstat(f.fileno()).st_size == entry.bytes
                same = same and hashlib.file_digest(f, "sha256").hexdigest() == entry.sha256
        except OSError as e:
            return None, f"{name} is missing" if e.errno == errno.ENOENT else f"{name} unreadable ({e.strerror})"
        if not same:
            return None, f"{name} does not match its sha256"
    return manifest, ""


def read_state(folder: Path, manifest: Manifest) -> State:
    text, where = _read(folder, manifest, "state.json").decode(), str(folder / "state.json")
    return state_of_format1(text, where) if manifest.format == 1 else State.from_json(text, where=where)


def read_tensors(folder: Path, manifest: Manifest) -> tuple[dict[str, dict[str, Tensor]], dict[str, dict[str, Any]]]:
    """(nets, optimizers), each byte checked against the manifest; one of DAMAGE where they differ."""
    nets, optimizers = {}, {}
    for path in map(Path, manifest.files):
        if path.suffix == ".safetensors":
            nets[path.stem] = load_safetensors(_read(folder, manifest, path.name))
        elif path.suffix == ".pt":
            data = io.BytesIO(_read(folder, manifest, path.name))
            optimizers[path.stem.removeprefix("opt_")] = torch.load(data, map_location="cpu", weights_only=True)
    return nets, optimizers


def manifest_of_format1(tree: dict[str, Any]) -> Manifest:
    """Format 1 had no milestones, and did not look for values that are not finite."""
    return Manifest(format=1, milestone=False, healthy=True, files=tree["files"])


def state_of_format1(text: str, where: str) -> State:
    """Format 1 had neither scalers nor rollbacks; for the rest it is the State of today."""
    return State.from_json(text, where=where).replace(format=FORMAT)


def _read(folder: Path, manifest: Manifest, name: str) -> bytes:
    """A file in memory: safetensors' own reader maps it, and a map of a file that shrinks kills the process."""
    data, entry = (folder / name).read_bytes(), manifest.files[name]
    if len(data) != entry.bytes or hashlib.sha256(data).hexdigest() != entry.sha256:
        raise ValueError(f"{name} does not match its sha256")
    return data


class _Hashed:
    """A file that hashes what is written to it and keeps its error, which torch.save would replace by its own."""

    def __init__(self, file: BinaryIO):
        self.file, self.sha256, self.bytes = file, hashlib.sha256(), 0
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        size = memoryview(data).nbytes
        try:
            self.file.write(data)
        except OSError as e:
            self.error = e
            raise
        self.sha256.update(data)
        self.bytes += size
        return size

    def flush(self) -> None:
        self.file.flush()


def _put(path: Path, fill: Callable[[Any], Any]) -> Entry:
    """Write and sync one file. The entry is of what was meant, so that reading back compares the disk with memory."""
    with open(path, "wb") as raw:
        file = _Hashed(raw)
        try:
            fill(file)
        except RuntimeError:
            if file.error:
                raise file.error from None
            raise
        raw.flush()
        os.fsync(raw.fileno())
    return Entry(bytes=file.bytes, sha256=file.sha256.hexdigest())


def _write_safetensors(file: _Hashed, tensors: dict[str, Tensor]) -> None:
    """The safetensors format; not by the library, whose writer hides the errors of the disk."""
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # keeps each tensor aligned
    header, at = {}, 0
    for name in names:
        t = tensors[name]
        end = at + t.numel() * t.element_size()
        header[name] = {"dtype": DTYPES[t.dtype], "shape": list(t.shape), "data_offsets": [at, end]}
        at = end
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    file.write(struct.pack("<Q", len(head)) + head)
    for name in names:
        file.write(tensors[name].detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
