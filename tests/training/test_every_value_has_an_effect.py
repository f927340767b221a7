"""No configured value is ignored: change any one, and what is trained (or how it is executed) changes.

The tables below name another value for every leaf of RunConfig and ExecConfig; a field without a row fails.
Seven iterations of a few thousand parameters on random images, in this process.
"""

import hashlib

import numpy as np
import pytest
import torch

from pipeline.config import Config
from pipeline.data.order import image_at, mirrored
from pipeline.plan import ExecConfig, RunConfig, override_all, run_name
from pipeline.recipes import find
from pipeline.spec import Batch
from pipeline.training.engine import Engine
from pipeline.training.loop import Outlets, Schedule, Training, train
from tests.runs import CIPS, MSPIE, SMALL

SHARED = {
    "family.lr": 0.01,
    "family.beta2": 0.9,
    "family.eps": 0.1,
    "family.r1_gamma": 1,
    "family.r1_interval": 3,
    "family.G_interval": 2,
    "family.ema_kimg": 5,
    "family.D.channel_multiplier": 1,
    "family.D.channel_max": 12,
    "family.D.mbstd_group": 2,
    "family.G.z_dim": 16,
    "family.G.w_dim": 16,
    "family.G.mapping_layers": 3,
    "data.mirror": "false",
    "data.weights": "[2, 1]",
    "batch_size": 24,
    "total_kimg": 0.04,
    "seed": 1,
    "precision": "bf16",
}
OTHER = {
    MSPIE: {
        **SHARED,
        "family.G.head": "csg",
        "family.G.resize": "interp",
        "family.G.convention": "paper",
        "family.G.channel_multiplier": 1,
        "family.G.channel_max": 12,
        "family.D.pool": 4,
        "family.scales": "[0, 2, 3]",
        "family.scale_probs": "[0, 0, 1]",
        "family.real_resize": "align_corners",
        "family.style_mixing_prob": 0,
        "family.pl_weight": 0,
        "family.pl_decay": 1,
        "family.pl_batch_shrink": 1,
        "data.size_px": 72,
    },
    CIPS: {**SHARED, "family.G.width": 12, "family.G.noise": "false", "family.D.pool": 2, "data.size_px": 40},
}
HALF = {
    MSPIE: ["family.G.num_upblocks=2", "family.D.resolution_px=16"],
    CIPS: ["family.G.size_px=16", "family.D.resolution_px=16"],
}
BLOCKS = {
    "data.shuffle_block": ["data.shuffle_block=3", "data.shuffle_window=4"],
    "data.shuffle_window": ["data.shuffle_block=4", "data.shuffle_window=3"],
}
TOGETHER = {  # values that must agree with each other
    MSPIE: {**BLOCKS, **{field: HALF[MSPIE] for field in ("family.G.num_upblocks", "family.D.resolution_px")}},
    CIPS: {**BLOCKS, **{field: HALF[CIPS] for field in ("family.G.size_px", "family.D.resolution_px")}},
}
IDENTITY = {"recipe", "data.dataset_id"}  # name the run; see test_names_and_data_sets_tell_runs_apart
TAGS = {"family.kind", "family.G.kind"}  # choose the classes that hold all the others


def leaves(config: Config, prefix: str = "") -> list[str]:
    out = []
    for name in type(config).model_fields:
        value = getattr(config, name)
        out += leaves(value, f"{prefix}{name}.") if isinstance(value, Config) else [prefix + name]
    return out


def base(recipe: str, *sets: str) -> RunConfig:
    run = find(recipe).make().tiny()
    if recipe == MSPIE:  # the multiplier tells only above 32 px; let the tables' narrow nets feel it
        sets = ("family.G.channel_max=8", "family.D.channel_max=8", *sets)
    return override_all(run, ExecConfig(), [*SMALL[recipe], "total_kimg=0.084", *sets])[0]


def trained(run: RunConfig) -> str:
    """Digest of all weights after the run."""
    engine = Engine(run.precision, 1)
    try:
        torch.manual_seed(run.seed)
        training = Training(run.family.build(run.seed), engine)
        schedule = _schedule(run)
        train(training, _images(run), engine, schedule, should_stop=lambda: False, outlets=_silent())
        digest = hashlib.sha256()
        for net in training.saved_nets().values():
            for value in net.state_dict().values():
                digest.update(str(tuple(value.shape)).encode() + value.float().numpy().tobytes())
        return digest.hexdigest()
    finally:
        engine.close(failed=False)


def _images(run: RunConfig):
    """Noise of each sample's own from sets of 50, in the order that the readers show."""
    d, nimg = run.data, 0
    while True:
        ks = np.arange(nimg, nimg + run.batch_size)
        counts = [50] * max(1, len(d.weights))
        shown = np.stack(image_at(run.seed, counts, d.weights, ks, d.shuffle_block, d.shuffle_window), axis=1)
        img = torch.stack([_noise(50 * which + sample, d.size_px) for which, sample in shown.tolist()])
        if d.mirror:
            flip = torch.from_numpy(mirrored(run.seed, ks))
            img = torch.where(flip[:, None, None, None], img.flip(3), img)
        yield Batch(img, torch.full((run.batch_size,), -1))
        nimg += run.batch_size


