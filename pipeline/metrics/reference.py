"""What metrics compare fakes with: tensors of the images of a prepared set, kept on disk beside its shards.

A folder of its own for each data set, size, filter, mirroring, order, crop and extractor; `reference.json` in it says
them in clear. It is filled block by block by any number of processes (store.py) and serves every run on that set.
The set is resized for each size that is measured, image by image on uint8, by a filter of `prep`: on FFHQ at 256 px
box or Lanczos alone is FID 4.3 or 5.3 (stylegan2-ada-pytorch, issue 283). Knows nothing of metrics or generators.
"""

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from pipeline.chance import key, rng
from pipeline.config import fsync_folder, write_atomic
from pipeline.data.filters import find_filter, resized
from pipeline.data.manifest import Manifest, load_manifest, read_index
from pipeline.data.order import order
from pipeline.data.prefetch import Job, in_order
from pipeline.data.reader import ShardReader
from pipeline.errors import UserError, WorkError
from pipeline.metrics.extract import Extractor
from pipeline.metrics.store import Store, fill

FOLDER, KEY_FILE = "reference", "reference.json"
FORMAT = 1  # of the tensors' meaning: image j of the order, its pixels
CHUNK = 32  # images handed to the extractor at once, while two more are made: 300 MB at 1024 px
PART = 4  # images that a thread takes at a time
MOST_THREADS = 16  # that read and resize, of a process
FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class View:
    """How the images of a set are looked at."""

    size_px: int  # side that they are compared at
    filter: str  # that resizes them; "" where they come in that size
    mirror: bool  # the whole set, then the whole set mirrored
    stored_order: bool  # number j is the j-th stored image; else a keyed draw without replacement
    share: float | int = 1  # of the side: families that train on random crops compare with one of each image
    rotate: bool = False  # and that turned by 0 to 3 quarters


def check_view(
    manifest: Manifest, size_px: int, filter: str, share: float | int = 1, where: Path | str | None = None
) -> None:
    """UserError where a set cannot be looked at so: pairs, too small, a filter unknown, lacking or without effect."""
    data = f"data={str(where)!r}" if where is not None else f"data set {manifest.dataset_id}"
    if manifest.planes != 1:
        raise UserError(f"{data}: holds photographs with depth maps; metrics compare pictures, give a set of those")
    if not 0 < share <= 1:
        raise UserError(f"share={share}: the share of the side that crops have; a number above 0, at most 1")
    side = round(share * manifest.size_px)
    cut = f", of which crops of {side} px are taken," if share < 1 else ""
    if side < size_px:
        raise UserError(
            f"size {size_px} px: {data} is stored at {manifest.size_px} px{cut} and nothing is enlarged; measure at "
            f"{side} px or less, or prepare it with --size {round(size_px / share)}"
        )
    if filter:
        find_filter(filter)
    if filter and side == size_px:
        raise UserError(
            f"filter={filter!r}: {data} is stored at {manifest.size_px} px{cut} and measured at {size_px}, so nothing "
            "is resized; leave the filter out"
        )
    if not filter and side != size_px:
        raise UserError(
            f"filter='': {data} is stored at {manifest.size_px} px{cut} and measured at {size_px}; name the filter "
            "that resizes it, such as lanczos"
        )


