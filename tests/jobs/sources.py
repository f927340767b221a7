"""A copy of the project whose training is a few lines without torch, to be edited while jobs of it are at work."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TRAINING = """
import os, time

VERSION = "{version}"


def train_folder(folder, *, should_stop):
    with open(folder / f"lives{{os.environ.get('RANK', 0)}}", "a") as f:
        f.write(VERSION + " " + os.environ["PYTHONPATH"] + "\\n")
    while not (folder / "enough").exists():
        if should_stop():
            return "stopped"
        time.sleep(0.02)
    return "done"
"""
SUBMIT = """
import sys
from pathlib import Path
from jobs.cluster import load_cluster
from jobs.submit import submit_array
for job in submit_array([Path(run) for run in sys.argv[2:]], load_cluster(sys.argv[1]), nodes=1, gpus=1, name="toy"):
    print(job.job_id)
"""


class Sources:
    """`folder` holds the packages; the shell that submits stands in it, as in a checkout."""

    def __init__(self, folder: Path):
        self.folder = folder
        for package in ("pipeline", "jobs", "dataprep"):
            shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
        self.write("old")

    def write(self, version: str) -> None:
        (self.folder / "pipeline" / "run.py").write_text(TRAINING.format(version=version))

    def edit(self) -> None:
        """What would be seen at once, and what would break."""
        self.write("new")
        for module in ("submit", "preempt", "world"):
            (self.folder / "jobs" / f"{module}.py").write_text("raise SystemExit('edited')\n")

    def submit(self, cluster: Path, *runs: Path) -> list[str]:
        for run in runs:
            run.mkdir(parents=True)
            (run / "config.json").write_text('{"total_kimg": 1}')
        command = [sys.executable, "-c", SUBMIT, str(cluster), *map(str, runs)]
        env = {**os.environ, "PYTHONPATH": str(self.folder)}
        done = subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()
