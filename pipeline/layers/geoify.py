"""GeoConv or CoordConv in a model made of torch's convolutions, and whether its shifts get through.

GeoPos (2401.01951) replaces every convolution. A shift that is the same over space, and over a batch, is what
normalisation behind a convolution takes away: `geoify` warns where it can see that, `shift_effect` measures it. Knows
no model, and sees only convolutions that are modules.
"""

import warnings
from collections.abc import Iterator, Sequence
from copy import deepcopy
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.lazy import LazyModuleMixin

from pipeline.chance import key
from pipeline.errors import UserError
from pipeline.layers import geoconv
from pipeline.layers.coords import CoordSpec, coord_layers, shifted
from pipeline.layers.geoconv import WithCoordinates
from pipeline.layers.norm import GroupBatchNorm2d

TORCHS = {getattr(nn, f"Conv{t}{n}d"): f"Conv{t}{n}d" for t in ("", "Transpose") for n in (1, 2, 3)}


def geoify(
    module: nn.Module,
    spec: CoordSpec = CoordSpec(mode="geo"),
    *,
    keep_function: bool = True,
    skip: Sequence[str] = (),
) -> nn.Module:
    """Give every torch convolution of a model these channels; returns the model itself, changed in place.

    Weights, biases, hooks, flags and sharing stay. The filters of the channels start at zero, so the model computes
    what it did before; keep_function=False draws them as those of a new layer. spec.layers="first" changes the first
    convolution in the order of `modules()`. `skip`: names of modules to leave alone, with all they hold. Optimizers
    made before do not know the new parameters. UserError for lazy modules, for convolutions of other classes (also
    parametrized ones) that are not in `skip`, and where there is nothing to do; then nothing has been changed.
    """
    found = list(_convolutions(module, skip, spec))
    for number, conv in enumerate(found):
        if not spec.at(number).channels(len(conv.kernel_size)):
            continue
        kind = ("Coord" if spec.mode.startswith("coord") else "Geo") + TORCHS[type(conv)]
        conv.__class__ = getattr(geoconv, kind)
        assert isinstance(conv, WithCoordinates)
        conv.see(spec)
        if not keep_function:
            conv.reset_coord_weight()
    if pairs := cancelled(module):
        named = ", ".join(f"{conv} by {norm}" for conv, norm in pairs)
        warnings.warn(
            f"geoify: shifts are cancelled, but for a zero-padded border: {named}; with batch norm use draw='sample', "
            "and no norm that takes each channel of a sample alone; shift_effect measures what is left",
            stacklevel=2,
        )
    return module


def _convolutions(module: nn.Module, skip: Sequence[str], spec: CoordSpec) -> Iterator[_ConvNd]:
    """Those to be changed, each once; all of them are looked at before any is."""
    names = dict(module.named_modules())
    if unknown := [s for s in skip if s not in names]:
        raise UserError(f"skip={unknown[0]!r}: the model has no module of that name; leave it out")
    left = {m for s in skip for m in names[s].modules()}
    found = []
    for name, m in names.items():
        if m in left or not isinstance(m, _ConvNd | LazyModuleMixin):
            continue
        where = f"{name or 'the model'} is a {type(m).__name__}"
        if isinstance(m, LazyModuleMixin):
            raise UserError(f"{where}, whose shape is not known yet: call the model once, then geoify it")
        if isinstance(m, WithCoordinates):
            raise UserError(f"{where}, which has coordinates already; name it in skip")
        if type(m) not in TORCHS:
            raise UserError(f"{where}, not a convolution of torch's: convert it by hand, or name it in skip")
        found.append(m)
    if not found or spec.mode == "none":
        raise UserError(f"mode={spec.mode!r}, {len(found)} convolutions: geoify has nothing to do; leave it out")
    yield from found


def cancelled(module: nn.Module) -> list[tuple[str, str]]:
    """(convolution, norm) by name, where a norm directly behind it in an nn.Sequential takes its shift away.

    A shift adds a constant to each channel of a sample. A norm over space of single channels subtracts it always, batch
    norm (of the batch, as in training) where it is the same for the whole batch. Exactly so without padding; zeros
    at the border leave a rest. Layers that are not neighbours in an nn.Sequential are not seen.
    """
    names = {m: name for name, m in module.named_modules()}
    inner = {c for m in names if isinstance(m, nn.Sequential) for c in m if isinstance(c, nn.Sequential)}
    pairs = []
    for m in names:
        if not isinstance(m, nn.Sequential) or m in inner:
            continue
        layers = list(_flat(m))
        for conv, norm in pairwise(layers):
            if isinstance(conv, WithCoordinates) and conv.coords.spec.shifts and _subtracts(norm, conv):
                pairs.append((names[conv], names[norm]))
    return pairs


def _flat(layers: nn.Sequential) -> Iterator[nn.Module]:
    for m in layers:
        if isinstance(m, nn.Sequential):
            yield from _flat(m)
        elif not isinstance(m, nn.Identity):
            yield m


def _subtracts(norm: nn.Module, conv: WithCoordinates) -> bool:
    if isinstance(norm, _BatchNorm | GroupBatchNorm2d):
        return conv.coords.spec.draw == "batch" or getattr(norm, "group", 0) == 1
    if isinstance(norm, nn.GroupNorm):
        return norm.num_groups == norm.num_channels
    if isinstance(norm, nn.LayerNorm):
        return len(norm.normalized_shape) <= conv.coords.dims
    return isinstance(norm, _InstanceNorm)


@torch.no_grad()
def shift_effect(module: nn.Module, x: Tensor, shifts: int = 4) -> float:
    """|y' - y| / |y|, the largest of some draws: how much the shifts change what a model makes of x in training.

    0: they have no effect. A copy is measured, and there filters of channels that are all zero, as geoify leaves them,
    are drawn as those of a new layer. Other randomness, such as dropout, is held.
    """
    net, ys = deepcopy(module).train(), []
    if not any(c.spec.shifts for c in coord_layers(net)):
        return 0.0
    with torch.random.fork_rng([x.device] if x.is_cuda else []):
        torch.manual_seed(0)
        for m in net.modules():
            if isinstance(m, WithCoordinates) and m.coord_weight is not None and not m.coord_weight.any():
                m.reset_coord_weight()
        for draw in range(shifts):
            seeds = [key("shift effect", draw, i) for i in range(len(x))]
            torch.manual_seed(0)
            with shifted([net], seeds, key("shift effect", draw)):
                ys.append(net(x).double())
    return max(((y - ys[0]).norm() / ys[0].norm()).nan_to_num(0.0).item() for y in ys[1:])
