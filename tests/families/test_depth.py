"""Depth from one photograph: formulas against naive loops, what a shift does to the U-Net, and a real scene."""

import json
from math import log

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dataprep.sources import open_source
from dataprep.transform import Transform
from dataprep.writer import prepare
from pipeline.chance import Chance
from pipeline.cli_pictures import depth as look_depth
from pipeline.data.manifest import load_manifest
from pipeline.data.reader import ShardReader
from pipeline.families.depth import DepthConfig, resize_pairs
from pipeline.layers.coords import CoordSpec, shifted
from pipeline.models.unet import CoordinateConv, UNetConfig
from pipeline.objectives.depth import l1_log, measured, measures, silog, unstacked
from pipeline.phases import Step
from pipeline.plan import ExecConfig, check_data, check_validation, override_all
from pipeline.recipes import find
from pipeline.run import plan_run, train_folder
from pipeline.spec import UserError
from pipeline.synthesis.depth import coloured
from tests.families.motorcycle import write_pairs

SMALL = UNetConfig(image_px=16, levels=3, channel_base=4, channel_max=8)


@pytest.fixture
def depths() -> tuple[torch.Tensor, torch.Tensor]:
    """Predicted and true, [3, 1, 5, 7]; some pixels of the first two were not measured, none of the last was."""
    generator = torch.Generator().manual_seed(0)
    predicted, depth = (torch.rand(3, 1, 5, 7, generator=generator) * 8 + 0.5 for _ in range(2))
    depth[:, :, 1:3] = 0
    depth[0, 0, 4] = 60
    depth[2] = 0
    return predicted, depth


def naive(predicted: torch.Tensor, depth: torch.Tensor, weight: float) -> list[dict[str, float]]:
    out = []
    for p, t in zip(predicted.double().numpy(), depth.double().numpy(), strict=True):
        pairs = [(a, b) for a, b in zip(p.ravel(), t.ravel(), strict=True) if 0.5 <= b <= 10]
        n = len(pairs) or 1
        d = [log(a) - log(b) for a, b in pairs]
        out.append(
            {
                "silog": sum(x * x for x in d) / n - weight * (sum(d) / n) ** 2,
                "l1_log": sum(map(abs, d)) / n,
                "abs_rel": sum(abs(a - b) / b for a, b in pairs) / n,
                "rmse": (sum((a - b) ** 2 for a, b in pairs) / n) ** 0.5,
                "delta1": sum(max(a / b, b / a) < 1.25 for a, b in pairs) / n,
                "measured": float(bool(pairs)),
            }
        )
    return out


def test_losses_and_measures_are_those_of_naive_loops_and_zero_where_nothing_was_measured(depths):
    predicted, depth = depths
    mask = measured(depth, 0.5, 10)
    found = {"silog": silog(predicted, depth, mask, 0.3), "l1_log": l1_log(predicted, depth, mask)}
    found |= measures(predicted, depth, mask)
    for i, wanted in enumerate(naive(predicted, depth, 0.3)):
        assert {k: float(v[i]) for k, v in found.items()} == pytest.approx(wanted, rel=1e-5, abs=1e-7)
    assert all(float(v[2]) == 0 for v in found.values())


@pytest.mark.parametrize("loss", ["silog", "l1_log"])
def test_pixels_that_were_not_measured_have_no_gradient_and_spoil_none(depths, loss):
    predicted, depth = depths[0].requires_grad_(True), depths[1]
    mask = measured(depth, 0.5, 10)
    value = silog(predicted, depth, mask, 0.5) if loss == "silog" else l1_log(predicted, depth, mask)
    value.sum().backward()
    assert predicted.grad is not None
    assert predicted.grad.isfinite().all()
    assert torch.equal(predicted.grad != 0, mask)


def test_with_weight_one_a_common_factor_costs_nothing(depths):
    predicted, depth = depths
    mask = measured(depth, 0.5, 10)
    torch.testing.assert_close(silog(3 * predicted, depth, mask, 1), silog(predicted, depth, mask, 1))
    assert (silog(3 * predicted, depth, mask, 0.5) - silog(predicted, depth, mask, 0.5))[0].abs() > 0.1


