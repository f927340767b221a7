"""The terms of each phase on a tiny network: what they weigh, what they draw, what they leave alone."""

import pytest
import torch

from pipeline.chance import Chance
from pipeline.families.logistic import resize_reals
from pipeline.families.mspie import MSPIEConfig
from pipeline.models.stylegan2 import broadcast_w
from pipeline.phases import Generator, Step
from pipeline.recipes import find
from pipeline.spec import to_float

MSPIE, CIPS = "mspie.table5_f", "cips.table3_main"


def tiny(recipe: str, **changes):
    config = find(recipe).make().family.tiny().replace(**changes)
    torch.manual_seed(0)
    return config, config.build(0)


def make_step(n=6, size=(32, 32), due=(), scope="D", nimg=0, ids=None, feedback=None):
    real = torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    chance = Chance(0, scope, nimg, tuple(ids or range(n)), torch.device("cpu"))
    return Step(
        real, size, chance, frozenset(due), feedback or {"pl_mean": 0.0}, torch.zeros(len(real), dtype=torch.int64)
    )


def test_both_generators_satisfy_the_protocol():
    for recipe in (MSPIE, CIPS):
        assert isinstance(tiny(recipe)[1].nets["G"], Generator)


def test_r1_term_is_gamma_over_two_times_the_squared_gradient():
    _, family = tiny(MSPIE, r1_gamma=7)
    step = make_step(due=["r1"])
    terms = family.phases[0].loss(family.nets, step)
    real = step.real.clone().requires_grad_()
    (grad,) = torch.autograd.grad(family.nets["D"](real).sum(), real)
    torch.testing.assert_close(terms["r1"], 3.5 * grad.square().sum(dim=(1, 2, 3)))
    assert "r1" not in family.phases[0].loss(family.nets, make_step())


def test_d_and_g_draw_different_latents_and_each_iteration_new_ones():
    z = [
        make_step(scope=s, nimg=n, ids=range(n, n + 6)).chance.normal("z", 8) for s, n in [("D", 0), ("G", 0), ("D", 6)]
    ]
    assert not torch.equal(z[0], z[1])
    assert not torch.equal(z[0], z[2])


def test_a_microbatch_draws_what_its_samples_would_have_drawn_in_the_whole_batch():
    whole, part = make_step(n=6).chance, make_step(n=2, ids=[2, 3]).chance
    assert torch.equal(whole.normal("z", 8)[2:4], part.normal("z", 8))
    assert whole.seeds("noise")[2:4] == part.seeds("noise")
    assert torch.equal(whole.maps("y", (3, 2))[2:4], part.maps("y", (3, 2)))


