"""Numbers that others published, each with its source: analysis/published.csv.

Where sources disagree, each has a row of its own, and `conflicts` finds them. Numbers measured here
never share a column with these.
"""

from functools import cache
from pathlib import Path

import pandas as pd

TABLE = Path(__file__).with_name("published.csv")
DATA_SETS = ("CIFAR-10", "AFHQv2-64", "FFHQ-64", "ImageNet-64")  # in the paper's order
FIGURE_1A = "ImageNet-64"  # the data set that the paper draws there
SAME = ["dataset", "conditional", "method", "nfe"]  # what two rows on one result have in common


@cache
def published() -> pd.DataFrame:
    """A row per number and source: dataset, conditional, method, family, nfe, fid, inception_score,
    precision, recall, clip_fid, train_images_millions, source, address, note."""
    return pd.read_csv(TABLE, dtype={"nfe": "Int64"})


def conflicts(column: str = "fid") -> pd.DataFrame:
    """Results for which sources tell different values of `column`: least, largest, and by whom."""
    known = published().dropna(subset=[column])
    groups = known.groupby(SAME, dropna=False, sort=False)
    found = groups.agg(least=(column, "min"), largest=(column, "max"),
                       sources=("source", lambda names: "; ".join(dict.fromkeys(names))))
    return found[found["least"] < found["largest"]].reset_index()


def best_sources() -> pd.DataFrame:
    """One row per result: of the rows that agree in SAME the one whose source tells most."""
    columns = ["fid", "inception_score", "precision", "recall", "clip_fid"]
    table = published().assign(told=published()[columns].notna().sum(axis=1))
    first = table.sort_values("told", ascending=False, kind="stable")
    return first.drop_duplicates(SAME).sort_index().drop(columns="told")


def against_images() -> pd.DataFrame:
    """Figure 1A: one-step generators and diffusion models on FIGURE_1A whose training images are
    known, a row per value, not per source; `own` marks the paper's methods."""
    table = published().dropna(subset=["train_images_millions", "fid"])
    table = table[(table["nfe"] == 1) | (table["family"] == "diffusion")]
    table = table[table["dataset"] == FIGURE_1A]
    table = table.drop_duplicates(["method", "fid", "train_images_millions"])
    return table.assign(own=table["method"].str.fullmatch("GDD|GDD-I|D2O|D2O-F"))
