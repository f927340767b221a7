"""A sheet of samples: a strip of every row's newest sample grid, one below the other, a sheet for each trained size.

Grids are RUN/samples/<nimg>-<height>x<width>.png, the same latents at every nimg (pipeline.runlog writes them). Knows
nothing of networks and numbers.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pipeline.tables.measured import RunFacts
from pipeline.tables.page import Picture

TILES = 8
SMALLEST_PX, LARGEST_PX = 48, 128  # of a shown tile; smaller ones are enlarged by whole numbers, larger ones reduced
GAP_PX, FONT_PX = 4, 13
GRID = re.compile(r"(\d{12})-(\d+)x(\d+)\.png")
Size = tuple[int, int]  # height, width


def draw(out: Path, titles: Mapping[str, str], facts: Sequence[RunFacts], runs: Path) -> list[Picture]:
    """OUT/sheet.png, or OUT/sheet-<height>x<width>.png for each of several sizes; nothing where no row has samples.

    `titles`: of each row, in the sheet's order; rows without samples of a size are there by them alone. A row shows its
    first seed that has any.
    """
    found = {name: _newest_of(name, facts, runs) for name in titles}
    sizes = sorted({size for _, grids in found.values() for size in grids})
    pictures = []
    for size in sizes:
        strips = []
        for name, title in titles.items():
            seed, grids = found[name]
            kimg, path = grids.get(size, (0.0, None))
            strip = None if path is None else _tiles(path, size)
            said = f"seed {seed}, {kimg:g} kimg" if strip is not None else "no samples"
            strips.append((title, said, strip))
        h, w = size
        path = out / ("sheet.png" if len(sizes) == 1 else f"sheet-{h}x{w}.png")
        _stacked(strips, size).save(path, format="PNG")
        shown = _shown_px(size)
        how = "" if shown == size else f", shown at {shown[0]} x {shown[1]}"
        caption = f"The first {TILES} fixed latents of each row's newest samples, {h} x {w} px{how}"
        pictures.append(Picture(path, caption))
    return pictures


def _newest_of(row: str, facts: Sequence[RunFacts], runs: Path) -> tuple[int, dict[Size, tuple[float, Path]]]:
    """Seed, and its newest grid of each size with its kimg."""
    for run in (f for f in facts if f.row == row and f.folder):
        grids: dict[Size, tuple[float, Path]] = {}
        for path in sorted((runs / run.folder / "samples").glob("*.png")):
            if match := GRID.fullmatch(path.name):
                grids[int(match[2]), int(match[3])] = (int(match[1]) / 1000, path)
        if grids:
            return run.seed, grids
    return 0, {}


def _tiles(path: Path, size: Size) -> list[Image.Image] | None:
    """The first images of a grid; None where the file is cut short or no such grid."""
    h, w = size
    try:
        with Image.open(path) as grid:
            image = grid.convert("RGB")
    except OSError:
        return None
    columns, lines = image.width // w, image.height // h
    if not columns or not lines:
        return None
    corners = [(i % columns * w, i // columns * h) for i in range(min(TILES, columns * lines))]
    return [image.crop((x, y, x + w, y + h)) for x, y in corners]


def _shown_px(size: Size) -> Size:
    """Height and width of a tile on the sheet."""
    longest = max(size)
    if longest > LARGEST_PX:
        return max(1, size[0] * LARGEST_PX // longest), max(1, size[1] * LARGEST_PX // longest)
    times = max(1, -(-SMALLEST_PX // longest))
    return size[0] * times, size[1] * times


def _stacked(strips: Sequence[tuple[str, str, list[Image.Image] | None]], size: Size) -> Image.Image:
    """Names on the left, tiles on the right; a row without tiles is a line of text."""
    (h, w), font = _shown_px(size), ImageFont.load_default(FONT_PX)
    label_px = int(max(font.getlength(text) for name, said, _ in strips for text in (name, said))) + 3 * GAP_PX
    line_px = max(h, 2 * (FONT_PX + GAP_PX)) + GAP_PX
    sheet = Image.new("RGB", (label_px + TILES * (w + GAP_PX), len(strips) * line_px), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (name, said, tiles) in enumerate(strips):
        top = i * line_px
        pen.text((GAP_PX, top), name, fill="black", font=font)
        pen.text((GAP_PX, top + FONT_PX + GAP_PX), said, fill="#777777", font=font)
        for k, tile in enumerate(tiles or ()):
            how = Image.Resampling.LANCZOS if h < size[0] else Image.Resampling.NEAREST
            sheet.paste(tile.resize((w, h), how), (label_px + k * (w + GAP_PX), top))
    return sheet
