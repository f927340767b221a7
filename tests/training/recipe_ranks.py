"""Every recipe through the real loop, for test_every_recipe.py: what its pair of processes executes.

Each recipe, made small, trains three iterations on two ranks, and again on one rank with a checkpoint on disk and new
objects after the second; then its G_ema draws a size it never saw. Each process writes down what it saw:
`WORLD_SIZE=2 MASTER_ADDR=... MASTER_PORT=... python tests/training/recipe_ranks.py OUT`.
"""

import hashlib
import json
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

if __name__ == "__main__":
    warnings.simplefilter("error")

from pipeline.attempt import schedule_of
from pipeline.chance import key
from pipeline.phases import Generator
from pipeline.plan import ExecConfig, RunConfig, override_all
from pipeline.recipes import recipes
from pipeline.spec import Batch, UserError
from pipeline.synthesis.sample import generate
from pipeline.training import checkpoint
from pipeline.training.engine import Engine
from pipeline.training.health import Health
from pipeline.training.loop import Outlets, Training, train
from tests.forked_ranks import fork_ranks
from tests.training.zero_ranks import _image, alone

ITERATIONS, RESUMED_AT = 3, 2


MORE = {  # ways to train that are in no recipe
    "cips, D with coordinates": ("cips.table1_ffhq", ["family.D.coords=true"]),
    "cips, patches, D with coordinates": ("cips.table5_ffhq_64", ["family.D.coords=true"]),
    "cips, without noise": ("cips.table3_main", ["family.G.noise=false"]),
    "mspie, regularisers by themselves": ("mspie.table5_f", ["family.reg_step=separate"]),
}
CASES = [*recipes(), *MORE]


def small(name: str) -> RunConfig:
    """The case with what two ranks of one group need, and few weights; the first seed that visits two sizes."""
    recipe, sets = MORE.get(name, (name, []))
    run, _ = override_all(recipes()[recipe].make().tiny(), ExecConfig(), sets)
    narrow = {"channel_max": 8, "z_dim": 8, "w_dim": 8, "mapping_layers": 1, "width": 8}
    if run.family.kind == "mspie":
        narrow |= {"num_upblocks": 2, "resolution_px": 16}
    nets: dict[str, Any] = {}
    for net in ("G", "D"):
        config: Any = getattr(run.family, net, None)
        if config is not None:
            fields = {k: v for k, v in narrow.items() if k in type(config).model_fields}
            nets[net] = config.replace(**fields)
    run = run.replace(family=run.family.replace(**nets), batch_size=2 * run.family.group)
    if run.family.staged() or len(run.family.sizes()) == 1:
        return run
    sizes = {
        seed: {run.family.build(seed).knobs(i * run.batch_size).size for i in range(ITERATIONS)} for seed in range(5)
    }
    return run.replace(seed=next(seed for seed, seen in sizes.items() if len(seen) > 1))


class Life:
    """A recipe in training; what it was trained at."""

    def __init__(self, run: RunConfig, engine: Engine):
        self.run, self.engine, self.sizes = run, engine, set()
        self.schedule = replace(
            schedule_of(run, ExecConfig(gpus=engine.world), engine.rank), total_kimg=1e9, sample_kimg=1e9
        )
        torch.manual_seed(key(run.seed, "init") >> 65)
        self.training = Training(run.family.build(run.seed), engine, self.schedule)

    def images(self) -> Iterator[Batch]:
        """Random ones, each a function of its number."""
        t, nimg = self.training, self.training.nimg
        while True:
            factor = t.family.stages.factors[t.family.stages.of(nimg)] if t.family.stages else 1
            self.sizes.add(t.family.knobs(nimg).size)
            for part in self.schedule.slices_of(factor):
                img = torch.stack([self._stored(nimg + i) for i in part])
                classes = self.run.family.num_classes()
                yield Batch(img, torch.tensor([(nimg + i) % classes if classes else -1 for i in part]))
            nimg += factor * self.schedule.batch_size

    def _stored(self, k: int) -> torch.Tensor:
        squares = [_image(k + i * 10**6, self.run.data.size_px) for i in range(self.run.family.planes)]
        return torch.cat(squares, dim=1)

    def go_on(self, iterations: int) -> None:
        """The real loop; stages are passed until as many iterations of the second one are done."""
        t, began = self.training, 0

        def enough() -> bool:
            nonlocal began
            began += 1  # asked once before each iteration
            return began > iterations

        outcome = train(
            t,
            self.images(),
            self.engine,
            self.schedule,
            should_stop=enough,
            health=Health(1, self.engine.device),
            saver=None,
            outlets=Outlets(lambda *a: None, lambda *a, **k: None),
        )
        assert outcome == "stopped"

    def digest(self) -> str:
        """Of every tensor that a checkpoint holds, on rank 0."""
        snapshot = self.training.snapshot(self.engine, self.schedule.fingerprint, 0.0)
        if snapshot is None:
            return ""
        out = hashlib.sha256(repr((snapshot.state.nimg, snapshot.state.feedback)).encode())
        for part in (snapshot.nets, snapshot.optimizers):
            for k, v in _flat(part, ""):
                out.update(k.encode() + (v.numpy().tobytes() if isinstance(v, torch.Tensor) else repr(v).encode()))
        return out.hexdigest()


