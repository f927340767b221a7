"""What a network costs: parameters, multiply-adds and activations of one image, counted on the meta device.

Counted are convolutions, linear layers and matrix products; blur filters, resizing and pointwise work are not,
which is the convention of published figures.
"""

from collections.abc import Iterator, Mapping
from math import inf

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from pipeline.models.stylegan2 import broadcast_w
from pipeline.phases import FamilyConfig


def _at_each_size(family: FamilyConfig) -> Iterator[tuple[tuple[int, int], Mapping[str, nn.Module]]]:
    """Trained sizes, and the networks without memory; with stages, the same networks as each ends."""
    with torch.device("meta"):
        built = family.build(0)
    for i, size in enumerate(family.sizes()):
        if stages := built.stages:
            ends = (*(start - 1 for start in stages.starts[1:]), 10**15)
            with torch.device("meta"):
                if i:
                    stages.enter(built.nets, i)
                stages.begin(built.nets, ends[i])
        yield size, built.nets


def parameters(family: FamilyConfig) -> dict[str, int]:
    """Trainable numbers of each network."""
    _, nets = next(_at_each_size(family))
    return {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}


def _forward(net: nn.Module, name: str, n: int, size: tuple[int, int]) -> torch.Tensor:
    """Of n images; on the meta device."""
    if type(net).forward is nn.Module.forward:  # a generator, which is called by its parts
        w = net.mapping(torch.zeros(n, net.z_dim))  # type: ignore[operator, arg-type]
        return net.synthesis(broadcast_w(w, net.num_ws), size, None)  # type: ignore[operator, arg-type]
    return net(torch.zeros(n, getattr(net, "img_channels", 3), *size))


def multiply_adds(family: FamilyConfig, name: str) -> dict[tuple[int, int], int]:
    """Multiply-adds of one image of network `name` at each trained (height, width)."""
    n, counted = family.group, {}
    for size, nets in _at_each_size(family):
        net = nets[name].requires_grad_(False)  # torch's counter cannot hook parameters that are inputs
        with torch.device("meta"), torch.no_grad(), _counter() as count:
            _forward(net, name, n, family.part(size))
        counted[size] = count.get_total_flops() // 2 // n
    return counted


def activations(family: FamilyConfig, name: str) -> dict[tuple[int, int], int]:
    """Bytes that one more image of a batch makes network `name` keep for backward, in float32, at each trained size.

    Parameters, what is made of them for all images, and an input that all share are left out.
    """
    n, counted = family.group, {}
    for size, nets in _at_each_size(family):
        net, seen = nets[name], family.part(size)
        counted[size] = (_kept(net, name, 2 * n, seen) - _kept(net, name, n, seen)) // n
    return counted


def _kept(net: nn.Module, name: str, n: int, size: tuple[int, int]) -> int:
    """Bytes of the storages that a forward of n images saves."""
    kept: dict[int, torch.UntypedStorage] = {}  # holding them, so that no address comes twice

    def pack(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        kept[storage._cdata] = storage
        return t

    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = _forward(net, name, n, size)
    del out
    return sum(storage.nbytes() for storage in kept.values())


def training_flop(family: FamilyConfig, total_kimg: float = inf) -> float:
    """Operations (two a multiply-add) that training spends on one image, over all sizes of a run of this length."""
    probs = dict(zip(family.sizes(), family.size_probs(total_kimg), strict=True))
    return sum(
        2 * passes * probs[size] * macs
        for name, passes in family.passes().items()
        for size, macs in multiply_adds(family, name).items()
    )


def _counter() -> FlopCounterMode:
    def conv(x, w, _bias, _stride, _padding, _dilation, transposed, *_args, out_shape, **_kwargs) -> int:
        blur = w[1] == 1 and w[2] == 4  # the fixed depthwise FIR filters
        return 0 if blur else conv_flop_count(x, w, out_shape, transposed=transposed)

    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution: conv})
