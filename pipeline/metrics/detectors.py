"""Feature detectors from local files: TorchScript, torch.export programs, and the state dict of FID's Inception.

Three published files are recognised by sha256 and give four detectors; any other file is the user's own, and its hash
is part of every metric's name. uint8 RGB goes in, how it is resized and scaled is data (Options). Downloads nothing,
runs no pickle, and knows no metric.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from pipeline.config import Config, nearest
from pipeline.errors import UserError
from pipeline.metrics.detector_files import read_program
from pipeline.metrics.inception import FEATURES

SUFFIXES = (".pt", ".pth", ".pt2")
PROBE_PX = 256  # a program that resizes by itself is tried on images of this side
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as its classifiers are trained


class Options(Config):
    """How uint8 RGB images become a program's input; for a user's program they stand in NAME.json beside it.

    `size_px` and `resize`: both or neither; without them images go in at their own size. `resize`: torch's bilinear
    or bicubic with half-pixel centres, in float32 and without rounding or clamping after it, `_antialias` or not, or
    `tf1_bilinear` (no half-pixel centres). `range`: "uint8" hands bytes over (rounded if resized), "tf" is
    (x - 128) / 128, "imagenet" is 0..1 less ImageNet's mean, over its deviation. `flags`: keyword arguments to set.
    """

    size_px: int | None = Field(default=None, ge=1, le=4096)
    resize: Literal["bilinear", "bilinear_antialias", "bicubic", "bicubic_antialias", "tf1_bilinear"] | None = None
    range: Literal["uint8", "0..1", "-1..1", "tf", "imagenet"] = "-1..1"
    flags: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _both(self) -> "Options":
        if (self.size_px is None) != (self.resize is None):
            raise ValueError(f"size_px={self.size_px}, resize={self.resize}: set both, or neither")
        return self


@dataclass(frozen=True)
class Known:
    """A published file and what it is called with. `files`: the names it is published under."""

    files: tuple[str, ...]
    sha256: str
    dim: int
    options: Options


_WEIGHTS = (
    ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth"),
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    2048,
)
_EXPORT = Options(range="uint8", flags=("return_features",))  # the exports resize and scale by themselves

KNOWN = {
    "inception": Known(
        ("inception-2015-12-05.pt",), "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4", 2048, _EXPORT
    ),
    "vgg16": Known(("vgg16.pt",), "b437eb095feaeb0b83eb3fa11200ebca4548ee39a07fb944a417ddc516cc07c3", 4096, _EXPORT),
    # Parity: the same weights as pytorch-fid (also mmgeneration's default) and as torch-fidelity (CIPS) feed them
    "inception_mseitzer": Known(*_WEIGHTS, Options(size_px=299, resize="bilinear", range="-1..1")),
    "inception_fidelity": Known(*_WEIGHTS, Options(size_px=299, resize="tf1_bilinear", range="tf")),
}


@dataclass(frozen=True)
class Found:
    """A file that may be a detector. `names`: the recognised detectors it gives, none if it is the user's own."""

    path: Path
    sha256: str
    names: tuple[str, ...]

    @property
    def label(self) -> str:
        return " and ".join(self.names) or f"{self.path.stem}-{self.sha256[:8]}"


def detectors_folder() -> Path:
    """GRATICULE_DETECTORS, or ~/.cache/graticule/detectors; it need not exist."""
    return Path(os.environ.get("GRATICULE_DETECTORS") or Path.home() / ".cache" / "graticule" / "detectors")


def found(path: Path) -> Found:
    """Hash a file. Of a user's program with options: the hash of the file followed by its JSON, which decides too."""
    try:
        with path.open("rb") as f:
            digest = hashlib.file_digest(f, "sha256")
        names = tuple(name for name, known in KNOWN.items() if known.sha256 == digest.hexdigest())
        if not names and (beside := path.with_suffix(".json")).is_file():
            digest.update(beside.read_bytes())
    except OSError as e:
        raise UserError(f"detector={str(path)!r}: cannot be read ({e.strerror}); see graticule doctor") from e
    return Found(path, digest.hexdigest(), names)


def files_in(folder: Path) -> list[Path]:
    """Files that may be detectors, by name; none where there is no folder."""
    try:
        return sorted(p for p in folder.iterdir() if p.suffix in SUFFIXES and p.is_file())
    except OSError:
        return []


