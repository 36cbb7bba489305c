"""GFLOP/s of a forward pass, a backward pass, the discriminator's step and a distance, beside what
this processor's arithmetic and its memory allow."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor

from analysis.fid import frechet_distance
from analysis.plots import COLORS, MODELS, PAGE, PLAIN
from benchmarks import machine
from benchmarks.clock import FULL, Work, medians, operations, traffic
from benchmarks.distances import DIMENSION, moments
from benchmarks.sampling import CIFAR, random_denoiser
from gdd import losses
from gdd.backbones import TimmBackbone
from gdd.denoiser import Denoiser
from gdd.discriminator import ProjectedDiscriminator
from gdd.profiles.paper import LITE

NAMES = {torch.float32: "float32", torch.float64: "float64"}
COLOURS = {"float32": COLORS["abs"], "float64": COLORS["rel"]}


@dataclass(frozen=True)
class Point:
    """A piece of work, and why it stays below its roof."""

    work: str
    dtype: torch.dtype
    make: Callable[[], Work]
    reason: str


def _forward() -> Work:
    denoiser, x = _network()

    def run() -> None:
        with torch.no_grad():
            denoiser(x, 1.0)

    return run


def _forward_and_backward() -> Work:
    denoiser, x = _network()

    def run() -> None:
        denoiser(x, 1.0).square().mean().backward()

    return run


def _network() -> tuple[Denoiser, Tensor]:
    denoiser = random_denoiser(CIFAR)
    return denoiser, torch.randn(4, 3, denoiser.resolution, denoiser.resolution)


def _discriminator_step() -> Work:
    """As in `gdd.training.trainer`, through the backbone that CIFAR-10 at 16x16 takes."""
    n, size = (64, 64) if FULL else (4, 32)
    torch.manual_seed(0)
    discriminator = ProjectedDiscriminator([TimmBackbone(LITE, None, size)],
                                           channels=(32, 64, 128, 128), head_widths={
                                               16: 64, 8: 128, 4: 256}).train()
    images = torch.randn(2, n, 3, 16, 16)
    optimizer = torch.optim.Adam(discriminator.heads.parameters())

    def run() -> None:
        optimizer.zero_grad()
        for real in (False, True):
            features = discriminator.features(images[int(real)])
            losses.discriminator_loss(discriminator.logits(features), real).mean().backward()
        optimizer.step()

    return run


def _distance() -> Work:
    a, b = (moments(seed, DIMENSION, 3 * DIMENSION) for seed in (0, 1))
    return partial(frechet_distance, a, b)


POINTS = (
    Point("forward", torch.float32, _forward,
          "normalisation, SiLU, attention and sums of branches read and write whole maps for a few "
          "operations a number, and convolutions of few pixels do not fill the cores"),
    Point("forward and backward", torch.float32, _forward_and_backward,
          "gradients of weights sum over images and pixels, which reads activations that have left "
          "the cache since the forward pass"),
    Point("D step", torch.float32, _discriminator_step,
          "EfficientNet's depthwise convolutions do nine multiplications for a number read, and "
          "the heads' BatchNorms wait for memory"),
    Point("distance", torch.float64, _distance,
          "half of the reduction to tridiagonal form, before eigenvalues, is products of a matrix "
          "with a vector, which are as fast as memory"),
)  # yapf: disable


def measure() -> pd.DataFrame:
    """A row per piece of work: its GFLOP/s, operations a byte, the roof there and what makes it."""
    return pd.DataFrame(_measured())


def _measured() -> Iterator[dict[str, Any]]:
    bandwidth = machine.bandwidth()
    for point in POINTS:
        work = point.make()
        (seconds, ) = medians(work, repeats=2)
        gflop, gigabytes = operations(work) / 1e9, traffic(work) / 1e9
        product = machine.product_rate(point.dtype)
        convolution = machine.convolution_rate(torch.float32)
        peak = max(product, convolution) if point.dtype == torch.float32 else product
        intensity = gflop / gigabytes
        roof = min(peak, intensity * bandwidth)
        yield {
            "work": point.work, "dtype": NAMES[point.dtype], "gflop": gflop,
            "gflop_per_second": gflop / seconds, "flop_per_byte": intensity,
            "roof_gflop_per_second": roof, "share": gflop / seconds / roof,
            "peak_gflop_per_second": peak, "gigabytes_per_second": bandwidth,
            "bound_by": "arithmetic" if roof == peak else "memory",
            "held_back_by": point.reason}  # yapf: disable


def draw(table: pd.DataFrame) -> Figure:
    figure, ax = plt.subplots(figsize=(0.75 * PAGE, 0.5 * PAGE), layout="constrained")
    plot_roofline(table, ax=ax)
    return figure


def plot_roofline(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """A roof per `dtype`, of its measured peak and the memory's bandwidth, and a point per
    `work`."""
    ax = ax or plt.gca()
    ends = table["flop_per_byte"].min() / 4, table["flop_per_byte"].max() * 4
    x = np.geomspace(*ends, 200)
    for dtype, rows in table.groupby("dtype", sort=False):
        peak, bandwidth = (float(rows[f"{name}_per_second"].max())
                           for name in ("peak_gflop", "gigabytes"))
        ax.plot(x, np.minimum(peak, x * bandwidth), color=COLOURS[str(dtype)],
                label=f"roof, {dtype}")
    markers = iter(marker for _, marker in MODELS.values())
    for row in table.itertuples():
        ax.plot(row.flop_per_byte, row.gflop_per_second, color=COLOURS[str(row.dtype)],
                marker=next(markers), linestyle="none", label=f"{row.work} ({row.share:.0%})")
    ax.set(xscale="log", yscale="log", xlabel="operations per byte, nothing cached",
           ylabel="GFLOP/s")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(PLAIN)
        axis.set_minor_formatter(NullFormatter())
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


CAPTION = ("Measured GFLOP/s against operations per byte that operations read and write; roofs are "
           "the faster of a 3x3 convolution and a matrix product in the same dtype, and adding two "
           "vectors. In brackets the share of the roof.")
