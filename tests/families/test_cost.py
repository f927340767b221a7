"""The stated cost of training against operations counted while a tiny network really trains (CPU)."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from pipeline.attempt import schedule_of
from pipeline.cost import training_flop
from pipeline.plan import ExecConfig
from pipeline.recipes import find
from pipeline.spec import Batch
from pipeline.training.engine import Engine
from pipeline.training.loop import Training
from pipeline.training.runner import run_phase, to_device


class Count(TorchDispatchMode):
    """Operations of matrix products and convolutions but the blurs; torch's own mode cannot see double backward."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            weight = next((a for a in args if isinstance(a, torch.Tensor) and a.shape[1:] == (1, 4, 4)), None)
            if weight is None:
                self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def only_at(config, size):
    """The family trained at one of its sizes."""
    if len(config.sizes()) == 1:
        return config
    return config.replace(scale_probs=tuple(float(size == one) for one in config.sizes()))


FEW_PIXELS = ("mspie.table5_e", "mspie.table5_a", "mspie.table5_k")  # other blocks and steps than row f's


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("mspie.table5_f", {}),
        ("mspie.table5_e", {"reg_step": "separate"}),
        ("mspie.table5_a", {}),
        ("mspie.table5_k", {}),
        ("cips.table3_main", {}),
        ("cips.table5_ffhq_64", {}),
    ],
)
def test_the_stated_training_cost_is_what_sixteen_iterations_spend(recipe, changes):
    """Sixteen iterations see R1 once and path length four times."""
    run = find(recipe).make().tiny()
    config = run.family.replace(**changes)
    if recipe in FEW_PIXELS:
        G, D = config.G.replace(num_upblocks=2), config.D.replace(resolution_px=16)
        config = config.replace(G=G, D=D)
    n, family = 2 * config.group, config.build(0)
    engine = Engine("fp32", 1)
    stated = {size: training_flop(only_at(config, size)) for size in config.sizes()}
    training, spent, expected = Training(family, engine, schedule_of(run, ExecConfig(), 0)), 0, 0.0
    for nimg in range(0, 16 * n, n):
        knobs = family.knobs(nimg)
        batch = Batch(torch.randint(0, 256, (n, 3, 64, 64), dtype=torch.uint8), torch.zeros(n, dtype=torch.int64))
        micro = to_device(family, batch, range(nimg, nimg + n), knobs.size, engine.device)
        with Count() as count:
            for phase in family.phases:
                if nimg // n % phase.every:
                    continue
                run_phase(
                    phase,
                    training.nets,
                    training.updates[phase.net],
                    [micro],
                    knobs=knobs,
                    seed=0,
                    nimg=nimg,
                    batch_size=n,
                    feedback={"pl_mean": 0.0},
                    engine=engine,
                    stats=training.stats,
                )
        spent += count.total
        expected += n * stated[knobs.size]
    engine.close(failed=False)
    assert spent == pytest.approx(expected, rel=0.05)