@pytest.mark.parametrize(("group", "shrink", "n"), [(3, 2, 6), (4, 2, 8), (2, 1, 4)])
def test_path_length_takes_its_share_of_each_group_at_the_drawn_size(group, shrink, n):
    base = find(MSPIE).make().family.tiny()
    config = base.replace(D=base.D.replace(mbstd_group=group), pl_batch_shrink=shrink)
    family = config.build(0)
    terms = family.phases[1].loss(family.nets, make_step(n=n, size=(48, 32), due=["pl"], scope="G"))
    taking_part = max(1, group // shrink)
    expected = [i % group < taking_part for i in range(n)]
    assert (terms["pl_length"] > 0).tolist() == expected
    assert (terms["pl"] > 0).tolist() == expected
    lengths = terms["pl_length"] * taking_part / group  # undo the weight n / participants
    torch.testing.assert_close(terms["pl"].detach(), 2 * lengths.square() * group / taking_part, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("recipe", [MSPIE, "mspie.table5_d", "mspie.table5_k"])
def test_path_length_is_that_of_images_of_the_iterations_size(recipe):
    """Against |J^T y| computed here, at each trained size and a lopsided one."""
    config, family = tiny(recipe)
    G, seen = family.nets["G"], []
    for size in (*config.sizes(), (40, 56)):
        step = make_step(size=size, due=["pl"], scope="G")
        lengths = family.phases[1].loss(family.nets, step)["pl_length"]
        chance = step.chance.of([0, 3])  # the first of each group of three
        ws = broadcast_w(G.mapping(chance.normal("pl_z", G.z_dim)), G.num_ws).contiguous()
        img = G.synthesis(ws, size, chance.seeds("pl_noise"))
        y = chance.maps("pl_y", (3, *size)) / (size[0] * size[1]) ** 0.5
        (jacobian,) = torch.autograd.grad((img * y).sum(), ws)
        expected = jacobian.square().sum(dim=2).mean(dim=1).sqrt()
        torch.testing.assert_close(lengths[[0, 3]] / 3, expected)  # weighted n / participants
        seen.append(lengths[0].item())
    assert len(set(seen)) == 4


def test_regularisers_join_the_main_step_or_take_their_own():
    def shape(**changes):
        return [(p.name, p.net, p.terms, p.every, dict(p.lazy)) for p in tiny(MSPIE, **changes)[1].phases]

    merged = [("D", "D", ("adv", "r1"), 1, {"r1": 16}), ("G", "G", ("adv", "pl"), 1, {"pl": 4})]
    assert shape() == merged
    d, g = ("D", "D", ("adv", "r1"), 1, {}), ("G", "G", ("adv",), 1, {})
    d_reg, g_reg = ("D_reg", "D", ("r1",), 16, {"r1": 16}), ("G_reg", "G", ("pl",), 4, {"pl": 4})
    assert shape(reg_step="separate") == [d, d_reg, g, g_reg]
    assert shape(reg_step="separate", r1_gamma=0) == [d, g, g_reg]
    assert shape(reg_step="separate", pl_weight=0) == [d, d_reg, g]


def test_gradients_of_separate_steps_add_up_to_that_of_the_merged_one():
    """Given the same draws: only what Adam makes of them differs."""

    def grads(reg_step, net):
        _, family = tiny(MSPIE, reg_step=reg_step)
        found = []
        for phase in family.phases:
            if phase.net == net:
                terms = phase.loss(family.nets, make_step(due=phase.due(0), scope=net))
                loss = sum(terms[t].sum() * phase.lazy.get(t, 1) for t in phase.terms if t in terms)
                params = list(family.nets[net].parameters())
                found.append(torch.autograd.grad(loss, params, allow_unused=True, materialize_grads=True))
        return found

    for net in "DG":
        (merged,), (main, own) = grads("merged", net), grads("separate", net)
        assert all(any(g.any() for g in part) for part in (main, own))
        for whole, a, b in zip(merged, main, own, strict=True):
            torch.testing.assert_close(a + b, whole, rtol=1e-3, atol=1e-4 * max(1, whole.abs().max().item()))


def test_the_mean_path_length_is_learnt_in_the_step_that_measures_it():
    learns = {
        mode: [p.name for p in tiny(MSPIE, reg_step=mode)[1].phases if p.learn] for mode in ("merged", "separate")
    }
    assert learns == {"merged": ["G"], "separate": ["G_reg"]}


def test_the_mean_path_length_moves_by_its_decay():
    _, family = tiny(MSPIE, pl_decay=0.25)
    assert family.phases[1].learn({"pl_mean": 2.0}, {"pl_length": 6.0}) == {"pl_mean": 3.0}
    assert family.phases[1].learn({"pl_mean": 2.0}, {}) == {}


def test_style_mixing_happens_with_its_probability():
    seen = {}
    for prob in (0.0, 1.0):
        config, family = tiny(MSPIE, style_mixing_prob=prob)
        seen[prob] = config._fakes(family.nets["G"], make_step())
    assert not torch.allclose(seen[0.0], seen[1.0])


def test_reals_are_resized_antialiased_or_by_aligned_corners():
    img = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    real = to_float(img)
    assert torch.equal(resize_reals(img, (64, 64)), real)
    aligned = resize_reals(img, (32, 32), "align_corners")
    torch.testing.assert_close(aligned[:, :, 0, 0], real[:, :, 0, 0])  # point sampling at corners
    torch.testing.assert_close(aligned[:, :, -1, -1], real[:, :, -1, -1])
    soft = resize_reals(img, (32, 32), "antialias")
    assert soft.std() < 0.8 * aligned.std()  # averages more than one pixel everywhere


def test_each_family_refuses_what_it_could_only_ignore():
    for changes, message in [
        ({"scale_probs": (0.5, 0.5)}, "2 entries for 3 scales"),
        ({"scale_probs": (0.5, 0.6, 0.1)}, "sum to 1"),
        ({"scales": (0, 2, 2)}, "distinct"),
    ]:
        with pytest.raises(ValueError, match=message):
            MSPIEConfig(**changes)
