"""Checkpoints on disk: atomic, hashed, found again by walking back to the newest valid one.

`checkpoints/<nimg:012d>/` holds the nets as safetensors, optimizer states as torch files that load with
weights_only=True, state.json, and manifest.json with size and sha256 of each, written last but one: the rename of
the whole folder is the commit. State is consolidated, so any world size can load it. Knows no network by name.
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.config import Config
from pipeline.spec import UserError

FORMAT = 2


class State(Config):
    """Everything a run feeds back to itself that is not a tensor."""

    format: int = FORMAT
    fingerprint: str  # of the RunConfig this belongs to
    nimg: int  # real images consumed
    feedback: dict[str, float] = {}
    stats: dict[str, tuple[float, float]] = {}  # open window of metrics: name -> (sum, count)
    train_sec: float = 0.0  # time spent in training before this point, over all attempts
    scalers: dict[str, dict[str, float]] = {}
    rollbacks: int = 0


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint in memory, on the CPU."""

    state: State
    nets: dict[str, dict[str, Tensor]]
    optimizers: dict[str, dict[str, Any]]


def folder_of(root: Path, nimg: int) -> Path:
    return root / f"{nimg:012d}"


def save(root: Path, snapshot: Snapshot, *, milestone: bool = False) -> Path:
    """Write and publish one checkpoint; re-saving an existing valid one is a no-op. Rank 0 only.

    Raises OSError when the disk refuses; nothing half-written stays.
    """
    state, nets, optimizers = snapshot.state, snapshot.nets, snapshot.optimizers
    final = folder_of(root, state.nimg)
    if final.exists():
        if not problem_of(final):
            return final
        shutil.rmtree(final)
    root.mkdir(parents=True, exist_ok=True)
    for leftover in root.glob(".*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    temp = root / f".{final.name}.{os.getpid()}.tmp"
    temp.mkdir()
    try:
        for name, net in nets.items():
            save_file(
                net,
                temp / f"{name}.safetensors",
            )
        for name, optimizer in optimizers.items():
            torch.save(optimizer, temp / f"opt_{name}.pt")
        (temp / "state.json").write_text(state.to_json())
        files = {f.name: {"bytes": f.stat().st_size, "sha256": _sha256(f)} for f in sorted(temp.iterdir())}
        (temp / "manifest.json").write_text(json.dumps({"format": FORMAT, "files": files}, indent=2) + "\n")
        for f in temp.iterdir():
            _fsync(f)
        _fsync(temp)
        os.rename(temp, final)
        _fsync(root)
    except BaseException:
        shutil.rmtree(temp, ignore_errors=True)
        raise
    return final


def problem_of(folder: Path) -> str:
    """Why this folder is not a valid checkpoint; empty when it is."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        if manifest["format"] != FORMAT:
            return f"format {manifest['format']}, this version reads {FORMAT}"
        for name, facts in manifest["files"].items():
            file = folder / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != facts["bytes"] or _sha256(file) != facts["sha256"]:
                return f"{name} does not match its sha256"
    except (OSError, ValueError, KeyError, TypeError) as e:
        return f"manifest.json unreadable ({type(e).__name__})"
    return ""


def all_checkpoints(root: Path) -> list[Path]:
    """Published folders, newest first, not checked."""
    return sorted((p for p in root.glob("[0-9]" * 12) if p.is_dir()), reverse=True)


def newest_valid(root: Path, *, healthy: bool = False) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that checks out, and what was wrong with those passed over."""
    passed = []
    for folder in all_checkpoints(root):
        problem = problem_of(folder)
        if not problem:
            return folder, passed
        passed.append(f"{folder.name}: {problem}")
    return None, passed


def load(folder: Path, fingerprint: str) -> Snapshot:
    """Read a checkpoint; UserError when it belongs to another recipe or configuration."""
    state = State.from_json((folder / "state.json").read_text(), where=str(folder / "state.json"))
    if state.fingerprint != fingerprint:
        raise UserError(
            f"checkpoint {folder} belongs to configuration {state.fingerprint}, this run is {fingerprint}; "
            "move it away or run the recipe it was made with"
        )
    nets = {p.stem: load_file(p) for p in folder.glob("*.safetensors")}
    optimizers = {
        p.stem.removeprefix("opt_"): torch.load(p, map_location="cpu", weights_only=True)
        for p in folder.glob("opt_*.pt")
    }
    return Snapshot(state, nets, optimizers)


def prune(root: Path, keep: int) -> list[Path]:
    """Delete all but the newest `keep`; call only after the newest one verified."""
    removed = all_checkpoints(root)[keep:]
    for folder in removed:
        doomed = folder.with_name(f".{folder.name}.pruned.tmp")
        os.rename(folder, doomed)  # so that a kill in the middle leaves no folder that looks published
        shutil.rmtree(doomed)
    return removed


def discard_after(root: Path, nimg: int) -> None: ...


def _sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
