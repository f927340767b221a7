"""SinGAN in training: what each stage changes and leaves alone, its losses, and a resume anywhere in it.

The real loop on one small image (or two, where the batch matters), a few iterations a stage.
"""

from collections.abc import Iterator

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline.chance import Chance
from pipeline.cost import multiply_adds, training_flop
from pipeline.families.singan import SinGANConfig, resize_whole
from pipeline.models.singan import resized
from pipeline.objectives.penalties import pixel_gradient_penalty
from pipeline.phases import Generator, Step
from pipeline.recipes import find
from pipeline.spec import Batch
from pipeline.training.checkpoint import Snapshot
from pipeline.training.engine import Engine
from pipeline.training.health import Health
from pipeline.training.loop import Outlets, Schedule, Training, train

EACH = 2  # iterations of a stage
CFG = SinGANConfig().tiny().replace(stage_kimg=EACH / 1000, decay_kimg=(EACH - 1) / 1000)
SLICES = {1: (range(1),), 2: (range(2),), (1, 1): (range(1), range(1, 2))}


class Life:
    """A run in memory: `slices` are the microbatches of an iteration."""

    def __init__(self, cfg: SinGANConfig = CFG, slices: tuple[range, ...] = SLICES[1], images: int = 1):
        self.engine, self.slices = Engine("fp32", 1), slices
        generator = torch.Generator().manual_seed(7)
        self.images = torch.randint(0, 256, (images, 3, 25, 25), dtype=torch.uint8, generator=generator)
        torch.manual_seed(0)
        self.batch_size = sum(map(len, slices))
        self.training = Training(cfg.build(0), self.engine, self.schedule())

    def schedule(self, nimg: int = 0) -> Schedule:
        every = {"status_kimg": 9.0, "sample_kimg": 9.0, "checkpoint_kimg": 9.0, "milestone_kimg": None}
        return Schedule(0, self.batch_size, nimg / 1000, **every, slices=self.slices, fingerprint="")

    def batches(self) -> Iterator[Batch]:
        nimg = self.training.nimg
        while True:
            for part in self.slices:
                img = torch.stack([self.images[(nimg + i) % len(self.images)] for i in part])
                yield Batch(img, torch.full((len(part),), -1))
            nimg += self.batch_size

    def to(self, nimg: int) -> "Life":
        """Train until so many images are consumed."""
        outlets = Outlets(lambda *a: None, lambda *a, **k: None)
        health = Health(1, self.engine.device)
        stop = {"should_stop": lambda: False, "health": health, "saver": None, "outlets": outlets}
        assert train(self.training, self.batches(), self.engine, self.schedule(nimg), **stop) == "done"
        return self

    def snapshot(self) -> Snapshot:
        found = self.training.snapshot(self.engine, "", 0.0)
        assert found is not None
        return found

    def real(self, stage: int) -> Tensor:
        return resize_whole(self.images[:1], CFG.sizes()[stage])


def tensors(snapshot: Snapshot) -> dict[str, Tensor]:
    out = {f"{net}.{k}": v for net, state in snapshot.nets.items() for k, v in state.items()}
    for net, state in snapshot.optimizers.items():
        out |= {f"{net}.{i}.{k}": torch.as_tensor(v) for i, entry in state["state"].items() for k, v in entry.items()}
    return out


