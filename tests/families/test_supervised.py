"""The supervised family: its target against sums in exact arithmetic, its network against counting, its refusals."""

import hashlib
from fractions import Fraction

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pipeline.attempt import schedule_of
from pipeline.chance import Chance, key
from pipeline.config import Config
from pipeline.cost import multiply_adds, parameters
from pipeline.data.manifest import Manifest
from pipeline.errors import UserError
from pipeline.families.supervised import SupervisedConfig, centre_of_mass, intensity
from pipeline.layers.coords import CoordSpec
from pipeline.models.coordnet import CoordNetConfig, match_parameters
from pipeline.phases import Step
from pipeline.plan import ExecConfig, check_classes, override_all
from pipeline.recipes import find
from pipeline.spec import Batch, to_float
from pipeline.training.engine import Engine
from pipeline.training.health import Health
from pipeline.training.loop import Outlets, Training, train

MODES = ("none", "coord", "geo")


def exact_centre(img):
    """Of uint8 [c, h, w], in fractions."""
    c, h, w = img.shape
    mass = x = y = Fraction(0)
    for k in range(c):
        for i in range(h):
            for j in range(w):
                m = Fraction(int(img[k, i, j]))
                mass, x, y = mass + m, x + m * (Fraction(2 * j, w - 1) - 1), y + m * (Fraction(2 * i, h - 1) - 1)
    return float(x / mass), float(y / mass)


def test_the_centre_is_that_of_exact_arithmetic_and_mirrors_with_the_image():
    img = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 3, 5, 9), dtype=np.uint8))
    img[1, :, :, :4], img[2, :, 1:] = 0, 0
    got = centre_of_mass(intensity(to_float(img)))
    assert got.tolist() == [pytest.approx(exact_centre(one), abs=1e-6) for one in img.numpy()]
    mirrored = centre_of_mass(intensity(to_float(img.flip(3))))
    assert torch.allclose(mirrored, got * torch.tensor([-1.0, 1.0]), atol=1e-6)
    corner = torch.zeros(1, 3, 4, 6)
    corner[..., 0, 5] = 0.1
    assert centre_of_mass(corner).tolist() == [[1, -1]]
    assert centre_of_mass(torch.zeros(1, 3, 4, 4)).tolist() == [[0, 0]]


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("pool", ["flatten", "mean"])
def test_a_network_has_the_parameters_that_its_configuration_counts(layers, pool):
    for mode in MODES:
        for extra in (0, layers - 1):
            cfg = CoordNetConfig(layers=layers, filters=5, extra=extra, pool=pool, coords=CoordSpec(mode=mode))
            net = cfg.build()
            assert sum(p.numel() for p in net.parameters()) == cfg.parameters()
            assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 2)
    assert parameters(SupervisedConfig(G=cfg)) == {"G": cfg.parameters()}
    assert CoordNetConfig(layers=6).sides() == [32, 16, 8, 4, 4, 4, 4]


def test_a_network_is_its_convolutions_with_coordinates_and_a_dense_layer_over_the_last_map_or_its_mean():
    x = torch.rand(3, 3, 8, 8)
    for pool in ("flatten", "mean"):
        net = CoordNetConfig(image_px=8, layers=2, filters=4, pool=pool, coords=CoordSpec(mode="coord")).build()
        maps = x
        for conv, stride in zip(net.convs, (2, 1), strict=True):
            side = maps.shape[3]
            along = torch.linspace(-1, 1, side).expand(len(x), 1, side, side)
            seen = torch.cat([maps, along.mT, along], 1)
            maps = torch.nn.functional.conv2d(seen, conv.weight, conv.bias, stride, 1).relu()
        last = maps.flatten(1) if pool == "flatten" else maps.mean((2, 3))
        assert torch.allclose(net(x), last @ net.dense.weight.T + net.dense.bias, atol=1e-6)


def test_coordinate_channels_cost_a_kernel_each_and_filter():
    counts = {m: CoordNetConfig(layers=3, filters=16, coords=CoordSpec(mode=m)).parameters() for m in MODES}
    assert counts["geo"] - counts["none"] == counts["coord"] - counts["geo"] == 3 * 9 * 16


