"""DCGAN by label: labels reach G, D, the penalty, samples and pictures, whatever the microbatch and after a resume.

A set of 18 classes, each of pictures of its own shade; small real runs on it in this process.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dataprep.sources import open_source
from dataprep.transform import Transform
from dataprep.writer import prepare
from pipeline.chance import Chance
from pipeline.families.dcgan import DCGANConfig
from pipeline.families.wgan_gp import between_them
from pipeline.layers.coords import CoordSpec, shifted_by
from pipeline.phases import Step
from pipeline.plan import ExecConfig, override_all
from pipeline.recipes import find
from pipeline.run import plan_run, read_run, train_folder
from pipeline.spec import UserError
from pipeline.synthesis.best import best_of
from pipeline.synthesis.sample import generate, grid, labels_of, load_generator, map_z, mean_w, sample_z
from pipeline.tracking import jsonl
from tests.families.test_wgan_gp import base
from tests.runs import assert_bitwise_equal, final_state
from tests.training.test_every_value_has_an_effect import trained

CLASSES, PX = 18, 16
NAMES = "abcdefghijklmnopqr"
SETS = [f"family.{net}.num_classes={CLASSES}" for net in "GD"] + ["total_kimg=0.096", "exec.sample_kimg=1"]
SETS += ["family.diversity_interval=2", "exec.status_kimg=0.032", "exec.checkpoint_kimg=0.048"]
SETS += ["exec.track=false", "exec.workers=0"]


def config(**changes) -> DCGANConfig:
    narrow = {"resolution_px": PX, "channel_base": 4, "num_classes": 3}
    return DCGANConfig(G={**narrow, "z_dim": 6, "bn_group": 4}, D=narrow).replace(**changes)


def make_step(c: list[int], due: tuple[str, ...] = (), ids=None) -> Step:
    n = len(c)
    real = torch.rand(8, 3, PX, PX, generator=torch.Generator().manual_seed(1))[list(ids or range(n))] * 2 - 1
    chance = Chance(0, "D", 0, tuple(ids or range(n)), real.device)
    return Step(real, (PX, PX), chance, frozenset(due), {}, torch.tensor(c))


@pytest.fixture(scope="module")
def shades(tmp_path_factory) -> Path:
    """18 classes of four pictures."""
    native = tmp_path_factory.mktemp("native")
    noise = np.random.default_rng(0)
    for i, name in enumerate(NAMES):
        (native / name).mkdir()
        for k in range(4):
            picture = (12 * i + noise.integers(0, 40, (PX, PX, 3))).astype(np.uint8)
            Image.fromarray(picture).save(native / name / f"{k}.png")
    out = tmp_path_factory.mktemp("shades") / "set"
    prepare(open_source("folder", native), out, Transform(size_px=PX))
    return out


def plan(data: Path, runs: Path, *sets: str) -> Path:
    run, exec_ = override_all(find("geopos.asl_geo").make().tiny(), ExecConfig(), [*SETS, *sets])
    return plan_run(run, exec_, data, runs, list(sets))


@pytest.fixture(scope="module")
def trained_run(shades, tmp_path_factory) -> Path:
    folder = plan(shades, tmp_path_factory.mktemp("runs"))
    assert train_folder(folder, should_stop=lambda: False) == "done"
    return folder


def test_training_by_label_is_bitwise_the_same_after_a_stop_and_close_to_it_in_other_microbatches(
    trained_run, shades, tmp_path
):
    folder, asked = plan(shades, tmp_path / "stopped"), iter(range(99))
    assert train_folder(folder, should_stop=lambda: next(asked) >= 4) == "stopped"
    assert train_folder(folder, should_stop=lambda: False) == "done"
    straight = final_state(trained_run)
    assert_bitwise_equal(straight, final_state(folder))
    lines = [[r["metrics"] for r in jsonl.metrics(f / "metrics.jsonl")] for f in (trained_run, folder)]
    for name in ("Loss/D/fake_distance", "Loss/D/real_distance", "Collapse/diversity"):
        values = [[line[name] for line in of_run] for of_run in lines]
        assert values[0] == values[1]
        assert len(values[0]) == 3
    other = plan(shades, tmp_path / "cut", "exec.batch_gpu=8")
    assert train_folder(other, should_stop=lambda: False) == "done"
    cut = final_state(other)
    for name in ("G.embedding.weight", "D.project.weight", "G.convs.0.weight"):
        torch.testing.assert_close(cut[name], straight[name], atol=1e-5, rtol=1e-3)
    assert cut["D.project.weight"].abs().sum() > 0


def test_a_grid_shows_every_label(trained_run):
    G = load_generator(trained_run / "config.json", next(trained_run.glob("checkpoints/*96/G_ema.safetensors")))
    (path,) = trained_run.glob("samples/000000000096-16x16.png")
    shown = np.asarray(Image.open(path))
    assert shown.shape == (4 * PX, 5 * PX, 3)
    np.testing.assert_array_equal(shown, grid(generate(G, range(CLASSES))))
    assert labels_of(G, range(CLASSES)) == list(range(CLASSES))


def test_a_label_changes_the_image_and_none_is_the_seeds_own():
    G = config().G.build().eval()
    as_it_is = generate(G, [5, 7])
    np.testing.assert_array_equal(as_it_is, generate(G, [5, 7], labels=[2, 1]))
    assert (as_it_is != generate(G, [5, 7], labels=[2, 0])).any(axis=(1, 2, 3)).tolist() == [False, True]
    z = sample_z(G, [5, 7])
    w = map_z(G, z, 0.0, [2, 1])
    torch.testing.assert_close(w[1], mean_w(G, z.device, 1))
    torch.testing.assert_close(w[1, 6:], G.embedding.weight[1])
    assert torch.equal(G.mapping(z), G.mapping(z, torch.tensor([0, 0])))


@pytest.mark.filterwarnings("ignore")  # MLflow's, about type hints
def test_a_registered_model_takes_one_label_for_all():
    from pipeline.tracking.served import Served

    model, seeds = Served(), np.array([5, 7])
    model.G = config().G.build().eval()
    np.testing.assert_array_equal(model.predict(None, seeds, {"label": 2}), generate(model.G, [5, 7], labels=[2, 2]))
    np.testing.assert_array_equal(model.predict(None, seeds, {"label": -1}), generate(model.G, [5, 7]))


@pytest.mark.parametrize("phase", [0, 1])
def test_losses_are_those_of_the_labels(phase):
    """Of D, its penalty, and G; recomputed by hand, and other for other labels."""
    family = config().build(0)
    G, D = family.nets["G"], family.nets["D"]
    torch.nn.init.normal_(D.project.weight)
    step = make_step([0, 1, 2, 2])
    terms = family.phases[phase].loss(family.nets, step)
    fake = G.synthesis(G.mapping(step.chance.normal("z", 6), step.c)[:, None], (PX, PX), None)
    if phase == 0:
        torch.testing.assert_close(terms["adv"], D(fake, step.c) - D(step.real, step.c))
        between = between_them(step.real, fake, step).requires_grad_()
        (grad,) = torch.autograd.grad(D(between, step.c).sum(), between)
        torch.testing.assert_close(terms["gp"], 10 * (grad.square().sum(dim=(1, 2, 3)).sqrt() - 1).square())
    else:
        torch.testing.assert_close(terms["adv"], -D(fake, step.c))
    permuted = family.phases[phase].loss(family.nets, make_step([1, 0, 2, 2]))
    for name in ("adv", "gp")[: 2 - phase]:
        assert not torch.isclose(terms[name][:2], permuted[name][:2]).any()


def test_d_adds_the_product_of_its_labels_embedding_and_the_sum_of_its_last_map():
    D, img, c = config().D.build(), torch.randn(3, 3, PX, PX), torch.tensor([2, 0, 1])
    plain = config().replace(G=config().G.replace(num_classes=0), D=config().D.replace(num_classes=0)).D.build()
    plain.load_state_dict({k: v for k, v in D.state_dict().items() if k != "project.weight"})
    x = img
    for conv in D.convs:
        x = torch.nn.functional.leaky_relu(conv(x), 0.2)
    torch.testing.assert_close(D(img, c), plain(img) + torch.einsum("nc,nchw->n", D.project.weight[c], x))
    assert torch.equal(D(img), D(img, torch.zeros(3, dtype=torch.int64)))


def test_distances_are_those_of_a_second_fake_of_each_label_and_of_the_next_real_in_any_microbatch():
    family = config(diversity_interval=16).build(0)
    G, phase = family.nets["G"], family.phases[0]
    assert (phase.due(16), phase.due(17), phase.terms) == ({"diversity"}, set(), ("adv", "gp", "drift"))
    step = make_step([0, 1, 2, 2, 0, 0, 1, 2], ("diversity",))
    terms = phase.loss(family.nets, step)
    a, b = (G.synthesis(G.mapping(step.chance.normal(n, 6), step.c)[:, None], (PX, PX), None) for n in ("z", "z_other"))
    torch.testing.assert_close(terms["fake_distance"], (a - b).square().mean(dim=(1, 2, 3)).sqrt())
    real = step.real
    torch.testing.assert_close(terms["real_distance"][3], (real[3] - real[0]).square().mean().sqrt())
    torch.testing.assert_close(terms["real_distance"][4], (real[4] - real[5]).square().mean().sqrt())
    half = phase.loss(family.nets, make_step([0, 0, 1, 2], ("diversity",), ids=range(4, 8)))
    for name in ("fake_distance", "real_distance", "adv", "gp"):
        torch.testing.assert_close(half[name], terms[name][4:])
    assert not {"fake_distance", "real_distance"} & set(phase.loss(family.nets, make_step([0] * 4)))


def test_measuring_distances_changes_no_weight():
    sets = ["G.coords.mode=geo", "D.coords.mode=geo"]
    assert trained(base("dcgan", *sets, "diversity_interval=1")) == trained(base("dcgan", *sets))


def test_every_convolution_has_a_shift_of_its_own_for_each_image_whatever_the_microbatch():
    geo = CoordSpec(mode="geo")
    family = config(G=config().G.replace(coords=geo), D=config().D.replace(coords=geo)).build(0)

    def terms(c, ids):
        step = make_step(c, ids=ids)
        with shifted_by(family.nets.values(), step.chance):
            return family.phases[0].loss(family.nets, step)

    whole, half = terms([0, 1, 2, 2, 0, 0, 1, 2], range(8)), terms([0, 0, 1, 2], range(4, 8))
    for name in ("adv", "gp"):
        torch.testing.assert_close(half[name], whole[name][4:])


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: config(D={**dict(config().D), "num_classes": 2}), "D.num_classes=2 must equal G.num_classes=3"),
        (lambda: config(diversity_interval=1, G=config().G.replace(bn_group=1)), "set G.bn_group=1 to 2 or more"),
    ],
)
def test_values_that_contradict_each_other_are_refused(made, words):
    with pytest.raises(ValueError, match=words):
        made()


def test_labels_that_are_not_there_are_refused():
    with pytest.raises(UserError, match="label=3: this model has 3 classes; use 0-2"):
        labels_of(config().G.build(), [0], [3])
    with pytest.raises(UserError, match="label=0: this model has no classes"):
        labels_of(base("dcgan").family.G.build(), [0], [0])


def test_a_set_without_the_classes_is_refused_in_one_line(photos, graticule, tmp_path):
    code, _, err = graticule("train", "geopos.asl_geo", "--tiny", "--data", photos(PX), "--runs", tmp_path)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "has 10 classes, the recipe is for 36" in err
    assert "family.G.num_classes" in err


def test_sample_takes_a_label_by_number_and_by_name(trained_run, graticule, tmp_path):
    pictures = {}
    for label in ("c", "2", "d"):
        out = tmp_path / f"{label}.png"
        words = ("sample", trained_run, "--seeds", "0-3", "--label", label, "--grid", out)
        assert graticule(*words)[::2] == (0, "")
        pictures[label] = out.read_bytes()
    assert pictures["c"] == pictures["2"] != pictures["d"]
    for label, said in (("18", "has 18 classes; use 0-17"), ("cc", "did you mean 'c'?"), ("%", "known: a, b")):
        code, _, err = graticule("sample", trained_run, "--label", label)
        assert (code, len(err.splitlines())) == (2, 1)
        assert said in err


def test_the_best_of_several_are_those_of_the_highest_critic_score_beside_the_first(trained_run, graticule, tmp_path):
    out = tmp_path / "best.png"
    code, said, err = graticule("look", "best", trained_run, "--of", "3", "--rows", "2", "--out", out)
    assert (code, err) == (0, "")
    checkpoint = next(trained_run.glob("checkpoints/*96"))
    G = load_generator(trained_run / "config.json", checkpoint / "G_ema.safetensors")
    D = read_run(trained_run).family.build(0).nets["D"].eval()
    D.load_state_dict(load_file(checkpoint / "D.safetensors"))
    images = np.stack([generate(G, range(i * CLASSES, (i + 1) * CLASSES)) for i in range(3)], axis=1)
    real = torch.from_numpy(images.transpose(0, 1, 4, 2, 3) / 127.5 - 1).float()
    with torch.no_grad():
        scores = torch.stack([D(real[:, i], torch.arange(CLASSES)) for i in range(3)], dim=1)
    numbers = json.loads(out.with_suffix(".json").read_text())
    np.testing.assert_allclose(numbers["scores"], scores, atol=1e-4)
    assert numbers["picked"] == scores.argmax(dim=1).tolist() == np.argmax(numbers["scores"], axis=1).tolist()
    assert len(set(numbers["picked"])) > 1
    shown = np.asarray(Image.open(out))
    np.testing.assert_array_equal(shown[20 : 20 + PX, 4 : 4 + PX], images[0, 0])
    left = 4 + 9 * PX + 4
    np.testing.assert_array_equal(shown[20 : 20 + PX, left : left + PX], images[0, numbers["picked"][0]])
    assert f"best 1 of 3 samples of {CLASSES} labels" in said
    assert f"best: critic score {scores.max(dim=1).values.mean():.4g} on average" in said


def test_without_classes_a_cell_has_seeds_of_its_own():
    family = base("dcgan").family.build(0)
    G, D = family.nets["G"].eval(), family.nets["D"].eval()
    found = best_of(G, D, 5, 4)
    np.testing.assert_array_equal(found.first, generate(G, range(5)))
    np.testing.assert_array_equal(found.chosen[3], generate(G, [3 + 5 * found.picked[3]])[0])
    assert found.scores.shape == (5, 4)


def test_the_best_need_a_run_of_dcgan(graticule, tmp_path):
    from tests.runs import MSPIE
    from tests.synthesis.untrained import write_run

    code, _, err = graticule("look", "best", write_run(tmp_path / "run", MSPIE))
    assert code == 2
    assert "look best is for runs of dcgan, whose D scores an image by itself, not of 'mspie'" in err
    code, _, err = graticule("sample", tmp_path / "run", "--label", "1")
    assert code == 2
    assert "label='1': this model has no classes; leave --label out" in err