def _noise(seed: int, s: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, s, s), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def _schedule(run: RunConfig, folder=None) -> Schedule:
    import tempfile
    from pathlib import Path

    return Schedule(
        seed=run.seed,
        batch_size=run.batch_size,
        total_kimg=run.total_kimg,
        status_kimg=1e6,
        sample_kimg=1e6,
        checkpoint_kimg=1e6,
        keep=2,
        slices=ExecConfig(batch_gpu=run.batch_size).slices(run, 0),
        checkpoints=Path(folder or tempfile.mkdtemp()),
        fingerprint="x",
    )


def _silent() -> Outlets:
    return Outlets(lambda *a: None, lambda *a: None, lambda *a, **k: None)


@pytest.fixture(scope="module")
def unchanged():
    return {recipe: trained(base(recipe)) for recipe in OTHER}


@pytest.mark.parametrize("recipe", [MSPIE, CIPS])
def test_every_field_has_a_row(recipe):
    known = set(OTHER[recipe]) | set(TOGETHER[recipe]) | IDENTITY | TAGS
    assert set(leaves(base(recipe))) - known == set()


ROWS = [(r, f) for r in OTHER for f in [*OTHER[r], *TOGETHER[r]]]


@pytest.mark.parametrize(("recipe", "field"), ROWS)
def test_changing_the_value_changes_what_is_trained(recipe, field, unchanged):
    sets = TOGETHER[recipe].get(field) or [f"{field}={OTHER[recipe].get(field)}"]
    if field in ("family.G.channel_multiplier", "family.D.channel_multiplier"):
        wide = {MSPIE: ["family.G.num_upblocks=4", "family.D.resolution_px=64", "data.size_px=128"]}
        both = [*wide.get(recipe, ["family.G.size_px=64", "family.D.resolution_px=64", "data.size_px=64"])]
        both += ["family.D.channel_max=512", "total_kimg=0.001"]
        both += ["family.G.channel_max=512"] if recipe == MSPIE else []
        a, b = (shapes(base(recipe, *both, *more)) for more in ([], sets))
        assert a != b
        return
    assert trained(base(recipe, *sets)) != unchanged[recipe]


def shapes(run: RunConfig) -> list[tuple[int, ...]]:
    with torch.device("meta"):
        return [tuple(p.shape) for net in run.family.build(0).nets.values() for p in net.parameters()]


def test_the_comparison_itself_is_sharp(unchanged):
    """The same configuration twice gives the same digest: a difference above is the field's doing."""
    assert trained(base(CIPS)) == unchanged[CIPS]


def test_names_and_data_sets_tell_runs_apart():
    run = base(CIPS)
    names = {run_name(r) for r in (run, run.replace(recipe="x"), run.replace(data=run.data.replace(dataset_id="y")))}
    assert len(names) == 3


def test_every_way_of_executing_is_obeyed(runner, monkeypatch):
    """ExecConfig field by field on real runs: lines, grids, checkpoints, pruning, threads, mirror."""
    from pipeline.tracking import jsonl

    started = []
    monkeypatch.setattr("pipeline.run.batches", lambda *a, **k: started.append(k["workers"]) or _real_batches(*a, **k))
    dense = runner(CIPS).train_here("total_kimg=0.32", "exec.sample_kimg=0.16", "exec.keep=3", "exec.workers=1")
    sparse = runner(CIPS).train_here("total_kimg=0.32", "exec.status_kimg=0.3", "exec.checkpoint_kimg=0.3")
    assert started == [1, 0]
    assert (len(jsonl.metrics(dense / "metrics.jsonl")), len(jsonl.metrics(sparse / "metrics.jsonl"))) == (
        4,
        2,
    )
    assert [len(list(f.glob("samples/*.png"))) for f in (dense, sparse)] == [3, 2]
    assert [len(list(f.glob("checkpoints/*"))) for f in (dense, sparse)] == [3, 2]
    saved = [[e["nimg"] for e in jsonl.read(f / "events.jsonl") if e["event"] == "checkpoint"] for f in (dense, sparse)]
    assert saved == [[64, 128, 192, 240, 304, 320], [304, 320]]
    assert not (dense / "mlflow.json").exists()  # exec.track=false in every test run; the mirror has tests of its own


def _real_batches(*args, **kwargs):
    from pipeline.data.feed import batches

    return batches(*args, **kwargs)


def test_ranks_and_microbatches_cut_the_batch_as_told():
    run = base(MSPIE, "batch_size=24")
    exec_ = ExecConfig(nodes=2, gpus=2, batch_gpu=3)
    cut = [exec_.slices(run, rank) for rank in range(4)]
    assert cut[1] == (range(6, 9), range(9, 12))
    assert [i for rank in cut for part in rank for i in part] == list(range(24))
    assert {f for f in ExecConfig.model_fields} == {
        *(
            "nodes",
            "gpus",
            "batch_gpu",
            "reader",  # tests/data/test_feed.py
            "workers",
            "status_kimg",
            "sample_kimg",
            "checkpoint_kimg",
            "keep",
            "track",
        )
    }
