"""The VAE: parameters against arithmetic, shifts that reach z, the bound a sample, what every field does."""

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.attempt import schedule_of
from pipeline.chance import Chance
from pipeline.cost import multiply_adds, parameters, training_flop
from pipeline.data.reader import ShardReader
from pipeline.families.vae import VAEConfig
from pipeline.layers.coords import CoordSpec, shifted_by
from pipeline.models.vae import VAEGeneratorConfig
from pipeline.objectives.likelihood import bernoulli_nll, gaussian_kl, gaussian_nll
from pipeline.phases import Generator, Step
from pipeline.plan import DataConfig, ExecConfig, RunConfig, check, override_all
from pipeline.recipes import find
from pipeline.run import newest_checkpoint, plan_run, train_folder
from pipeline.spec import UserError
from pipeline.synthesis.reconstruct import reconstructed
from pipeline.synthesis.sample import load_generator
from pipeline.training.engine import Engine
from pipeline.training.loop import Training
from pipeline.training.runner import Microbatch, run_phase
from tests.families.test_cost import Count
from tests.runs import CIPS
from tests.synthesis.untrained import write_run
from tests.training.test_every_value_has_an_effect import leaves, trained
from tests.training.test_validation import prepared

MODES = ("none", "geo", "axes", "unshifted", "coord", "coord_shifted")
SMALL = VAEGeneratorConfig(resolution_px=16, channel_base=4, z_dim=6)


def vae(mode="none", **changes):
    return SMALL.replace(coords=CoordSpec(mode=mode, **changes)).build()


def images(n=4, side=16):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def step(n=4, first=0) -> Step:
    chance = Chance(0, "G", 0, tuple(range(first, first + n)), torch.device("cpu"))
    return Step(images(8)[first : first + n], (16, 16), chance, frozenset(), {}, torch.full((n,), -1))


def terms(G, config: VAEConfig, at: Step) -> dict[str, torch.Tensor]:
    with torch.no_grad(), shifted_by([G], at.chance):
        return config.build(0).phases[0].loss({"G": G}, at)


def test_parameters_are_those_of_the_arithmetic_and_coordinates_add_theirs():
    """A channel adds the kernel's size times the filters to a convolution: 16 of each encoder's, 9 of a decoder's."""
    width, filters, z = [64, 128, 256, 512], [256, 128, 64, 3], 256
    plain = sum(16 * a * b + b for a, b in zip([3, *width], width, strict=False))
    plain += sum(9 * a * b + b for a, b in zip([512, *filters], filters, strict=False))
    plain += 512 * 16 * 2 * z + 2 * z + (z + 1) * 512 * 16
    channel = 16 * sum(width) + 9 * sum(filters)
    for kind, channels in (("conv", 0), ("geo", 1), ("coord", 2)):
        counted = parameters(find(f"geopos.vae_256_{kind}").make().family)
        assert counted == {"G": plain + channels * channel}
    first = CoordSpec(mode="coord", layers="first")
    counted = parameters(VAEConfig(G=VAEGeneratorConfig(coords=first)))
    assert counted == {"G": plain + 2 * (16 * width[0] + 9 * filters[0])}
    assert [find(f"geopos.vae_{d}_geo").make().family.G.z_dim for d in (256, 384, 512)] == [256, 384, 512]


@pytest.mark.parametrize("mode", MODES)
def test_it_reconstructs_the_mean_and_makes_sizes_never_trained(mode):
    G = vae(mode).eval()
    assert isinstance(G, Generator)
    img = images()
    mean, _ = G.encode(img)
    torch.testing.assert_close(G(img), G.synthesis(G.mapping(mean)[:, None], (16, 16), None))
    torch.testing.assert_close(G(img[:1]), G(img)[:1])
    assert G(img).abs().max() <= 1
    for size in ((16, 16), (8, 12), (4, 28)):
        G.check_size(size)
        assert G.synthesis(torch.randn(2, 1, 6), size, None).shape == (2, 3, *size)
    with pytest.raises(UserError, match="size=16x18 must be multiples of 4"):
        G.check_size((16, 18))
    with pytest.raises(ValueError, match=r"\(8, 8\) px images, the encoder was made for \(16, 16\)"):
        G.encode(images(side=8))


