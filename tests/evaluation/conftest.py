"""A tiny trained run with three checkpoints, a detector of a few weights, reference statistics, each made once."""

import shutil
import warnings
from pathlib import Path

import pytest
import torch
from jaxtyping import config

from pipeline.evaluation import Question
from tests.runs import MSPIE, Runner

FID = "fid300_300.tiny"


class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = torch.nn.Conv2d(3, 8, 3, 2), torch.nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.conv(x)).mean((2, 3)))


@pytest.fixture(scope="session")
def detectors(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detectors")
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's, of TorchScript
        torch.jit.script(Tiny()).save(str(folder / "tiny.pt"))
    return folder


@pytest.fixture(autouse=True)
def _quick(detectors, monkeypatch, unchecked):
    monkeypatch.setenv("GRATICULE_DETECTORS", str(detectors))


@pytest.fixture(scope="session")
def trained(photos, tmp_path_factory):
    """The folder of a run with checkpoints at 24, 48 and 72 images, of 16, 24 and 32 px."""
    run = Runner(photos(32), tmp_path_factory.mktemp("runs"), MSPIE)
    few = ["family.G.num_upblocks=2", "family.D.resolution_px=16", "data.size_px=32", "total_kimg=0.072"]
    config.update("jaxtyping_disable", True)  # as _quick does, which comes later
    folder = run.train_here(*few, "exec.checkpoint_kimg=0.024", "exec.keep=5")
    config.update("jaxtyping_disable", False)
    return folder


@pytest.fixture(scope="session")
def references(tmp_path_factory):
    return str(tmp_path_factory.mktemp("references"))


@pytest.fixture
def run(trained, tmp_path):
    """A copy of its own of the trained run."""
    return Path(shutil.copytree(trained, tmp_path / trained.name))


@pytest.fixture
def ask(references):
    """A question; of FID at 16 px if nothing else is said."""

    def get(*metrics: str, **words) -> Question:
        return Question(metrics=metrics or (FID,), references=references, **{"sizes": ("16",), **words})

    return get
