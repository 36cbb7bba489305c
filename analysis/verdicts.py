"""What a comparison of generators decides: intervals over training seeds, and `not decided` where
they overlap.

An interval is the least and the largest of the training seeds' means; with two or three seeds no
narrower one can be had honestly, and with one none.
"""

import pandas as pd

from analysis import tables
from gdd.profiles import Profile, profile

LOWER, HIGHER, OPEN = "lower", "higher", "not decided"
_SAME = ["metric", "against", "n", "images"]  # what two generators must share to be compared


def intervals(table: pd.DataFrame) -> pd.DataFrame:
    """Mean, low and high over training seeds of the distances of a table as `make seeds` writes it,
    each seed's averaged over its ranges of sampling seeds; `training_seeds` and `seed_ranges` say
    how many."""
    keys = ["run", "sampler", *_SAME]
    by_seed = table.dropna(subset="distance").groupby([*keys, "training_seed"],
                                                      sort=False)["distance"]
    found = by_seed.agg(["mean", "size"]).reset_index()
    over = found.groupby(keys, sort=False)
    return over.agg(mean=("mean", "mean"), low=("mean", "min"), high=("mean", "max"),
                    training_seeds=("mean", "size"), seed_ranges=("size", "max")).reset_index()


def training_seeds(table: pd.DataFrame) -> str:
    """How many each run of a table has: `3`, or `1 to 3` where they differ."""
    counts = table.groupby("run")["training_seed"].nunique()
    return " to ".join(str(count) for count in sorted({counts.min(), counts.max()}))


def bars(table: pd.DataFrame) -> str:
    """What error bars over a table's training seeds span, in words (`plots.plot_distances`)."""
    counts = table.groupby("run")["training_seed"].nunique()
    if counts.max() == 1:
        return "ranges of sampling seeds of one training seed"
    single = ", or of the only one ranges of sampling seeds" if counts.min() == 1 else ""
    return f"training seeds ({training_seeds(table)}){single}"


def drawn(of: pd.Series) -> str:
    """What the floor is of, by that column of floor.csv."""
    if set(of.dropna()) <= {"data"}:
        return "two disjoint draws of n real images"
    return "two disjoint draws of n of the teacher's images, for there are fewer than 2n real ones"


def verdict(one: pd.Series, other: pd.Series) -> str:
    """Whether the distances of `one` are lower or higher than those of `other`, rows of
    `intervals`; not decided where the intervals touch, or where there is but one training seed."""
    if min(one["training_seeds"], other["training_seeds"]) < 2:
        return OPEN
    if one["high"] < other["low"]:
        return LOWER
    return HIGHER if one["low"] > other["high"] else OPEN


def ablations(profile_name: str) -> pd.DataFrame:
    """A row per ablation of the profile, run, judge and reference, at equal images; `verdict` is of
    its distance beside that of `beside`, the first run that starts or is frozen as it does. Left
    out are ablations of which too little is measured yet: one run, or what another one compares."""
    chosen = profile(profile_name)
    found = intervals(at_images(profile_name))
    rows: list[dict] = []
    shown: list[set[str]] = []
    for ablation, runs in chosen.ablations.items():
        images = min(chosen.runs[run].total_images for run in runs)
        part = found[found["run"].isin(runs) & (found["images"] == images)]
        measured = set(part["run"])
        if len(measured) < 2 or any(measured <= other for other in shown):
            continue
        shown.append(measured)
        part = part.sort_values("run", key=lambda names: names.map(runs.index), kind="stable")
        for _, row in part.iterrows():
            first = beside(chosen, runs, row["run"])
            other = part[(part["run"] == first) & (part["metric"] == row["metric"]) &
                         (part["against"] == row["against"])]
            said = "" if first == row["run"] or other.empty else verdict(row, other.iloc[0])
            rows.append({"ablation": ablation, **row, "beside": first, "verdict": said})
    return pd.DataFrame(rows, columns=["ablation", *found.columns, "beside", "verdict"])


def beside(chosen: Profile, runs: tuple[str, ...], run: str) -> str:
    """The run of an ablation that another one is compared with: the first of its own freezing, or
    where that is itself ablated, the first of all."""
    own = [name for name in runs if chosen.runs[name].freeze == chosen.runs[run].freeze]
    return runs[0] if own[0] == run else own[0]


def at_images(profile_name: str) -> pd.DataFrame:
    """Distances to real images of seeds.csv and snapshots.csv, each with its training images."""
    chosen = profile(profile_name)
    seeds = tables.read("seeds", profile_name)
    seeds = seeds[(seeds["kind"] == "abs") & seeds["run"].isin(list(chosen.runs))]
    seeds = seeds.assign(images=seeds["run"].map(lambda run: chosen.runs[run].total_images))
    along = tables.read("snapshots", profile_name)
    known = ["run", "training_seed", "sampler", "kind", "against", "distance", "metric", "n",
             "seeds", "images", "digest"]  # yapf: disable
    return pd.concat([seeds, along], ignore_index=True)[known].drop_duplicates([
        "run", "training_seed", "sampler", "against", "metric", "seeds", "images"])
