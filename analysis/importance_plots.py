"""Pictures of what `analysis.importance` measured, and how far it agrees with magnitude: tidy
tables in. No torch."""

import re
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.plots import COLORS, MODELS, TITLES

FEWEST = 5  # points of a correlation


def plot_importance(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Branches x bands of noise levels of one model: `value` as colour and number, none below
    0.005."""
    ax = ax or plt.gca()
    values = _grid(table, "value")
    image = ax.imshow(values, aspect="auto", vmin=0, cmap="YlGnBu", interpolation="nearest")
    _numbers(values, image, ax)
    _axes(table, ax)
    return ax


def plot_magnitude(table: pd.DataFrame, *, ax: Axes | None = None, limit: float = 2.0) -> Axes:
    """The same cells with mean |a| as number; colours as in Figure 3, over the branch's mean, red
    above and blue below, to a factor `limit`."""
    ax = ax or plt.gca()
    values = _grid(table, "magnitude")
    relative = np.log2(values.div(values.mean(axis=1), axis=0))
    image = ax.imshow(relative, aspect="auto", vmin=-np.log2(limit), vmax=np.log2(limit),
                      cmap="RdBu_r", interpolation="nearest")
    _numbers(values, image, ax)
    _axes(table, ax)
    return ax


def plot_one_step(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """A dot per branch and model at its `value` in the first band, a bar for the interval, branches
    one below the other; dotted, how far the last model's images of two seeds are apart."""
    ax = ax or plt.gca()
    first = table[table["band"] == 0]
    groups = list(first.groupby("model", sort=False))
    for order, (model, rows) in enumerate(groups):
        title = TITLES.get(str(model), str(model))
        color, marker = MODELS.get(title, MODELS["teacher"])
        span = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
        places = rows["depth"] + 0.25 * (order - (len(groups) - 1) / 2)
        ax.errorbar(rows["value"], places, xerr=span, color=color, marker=marker, markersize=2.5,
                    linestyle="none", linewidth=1, label=title)
    ax.axvline(table["apart"].iloc[-1], color=COLORS["teacher"], linestyle=":", linewidth=1)
    ax.set_ylim(table["depth"].max() + 0.5, -0.5)
    ax.set_xlim(-0.03 * table["apart"].max(), None)
    ax.set_yticks(range(int(table["depth"].max()) + 1), [])
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", linewidth=0.4, color="#dddddd")
    ax.set_xlabel("rms change")
    return ax


def agreement(table: pd.DataFrame, column: str = "value") -> pd.DataFrame:
    """Rank correlation of importance, or of `at_once`, with `magnitude`, for each model: over all
    `cells`; over `branches` within a band; over `bands` within a branch.

    `spearman` is the mean over such groups, `low` and `high` the least and largest of them, with
    the number of `groups` and of `points` in each; none below five points.
    """
    found = []
    for model, own in table.groupby("model", sort=False):
        ways = {"cells": [own], "branches": [rows for _, rows in own.groupby("band")],
                "bands": [rows for _, rows in own.groupby("branch")]}  # yapf: disable
        for over, groups in ways.items():
            points = min(map(len, groups))
            rho = pd.Series([
                rows[column].corr(rows["magnitude"], method="spearman")
                for rows in groups if points >= FEWEST], dtype=float)
            found.append([model, over, rho.mean(), rho.min(), rho.max(), points, len(groups)])
    columns = ["model", "over", "spearman", "low", "high", "points", "groups"]
    return pd.DataFrame(found, columns=columns)


def describe(table: pd.DataFrame) -> str:
    """A caption: what was scaled where, over which images, and how far magnitude agrees."""
    first, *students = (rows for _, rows in table.groupby("model", sort=False))
    model, n, factor = (first[name].iloc[0] for name in ("model", "n", "factor"))
    rho = {(row.model, row.over): _said(row) for row in agreement(table).itertuples()}
    widest = (first["high"] - first["value"]).max()
    text = (
        f"A: rms change of the image (pixels in [-1,1]) if a block's residual branch is multiplied "
        f"by {factor:g} at some levels of EDM's {first.groupby('branch')['levels'].sum().max()}, "
        f"from the upper to the lower sigma; {model}, n = {n}, 95% intervals of the mean within "
        f"±{widest:.2f}; what is below 0.005 is not written. B: mean |a| of the branches there, "
        f"colours over each one's mean. Rank correlation of A with B: {rho[model, 'cells']} cells; "
        f"{rho[model, 'branches']} branches, band by band; {rho[model, 'bands']} bands, branch by "
        f"branch")
    for place, rows in enumerate(students):
        name = str(rows["model"].iloc[0])
        text += (f"{'; ' if place else '. C: the only level of one step, '}"
                 f"{TITLES.get(name, name)}, n = {rows['n'].iloc[0]}, rank correlation with mean "
                 f"|a| {rho[name, 'cells']} branches")
    if students:
        text += (f"; {model}, first band; bars are 95% intervals, dotted is how far two seeds' "
                 f"images are apart ({table['apart'].iloc[-1]:.2f})")
    return f"{text}. EMA weights, seeds from 0."


def _said(rho: Any) -> str:
    """A correlation with its points, and over several groups with the least and largest."""
    if rho.points < FEWEST:
        return f"not taken over {rho.points}"
    several = f" (mean of {rho.groups}: {rho.low:+.2f} to {rho.high:+.2f})"
    return f"{rho.spearman:+.2f}{several if rho.groups > 1 else ''} over {rho.points}"


def short(branch: str) -> str:
    """`model.enc.8x8_block0.conv1` as enc 8x8_block0; what is no `conv1` keeps its name."""
    return re.sub(r"^model\.|\.conv1$", "", branch).replace(".", " ")


def _grid(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Branches in order of execution x bands."""
    return table.pivot(index="depth", columns="band", values=column)


def _numbers(values: pd.DataFrame, image: plt.cm.ScalarMappable, ax: Axes) -> None:
    """Two decimals in each cell, white on dark."""
    colors = image.to_rgba(np.asarray(image.get_array()))[..., :3]
    dark = colors @ [0.299, 0.587, 0.114] < 0.5
    for (row, column), value in np.ndenumerate(values.to_numpy()):
        if value >= 0.005:
            ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6.5,
                    color="white" if dark[row, column] else "black")


def _axes(table: pd.DataFrame, ax: Axes) -> None:
    bands = table.drop_duplicates("band").sort_values("band")
    names = table.drop_duplicates("branch").sort_values("depth")["branch"]
    levels = zip(bands["sigma_high"], bands["sigma_low"], strict=True)
    ax.set_xticks(bands["band"], [f"{_level(high)}\n{_level(low)}" for high, low in levels],
                  fontsize=6.5)
    ax.set_yticks(range(len(names)), map(short, names), fontsize=6.5)
    ax.set_xlabel(r"$\sigma$ from, to")
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _level(sigma: float) -> str:
    """Two digits, with no zero before the point."""
    return f"{sigma:.2g}".removeprefix("0")
