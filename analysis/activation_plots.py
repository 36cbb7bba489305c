"""Figure 3 from tidy tables of `analysis.activations`: the paper's lines, and maps that do not hide
how much there is to see. No torch, no measuring, no files.
"""

from collections.abc import Iterable, Sequence
from itertools import takewhile

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.plots import PAGE

# red shallow to blue deep, dark throughout; markers tell neighbours apart in grey
DEPTH = sns.blend_palette(["#d7301f", "#8e4585", "#225ea8"], as_cmap=True)
MARKERS = "osD^v<>Pphd*"
PLACES = ["side", "depth", "block"]
SIDES = ("encoder", "decoder", "all")  # all: the layers of a network without EDM's names
SCALAR = (
    "Lines: min-max normalised over the levels for each block. Maps: over each block's mean; "
    "beside a row its largest over its smallest value, and the standard deviation over images "
    "in per cent.")
DRAWN = {
    "bands": "Maps: the share of a block's spectral power in each band, low to high; blank where "
             "there are no modes.",
    "channel": "Rows: each block's channels, by the step at which they are most active."
}  # yapf: disable


def plot_lines(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """The paper's picture: relative activation of each block against time step, for one side; red
    shallow to blue deep. One model, process, side, part and scalar statistic.

    Each block is min-max normalised over its time steps.
    """
    ax = ax or plt.gca()
    blocks = table.sort_values("depth")["block"].unique()
    for order, block in enumerate(blocks):
        rows = table[table["block"] == block].sort_values("step")
        spread = rows["value"].max() - rows["value"].min()
        relative = (rows["value"] - rows["value"].min()) / (spread or 1)
        color = DEPTH(order / max(len(blocks) - 1, 1))
        ax.plot(rows["step"] + 1, relative, color=color, marker=MARKERS[order % len(MARKERS)],
                markersize=3, linewidth=1, label=block)
    _sigma_axis(table, ax, offset=1)
    ax.set(ylabel="relative activation (min-max)", ylim=(-0.04, 1.04))
    return ax


def plot_map(table: pd.DataFrame, *, ax: Axes | None = None, labels: bool = True,
             extent: bool = True, limit: float = 2.0) -> Axes:
    """Blocks x noise levels of one model and process: each block's activation over its mean, red
    above and blue below, the same colours to a factor `limit` either way. At the right the
    largest over the smallest of a row, with the standard deviation over images in per cent.
    """
    ax = ax or plt.gca()
    values, spread = _pivot(table, "value"), _pivot(table, "spread")
    relative = np.log2(values.div(values.mean(axis=1), axis=0))
    _image(relative, ax, vmin=-np.log2(limit), vmax=np.log2(limit), cmap="RdBu_r", labels=labels)
    if extent:
        ratio = values.max(axis=1) / values.min(axis=1)
        noise = 100 * (spread / values).mean(axis=1)
        for place, (most, percent) in enumerate(zip(ratio, noise, strict=True)):
            decimals = 1 if most >= 1.05 else 2
            ax.text(values.shape[1] - 0.3, place, f"x{most:.{decimals}f}  {percent:.0f}%",
                    fontsize=6.5, va="center")
    _sigma_axis(table, ax)
    return ax


def plot_difference(table: pd.DataFrame, reference: pd.DataFrame, *, ax: Axes | None = None,
                    labels: bool = True, limit: float = 2.0) -> Axes:
    """Blocks x noise levels: the activation of one model over that of another one."""
    ax = ax or plt.gca()
    ratio = np.log2(_pivot(table, "value") / _pivot(reference, "value"))
    _image(ratio, ax, vmin=-np.log2(limit), vmax=np.log2(limit), cmap="PuOr_r", labels=labels)
    _sigma_axis(table, ax)
    return ax


def colorbar(axes: Sequence[Axes], label: str, *, powers: bool = True) -> None:
    """One bar below some maps for the colours that they share; `powers` of two, or plain."""
    figure = axes[0].figure
    bar = figure.colorbar(axes[0].images[0], ax=list(axes), location="bottom", shrink=0.7,
                          aspect=30, pad=0.02)
    low, high = axes[0].images[0].get_clim()
    ticks = [low, (low + high) / 2, high]
    bar.set_ticks(ticks, labels=[f"{2.0**x if powers else x:.3g}" for x in ticks])
    bar.ax.tick_params(labelsize=6.5, length=2)
    bar.outline.set_visible(False)
    bar.set_label(label, fontsize=6.5)


def plot_bands(table: pd.DataFrame, band: int, *, ax: Axes | None = None,
               labels: bool = True) -> Axes:
    """Blocks x noise levels: the share of a block's spectral power in one band, 0 to 1; blank where
    maps are too small to have modes in it."""
    ax = ax or plt.gca()
    shares = _pivot(table[table["index"] == band], "value")
    _image(shares.where(shares > 0), ax, vmin=0, vmax=1, cmap="viridis", labels=labels)
    _sigma_axis(table, ax, ticks=3)
    return ax


def plot_over_white(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Inputs of blocks x noise levels, backbones above skips: `over`, a band's share of power over
    that of white noise, which is white."""
    ax = ax or plt.gca()
    keys = ["part", "block"]
    grid = np.log2(table.pivot_table(index=keys, columns="step", values="over", sort=False))
    grid = grid.sort_index(level="part", sort_remaining=False)
    limit = max(float(np.abs(grid.to_numpy()).max()), 1.0)
    shown = ax.imshow(grid, aspect="auto", vmin=-limit, vmax=limit, cmap="RdBu_r",
                      interpolation="nearest")
    ax.axhline(
        int((grid.index.get_level_values("part") == "backbone").sum()) - 0.5, color="black",
        linewidth=0.8)
    ax.set_yticks(range(len(grid)), [f"{part[:4]} {block}" for part, block in grid.index],
                  fontsize=6.5)
    ax.tick_params(length=0)
    bar = ax.figure.colorbar(shown, ax=ax, location="bottom", aspect=20, pad=0.02)
    bar.set_ticks([-limit, 0, limit], labels=[f"{2**x:.2g}" for x in (-limit, 0, limit)])
    bar.ax.tick_params(labelsize=6.5, length=2)
    bar.outline.set_visible(False)
    _sigma_axis(table, ax)
    return ax


def plot_channels(table: pd.DataFrame, *, ax: Axes | None = None, labels: bool = True) -> Axes:
    """Blocks x channels: at which step a channel is most active, dark at noise, light at the
    image; channels in the order of it."""
    ax = ax or plt.gca()
    keys = [*PLACES, "index"]
    means = table.groupby([*keys, "step"])["value"].mean().unstack("step")
    peaks = means.idxmax(axis=1).groupby(PLACES, sort=False).apply(lambda x: sorted(x.tolist()))
    width = max(map(len, peaks))
    grid = pd.DataFrame([row + [np.nan] * (width - len(row)) for row in peaks],
                        index=peaks.index).sort_index(key=_by_execution)
    _image(grid, ax, vmin=0, vmax=means.columns.max(), cmap="cividis", labels=labels)
    ax.set_xlabel("channels, by the step at which they peak")
    return ax


def plot_page(table: pd.DataFrame) -> Figure:
    """Figure 3 of one model, whatever the statistic: a row for each process and part. A block's
    name in the map has the colour of its line."""
    statistic = table["statistic"].iloc[0]
    groups = list(table.groupby(["process", "part"], sort=False))
    bands = table["index"].nunique() if statistic == "bands" else 1
    lines = 1 if set(table["side"]) == {"all"} else 2
    columns = {"bands": bands, "channel": 1}.get(statistic, lines + 1)
    blocks = table[["side", "block"]].drop_duplicates().shape[0]
    figure, axes = plt.subplots(len(groups), columns, squeeze=False, layout="constrained",
                                figsize=(PAGE, len(groups) * max(0.12 * blocks + 0.7, 1.9)))
    for row, ((process, part), chosen) in zip(axes, groups, strict=True):
        name = process if part in ("conv1", "output") else f"{process}, {part}"
        if statistic == "bands":
            for band, ax in enumerate(row):
                plot_bands(chosen, band, ax=ax, labels=band == 0)
                ax.set_title(f"band {band}", loc="left")
            row[0].set_ylabel(name)
        elif statistic == "channel":
            plot_channels(chosen, ax=row[0])
            row[0].set_title(name, loc="left")
        else:
            _plot_scalar(chosen, row, process)
            ending = _shared_ending(chosen["block"])
            row[-1].set_title(part if part != "output" else ending and f"*{ending}", loc="left")
    if statistic == "bands":
        colorbar(axes[-1], "share of a block's spectral power", powers=False)
    elif statistic == "channel":
        colorbar(axes[-1], "step, from noise (0) to image", powers=False)
    return figure


def _plot_scalar(table: pd.DataFrame, axes: Sequence[Axes], process: str) -> None:
    """Lines for each side, then the map of all blocks, whose names have the colours of their
    lines."""
    *panels, last = axes
    sides = [side for side in SIDES if (table["side"] == side).any()]
    for ax, side in zip(panels, sides, strict=False):
        plot_lines(table[table["side"] == side], ax=ax)
        ax.set_title(process if side == "all" else f"{side}, {process}", loc="left")
    for ax in panels[len(sides):]:
        ax.set_axis_off()
    for ax in panels[1:]:
        ax.set_ylabel("")
    values = _pivot(table, "value")
    over = values.div(values.mean(axis=1), axis=0)
    most = float(np.maximum(over, 1 / over).max(axis=None))
    plot_map(table, ax=last, limit=next((x for x in (1.1, 1.25, 1.5) if most <= x), 2.0))
    colorbar([last], "over each block's mean")
    lines = [line for ax in panels for line in ax.get_lines()]
    for label, line in zip(last.get_yticklabels(), lines, strict=True):
        label.set_color(line.get_color())


def describe(table: pd.DataFrame) -> str:
    """A caption: what was reduced how, over which images."""
    models, what = list(table["model"].unique()), []
    inputs = {
        "sampling": "sampling from seeds 0 to {last}, n = {n}",
        "denoising": "denoising real images with noise added, n = {n}", }
    for process, rows in table.groupby("process", sort=False):
        n, some = rows["n"].iloc[0], list(rows["model"].unique())
        who = f"{', '.join(some)} " if some != models else ""
        what.append(who + inputs[str(process)].format(n=n, last=n - 1))
    steps, outputs = table["step"].nunique(), " and ".join(table["part"].unique())
    weights, span = ", EMA weights", ""
    if "all" in set(table["side"]):  # of a network that is not known here
        weights, span = "", " from sigma {1:.3g} to {0:.3g}".format(
            *table["sigma"].agg(["min", "max"]))
    return (
        f"{', '.join(models)}{weights}: {table['statistic'].iloc[0]} of "
        f"each block's {outputs}, mean over images, at the {steps} levels of EDM's ladder{span} "
        f"({'; '.join(what)}). {DRAWN.get(table['statistic'].iloc[0], SCALAR)}")


def _by_execution(index: pd.Index) -> pd.Index:
    """Encoder before decoder, outside in and inside out."""
    return index.map(SIDES.index) if index.name == "side" else index


def _pivot(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Blocks in order of execution x steps; channels, if there are several, averaged."""
    found = table.pivot_table(index=PLACES, columns="step", values=column, aggfunc="mean")
    return found.sort_index(key=_by_execution)


def _shared_ending(blocks: Iterable[str]) -> str:
    """What the dotted names of several layers all end in, such as .conv2."""
    ends = [block.split(".")[:0:-1] for block in dict.fromkeys(blocks)]
    if len(ends) < 2:
        return ""
    shared = takewhile(lambda same: len(set(same)) == 1, zip(*ends, strict=False))
    return "".join(f".{same[0]}" for same in list(shared)[::-1])


def _image(grid: pd.DataFrame, ax: Axes, *, vmin: float, vmax: float, cmap: str,
           labels: bool) -> None:
    ax.imshow(grid, aspect="auto", vmin=vmin, vmax=vmax, cmap=cmap, interpolation="nearest")
    sides = grid.index.get_level_values("side")
    border = int((sides == "encoder").sum())
    if 0 < border < len(grid):
        ax.axhline(border - 0.5, color="black", linewidth=0.8)
    ending = len(_shared_ending(grid.index.get_level_values("block")))
    names = [
        block[:len(block) - ending] if side == "all" else f"{side[:3]} {block}"
        for side, _, block in grid.index]
    ax.set_yticks(range(len(grid)), names if labels else [""] * len(grid), fontsize=6.5)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _sigma_axis(table: pd.DataFrame, ax: Axes, *, offset: int = 0, ticks: int = 4) -> None:
    steps = table.drop_duplicates("step").sort_values("step")
    shown = steps.iloc[np.unique(np.linspace(0, len(steps) - 1, ticks).round().astype(int))]
    ax.set_xticks(shown["step"] + offset, [
        f"{step + 1:.0f}\n{sigma:.2g}"
        for step, sigma in zip(shown["step"], shown["sigma"], strict=True)])
    ax.set_xlabel(r"step; $\sigma$")
