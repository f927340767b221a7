"""One network's gradients and Adam sharded over ranks by DeepSpeed: ZeRO-1, ZeRO-2, and ZeRO-3 for its weights too.

The network stays a plain module: losses are computed by it and never by DeepSpeed's engine, whose hooks on outputs
take the `autograd.grad` inside R1 or path length for the start of the real backward pass. What engine.forward would
have done besides is done here. Weights and Adam are float32; the precision of forward passes is not DeepSpeed's
affair. Where several ways exist, the one is taken that needs least of DeepSpeed's inside. Knows no loss.
"""

import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.phases import AdamSpec
from pipeline.training.ds_config import full_ds_config, is_told
from pipeline.training.engine import Engine
from pipeline.training.engine_replicated import GradientTree, on_cpu

MOMENTS = ("exp_avg", "exp_avg_sq")


class Sharded:
    """The Update of a network under ZeRO. fp16: a loss scaler of its own, as torch.amp.GradScaler moves it."""

    def __init__(
        self,
        engine: Engine,
        net: nn.Module,
        adam: AdamSpec,
        stage: int,
        ds_config: Mapping[str, Any],
        microbatches: int,
        batch_size: int,
    ):
        self._engine, self._net, self._stage, self._microbatches = engine, net, stage, microbatches
        net.requires_grad_(True)  # DeepSpeed leaves out what is frozen when it starts
        self._params: list[Any] = list(net.parameters())  # Any: DeepSpeed hangs its own attributes on them
        self._adam = torch.optim.Adam(self._params, lr=0.0, betas=adam.betas, eps=adam.eps)
        self._layout = deepcopy(self._adam.state_dict()["param_groups"])  # before DeepSpeed makes the parameters flat
        numel = sum(p.numel() for p in self._params)
        words = full_ds_config(ds_config, stage, microbatches, batch_size, engine.world, numel)
        self._ds, self._zero = _start(engine, net, self._adam, words)
        if stage == 3:
            _fetch_as_read(net, self._zero)
        self._scale = Scale() if engine.precision == "fp16" else None
        self._taken = 0

    def begin(self, lr: float) -> None:
        self._adam.param_groups[0]["lr"] = lr
        self._taken = 0
        self._zero.zero_grad(set_to_none=True)
        if self._stage == 3:  # it keeps the last gradient of a parameter that gets none
            self._zero.grad_partitions_flat_buffer.zero_()
        if self._stage == 1:
            self._tree = GradientTree(self._net)
        if self._scale:
            # the loss is multiplied by the number of ranks, too, which must not use up float16's range
            self._zero.override_loss_scale(self._scale.value / self._engine.world)

    def backward(self, loss: Tensor) -> None:
        """DeepSpeed averages over ranks, so the loss is multiplied by their number.

        ZeRO-1 shards no gradient: its microbatches are added as in Replicated, and give the same bits.
        """
        self._taken += 1
        last = self._taken == self._microbatches
        self._ds.set_gradient_accumulation_boundary(last)
        if self._stage == 1:
            self._zero.scale_if_loss(loss * self._engine.world).backward()
            self._tree.take()
            return
        self._zero.clear_backward_seen_flag()  # without this ZeRO-3 forgets all microbatches but the last
        with self._engine.progress.waiting("gradients of all ranks"):
            self._ds.backward(loss * self._engine.world, scale_wrt_gas=False)

    def step(self) -> Tensor:
        """As in Replicated: a sum that is not finite counts as zero, and fp16 skips the step."""
        finite = torch.ones((), dtype=torch.bool, device=self._engine.device)
        with self._engine.progress.waiting("gradients of all ranks"):
            if self._stage == 1:
                self._tree.give(self._tree.total())
                self._ds.allreduce_gradients()
            if not self._scale:
                finite = self._without_not_finite()
            self._ds.step()
        skipped = bool(self._zero.overflow)
        if self._scale:
            finite = finite & (not skipped or self._scale.value >= 1)
            self._scale.update(skipped)
            return finite
        return finite & (not skipped)

    def _without_not_finite(self) -> Tensor:
        """Zero this rank's part of the gradients if anyone's holds a value that is not finite."""
        parts = [part for group in self._zero.averaged_gradients.values() for part in group]
        bad = (~torch.stack([part.sum() for part in parts]).isfinite()).any().float().reshape(1)
        self._engine.all_reduce(bad)
        for part in parts:
            part.masked_fill_(bad[0] > 0, 0)
        return bad[0] == 0

    def whole(self) -> AbstractContextManager[Any]:
        if self._stage < 3:
            return nullcontext()
        away = [p for p in self._params if p.ds_status.name == "NOT_AVAILABLE"]
        return _deepspeed().zero.GatheredParameters(away)

    def weights(self) -> dict[str, Tensor]:
        with self.whole():
            return on_cpu(self._net.state_dict()) if self._engine.is_main else {}

    def state(self) -> dict[str, Any]:
        from deepspeed.utils import safe_get_full_optimizer_state

        groups = [{**group, "lr": self._adam.param_groups[0]["lr"]} for group in self._layout]
        whole: dict[int, dict[str, Tensor]] = {}
        shards = list(self._adam.state.values())
        if shards:
            self._net.requires_grad_(True)  # DeepSpeed hands out nothing of frozen parameters
            for i, p in enumerate(self._params):
                whole[i] = {"step": shards[0]["step"].detach().cpu().clone()}
                for name in MOMENTS:
                    moment = safe_get_full_optimizer_state(p, name)
                    if self._engine.is_main:
                        whole[i][name] = on_cpu(moment)
        return {"state": whole, "param_groups": groups} if self._engine.is_main else {}

    def load(self, weights: dict[str, Tensor], state: dict[str, Any], scaler: dict[str, float]) -> None:
        self._net.requires_grad_(True)
        if self._stage == 3:
            self._params[0].all_gather(self._params)
        self._net.load_state_dict(weights)
        if self._stage == 3:
            self._params[0].partition(self._params, has_been_updated=True)
        self._zero.refresh_fp32_params()
        group = {k: v for k, v in state["param_groups"][0].items() if k != "params"}
        self._adam.param_groups[0].update(group)
        self._layout = [{**layout, **group} for layout in self._layout]
        self._load_moments(state["state"])
        if self._scale and scaler:
            self._scale.load(scaler)

    def _load_moments(self, saved: Mapping[int, Mapping[str, Tensor]]) -> None:
        self._adam.state.clear()
        if self._stage < 3:
            self._zero._hp_optimizer_states_linked = False
        if not saved:
            return
        for shard in self._shards():
            zeros = {name: torch.zeros_like(shard) for name in MOMENTS}
            self._adam.state[shard] = {"step": saved[0]["step"].clone(), **zeros}
        if self._stage < 3:
            self._zero._lazy_init_hp_params_optimizer_state()
        for i, p in enumerate(self._params):
            for name in MOMENTS:
                self._set_moment(p, saved[i][name].to(self._engine.device), name)

    def _shards(self) -> list[Tensor]:
        """The flat parameters that this rank's Adam steps."""
        return self._zero.fp32_partitioned_groups_flat if self._stage == 3 else self._adam.param_groups[0]["params"]

    def _set_moment(self, p: Any, value: Tensor, name: str) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if self._stage < 3:
            safe_set_full_optimizer_state(p, value, name)
            return
        part = p.ds_tensor.numel()
        padded = value.new_zeros(part * self._engine.world)
        padded[: value.numel()] = value.flatten()
        safe_set_local_optimizer_state(p, padded[self._engine.rank * part :][:part], name)

    def scaler(self) -> dict[str, float]:
        return self._scale.state() if self._scale else {}