def test_multiply_adds_are_those_of_the_formula():
    cfg = CoordNetConfig(layers=2, filters=7, coords=CoordSpec(mode="coord"))
    assert multiply_adds(SupervisedConfig(G=cfg), "G") == {(32, 32): 9 * 7 * (5 * 16**2 + 9 * 8**2) + 7 * 64 * 2}


def test_matching_finds_what_trying_all_of_them_finds():
    for layers, mode, pool in [
        (1, "none", "flatten"),
        (2, "geo", "mean"),
        (4, "coord", "flatten"),
        (3, "none", "mean"),
    ]:
        cfg = CoordNetConfig(layers=layers, coords=CoordSpec(mode=mode), pool=pool)
        grid = [cfg.replace(filters=f, extra=e) for f in range(1, 40) for e in range(layers)]
        for target in (1, 77, 500, 1234, 3000):
            best = min(abs(one.parameters() - target) for one in grid)
            assert abs(match_parameters(cfg, target).parameters() - target) == best
        own = cfg.replace(filters=11, extra=layers - 1)
        assert match_parameters(cfg.replace(filters=2), own.parameters()) == own


def images(n, label=0):
    """Blobs of light; the same at each call."""
    chance = np.random.default_rng(3)
    out = np.zeros((n, 3, 8, 8), np.uint8)
    for one in out:
        i, j = chance.integers(0, 6, 2)
        one[:, i : i + 2, j : j + 3] = chance.integers(100, 255)
    return Batch(torch.from_numpy(out), torch.arange(n) % 3 + label)


def trained(*sets, iterations=4):
    """Digest of the weights, and losses by iteration, of a small run with these settings."""
    small = ["family.G.image_px=8", "family.G.layers=2", "family.G.filters=4", "batch_size=16"]
    base = "geopos.bias_absolute_geo" if "family.task=classify" in sets else "geopos.com_geo"
    small += ["family.G.outputs=3"] if "bias" in base else []
    run, exec_ = override_all(find(base).make().tiny(), ExecConfig(status_kimg=1e-9), [*small, "data.size_px=8", *sets])
    engine = Engine(run.precision, 1)
    schedule = schedule_of(run, exec_, 0)
    torch.manual_seed(key(run.seed, "init") >> 65)
    training, losses, asked = Training(run.family.build(run.seed), engine, schedule), [], iter(range(10**9))
    whole = images(16)
    stream = (Batch(whole.img[p.start : p.stop], whole.label[p.start : p.stop]) for _ in asked for p in schedule.slices)
    begun = iter(range(iterations + 1))
    train(
        training, stream, engine, schedule,
        should_stop=lambda: next(begun) == iterations,
        health=Health(1, engine.device), saver=None,
        outlets=Outlets(lambda nimg, values, _: losses.append(dict(values)), lambda *a, **k: None),
    )  # fmt: skip
    engine.close(failed=False)
    weights = b"".join(p.detach().numpy().tobytes() for p in training.nets["G"].parameters())
    return hashlib.sha256(weights).hexdigest(), losses


@pytest.mark.parametrize("mode", MODES)
def test_training_reduces_the_loss(unchecked, mode):
    for sets, term in [((), "mse"), (("family.task=classify", "family.G.pool=flatten"), "cross_entropy")]:
        lines = trained(f"family.G.coords.mode={mode}", "family.lr=0.02", *sets, iterations=20)[1]
        losses = [values[f"Loss/G/{term}"] for values in lines]
        assert losses[-1] < 0.6 * losses[0]


OTHER = {
    "task": ["family.task=classify"], "target_scale": ["family.target_scale=2"], "lr": ["family.lr=0.01"],
    "beta1": ["family.beta1=0.5"], "beta2": ["family.beta2=0.5"], "eps": ["family.eps=0.1"],
    "G.filters": ["family.G.filters=5"], "G.layers": ["family.G.layers=1"], "G.extra": ["family.G.extra=1"],
    "G.pool": ["family.G.pool=mean"], "G.coords": ["family.G.coords.mode=coord"],
    "G.image_px": ["family.G.image_px=7"], "G.outputs": ["family.task=classify", "family.G.outputs=5"],
}  # fmt: skip
ELSEWHERE = {
    "kind", "G.kind",  # choose the classes
    "microbatch",  # changes rounding alone: test_one_forward_or_several_are_the_same_but_for_rounding
    "G.img_channels",  # refused, but for 3
}  # fmt: skip


