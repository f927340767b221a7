"""What a run is, as MLflow shows it: params from config.json, tags and status from the events and the environment.

All of it comes from files, not from this process' own environment: it may be another machine, a day later.
Deliberately knows nothing of MLflow's client.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.tracking import jsonl

RUN_TAG = "graticule.run"
SOURCES = ("config.json", jsonl.EVENTS, "environment.json")  # what all of this is made from
# Kept with the MLflow run as they are; a picture that is being written has a dot before its name.
FILES = ("config.json", "overrides", "environment.json", "environment/*.json", "pictures/[!.]*")
MAX_VALUE = 500  # characters of a param or tag that every server takes
NOT_TAGS = ("git_diff", "git_untracked", "variables", "command")  # long; environment.json is there as a whole
CAUSES = {"time limit": "SCHEDULED", "preemption": "SCHEDULED", "cancelled": "KILLED"}  # of a stop after a save


@dataclass(frozen=True)
class History:
    """What events.jsonl says of the attempts so far."""

    status: str = "RUNNING"  # MLflow's word
    status_time: float = 0.0  # unix seconds of the event that says so
    attempts: int = 0
    hosts: tuple[str, ...] = ()
    job_ids: tuple[str, ...] = ()
    time_limits: int = 0
    preemptions: int = 0
    rollbacks: tuple[str, ...] = ()  # "8000 to 4000" in nimg

    def after(self, event: Mapping[str, Any]) -> "History":
        """With one more event."""
        changes: dict[str, Any] = {}
        cause = event.get("cause")
        match event["event"]:
            case "start" | "resume":
                changes |= {
                    "status": "RUNNING",
                    "attempts": max(self.attempts, event["attempt"]),
                    "hosts": _distinct(self.hosts, event.get("host")),
                    "job_ids": _distinct(self.job_ids, event.get("job_id")),
                }
            case "preempt":  # nobody says why: somebody will go on with it
                changes["status"] = CAUSES.get(str(cause), "SCHEDULED")
                changes["time_limits"] = self.time_limits + (cause == "time limit")
                changes["preemptions"] = self.preemptions + (cause == "preemption")
            case "failed" | "watchdog":
                changes["status"] = "FAILED"
            case "done":
                changes["status"] = "FINISHED"
            case "rollback":
                changes["rollbacks"] = (*self.rollbacks, f"{event['nimg']} to {event.get('to', '?')}")
        if "status" in changes:
            changes["status_time"] = event["time"]
        return replace(self, **changes) if changes else self


def history(folder: Path) -> History:
    """Of a run; a run without events is RUNNING."""
    found = History()
    for event, _ in jsonl.tail(folder / jsonl.EVENTS, 0):
        found = found.after(event)
    return found


def began_ms(folder: Path) -> int | None:
    """When the first attempt started, in unix ms; None before."""
    return next((int(event["time"] * 1000) for event, _ in jsonl.tail(folder / jsonl.EVENTS, 0)), None)


def params(folder: Path) -> dict[str, str]:
    """`family.G.channels` -> text, for every leaf of config.json; lists stay whole."""
    return dict(_flat(json.loads((folder / "config.json").read_text())))


def tags(folder: Path, flat: Mapping[str, str], past: History) -> dict[str, str]:
    """Code, commit, data set, recipe, versions, and what the attempts so far ran on; empty ones are left out."""
    path = folder / "environment.json"
    facts: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    environment = dict(_flat({name: value for name, value in facts.items() if name not in NOT_TAGS}))
    commit = environment.pop("git_sha", "")
    dirty = bool(facts.get("git_diff") or facts.get("git_untracked"))
    found = {
        RUN_TAG: folder.resolve().name,
        "graticule.recipe": flat.get("recipe", ""),
        "graticule.dataset_id": flat.get("data.dataset_id", ""),
        "graticule.code": environment.pop("code", ""),
        "graticule.dirty": ("yes" if dirty else "no") if commit else "",
        "graticule.engine": environment.pop("engine", ""),
        "graticule.world": environment.pop("world", ""),
        "graticule.attempts": str(past.attempts or ""),
        "graticule.job_ids": ", ".join(past.job_ids),
        "graticule.hosts": ", ".join(past.hosts),
        "graticule.time_limits": str(past.time_limits or ""),
        "graticule.preemptions": str(past.preemptions or ""),
        "graticule.rollbacks": str(len(past.rollbacks) or ""),
        "graticule.rolled_back": ", ".join(past.rollbacks),
        "graticule.params_cut": ", ".join(key for key, value in flat.items() if len(value) > MAX_VALUE),
        "mlflow.source.name": "graticule",
        "mlflow.source.git.commit": commit,
        **{f"env.{key}": value for key, value in environment.items()},
    }
    return {allowed(key): value[:MAX_VALUE] for key, value in found.items() if value}


def allowed(name: str) -> str:
    """A name that MLflow accepts: one bad metric name must not hold up all others for ever."""
    return re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII)[:250]


def stamp(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Size and time of change of each of these files that exists; patterns are allowed."""
    found = sorted(path for name in names for path in folder.glob(name))
    stats = {path.relative_to(folder).as_posix(): path.stat() for path in found}
    return {name: f"{s.st_size} {s.st_mtime_ns}" for name, s in stats.items()}


def _distinct(known: tuple[str, ...], text: Any) -> tuple[str, ...]:
    """Hosts come as one text of several names."""
    return tuple(dict.fromkeys((*known, *(word for word in str(text or "").split(", ") if word))))


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value if isinstance(value, str) else json.dumps(value)
