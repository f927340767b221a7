"""Training on a CUDA device: make test-gpu. Skipped, with the reason, where there is none.

Compares with the CPU within float tolerance over a few iterations; bitwise resume is promised on the CPU only.
"""

import pytest
import torch

from pipeline.run import train_folder
from tests.runs import CIPS, MSPIE, final_state

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: run make test-gpu on a GPU machine"),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recipe", [MSPIE, CIPS])
def test_training_on_a_gpu_stays_finite_and_finishes(runner, recipe, precision):
    folder = runner(recipe).train_here("total_kimg=0.3", f"precision={precision}")
    assert all(torch.isfinite(v).all() for v in final_state(folder).values())


@pytest.mark.parametrize("recipe", [MSPIE, CIPS])
def test_a_gpu_run_that_stops_half_way_resumes(runner, recipe):
    run = runner(recipe)
    folder = run.plan("total_kimg=0.3")
    calls = iter(range(1000))
    assert train_folder(folder, should_stop=lambda: next(calls) > 8) == "stopped"
    assert train_folder(folder, should_stop=lambda: False) == "done"
    assert max(folder.glob("checkpoints/[0-9]*")).name >= f"{300:012d}"


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
def test_two_gpus_over_nccl_equal_one(runner):
    one = final_state(runner(MSPIE).train_here("total_kimg=0.06"))
    two = final_state(runner(MSPIE).train("total_kimg=0.06", ranks=2))
    for name in [n for n in one if n.startswith(("G.", "D."))]:
        assert (one[name] - two[name]).square().mean().sqrt() < 1e-3, name
