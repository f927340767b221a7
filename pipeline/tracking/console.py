"""One line a tick, in the shape that StyleGAN users read without thinking.

Deliberately knows nothing but a record of metrics.jsonl: what the line shows, the file holds.
"""

from collections.abc import Mapping
from typing import Any


def tick(record: Mapping[str, Any], total_kimg: float) -> str:
    """`kimg 12/400 (3.0%)  img/s 35.1  s/kimg 28.5  eta 3h04m  wait 2%  D/adv 1.23  gpumem 5.2`."""
    values, kimg = record["metrics"], record["nimg"] / 1000
    parts = [f"kimg {kimg:.6g}/{total_kimg:g} ({100 * kimg / total_kimg:.1f}%)"]
    if sec_per_kimg := values.get("Timing/sec_per_kimg"):
        eta = duration(max(total_kimg - kimg, 0) * sec_per_kimg)
        parts += [f"img/s {1000 / sec_per_kimg:.1f}", f"s/kimg {sec_per_kimg:.1f}", f"eta {eta}"]
    if (waited := values.get("Timing/data_wait_share")) is not None:
        parts.append(f"wait {waited:.0%}")
    parts += [f"{k.removeprefix('Loss/')} {v:.3g}" for k, v in values.items() if k.startswith("Loss/")]
    if gpumem := values.get("Resources/gpumem_gb"):
        parts.append(f"gpumem {gpumem:.1f}")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """`2d03h`, `3h04m`, `4m05s` or `5s`."""
    if not 0 <= seconds < float("inf"):
        return "?"
    minutes, sec = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02}h"
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{sec:02}s" if minutes else f"{sec}s"
