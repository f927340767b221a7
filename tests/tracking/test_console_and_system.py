"""The line on the console, and the machine's own metrics."""

import pytest

from pipeline.tracking.console import duration, tick
from pipeline.tracking.system import system_metrics


def test_a_tick_reads_as_the_field_reads_it():
    values = {
        "Loss/D/adv": 1.234,
        "Loss/G/adv": 0.5,
        "Timing/sec_per_kimg": 28.5,
        "Resources/gpumem_gb": 5.21,
    }
    line = tick({"nimg": 12_000, "metrics": values}, total_kimg=400.0)
    assert line == ("kimg 12/400 (3.0%)  img/s 35.1  s/kimg 28.5  eta 3h04m  D/adv 1.23  G/adv 0.5  gpumem 5.2")


def test_a_tick_without_timing_is_a_tick():
    assert tick({"nimg": 500, "metrics": {}}, total_kimg=1.0) == "kimg 0.5/1 (50.0%)"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0s"),
        (59.6, "1m00s"),
        (3600.0, "1h00m"),
        (100_000.0, "1d03h"),
        (float("nan"), "?"),
        (float("inf"), "?"),
    ],
)
def test_durations_have_two_units(seconds, text):
    assert duration(seconds) == text


def test_system_metrics_have_the_names_that_mlflow_shows(tmp_path):
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor

    theirs = set()
    for monitor in (CPUMonitor(), DiskMonitor()):
        monitor.collect_metrics()
        theirs |= {f"system/{name}" for name in monitor.aggregate_metrics()}
    ours = system_metrics(None, tmp_path)
    assert set(ours) == theirs
    assert 0 < ours["system/system_memory_usage_percentage"] <= 100


def test_gpu_metrics_have_the_names_that_mlflow_shows(monkeypatch):
    import torch
    from mlflow.system_metrics.metrics import gpu_monitor

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: (int(60e9), int(80e9)))
    monkeypatch.setattr(torch.cuda, "utilization", lambda i: 97)
    monkeypatch.setattr(torch.cuda, "power_draw", lambda i: 500_000)
    with open(gpu_monitor.__file__) as f:
        theirs = f.read()
    gpu = {k: v for k, v in system_metrics(1).items() if "gpu" in k}
    assert gpu["system/gpu_1_memory_usage_megabytes"] == 20_000
    assert gpu["system/gpu_1_power_usage_watts"] == 500
    for name in gpu:
        assert name.replace("system/gpu_1_", "gpu_{i}_") in theirs


def test_a_gpu_without_pynvml_still_reports_memory(monkeypatch):
    import torch

    def absent(_):
        raise ModuleNotFoundError("pynvml does not seem to be installed")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: (1, 4))
    monkeypatch.setattr(torch.cuda, "utilization", absent)
    assert {k for k in system_metrics(0) if "gpu" in k} == {
        "system/gpu_0_memory_usage_megabytes",
        "system/gpu_0_memory_usage_percentage",
    }
