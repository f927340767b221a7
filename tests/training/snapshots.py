"""Small snapshots whose every tensor holds one value, so that a mixture of two shows."""

from typing import Any

import torch

from pipeline.training.checkpoint import Snapshot, State

FINGERPRINT = "0a1b2c3d"


def snapshot(nimg: int, *, value: float | None = None, numel: int = 8, rollbacks: int = 0) -> Snapshot:
    """G, D and G_ema of one tensor of `numel` values and a counter, G and D with Adam's state of one step."""
    v = float(nimg if value is None else value)

    def net() -> dict[str, torch.Tensor]:
        return {"weight": torch.full((numel,), v), "count": torch.tensor(v)}

    def adam() -> dict[str, Any]:
        one = {"step": torch.tensor(v), "exp_avg": torch.full((numel,), v), "exp_avg_sq": torch.full((numel,), v)}
        return {"state": {0: one}, "param_groups": [{"lr": 0.002, "betas": (0.0, 0.99), "params": [0]}]}

    state = State(fingerprint=FINGERPRINT, nimg=nimg, feedback={"pl_mean": 0.1 + 0.2}, rollbacks=rollbacks)
    return Snapshot(state, {name: net() for name in ("G", "D", "G_ema")}, {name: adam() for name in ("G", "D")})


def tensors(snapshot: Snapshot) -> dict[str, torch.Tensor]:
    """Every tensor by a name of its own."""
    named = {f"{net}.{key}": t for net, entries in snapshot.nets.items() for key, t in entries.items()}
    for net, adam in snapshot.optimizers.items():
        named |= {f"{net}.{i}.{key}": t for i, entry in adam["state"].items() for key, t in entry.items()}
    return named


def values(snapshot: Snapshot) -> set[float]:
    return {v for t in tensors(snapshot).values() for v in t.unique().tolist()}


def assert_same(a: Snapshot, b: Snapshot) -> None:
    """Bit by bit, types and shapes included."""
    assert a.state == b.state
    assert {n: o["param_groups"] for n, o in a.optimizers.items()} == {
        n: o["param_groups"] for n, o in b.optimizers.items()
    }
    a_all, b_all = tensors(a), tensors(b)
    assert a_all.keys() == b_all.keys()
    for name, t in a_all.items():
        assert t.dtype == b_all[name].dtype, name
        torch.testing.assert_close(t, b_all[name], rtol=0, atol=0, equal_nan=True, msg=name)
