"""What there is to measure in a folder, and what is measured already.

Reads checkpoints by their manifests and numbers from metrics.jsonl and the inbox. Knows no metric by name. Costs no
torch.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.data.manifest import load_manifest
from pipeline.errors import UserError
from pipeline.evaluation.question import Question, parse_checkpoints
from pipeline.tracking import jsonl
from pipeline.tracking.inbox import pending

FOLDER, FINISHED = "evaluation", ".finished"  # in a run's folder; in that one
WEIGHTS = "G_ema.safetensors"
Record = dict[str, Any]


@dataclass(frozen=True)
class Weights:
    """One G_ema: of a checkpoint, or nimg 0 where the folder holds nothing else."""

    nimg: int
    file: Path
    sha256: str

    @property
    def name(self) -> str:
        return f"kimg {self.nimg / 1000:g}" if self.nimg else self.file.parent.name

    def intact(self) -> bool:
        """Is the file there, and what its manifest says?"""
        try:
            with self.file.open("rb") as f:
                return hashlib.file_digest(f, "sha256").hexdigest() == self.sha256
        except OSError:
            return False


def is_model(folder: Path) -> bool:
    """A folder of weights alone: a registered model, or one that was imported."""
    return (folder / WEIGHTS).is_file()


def weights_in(folder: Path) -> list[Weights]:
    """Of all checkpoints, newest first, as their manifests say; UserError where the folder is no run and no model."""
    if not (folder / "config.json").is_file():
        raise UserError(f"run={str(folder)!r} has no config.json: not a run folder (`graticule status` lists runs)")
    if is_model(folder):
        with (folder / WEIGHTS).open("rb") as f:
            return [Weights(0, folder / WEIGHTS, hashlib.file_digest(f, "sha256").hexdigest())]
    found = []
    for one in sorted((folder / "checkpoints").glob("[0-9]" * 12), reverse=True):
        try:
            sha256 = json.loads((one / "manifest.json").read_bytes())["files"][WEIGHTS]["sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # being pruned, or damaged
        found.append(Weights(int(one.name), one / WEIGHTS, sha256))
    if not found:
        raise UserError(f"run={str(folder)!r} has no valid checkpoint yet; train it first")
    return found


def chosen(folder: Path, question: Question) -> list[Weights]:
    """The checkpoints that are asked for, oldest first; first of all what an earlier evaluation left half done.

    UserError where one is not there.
    """
    there, words = weights_in(folder), question.checkpoints
    if is_model(folder):
        if words != "newest":
            raise UserError(f"checkpoint={words!r}: {folder} holds one model and no checkpoints; leave it out")
        return there
    wanted = parse_checkpoints(words)
    if wanted is not None:
        known = {one.nimg: one for one in there}
        if missing := [nimg for nimg in wanted if nimg not in known]:
            have = ", ".join(f"{nimg / 1000:g}" for nimg in sorted(known))
            raise UserError(f"checkpoint={missing[0] / 1000:g}: {folder} has no such checkpoint; there are kimg {have}")
        picked = [known[nimg] for nimg in wanted]
        if damaged := [one for one in picked if not one.intact()]:
            raise UserError(f"checkpoint={damaged[0].nimg / 1000:g}: {damaged[0].file} is damaged; choose another")
        return picked
    if words == "best":
        from pipeline.tracking.best import best_of

        best = {number.nimg for number in best_of(folder).values()}
        if not best:
            raise UserError(f"checkpoint='best': nothing of {folder} is measured yet; measure with --checkpoint all")
        return [one for one in reversed(there) if one.nimg in best and one.intact()]
    intact = (one for one in there if one.intact())
    newest = next(intact, None)
    if newest is None:
        raise UserError(f"run={str(folder)!r} has no valid checkpoint: {there[0].file} is damaged")
    if words == "all":
        return [*reversed(list(intact)), newest]
    begun = [one for one in there if one != newest and place_of(folder, one, question).is_dir() and one.intact()]
    return [*reversed(begun), newest]


def place_of(folder: Path, weights: Weights, question: Question) -> Path:
    """Where fakes of these weights for this question are kept until their numbers are known."""
    told = question.model_dump(mode="json", include={"metrics", "sizes", "filter", "seed"})
    text = json.dumps([weights.sha256, data_of(folder, question), told], sort_keys=True)
    return folder / FOLDER / f"{weights.nimg:012d}" / hashlib.sha256(text.encode()).hexdigest()[:8]


def data_of(folder: Path, question: Question) -> str:
    """The dataset_id that fakes are compared with."""
    if question.data:
        check_local(question.data)
        return load_manifest(Path(question.data), full=False).dataset_id
    return json.loads((folder / "config.json").read_bytes())["data"]["dataset_id"]


def check_local(data: str) -> None:
    """UserError for a set behind a URL."""
    if "://" in data:
        raise UserError(
            f"data={data.partition('?')[0]!r} is a URL: its images come in no fixed order; copy the set and give its "
            "folder with --data"
        )


def mark_of(place: Path) -> Path:
    """The file that says that what is made at `place` is finished with."""
    return place.parents[1] / FINISHED / f"{place.parent.name}-{place.name}"


def measured(folder: Path) -> dict[tuple[int, str], Record]:
    """The newest number of each (nimg, metric)."""
    records = [*jsonl.read(folder / jsonl.METRICS), *pending(folder)]
    return {jsonl.key_of(record): record for record in records if "of" in record}


def answers(record: Mapping[str, Any] | None, weights: str, data: str, filter: str, seed: int) -> bool:
    """Is this number of these weights and images? Where nothing was resized, `filter` had no effect."""
    of = record["of"] if record else {}
    same = [of.get("weights"), of.get("data"), of.get("seed")] == [weights, data, seed]
    return same and of.get("filter") in ("", filter)


def lacking(folder: Path, question: Question) -> list[str]:
    """What of a question is not measured yet, a line each; UserError where there is no such run or checkpoint.

    By its words: a detector whose file has changed since is noticed by `evaluate` alone.
    """
    data, records, out = data_of(folder, question), list(measured(folder).values()), []
    for one in chosen(folder, question):
        mine = [r for r in records if answers(r, one.sha256, data, question.filter, question.seed)]
        for metric in question.metrics:
            done = {r["of"]["size"]: r["of"]["trained"] for r in mine if r["of"]["metric"] == metric}
            wanted = question.sizes or next(iter(done.values()), ["every trained size"])
            out += [f"{one.name}: {metric} at {size}" for size in wanted if size not in done]
    return out


class Measure(NamedTuple):
    """One value and the checkpoint that has it."""

    value: float
    nimg: int


def numbers_of(folder: Path, question: Question) -> dict[str, Measure]:
    """The values that answer a question, by name: of the newest checkpoint, or of several asked for the best."""
    picked = chosen(folder, question)
    sha256s = {one.sha256 for one in (picked[-1:] if question.checkpoints == "newest" else picked)}
    data, found = data_of(folder, question), {}
    for record in measured(folder).values():
        of = record["of"]
        asked = of["metric"] in question.metrics and of["size"] in (question.sizes or of["trained"])
        if not (asked and of["weights"] in sha256s):
            continue
        if not answers(record, of["weights"], data, question.filter, question.seed):
            continue
        for name, value in record["metrics"].items():
            sign = -1 if of["better"][name] == "higher" else 1
            if name not in found or sign * value < sign * found[name].value:
                found[name] = Measure(value, record["nimg"])
    return found