def test_stored_pairs_become_a_photograph_and_metres_and_a_larger_set_is_not_averaged():
    stored = torch.zeros(1, 3, 8, 4, dtype=torch.uint8)
    stored[:, :, :4] = 255
    stored[0, 0, 4:, 2:], stored[0, 1, 4:, 2:] = 8, 7
    real = resize_pairs(stored, (4, 4))
    assert tuple(real.shape) == (1, 4, 4, 4)
    assert (real[:, :3] == 1).all()
    assert real[0, 3, 0].tolist() == pytest.approx([0, 0, 2.055, 2.055])
    assert set(resize_pairs(stored, (3, 3))[:, 3].unique().tolist()) <= {0, real[0, 3, 0, 3].item()}


def test_the_network_gives_depths_in_its_range_at_any_multiple_of_its_coarsest_pixel():
    net = SMALL.replace(coords=CoordSpec(mode="geo")).build()
    with torch.no_grad():
        net.head.conv.weight.mul_(100)
        depth = net(torch.randn(2, 3, 12, 20))
    assert tuple(depth.shape) == (2, 1, 12, 20)
    assert depth.min() >= 0.5 * (1 - 1e-6)
    assert depth.max() <= 10 * (1 + 1e-6)
    assert depth.max() / depth.min() > 5


def test_coordconv_has_nine_more_weights_than_geoconv_for_each_filter_and_geoconv_than_a_convolution():
    count = {
        mode: sum(p.numel() for p in SMALL.replace(coords=CoordSpec(mode=mode)).build().parameters())
        for mode in ("none", "geo", "coord")
    }
    filters = sum(m.out_channels for m in SMALL.build().modules() if isinstance(m, nn.Conv2d))
    assert count["coord"] - count["geo"] == count["geo"] - count["none"] == 9 * filters


def interior(net: nn.Module, x: torch.Tensor, seed: int) -> torch.Tensor:
    with torch.no_grad(), shifted([net], [seed] * len(x), seed):
        return net(x)[:, :, 4:-4, 4:-4]


def test_a_shift_reaches_the_depths_in_training_and_a_norm_over_space_would_take_it_away():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 16, 16)
    net = SMALL.replace(coords=CoordSpec(mode="geo")).build()
    assert (interior(net, x, 1) - interior(net, x, 2)).abs().mean() > 0.1
    net.eval()
    assert torch.equal(interior(net, x, 1), interior(net, x, 2))
    conv = CoordinateConv(3, 8, CoordSpec(mode="geo"))
    conv.conv.padding = (0, 0)  # at a zero-padded border a little of the shift is left
    trap = nn.Sequential(conv, nn.GroupNorm(8, 8))
    assert (interior(trap, x, 1) - interior(trap, x, 2)).abs().max() < 1e-4
    assert (interior(conv, x, 1) - interior(conv, x, 2)).abs().max() > 0.1


