"""The documented weight map: checkpoints of public code bases for our networks (docs/imports.md).

A code base is one file here and one line in STYLES. Files are read as tensors and nothing else: safetensors, or
torch.load(weights_only=True). Knows no recipe and writes nothing.
"""

import argparse
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipeline.models.imports import cips, mmgeneration, nvlabs, rosinality
from pipeline.models.imports.weightmap import Found as Found
from pipeline.models.imports.weightmap import Style, discriminator_settings, generator_settings, networks, translate
from pipeline.models.imports.weightmap import check_complete as check_complete
from pipeline.models.imports.weightmap import misfits as misfits
from pipeline.spec import UserError

STYLES: dict[str, Style] = {
    "rosinality": rosinality.STYLE,
    "mmgeneration": mmgeneration.STYLE,
    "nvlabs": nvlabs.STYLE,
    "cips": cips.STYLE,
}

CONVERT = (
    "where its authors' code runs, save the tensors alone with "
    "safetensors.torch.save_file(G.state_dict(), 'G.safetensors') and import that"
)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The tensors of a file, nested as it nests them, on the CPU.

    UserError, in one line, where it is no such file, or reading it would mean running what it holds.
    """
    where = f"file={str(path)!r}"
    if not path.is_file():
        raise UserError(f"{where}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():  # plain attributes
            warnings.simplefilter("ignore")  # of old pickles; what matters is raised
            tree = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as e:
        raise UserError(f"{where}: no safetensors file, or cut short ({e}); fetch it again") from e
    except pickle.UnpicklingError as e:
        with path.open("rb") as f:
            if not f.read(2).startswith((b"\x80", b"PK")):
                raise UserError(f"{where}: no checkpoint, but {path.stat().st_size} bytes of something else") from e
        named = re.search(r"GLOBAL ([\w.]+)", str(e))
        what = named[1] if named else "classes"
        raise UserError(f"{where}: a pickle of {what}; reading it runs code, so it is refused; {CONVERT}") from e
    except Exception as e:  # of a damaged file torch.load raises what the damage happens to cause
        raise UserError(f"{where}: damaged, or no checkpoint ({type(e).__name__}); fetch it again") from e
    if not isinstance(tree, Mapping):
        raise UserError(f"{where}: holds one {type(tree).__name__}, no state dict; {CONVERT}")
    return dict(tree)


def read(tree: Mapping[str, Any], style: Style, where: str) -> dict[str, Found]:
    """Each network of a checkpoint ("G", "G_ema", "D") under our names; UserError at the first key without a rule."""
    found = {}
    for net, theirs in networks(tree, style, where).items():
        here = f"{where}, {net}"
        if net == "D":
            weights, dropped = translate(theirs, style.discriminator(theirs), here)
            settings = discriminator_settings(weights, here)
        else:
            weights, dropped = translate(theirs, style.generator(theirs), here)
            told = style.settings
            settings = told(weights, here) if told else generator_settings(weights, style.blocks(theirs), here)
        found[net] = Found(weights, dropped, settings)
    return found
