"""What a run is, as MLflow shows it: flat params from config.json, tags from the events and the environment.

Tags come from files, not from this process' own environment: it may be another machine, a day later.
Deliberately knows nothing of MLflow's client.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.tracking import jsonl

RUN_TAG = "graticule.run"
FILES = ("config.json", "overrides", "environment.json")  # kept with the MLflow run as they are
MAX_VALUE = 500  # characters of a param or tag that every server takes


def params(folder: Path) -> dict[str, str]:
    """`family.G.channels` -> text, for every leaf of config.json; lists stay whole."""
    return dict(_flat(json.loads((folder / "config.json").read_text())))


def tags(folder: Path, flat: Mapping[str, str]) -> dict[str, str]:
    """Commit, data set, recipe, versions, and what the attempts so far ran on; empty ones are left out."""
    attempts = [e for e in jsonl.read(folder / jsonl.EVENTS) if e["event"] in ("start", "resume")]
    path = folder / "environment.json"
    environment = dict(_flat(json.loads(path.read_text()))) if path.exists() else {}
    commit = environment.pop("git_sha", "")
    environment.pop("git_diff", None)  # long; environment.json is there as a whole
    found = {
        RUN_TAG: folder.resolve().name,
        "graticule.recipe": flat.get("recipe", ""),
        "graticule.dataset_id": flat.get("data.dataset_id", ""),
        "graticule.attempt": str(max((e["attempt"] for e in attempts), default="")),
        "graticule.job_ids": _distinct(e.get("job_id") for e in attempts),
        "graticule.hosts": _distinct(e.get("host") for e in attempts),
        "graticule.params_cut": ", ".join(key for key, value in flat.items() if len(value) > MAX_VALUE),
        "mlflow.source.name": "graticule",
        "mlflow.source.git.commit": commit,
        **{f"env.{key}": value for key, value in environment.items()},
    }
    return {allowed(key): value[:MAX_VALUE] for key, value in found.items() if value}


def allowed(name: str) -> str:
    """A name that MLflow accepts: one bad metric name must not hold up all others for ever."""
    return re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII)[:250]


def _distinct(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values if value))


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value if isinstance(value, str) else json.dumps(value)
