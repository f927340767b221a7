"""Any folder of images, however deep, or a zip of one. First-level folders are classes if all images lie in them.

Every file with an image extension is an entry, whatever its bytes turn out to be: it is taken or rejected by
name, never lost. Other files are entries if they begin as images do. A tree that mixes depths has no classes (a
nested second copy of a data set would double them). A `dataset.json` at the root, {"labels": [[file, label],
...]} as StyleGAN's tools expect it, decides the labels instead. Images of equal bytes are not looked for.
"""

import io
import json
from array import array
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from dataprep.rejected import Rejected
from dataprep.sources.entry import Entries, Entry, Refusal
from dataprep.sources.tree import EXTENSIONS, Tree, is_image_head, is_image_name, open_tree
from dataprep.transform import open_image
from pipeline.errors import UserError

TABLE = "dataset.json"
MOST_CLASSES = 1_000_000  # a label above is a mistake, and the class table would not fit a manifest


class Table(NamedTuple):
    """What a dataset.json says."""

    labels: dict[bytes, int]  # key -> class index; empty where 'labels' is null
    count: int  # classes


class Folder:
    """Entries are sorted on the bytes of their relative path, which is also what opens them."""

    name = "folder"
    crop = "center"

    def __init__(self, path: Path | None, split: str | None = None):
        if split is not None:
            raise UserError(f"split={split!r}: source 'folder' has no splits; leave it out")
        self._tree = open_tree(path, "a folder of images or a zip of one")
        self._notes: list[str] = []

    def __reduce__(self):  # workers need the path alone, not the listing
        return Folder, (self._tree.path,)

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(self._notes)

    @property
    def classes(self) -> tuple[str, ...]:
        return self._listing[0]

    def entries(self, size_px: int) -> Entries:
        return self._listing[1]

    def read(self, entry: Entry) -> Image.Image:
        return open_image(io.BytesIO(self._tree.read(entry.key)))

    def about(self, entry: Entry) -> dict[str, Any]:
        return {}

    @cached_property
    def _listing(self) -> tuple[tuple[str, ...], Entries]:
        where = f"PATH={str(self._tree.path)!r}"
        table = self._table(f"{where}: {TABLE}")
        listed = table.labels if table else {}
        keys, at, others = [], array("q"), []
        for key, _, number in self._tree.files():
            if is_image_name(key) or key in listed or _begins_as_image(self._tree, key):
                keys.append(key)
                at.append(number)
            elif key != TABLE.encode():
                others.append(key)
        seen = f"{len(others)} other files, the first is {_shown(others[0])!r}" if others else ""
        if not keys:
            looked = " ".join(e.decode() for e in EXTENSIONS)
            raise UserError(
                f"{where}: no images below it; looked for {looked}" + (f"; it holds {seen}" if seen else "")
            )
        if seen:
            self._notes.append(f"passed over: {seen}")
        if table:
            return _labelled(f"{where}: {TABLE}", keys, at, table)
        folders: dict[bytes, int] = {}
        if all(k.count(b"/") == 1 for k in keys):
            folders = {f: i for i, f in enumerate(sorted({k.split(b"/")[0] for k in keys}))}
        entries = Entries(Entry(k, folders.get(k.split(b"/")[0], -1), n) for k, n in zip(keys, at, strict=True))
        return tuple(_shown(f) for f in folders), entries

    def _table(self, where: str) -> Table | None:
        """The dataset.json at the root, if it is there and has labels."""
        try:
            found = json.loads(self._tree.read(TABLE.encode()))
        except UserError:  # a ValueError too: of the zip itself
            raise
        except Rejected as e:
            if e.reason == "missing":
                return None
            raise UserError(f"{where}: {e.detail}; mend or remove it") from e
        except (ValueError, RecursionError) as e:
            raise UserError(f"{where}: no JSON ({' '.join(str(e).split())}); mend or remove it") from e
        if not isinstance(found, dict) or "labels" not in found:
            self._notes.append(f"passed over: {TABLE}, which has no 'labels'")
            return None
        if found["labels"] is None:
            return Table({}, 0)
        if not isinstance(found["labels"], list) or not found["labels"]:
            raise UserError(f"{where}: 'labels' must be null or a list of [file, label]; mend or remove it")
        return _read_rows(where, found["labels"])


def _begins_as_image(tree: Tree, key: bytes) -> bool:
    try:
        return is_image_head(tree.head(key))
    except Rejected:
        return False


def _labelled(where: str, keys: list[bytes], at: array, table: Table) -> tuple[tuple[str, ...], Entries]:
    unlisted = [k for k in keys if k not in table.labels] if table.labels else []
    if unlisted:
        raise UserError(
            f"{where}: gives no label to {len(unlisted)} of {len(keys)} images, the first is {_shown(unlisted[0])!r}; "
            'label all of them or none ("labels": null)'
        )
    there = dict(zip(keys, at, strict=True))
    missing = Refusal("missing", f"listed in {TABLE}, but not there")
    entries = Entries(
        Entry(k, table.labels.get(k, -1), there.get(k, 0), None if k in there else missing)
        for k in sorted(there.keys() | table.labels.keys())
    )
    return tuple(str(i) for i in range(table.count)), entries


def _read_rows(where: str, rows: list[Any]) -> Table:
    """All labels class numbers, or all one-hot lists of one length; anything else is a UserError."""
    labels: dict[bytes, int] = {}
    kinds = set()
    for i, row in enumerate(rows):
        if not (isinstance(row, list) and len(row) == 2 and isinstance(row[0], str)):
            raise UserError(f"{where}: row {i} of 'labels' is not [file, label]; mend or remove it")
        name, label = row
        key = _as_key(name)
        if key in labels:
            raise UserError(f"{where}: lists {_shown(key)!r} twice; mend or remove it")
        if isinstance(label, list) and label.count(1) == 1 and label.count(0) == len(label) - 1:
            kinds.add(len(label))
            label = label.index(1)
        else:
            kinds.add(0)
        if type(label) is not int or not 0 <= label < MOST_CLASSES:
            raise UserError(
                f"{where}: the label of {_shown(key)!r} is {_cut(label)}; supported are class numbers from 0 to "
                f"{MOST_CLASSES - 1} and one-hot lists (embeddings are not)"
            )
        labels[key] = label
    if len(kinds) > 1:
        raise UserError(f"{where}: mixes class numbers and lists, or lists of several lengths; mend or remove it")
    return Table(labels, kinds.pop() or max(labels.values()) + 1)


def _as_key(name: str) -> bytes:
    name = name.replace("\\", "/")
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # no name of a file: will be missing under the name that JSON shows
        return name.encode("utf-8", "backslashreplace")


def _cut(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _shown(path: bytes) -> str:
    """A name that JSON can hold, also of bytes that are no UTF-8."""
    return path.decode("utf-8", "backslashreplace")
