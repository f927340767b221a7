"""What a detector's file holds, told by its content: TorchScript, a torch.export program, or a state dict.

Nothing is unpickled beyond tensors: torch.export.load would fall back to pickle where an archive asks for it, so such
archives are refused first. A program is code of its author's all the same. Knows no names, hashes or resizing.
"""

import io
import json
import logging
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from pipeline.errors import UserError
from pipeline.metrics.inception import from_state_dict

EXPORT = "save TorchScript or torch.export.save(...) of it, or the state dict of FID's Inception"


@dataclass(frozen=True)
class Program:
    """`call`: images, and flags as keywords, to features. `batch`, `side_px`: the only ones it takes, None for any."""

    call: Callable[..., Any]
    kind: Literal["torchscript", "export", "weights"]
    batch: int | None = None
    side_px: int | None = None


def read_program(path: Path, device: torch.device, where: str) -> Program:
    """UserError, one line beginning with `where`, if the file holds none of the three or would have to be unpickled."""
    try:
        kind = _kind(path)
        if kind == "export":
            return _exported(path, device, where)
        if kind == "torchscript":
            with _quiet():
                return Program(torch.jit.load(str(path), map_location=device).eval(), kind)
        with _quiet():
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (UserError, torch.OutOfMemoryError):
        raise
    except pickle.UnpicklingError as e:
        raise UserError(f"{where}: a pickle of more than tensors, or no detector; it is not run; {EXPORT}") from e
    except Exception as e:  # of a damaged file torch raises what the damage happens to cause
        first = (str(e).strip().splitlines() or [""])[0]
        raise UserError(f"{where}: damaged, or not for torch {torch.__version__} ({first:.150}); fetch it again") from e
    if not isinstance(state, Mapping):
        raise UserError(f"{where}: holds one {type(state).__name__}, no state dict; {EXPORT}")
    return Program(from_state_dict(state, where).to(device), "weights")


def _kind(path: Path) -> Literal["torchscript", "export", "weights"]:
    if not zipfile.is_zipfile(path):
        return "weights"  # or no detector at all; the reader will tell
    with zipfile.ZipFile(path) as archive:
        inside = {name.partition("/")[2] for name in archive.namelist()}
    if "archive_format" in inside:
        return "export"
    return "torchscript" if "constants.pkl" in inside and any(n.startswith("code/") for n in inside) else "weights"


@contextmanager
def _quiet() -> Iterator[None]:
    """torch warns of formats that are old, and logs the traceback of what it then raises."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)


def _exported(path: Path, device: torch.device, where: str) -> Program:
    from torch.export.passes import move_to_device_pass  # a second of imports, for those who need it

    _refuse_pickles(path, where)
    with _quiet(), path.open("rb") as f:
        program = torch.export.load(f)
        tensors = [t for t in (*program.state_dict.values(), *program.constants.values()) if torch.is_tensor(t)]
        if device.type != "cpu" or any(t.device.type != "cpu" for t in tensors):
            program = move_to_device_pass(program, device)
        module = program.module()
    names = program.graph_signature.user_inputs
    inputs = [n.meta["val"] for n in program.graph.nodes if n.op == "placeholder" and n.name in names]
    shapes = [list(getattr(value, "shape", ())) for value in inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][1] != 3:
        raise UserError(f"{where}: takes {' and '.join(map(str, shapes))}; wanted one input [n, 3, h, w]")
    batch, _, h, w = (n if isinstance(n, int) else None for n in shapes[0])
    if h != w and h is not None and w is not None:
        raise UserError(f"{where}: takes images of {w} x {h} px; export it for a square")
    return Program(module, "export", batch, h if h is not None else w)


def _refuse_pickles(path: Path, where: str) -> None:
    """Refuse an exported program with a part that torch would unpickle, or with compiled code."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if len({name.lower() for name in names}) != len(names):
            raise UserError(f"{where}: two entries of one name; export it again")
        for name in names:
            inside = name.partition("/")[2]
            folder = inside.rpartition("/")[0]
            if folder.startswith("data/aotinductor"):
                raise UserError(f"{where}: holds compiled code; save it with torch.export.save")
            if folder in ("data/weights", "data/constants"):
                unsafe = inside.endswith(".pt")  # of older versions of torch
                if inside.endswith("_config.json"):
                    entries = json.loads(archive.read(name)).get("config", {}).values()
                    unsafe = any(entry.get("use_pickle") is not False for entry in entries)
                    known = ("weight_", "tensor_")  # what else there may be are objects
                    unsafe |= any(not entry["path_name"].startswith(known) for entry in entries)
                if unsafe:
                    raise UserError(f"{where}: an exported program with a pickle inside; it is not run; {EXPORT}")
            if folder == "data/sample_inputs":
                torch.load(io.BytesIO(archive.read(name)), weights_only=True)  # UnpicklingError is the caller's