@pytest.mark.parametrize("mode", MODES)
def test_a_shift_reaches_z_and_the_image_in_training_and_nothing_is_drawn_in_evaluation(mode):
    """Equal images of one batch: what differs is the shift."""
    G, same, z = vae(mode), images(1).expand(3, -1, -1, -1), torch.ones(3, 6)
    for made in (lambda: G.encode(same)[0], lambda: G.logits(z, (16, 16))):
        spread = made().std(dim=0).max().item()
        assert (spread > 1e-3) == (mode in ("geo", "axes", "coord_shifted"))
    G.eval()
    assert G.encode(same)[0].std(dim=0).max() < 1e-5


@pytest.mark.parametrize("likelihood", ["mse", "bce"])
def test_the_loss_is_reconstruction_and_weighted_divergence_of_a_z_that_was_drawn(likelihood):
    G, config, at = vae(), VAEConfig(G=SMALL, reconstruction=likelihood, kl_weight=3.0), step()
    found = terms(G, config, at)
    mean, logvar = G.encode(at.real)
    z = mean + (logvar / 2).exp() * at.chance.normal("z", 6)
    nll = {"mse": gaussian_nll, "bce": bernoulli_nll}[likelihood](G.logits(z, (16, 16)), at.real)
    torch.testing.assert_close(found["reconstruction"], nll)
    torch.testing.assert_close(found["kl"], 3 * gaussian_kl(mean, logvar))
    torch.testing.assert_close(found["loss"], found["reconstruction"] + found["kl"])
    assert config.build(0).phases[0].terms == ("reconstruction", "kl")


@pytest.mark.parametrize("mode", ["none", "geo", "coord"])
def test_a_sample_knows_nothing_of_its_neighbours(mode):
    """Shifts and z follow from its number: no norm over the batch, no draw of the batch."""
    G, config = vae(mode), VAEConfig(G=SMALL)
    whole, halves = terms(G, config, step(8)), [terms(G, config, step(4, first)) for first in (0, 4)]
    for name, value in whole.items():
        torch.testing.assert_close(value, torch.cat([half[name] for half in halves]))


def test_the_stated_cost_is_what_an_iteration_spends():
    """But the gradient of the images, which nobody needs."""
    config = VAEConfig(G=SMALL.replace(channel_base=32, coords=CoordSpec(mode="geo")))
    run = RunConfig(recipe="x", family=config, data=DataConfig(size_px=16), batch_size=16, total_kimg=1)
    engine, family = Engine("fp32", 1), config.build(0)
    training = Training(family, engine, schedule_of(run, ExecConfig(), 0))
    micro = Microbatch(tuple(range(16)), torch.randn(16, 3, 16, 16), torch.full((16,), -1))
    with Count() as count:
        run_phase(
            family.phases[0], training.nets, training.updates["G"], [micro], knobs=family.knobs(0), seed=0, nimg=0,
            batch_size=16, feedback={}, engine=engine, stats=training.stats,
        )  # fmt: skip
    engine.close(failed=False)
    stated = 16 * training_flop(config)
    assert count.total == pytest.approx(stated - 16 * 2 * 8 * 8 * 32 * 16 * 4, rel=0.001)
    assert stated == 16 * 2 * 3 * multiply_adds(config, "G")[(16, 16)]


OTHER = {
    "reconstruction": "bce", "kl_weight": 0.5, "lr": 0.01, "beta1": 0.7, "beta2": 0.8, "eps": 0.1, "G.z_dim": 12,
    "G.channel_base": 6, "G.coords.shift": "normal", "G.coords.shift_range": "[0, 1]",
    "G.coords.draw": "batch", "G.coords.per_layer": "false", "G.coords.coord_range": "[-1, 1]",
}  # fmt: skip
ELSEWHERE = {
    "kind", "G.kind", "G.resolution_px",  # what it is, and the size of the images
    "microbatch",  # test_images_of_a_forward...; bits may depend on it by rounding
    "G.coords.mode", "G.coords.radius", "G.coords.padding",  # test_every_way...
    "G.coords.layers",  # of several in a half: test_parameters_are_those_of_the_arithmetic...
    "G.coords.stochastic_eval",  # of evaluation: training/test_validation.py
}  # fmt: skip