def _flat(tree: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict | list):
        for k, v in sorted(tree.items(), key=lambda kv: str(kv[0])) if isinstance(tree, dict) else enumerate(tree):
            yield from _flat(v, f"{prefix}.{k}")
    else:
        yield prefix, tree


def iterations_of(run: RunConfig) -> tuple[int, int]:
    """How many, and after how many it is resumed: at a change of stage, where there is one."""
    family = run.family.build(run.seed)
    if not family.stages:
        return ITERATIONS, RESUMED_AT
    first = family.stages.first(1, run.batch_size) // (family.stages.factors[0] * run.batch_size)
    return first + 2, first


def unseen(run: RunConfig, G: Any) -> tuple[int, int]:
    """The smallest size, wider than high, that G makes and was not trained at."""
    for h in range(4, 200):
        for w in range(h + 1, 2 * h + 8):
            try:
                G.check_size((h, w))
            except UserError:
                continue
            if (h, w) not in run.family.sizes() and h >= min(min(s) for s in run.family.sizes()) // 2:
                return h, w
    raise AssertionError("no size below 200 px")


def different() -> dict[str, RunConfig]:
    """Small recipes but those that differ from an earlier one in their images and length alone; see `same_as`."""
    return {name: small(name) for name, first in same_as().items() if name == first}


def same_as() -> dict[str, str]:
    """Case -> the first of those that are trained alike."""
    alike: dict[str, str] = {}
    return {name: alike.setdefault(small(name).replace(recipe="any").to_json(), name) for name in CASES}


def main(out: Path) -> None:
    seen: dict[str, Any] = {}
    pair = Engine("fp32", 2)
    runs = different()
    for name, run in runs.items():
        straight = Life(run, pair)
        straight.go_on(iterations_of(run)[0])
        seen[name] = {"two ranks": straight.digest(), "sizes": sorted(straight.sizes)}
    rank = pair.rank
    pair.close(failed=False)
    with alone():
        engine = Engine("fp32", 1)
        for name, run in list(runs.items())[rank::2]:
            (n, half), life = iterations_of(run), Life(run, engine)
            life.go_on(half)
            snapshot = life.training.snapshot(engine, life.schedule.fingerprint, 0.0)
            assert snapshot is not None
            folder = checkpoint.save(out / name, snapshot)
            resumed = Life(run, engine)
            resumed.training.restore(checkpoint.load(folder, resumed.schedule.fingerprint))
            resumed.go_on(n - half)
            seen[name] |= {"one rank, resumed": resumed.digest()}
            G = resumed.training.G_ema
            if not isinstance(G, Generator):
                continue
            size = unseen(run, G)
            picture = generate(G, [0, 1], size)
            seen[name] |= {"unseen": size, "drawn": list(picture.shape), "contrast": float(picture[0].std())}
        engine.close(failed=False)
    (out / f"seen_{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    sys.exit(fork_ranks(2, lambda: main(Path(sys.argv[1]))))
