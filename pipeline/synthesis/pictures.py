"""Pictures on disk that are no single grid of samples: charts of curves, sheets of rows, and animations.

Drawn with Pillow alone, so that the same numbers are the same bytes. Knows nothing of what they show.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from pipeline.config import write_atomic

PANEL_PX, MARGIN_PX, LEGEND_PX = (270, 150), (58, 34, 12, 26), 26  # width, height; left, top, right, bottom
INK, FAINT = (40, 40, 40), (222, 222, 222)
GAP_PX, LINE_PX = 4, 20  # between the pictures of a sheet; for the text above a row
COLOURS = ((200, 30, 30), (230, 140, 0), (0, 110, 200), (20, 20, 20), (120, 60, 160), (0, 140, 80))


@dataclass(frozen=True)
class Panel:
    """One chart: curves by name, each over 0, 1, 2 ..."""

    title: str
    curves: Mapping[str, np.ndarray]


def chart(panels: Sequence[Panel], columns: int) -> UInt8[np.ndarray, "h w 3"]:
    """Panels row by row, each with a scale of its own; one legend, a colour for each name."""
    left, top, right, bottom = MARGIN_PX
    cell = (left + PANEL_PX[0] + right, top + PANEL_PX[1] + bottom)
    names = list(dict.fromkeys(name for panel in panels for name in panel.curves))
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    rows = -(-len(panels) // columns)
    picture = Image.new("RGB", (cell[0] * columns, LEGEND_PX + cell[1] * rows), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    x = left
    for name, colour in colours.items():
        draw.line((x, LEGEND_PX / 2 + 3, x + 20, LEGEND_PX / 2 + 3), fill=colour, width=2)
        draw.text((x + 26, LEGEND_PX / 2 + 3), name, fill=INK, font=font, anchor="lm")
        x += 46 + round(draw.textlength(name, font))
    for i, panel in enumerate(panels):
        corner = (left + cell[0] * (i % columns), LEGEND_PX + top + cell[1] * (i // columns))
        _panel(draw, font, corner, panel, colours)
    return np.asarray(picture)


def _panel(draw: ImageDraw.ImageDraw, font, corner: tuple[int, int], panel: Panel, colours: Mapping) -> None:
    width, height = PANEL_PX
    low, high = (f([f(c) for c in panel.curves.values()]) for f in (min, max))
    low, high = (low, high) if high - low > 1e-9 else (low - 1, high + 1)
    low, high = low - 0.06 * (high - low), high + 0.06 * (high - low)
    last = max(len(c) for c in panel.curves.values()) - 1

    def at(position: int, value: float) -> tuple[float, float]:
        return corner[0] + width * position / last, corner[1] + height * (high - value) / (high - low)

    draw.text((corner[0], corner[1] - 8), panel.title, fill=INK, font=font, anchor="ls")
    for value in _round_numbers(low, high):
        draw.line((at(0, value), at(last, value)), fill=FAINT)
        draw.text((corner[0] - 6, at(0, value)[1]), f"{value:.4g}", fill=INK, font=font, anchor="rm")
    for position in sorted({0, last // 2, last}):
        draw.text((at(position, low)[0], corner[1] + height + 5), str(position), fill=INK, font=font, anchor="mt")
    for name, curve in panel.curves.items():
        draw.line([at(i, float(v)) for i, v in enumerate(curve)], fill=colours[name], width=2, joint="curve")


def _round_numbers(low: float, high: float) -> list[float]:
    """Three to six multiples of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** floor(log10((high - low) / 3))
    step = next(m * power for m in (5, 2, 1) if (high - low) / (m * power) >= 2.99)
    return [i * step for i in range(ceil(low / step), floor(high / step) + 1)]


Row = tuple[str, Sequence[UInt8[np.ndarray, "_h _w 3"]]]


def enlarged(image: UInt8[np.ndarray, "h w 3"], zoom: int) -> UInt8[np.ndarray, "H W 3"]:
    """Every pixel as a square of this side."""
    return image.repeat(zoom, axis=0).repeat(zoom, axis=1)


def sheet(rows: Sequence[Row]) -> UInt8[np.ndarray, "h w 3"]:
    """Rows of pictures on white, each below its line of text."""
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    font = ImageFont.load_default(12)
    wide = [max(sum(p.shape[1] + GAP_PX for p in row), draw.textlength(t, font)) for t, row in rows]
    high = [LINE_PX + max(p.shape[0] for p in row) + GAP_PX for _, row in rows]
    canvas = Image.new("RGB", (GAP_PX + ceil(max(wide)), sum(high)), "white")
    draw, top = ImageDraw.Draw(canvas), 0
    for (text, row), height in zip(rows, high, strict=True):
        draw.text((GAP_PX, top + LINE_PX / 2), text, fill=INK, font=font, anchor="lm")
        left = GAP_PX
        for one in row:
            canvas.paste(Image.fromarray(np.ascontiguousarray(one)), (left, top + LINE_PX))
            left += one.shape[1] + GAP_PX
        top += height
    return np.asarray(canvas)


def save_animation(path: Path, frames: UInt8[np.ndarray, "n h w 3"], fps: float = 12.0) -> None:
    """An animated PNG that repeats for ever."""
    first, *others = (Image.fromarray(frame) for frame in frames)
    data = io.BytesIO()
    first.save(data, format="PNG", save_all=True, append_images=others, duration=round(1000 / fps), loop=0)
    write_atomic(path, data.getvalue())
