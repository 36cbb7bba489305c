"""Figures from tidy tables: `plot_*(table, *, ax=None) -> ax`. No torch, no measuring, no files.

Sizes are print sizes: a page is 5.5 in wide, text 6.5 pt or more. Captions are text beside the
picture, not in it.
"""

from itertools import pairwise
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

PAGE = 5.5  # inches, the width of a column of text
# a reader with red-green blindness, or a grey printer, still tells these apart: they differ in
# lightness and marker too
COLORS = {"abs": "#1b6ca8", "rel": "#c1440e", "teacher": "#555555"}
# a model keeps its colour and marker in every figure
MODELS = {
    "teacher": ("#555555", "D"), "GDD": ("#1b6ca8", "o"), "GDD-I": ("#c1440e", "s"), "CD":
    ("#3c8d5a", "^"), "CD-I": ("#8a6fb0", "v"), "GDD + CD": ("#b07d12", "P")}
TITLES = {"gdd": "GDD", "gdd-i": "GDD-I", "cd": "CD", "cd-i": "CD-I", "gdd+cd": "GDD + CD"}
KINDS: dict[str, Any] = {
    "abs": dict(color=COLORS["abs"], marker="o", linestyle="-"),
    "rel": dict(color=COLORS["rel"], marker="s", linestyle="-"),
    "rel, disjoint seeds": dict(color="#8a6fb0", marker="^", linestyle="--"), }
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")


def paper_style() -> None:
    """Set matplotlib's defaults for print: call once at the top of a notebook."""
    sns.set_theme(context="paper", style="ticks", font_scale=0.9)
    mpl.rcParams |= {
        "figure.dpi": 120,
        "savefig.dpi": 300,
        "savefig.bbox": "tight",
        "pdf.fonttype": 42,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 8,
        "axes.titleweight": "bold",
        "axes.labelsize": 8,
        "xtick.labelsize": 7,
        "ytick.labelsize": 7,
        "legend.fontsize": 7,
        "legend.frameon": False,
        "lines.linewidth": 1.3,
        "lines.markersize": 4, }