def find(name: str, folder: Path | None = None) -> tuple[str, Found]:
    """A detector's name and file. `name`: a key of KNOWN, a file's name in the folder with or without its suffix, or
    a path. UserError where there is none, or where a published name stands on something else."""
    if os.sep in name or (Path(name).suffix in SUFFIXES and Path(name).is_file()):
        path = Path(name).expanduser()
        if not path.is_file():
            raise UserError(f"detector={name!r}: no such file")
        return _named(found(path))
    folder = folder or detectors_folder()
    files = files_in(folder)
    if known := KNOWN.get(name):
        for path in [p for p in files if p.name in known.files]:
            seen = found(path)
            if name not in seen.names:
                wants = f"the published one has {known.sha256}; fetch it again, or give your own another name"
                raise UserError(f"detector={name!r}: {path} has sha256 {seen.sha256}; {wants}")
            return name, seen
        if any(name in (seen := found(path)).names for path in files):
            return name, seen  # under another file name
    fits = [p for p in files if name in (p.name, p.stem)]
    if len(fits) > 1:
        raise UserError(f"detector={name!r}: {' and '.join(p.name for p in fits)} lie in {folder}; say which")
    if fits:
        return _named(found(fits[0]))
    there = f"there: {', '.join(p.name for p in files)}" if files else "there is none yet"
    if known:
        put = f"put {known.files[0]} (sha256 {known.sha256[:16]}...) there or set GRATICULE_DETECTORS"
        raise UserError(f"detector={name!r}: not in {folder} ({there}); {put}; nothing is downloaded")
    near = nearest(name, {*KNOWN, *(p.stem for p in files)})
    raise UserError(f"detector={name!r}: not in {folder} ({there}); {near}; a path works too")


def _named(seen: Found) -> tuple[str, Found]:
    name = seen.names[0] if seen.names else seen.path.stem
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        raise UserError(f"detector={name!r}: metrics carry its name; rename the file, to letters, digits, _ . and -")
    return name, seen


def tf1_bilinear(x: Float[Tensor, "n c h w"], side: int) -> Float[Tensor, "n c {side} {side}"]:
    """TensorFlow 1's resize: output pixel i looks at i * in / out, without half-pixel centres; borders are clamped."""
    for axis in (3, 2):
        size = x.shape[axis]
        at = torch.arange(side, device=x.device, dtype=torch.float32) * (size / side)
        low = at.floor().long().clamp(max=size - 1)
        shape = [-1 if a == axis else 1 for a in range(4)]
        part = (at - low).view(shape)
        below, above = x.index_select(axis, low), x.index_select(axis, (low + 1).clamp(max=size - 1))
        x = below + (above - below) * part
    return x


def prepare(img: UInt8[Tensor, "n 3 h w"], options: Options) -> Tensor:
    """uint8 RGB to what a program takes: float32, or uint8 where it asks for bytes."""
    if options.range == "uint8" and options.size_px is None:
        return img
    x = img.to(torch.float32)
    if options.size_px is not None and options.resize == "tf1_bilinear":
        x = tf1_bilinear(x, options.size_px)
    elif options.size_px is not None and options.resize is not None:
        mode, _, anti = options.resize.partition("_")
        x = F.interpolate(x, (options.size_px,) * 2, mode=mode, align_corners=False, antialias=bool(anti))
    match options.range:
        case "uint8":
            return x.round().clamp(0, 255).to(torch.uint8)
        case "tf":
            return (x - 128) / 128
        case "-1..1":
            return x / 127.5 - 1
        case "0..1":
            return x / 255
    mean, std = (torch.tensor(t, device=x.device).view(1, 3, 1, 1) for t in (MEAN, STD))
    return (x / 255 - mean) / std


@contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """float32 throughout, the same kernels in every call, no graph; what was set before is set again."""
    precision = torch.get_float32_matmul_precision()
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False))
        unfused = torch.jit.optimized_execution(False)  # pyright: ignore[reportPrivateImportUsage]
        stack.enter_context(unfused)  # fused kernels would come with the third call
        stack.callback(torch.set_float32_matmul_precision, precision)
        torch.set_float32_matmul_precision("highest")
        yield


