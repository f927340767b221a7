"""What ran: a copy of the code as it was submitted, and the facts of each attempt.

A job that waits in the queue, or comes back to it, runs its copy, not what the working tree has become by then.
Imports no torch and nothing of training; what only that knows arrives as facts.
"""

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline.config import write_atomic
from pipeline.errors import WorkError

ROOT = Path(__file__).resolve().parents[1]  # a repository, site-packages, or a snapshot
CODE = ("pipeline", "jobs", "dataprep")  # packages, copied whole
CLUSTERS = "slurm"  # its *.toml lie beside them, where jobs/cluster.py looks them up
SNAPSHOT = "snapshot.json"
MAX_DIFF = 200_000  # characters
PACKAGES = (
    "torch",
    "accelerate",
    "deepspeed",
    "numpy",
    "webdataset",
    "mlflow",
    "submitit",
    "safetensors",
    "simplejpeg",
    "pillow",
    "pydantic",
)
VARIABLES = re.compile(
    r"(SLURM|NCCL|SUBMITIT)_\w+|CUDA_VISIBLE_DEVICES|OMP_NUM_THREADS|MASTER_(ADDR|PORT)|PYTORCH_\w*ALLOC\w*"
    r"|MLFLOW_(TRACKING_URI|EXPERIMENT_NAME|RUN_ID)|GRATICULE_\w+"
)
SECRET = re.compile(r"TOKEN|SECRET|PASS|KEY|CREDENTIAL|AUTH|JWT|COOKIE", re.IGNORECASE)


def snapshot_code(place: Path) -> str:
    """Copy the code as it lies on disk now to `place`/code; the first 12 hex digits of its content's hash.

    `place`/code is whole or absent. One of the same content is left as it is, another one is replaced.
    `PYTHONPATH=place/code PYTHONSAFEPATH=1 python -m ...` runs it wherever it is started.
    """
    files = _files(ROOT)
    sha256, code = _hash(files), place / "code"
    if (code / SNAPSHOT).is_file() and _hash(_files(code)) == sha256:
        return sha256[:12]
    facts = {"sha256": sha256, "time": time.time(), "root": str(ROOT), **_git()}
    temp, old = (place / f".code.{uuid.uuid4().hex}.{end}" for end in ("tmp", "old"))
    try:
        for name, content in {**files, SNAPSHOT: json.dumps(facts, indent=2).encode()}.items():
            path = temp / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        if code.exists():
            code.rename(old)
        temp.rename(code)
    except OSError as e:
        raise WorkError(f"{place}: the code cannot be copied there ({e.strerror}); free some disk space") from e
    finally:
        if old.exists() and not code.exists():
            old.rename(code)
        for left in (temp, old):
            shutil.rmtree(left, ignore_errors=True)
    return sha256[:12]


def keep_code(folder: Path) -> None:
    """Copy the code to a run's `folder`/code, unless this is a job's copy already. The newest attempt's is kept."""
    if (ROOT / SNAPSHOT).is_file():
        return
    for left in folder.glob(".code.*"):  # by a kill
        shutil.rmtree(left, ignore_errors=True)
    snapshot_code(folder)


def environment(*, device: str, hosts: list[str], world: int, **rank_facts: object) -> dict[str, object]:
    """What this attempt runs on; what cannot be found out is left out. Nothing that looks like a secret is in it."""
    out: dict[str, object] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "hosts": hosts,
        "world": world,
        "device": device,
        **rank_facts,
        "job_id": job_id(),
        "command": without_password(shlex.join(sys.argv)),
        "variables": {n: without_password(v) for n, v in sorted(os.environ.items()) if _shown(n)},
    }
    for name in PACKAGES:
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return {**out, "code": _hash(_files(ROOT))[:12], **_git()}


def record_attempt(folder: Path, attempt: int, facts: Mapping[str, object]) -> None:
    """Write a run's environment.json, of the newest attempt, and environment/<attempt>.json, which stays."""
    text = json.dumps({"attempt": attempt, **facts}, indent=2, default=str) + "\n"
    (folder / "environment").mkdir(exist_ok=True)
    write_atomic(folder / "environment" / f"{attempt:03d}.json", text)
    write_atomic(folder / "environment.json", text)


def job_id() -> str:
    """Of the scheduler, or of submitit's local controller; empty where nobody queued this process."""
    return os.environ.get("SLURM_JOB_ID") or os.environ.get("SUBMITIT_LOCAL_JOB_ID", "")


def without_password(text: str) -> str:
    """An address, or a text with addresses, as it may be written to a file or the console."""
    return re.sub(r"//[^/@\s]*@", "//", text)


def _shown(name: str) -> bool:
    return bool(VARIABLES.fullmatch(name)) and not SECRET.search(name)


def _files(root: Path) -> dict[str, bytes]:
    """Relative path -> content, in a fixed order; all but caches and hidden files."""
    found = {}
    for package in CODE:
        for folder, inner, names in os.walk(root / package, followlinks=True):
            inner[:] = sorted(d for d in inner if d != "__pycache__" and not d.startswith("."))
            for name in sorted(names):
                path = Path(folder, name)
                if not name.startswith(".") and path.suffix != ".pyc" and path.is_file():
                    found[path.relative_to(root).as_posix()] = path.read_bytes()
    for path in sorted((root / CLUSTERS).glob("*.toml")):
        found[path.relative_to(root).as_posix()] = path.read_bytes()
    return found


def _hash(files: Mapping[str, bytes]) -> str:
    total = hashlib.sha256()
    for name in sorted(files):
        total.update(f"{name}\n{hashlib.sha256(files[name]).hexdigest()}\n".encode())
    return total.hexdigest()


def _git() -> dict[str, object]:
    """git_sha, git_diff, git_untracked: of the snapshot this is, else of the repository that holds this file."""
    snapshot = ROOT / SNAPSHOT
    if snapshot.is_file():
        facts = json.loads(snapshot.read_text())
        return {name: facts[name] for name in ("git_sha", "git_diff", "git_untracked") if name in facts}
    here = Path(__file__).resolve().relative_to(ROOT).as_posix()
    if _ask_git("ls-files", "--error-unmatch", here) is None:  # installed below somebody else's repository, or none
        return {}
    untracked = _ask_git("ls-files", "--others", "--exclude-standard", *CODE, CLUSTERS)
    facts = {
        "git_sha": _ask_git("rev-parse", "HEAD"),
        "git_diff": _ask_git("diff", "--no-ext-diff", "--no-color", "HEAD"),
        "git_untracked": None if untracked is None else untracked.splitlines(),  # the snapshot alone holds these
    }
    if isinstance(facts["git_diff"], str):
        facts["git_diff"] = facts["git_diff"][:MAX_DIFF]
    return {name: value for name, value in facts.items() if value is not None}


def _ask_git(*words: str) -> str | None:
    """What git says; None when it cannot."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-C", str(ROOT), *words]
    try:
        done = subprocess.run(command, env=env, capture_output=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None