def base(*sets: str) -> RunConfig:
    config = VAEConfig(G=VAEGeneratorConfig(resolution_px=8, channel_base=4, z_dim=6, coords=CoordSpec(mode="geo")))
    run = RunConfig(recipe="x", family=config.replace(microbatch=4), data=DataConfig(size_px=8), batch_size=8,
                    total_kimg=0.032)  # fmt: skip
    return override_all(run, ExecConfig(), [f"family.{one}" for one in sets])[0]


@pytest.fixture(scope="module")
def unchanged():
    return trained(base())


def test_every_field_is_looked_at():
    assert set(leaves(VAEConfig())) == OTHER.keys() | ELSEWHERE


@pytest.mark.parametrize("field", OTHER)
def test_changing_the_value_changes_what_is_trained(field, unchanged):
    assert trained(base(f"{field}={OTHER[field]}")) != unchanged


def test_every_way_of_seeing_coordinates_trains_another_network(unchanged):
    plain = base().replace(family=base().family.replace(G=base().family.G.replace(coords=CoordSpec())))
    found = [trained(override_all(plain, ExecConfig(), [f"family.G.coords.mode={m}"])[0]) for m in MODES]
    sets = ["family.G.coords.mode=coord", "family.G.coords.radius=true"]
    found.append(trained(override_all(plain, ExecConfig(), sets)[0]))
    assert len(set(found)) == len(found)
    assert unchanged in found  # the same again
    with pytest.raises(UserError, match=r"coords\.padding='ramp': the VAE's convolutions pad with zero"):
        base("G.coords.padding=ramp")


def test_images_of_a_forward_are_counted_by_the_field_that_the_message_names():
    run = find("geopos.vae_384_coord").make()
    assert [ExecConfig().microbatch(r) for r in (run, run.tiny())] == [16, 4]
    check(run, ExecConfig(gpus=4))
    with pytest.raises(UserError, match=r"multiple of family\.microbatch=16, .* use one of 1, 2, 4 ranks"):
        check(run, ExecConfig(gpus=8))


def test_a_sheet_shows_held_out_images_above_their_reconstructions(tmp_path, graticule):
    data = prepared(tmp_path / "data", 12, 0)
    sets = ["exec.track=false", "exec.workers=0", "total_kimg=0.016"]
    run, exec_ = override_all(find("geopos.vae_256_geo").make().tiny(), ExecConfig(), sets)
    folder = plan_run(run, exec_, data, tmp_path / "runs", [])
    assert train_folder(folder, should_stop=lambda: False) == "done"
    code, out, err = graticule("look", "reconstructions", folder, "--data", data, "--count", 3)
    assert (code, err) == (0, "")
    path = folder / "pictures" / f"look-reconstructions-{16:012d}-px16x16-of{data.name}-count3.png"
    assert f"{path}: 3 pictures of {data} above" in out
    reader = ShardReader(data)
    shown = np.stack([reader.read(i * len(reader) // 3)[0].transpose(1, 2, 0) for i in range(3)])
    G = load_generator(folder / "config.json", newest_checkpoint(folder) / "G_ema.safetensors")
    picture = np.asarray(Image.open(path))
    for top, row in ((20, shown), (60, reconstructed(G, shown))):
        for i, one in enumerate(row):
            assert np.array_equal(picture[top : top + 16, 4 + 20 * i : 20 + 20 * i], one)


def test_a_generator_without_an_encoder_gets_one_line(tmp_path, graticule):
    write_run(tmp_path / "cips", CIPS)
    code, _, err = graticule("look", "reconstructions", tmp_path / "cips", "--data", tmp_path)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "model=CIPSGenerator has no encoder; this takes an autoencoder (kind='vae')" in err
    assert not (tmp_path / "cips" / "pictures").exists()
