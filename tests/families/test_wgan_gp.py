"""PGGAN and DCGAN by WGAN-GP: penalties against closed forms, the published schedule, what every field does."""

from math import log

import pytest
import torch
from torch import nn

from pipeline.attempt import schedule_of
from pipeline.chance import Chance
from pipeline.config import Config
from pipeline.cost import training_flop
from pipeline.families.dcgan import DCGANConfig
from pipeline.families.pggan import PGGANConfig, averaged_reals, faded_reals
from pipeline.families.wgan_gp import between_them
from pipeline.objectives.adversarial import wgan_d, wgan_g
from pipeline.objectives.penalties import drift, gradient_penalty
from pipeline.phases import Step
from pipeline.plan import DataConfig, ExecConfig, RunConfig, check, override_all
from pipeline.recipes import find
from pipeline.spec import UserError, to_float
from pipeline.training.engine import Engine
from pipeline.training.loop import Training
from pipeline.training.runner import Microbatch, run_phase
from tests.families.test_cost import Count
from tests.training.test_every_value_has_an_effect import leaves, trained

FAMILIES = {"pggan": PGGANConfig(), "dcgan": DCGANConfig()}


def make_step(n=4, side=16, ids=None, nimg=0) -> Step:
    real = torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return Step(
        real,
        (side, side),
        Chance(0, "D", nimg, tuple(ids or range(n)), real.device),
        frozenset(),
        {},
        torch.zeros(n, dtype=torch.int64),
    )


def small(kind: str, **changes) -> PGGANConfig | DCGANConfig:
    return FAMILIES[kind].tiny().replace(**changes)


def test_the_penalty_of_a_linear_critic_is_that_of_its_weights_and_so_is_the_penaltys_gradient():
    a = nn.Parameter(torch.randn(3, 5, 7))
    x = torch.randn(4, 3, 5, 7, requires_grad=True)
    penalty = gradient_penalty((x * a).sum(dim=(1, 2, 3)), x)
    norm = a.detach().norm()
    torch.testing.assert_close(penalty.detach(), ((norm - 1) ** 2).expand(4))
    penalty.mean().backward()
    torch.testing.assert_close(a.grad, 2 * (norm - 1) * a.detach() / norm)


def test_the_penalty_of_a_critic_that_sees_nothing_is_one_and_harms_no_weight():
    a = nn.Parameter(torch.zeros(3, 2, 2))
    x = torch.randn(4, 3, 2, 2, requires_grad=True)
    penalty = gradient_penalty((x * a).sum(dim=(1, 2, 3)), x)
    penalty.sum().backward()
    assert torch.equal(penalty.detach(), torch.ones(4))
    assert torch.isfinite(a.grad).all()


def test_losses_and_drift_are_the_written_formulas():
    real, fake = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    assert wgan_d(real, fake).tolist() == [-0.5, 5.0]
    assert wgan_g(fake).tolist() == [-0.5, -3.0]
    assert drift(real).tolist() == [1.0, 4.0]


def test_each_sample_is_mixed_at_a_place_of_its_own_uniform_and_the_same_in_any_microbatch():
    n = 2000
    real, fake = torch.zeros(n, 3, 1, 2), torch.ones(n, 3, 1, 2)
    u = between_them(real, fake, make_step(n, 1))
    assert torch.equal(u, u[:, :1, :, :1].expand_as(u))
    u = u[:, 0, 0, 0].sort().values
    assert (u - (torch.arange(n) + 0.5) / n).abs().max() < 1.63 / n**0.5  # Kolmogorov, 1 %
    whole, part = make_step(8, 1), make_step(2, 1, ids=[4, 5])
    a = between_them(real[:8], fake[:8], whole)
    assert torch.equal(a[4:6], between_them(real[:2], fake[:2], part))


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_terms_of_d_are_critic_penalty_and_drift_with_their_weights(kind):
    config = small(kind, gp_weight=7, drift_weight=0.5)
    family, step = config.build(0), make_step()
    if family.stages:
        family.stages.begin(family.nets, 10**6)
    terms, D = family.phases[0].loss(family.nets, step), family.nets["D"]
    G = family.nets["G"]
    fake = G.synthesis(G.mapping(step.chance.normal("z", G.z_dim))[:, None], (16, 16), None)
    between = between_them(step.real, fake, step).requires_grad_()
    (grad,) = torch.autograd.grad(D(between).sum(), between)
    torch.testing.assert_close(terms["gp"], 7 * (grad.square().sum(dim=(1, 2, 3)).sqrt() - 1).square())
    torch.testing.assert_close(terms["adv"], D(fake) - D(step.real))
    torch.testing.assert_close(terms["drift"], 0.5 * D(step.real).square())
    assert family.phases[0].terms == ("adv", "gp", "drift")
    torch.testing.assert_close(family.phases[1].loss(family.nets, step)["adv"], -D(fake))
    (terms["gp"].sum() + terms["adv"].sum()).backward()
    norms = {n: float(p.grad.norm()) for n, p in D.named_parameters() if p.grad is not None and n.endswith("weight")}
    assert min(norms.values()) > 0


