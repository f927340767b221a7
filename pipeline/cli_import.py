"""The verb of the command line that takes over public checkpoints. Thin; the weight maps are pipeline/models/imports.

Writes what sampling needs: config.json (the recipe's RunConfig) and weights as safetensors. Knows no training.
"""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.families.cips import CIPSConfig
    from pipeline.families.mspie import MSPIEConfig
    from pipeline.models.imports import Found

NETWORKS = {"mspie": "StyleGAN2", "cips": "CIPS"}  # kind of a family -> what its networks are called
PADDED_SKIP = "family.G.padded_skip=true"  # without padding, public code still pads its RGB skip path


def import_(
    file: Annotated[Path, typer.Argument(help="Public checkpoint: .safetensors, .pt or .pth.")],
    recipe: Annotated[str, typer.Argument(help="The row it was trained as, for example mspie.table5_a.")],
    style: Annotated[str, typer.Option(help="Whose names: rosinality, mmgeneration, nvlabs or cips.")],
    out: Annotated[Path, typer.Option(help="Folder to make, for graticule sample.")],
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override the recipe.")] = None,
) -> None:
    """A public StyleGAN2, MS-PIE or CIPS checkpoint as G_ema, and D where there is one, of a recipe."""
    from pipeline.config import nearest, override
    from pipeline.families.cips import CIPSConfig
    from pipeline.families.mspie import MSPIEConfig
    from pipeline.models.imports import STYLES, check_complete, load_checkpoint, read
    from pipeline.recipes import find

    if style not in STYLES:
        raise UserError(f"style={style!r} is unknown; {nearest(style, STYLES)}")
    run = override(find(recipe).make(), set_ or [])
    family = run.family
    kind = STYLES[style].family
    if not isinstance(family, MSPIEConfig | CIPSConfig) or family.kind != kind:
        raise UserError(
            f"recipe={recipe!r} has no {NETWORKS[kind]} networks; use one of {kind}'s (`graticule recipes`)"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out={str(out)!r} is there already and not an empty folder; choose another")
    where = f"file={str(file)!r}"
    found = read(load_checkpoint(file), STYLES[style], where)
    if "G_ema" not in found and "G" not in found:
        raise UserError(f"{where}: holds a discriminator and no generator; nothing could be sampled")
    generator = "G_ema" if "G_ema" in found else "G"
    nets = {"G_ema": found[generator]} | {name: found[name] for name in ("D",) if name in found}
    rows = _rows_that_fit(nets, kind)
    _check_row(nets, family, where, list(rows))
    for name, net in nets.items():
        check_complete(net.weights, family.D if name == "D" else family.G, f"{where}, {name}")
    _write(out, run.to_json(), nets)
    for name, net in nets.items():
        count = sum(t.numel() for t in net.weights.values())
        print(f"{out / name}.safetensors: {count:,} parameters; left out {len(net.dropped)} buffers of theirs")
    if generator == "G":
        print("note: the checkpoint has no moving average; G_ema is its G")
    if others := [row for row, G in rows.items() if G != family.G]:
        print(f"note: names and shapes cannot tell {recipe} from {', '.join(others)}; be sure of the row")
    if family.kind == "cips" and family.G.lookup == "exact":
        print("note: the release's own pictures are those of --set family.G.lookup=half_pixel")
    print(f"look at it with: graticule sample {out}")


VERBS = (import_,)


def _misfits(nets: "dict[str, Found]", family: "MSPIEConfig | CIPSConfig") -> dict[str, tuple]:
    """Keys of a recipe that are not as in the checkpoint, and the values that would be."""
    from pipeline.models.imports import misfits

    parts = {"D" if name == "D" else "G": net.settings for name, net in nets.items()}
    configs = {"G": family.G, "D": family.D}
    return {
        f"family.{part}.{field}": fits
        for part, settings in parts.items()
        for field, fits in misfits(settings, configs[part]).items()
    }


def _rows_that_fit(nets: "dict[str, Found]", kind: str = "mspie") -> dict[str, "Config"]:
    """Recipes, with the override some of them need, whose networks have a checkpoint's settings; and their G."""
    from pipeline.config import override
    from pipeline.families.cips import CIPSConfig
    from pipeline.families.mspie import MSPIEConfig
    from pipeline.recipes import recipes

    rows = {}
    for recipe in recipes().values():
        family, words = recipe.make().family, []
        if not isinstance(family, MSPIEConfig | CIPSConfig) or family.kind != kind:
            continue
        if isinstance(family, MSPIEConfig) and family.G.coords.mode != "none":
            continue  # no public code base has these channels
        if isinstance(family, MSPIEConfig) and family.G.padding == "none" and not family.G.padded_skip:
            words = [PADDED_SKIP]
            family = override(family, [word.removeprefix("family.") for word in words])
        if not _misfits(nets, family):
            rows[" --set ".join([recipe.name, *words])] = family.G
    return rows


def _check_row(nets: "dict[str, Found]", family: "MSPIEConfig | CIPSConfig", where: str, rows: list[str]) -> None:
    """UserError where the checkpoint is of another row, with those it can be of, or else what makes this one fit."""
    wrong = _misfits(nets, family)
    if not wrong:
        return
    key, fits = next(iter(wrong.items()))
    have = getattr(getattr(family, key.split(".")[1]), key.split(".")[2])
    if not fits:
        raise UserError(f"{where}: {key}={have!r}, but its widths follow no rule that these networks have")
    advice = f"these fit: {', '.join(rows)}"
    if not rows:
        depth = "num_upblocks" if family.kind == "mspie" else "size_px"
        side = wrong.get(f"family.G.{depth}", (getattr(family.G, depth),))[0]
        px = {"family.D.resolution_px": (4 << side if family.kind == "mspie" else side,)}
        wrong = {k: v for k, v in (px | wrong).items() if k in wrong or v[0] != family.D.resolution_px}
        words = [f"--set {k}={'null' if v[0] is None else v[0]}" for k, v in wrong.items()]
        advice = f"no recipe fits as it is; {' '.join(words)} may"
    theirs = " or ".join(map(repr, fits))
    raise UserError(f"{where}: {key}={have!r}, the checkpoint's is {theirs}; {advice}")


def _write(out: Path, config: str, nets: "dict[str, Found]") -> None:
    """The whole folder under another name, then renamed."""
    from safetensors.torch import save

    from pipeline.config import write_atomic

    out = out.absolute()
    temp = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temp.mkdir(parents=True)
        for name, net in nets.items():
            write_atomic(temp / f"{name}.safetensors", save(net.weights))
        write_atomic(temp / "config.json", config)
        os.replace(temp, out)
    except OSError as e:
        raise UserError(f"out={str(out)!r} cannot be written ({e.strerror or e}); choose another folder") from e
    finally:
        shutil.rmtree(temp, ignore_errors=True)