def block(life: Life, net: str, k: int) -> list[Tensor]:
    return [p.detach().clone() for p in life.training.nets[net].blocks[k].parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def whole() -> Life:
    return Life().to(3 * EACH)


@pytest.mark.parametrize("at", [EACH, EACH + 1], ids=["between", "within"])
def test_a_resume_within_a_stage_and_between_two_is_bitwise_equal(whole, at):
    torch.manual_seed(1)
    resumed = Life()
    resumed.training.restore(Life().to(at).snapshot())
    resumed.to(3 * EACH)
    a, b = whole.snapshot(), resumed.snapshot()
    found, expected = tensors(b), tensors(a)
    assert found.keys() == expected.keys()
    assert [k for k in found if not torch.equal(found[k], expected[k])] == []
    assert a.state.feedback == b.state.feedback


def test_a_stage_trains_its_own_block_and_leaves_finished_ones_as_they_are():
    life, seen = Life(), {}
    for nimg in (0, EACH, 2 * EACH, 3 * EACH):
        life.to(nimg)
        seen[nimg] = {(net, k): block(life, net, k) for net in "GD" for k in range(3)}
    for net in "GD":
        for stage in range(3):
            before, after = seen[stage * EACH], seen[(stage + 1) * EACH]
            assert not same(before[net, stage], after[net, stage])
            for other in {0, 1, 2} - {stage}:
                assert same(before[net, other], after[net, other])


def test_a_stage_starts_with_the_weights_of_the_one_before_and_with_fresh_optimizers():
    life = Life().to(EACH)
    t = life.training
    assert not same(block(life, "G", 0), block(life, "G", 1))
    t.begin(life.engine, life.schedule())
    assert same(block(life, "G", 0), block(life, "G", 1))
    assert same(block(life, "D", 0), block(life, "D", 1))
    assert all(not u.state()["state"] for u in t.updates.values())
    assert (t.nets["G"].stage, t.nets["D"].stage, t.G_ema.stage, t.stage) == (1, 1, 1, 1)


def test_the_average_of_g_is_g_itself(whole):
    nets = whole.snapshot().nets
    assert nets["G"].keys() == nets["G_ema"].keys()
    assert all(torch.equal(v, nets["G_ema"][k]) for k, v in nets["G"].items())
    assert int(nets["G_ema"]["reached"]) == 2


def test_a_stages_amplitude_is_a_tenth_of_the_error_of_the_finished_stage_before_it(whole):
    G = whole.training.nets["G"]
    amplitudes = G.amplitudes.tolist()
    assert amplitudes[0] == 1
    with torch.no_grad():
        img = G.z_star.new_zeros(1, 3, *G.sizes[0])
        for k in (1, 2):  # z* at the first stage, no noise beyond
            noise = G.z_star if k == 1 else torch.zeros(1)
            img = img + torch.tanh(G.blocks[k - 1](torch.nn.functional.pad(noise + img if k == 1 else img, [5] * 4)))
            img = resized(img, G.sizes[k])
            mse = (img - whole.real(k)).square().mean()
            assert amplitudes[k] == pytest.approx(0.1 * mse.sqrt().item(), rel=1e-5)
            assert whole.training.feedback[f"rec_mse_{k}"] == pytest.approx(mse.item(), rel=1e-5)


def test_an_amplitude_is_of_the_whole_batch_however_it_is_cut():
    """Two images that differ; both ranks of two would take the same mean."""
    together, apart = (Life(slices=SLICES[cut], images=2).to(EACH + 3) for cut in (2, (1, 1)))
    a, b = (life.training.feedback["rec_mse_1"] for life in (together, apart))
    assert a == pytest.approx(b, rel=1e-3)
    single = [(together.training.nets["G"].amplitudes[1] / 0.1).square().item()]
    assert single == pytest.approx([a], rel=1e-5)


def test_the_rate_falls_to_a_tenth_late_in_every_stage():
    family = SinGANConfig().build(0)
    lrs = [family.knobs(nimg).lr["G"] for nimg in (0, 1599, 1600, 1999, 2000, 3599, 3600, 10**6)]
    high, low = pytest.approx(5e-4), pytest.approx(5e-5)
    assert lrs == [high, high, low, low, high, high, low, low]
    assert [family.knobs(n).size for n in (1999, 2000, 10**6)] == [family.sizes[0], family.sizes[1], family.sizes[-1]]


def step_at(life: Life, stage: int, n: int = 2, phase: str = "D2", feedback: float = 0.04) -> tuple[dict, Step]:
    for net in life.training.nets.values():
        net.at(stage)
    real = life.real(stage).expand(n, -1, -1, -1)
    chance = Chance(0, phase, 0, tuple(range(n)), torch.device("cpu"))
    known = {f"rec_mse_{k}": feedback for k in (1, 2)}
    return life.training.nets, Step(
        real, CFG.sizes()[stage], chance, frozenset(), known, torch.zeros(len(real), dtype=torch.int64)
    )


@pytest.mark.parametrize("stage", [0, 2])
def test_losses_are_the_critics_means_over_patches_penalty_and_reconstruction(stage):
    life = Life(CFG.replace(gp_weight=0.3, rec_weight=7))
    family = life.training.family
    nets, step = step_at(life, stage)
    nets["G"].amplitudes[1:] = 0.1 * 0.2
    of_d = next(p for p in family.phases if p.name == "D2").loss(nets, step)
    fake = nets["G"].synthesis(torch.zeros(2, 1, 1), step.size, step.chance.seeds("noise"))
    patches = nets["D"](fake)
    assert patches.shape == (2, 1, step.size[0] - 10, step.size[1] - 10)
    expected = patches.mean(dim=(1, 2, 3)) - nets["D"](step.real).mean(dim=(1, 2, 3))
    torch.testing.assert_close(of_d["adv"], expected)
    share = torch.special.ndtr(step.chance.normal("between", 1)).reshape(2, 1, 1, 1)
    x = (share * step.real + (1 - share) * fake).detach().requires_grad_()
    torch.testing.assert_close(of_d["gp"], 0.3 * pixel_gradient_penalty(nets["D"](x), x), rtol=1e-4, atol=1e-6)
    of_g = next(p for p in family.phases if p.name == "G").loss(nets, step)
    torch.testing.assert_close(of_g["adv"], -patches.mean(dim=(1, 2, 3)))
    rec = nets["G"].synthesis(torch.zeros(2, 1, 1), step.size, None)
    torch.testing.assert_close(of_g["rec"], 7 * (rec - step.real).square().mean(dim=(1, 2, 3)))


def test_the_penalty_takes_the_norm_over_channels_of_each_pixel():
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    weight = torch.randn(3)
    logits = torch.einsum("nchw,c->nhw", x.square() / 2, weight)[:, None]
    expected = ((x.detach() * weight[:, None, None]).square().sum(dim=1).sqrt() - 1).square().mean(dim=(1, 2))
    penalty = pixel_gradient_penalty(logits, x)
    torch.testing.assert_close(penalty, expected)
    penalty.sum().backward()
    assert x.grad is not None


def test_every_update_draws_a_fake_of_its_own():
    assert [p.name for p in CFG.build(0).phases] == ["D", "D2", "D3", "G", "G2", "G3"]
    life = Life()
    fakes = []
    for phase in ("D", "D2"):
        nets, step = step_at(life, 0, phase=phase)
        fakes.append(nets["G"].synthesis(torch.zeros(2, 1, 1), step.size, step.chance.seeds("noise")))
    assert not torch.equal(*fakes)
    assert not torch.equal(fakes[0][0], fakes[0][1])


OTHERS = {
    "stage_kimg": 0.003,
    "decay_kimg": 0.0015,
    "lr": 0.01,
    "lr_decay": 0.5,
    "beta1": 0.9,
    "beta2": 0.9,
    "eps": 0.1,
    "D_updates": 1,
    "G_updates": 1,
    "gp_weight": 0,
    "rec_weight": 0,
    "noise_scale": 0.5,
    "D": {"norm": "none", "channels": 4},
}


def test_every_value_changes_what_is_trained():
    """Those of G are seen in its images (tests/models/test_singan.py)."""
    assert set(OTHERS) == set(SinGANConfig.model_fields) - {"kind", "G"}
    expected = Life().to(EACH + 1).training.nets["G"].state_dict()
    for name, value in OTHERS.items():
        cfg = SinGANConfig.model_validate({**CFG.model_dump(), name: value})
        found = Life(cfg).to(EACH + 1).training.nets["G"].state_dict()
        assert any(not torch.equal(value, expected[k]) for k, value in found.items()), name


def test_stored_squares_come_back_in_the_true_aspect():
    ramp = torch.linspace(0, 255, 60)[None, :].expand(40, 60)  # over the width
    square = torch.nn.functional.interpolate(ramp[None, None], (60, 60))[0].expand(1, 3, 60, 60).to(torch.uint8)
    real = resize_whole(square, (20, 30))
    assert real.shape == (1, 3, 20, 30)
    assert real.abs().max() <= 1
    torch.testing.assert_close(real[0, 0, 10], real[0, 0, 3])
    assert (real[0, 0, 10].diff() > 0).all()
    edge = torch.zeros(1, 3, 60, 60, dtype=torch.uint8)
    edge[..., 30:] = 255
    assert resize_whole(edge, (25, 25)).abs().max() <= 1  # bicubic overshoots


def test_the_shares_of_stages_follow_the_length_of_the_run():
    assert CFG.size_probs() == pytest.approx((1 / 3,) * 3)
    each = CFG.stage_kimg
    assert CFG.size_probs(1.5 * each) == pytest.approx((2 / 3, 1 / 3, 0))
    assert CFG.size_probs(6 * each) == pytest.approx((1 / 6, 1 / 6, 4 / 6))
    macs = multiply_adds(CFG, "G")
    assert list(macs) == list(CFG.sizes())
    at_first = 9 * 4 * (3 + 3 * 4 + 3)  # multiply-adds of a block, of one pixel, if no convolution lost a border
    assert at_first * 12 * 18 < macs[12, 18] < at_first * 22 * 28
    assert training_flop(CFG) > 0


def test_a_rate_that_never_falls_is_refused():
    with pytest.raises(ValidationError, match=r"decay_kimg=2\.0 is not reached in a stage"):
        SinGANConfig(decay_kimg=2.0)


def test_g_is_what_sampling_needs_and_a_recipe_is_trained_to_its_last_stage():
    assert isinstance(CFG.G.build(), Generator)
    run = find("mspie.singan_spe16").make()
    assert (len(run.family.sizes()), run.total_kimg, run.data.size_px, run.data.mirror) == (12, 24, 500, False)
