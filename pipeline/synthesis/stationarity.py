"""Is the output of padded convolutions still stationary? (MS-PIE, 2012.05217, Sections 3.1-3.2 and Appendix A.)

iid noise goes through layers of fixed random kernels; over many samples mean, variance and autocorrelation are taken
at each position of the middle row. Near borders zero padding moves all three, reflection all but the mean of linear
layers, circular padding and none nothing. `expected` is the closed form of one linear layer. Knows no trained network.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pipeline.chance import rng
from pipeline.synthesis.pictures import Panel

Padding = Literal["zero", "reflect", "circular", "none"]
PADDINGS: tuple[Padding, ...] = get_args(Padding)
KERNEL = 3
AT_ONCE = 512  # samples of one forward


@dataclass(frozen=True)
class Experiment:
    """What goes in, and through what. At least 4 px, more than the largest lag; at least 2 samples."""

    size_px: int = 24  # side of the output, whatever the padding
    layers: int = 4
    relu: bool = False  # after each layer
    channels: int = 8  # between layers; one goes in and one comes out
    mu: float = 1.0
    sigma: float = 1.0
    lags: tuple[int, ...] = (1, 2)
    samples: int = 16384
    seed: int = 0  # of kernels and noise

    def kernels(self) -> list[Float[Tensor, "o i k k"]]:
        """Of each layer, N(0, 1 / fan_in), twice that with ReLU; a function of the seed."""
        widths = [1, *[self.channels] * (self.layers - 1), 1]
        made = []
        for i in range(self.layers):
            gain = ((1 + self.relu) / (widths[i] * KERNEL**2)) ** 0.5
            shape = (widths[i + 1], widths[i], KERNEL, KERNEL)
            made.append(torch.from_numpy(gain * rng("stationarity kernel", self.seed, i).standard_normal(shape)))
        return made


@dataclass(frozen=True)
class Moments:
    """Along the middle row, in float64. Where position p + lag is outside, there is no covariance."""

    mean: Float[np.ndarray, " n"]
    variance: Float[np.ndarray, " n"]
    covariance: dict[int, Float[np.ndarray, " m"]]  # lag -> Cov[y(p), y(p + lag)], p = 0 .. n - lag - 1

    def autocorrelation(self, lag: int) -> Float[np.ndarray, " m"]:
        """Cov[y(p), y(p + lag)] / sqrt(Var y(p) Var y(p + lag)); 0 where ReLU lets nothing through."""
        scale = np.sqrt((self.variance[:-lag] * self.variance[lag:]).clip(0))
        return np.divide(self.covariance[lag], scale, out=np.zeros_like(scale), where=scale > 0)


def pad(x: Float[Tensor, "n c h w"], padding: Padding, by: int = KERNEL // 2) -> Float[Tensor, "n c hp wp"]:
    """Every side by so many pixels; as it is for "none"."""
    if padding == "none":
        return x
    mode = "constant" if padding == "zero" else padding
    return F.pad(x, (by, by, by, by), mode=mode)


def measure(experiment: Experiment, padding: Padding) -> Moments:
    """Sample moments of the output; a function of the experiment and the padding alone."""
    e, kernels = experiment, [k.float() for k in experiment.kernels()]
    side = e.size_px + (2 * (KERNEL // 2) * e.layers if padding == "none" else 0)
    noise = rng("stationarity noise", e.seed)
    total = torch.zeros(e.size_px).double()
    products = {lag: torch.zeros(e.size_px - lag).double() for lag in (0, *e.lags)}
    for start in range(0, e.samples, AT_ONCE):
        n = min(AT_ONCE, e.samples - start)
        x = e.mu + e.sigma * torch.from_numpy(noise.standard_normal((n, 1, side, side), dtype=np.float32))
        for kernel in kernels:
            x = F.conv2d(pad(x, padding), kernel)
            x = x.relu() if e.relu else x
        y = x[:, 0, e.size_px // 2].double()
        total += y.sum(dim=0)
        for lag, product in products.items():
            product += (y[:, : e.size_px - lag] * y[:, lag:]).sum(dim=0)
    mean = total / e.samples
    unbiased = e.samples / (e.samples - 1)
    covariance = {
        lag: (unbiased * (product / e.samples - mean[: e.size_px - lag] * mean[lag:])).numpy()
        for lag, product in products.items()
    }
    return Moments(mean.numpy(), covariance.pop(0), covariance)


def expected(
    kernel: Float[Tensor, "k k"], bias: float, mu: float, sigma: float, padding: Padding, n: int, lags: Sequence[int]
) -> Moments:
    """The moments of one linear layer on iid noise of side n (n + k - 1 for "none"), in closed form.

    E[y(p)] = b + mu * (sum of the kernel's weights whose input exists); Cov[y(p), y(q)] = sigma^2 * (sum of
    K_s K_t over the pairs of taps that read the same input at p and q). Zero padding drops taps, reflect and circular
    padding move them to other inputs, so that two taps of one position may share an input.
    """
    half = kernel.shape[0] // 2
    side = n + 2 * half if padding == "none" else n
    k, row = kernel.double().numpy(), n // 2
    reads = np.zeros((n, side, side))  # position -> weight of each input
    for p in range(n):
        for (i, j), weight in np.ndenumerate(k):
            y, x = (_source(at, padding, side, half) for at in (row + i - half, p + j - half))
            if y is not None and x is not None:
                reads[p, y, x] += weight
    flat = reads.reshape(n, -1)
    all_pairs = sigma**2 * flat @ flat.T
    covariance = {lag: np.diagonal(all_pairs, lag).copy() for lag in lags}
    return Moments(bias + mu * flat.sum(axis=1), np.diagonal(all_pairs).copy(), covariance)


def _source(at: int, padding: Padding, side: int, half: int) -> int | None:
    """The input that is read at this position of the output's axis, which may lie outside; None: a zero."""
    if padding == "none":
        return at + half
    if padding == "circular":
        return at % side
    if padding == "reflect":
        return -at if at < 0 else 2 * (side - 1) - at if at >= side else at
    return at if 0 <= at < side else None


