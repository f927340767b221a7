"""No configured value is ignored: change any one, and what is trained (or how it is executed) changes.

The tables below name another value for every leaf of RunConfig, and a test for every field of ExecConfig; a field
without a row fails. Seven iterations of a few thousand parameters on small random images, in this process.
"""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.attempt import schedule_of
from pipeline.config import Config
from pipeline.data.order import image_at, mirrored
from pipeline.errors import UserError
from pipeline.plan import ExecConfig, RunConfig, check, override_all, run_name
from pipeline.recipes import find
from pipeline.spec import Batch
from pipeline.training.engine import Engine
from pipeline.training.health import Health
from pipeline.training.loop import Outlets, Training, train
from tests.runs import CIPS, MSPIE, SMALL, assert_bitwise_equal, final_state

pytestmark = pytest.mark.usefixtures("unchecked")

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
    "family.D.fp16_blocks": 1,
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
        "family.G.fp16_blocks": 1,
        "family.G.block": "deconv",
        "family.reg_step": "separate",
        "family.D.pool": 4,
        "family.scales": "[0, 2, 3]",
        "family.scale_probs": "[0, 0, 1]",
        "family.real_resize": "align_corners",
        "family.style_mixing_prob": 0,
        "family.pl_weight": 0,
        "family.pl_decay": 1,
        "family.pl_batch_shrink": 1,
        "data.size_px": 40,
    },
    CIPS: {
        **SHARED,
        "family.G.width": 12,
        "family.G.noise": "false",
        "family.G.variant": "residual",
        "family.G.taper": "true",
        "family.G.embedding_px": 8,
        "family.G.cylinder_px": 24,
        "family.D.pool": 2,
        "family.D.coords": "true",
        "family.rotate": "true",
        "family.grow_kimg": "[0.032]",
        "data.size_px": 24,
    },
}
FEW_PIXELS = {
    MSPIE: ["family.G.num_upblocks=2", "family.D.resolution_px=16", "data.size_px=32"],
    CIPS: ["family.G.size_px=16", "family.D.resolution_px=16", "data.size_px=16"],
}
HALF = {
    MSPIE: ["family.G.num_upblocks=1", "family.D.resolution_px=8"],
    CIPS: ["family.G.size_px=8", "family.D.resolution_px=8"],
}
BLOCKS = {
    "data.shuffle_block": ["data.shuffle_block=3", "data.shuffle_window=4"],
    "data.shuffle_window": ["data.shuffle_block=4", "data.shuffle_window=3"],
}
UNPADDED = {
    "family.G.padding": ["family.G.block=up_conv", "family.G.padding=none"],
    "family.G.padded_skip": ["family.G.block=up_conv", "family.G.padding=none", "family.G.padded_skip=true"],
}
GEO = "family.G.coords.mode=geo"
COORDS = {  # see test_every_field_of_the_coordinate_channels_changes_what_is_trained
    "family.G.coords.mode": [GEO],
    "family.G.coords.layers": [GEO, "family.G.coords.layers=first"],
    "family.G.coords.shift": [GEO, "family.G.coords.shift=normal"],
    "family.G.coords.shift_range": [GEO, "family.G.coords.shift_range=[0, 1]"],
    "family.G.coords.draw": [GEO, "family.G.coords.draw=batch"],
    "family.G.coords.per_layer": [GEO, "family.G.coords.per_layer=false"],
    "family.G.coords.coord_range": [GEO, "family.G.coords.coord_range=[0, 2]"],
    "family.G.coords.padding": [GEO, "family.G.coords.padding=ramp"],
    "family.G.coords.radius": ["family.G.coords.mode=coord", "family.G.coords.radius=true"],
}
PARTS = {
    "family.patch_px": ["family.patch_px=8", "family.D.resolution_px=8"],
    "family.crop_of_px": ["family.crop_of_px=24", "data.size_px=24"],
    "family.G.lookup": ["family.patch_px=8", "family.D.resolution_px=8", "family.G.lookup=half_pixel"],
}
TOGETHER = {  # values that must agree with each other
    MSPIE: {
        **BLOCKS,
        **UNPADDED,
        **{field: HALF[MSPIE] for field in ("family.G.num_upblocks", "family.D.resolution_px")},
    },
    CIPS: {**BLOCKS, **PARTS, **{field: HALF[CIPS] for field in ("family.G.size_px", "family.D.resolution_px")}},
}
IDENTITY = {"recipe", "data.dataset_id"}  # name the run; see test_names_and_data_sets_tell_runs_apart
TAGS = {"family.kind", "family.G.kind"}  # choose the classes that hold all the others
EVALUATION = {  # fields that training does not see -> the test that would fail if the field were ignored
    "family.G.coords.stochastic_eval": "models/test_crossing.py::test_shifts_in_evaluation_on_request",
}


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
    return override_all(run, ExecConfig(), [*SMALL[recipe], *FEW_PIXELS[recipe], "total_kimg=0.084", *sets])[0]


