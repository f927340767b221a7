"""Why an image is left out. The words are the keys of `rejected` in a manifest."""

from typing import Literal, get_args

Reason = Literal[
    "not an image",  # the bytes are no format we read, or nothing at all
    "truncated",
    "unreadable",  # damaged in another way, encrypted, or the file cannot be opened
    "too small",  # nothing is enlarged
    "too large",  # decompression bombs
    "not square",  # crop "none"
    "wrong size",  # a crop cut at fixed pixels, and an image of another size
    "unsupported mode",
    "missing",  # listed, but not there; or half of a pair
    "no depth",  # of a pair: no pixel was measured
    "checksum",  # published checksums say otherwise
    "duplicate",  # the bytes of an earlier image of the same class
    "two labels",  # the bytes of an earlier image of another class
]
REASONS: tuple[str, ...] = get_args(Reason)
EXPECTED: frozenset[str] = frozenset({"duplicate"})  # left out and counted also with on_error="stop"


class Rejected(Exception):  # noqa: N818 - an outcome, not a fault of the program
    """An image that cannot be taken: one of REASONS, and what exactly is wrong with it."""

    def __init__(self, reason: Reason, detail: str):
        super().__init__(reason, detail)
        self.reason: Reason = reason
        self.detail = detail
