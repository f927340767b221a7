"""Configuration on top of pydantic: strict frozen models, one override syntax, a fingerprint, a JSON codec.

Unknown keys are refused and the nearest name is offered; every complaint is one line (UserError).
Deliberately knows no concrete configuration.
"""

import contextlib
import difflib
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, ValidationError

from pipeline.errors import UserError

T = TypeVar("T", bound="Config")


class Config(BaseModel):
    """A frozen configuration: unknown keys refused, every value validated, fields visible in its JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    def replace(self: T, **changes: Any) -> T:
        """A validated copy with some fields changed."""
        return type(self).model_validate({**dict(self), **changes})

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls: type[T], text: str, *, where: str = "config") -> T:
        """Parse and validate; a UserError names the file and the first wrong field."""
        try:
            tree = json.loads(text)
        except (ValueError, RecursionError) as e:  # numbers of thousands of digits, thousands of brackets
            raise UserError(f"{where}: not valid JSON ({e}); restore the file or delete the folder") from e
        try:
            return cls.model_validate(tree)
        except ValidationError as e:
            raise UserError(f"{where}: {complaint(e, cls)}") from e


def nearest(word: str, known: Iterable[str]) -> str:
    """', did you mean X?' or the whole list when nothing is near; for the end of an error line."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


def by_kind(kinds: Mapping[str, type[Config]]) -> Any:
    """Annotation for a field that holds any Config of a KINDS table, told apart by its `kind`."""

    def pick(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        kind = str(value.get("kind"))
        if kind not in kinds:
            raise ValueError(f"kind={kind!r} is unknown; {nearest(kind, kinds)}")
        try:
            return kinds[kind].model_validate(value)
        except ValidationError as e:
            raise ValueError(complaint(e, kinds[kind])) from e

    return BeforeValidator(pick), SerializeAsAny()  # pyright: ignore[reportCallIssue]


def complaint(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """A pydantic error as one line: field, value seen, what is allowed."""
    first = error.errors()[0]
    path = [p if (p := str(name)).isprintable() else ascii(p) for name in first["loc"]]
    field = ".".join(path)
    if first["type"] == "extra_forbidden":
        return f"{field} is not a known key; {nearest(path[-1], _names_at(model, path[:-1]))}"
    seen = first["input"]
    shown = "" if isinstance(seen, Mapping | BaseModel) else f"={seen!r:.200}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] != "value_error":
        message = message[:1].lower() + message[1:]
    return ": ".join(filter(None, [field + shown if field else "", message]))


def _names_at(model: type[BaseModel] | None, path: list[str]) -> list[str]:
    for name in path:
        fields = getattr(model, "model_fields", {})
        model = getattr(fields.get(name), "annotation", None)
    return list(getattr(model, "model_fields", {}))


def override(config: T, assignments: Iterable[str], *, prefix: str = "") -> T:
    """Apply 'a.b=value' assignments together; values are YAML scalars or flow lists ('[0.5, 0.5]').

    Unknown keys, wrong types and values out of range raise UserError in one line, with `prefix` before the key.
    """
    tree, keys = config.model_dump(), []
    for text in assignments:
        key, eq, raw = text.partition("=")
        if not eq or not key:
            raise UserError(f"--set {text!r}: expected key=value, for example --set batch_size=16")
        try:
            value = yaml.safe_load(raw)
        except yaml.YAMLError as e:
            raise UserError(f"--set {prefix}{key}: cannot read {raw!r} as a value ({type(e).__name__})") from e
        branch = _branch(config, tree, key, prefix)
        branch[key.rpartition(".")[2]] = value
        keys.append(prefix + key)
    try:
        return type(config).model_validate(tree)
    except ValidationError as e:
        raise UserError(f"--set {' '.join(keys)}: {complaint(e, type(config))}") from e


def _branch(config: Config, tree: dict[str, Any], key: str, prefix: str) -> dict[str, Any]:
    """The part of the tree that holds the last name of `key`; UserError where there is no such leaf."""
    at: Any = config
    *groups, leaf = key.split(".")
    for i, name in enumerate([*groups, leaf]):
        if not isinstance(at, Config):
            raise UserError(f"--set {prefix}{key}: {'.'.join(groups[:i])!r} is a value, not a group; set it as a whole")
        if name not in type(at).model_fields:
            raise UserError(f"--set {prefix}{key}: {name!r} is not a known key; {nearest(name, type(at).model_fields)}")
        at = getattr(at, name)
    if isinstance(at, Config):
        raise UserError(
            f"--set {prefix}{key}: {leaf!r} is a group; set one of its keys: {', '.join(type(at).model_fields)}"
        )
    for name in groups:
        tree = tree[name]
    return tree


def added(default: Any, **limits: Any) -> Any:
    """A field that came after runs were made: `fingerprint` leaves it out at its default, so theirs stay."""
    return Field(default=default, json_schema_extra={"added": True}, **limits)


def fingerprint(config: Config) -> str:
    """Eight hex digits of the canonical JSON: equal configurations, equal names."""
    canonical = json.dumps(_named(config, config.model_dump(mode="json")), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


def _named(config: Config, tree: dict[str, Any]) -> dict[str, Any]:
    """What names a configuration: its JSON without the `added` fields that are at their defaults."""
    out = {}
    for name, field in type(config).model_fields.items():
        value, extra = getattr(config, name), field.json_schema_extra
        if not (isinstance(extra, dict) and extra.get("added") and value == field.default):
            out[name] = _named(value, tree[name]) if isinstance(value, Config) else tree[name]
    return out


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write under a temporary name in the same folder, fsync, rename: readers see all of it or none."""
    temp = path.with_name(f".{path.name}.{uuid.uuid4().int}.tmp")  # ranks of several hosts may write at once
    try:
        with open(temp, "wb") as f:
            f.write(data.encode() if isinstance(data, str) else data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temp, path)
    except BaseException:  # a full disk, Ctrl-C
        with contextlib.suppress(OSError):
            temp.unlink(missing_ok=True)
        raise


def fsync_folder(folder: Path) -> None:
    """Make the renames in a folder last through a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