def test_the_levels_of_12_million_images_are_those_of_the_original():
    config = PGGANConfig()
    family = config.build(0)
    stages = family.stages
    assert stages.starts == tuple(1000 * k for k in (0, 600, 1800, 3000, 4200, 5400))
    assert [32 * factor for factor in stages.factors] == [512, 256, 128, 64, 32, 32]
    assert [config.level_at(1000 * k) for k in (0, 599, 600, 900, 1200, 1799, 1800, 5400, 6000, 12000)] == [
        (0, 1.0), (0, 1.0), (1, 0.0), (1, 0.5), (1, 1.0), (1, 1.0), (2, 0.0), (5, 0.0), (5, 1.0), (5, 1.0)
    ]  # fmt: skip
    knobs = [family.knobs(1000 * k) for k in (0, 1800, 5399, 5400)]
    assert [k.size for k in knobs] == [(4, 4), (16, 16), (64, 64), (128, 128)]
    assert [k.lr["D"] for k in knobs] == pytest.approx([1e-3, 1e-3, 1e-3, 1.5e-3])
    assert [k.lr["G"] for k in knobs] == [k.lr["D"] for k in knobs]
    assert config.size_probs(12_000.0) == pytest.approx((0.05, 0.1, 0.1, 0.1, 0.1, 0.55))
    assert config.size_probs(1200.0) == pytest.approx((0.5, 0.5, 0, 0, 0, 0))
    assert config.size_probs() == (0, 0, 0, 0, 0, 1)
    assert (family.adam["G"].betas, family.adam["D"].eps) == ((0.0, 0.99), 1e-8)
    assert [phase.every for phase in family.phases] == [1, 1]
    assert config.ema_kimg == pytest.approx(0.032 * log(0.5) / log(0.999), rel=2e-3)


def test_without_a_fade_a_level_is_whole_at_once():
    assert PGGANConfig(fade_kimg=0).level_at(600_000) == (1, 1.0)


def test_beginning_an_iteration_moves_g_d_and_the_average_to_its_level():
    family = small("pggan").build(0)
    nets = {**family.nets, "G_ema": small("pggan").G.build()}
    family.stages.begin(nets, 150)
    assert {(net.level, net.fade) for net in nets.values()} == {(1, 0.5)}


def test_dcgan_updates_g_after_every_fifth_of_d():
    family = DCGANConfig().build(0)
    assert [(phase.name, phase.every) for phase in family.phases] == [("D", 1), ("G", 5)]
    assert family.adam["D"].betas == (0.5, 0.9)
    assert family.knobs(0).lr == {"G": 1e-4, "D": 1e-4}
    assert family.stages is None


def test_reals_are_averaged_to_the_level_and_fade_with_it():
    img = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    real, quarter = to_float(img), averaged_reals(img, (4, 4))
    torch.testing.assert_close(quarter[:, :, 1, 2], real[:, :, 4:8, 8:12].mean(dim=(2, 3)))
    assert torch.equal(averaged_reals(img, (16, 16)), real)
    assert averaged_reals(img, (12, 12)).shape == (2, 3, 12, 12)
    low = averaged_reals(img, (8, 8)).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(faded_reals(real, 0.25), 0.75 * low + 0.25 * real)
    assert faded_reals(real, 1.0) is real