class Reference:
    """Tensors of the images of one prepared set, looked at in one way by one extractor. Nothing is made until `fill`.

    Numbers 0 to `store.count` - 1 are the images in the view's order; with mirror the second half is the first one
    mirrored. UserError where the set cannot be looked at so; nothing is written by the constructor. Images are
    read by `threads`: 0 is the caller, None as many as this process has processors.
    """

    def __init__(
        self,
        set_folder: Path | str,
        view: View,
        extractor: Extractor,
        place: Path | None = None,
        threads: int | None = None,
    ):
        if re.match(r"[A-Za-z0-9]+:/", str(set_folder)):
            raise UserError(
                f"data={_without_secrets(str(set_folder))!r}: reference statistics want the images in a fixed order, "
                "so from a local folder; copy the set there and give that with --data"
            )
        self.set_folder, self.view, self.extractor = Path(set_folder), view, extractor
        self.threads = min(len(os.sched_getaffinity(0)), MOST_THREADS) if threads is None else threads
        manifest = load_manifest(self.set_folder)
        check_view(manifest, view.size_px, view.filter, view.share, self.set_folder)
        self.dataset_id, self._images, self._has_labels = manifest.dataset_id, manifest.count, bool(manifest.classes)
        self._cut_px = round(view.share * manifest.size_px)
        self.key: dict[str, Any] = {
            "format": FORMAT,
            "dataset_id": self.dataset_id,
            **{name: value for name, value in asdict(view).items() if name != "stored_order"},
            "share": float(view.share),
            "order": "stored" if view.stored_order else "drawn",
            "extractor": dict(extractor.key),
        }
        folder = (place or self.set_folder / FOLDER) / self._name()
        self.store = Store(folder, self._images * (2 if view.mirror else 1))
        self._check_key()

    def n(self, real: int | None, metric: str = "the metric") -> int:
        """How many images are used where `real` are wanted, None being all; UserError where the set has fewer."""
        there = self.store.count
        if real is not None and real > there:
            raise UserError(
                f"{metric} needs {real} real images, {self.set_folder} holds {there}"
                f"{' with the mirrored ones' if self.view.mirror else ''}; prepare more of the data set, or take a "
                "metric of all its images (such as fid50k_full)"
            )
        return there if real is None else real

    def samples(self, numbers: Sequence[int]) -> list[int]:
        """Which stored image each number is."""
        at = np.asarray(numbers, dtype=np.int64) % max(self._images, 1)
        return (at if self.view.stored_order else order(key("reference", self.dataset_id), self._images, at)).tolist()

    def labels(self, numbers: Sequence[int]) -> list[int] | None:
        """Class indices of these images; None where the set has no classes."""
        return read_index(self.set_folder)["label"][self.samples(numbers)].tolist() if self._has_labels else None

    def make(self, block: range) -> dict[str, Tensor]:
        """The tensors of a block of numbers; WorkError names a stored image that is damaged or has nan features."""
        made = [self.extractor(img, numbers, self._called) for img, numbers in self.pixels(block)]
        return {name: torch.cat([one[name] for one in made]) for name in made[0]}

    def pixels(self, numbers: Sequence[int]) -> Iterator[tuple[UInt8[Tensor, "n 3 h w"], Sequence[int]]]:
        """These images as the extractor gets them, some at a time, read and resized ahead by threads."""
        chunks = [numbers[i : i + CHUNK] for i in range(0, len(numbers), CHUNK)]
        images = in_order(map(self._job, chunks), threads=self.threads, ahead=2)
        for img, chunk in zip(images, chunks, strict=True):
            yield torch.from_numpy(img), chunk

    def fill(
        self,
        n: int,
        *,
        worker: int = 0,
        workers: int = 1,
        stop: Callable[[], bool] = lambda: False,
        told: Callable[[int, int], None] = lambda done, total: None,
    ) -> bool:
        """Make what is missing of the first n images, together with whoever else does; False if stopped before."""
        if self.store.missing(n):
            self.check_writable(n)
            self._write_key()
        return fill(self.store, self.make, n, worker=worker, workers=workers, stop=stop, told=told)

    def check_writable(self, n: int) -> None:
        """UserError where something of the first n images is missing and its folder cannot be written to."""
        if self.store.missing(n):
            there = next(folder for folder in self.store.folder.absolute().parents if folder.exists())
            there = self.store.folder if self.store.folder.exists() else there
            if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
                raise self._unwritable(f"{there} is not for you to write to")

    def _called(self, number: int) -> str:
        mirrored = ", mirrored" if number >= self._images else ""
        return f"{self.set_folder}: sample {self.samples([number])[0]}{mirrored} (image {number} of the reference)"

    def _name(self) -> str:
        view, digest = self.view, hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()
        crop = f"crop{self._cut_px}" if view.share < 1 else ""
        said = [
            f"{view.size_px}px",
            crop,
            "turned" if view.rotate else "",
            view.filter,
            "mirror" if view.mirror else "",
        ]
        said += [self.key["order"], re.sub(r"[^\w.+-]", "_", self.extractor.label), self.dataset_id, digest[:8]]
        return "-".join(filter(None, said))

    @cached_property
    def _reader(self) -> ShardReader:
        return ShardReader(self.set_folder)

    def _job(self, numbers: Sequence[int]) -> Job[UInt8[np.ndarray, "n 3 h w"]]:
        side, samples = self.view.size_px, self.samples(numbers)
        out = np.empty((len(numbers), 3, side, side), dtype=np.uint8)
        rows = list(zip(numbers, samples, out, strict=True))
        return Job(out, [partial(self._read, rows[i : i + PART]) for i in range(0, len(rows), PART)])

    def _read(self, rows: Sequence[tuple[int, int, UInt8[np.ndarray, "3 h w"]]]) -> None:
        stored = np.empty(self._reader.shape, dtype=np.uint8)
        for number, sample, out in rows:
            self._reader.read_into(sample, stored)
            img = self._cropped(stored, sample)
            if self.view.filter:
                img = resized(img, self.view.size_px, self.view.filter)
            np.copyto(out, (img if number < self._images else img[:, ::-1]).transpose(2, 0, 1))

    def _cropped(self, img: UInt8[np.ndarray, "s s 3"], sample: int) -> UInt8[np.ndarray, "c c 3"]:
        """A square at a uniform place, as families draw it; the same one of an image in every order."""
        draw, room = rng("reference", "crop", self.dataset_id, sample), len(img) - self._cut_px
        if room:
            y, x = draw.integers(room + 1, size=2).tolist()
            img = img[y : y + self._cut_px, x : x + self._cut_px]
        return np.ascontiguousarray(np.rot90(img, int(draw.integers(4)))) if self.view.rotate else img

    def _check_key(self) -> None:
        """UserError where the folder says that it was made otherwise."""
        path = self.store.folder / KEY_FILE
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as e:
            raise UserError(f"{path}: cannot be read ({e.strerror}); mend its permissions") from e
        except ValueError as e:
            raise UserError(f"{path}: damaged ({e}); delete the folder {self.store.folder}, it is made again") from e
        if found != self.key:
            has = found if isinstance(found, Mapping) else {}
            other = [f"{k} {has.get(k)!r}, not {v!r}" for k, v in self.key.items() if has.get(k) != v] or ["other keys"]
            raise UserError(f"{path}: made otherwise ({'; '.join(other)}); delete the folder, it is made again")

    def _write_key(self) -> None:
        """Before any block is there, by all who fill: they write the same."""
        self._check_key()
        folder = self.store.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / KEY_FILE).exists():
                write_atomic(folder / KEY_FILE, json.dumps(self.key, indent=2, sort_keys=True) + "\n")
                fsync_folder(folder)
        except OSError as e:
            if e.errno in FULL:
                raise WorkError(f"{folder}: {str(e.strerror).lower()}; free disk space and run it again") from e
            raise self._unwritable(str(e.strerror)) from e

    def _unwritable(self, why: str) -> UserError:
        return UserError(
            f"{self.store.folder}: reference statistics cannot be written there ({why}); give a folder for them with "
            "--references DIR"
        )


def _without_secrets(url: str) -> str:
    scheme, _, rest = url.partition("?")[0].partition(":/")
    return f"{scheme}://{rest.lstrip('/').rpartition('@')[2]}"
