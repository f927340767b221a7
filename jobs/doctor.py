"""What this machine and a cluster can do, with the mend for what they cannot.

A check never raises. ok=None: absent, and needed only by those who want it. Deliberately changes nothing.
"""

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jobs.cluster import Cluster, load_cluster
from pipeline.errors import UserError

MIN_FREE_GB = 20  # a few checkpoints of a 256 px model with both optimizers
MIN_SHM_GB = 1  # NCCL's ranks of one node talk through it
MOUNTS = Path("/proc/self/mountinfo")
NETWORK = re.compile(
    r"nfs\d?|lustre|gpfs|beegfs\w*|ceph|smb\d?|smbfs|cifs|fuse\..+|glusterfs|pvfs2|wekafs|panfs|afs|9p"
)


@dataclass(frozen=True)
class Check:
    """`ok`: True, False, or None for optional and absent, or a warning; `mend` is empty when there is nothing to do."""

    name: str
    ok: bool | None
    found: str
    mend: str = ""


def checks(cluster: str | None = None, runs: Path = Path("runs")) -> list[Check]:
    """All checks, those of a cluster too if one is named."""
    out = [_python(), *_torch(), *map(_package, REQUIRED), _torchvision(), _deepspeed(), _ffcv(), _mlflow()]
    out += [*_store_disk(runs), _folder(runs), _disk(runs), _shm(), *_detectors()]
    return out + list(_cluster(cluster))


REQUIRED = ("accelerate", "webdataset", "simplejpeg", "submitit", "mlflow", "safetensors")


def _python() -> Check:
    ok = sys.version_info >= (3, 11)
    return Check("python", ok, platform.python_version(), "" if ok else "use Python 3.11 or newer")


def _torch() -> Iterator[Check]:
    try:
        import torch
    except Exception as e:
        yield Check("torch", False, _short(e), "pip install torch, from the index that fits your GPU driver")
        return
    n = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = sorted({torch.cuda.get_device_name(i) for i in range(n)})
    if n:
        found = f"{torch.__version__}, {n} x {', '.join(names)}"
    else:
        found = f"{torch.__version__}, no GPU visible"
    driver = bool(shutil.which("nvidia-smi")) and not n
    yield Check("torch", not driver, found, "nvidia-smi is there: install a CUDA build of torch" if driver else "")
    if n and not torch.cuda.is_bf16_supported(including_emulation=False):
        yield Check("bf16", None, "not on this GPU", "keep precision=fp32")
    else:
        yield Check("bf16", True, "yes" if n else "yes, slower than fp32 on most CPUs")


def _package(name: str) -> Check:
    version = _version(name)
    if version is None:
        return Check(name, False, "missing", f"pip install {name}")
    return Check(name, True, version)


def _torchvision() -> Check:
    if importlib.util.find_spec("torchvision") is None:
        return Check("torchvision", True, "absent, not needed")
    try:
        importlib.import_module("torchvision")
    except Exception as e:
        return Check("torchvision", False, f"broken: {_short(e)}", "pip uninstall torchvision; others import it")
    return Check("torchvision", True, f"{_version('torchvision')}, not needed")


def _deepspeed() -> Check:
    if _version("deepspeed") is None:
        return Check("deepspeed", None, "absent", "pip install 'graticule[deepspeed]'")
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR", Path.home() / ".cache" / "torch_extensions"))
    locks = list(root.glob("**/deepspeed_shm_comm/lock"))
    if locks:
        return Check("deepspeed", False, "a build was killed half-way; starts hang", f"delete {locks[0]}")
    lacking = [name for name in ("ninja",) if _version(name) is None]
    if not lacking and shutil.which("ninja") is None:
        return Check("deepspeed", False, "ninja is not on PATH", "activate the environment, or add its bin to PATH")
    mend = f"pip install {' '.join(lacking)}" if lacking else ""
    return Check("deepspeed", not lacking, f"{_version('deepspeed')}", mend)


def _ffcv() -> Check:
    version = _version("ffcv")
    if version is None:
        mend = "apt-get install libopencv-dev libturbojpeg0-dev pkg-config g++; pip install 'graticule[ffcv]'"
        return Check("ffcv", None, "absent", mend)
    return Check("ffcv", True, version)


def _mlflow() -> Check:
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        return Check("mlflow store", True, "MLFLOW_TRACKING_URI is not set: a local store")
    if uri.startswith(("http://", "https://")):
        try:
            with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=3) as answer:
                return Check("mlflow store", True, f"{uri} answers {answer.status}")
        except (OSError, ValueError) as e:
            mend = "start the server or correct MLFLOW_TRACKING_URI; training goes on and graticule sync replays"
            return Check("mlflow store", False, f"{uri}: {_short(e)}", mend)
    if uri.startswith("sqlite:///"):
        folder = Path(uri.removeprefix("sqlite:///")).absolute().parent
        ok = os.access(folder, os.W_OK)
        return Check("mlflow store", ok, uri, "" if ok else f"make {folder} writable, or correct MLFLOW_TRACKING_URI")
    return Check("mlflow store", False, uri, "use sqlite:///FILE or http://HOST:PORT; MLflow refuses file stores")