def trained(run: RunConfig) -> str:
    """Digest of all weights after the run."""
    exec_ = ExecConfig(batch_gpu=run.batch_size, status_kimg=1e6, sample_kimg=1e6, checkpoint_kimg=1e6)
    engine = Engine(run.precision, 1)
    try:
        torch.manual_seed(run.seed)
        schedule = schedule_of(run, exec_, 0)
        training = Training(run.family.build(run.seed), engine, schedule)
        outcome = train(
            training,
            _images(run),
            engine,
            schedule,
            should_stop=lambda: False,
            health=Health(1, engine.device),
            saver=None,
            outlets=Outlets(lambda *a: None, lambda *a, **k: None),
        )
        assert outcome == "done"
        digest, snapshot = hashlib.sha256(), training.snapshot(engine, schedule.fingerprint, 0.0)
        assert snapshot is not None
        for net in snapshot.nets.values():
            for value in net.values():
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


@pytest.fixture(scope="module")
def unchanged():
    return {recipe: trained(base(recipe)) for recipe in OTHER}


@pytest.mark.parametrize("recipe", [MSPIE, CIPS])
def test_every_field_has_a_row(recipe):
    known = set(OTHER[recipe]) | set(TOGETHER[recipe]) | IDENTITY | TAGS | set(EVALUATION)
    known |= set(COORDS) if recipe == MSPIE else set()
    assert set(leaves(base(recipe))) - known == set()


ROWS = [(r, f) for r in OTHER for f in [*OTHER[r], *TOGETHER[r]]]


@pytest.mark.parametrize(("recipe", "field"), ROWS)
def test_changing_the_value_changes_what_is_trained(recipe, field, unchanged):
    sets = TOGETHER[recipe].get(field) or [f"{field}={OTHER[recipe].get(field)}"]
    if field in ("family.G.channel_multiplier", "family.D.channel_multiplier", "family.G.taper"):
        wide = {MSPIE: ["family.G.num_upblocks=4", "family.D.resolution_px=64", "data.size_px=128"]}
        both = [*wide.get(recipe, ["family.G.size_px=128", "family.D.resolution_px=128", "data.size_px=128"])]
        both += ["family.D.channel_max=512", "total_kimg=0.001"]
        both += ["family.G.channel_max=512"] if recipe == MSPIE else []
        a, b = (shapes(base(recipe, *both, *more)) for more in ([], sets))
        assert a != b
        return
    assert trained(base(recipe, *sets)) != unchanged[recipe]


def test_every_field_of_the_coordinate_channels_changes_what_is_trained():
    """And more than the mode that it needs. After one iteration, in which all regularisers are due."""
    sets, short = [[], ["family.G.coords.mode=coord"], *COORDS.values()], (*HALF[MSPIE], "total_kimg=0.012")
    assert len({trained(base(MSPIE, *short, *one)) for one in sets}) == len(sets)


