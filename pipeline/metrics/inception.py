"""The Inception-v3 that FID is defined with, for weights under the names of pytorch-fid's state dict.

Szegedy et al. 2016 as TensorFlow's graph of 2015-12-05 computes it: average pools that leave the padding out, a max
pool in the last block, 1008 classes. 23,850,960 parameters. Knows no file and no resizing.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import UserError

FEATURES = 2048
CLASSES = 1008
SIDE_PX = 299

Layer = tuple[str, int, int, int]  # name, channels out, height and width of the kernel
Chain = tuple[Layer | tuple[Layer, Layer], ...]  # one after the other; a pair at the end reads the same input


class Conv(nn.Module):
    """Convolution without bias, batch norm with eps 0.001, ReLU."""

    def __init__(self, c_in: int, c_out: int, kh: int, kw: int, stride: int, pad: bool):
        super().__init__()
        padding = (kh // 2, kw // 2) if pad else (0, 0)
        self.conv = nn.Conv2d(c_in, c_out, (kh, kw), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(c_out, eps=0.001)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n co ho wo"]:
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Chains of convolutions side by side and a pool, concatenated; `halve`: the ends of all have stride 2, unpadded.

    `pool`: "avg" leaves the padding out of the mean; `pool_c`: channels of the 1x1 convolution after it, 0 for none.
    """

    def __init__(self, c: int, chains: tuple[Chain, ...], pool: str, pool_c: int = 0, halve: bool = False):
        super().__init__()
        self.pool, self.halve = pool, halve
        self.chains: list[list[tuple[str, ...]]] = []
        for chain in chains:
            width, names = c, []
            for at, link in enumerate(chain):
                layers: tuple[Layer, ...] = link if isinstance(link[0], tuple) else (link,)  # pyright: ignore
                ends = halve and at == len(chain) - 1
                for name, c_out, kh, kw in layers:
                    self.add_module(name, Conv(width, c_out, kh, kw, 2 if ends else 1, pad=not ends))
                width = layers[0][1]
                names.append(tuple(layer[0] for layer in layers))
            self.chains.append(names)
        if pool_c:
            self.branch_pool = Conv(c, pool_c, 1, 1, 1, pad=False)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n co ho wo"]:
        out = []
        for *links, ends in self.chains:
            y = x
            for (name,) in links:
                y = self.get_submodule(name)(y)
            out += [self.get_submodule(name)(y) for name in ends]
        if self.halve:
            pooled = F.max_pool2d(x, 3, 2)
        elif self.pool == "max":
            pooled = F.max_pool2d(x, 3, 1, 1)
        else:
            pooled = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        out.append(self.branch_pool(pooled) if hasattr(self, "branch_pool") else pooled)
        return torch.cat(out, 1)


def _mixed_35(c: int, pool_c: int) -> Mixed:
    five = (("branch5x5_1", 48, 1, 1), ("branch5x5_2", 64, 5, 5))
    three = (("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 3), ("branch3x3dbl_3", 96, 3, 3))
    return Mixed(c, ((("branch1x1", 64, 1, 1),), five, three), "avg", pool_c)


def _mixed_17(mid: int) -> Mixed:
    seven = (("branch7x7_1", mid, 1, 1), ("branch7x7_2", mid, 1, 7), ("branch7x7_3", 192, 7, 1))
    twice = (
        *(("branch7x7dbl_1", mid, 1, 1), ("branch7x7dbl_2", mid, 7, 1), ("branch7x7dbl_3", mid, 1, 7)),
        *(("branch7x7dbl_4", mid, 7, 1), ("branch7x7dbl_5", 192, 1, 7)),
    )
    return Mixed(768, ((("branch1x1", 192, 1, 1),), seven, twice), "avg", 192)


def _mixed_8(c: int, pool: str) -> Mixed:
    three = (("branch3x3_1", 384, 1, 1), (("branch3x3_2a", 384, 1, 3), ("branch3x3_2b", 384, 3, 1)))
    twice = (
        *(("branch3x3dbl_1", 448, 1, 1), ("branch3x3dbl_2", 384, 3, 3)),
        (("branch3x3dbl_3a", 384, 1, 3), ("branch3x3dbl_3b", 384, 3, 1)),
    )
    return Mixed(c, ((("branch1x1", 320, 1, 1),), three, twice), pool, 192)


class FIDInception(nn.Module):
    """[n, 3, 299, 299] in [-1, 1] -> the 2048 features before the classifier. Sides from 75 px on are computed too."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, 3, 2, pad=False)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3, 3, 1, pad=False)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, 3, 1, pad=True)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1, 1, 1, pad=False)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3, 3, 1, pad=False)
        self.Mixed_5b = _mixed_35(192, 32)
        self.Mixed_5c = _mixed_35(256, 64)
        self.Mixed_5d = _mixed_35(288, 64)
        three = (("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 3), ("branch3x3dbl_3", 96, 3, 3))
        self.Mixed_6a = Mixed(288, ((("branch3x3", 384, 3, 3),), three), "max", halve=True)
        self.Mixed_6b = _mixed_17(128)
        self.Mixed_6c = _mixed_17(160)
        self.Mixed_6d = _mixed_17(160)
        self.Mixed_6e = _mixed_17(192)
        seven = (
            *(("branch7x7x3_1", 192, 1, 1), ("branch7x7x3_2", 192, 1, 7)),
            *(("branch7x7x3_3", 192, 7, 1), ("branch7x7x3_4", 192, 3, 3)),
        )
        small = (("branch3x3_1", 192, 1, 1), ("branch3x3_2", 320, 3, 3))
        self.Mixed_7a = Mixed(768, (small, seven), "max", halve=True)
        self.Mixed_7b = _mixed_8(1280, "avg")
        self.Mixed_7c = _mixed_8(2048, "max")
        self.fc = nn.Linear(FEATURES, CLASSES)  # in the state dict; no feature needs it

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 2048"]:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)
        for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"):
            x = self.get_submodule(f"Mixed_{name}")(x)
        return x.mean((2, 3))


def from_state_dict(state: Mapping[str, Any], where: str) -> FIDInception:
    """The network with these weights, in float32 and eval mode; UserError at the first name or shape that differs."""
    with torch.device("meta"):
        net = FIDInception()
    told = {key: value for key, value in state.items() if not str(key).endswith(".num_batches_tracked")}
    ours = {key: value for key, value in net.state_dict().items() if not key.endswith(".num_batches_tracked")}
    for key, value in ours.items():
        seen = told.get(key)
        if not isinstance(seen, Tensor) or not seen.is_floating_point():
            raise UserError(f"{where}: no weights of FID's Inception: it has no tensor {key!r}")
        if seen.shape != value.shape:
            sides = f"{tuple(seen.shape)}, FID's Inception has {tuple(value.shape)}"
            raise UserError(f"{where}: no weights of FID's Inception: {key!r} has shape {sides}")
    for key in told:
        if key not in ours:
            raise UserError(f"{where}: no weights of FID's Inception: it has {key!r} too")
    net = net.to_empty(device="cpu")
    net.load_state_dict({key: value.float() for key, value in told.items()}, strict=False)  # batches were never counted
    return net.eval().requires_grad_(False)