def test_d_sees_reals_faded_like_itself():
    config = small("pggan")
    family, step = config.build(0), make_step(side=8)
    family.stages.begin(family.nets, 100)
    D = family.nets["D"]
    assert D.fade == 0
    logits = family.phases[0].loss(family.nets, step)["real_logits"]
    torch.testing.assert_close(logits, D(faded_reals(step.real, 0.0)).detach())
    family.stages.begin(family.nets, 150)
    logits = family.phases[0].loss(family.nets, step)["real_logits"]
    torch.testing.assert_close(logits, D(faded_reals(step.real, 0.5)).detach())
    assert not torch.allclose(logits, D(step.real).detach())


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("gp_weight", [0, 10])
def test_the_stated_training_cost_is_what_an_iteration_spends(kind, gp_weight):
    """At the last level; with as many channels as let the first layer of D, whose image needs no gradient, be small."""
    config = small(kind, gp_weight=gp_weight, G_every=1)
    wide = {"pggan": {}, "dcgan": {"channel_base": 64}}[kind]
    config = config.replace(G=config.G.replace(**wide), D=config.D.replace(**wide))
    run = RunConfig(recipe="x", family=config, data=DataConfig(size_px=16), batch_size=8, total_kimg=1e6)
    engine, family = Engine("fp32", 1), config.build(0)
    training = Training(family, engine, schedule_of(run, ExecConfig(), 0))
    training.nimg = 10**8
    training.begin(engine, schedule_of(run, ExecConfig(), 0))
    micro = Microbatch(tuple(range(8)), torch.randn(8, 3, 16, 16), torch.zeros(8, dtype=torch.int64))
    with Count() as count:
        for phase in family.phases:
            run_phase(
                phase, training.nets, training.updates[phase.net], [micro], knobs=family.knobs(10**8), seed=0, nimg=0,
                batch_size=8, feedback={}, engine=engine, stats=training.stats,
            )  # fmt: skip
    engine.close(failed=False)
    assert count.total == pytest.approx(8 * training_flop(config), rel=0.05)


def test_every_so_many_updates_of_g_cost_so_much_less():
    once, fifth = (DCGANConfig(G_every=k).passes() for k in (1, 5))
    assert (once, fifth) == ({"G": 4, "D": 14}, {"G": 1.6, "D": 12.4})


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (lambda: PGGANConfig(batch_factors=(1, 1)), r"batch_factors=\[1, 1\] must be 6 positive numbers, for 4 to 128"),
        (lambda: PGGANConfig(lr_factors=(1, 1, 1, 1, 1, 0)), "lr_factors=.*must be 6 positive numbers"),
        (lambda: PGGANConfig(G={"resolution_px": 64}), "D.resolution_px=128 must equal G.resolution_px=64"),
        (lambda: DCGANConfig(G={"resolution_px": 64}), "D.resolution_px=128 must equal G.resolution_px=64"),
        (lambda: PGGANConfig(G={"resolution_px": 96}), "must be a power of two"),
    ],
)
def test_values_that_contradict_each_other_are_refused(config, words):
    with pytest.raises(ValueError, match=words):
        config()


def test_networks_that_grow_are_not_sharded():
    run = RunConfig(recipe="x", family=small("pggan"), data=DataConfig(size_px=16), batch_size=16, total_kimg=1)
    with pytest.raises(UserError, match=r"family\.kind='pggan' change on the way"):
        check(run, ExecConfig(zero=2))
    assert run.family.exact_penalties() == {"D": "gp_weight"}
    assert run.family.replace(gp_weight=0).exact_penalties() == {}


def test_ranks_and_microbatches_are_counted_in_groups_of_batch_norm():
    run = find("mspie.dcgan_bedroom_a").make()
    check(run, ExecConfig(gpus=4, batch_gpu=16))
    with pytest.raises(UserError, match=r"multiple of family\.G\.bn_group=16, .* use one of 1, 2, 4 ranks"):
        check(run, ExecConfig(gpus=8))
    with pytest.raises(UserError, match=r"batch_gpu=8 must be a multiple of family\.G\.bn_group=16"):
        check(run, ExecConfig(batch_gpu=8))


