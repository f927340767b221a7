"""Our numbers are those of pytorch-fid, clean-fid, torch-fidelity and prdc on the same features (`peers.py`)."""

import json
from pathlib import Path

import pytest
import torch

from pipeline.metrics.frechet import fid
from pipeline.metrics.kernel import kid
from pipeline.metrics.manifold import density_coverage, precision_recall
from pipeline.metrics.moments import moments
from tests.metrics.peers import sets

HERE = Path(__file__).parent
NOW = json.loads((HERE / "peers.json").read_text())
OLD = json.loads((HERE / "peers_scipy_1_11.json").read_text())
SETS = {name: (torch.from_numpy(real), torch.from_numpy(fake)) for name, (real, fake) in sets().items()}


@pytest.mark.parametrize("numbers", [NOW, OLD], ids=["scipy 1.17", "scipy 1.11"])
@pytest.mark.parametrize("package", ["pytorch-fid", "clean-fid", "torch-fidelity"])
@pytest.mark.parametrize("name", ["many", "few", "dead"])
def test_fid_is_that_of_three_packages(name, package, numbers):
    """Only where older scipy finds no root do two of them differ, and that is what their variant is."""
    real, fake = (moments([x]) for x in SETS[name])
    no_root = name == "dead" and numbers is OLD and package != "torch-fidelity"
    expected = numbers[name]["fid"][package]
    assert fid(real, fake, "mseitzer" if no_root else "unbiased").distance == pytest.approx(expected, rel=1e-8)
    if no_root:
        assert fid(real, fake).distance == pytest.approx(expected, rel=1e-3)
        assert fid(real, fake).distance != pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("package", ["clean-fid", "torch-fidelity"])
def test_kid_is_that_of_two_packages(package):
    assert kid(*SETS["equal"]) == pytest.approx(NOW["equal"]["kid"][package], rel=1e-12)


@pytest.mark.parametrize("name", ["many", "few"])
def test_precision_recall_density_and_coverage_are_those_of_prdc_and_torch_fidelity(name):
    for k in (3, 5):
        pr, dc = precision_recall(*SETS[name], k), density_coverage(*SETS[name], k)
        assert vars(pr) | vars(dc) == pytest.approx(NOW[name][f"prdc k={k}"], rel=1e-14)
    float32 = NOW[name]["torch-fidelity k=3"]
    assert vars(precision_recall(*SETS[name])) == pytest.approx(float32, rel=1e-7)