def test_every_value_of_the_loss_has_an_effect():
    torch.manual_seed(0)
    config = DepthConfig(G=SMALL)
    real = torch.rand(4, 4, 16, 16) * 12
    step = Step(real, (16, 16), Chance(0, "G", 0, (0, 1, 2, 3), real.device), frozenset(), {}, torch.zeros(4).long())

    def loss(config: DepthConfig) -> float:
        torch.manual_seed(1)
        family = config.build(0)
        (phase,) = family.phases
        with torch.no_grad():
            terms = phase.loss(family.nets, step)
        assert tuple(terms) == phase.terms
        return float(terms[phase.terms[0]].sum())

    low, high = SMALL.replace(min_m=2), SMALL.replace(max_m=7)
    changed = [
        config.replace(loss="l1_log"),
        config.replace(silog_weight=1),
        config.replace(G=low),
        config.replace(G=high),
    ]
    assert len({loss(c) for c in [config, *changed]}) == 5
    for wrong in ({"loss": "l1_log", "silog_weight": 0.9}, {"G": {"min_m": 3, "max_m": 2}}, {"G": {"image_px": 20}}):
        with pytest.raises(ValueError, match=r"silog_weight=|min_m=|image_px="):
            DepthConfig.model_validate(wrong)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Prepared folders of crops, 16 px: trained on, and between those."""
    root = tmp_path_factory.mktemp("motorcycle")
    folders = write_pairs(root / "pairs", stride=60)
    for name in ("train", "between"):
        prepare(open_source("depth", folders[name]), root / name, Transform(size_px=16))
    return root / "train", root / "between"


def constant(train, other) -> float:
    """Mean AbsRel, over the images of `other`, of the mean depth of all pixels of `train`."""
    known, depth = (
        unstacked(torch.from_numpy(np.stack([r.read(i)[0] for i in range(len(r))])))[1]
        for r in (ShardReader(train), ShardReader(other))
    )
    mean = known[known > 0].mean()
    return float(measures(mean.expand(depth.shape), depth, measured(depth, 0.5, 10))["abs_rel"].mean())


@pytest.fixture(scope="module")
def trained(scene, tmp_path_factory):
    """A run of some seconds on the scene."""
    sets = ["family.G.image_px=16", "data.size_px=16", "family.lr=3e-3", "total_kimg=1.6", "exec.batch_gpu=16"]
    sets += ["exec.status_kimg=2", "exec.checkpoint_kimg=2", "exec.track=false", "exec.workers=0"]
    sets += ["exec.validate_kimg=1.6"]
    run, exec_ = override_all(find("geopos.depth_geo").make().tiny(), ExecConfig(), sets)
    folder = plan_run(run, exec_, scene[0], tmp_path_factory.mktemp("runs"), sets, validation=[scene[1]])
    jaxtyping.config.update("jaxtyping_disable", True)  # most of the time; other tests here check the shapes
    try:
        assert train_folder(folder, should_stop=lambda: False) == "done"
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    return folder


def test_trained_on_a_real_scene_it_tells_other_crops_of_it_better_than_the_mean_depth(scene, trained):
    rows = [json.loads(line)["metrics"] for line in (trained / "metrics.jsonl").read_text().splitlines()]
    last = next(row for row in reversed(rows) if "Validation/abs_rel" in row)
    assert last["Validation/measured"] == 1
    assert last["Validation/abs_rel"] < 0.8 * constant(*scene)


def test_pictures_are_refused_where_pairs_are_wanted_and_pairs_where_pictures_are(scene):
    pairs = load_manifest(scene[0])
    pictures = pairs.replace(planes=1)
    depth = find("geopos.depth_geo").make().tiny()
    depth = depth.replace(family=depth.family.replace(G=SMALL), data=depth.data.replace(size_px=16))
    other = find("mspie.dcgan_bedroom_a").make().tiny()
    other = other.replace(data=other.data.replace(size_px=16))
    check_data(depth, ExecConfig(), ["x"], [pairs])
    for run, manifest in ((depth, pictures), (other, pairs)):
        with pytest.raises(UserError, match=r"data='x' holds (pictures|photographs with depth)"):
            check_data(run, ExecConfig(), ["x"], [manifest])
    check_validation(depth, "x", pairs)
    with pytest.raises(UserError, match="holds pictures"):
        check_validation(depth, "x", pictures)


def test_look_shows_measured_and_predicted_depths_and_writes_the_measures_beside(scene, trained, tmp_path, capsys):
    look_depth(trained, scene[1], 3, tmp_path / "sheet.png")
    found = json.loads((tmp_path / "sheet.json").read_text())
    assert found["samples"] == [0, 12, 24]
    assert all(0 < e < 1 for e in found["abs_rel"])
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height == 3 * (20 + 96 + 4)
    (tmp_path / "in").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "in" / "1.png")
    prepare(open_source("folder", tmp_path / "in"), tmp_path / "pictures", Transform(size_px=16))
    with pytest.raises(UserError, match=r"give pairs of 16 px"):
        look_depth(trained, tmp_path / "pictures", 3, tmp_path / "other.png")


def test_colours_tell_near_from_far_and_none():
    near, far, none = coloured(torch.tensor([[[2.0, 5.0, 0.0]]]), 2.0, 5.0)[0].astype(int)
    assert near.sum() > far.sum() > none.sum() == 0