def _store_disk(runs: Path) -> Iterator[Check]:
    """SQLite's locks do not hold on network file systems; the default store lies beside the runs."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{runs.absolute() / 'mlflow.db'}"
    if not uri.startswith("sqlite:///"):
        return
    store = Path(uri.removeprefix("sqlite:///"))
    try:
        kind = file_system(store, MOUNTS.read_text())
    except OSError:  # no /proc
        return
    name = "mlflow store's disk"
    if NETWORK.fullmatch(kind):
        mend = (
            "several writers can damage it: start mlflow server on a service node and set MLFLOW_TRACKING_URI to it, "
        )
        mend += "or to sqlite:////a/local/disk/mlflow.db; metrics.jsonl is safe either way"
        yield Check(name, None, f"{store} is SQLite on a network file system ({kind})", mend)
    else:
        yield Check(name, True, kind or "unknown")


def file_system(path: Path, mountinfo: str) -> str:
    """The type of the file system that holds `path`, existing or not: that of its longest mount point, the last one
    of several. "" if there is none. `mountinfo`: the text of /proc/self/mountinfo."""
    place, longest, kind = path.resolve(), -1, ""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        if len(before.split()) < 5 or not after:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), before.split()[4]))
        if place.is_relative_to(point) and len(point.parts) >= longest:
            longest, kind = len(point.parts), after.split()[0]
    return kind


def _folder(runs: Path) -> Check:
    place = next(p for p in (runs.absolute(), *runs.absolute().parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            return Check("runs folder", True, f"{runs.absolute()} is writable")
    except OSError as e:
        return Check("runs folder", False, f"{place}: {_short(e)}", "choose another folder with --runs")


def _disk(runs: Path) -> Check:
    place = next(p for p in (runs.absolute(), *runs.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free / 2**30
    ok = free >= MIN_FREE_GB
    return Check("free disk", ok, f"{free:.0f} GB below {place}", "" if ok else f"free {MIN_FREE_GB} GB, or use --runs")


def _shm() -> Check:
    if not Path("/dev/shm").is_dir():
        return Check(
            "shared memory", None, "no /dev/shm", "several GPUs of a node talk through it: ask for it in the container"
        )
    free = shutil.disk_usage("/dev/shm").free / 2**30
    ok = free >= MIN_SHM_GB
    mend = "" if ok else "docker run --shm-size=8g"
    return Check("shared memory", ok, f"{free:.1f} GB free in /dev/shm", mend)


def _detectors() -> Iterator[Check]:
    """Feature detectors that metrics need, by their hashes; they lie in a folder and are never downloaded."""
    try:
        from pipeline.metrics.detectors import KNOWN, detectors_folder, files_in, found
    except Exception:  # torch is missing or broken, which has a check of its own
        return
    folder, seen = detectors_folder(), []
    for path in files_in(folder):
        try:
            seen.append(found(path))
        except UserError as e:
            yield Check(f"detector {path.stem}", False, str(e), f"make {path} readable, or remove it")
    others = [f for f in seen if not f.names]
    for name, known in KNOWN.items():
        there = next((f for f in seen if name in f.names), None)
        wrong = next((f for f in others if f.path.name in known.files), None)
        mend = f"put {known.files[0]} (sha256 {known.sha256}) into {folder}, see docs/metrics.md"
        if there is not None:
            yield Check(f"detector {name}", True, str(there.path))
        elif wrong is not None:
            mend = f"fetch it again (the published one has {known.sha256}), or give your own another name"
            yield Check(f"detector {name}", False, f"{wrong.path} has sha256 {wrong.sha256}", mend)
        else:
            yield Check(f"detector {name}", None, "absent", mend)
    published = {name for known in KNOWN.values() for name in known.files}
    if own := [f.label for f in others if f.path.name not in published]:
        yield Check("detectors, others", True, ", ".join(own))


def _cluster(name: str | None) -> Iterator[Check]:
    wanted: Cluster | None = None
    if name is not None:
        try:
            wanted = load_cluster(name)
            yield Check("cluster file", True, f"{wanted.name}: executor {wanted.executor}")
        except UserError as e:
            yield Check("cluster file", False, str(e), "see slurm/example.toml")
    needed = wanted is not None and wanted.executor == "slurm"
    roles: dict[str, str] = {
        "sbatch": "submit from the login node, or use --cluster local",
        "squeue": "install slurm-client; without it status cannot see the queue",
        "scontrol": "needed on compute nodes too; where it cannot be, set successors in the cluster file",
        "sacct": "ask for accounting (slurmdbd); without it submitit does not learn that a job died",
    }
    for command, mend in roles.items():
        path = shutil.which(command)
        absent: bool | None = False if needed else None
        yield (Check(command, True, path) if path else Check(command, absent, "not on PATH", mend if needed else ""))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _short(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
