"""CIPS' speed on this device, against the same network as 1 x 1 convolutions.

    python tests/bench/cips.py [--rounds 5] [--dtype fp32|bf16] [--batch 4] [--no-compile] [--only tiny]

Rows: what is timed (a forward without gradients; forward and backward of G; an iteration of training, D and G with
their Adam steps, no R1), images a second, TFLOP/s of matrix products and convolutions, their share of the rate that
torch.matmul of 2048 x 2048 (8192 on a GPU) reaches in the same rounds, and time of the convolutions over time of this
row. Every round times each candidate once, in turn; figures are medians. The peer is NCHW with grouped convolutions
of per-sample weights, as public code writes it; outputs and gradients of both are compared first.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import replace
from math import sqrt
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.attempt import schedule_of
from pipeline.cost import multiply_adds
from pipeline.families.cips import CIPSConfig
from pipeline.layers.modulated import ModFC
from pipeline.layers.noise import noise_maps
from pipeline.models.cips import CIPSGenerator
from pipeline.models.stylegan2 import broadcast_w
from pipeline.plan import ExecConfig
from pipeline.recipes import find
from pipeline.spec import Batch
from pipeline.training.engine import Engine
from pipeline.training.loop import Training
from pipeline.training.runner import run_phase, to_device


class ConvLayer(nn.Module):
    """A modulated 1 x 1 convolution with a weight for each sample: groups are samples."""

    def __init__(self, fc: ModFC):
        super().__init__()
        self.weight = nn.Parameter(fc.weight.detach().clone()[None, :, :, None, None])
        self.affine, self.demodulate = deepcopy(fc.affine), fc.demodulate

    def forward(self, x, w):
        n, c, height, width = x.shape
        weight = self.weight / sqrt(c) * self.affine(w)[:, None, :, None, None]
        if self.demodulate:
            weight = weight * torch.rsqrt(weight.pow(2).sum([2, 3, 4], keepdim=True) + 1e-8)
        out = F.conv2d(x.reshape(1, n * c, height, width), weight.flatten(0, 1), groups=n)
        return out.view(n, -1, height, width)


class ConvCIPS(nn.Module):
    """The "skips" network of a CIPSGenerator, channels first."""

    def __init__(self, G: CIPSGenerator):
        super().__init__()
        self.mapping, self.z_dim, self.num_ws, self.native_size = deepcopy(G.mapping), G.z_dim, G.num_ws, G.native_size
        side = G.native_size[0]
        self.fourier = nn.Conv2d(2, G.fourier.weight.shape[0], 1)
        self.fourier.weight = nn.Parameter(G.fourier.weight.detach().clone()[:, :, None, None])
        self.fourier.bias = nn.Parameter(G.fourier.bias.detach().clone())
        self.embedding = nn.Parameter(G.embedding.weight.detach().T.reshape(1, -1, side, side).clone())
        self.layers = nn.ModuleList(ConvLayer(layer.fc) for layer in G.layers)
        self.to_rgbs = nn.ModuleList(ConvLayer(layer.fc) for layer in G.to_rgbs)
        strength = [getattr(layer, "noise_strength", torch.zeros(())) for layer in G.layers]
        self.strength = nn.ParameterList(s.detach().clone() for s in strength)
        self.bias = nn.ParameterList(layer.bias.detach().clone()[None, :, None, None] for layer in G.layers)
        self.rgb_bias = nn.ParameterList(layer.bias.detach().clone()[None, :, None, None] for layer in G.to_rgbs)
        axis = torch.linspace(-1, 1, side)
        self.register_buffer("grid", torch.stack(torch.meshgrid(axis, axis, indexing="xy"))[None], persistent=False)

    def check_size(self, size): ...

    def synthesis(self, ws, size, noise):
        n = len(ws)
        maps = noise_maps(noise, [(1, *size)] * len(self.layers), ws.device) if noise is not None else None
        x = torch.sin(self.fourier(self.grid.expand(n, -1, -1, -1)))
        x, image = torch.cat([x, self.embedding.repeat(n, 1, 1, 1)], dim=1), 0
        for i, layer in enumerate(self.layers):
            x = layer(x, ws[:, i])
            x = x if maps is None else x + self.strength[i] * maps[i]
            x = F.leaky_relu(x + self.bias[i], 0.2) * sqrt(2)
            if i and i % 2 == 0:
                b = i // 2 - 1
                image = image + self.to_rgbs[b](x, ws[:, len(self.layers) + b]) + self.rgb_bias[b]
        return image


def compiled(G: CIPSGenerator) -> CIPSGenerator:
    """A copy whose layers torch.compile fuses; two graphs serve all of them."""
    G = deepcopy(G)
    for layer in G.layers:
        layer.compile(dynamic=False)
    return G


def matmul(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], object], float]:
    n = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(2, n, n, device=device, dtype=dtype)
    return lambda: a @ b, 2.0 * n**3


def forward(G, ws, size, seeds) -> Callable[[], object]:
    def run():
        with torch.no_grad():
            return G.synthesis(ws, size, seeds)

    return run


def backward(G, ws, size, seeds) -> Callable[[], object]:
    def run():
        G.zero_grad()
        image = G.synthesis(ws, size, seeds)
        image.float().square().mean().backward()
        return image

    return run


def iteration(config: CIPSConfig, G: nn.Module, engine: Engine, batch_size: int) -> Callable[[], object]:
    family = config.build(0)
    D = family.nets["D"]
    run = find("cips.table3_main").make().replace(family=config, batch_size=batch_size)
    training = Training(replace(family, nets={"G": deepcopy(G), "D": D}), engine, schedule_of(run, ExecConfig(), 0))
    size = config.sizes()[0]
    img = torch.randint(0, 256, (batch_size, 3, *size), dtype=torch.uint8)
    nimg = batch_size  # the second iteration: no R1
    micro = to_device(family, Batch(img, torch.full((batch_size,), -1)), range(nimg, 2 * nimg), size, engine.device)

    def once():
        for phase in family.phases:
            run_phase(
                phase,
                training.nets,
                training.updates[phase.net],
                [micro],
                knobs=family.knobs(nimg),
                seed=0,
                nimg=nimg,
                batch_size=batch_size,
                feedback={},
                engine=engine,
                stats=training.stats,
            )

    return once


def timed(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def check(ours, peer, ws, size, seeds, tolerance: float) -> None:
    """Equal images, and equal gradients of the embeddings and of the last layer."""
    a, b = backward(ours, ws, size, seeds)(), backward(peer, ws, size, seeds)()
    pairs = [
        ("images", a, b),
        ("embeddings' gradient", ours.embedding.weight.grad.T.flatten(), peer.embedding.grad.flatten()),
    ]
    pairs.append(
        ("last weight's gradient", ours.layers[-1].fc.weight.grad.flatten(), peer.layers[-1].weight.grad.flatten())
    )
    for what, x, y in pairs:
        # medians, not the largest: an activation within rounding of 0 has either slope, and its pixel either gradient
        off = ((x - y).abs().median() / y.abs().median()).item()
        print(f"  {what}: median |ours - peer| / median |peer| {off:.1e}")
        if off > tolerance:
            sys.exit(f"{what} differ")


def bench(name: str, config: CIPSConfig, args: argparse.Namespace, engine: Engine) -> None:
    device, batch = engine.device, args.batch if name != "tiny" else 16
    torch.manual_seed(0)
    G = config.build(0).nets["G"].to(device)
    assert isinstance(G, CIPSGenerator)
    with torch.no_grad():
        for layer in G.layers:
            layer.noise_strength.fill_(0.1)
    peer, size, seeds = ConvCIPS(G).to(device), config.sizes()[0], tuple(range(batch))
    ws = broadcast_w(G.mapping(torch.randn(batch, G.z_dim, device=device)).detach(), G.num_ws)
    print(f"\n{name}: {config.G.size_px} px, width {config.G.width}, batch {batch}, {args.dtype}")
    check(G, peer, ws, size, seeds, 1e-4)
    autocast: AbstractContextManager = torch.autocast(device.type, torch.bfloat16, enabled=args.dtype == "bf16")
    nets: dict[str, nn.Module] = {"convolutions": peer, "eager": G}
    if not args.no_compile:
        try:
            began, fused = time.perf_counter(), compiled(G)
            with autocast:
                backward(fused, ws, size, seeds)()
            print(f"  compiled in {time.perf_counter() - began:.0f} s")
            nets["compiled"] = fused
        except Exception as e:  # no compiler, or none that knows this device
            print(f"  not compiled: {type(e).__name__}: {str(e).splitlines()[0][:150]}")
    macs = {net: next(iter(multiply_adds(config, net).values())) for net in ("G", "D")}
    peak, peak_flop = matmul(device, torch.bfloat16 if args.dtype == "bf16" else torch.float32)
    works = {
        "forward": (1.0, 0.0, lambda net: forward(net, ws, size, seeds)),
        "forward + backward": (3.0, 0.0, lambda net: backward(net, ws, size, seeds)),
        "iteration": (4.0, 8.0, lambda net: iteration(config, net, engine, batch)),
    }
    print("| work | G | img/s | TFLOP/s | share of matmul | speed over convolutions |\n|---|---|---|---|---|---|")
    for work, (times_g, times_d, make) in works.items():
        flop = 2 * batch * (times_g * macs["G"] + times_d * macs["D"])
        runs = {net: make(module) for net, module in nets.items() if work != "iteration" or net != "compiled"}
        with autocast:
            for run in (*runs.values(), peak):
                run()
            rounds = [
                {net: timed(run, device) for net, run in (*runs.items(), ("peak", peak))} for _ in range(args.rounds)
            ]
        top = peak_flop / statistics.median(r["peak"] for r in rounds)
        for net in runs:
            sec = statistics.median(r[net] for r in rounds)
            ratio = statistics.median(r["convolutions"] / r[net] for r in rounds)
            rate = flop / sec
            print(
                f"| {work} | {net} | {batch / sec:.3g} | {rate / 1e12:.3g} | {rate / top:.0%} | {ratio:.2f} |",
                flush=True,
            )
    print(f"matmul: {top / 1e12:.3g} TFLOP/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--only", choices=("tiny", "64 px"))
    args = parser.parse_args()
    family = find("cips.table3_main").make().family
    tiny = family.tiny()
    assert isinstance(family, CIPSConfig)
    assert isinstance(tiny, CIPSConfig)
    full = family.replace(G=family.G.replace(size_px=64), D=family.D.replace(resolution_px=64))
    engine = Engine(args.dtype, 1)
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    print(f"{where}, torch {torch.__version__}, {args.rounds} rounds")
    for name, config in {"tiny": tiny, "64 px": full}.items():
        if args.only in (None, name):
            bench(name, config, args, engine)
    engine.close(failed=False)


if __name__ == "__main__":
    main()
