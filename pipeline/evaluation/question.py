"""What is asked of an evaluation: metrics, sizes, checkpoints, and the images that fakes are compared with.

Only words: whether a metric, a size or a set exists is found out in plan.py. Costs no torch.
"""

import re
from typing import Any, NamedTuple

from pydantic import Field, field_validator

from pipeline.config import Config
from pipeline.errors import UserError

WORDS = ("newest", "all", "best")


class Size(NamedTuple):
    """A side in pixels; `of_px`: made at that side and reduced, None where fakes are made at `px` itself."""

    px: int
    of_px: int | None = None

    @property
    def made_px(self) -> int:
        return self.of_px or self.px

    def __str__(self) -> str:
        return f"{self.px}of{self.of_px}" if self.of_px else str(self.px)


def parse_size(text: str) -> Size:
    """'512', or '256of512': made at 512 and reduced to 256."""
    match = re.fullmatch(r"([1-9][0-9]*)(?:of([1-9][0-9]*))?", text)
    size = match and Size(int(match[1]), int(match[2]) if match[2] else None)
    if not size or (size.of_px is not None and size.of_px <= size.px):
        raise UserError(f"size={text!r}: expected pixels, for example 512, or 256of512 for 512 reduced to 256")
    return size


def parse_checkpoints(text: str) -> list[int] | None:
    """Image numbers of '1000,2000' (kimg); None for one of WORDS."""
    if text in WORDS:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[0-9]+(\.[0-9]{1,3})?", part) for part in parts):
        raise UserError(f"checkpoint={text!r}: expected {', '.join(WORDS)}, or kimg such as 1000 or 1000,2000")
    return sorted({round(1000 * float(part)) for part in parts})


class Question(Config):
    """What to measure. Of all fields, `batch` alone is no part of what a number means."""

    metrics: tuple[str, ...] = Field(min_length=1)  # as protocols.parse takes them
    sizes: tuple[str, ...] = ()  # "512", "256of512"; (): every trained size, which must be squares
    data: str = ""  # a prepared folder; "": that of the run
    filter: str = "lanczos"  # of stored images, and of fakes, to smaller sizes
    checkpoints: str = "newest"  # newest, all, best (those that earlier evaluations found), or kimg: "1000,2000"
    seed: int = Field(default=0, ge=0)  # fake i has seed 10^9 * seed + i
    batch: int = Field(default=16, ge=1)  # images of one forward of G
    references: str = ""  # folder for what is made of the set; "": beside its shards

    @field_validator("metrics", "sizes", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        several = (value,) if isinstance(value, str) else value
        return tuple(dict.fromkeys(several)) if isinstance(several, list | tuple) else several

    @field_validator("sizes")
    @classmethod
    def _sides(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(parse_size(one)) for one in value)

    @field_validator("checkpoints")
    @classmethod
    def _chosen(cls, value: str) -> str:
        parse_checkpoints(value)
        return value
