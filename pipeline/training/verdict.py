"""Beats of ranks -> why the job must end, in one line: a pure function, which the watchdog calls once a beat.

A beat is "<number> <progress> <state> <facts>"; facts are json: host, pid, what, nimg, error. Deliberately knows no
store, no thread and no clock.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

WORKS, WAITS, BROKEN, FAILED, LEFT = "works", "waits", "broken", "failed", "left"
"""States of a rank: busy; in a collective; in one that raised; ending with an error; ended on purpose."""

UNWRITTEN = b"-"  # in place of a beat that was never published
NAMED = 5  # ranks that a line names; the others are counted
LOST = "is dead, stopped or out of reach: no sign"


@dataclass(slots=True)
class Seen:
    """What a watcher knows of one rank. Times are the watcher's own: clocks of hosts are never compared."""

    rank: int
    seen_at: float = 0.0  # when its beat last changed
    moved_at: float = 0.0  # when its progress last changed
    state: str = WORKS
    beat: bytes = b""
    count: bytes = b""
    facts: bytes = b""  # json: host, pid, what, nimg, error; parsed only to be told

    def update(self, beat: bytes, now: float) -> None:
        """Take its newest beat, which may be the one known already."""
        if beat in (self.beat, UNWRITTEN):
            return
        self.beat, self.seen_at = beat, now
        _, count, state, self.facts = beat.split(b" ", 3)
        self.state = state.decode()
        if count != self.count:
            self.count, self.moved_at = count, now

    def _facts(self) -> list[Any]:
        return json.loads(self.facts or '["?", 0, "start", null, ""]')

    def name(self) -> str:
        host, pid, *_ = self._facts()
        return f"rank {self.rank} on {host} (pid {pid})" if self.facts else f"rank {self.rank} (never seen)"

    def place(self) -> str:
        _, _, what, nimg, _ = self._facts()
        return what if nimg is None else f"{what} of image {nimg}"

    def failure(self) -> str:
        return f"failed with {self._facts()[4]}, at {self.place()}"


Verdict = tuple[str, list[int]]  # one line, and the ranks that show their stacks


def judge(ranks: Sequence[Seen], now: float, *, hang_sec: float | int, silent_sec: float | int) -> Verdict | None:
    """Why the job must end, or None. Ranks that left on purpose are at fault in nothing."""
    here = [r for r in ranks if r.state != LEFT]
    failed = [r for r in here if r.state == FAILED]
    if failed and len(failed) < len(here):  # where all fail, each says so itself
        return _accuse(failed, lambda r: r.failure())
    hangs = bool(here) and not failed and all(now - r.moved_at >= hang_sec for r in here)
    if hangs:  # where all wait, one that gave no sign for half of that time is no longer there
        silent_sec = min(silent_sec, hang_sec / 2)
    silent = sorted((r for r in here if r.state != FAILED and now - r.seen_at >= silent_sec), key=lambda r: r.seen_at)
    if silent:
        return _accuse(silent, lambda r: f"{LOST} for {now - r.seen_at:.0f} s, last at {r.place()}")
    if not hangs:
        return None
    busy = sorted((r for r in here if r.state == WORKS), key=lambda r: r.moved_at)
    if busy:
        return _accuse(busy, lambda r: f"has not moved for {now - r.moved_at:.0f} s: {r.place()}")
    return _all_wait(here, [r for r in ranks if r.state == LEFT], min(now - r.moved_at for r in here))


def _accuse(culprits: list[Seen], says: Callable[[Seen], str]) -> Verdict:
    more = [f"and {len(culprits) - NAMED} more ranks"] if len(culprits) > NAMED else []
    return "; ".join([f"{r.name()} {says(r)}" for r in culprits[:NAMED]] + more), [r.rank for r in culprits[:NAMED]]


def _all_wait(here: list[Seen], left: list[Seen], sec: float) -> Verdict:
    """Nobody works: where they wait tells a broken network from ranks that went different ways."""
    places: dict[str, list[Seen]] = {}
    for r in here:
        places.setdefault(r.place(), []).append(r)
    few = sorted(places.items(), key=lambda item: len(item[1]))[:NAMED]  # odd ones first
    parts = [f"{r[0].name()}{f' and {len(r) - 1} more' if len(r) > 1 else ''} in {place}" for place, r in few]
    why = "the network passes nothing" if len(places) == 1 else "they wait in different places"
    if left:
        why = ", ".join(r.name() for r in left[:NAMED]) + " left before them"
    line = f"all {len(here)} ranks have waited for others for {sec:.0f} s, {why}: {'; '.join(parts)}"
    return line, [r[0].rank for _, r in few]