def test_padding_and_its_skip_path_change_more_than_the_block_that_they_need(unchanged):
    """Beside their rows above."""
    sets = [[], ["family.G.block=up_conv"], *UNPADDED.values()]
    assert len({trained(base(MSPIE, *one)) if one else unchanged[MSPIE] for one in sets}) == 4


def test_patches_crops_and_the_look_up_change_more_than_the_sizes_that_they_need(unchanged):
    """Beside their rows above."""
    sets = [HALF[CIPS], ["data.size_px=24"], *PARTS.values()]
    assert len({unchanged[CIPS], *(trained(base(CIPS, *one)) for one in sets)}) == 1 + len(sets)


def shapes(run: RunConfig) -> list[tuple[int, ...]]:
    with torch.device("meta"):
        return [tuple(p.shape) for net in run.family.build(0).nets.values() for p in net.parameters()]


def test_each_precision_has_its_own_result(unchanged):
    """Beside its row above."""
    assert len({unchanged[CIPS], *(trained(base(CIPS, f"precision={p}")) for p in ("bf16", "fp16"))}) == 3


def test_the_comparison_itself_is_sharp(unchanged):
    """The same configuration twice gives the same digest: a difference above is the field's doing."""
    assert trained(base(CIPS)) == unchanged[CIPS]


def test_names_and_data_sets_tell_runs_apart():
    run = base(CIPS)
    names = {run_name(r) for r in (run, run.replace(recipe="x"), run.replace(data=run.data.replace(dataset_id="y")))}
    assert len(names) == 3


EXEC = {  # field of ExecConfig -> the test that would fail if the field were ignored
    "nodes": "training/test_every_value_has_an_effect.py::test_ranks_and_microbatches_cut_the_batch_as_told",
    "gpus": "training/test_every_value_has_an_effect.py::test_ranks_and_microbatches_cut_the_batch_as_told",
    "batch_gpu": "training/test_every_value_has_an_effect.py::test_ranks_and_microbatches_cut_the_batch_as_told",
    "reader": "data/test_feed.py",
    "workers": "training/test_every_value_has_an_effect.py::test_every_way_of_executing_is_obeyed",
    "status_kimg": "training/test_every_value_has_an_effect.py::test_every_way_of_executing_is_obeyed",
    "sample_kimg": "training/test_every_value_has_an_effect.py::test_every_way_of_executing_is_obeyed",
    "validate_kimg": "training/test_validation.py::test_it_measures_when_it_is_due_and_at_the_end",
    "checkpoint_kimg": "training/test_every_value_has_an_effect.py::test_every_way_of_executing_is_obeyed",
    "keep": "training/test_every_value_has_an_effect.py::test_every_way_of_executing_is_obeyed",
    "milestone_kimg": "training/test_every_value_has_an_effect.py::test_every_way_of_executing_is_obeyed",
    "track": "training/test_every_value_has_an_effect.py::test_every_way_of_executing_is_obeyed",
    "hang_sec": "training/test_every_value_has_an_effect.py::test_every_way_of_executing_is_obeyed",
    "zero": "training/test_every_value_has_an_effect.py::test_stages_and_words_to_deepspeed_reach_the_update",
    "ds_config": "training/test_every_value_has_an_effect.py::test_stages_and_words_to_deepspeed_reach_the_update",
    "recompute": "training/test_every_value_has_an_effect.py::test_recomputing_gives_the_same_bits",
    "not_finite_limit": "training/test_attempt.py::test_too_many_in_a_row_end_the_run_and_name_phase_and_images",
    "on_not_finite": "training/test_attempt.py::"
    "test_on_request_the_run_goes_back_to_a_healthy_checkpoint_and_on_with_other_draws",
}


def test_every_field_of_execution_has_a_test():
    assert set(EXEC) == set(ExecConfig.model_fields)
    for field, link in EXEC.items():
        path, _, name = link.partition("::")
        text = (Path(__file__).parents[1] / path).read_text()
        assert f"def {name}(" in text if name else f"{field}=" in text, link