class Scale:
    """The loss scale by the rule, and with the state, of torch.amp.GradScaler at its defaults."""

    def __init__(self) -> None:
        self.value, self._good = 65536.0, 0

    def update(self, overflow: bool) -> None:
        """Halve after an overflow, double after 2000 steps in a row without one."""
        self._good = 0 if overflow else self._good + 1
        if overflow:
            self.value /= 2
        elif self._good == 2000:
            self.value, self._good = self.value * 2, 0

    def state(self) -> dict[str, float]:
        rule = {"growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000.0}
        return {"scale": self.value, **rule, "_growth_tracker": float(self._good)}

    def load(self, state: Mapping[str, float]) -> None:
        self.value, self._good = state["scale"], int(state["_growth_tracker"])


def _fetch_as_read(net: nn.Module, zero: Any) -> None:
    """ZeRO-3 of a network whose methods are called, and not only its modules."""
    # prefetching expects the modules in one order; phases, microbatches and drawn sizes have several
    zero.parameter_offload.fwd_pre_hook.remove()
    # without it, those below the threshold of persistence would be released after each use
    for p in zero.persistent_parameters:
        p.is_external_param = True
    for module in net.modules():
        module._parameters = _Fetched(module._parameters)


class _Fetched(dict):
    """A module's own parameters under ZeRO-3, of which one that is not there is fetched as it is read.

    DeepSpeed fetches the parameters of a module that is called. Those read by other methods would be empty; they
    stay whole until the network's next step.
    """

    def __getitem__(self, name: str) -> Any:
        p = super().__getitem__(name)
        if p is not None and p.ds_status.name == "NOT_AVAILABLE":
            p.all_gather()
        return p


def _deepspeed() -> Any:
    try:
        import deepspeed
        import deepspeed.comm.torch
    except ImportError as e:
        raise UserError(f"exec.zero needs DeepSpeed ({e}); pip install 'graticule[deepspeed]'") from e
    return deepspeed


def _start(engine: Engine, net: nn.Module, adam: torch.optim.Adam, words: dict[str, Any]) -> tuple[Any, Any]:
    """DeepSpeed's engine around this network, and its ZeRO optimizer."""
    stage = words["zero_optimization"]["stage"]
    with _environment(engine), warnings.catch_warnings():
        for kind in (DeprecationWarning, FutureWarning):  # of its imports and of what it calls in torch
            warnings.simplefilter("ignore", kind)
        deepspeed = _deepspeed()
        deepspeed.utils.logging.set_log_level_from_string("info" if is_told(words) else "error")
        _join(engine, deepspeed)
        device = SimpleNamespace(device_rank=engine.device.index or 0)
        with _scalars(deepspeed, net, stage):
            ds, zero, _, _ = deepspeed.initialize(device, net, adam, config=words, dist_init_required=False)
    return ds, zero


@contextmanager
def _environment(engine: Engine) -> Iterator[None]:
    """The variables that DeepSpeed insists on, while it starts."""
    wanted = {"LOCAL_RANK": os.environ.get("LOCAL_RANK", "0"), "DS_ACCELERATOR": engine.device.type}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


_group: Any = None  # the process group that DeepSpeed's module-level state belongs to


def _join(engine: Engine, deepspeed: Any) -> None:
    """Let DeepSpeed talk over this engine's process group; one rank alone gets one without a port."""
    global _group
    cuda = engine.device.type == "cuda"
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    if _group is dist.group.WORLD:
        return
    comm: Any = sys.modules["deepspeed.comm.comm"]
    groups: Any = sys.modules["deepspeed.utils.groups"]
    over_torch: Any = sys.modules["deepspeed.comm.torch"]
    comm.cdb, groups._WORLD_GROUP = None, None
    # an operator for ranks of one host that share memory; it is compiled for minutes at its first use
    over_torch.build_shm_op = lambda: None
    deepspeed.init_distributed("nccl" if cuda else "gloo", auto_mpi_discovery=False, verbose=False)
    for name, newer in (
        ("all_gather_function", "all_gather_single"),
        ("reduce_scatter_function", "reduce_scatter_single"),
    ):
        if hasattr(dist, newer):  # torch warns at each call of the names that it takes
            setattr(comm.cdb, name, getattr(dist, newer))
    _group = dist.group.WORLD


@contextmanager
def _scalars(deepspeed: Any, net: nn.Module, stage: int) -> Iterator[None]:
    """While DeepSpeed starts: it broadcasts weights as bytes, which a parameter without dimensions has not.

    All ranks hold rank 0's weights already, so ZeRO-1 and 2 need no broadcast; ZeRO-3 gets one dimension meanwhile.
    """
    kind, broadcast = deepspeed.DeepSpeedEngine, deepspeed.DeepSpeedEngine._broadcast_model
    scalars: list[Any] = [p for p in net.parameters() if stage == 3 and not p.dim()]
    for p in scalars:
        p.data = p.data.reshape(1)
    kind._broadcast_model = lambda self: None
    try:
        yield
    finally:
        kind._broadcast_model = broadcast
    for p in scalars:
        p.ds_shape = torch.Size()