@dataclass(frozen=True, eq=False)
class Detector:
    """Images to features, `dim` of them; `sha256` is that of Found, `options` say how images are fed.

    The program always sees `batch` images of one memory format, filled up with black ones, so that an image's
    features depend neither on its neighbours nor on how many there are: hand over many at once.
    """

    name: str
    sha256: str
    recognised: bool
    dim: int
    options: Options
    batch: int
    device: torch.device
    program: Callable[..., Any]

    @property
    def label(self) -> str:
        """What a metric's name carries: the name, and eight digits of the hash where the file is not recognised."""
        return self.name if self.recognised else f"{self.name}-{self.sha256[:8]}"

    def __call__(self, img: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """float32 features on `device`; any n, 0 too. `img` may lie elsewhere."""
        parts = [self._run(part) for part in img.split(self.batch)] if len(img) else []
        return torch.cat(parts) if parts else torch.empty(0, self.dim, device=self.device)

    def _run(self, img: Tensor) -> Tensor:
        full = torch.zeros(self.batch, *img.shape[1:], dtype=torch.uint8, device=self.device)
        full[: len(img)] = img
        with _exact(self.device):
            x = prepare(full, self.options)
            out = self.program(x, **dict.fromkeys(self.options.flags, True))
        if not isinstance(out, Tensor):
            raise UserError(f"detector={self.name!r}: gives a {type(out).__name__}, wanted one tensor of [n, features]")
        wanted = f"wanted [{self.batch}, {self.dim or 'features'}] for {self.batch} images {list(x.shape[1:])}"
        if out.ndim != 2 or len(out) != self.batch or out.shape[1] != (self.dim or out.shape[1]):
            raise UserError(f"detector={self.name!r}: gives {list(out.shape)}, {wanted}; export one that pools")
        if not out.is_floating_point():
            raise UserError(f"detector={self.name!r}: gives {out.dtype}, wanted floating-point features")
        return out[: len(img)].to(torch.float32)


def load_detector(name: str, folder: Path | None = None, device: str = "cpu", batch: int = 16) -> Detector:
    """The detector of that name or path (see `find`) on a device; a user's own is tried on noise.

    UserError where there is none, the file holds no program and no weights of FID's Inception, its options are off,
    or its features are no [n, d], change from call to call, or depend on the other images of a batch.
    """
    name, seen = find(name, folder)
    where = f"detector={name!r}: {seen.path}"
    beside = seen.path.with_suffix(".json")
    if known := KNOWN.get(name) if seen.names else None:
        if beside.is_file():
            raise UserError(f"{where} is fed as published, so {beside.name} would be ignored; move it away")
        options = known.options
    program = read_program(seen.path, torch.device(device), where)
    if not known:
        usual = KNOWN["inception_mseitzer"].options if program.kind == "weights" else Options()
        options = _options(beside) if beside.is_file() else usual
        if program.side_px not in (None, options.size_px):
            sets = f"set size_px={program.side_px} and resize in {beside.name}"
            raise UserError(f"{where} takes images of {program.side_px} px only, size_px={options.size_px}; {sets}")
    detector = Detector(
        name=name,
        sha256=seen.sha256,
        recognised=known is not None,
        dim=known.dim if known else FEATURES if program.kind == "weights" else 0,
        options=options,
        batch=program.batch or batch,
        device=torch.device(device),
        program=program.call,
    )
    return detector if detector.dim else _tried(detector, where)


def _options(path: Path) -> Options:
    try:
        return Options.from_json(path.read_text(), where=str(path))
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: cannot be read ({type(e).__name__})") from e


def _tried(detector: Detector, where: str) -> Detector:
    """The detector with its `dim`, after two images of noise have been through it."""
    side = detector.options.size_px or PROBE_PX
    noise = torch.randint(0, 256, (2, 3, side, side), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    try:
        first, again, alone = detector(noise), detector(noise), detector(noise[:1])
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as e:  # the program's own
        lines = [line.strip() for line in str(e).splitlines() if line.strip()] or [type(e).__name__]
        fed = f"{side} x {side} px, range {detector.options.range}"
        said = f"{type(e).__name__}: {lines[-1]:.150}"
        raise UserError(f"{where} fails on images of {fed} ({said}); see docs/metrics.md for its options") from e
    if not first.isfinite().all():
        raise UserError(f"{where}: features of noise are not finite; is range={detector.options.range!r} right?")
    near = 1e-3 * first.abs().max()
    if (first - again).abs().max() > near:
        raise UserError(f"{where}: features change from call to call; export it in eval mode")
    if (first[:1] - alone).abs().max() > near:
        raise UserError(f"{where}: features depend on the other images of a batch; export it in eval mode")
    return replace(detector, dim=first.shape[1])