SHARED = {
    "lr": 0.01, "beta1": 0.7, "beta2": 0.8, "eps": 0.1, "gp_weight": 1, "drift_weight": 0.1, "G_every": 2,
    "ema_kimg": 0.1, "G.z_dim": 12, "G.padding": "false", "G.head": "spe", "G.coords.mode": "geo",
}  # fmt: skip
OTHER = {
    "pggan": {
        **SHARED, "G.channel_max": 12, "D.channel_max": 12, "D.mbstd_group": 2, "stage_kimg": 0.032,
        "fade_kimg": 0.032, "batch_factors": "[1, 1]", "lr_factors": "[1, 2]",
    },
    "dcgan": {
        **SHARED, "G.channel_base": 12, "D.channel_base": 12, "G.bn_group": 2, "D.coords.mode": "coord",
    },
}  # fmt: skip
NOT_BY_ITSELF = {"diversity_interval", "G.num_classes", "D.num_classes"}  # see test_conditional.py


def base(kind: str, *sets: str) -> RunConfig:
    """Two levels of few channels; a fade, and iterations after it."""
    if kind == "pggan":
        config = PGGANConfig(
            G={"resolution_px": 8, "channel_max": 8, "z_dim": 8}, D={"resolution_px": 8, "channel_max": 8},
            batch_factors=(2, 1), lr_factors=(1, 1), stage_kimg=0.016, fade_kimg=0.02,
        )  # fmt: skip
    else:
        narrow = {"resolution_px": 8, "channel_base": 8}
        config = DCGANConfig(G={**narrow, "z_dim": 8, "bn_group": 4}, D=narrow)
    run = RunConfig(recipe="x", family=config, data=DataConfig(size_px=8), batch_size=8, total_kimg=0.056)
    return override_all(run, ExecConfig(), [f"family.{one}" for one in sets])[0]


@pytest.fixture(scope="module")
def unchanged():
    return {kind: trained(base(kind)) for kind in FAMILIES}


def fields(config: Config) -> set[str]:
    modes_have = {f for f in leaves(config) if ".coords." in f and not f.endswith(".mode")}  # need a mode first
    known = {"kind", "G.kind", "G.resolution_px", "D.resolution_px", "G.convention"}
    return set(leaves(config)) - known - modes_have - NOT_BY_ITSELF


@pytest.mark.parametrize(("kind", "field"), [(k, f) for k in OTHER for f in sorted(fields(FAMILIES[k]))])
def test_changing_the_value_changes_what_is_trained(kind, field, unchanged):
    assert trained(base(kind, f"{field}={OTHER[kind][field]}")) != unchanged[kind]


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_convention_of_the_code_changes_what_is_trained(kind, unchanged):
    release, again, paper = (trained(base(kind, "G.head=spe", *more)) for more in ([], [], ["G.convention=paper"]))
    assert release == again != paper
    assert trained(base(kind)) == unchanged[kind]


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_resolution_is_that_of_the_images(kind):
    assert [c.sizes()[-1] for c in (FAMILIES[kind], small(kind))] == [(128, 128), (16, 16)]


def test_each_row_trains_small_and_is_another_method():
    """Three iterations; rows are told apart by it, data sets are not."""
    digests = {}
    for name in ("pggan_celeba", "pggan_bedroom", "dcgan_bedroom"):
        for row in "abc":
            run = find(f"mspie.{name}_{row}").make().tiny()
            factor = run.family.batch_factors[0] if name.startswith("pggan") else 1
            digests[name, row] = trained(run.replace(total_kimg=3 * factor * run.batch_size / 1000))
    assert len(set(digests.values())) == 6
    assert all(digests["pggan_celeba", row] == digests["pggan_bedroom", row] for row in "abc")


def test_a_tiny_run_sees_all_levels():
    run = find("mspie.pggan_celeba_a").make().tiny()
    assert run.family.starts()[-1] + 1000 * run.family.fade_kimg < 1000 * run.total_kimg
    assert run.family.batch_factors == (2, 1, 1)
