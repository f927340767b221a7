"""These tests run inside the lab: `make test-slurm`, or `slurm/lab.sh run pytest -m slurm tests/slurm`."""

import os
import shutil
from pathlib import Path

import pytest

from dataprep.sources import open_source
from dataprep.transform import Transform
from dataprep.writer import prepare


@pytest.fixture(scope="session", autouse=True)
def lab():
    if "SLURM_LAB_INSIDE" not in os.environ or shutil.which("slurmctld") is None:
        pytest.skip("not inside the Slurm lab; run them with: make test-slurm")


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Real photographs at the largest size that the tiny recipe trains."""
    out = tmp_path_factory.mktemp("data") / "photos64"
    prepare(open_source("photos"), out, Transform(size_px=64), workers=2)
    return out
