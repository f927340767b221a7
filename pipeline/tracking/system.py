"""The machine as metrics, under the names that MLflow's "System metrics" tab shows.

Written into metrics.jsonl by the training process like any other metric, so an outage of the tracking server
loses none of them. Deliberately knows nothing of MLflow's own sampling thread, whose samples live in memory.
"""

from pathlib import Path

import psutil


def system_metrics(device_index: int | None, disk: Path = Path(".")) -> dict[str, float]:
    """CPU, memory, the disk that holds `disk`, and one GPU unless `device_index` is None.

    CPU utilization is the mean since the previous call, 0 in the first one.
    """
    memory, usage = psutil.virtual_memory(), psutil.disk_usage(str(disk))
    values = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / 1e6,
        "system_memory_usage_percentage": memory.used / memory.total * 100,
        "disk_usage_percentage": usage.percent,
        "disk_usage_megabytes": usage.used / 1e6,
        "disk_available_megabytes": usage.free / 1e6,
    }
    if device_index is not None:
        values |= {f"gpu_{device_index}_{name}": value for name, value in _gpu(device_index).items()}
    return {f"system/{name}": round(float(value), 1) for name, value in values.items()}


def _gpu(index: int) -> dict[str, float]:
    import torch

    if not torch.cuda.is_available():
        return {}
    free, total = torch.cuda.mem_get_info(index)
    values = {
        "memory_usage_megabytes": (total - free) / 1e6,
        "memory_usage_percentage": (total - free) / total * 100,
    }
    try:  # needs pynvml and a driver that answers it; neither is worth stopping for
        values["utilization_percentage"] = torch.cuda.utilization(index)
        values["power_usage_watts"] = torch.cuda.power_draw(index) / 1000
    except Exception:
        pass
    return values
