"""How time and memory grow: with the batch, the resolution, the blocks of a network and the calls
of a sampler, with the images and the dimensions of a distance; beside the slopes of theory."""

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
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from analysis.fid import FeatureStats, frechet_distance
from analysis.plots import COLORS, PAGE, PLAIN
from benchmarks.clock import FULL, Work, medians, peak_bytes
from benchmarks.distances import moments
from benchmarks.sampling import random_denoiser
from gdd.sampling import euler

# all convolutions but for the attention that every DDPM++ has at its lowest resolution
NETWORK: dict[str, Any] = dict(img_resolution=32, img_channels=3, model_type="SongUNet",
                               model_channels=32 if FULL else 4, channel_mult=[
                                   1, 1, 1], num_blocks=2, attn_resolutions=[], dropout=0.0)
STYLES = {"seconds": (COLORS["abs"], "o", "time"), "bytes": (COLORS["rel"], "s", "memory")}


@dataclass(frozen=True)
class Axis:
    """What grows, and the exponents that time and memory have in the limit."""

    name: str
    values: tuple[int, ...]
    work: Callable[[int], Work]
    seconds: float
    bytes: float


def _forward(n: int = 8, resolution: int = 32, blocks: int = 2) -> Work:
    network = NETWORK | dict(img_resolution=resolution, num_blocks=blocks)
    denoiser, x = random_denoiser(network), torch.randn(n, 3, resolution, resolution)
    return lambda: denoiser(x, 1.0)


def _sample(calls: int) -> Work:
    denoiser, latents = random_denoiser(NETWORK), torch.randn(8, 3, 32, 32)
    return lambda: euler(denoiser, latents, steps=calls)


def _statistics(n: int) -> Work:
    """Streamed, as features come: a batch at a time."""
    d, batch = (512, 256) if FULL else (16, 32)
    features = torch.randn(batch, d)

    def update() -> None:
        stats = FeatureStats.empty(d)
        for _ in range(n // batch):
            stats.update(features)

    return update


def _distance(d: int) -> Work:
    return partial(frechet_distance, moments(0, d, 3 * d), moments(1, d, 3 * d))


def _powers(first: int, count: int) -> tuple[int, ...]:
    return tuple(first << k for k in range(count if FULL else 2))


AXES = (
    Axis("batch", _powers(4, 5), lambda n: _forward(n=n), 1, 1),
    Axis("resolution", _powers(16, 4), lambda size: _forward(resolution=size), 2, 2),
    Axis("blocks a level", _powers(1, 4), lambda count: _forward(blocks=count), 1, 1),
    Axis("network calls", _powers(2, 4), _sample, 1, 0),
    Axis("images n", _powers(1024 if FULL else 64, 5), _statistics, 1, 0),
    Axis("dimensions d", _powers(128 if FULL else 16, 4), _distance, 3, 2),
)  # yapf: disable


def measure() -> pd.DataFrame:
    """A row per axis and value, with the slopes of the axis: fitted to all of its values, and of
    theory."""
    with torch.inference_mode():
        table = pd.DataFrame(row for axis in AXES for row in _along(axis))
    return table


def _along(axis: Axis) -> Iterator[dict[str, Any]]:
    works = [axis.work(value) for value in axis.values]
    found = {"seconds": medians(*works), "bytes": [peak_bytes(work) for work in works]}
    slopes = {f"{name}_slope": _slope(axis.values, found[name]) for name in found}
    theory = {"seconds_theory": axis.seconds, "bytes_theory": axis.bytes}
    for place, value in enumerate(axis.values):
        measured = {name: values[place] for name, values in found.items()}
        yield {"axis": axis.name, "value": value, **measured, **slopes, **theory}


def _slope(x: tuple[int, ...], y: list[Any]) -> float:
    """Of a line through the logarithms."""
    return round(float(np.polyfit(np.log(x), np.log(y), 1)[0]), 3) + 0.0  # no -0


def draw(table: pd.DataFrame) -> Figure:
    groups = table.groupby("axis", sort=False)
    figure, axes = plt.subplots(2, 3, figsize=(PAGE, 0.72 * PAGE), layout="constrained")
    for ax, (name, rows) in zip(axes.flat, groups, strict=True):
        plot_growth(rows, ax=ax)
        ax.set(xlabel=name)
    for ax in axes[:, 0]:
        ax.set_ylabel("times the smallest")
    return figure


def plot_growth(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Time and memory beside the smallest `value`'s, and dashed what theory says of them."""
    ax = ax or plt.gca()
    x = table["value"].to_numpy(float)
    for name, (color, marker, word) in STYLES.items():
        slope, theory = (float(table[f"{name}_{kind}"].iloc[0]) for kind in ("slope", "theory"))
        ax.plot(x, table[name] / table[name].iloc[0], color=color, marker=marker,
                label=f"{word} {slope:.2f}, theory {theory:g}")
        ax.plot(x, (x / x[0])**theory, color=color, linestyle="--", linewidth=0.8, alpha=0.6)
    ax.set(xscale="log", yscale="log")
    ax.xaxis.set_major_locator(FixedLocator(x.tolist()))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(PLAIN)
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(PLAIN)
    ax.tick_params(axis="x", rotation=45)
    ax.set_ylim(0.7, None)
    ticks = (1, 2, 5) if ax.get_ylim()[1] < 20 else (1, )  # two numbers at least
    ax.yaxis.set_major_locator(LogLocator(subs=ticks))
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), handlelength=1, borderaxespad=0)
    return ax


CAPTION = ("Wall time and peak memory of tensors, each beside its smallest, on logarithmic axes; "
           "dashed: the exponents of theory, in the limit. Forward passes of a DDPM++ of "
           f"{NETWORK['model_channels']} channels (above, and the calls of Euler's sampler), "
           "feature statistics that are streamed, and one Fréchet distance.")
