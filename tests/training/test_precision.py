"""precision=fp16 and bf16: what penalties lose, a scaler that survives a checkpoint, whole runs on the CPU.

Errors are relative, against float32, of one tiny network with its weights as drawn.
"""

import json

import pytest
import torch

from pipeline.chance import Chance
from pipeline.errors import WorkError
from pipeline.families import logistic
from pipeline.objectives.penalties import r1
from pipeline.phases import AdamSpec, Step
from pipeline.plan import ExecConfig, override_all
from pipeline.recipes import find
from pipeline.run import newest_checkpoint, train_folder
from pipeline.tracking import jsonl
from pipeline.training.engine import AUTOCAST, Engine
from pipeline.training.engine_replicated import Replicated
from tests.runs import CIPS, FEW_PIXELS, MSPIE, SMALL, assert_bitwise_equal, final_state
from tests.training.zero_ranks import of_toy

SIZE = (32, 32)


@pytest.fixture
def family():
    narrow = ["family.G.channel_max=16", "family.D.channel_max=16"]
    return override_all(find(MSPIE).make().tiny(), ExecConfig(), narrow)[0].family.build(0)


def autocast(precision: str):
    return torch.autocast("cpu", AUTOCAST.get(precision), enabled=precision in AUTOCAST)


def off(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def term(family, net: str, name: str, precision: str, real=None) -> tuple[torch.Tensor, torch.Tensor]:
    """A penalty as its phase computes it, and the gradients of its mean in the network behind the mapping."""
    n = 3
    phase = next(p for p in family.phases if p.net == net)
    real = torch.zeros(n, 3, *SIZE) if real is None else real
    step = Step(
        real,
        SIZE,
        Chance(0, net, 0, tuple(range(n)), real.device),
        frozenset([name]),
        {"pl_mean": 0.0},
        torch.zeros(n, dtype=torch.int64),
    )
    with autocast(precision):
        value = phase.loss(family.nets, step)[name]
    params = [p for key, p in family.nets[net].named_parameters() if "mapping" not in key]
    grads = torch.autograd.grad(1024 * value.mean(), params, allow_unused=True, materialize_grads=True)
    return value.detach(), torch.cat([g.flatten() for g in grads]) / 1024  # as a loss scaler would


@pytest.mark.parametrize("slope", [1.0, 1e-3])
def test_r1_under_fp16_is_float32s_however_flat_d_is(family, slope):
    """Plain float16 underflows in a flat D: R1's own gradient comes before any loss scaler. bf16 has the range."""
    D, real = family.nets["D"], torch.rand(3, 3, *SIZE) * 2 - 1
    with torch.no_grad():
        D.fc1.weight *= slope
    (exact, grad), (half, half_grad), (brain, brain_grad) = (
        term(family, "D", "r1", p, real) for p in ("fp32", "fp16", "bf16")
    )
    assert off(half, exact) == 0
    assert off(half_grad, grad) == 0
    assert 0 < off(brain, exact) < 0.05
    assert 0 < off(brain_grad, grad) < 0.1
    with autocast("fp16"):
        x = real.clone().requires_grad_()
        plain = 10 * r1(D(x), x)
    assert off(plain, exact) < 0.01 if slope == 1 else off(plain, exact) > 0.05


def test_path_length_keeps_float16_within_rounding(family):
    (exact, grad), (half, half_grad), (brain, brain_grad) = (
        term(family, "G", "pl", p) for p in ("fp32", "fp16", "bf16")
    )
    assert 0 < off(half, exact) < 0.01
    assert 0 < off(half_grad, grad) < 0.05
    assert off(half, exact) < off(brain, exact) < 0.05
    assert off(half_grad, grad) < off(brain_grad, grad) < 0.2


@pytest.mark.parametrize("slope", [1.0, 1e-3])
def test_wgan_gp_keeps_reduced_precision_within_rounding_however_flat_d_is(engine, slope):
    """Of the toy that stands in for it, as no family here has this penalty: plain layers differentiated twice."""
    torch.manual_seed(0)
    toy = of_toy(engine, 1).build()
    with torch.no_grad():
        toy.nets["D"].get_submodule("fc").get_parameter("weight").mul_(slope)
    step = Step(
        torch.rand(16, 3, 8, 8),
        (8, 8),
        Chance(0, "D", 0, tuple(range(16)), engine.device),
        frozenset(),
        {},
        torch.zeros(16, dtype=torch.int64),
    )
    (exact, grad), *reduced = (gp_of(toy, step, precision) for precision in ("fp32", "bf16", "fp16"))
    for value, value_grad in reduced:
        assert 0 < off(value, exact) < 0.01
        assert 0 < off(value_grad, grad) < 0.01


def gp_of(toy, step: Step, precision: str) -> tuple[torch.Tensor, torch.Tensor]:
    with autocast(precision):
        value = toy.phases[0].loss(toy.nets, step)["gp"]
    params = list(toy.nets["D"].parameters())
    grads = torch.autograd.grad(1024 * value.mean(), params, allow_unused=True, materialize_grads=True)
    return value.detach(), torch.cat([g.flatten() for g in grads])


@pytest.mark.parametrize("recipe", [MSPIE, CIPS])
def test_an_fp16_run_stopped_and_resumed_is_bitwise_equal_to_one_that_was_not(runner, recipe):
    """Ten iterations, a checkpoint, ten more: scalers too, whose count of good iterations goes on."""
    total = 20 * int(SMALL[recipe][-1].partition("=")[2])
    sets = (*FEW_PIXELS[recipe], f"total_kimg={total / 1000}", "precision=fp16", "exec.checkpoint_kimg=100")
    straight, stopped = runner(recipe).train_here(*sets), runner(recipe)
    folder, calls = stopped.plan(*sets), iter(range(100))
    assert train_folder(folder, should_stop=lambda: next(calls) > 10) == "stopped"
    assert 0 < int(newest_checkpoint(folder).name) < total
    stopped.train_here(*sets)
    assert_bitwise_equal(final_state(straight), final_state(folder))
    states = [json.loads((newest_checkpoint(f) / "state.json").read_text())["scalers"] for f in (straight, folder)]
    assert states[0] == states[1]
    assert all(scaler["_growth_tracker"] > 0 for scaler in states[0].values())
    assert all(value.isfinite().all() for value in final_state(folder).values())


@pytest.fixture
def engine():
    engine = Engine("fp16", 1)
    yield engine
    engine.close(failed=False)


def fresh(engine: Engine) -> tuple[torch.nn.Module, Replicated]:
    net = torch.nn.Linear(4, 1)
    return net, Replicated(engine, net, AdamSpec((0.0, 0.99), 1e-8))


def one_step(net, update: Replicated, factor: float = 1.0) -> bool:
    update.begin(0.01)
    update.backward(net(torch.ones(2, 4)).sum() * factor)
    return bool(update.step())


def test_an_overflow_moves_no_weight_halves_the_scale_and_is_no_worry_until_the_scale_is_below_one(engine):
    net, update = fresh(engine)
    assert one_step(net, update)
    before = [p.detach().clone() for p in net.parameters()]
    assert one_step(net, update, 1e38)  # times 65536
    assert all(map(torch.equal, before, net.parameters()))
    assert update.scaler()["scale"] == 32768
    told = [one_step(net, update, float("inf")) for _ in range(18)]
    assert told == [True] * 16 + [False] * 2  # 32768 ... 1, 1/2, 1/4
    assert all(map(torch.equal, before, net.parameters()))
    assert one_step(net, update)
    assert not any(map(torch.equal, before, net.parameters()))


def test_a_run_that_overflows_goes_on_and_one_whose_loss_is_not_a_number_ends_at_its_limit(runner, monkeypatch):
    """A limit of one. D's loss is multiplied (a fake): by so much that scaled gradients overflow, then by NaN."""
    real, sets = (
        logistic.logistic_d,
        (*FEW_PIXELS[CIPS], "total_kimg=0.08", "precision=fp16", "exec.not_finite_limit=1"),
    )
    monkeypatch.setattr(logistic, "logistic_d", lambda *logits: 1e5 * real(*logits))
    folder = runner(CIPS).train_here(*sets)
    scalers = json.loads((newest_checkpoint(folder) / "state.json").read_text())["scalers"]
    assert scalers["D"]["scale"] <= 65536 / 4
    monkeypatch.setattr(logistic, "logistic_d", lambda *logits: float("nan") * real(*logits))
    with pytest.raises(WorkError, match="not finite in 1 iterations up to image 16;"):
        runner(CIPS).train_here(*sets)


def test_a_scaler_comes_back_from_a_checkpoint_and_goes_on_alike(engine):
    (net, update), (other, restored) = fresh(engine), fresh(engine)
    for factor in (1.0, float("inf"), 1.0, 1.0):
        one_step(net, update, factor)
    told = json.loads(json.dumps(update.scaler()))
    assert (told["scale"], told["_growth_tracker"]) == (32768, 2)
    restored.load(update.weights(), update.state(), told)
    for factor in (1.0, float("inf"), 1.0):
        one_step(net, update, factor)
        one_step(other, restored, factor)
    assert restored.scaler() == update.scaler()
    assert all(map(torch.equal, net.parameters(), other.parameters()))


def test_other_precisions_have_no_scaler():
    engine = Engine("bf16", 1)
    assert fresh(engine)[1].scaler() == {}
    engine.close(failed=False)


def test_losses_of_a_run_in_reduced_precision_stay_near_those_of_float32(runner):
    """Ten iterations of MS-PIE, the mean of each window of metrics; and not one that equals float32's."""

    def losses(precision: str) -> torch.Tensor:
        folder = runner(MSPIE).train_here(*FEW_PIXELS[MSPIE], "total_kimg=0.12", f"precision={precision}")
        return torch.tensor([m["metrics"]["Loss/D/adv"] for m in jsonl.metrics(folder / "metrics.jsonl")])

    exact = losses("fp32")
    for precision in ("bf16", "fp16"):
        reduced = losses(precision)
        torch.testing.assert_close(reduced, exact, rtol=0.05, atol=0.02)
        assert not torch.equal(reduced, exact)


def test_a_run_with_fp16_blocks_stays_near_one_in_float32(runner):
    blocks = ("family.G.fp16_blocks=1", "family.D.fp16_blocks=1")
    a, b = (
        final_state(runner(MSPIE).train_here(*FEW_PIXELS[MSPIE], "total_kimg=0.06", *sets)) for sets in ((), blocks)
    )
    weights = [name for name in a if name.startswith(("G.", "D.")) and "mapping" not in name]
    assert a.keys() == b.keys()
    assert any(not torch.equal(a[name], b[name]) for name in weights)
    assert {b[name].dtype for name in b} == {torch.float32}
    away = torch.cat([(a[name] - b[name]).flatten() for name in weights]).norm()
    assert away < 0.02 * torch.cat([a[name].flatten() for name in weights]).norm()
