"""The verbs below `graticule look`: pictures that only a per-pixel generator gives (CIPS, 2011.13775), and analyses.

Thin; definitions live in pipeline/synthesis. Where pictures go is decided as for `sample`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli_synthesis import RUNS, Model, Opened, Out, Psi, Runs, Size, open_model, px, unless_1
from pipeline.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from pipeline.data.reader import ShardReader

AT_ONCE = 64  # pictures of a set that are held together

look = typer.Typer(
    help="Inside a generator: denser grids, some pixels alone, codes, spectra, reconstructions, the best of several."
)

Seeds = Annotated[str, typer.Option(help="For example 0-3 or 1,5,7-9.")]
Data = Annotated[Path, typer.Option(metavar="DIR", help="Prepared data set (see graticule prep).")]


@look.command()
def dense(
    model: Model,
    factor: Annotated[int, typer.Option(min=2, help="Pixels for one; N px become F (N - 1) + 1.")] = 2,
    seeds: Seeds = "0-1",
    truncation_psi: Psi = 1.0,
    out: Out = None,
    runs: Runs = RUNS,
) -> None:
    """A denser grid beside Lanczos up-sampling of the native picture, and the middle of both enlarged."""
    from pipeline.synthesis import dense as grids
    from pipeline.synthesis.pictures import sheet
    from pipeline.synthesis.sample import parse_seeds

    numbers = parse_seeds(seeds)
    opened = open_model(model, runs, "look-dense", out)
    found = grids.dense(opened.G, numbers, factor, truncation_psi)
    opened.save(
        sheet(grids.rows(found, numbers)), {"px": px(found.dense), "seeds": seeds, "psi": unless_1(truncation_psi)}
    )
    opened.tell(f"{len(numbers)} seeds at {px(found.dense)} px from {model}")


@look.command()
def foveated(
    model: Model,
    percent: Annotated[str, typer.Option(help="Of the pixels, a column each.")] = "5,25,50,100",
    seeds: Seeds = "0-1",
    size: Size = "",
    truncation_psi: Psi = 1.0,
    out: Out = None,
    runs: Runs = RUNS,
) -> None:
    """Some pixels, most of them in the middle, and the picture with its holes filled by interpolation."""
    from pipeline.synthesis import foveated as fovea
    from pipeline.synthesis.pictures import sheet
    from pipeline.synthesis.pixels import per_pixel, styles
    from pipeline.synthesis.sample import parse_seeds, parse_size

    numbers, parts, wanted = parse_seeds(seeds), fovea.parse_percent(percent), parse_size(size)
    opened = open_model(model, runs, "look-foveated", out)
    wanted = wanted or per_pixel(opened.G).native_size
    opened.G.check_size(wanted)  # type: ignore[operator]
    rows = []
    for seed, ws in zip(numbers, styles(opened.G, numbers, truncation_psi).split(1), strict=True):
        computed, filled = fovea.rows(opened.G, ws, wanted, parts)
        rows += [(f"seed {seed}: {percent} % of the pixels", computed), ("the others interpolated", filled)]
    what = f"{wanted[0]}x{wanted[1]}"
    opened.save(sheet(rows), {"px": what, "percent": percent, "seeds": seeds, "psi": unless_1(truncation_psi)})
    opened.tell(f"{percent} % of {what} px from {model}")


@look.command()
def panorama(
    model: Model,
    seeds: Annotated[str, typer.Option(help="Styles at even distances along the width.")] = "0-3",
    size: Size = "",
    truncation_psi: Psi = 1.0,
    out: Out = None,
    runs: Runs = RUNS,
) -> None:
    """The whole width of the coordinates, blended between the styles of several seeds; on a cylinder it closes."""
    from pipeline.spec import to_uint8
    from pipeline.synthesis.panorama import panorama as wide
    from pipeline.synthesis.pixels import per_pixel, styles
    from pipeline.synthesis.sample import parse_seeds, parse_size

    numbers, wanted = parse_seeds(seeds), parse_size(size)
    opened = open_model(model, runs, "look-panorama", out)
    image = to_uint8(wide(opened.G, styles(per_pixel(opened.G), numbers, truncation_psi), wanted)[None])
    image = image.permute(0, 2, 3, 1).cpu().numpy()
    opened.save(image[0], {"px": px(image), "seeds": seeds, "psi": unless_1(truncation_psi)})
    opened.tell(f"{len(numbers)} styles over {px(image)} px from {model}")


@look.command()
def mix(
    model: Model,
    destinations: Annotated[str, typer.Option(help="Seeds, a row each.")] = "0-2",
    sources: Annotated[str, typer.Option(help="Seeds whose w is taken, a column each.")] = "3-6",
    layers: Annotated[str, typer.Option(help="Groups of layers, for example 1-2,3-5; thirds if not given.")] = "",
    size: Size = "",
    truncation_psi: Psi = 1.0,
    out: Out = None,
    runs: Runs = RUNS,
) -> None:
    """w of other seeds in some of the layers, a block of rows for each range of groups."""
    import numpy as np

    from pipeline.synthesis.mixing import mix as mixes
    from pipeline.synthesis.mixing import parse_spans, thirds
    from pipeline.synthesis.pictures import sheet
    from pipeline.synthesis.sample import generate, parse_seeds, parse_size

    to, of, wanted = parse_seeds(destinations, "destinations"), parse_seeds(sources, "sources"), parse_size(size)
    given = parse_spans(layers) if layers else None
    opened = open_model(model, runs, "look-mix", out)
    spans = given or thirds(opened.G)
    images = mixes(opened.G, to, of, spans, wanted, truncation_psi)
    kept, taken = (generate(opened.G, seeds, wanted, truncation_psi) for seeds in (to, of))
    rows = [("sources", [np.full_like(taken[0], 255), *taken])]
    for (first, last), block in zip(spans, images, strict=True):
        what = f"group {first}" if first == last else f"groups {first}-{last}"
        for seed, one, row in zip(to, kept, block, strict=True):
            rows.append((f"seed {seed}, {what} of the sources", [one, *row]))
    words = {"px": px(taken), "to": destinations, "of": sources, "layers": layers, "psi": unless_1(truncation_psi)}
    opened.save(sheet(rows), words)
    opened.tell(f"{len(of)} sources in {len(spans)} ranges of {len(to)} seeds, {px(taken)} px from {model}")


@look.command()
def zeroed(
    model: Model,
    seeds: Seeds = "0-3",
    size: Size = "",
    truncation_psi: Psi = 1.0,
    out: Out = None,
    runs: Runs = RUNS,
) -> None:
    """Pictures as they are, without Fourier features, and without coordinate embeddings."""
    from pipeline.synthesis.pictures import sheet
    from pipeline.synthesis.pixels import per_pixel
    from pipeline.synthesis.sample import generate, parse_seeds, parse_size

    numbers, wanted = parse_seeds(seeds), parse_size(size)
    opened = open_model(model, runs, "look-zeroed", out)
    whole = generate(opened.G, numbers, wanted, truncation_psi)
    rows = [("both codes", list(whole))]
    for text, code in (("no Fourier features", "fourier"), ("no coordinate embeddings", "embedding")):
        with per_pixel(opened.G).zeroed(**{code: True}):
            rows.append((text, list(generate(opened.G, numbers, wanted, truncation_psi))))
    opened.save(sheet(rows), {"px": px(whole), "seeds": seeds, "psi": unless_1(truncation_psi)})
    opened.tell(f"{len(numbers)} seeds with and without either code, {px(whole)} px from {model}")


@look.command()
def spectra(
    model: Model,
    data: Data,
    against: Annotated[
        list[str] | None, typer.Option(metavar="MODEL", help="Further models, each with --against.")
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Of the set and of each model; 5000 in the paper.")] = 256,
    out: Out = None,
    runs: Runs = RUNS,
) -> None:
    """Mean magnitude spectra of real and generated pictures, and their azimuthal means; numbers go to .json beside."""
    from pipeline.synthesis.pictures import Panel, chart, sheet
    from pipeline.synthesis.sample import generate
    from pipeline.synthesis.spectra import as_picture, spectrum

    opened = open_model(model, runs, "look-spectra", png(out))
    others = {name: open_model(name, runs, "look-spectra", None).G for name in against or []}
    set_ = _set_of(data, opened)
    found = {"real": spectrum(_photographs(set_, _spread(len(set_), images)))}
    for name, G in {model: opened.G, **others}.items():
        if tuple(G.native_size) != (set_.size_px, set_.size_px):  # type: ignore[arg-type]
            raise UserError(f"against={name!r} makes {G.native_size}, not the {set_.size_px} px of the set")
        found[_short(name)] = spectrum(
            generate(G, range(i, min(i + AT_ONCE, images))) for i in range(0, images, AT_ONCE)
        )
    maps = as_picture({name: s.magnitude_db for name, s in found.items()})
    curves = chart(
        [Panel("power by cycles a side, dB", {name: s.profile_db() for name, s in found.items()})], columns=1
    )
    text = ", ".join(f"{name} ({s.count})" for name, s in found.items())
    picture = sheet([(f"mean spectra: {text}", list(maps.values())), ("azimuthal means", [curves])])
    opened.save(picture, {"px": set_.size_px, "images": images, "against": len(others) or None})
    beside(opened, {n: {"images": s.count, "power": s.power.tolist()} for n, s in found.items()})
    opened.tell(f"spectra of {text}")


@look.command()
def codes(model: Model, size: Size = "", out: Out = None, runs: Runs = RUNS) -> None:
    """Spectra of Fourier features and coordinate embeddings, and their first principal components as colours."""
    from pipeline.synthesis.codes import codes as codes_of
    from pipeline.synthesis.codes import components, magnitude_db
    from pipeline.synthesis.pictures import enlarged, sheet
    from pipeline.synthesis.sample import parse_size
    from pipeline.synthesis.spectra import as_picture

    wanted = parse_size(size)
    opened = open_model(model, runs, "look-codes", png(out))
    found = codes_of(opened.G, wanted)
    maps = as_picture({name: magnitude_db(code) for name, code in found.items()})
    rows, numbers = [], {}
    for name, code in found.items():
        first = components(code)
        parts = ", ".join(f"{part:.1%}" for part in first.explained)
        colours = enlarged(first.rgb(), len(maps[name]) // len(code))
        rows.append((f"{name}: spectrum, and the components of {parts} of the variance", [maps[name], colours]))
        numbers[name] = {"explained": first.explained.tolist()}
    what = "x".join(map(str, next(iter(found.values())).shape[:2]))
    opened.save(sheet(rows), {"px": what})
    beside(opened, numbers)
    opened.tell(f"{' and '.join(found)} on a grid of {what} from {model}")


@look.command()
def neighbours(
    model: Model,
    data: Data,
    embedding: Annotated[Path, typer.Option(metavar="FILE", help="TorchScript: [n, 3, h, w] in [-1, 1] to [n, d].")],
    seeds: Seeds = "0-3",
    count: Annotated[int, typer.Option(min=1, help="Neighbours of each.")] = 5,
    truncation_psi: Psi = 1.0,
    out: Out = None,
    runs: Runs = RUNS,
) -> None:
    """Samples, each beside the nearest pictures of a set by an embedding of yours; numbers go to .json beside."""
    from pipeline.synthesis.neighbours import load_embedding, nearest, stacked
    from pipeline.synthesis.pictures import sheet
    from pipeline.synthesis.sample import generate, parse_seeds

    numbers, embed = parse_seeds(seeds), load_embedding(embedding)
    opened = open_model(model, runs, "look-neighbours", png(out))
    set_ = _set_of(data, opened)
    images = generate(opened.G, numbers, None, truncation_psi)
    bank = (embed(stacked(batch)) for batch in _photographs(set_, range(len(set_))))
    found, distances = nearest(embed(stacked(images)), bank, count)
    rows, listed = [], []
    for seed, image, near, far in zip(numbers, images, found.tolist(), distances.tolist(), strict=True):
        pictures = [one for batch in _photographs(set_, near) for one in batch]
        rows.append((f"seed {seed}: nearest at {', '.join(f'{d:.3g}' for d in far)}", [image, *pictures]))
        listed.append({"seed": seed, "samples": near, "distances": far})
    opened.save(sheet(rows), {"seeds": seeds, "count": count, "by": embedding.stem, "psi": unless_1(truncation_psi)})
    beside(opened, {"data": str(data), "embedding": str(embedding), "neighbours": listed})
    opened.tell(f"{found.shape[1]} neighbours of {len(numbers)} samples among {len(set_)} pictures")


@look.command()
def reconstructions(
    model: Model,
    data: Data,
    count: Annotated[int, typer.Option(min=1, max=AT_ONCE, help="Pictures, at even distances in the set.")] = 8,
    out: Out = None,
    runs: Runs = RUNS,
) -> None:
    """Pictures of a set above what an autoencoder (vae) makes of them."""
    from pipeline.synthesis.pictures import sheet
    from pipeline.synthesis.reconstruct import autoencoder, reconstructed

    opened = open_model(model, runs, "look-reconstructions", out)
    G = autoencoder(opened.G)
    set_ = _set_of(data, opened)
    (images,) = _photographs(set_, _spread(len(set_), count))
    name = Path(data).name
    opened.save(
        sheet([(f"of {name}", list(images)), ("reconstructed", list(reconstructed(G, images)))]),
        {"px": px(images), "of": name, "count": len(images)},
    )
    opened.tell(f"{len(images)} pictures of {data} above their reconstructions")


@look.command()
def depth(
    run: Annotated[Path, typer.Argument(help="Run folder of a depth recipe.")],
    data: Data,
    count: Annotated[int, typer.Option(min=1, max=AT_ONCE, help="Pairs, at even distances in the set.")] = 8,
    out: Out = None,
) -> None:
    """Photographs, measured depth, and what a network for depth predicts; numbers go to .json beside."""
    from pipeline.run import newest_checkpoint, read_run
    from pipeline.synthesis import depth as maps
    from pipeline.synthesis.pictures import sheet

    family, checkpoint = read_run(run).family, newest_checkpoint(run)
    G = maps.load_unet(family, checkpoint / "G_ema.safetensors")
    opened = Opened(G, "look-depth", png(out), "out", run, checkpoint.name)
    rows, found = maps.rows(G, data, count)
    opened.save(sheet(rows), {"of": data.name, "count": count})
    beside(opened, {"data": str(data), **found})
    opened.tell(f"pairs of {data}")


def png(out: Path | None) -> Path | None:
    if out and out.suffix != ".png":
        raise UserError(f"out={str(out)!r}: expected a name that ends in .png; the numbers go beside it, to .json")
    return out


def beside(opened: Opened, numbers: object) -> None:
    from pipeline.config import write_atomic

    opened.write(
        opened.path.with_suffix(".json"), lambda path: write_atomic(path, json.dumps(numbers, indent=1) + "\n")
    )


def _short(model: str) -> str:
    return model if model.startswith("models:/") else Path(model).name


def _set_of(data: Path, opened: Opened) -> "ShardReader":
    """The set, whose pictures must be as large as the model's."""
    from pipeline.data.reader import ShardReader

    set_ = ShardReader(data)
    h, w = opened.G.native_size  # type: ignore[misc]
    if (h, w, 3) != set_.shape:
        seen = f"{set_.shape[0]}x{set_.shape[1]}" if set_.planes > 1 else str(set_.size_px)
        raise UserError(
            f"data={str(data)!r} holds {seen} px pictures, the model makes {h}x{w}; prepare a set of that size"
        )
    return set_


def _spread(of: int, count: int) -> list[int]:
    """So many numbers below `of`, at even distances; all of them if there are no more."""
    count = min(of, count)
    return [i * of // count for i in range(count)]


def _photographs(set_: "ShardReader", numbers: "range | list[int]") -> "Iterator[np.ndarray]":
    """uint8 [n, h, w, 3] of these samples, some at a time."""
    import numpy as np

    for i in range(0, len(numbers), AT_ONCE):
        yield np.stack([set_.read(j)[0].transpose(1, 2, 0) for j in numbers[i : i + AT_ONCE]])
