"""These tests run inside the lab: `make test-slurm`, or `slurm/lab.sh run pytest -m slurm tests/slurm`."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dataprep.sources import open_source
from dataprep.transform import Transform
from dataprep.writer import prepare
from tests.slurm.drive import LabRun


@pytest.fixture(scope="session", autouse=True)
def lab():
    if "SLURM_LAB_INSIDE" not in os.environ or shutil.which("slurmctld") is None:
        pytest.skip("not inside the Slurm lab; run them with: make test-slurm")


@pytest.fixture
def lab_file(tmp_path) -> Path:
    """The lab's cluster file, with room for several jobs on a node."""
    path = tmp_path / "small-lab.toml"
    text = (Path(__file__).resolve().parents[2] / "slurm" / "lab.toml").read_text()
    path.write_text(text.replace("mem_gb = 3", "mem_gb = 1"))
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Real photographs at the largest size that the tiny recipe trains."""
    out = tmp_path_factory.mktemp("data") / "photos64"
    prepare(open_source("photos"), out, Transform(size_px=64), workers=2)
    return out


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, data) -> Callable[..., LabRun]:
    """The run of this shape and seed that nobody disturbs; made once."""
    made: dict[tuple[int, int, int], LabRun] = {}

    def get(nodes: int = 2, gpus: int = 1, seed: int = 0) -> LabRun:
        shape = (nodes, gpus, seed)
        if shape not in made:
            run = LabRun(tmp_path_factory.mktemp("undisturbed"), data, f"seed={seed}")
            run.submit(nodes, gpus)
            assert run.end() == "done", run.papers()
            made[shape] = run
        return made[shape]

    return get


@pytest.fixture
def new_run(tmp_path, data) -> Iterator[Callable[..., LabRun]]:
    """new_run(*sets): a run of this test, whose jobs do not outlive it."""
    made: list[LabRun] = []

    def make(*sets: str) -> LabRun:
        made.append(LabRun(tmp_path / "runs", data, *sets))
        return made[-1]

    yield make
    for run in made:
        run.clear()