Found = Mapping[Experiment, Mapping[Padding, Moments]]


def panels(found: Found) -> list[Panel]:
    """Three charts for each experiment: mean, variance and autocorrelation at the first lag, a curve a padding."""
    made = []
    for e, curves in found.items():
        named = {f"{'no' if p == 'none' else p} padding": m for p, m in curves.items()}
        what, lag = f"{e.layers} layer{'s' if e.layers > 1 else ''}, {'ReLU' if e.relu else 'linear'}", e.lags[0]
        made += [
            Panel(f"{what}: mean", {name: m.mean for name, m in named.items()}),
            Panel(f"{what}: variance", {name: m.variance for name, m in named.items()}),
            Panel(f"{what}: autocorrelation, lag {lag}", {name: m.autocorrelation(lag) for name, m in named.items()}),
        ]
    return made


def numbers(found: Found) -> list[dict[str, object]]:
    """All of it for a JSON file; one linear layer has the closed form beside what was measured."""
    rows = []
    for e, curves in found.items():
        for padding, measured in curves.items():
            row = {**asdict(e), "padding": padding, **_lists(measured)}
            if e.layers == 1 and not e.relu:
                kernel = e.kernels()[0][0, 0]
                row["expected"] = _lists(expected(kernel, 0.0, e.mu, e.sigma, padding, e.size_px, e.lags))
            rows.append(row)
    return rows


def _lists(m: Moments) -> dict[str, object]:
    curves = {f"autocorrelation_{lag}": m.autocorrelation(lag) for lag in m.covariance}
    return {name: c.tolist() for name, c in {"mean": m.mean, "variance": m.variance, **curves}.items()}
