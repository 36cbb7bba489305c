"""Pictures of what `analysis.editing` made and measured: tidy tables in, Axes out. No torch."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis import pixels, plots

SCORES = {"psnr": "PSNR (dB)", "feature": "feature distance", "fd": "FD"}


def plot_rows(table: pd.DataFrame, *, ax: Axes) -> Axes:
    """Pictures, a row per `method` in order of appearance, each by its name; columns method, place,
    pixels."""
    groups = list(table.groupby("method", sort=False))
    rows = [pixels.unpacked(rows.sort_values("place")["pixels"]) for _, rows in groups]
    plots.plot_images(np.concatenate(rows), columns=len(rows[0]), ax=ax)
    height = rows[0].shape[2] + 1
    for place, (method, _) in enumerate(groups):
        ax.text(-1, (place + 0.5) * height - 1, str(method), ha="right", va="center", fontsize=6.5)
    return ax


def plot_scores(table: pd.DataFrame, statistic: str, *, ax: Axes) -> Axes:
    """A dot per `method` at its `mean` of one `statistic`, a bar from `low` to `high`, one below
    the other; what the originals themselves have, if that is there, as a dotted line."""
    table = table[table["statistic"] == statistic]
    rows, floor = (table[(table["method"] == "original") == which] for which in (False, True))
    for place, (_, row) in enumerate(rows.iterrows()):
        model = str(row["method"]).partition(",")[0].replace("EDM", "teacher")
        color, marker = plots.MODELS.get(model, ("black", "o"))
        span = [[row["mean"] - row["low"]], [row["high"] - row["mean"]]]
        ax.errorbar(row["mean"], place, xerr=np.nan_to_num(span), color=color, marker=marker,
                    capsize=2)
    for mean in floor["mean"]:
        ax.axvline(mean, color=plots.COLORS["teacher"], linestyle=":", linewidth=1)
    ax.set_yticks(range(len(rows)), rows["method"])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlabel(SCORES[statistic])
    ax.xaxis.set_major_formatter(plots.PLAIN)
    return ax