def test_recomputing_gives_the_same_bits(runner, monkeypatch):
    """And really takes place; other families refuse it."""
    from pipeline.models import cips

    calls, real = [], cips.checkpoint
    monkeypatch.setattr(cips, "checkpoint", lambda *a, **k: calls.append(1) or real(*a, **k))
    words = ("total_kimg=0.032", "exec.checkpoint_kimg=0.032")
    plain = final_state(runner(CIPS).train_here(*words))
    assert not calls
    assert_bitwise_equal(plain, final_state(runner(CIPS).train_here(*words, "exec.recompute=true")))
    assert calls
    with pytest.raises(UserError, match=r"exec\.recompute=true: the generator of family\.kind='mspie' has no"):
        check(base(MSPIE), ExecConfig(recompute=True))
    with pytest.raises(UserError, match=r"exec\.recompute=true: G's weights are sharded"):
        check(base(CIPS), ExecConfig(recompute=True, zero={"G": 3, "D": 1}))


def test_every_way_of_executing_is_obeyed(runner, monkeypatch):
    """ExecConfig field by field on real runs: lines, grids, checkpoints, pruning, milestones, threads, mirror."""
    from pipeline import attempt
    from pipeline.tracking import jsonl

    workers, patience = [], []
    batches, Watchdog = attempt.batches, attempt.Watchdog
    monkeypatch.setattr(attempt, "batches", lambda *a, **k: workers.append(k["workers"]) or batches(*a, **k))
    monkeypatch.setattr(attempt, "Watchdog", lambda *a, **k: patience.append(k["hang_sec"]) or Watchdog(*a, **k))
    often, short = ("exec.sample_kimg=0.16", "exec.keep=3", "exec.workers=1"), (*HALF[CIPS], "total_kimg=0.32")
    seldom = ("exec.status_kimg=0.3", "exec.checkpoint_kimg=0.3", "exec.milestone_kimg=0.09", "exec.hang_sec=600")
    both = dense, _ = [runner(CIPS).train_here(*short, *sets) for sets in (often, seldom)]
    assert (workers, patience) == ([1, 0], [900, 600])
    assert [len(jsonl.metrics(f / "metrics.jsonl")) for f in both] == [7, 2]
    assert [len(list(f.glob("samples/*.png"))) for f in both] == [3, 2]
    kept = [sorted(int(p.name) for p in f.glob("checkpoints/[0-9]*")) for f in both]
    assert kept == [[240, 304, 320], [96, 192, 272, 304, 320]]
    saved = [[e["nimg"] for e in jsonl.read(f / "events.jsonl") if e["event"] == "checkpoint"] for f in both]
    assert saved == [[64, 128, 192, 240, 304, 320], [96, 192, 272, 304, 320]]
    assert not (dense / "mlflow.json").exists()  # exec.track=false in every test run; the mirror has tests of its own


def test_stages_and_words_to_deepspeed_reach_the_update(monkeypatch):
    """A fake Sharded: starting DeepSpeed takes seconds, and what it makes of its words is tested with it."""
    from pipeline.training import engine_deepspeed
    from pipeline.training.engine_replicated import Replicated

    words, sharded = {"zero_optimization": {"reduce_bucket_size": 64}}, []
    monkeypatch.setattr(engine_deepspeed, "Sharded", lambda *a: sharded.append(a[3:5]) or Replicated(*a[:3]))
    run, exec_, engine = base(CIPS), ExecConfig(zero={"G": 3, "D": 0}, ds_config=words), Engine("fp32", 1)
    Training(run.family.build(run.seed), engine, schedule_of(run, exec_, 0))
    engine.close(failed=False)
    assert sharded == [(3, words)]


def test_ranks_and_microbatches_cut_the_batch_as_told():
    run = base(MSPIE, "batch_size=24")
    cut = [ExecConfig(nodes=2, gpus=2, batch_gpu=3).slices(run, rank) for rank in range(4)]
    assert cut[1] == (range(6, 9), range(9, 12))
    assert [i for rank in cut for part in rank for i in part] == list(range(24))