def test_every_value_changes_what_is_trained(unchecked):
    def names(config: type[Config], prefix=""):
        for name in config.model_fields:
            inner = {"G": CoordNetConfig}.get(name)
            yield from names(inner, f"{name}.") if inner else [prefix + name]

    assert {*OTHER, *ELSEWHERE} == set(names(SupervisedConfig))
    digests = {name: trained(*sets)[0] for name, sets in {"": [], **OTHER}.items()}
    assert len(set(digests.values())) == len(digests)


def test_one_forward_or_several_are_the_same_but_for_rounding():
    one, several = (trained(f"family.microbatch={n}")[1][-1]["Loss/G/mse"] for n in (16, 4))
    assert one == pytest.approx(several, rel=1e-5)


def test_g_ema_is_g():
    assert SupervisedConfig().build(0).ema_kimg < 1e-3


def step_of(real, c):
    device = torch.device("cpu")
    ids = tuple(range(len(real)))
    return Step(real, (8, 8), Chance(0, "G", 0, ids, device), frozenset(), {}, torch.tensor(c))


def test_what_is_measured_is_what_is_trained_on_and_accuracy():
    real = to_float(images(4).img)
    cfg = SupervisedConfig(G=CoordNetConfig(image_px=8, filters=4), target_scale=3)
    family = cfg.build(0)
    G = family.nets["G"].eval()
    want = ((G((real + 1) / 2) - 3 * centre_of_mass((real + 1) / 2)) ** 2).mean(1)
    assert torch.allclose(family.validate(family.nets, step_of(real, [-1] * 4))["mse"], want)
    family = SupervisedConfig(task="classify", G=cfg.G.replace(outputs=3)).build(0)
    logits = family.nets["G"]((real + 1) / 2)
    right = logits.argmax(1).tolist()
    terms = family.validate(family.nets, step_of(real, [right[0], right[1], (right[2] + 1) % 3, -1]))
    assert terms["accuracy"].tolist() == [1, 1, 0, 0]
    assert terms["cross_entropy"][0].item() == pytest.approx(-logits.log_softmax(1)[0, right[0]].item())
    assert terms["cross_entropy"][3] == 0


def test_values_that_do_not_go_together_are_refused_in_one_line():
    net = CoordNetConfig()
    for words, wrong in {
        "G.outputs=3 with task='centre_of_mass'": lambda: SupervisedConfig(G=net.replace(outputs=3)),
        "target_scale=2.0 has no effect": lambda: SupervisedConfig(task="classify", target_scale=2.0),
        "extra=3 must be below layers=3": lambda: CoordNetConfig(extra=3),
        "stored images have 3": lambda: SupervisedConfig(G=net.replace(img_channels=1)),
        "pad with 'zero'": lambda: CoordNetConfig(coords=CoordSpec(mode="geo", padding="ramp")),
    }.items():
        with pytest.raises(ValidationError, match=words):
            wrong()


def test_a_set_without_the_classes_is_refused_and_a_centre_wants_none():
    def set_of(classes):
        return Manifest.model_construct(classes=classes)

    run = find("geopos.bias_relative_geo").make()
    check_classes(run, "x", set_of(("a", "b", "c", "d")))
    with pytest.raises(UserError, match=r"has 0 classes, the recipe is for 4; .* --set family.G.outputs=1"):
        check_classes(run, "x", set_of(()))
    check_classes(find("geopos.com_geo").make(), "x", set_of(()))


def test_recipes_of_a_task_differ_in_their_coordinates_alone():
    for task in ("com", "bias_identity", "bias_relative", "bias_absolute"):
        runs = [find(f"geopos.{task}_{short}").make() for short in ("conv", "coord", "geo")]
        plain = [r.replace(recipe="x", family=r.family.replace(G=r.family.G.replace(coords=CoordSpec()))) for r in runs]
        assert plain[0] == plain[1] == plain[2]
        assert [r.family.G.coords.mode for r in runs] == ["none", "coord", "geo"]
        assert runs[0].data.mirror == (task == "com")
