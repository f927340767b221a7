"""Every test: CPU, one torch thread, fixed seed, warnings are errors, jaxtyping shapes checked."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest
import torch


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)