def plot_distances(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Figure 2: distance against `x`, a line per `kind`; columns x, kind, training_seed, distance,
    metric.

    Points are means; bars span the means of training seeds where there are several, else the ranges
    of sampling seeds. Kinds stand a little apart, so that their bars do not hide each other.
    """
    ax = ax or plt.gca()
    kinds = [kind for kind in KINDS if kind in set(table["kind"])]
    for place, kind in enumerate(kinds):
        rows = table[table["kind"] == kind]
        means, span = _means(rows, "x")
        x = means.index.to_numpy() * 1.03**(place - (len(kinds) - 1) / 2)
        ax.errorbar(x, means, yerr=span, capsize=2,
                    label=f"{kind.replace('rel', 'rel-FD', 1)}" if kind != "abs" else "abs-FD",
                    **KINDS[kind])
    ax.set(xscale="log", ylabel=table["metric"].iloc[0])
    if table["distance"].max() > 20 * table["distance"].min():
        _log_axis(ax)
    else:
        ax.set_ylim(0, None)
    values = sorted(table["x"].unique())
    crowded = [False, *(x < 1.25 * before for before, x in pairwise(values))]
    ax.set_xticks(values, [
        "" if close else f"{x:.2g}" if x < 10 else f"{x:g}"
        for x, close in zip(values, crowded, strict=True)])
    ax.xaxis.set_minor_locator(NullLocator())
    return ax


def plot_floor(distance: float, *, ax: Axes) -> Axes:
    """What sampling noise alone amounts to, as a dotted line, or as a number if it lies a decade
    below all that is drawn already; nothing if that is NaN, since it was not measured."""
    if distance < ax.get_ylim()[0] / 10:
        ax.annotate(f"floor {distance:.2g} \N{DOWNWARDS ARROW}", (0.02, 0.03),
                    xycoords="axes fraction", color=COLORS["teacher"], fontsize="small")
    elif not np.isnan(distance):
        ax.axhline(distance, color=COLORS["teacher"], linestyle=":", linewidth=1, label="floor")
    return ax


def plot_curves(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Figure 4: distance against training images, a line per `run` from the logs, through the means
    of its training seeds in a band of their least and largest; an open symbol for the final
    weights.

    Columns images, distance, run, training_seed, metric, and source (log or final).
    """
    ax = ax or plt.gca()
    groups = list(table.groupby("run", sort=False))
    apart = table["images"].max() / 1000 * 0.025  # open symbols stand side by side
    for place, (run, rows) in enumerate(groups):
        color, marker = MODELS[str(run)]
        logged = rows[rows["source"] == "log"].groupby("images")["distance"]
        along = logged.agg(["mean", "min", "max"])
        thousands = along.index / 1000
        ax.plot(thousands, along["mean"], marker=marker, color=color, label=run)
        ax.fill_between(thousands, along["min"], along["max"], color=color, alpha=0.2, linewidth=0)
        if (final := rows[rows["source"] == "final"]).empty:
            continue
        means, span = _means(final, "images")
        x = means.index / 1000 + apart * (place - (len(groups) - 1) / 2 + 1)
        ax.errorbar(x, means, yerr=span, color=color, marker=marker, zorder=3, linestyle="none",
                    markerfacecolor="white", markersize=6, capsize=2)
    ax.set(xlabel="training images (thousands)", ylabel=table["metric"].iloc[0])
    _log_axis(ax)
    return ax


def _log_axis(ax: Axes) -> None:
    """Logarithmic y with plain numbers at 1, 2, 5, 10 ..., and more of them on a short one."""
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(_log_locator(*ax.get_ylim()))
    ax.yaxis.set_major_formatter(PLAIN)
    ax.yaxis.set_minor_locator(NullLocator())


def _log_locator(low: float, high: float) -> LogLocator:
    return LogLocator(subs=(1, 2, 5) if high > 5 * low else (1, 1.5, 2, 3, 5, 7))


def _means(rows: pd.DataFrame, x: str) -> tuple[pd.Series, np.ndarray]:
    """Mean distance at each x, and how far below and above it the training seeds' means reach, or
    of a single training seed the ranges of sampling seeds; (2,points)."""
    by_seed = rows.groupby([x, "training_seed"])["distance"].agg(["mean", "min", "max"])
    found = by_seed.groupby(x).agg(mean=("mean", "mean"), low=("mean", "min"), high=("mean", "max"),
                                   least=("min", "min"), most=("max", "max"),
                                   seeds=("mean", "size"))
    single = found["seeds"] == 1
    low = found["low"].mask(single, found["least"])
    high = found["high"].mask(single, found["most"])
    return found["mean"], np.stack([found["mean"] - low, high - found["mean"]])


def plot_intervals(table: pd.DataFrame, *, teacher: float, floor: float,
                   ax: Axes | None = None) -> Axes:
    """A dot per `run` at its `mean`, hollow if it has one training seed, a bar from `low` to
    `high`, one below the other; beside them the teacher (dashed) and, if it is not a decade below
    them, the floor (dotted). All of one `metric`."""
    ax = ax or plt.gca()
    places = range(len(table))
    span = np.stack([table["mean"] - table["low"], table["high"] - table["mean"]])
    ax.errorbar(table["mean"], places, xerr=span, color=COLORS["abs"], marker="o", linestyle="none",
                capsize=2)
    single = np.flatnonzero(table["training_seeds"] == 1)
    ax.plot(table["mean"].iloc[single], single, color=COLORS["abs"], marker="o", linestyle="none",
            markerfacecolor="white", zorder=3)
    ax.axvline(teacher, color=COLORS["teacher"], linestyle="--", linewidth=1)
    if floor > table["low"].min() / 10:
        ax.axvline(floor, color=COLORS["teacher"], linestyle=":", linewidth=1)
    ax.set_yticks(places, table["run"])
    ax.set_ylim(len(table) - 0.5, -0.5)
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    wide = LogLocator(subs=(1, 3))  # more numbers would touch
    ax.xaxis.set_major_locator(wide if high > 40 * low else _log_locator(low, high))
    ax.xaxis.set_major_formatter(PLAIN)
    ax.xaxis.set_minor_locator(NullLocator())
    return ax


def plot_along(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """`mean` distance against training `images`, a line per `run` with a band from `low` to `high`;
    of one `metric`."""
    ax = ax or plt.gca()
    for run, rows in table.groupby("run", sort=False):
        color, marker = MODELS[str(run)]
        rows = rows.sort_values("images")
        thousands = rows["images"] / 1000
        ax.plot(thousands, rows["mean"], color=color, marker=marker, label=run)
        ax.fill_between(thousands, rows["low"], rows["high"], color=color, alpha=0.2, linewidth=0)
    ax.set(xlabel="training images (thousands)", ylabel=table["metric"].iloc[0], xscale="log")
    _log_axis(ax)
    ax.xaxis.set_major_locator(FixedLocator(sorted(table["images"].unique() / 1000)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(PLAIN)
    ax.tick_params(axis="x", rotation=45)
    return ax


def plot_published(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Figure 1A: `fid` against `train_images_millions`, a point per row; a line joins the points of
    one `method`. Rows with `own` True stand out. `analysis.labels` writes the names."""
    ax = ax or plt.gca()
    for own, rows in table.groupby("own"):
        color = COLORS["rel"] if own else COLORS["teacher"]
        ax.scatter(rows["train_images_millions"], rows["fid"], s=14, color=color,
                   marker="D" if own else "o", zorder=3)
    ax.set(xscale="log", xlabel="training images (millions)", ylabel="FID (published)")
    _log_axis(ax)
    ax.xaxis.set_major_formatter(PLAIN)
    ax.margins(0.08, 0.12)
    for _, rows in table.groupby("method", sort=False):
        ax.plot(rows["train_images_millions"], rows["fid"], color="#999999", linewidth=0.7)
    return ax


def plot_images(images: np.ndarray, *, columns: int, ax: Axes | None = None) -> Axes:
    """A grid of uint8 images (N,C,H,W), row by row, pixels as they are; white where the last row
    has none."""
    ax = ax or plt.gca()
    places = ((0, -len(images) % columns), (0, 0), (0, 1), (0, 1))
    framed = np.pad(images, places, constant_values=255)
    n, c, h, w = framed.shape
    rows = n // columns
    grid = framed.reshape(rows, columns, c, h, w).transpose(0, 3, 1, 4, 2)
    grid = grid.reshape(rows * h, columns * w, c)[:-1, :-1]
    ax.imshow(grid if c == 3 else grid[..., 0], cmap="gray", vmin=0, vmax=255,
              interpolation="nearest")
    ax.set_axis_off()
    return ax


def plot_pairs(images: np.ndarray, others: np.ndarray, distances: pd.Series, *,
               ax: Axes | None = None) -> Axes:
    """Images (N,C,H,W) in a row, below each another one, and the distance of the two."""
    ax = plot_images(np.concatenate([images, others]), columns=len(images), ax=ax)
    height, width = images.shape[2] + 1, images.shape[3] + 1
    for place, distance in enumerate(distances):
        ax.text((place + 0.5) * width - 1, 2 * height, f"{distance:.3f}", ha="center", va="top",
                fontsize=6.5)
    return ax


def plot_spectra(steps: pd.DataFrame, images: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Power against cycles per picture: `x0` at four steps of a sampler, dark to light, of real
    images, dashed, and of GDD's; white noise of unit variance, dotted."""
    ax = ax or plt.gca()
    last = int(steps["step"].max())
    shown = np.unique(np.linspace(0, last, 4).round().astype(int))
    for step, color in zip(shown, sns.color_palette("crest_r", len(shown)), strict=True):
        rows = steps[steps["step"] == step]
        ax.plot(rows["cycles"], rows["x0"], color=color, label=f"step {step + 1}")
    for model, style in (("real", "--"), ("gdd", "-")):
        rows = images[images["model"] == model]
        color = "black" if model == "real" else MODELS["GDD"][0]
        ax.plot(rows["cycles"], rows["x0"], style, color=color, linewidth=1, label=TITLES.get(
            model, model))
    ax.axhline(1, color="#999999", linestyle=":", linewidth=1)
    ax.set(xscale="log", yscale="log", xlabel="cycles per picture", ylabel="power")
    ax.xaxis.set_major_locator(LogLocator(base=2))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(PLAIN)
    ax.yaxis.set_major_formatter(PLAIN)
    ax.yaxis.set_minor_locator(NullLocator())
    return ax
