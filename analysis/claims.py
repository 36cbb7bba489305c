"""The paper's claims as checks over a profile's tables: what it says, what came out, and whether it
holds. Nothing but the tables decides.

A comparison of two generators holds, or does not, where the intervals over their training seeds
(`analysis.verdicts`) lie apart; it is not decided where they touch or where there is one seed. The
verdict is the first judge's of the profile; what the others say stands beside it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import pandas as pd

from analysis.plots import TITLES
from analysis.verdicts import HIGHER, LOWER, OPEN, intervals, verdict
from gdd.reading import quoted

HOLDS, FAILS, ABSENT = "holds", "does not hold", "not measured here"
STEADY = 1.25  # a distance that changes by less than this factor "hardly moves"
EXTENT = 1.5  # least ratio of a block's largest to its smallest activation that makes a peak
SPREAD = 0.25  # least share of peaks outside the third of the ladder that has most of them
CLEAR = 0.5  # least rank correlation that gives a direction
Tables = Mapping[str, pd.DataFrame]  # by the figure's name, such as fig02_rel_fid; seeds


@dataclass(frozen=True)
class Finding:
    """What a check found: a ratio with its interval, or only words."""

    verdict: str
    here: str
    effect: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    training_seeds: int = 0


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, what it reports for it, and the check."""

    key: str
    text: str
    paper: str
    check: Callable[[Tables], Finding]


def _ratio(table: pd.DataFrame, one: str, other: str, wanted: str) -> Finding:
    """Whether the distance of `one` beside that of `other`, runs of a table, is what is wanted:
    lower or higher."""
    rows = intervals(table).set_index("run")
    if one not in rows.index or other not in rows.index:
        return Finding(ABSENT, f"no rows of {one} and {other}")
    a, b = rows.loc[one], rows.loc[other]
    said = verdict(a, b)
    held = {wanted: HOLDS, OPEN: OPEN}.get(said, FAILS)
    here = f"{_said(one, a)}, {_said(other, b)}"
    return Finding(held, here, a["mean"] / b["mean"], a["low"] / b["high"], a["high"] / b["low"],
                   int(min(a["training_seeds"], b["training_seeds"])))


def _said(name: str, row: pd.Series) -> str:
    """A run's mean over training seeds, and their interval if there are several."""
    mean, low, high = (_number(row[key]) for key in ("mean", "low", "high"))
    span = f" ({low} to {high})" if row["training_seeds"] > 1 else ", one training seed"
    return f"{name} {mean}{span}"


def _number(x: float) -> str:
    return f"{x:.3g}" if abs(x) < 1000 else f"{x:,.0f}"


def _judged(rows: pd.DataFrame, check: Callable[[pd.DataFrame], Finding]) -> Finding:
    """What the first judge of a table finds; what the others say stands beside it."""
    if rows.empty:
        return check(rows)
    (_, found), *others = ((judge, check(part))
                           for judge, part in rows.groupby("metric", sort=False))
    said = [f"{other.verdict} by {judge}: {other.here}" for judge, other in others
            if other.verdict != ABSENT]  # yapf: disable
    return replace(found, here="; ".join([found.here, *said]))


def _seeds(tables: Tables) -> pd.DataFrame:
    """Distances by every judge, as `make seeds` measures them."""
    columns = ["run", "sampler", "kind", "against", "metric", "distance"]
    return tables.get("seeds", pd.DataFrame(columns=columns))


def _and_others(rows: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
    """The rows of a figure, and what is measured by judges that it does not show."""
    others = measured[~measured["metric"].isin(rows["metric"])]
    return rows if others.empty else pd.concat([rows, others], ignore_index=True)


def _finals(tables: Tables) -> pd.DataFrame:
    """Final distances to the data, by the titles of the runs."""
    table, seeds = tables.get("fig04_consistency"), _seeds(tables)
    if table is None:
        return seeds[:0]
    measured = seeds[(seeds["kind"] == "abs") & (seeds["against"] == "data")]
    finals = _and_others(table[table["source"] == "final"],
                         measured.assign(run=measured["run"].replace(TITLES)))
    return finals.assign(sampler="", against="data", n=0, images=0)


def _finals_check(one: str, other: str, wanted: str) -> Callable[[Tables], Finding]:
    return lambda tables: _judged(_finals(tables), lambda rows: _ratio(rows, one, other, wanted))


def _points(tables: Tables, panel: str, kind: str, least: float) -> pd.DataFrame:
    """The distances of a kind in a panel of Figure 2, each point as a run of its own."""
    table = tables.get("fig02_rel_fid", pd.DataFrame(columns=["panel", "kind", "x", "metric"]))
    rows = table[(table["panel"] == panel) & (table["kind"] == kind) & (table["x"] >= least)]
    if rows.empty:
        return rows
    of = ["run", "sampler", "kind", "against"]
    rows = _and_others(rows, _seeds(tables).merge(rows[[*of, "x"]].drop_duplicates(), on=of))
    return rows.assign(run=rows["x"].map(lambda x: _point(panel, x)), sampler="", images=0)


def _point(panel: str, x: float) -> str:
    return f"K = {x:g}:" if panel == "A1" else f"sigma {x:g}:"


def _grows(panel: str, least: float) -> Callable[[Tables], Finding]:
    """rel-FD at a panel's largest x beside that at its least x from `least` on."""
    return lambda tables: _judged(_points(tables, panel, "rel", least), partial(_ends, panel))


def _ends(panel: str, rows: pd.DataFrame) -> Finding:
    """Whether the distance is higher at a panel's largest x than at its least."""
    if rows["x"].nunique() < 2:
        return Finding(ABSENT, f"fewer than two points in panel {panel}")
    return _ratio(rows, _point(panel, rows["x"].max()), _point(panel, rows["x"].min()), HIGHER)


def _steady(panel: str, least: float) -> Callable[[Tables], Finding]:
    """Whether abs-FD hardly moves between the same two."""
    def check(rows: pd.DataFrame) -> Finding:
        found = _ends(panel, rows)
        if found.verdict == ABSENT:
            return found
        inside = found.low >= 1 / STEADY and found.high <= STEADY
        outside = found.low > STEADY or found.high < 1 / STEADY
        said = HOLDS if inside else FAILS if outside else OPEN
        return replace(found, verdict=said if found.training_seeds > 1 else OPEN)

    return lambda tables: _judged(_points(tables, panel, "abs", least), check)


def _teacher(tables: Tables) -> Finding:
    """The one-step GDD beside its teacher's own sampler: training seeds beside the ranges of
    sampling seeds of one teacher, the one that all of them start from."""
    table = tables.get("fig05_19_samples")
    if table is None or (table := table[table["run"] != "real"]).empty:
        return Finding(ABSENT, "Figures 5 to 19 have not been made")
    teacher, finals, seeds = table.iloc[0], _finals(tables), _seeds(tables)
    sampler = f"heun:{(teacher['nfe'] + 1) / 2:.0f}"
    theirs = seeds[(seeds["run"] == teacher["run"]) & (seeds["sampler"] == sampler) &
                   (seeds["against"] == "data")].groupby("metric")["distance"]
    ranges = dict(list(theirs))
    first = finals["metric"].iloc[0] if len(finals) else ""
    ranges.setdefault(first, pd.Series([teacher["distance"]]))

    def check(rows: pd.DataFrame) -> Finding:
        ours = rows[rows["run"] == "GDD"]
        judge = None if ours.empty else ours["metric"].iloc[0]
        if judge not in ranges:
            return Finding(ABSENT, "no rows of GDD")
        found = _beside(ours, ranges[judge])
        return replace(found, here=f"{found.here} at NFE {teacher['nfe']:.0f}")

    return _judged(finals, check)


def _beside(ours: pd.DataFrame, teacher: pd.Series) -> Finding:
    """GDD's distances beside its teacher's, one of each range of sampling seeds."""
    row = intervals(ours).iloc[0]
    mean, low, high = teacher.mean(), teacher.min(), teacher.max()
    said = HOLDS if row["high"] < low else FAILS if row["low"] > high else OPEN
    span = f" ({_number(low)} to {_number(high)})" if low < high else ""
    return Finding(said if row["training_seeds"] > 1 else OPEN,
                   f"{_said('GDD', row)}, teacher {_number(mean)}{span}", row["mean"] / mean,
                   row["low"] / high, row["high"] / low, int(row["training_seeds"]))


def _peaks(tables: Tables) -> Finding:
    """Whether the blocks with a peak to speak of do not all have it in one third of the ladder."""
    table = tables.get("fig03_activations")
    if table is None:
        return Finding(ABSENT, "Figure 3 has not been made")
    table = table[(table["process"] == "sampling") & (table["model"] == table["model"].iloc[0])]
    means = table.groupby(["side", "block", "step"])["value"].mean().unstack("step")
    extent = means.max(axis=1) / means.min(axis=1)
    peaked = means[extent >= EXTENT].idxmax(axis=1) / max(means.shape[1] - 1, 1)
    third = pd.cut(peaked, [-1, 1 / 3, 2 / 3, 1], labels=["noise", "middle", "image"])
    thirds = third.value_counts(sort=False).to_dict()
    here = f"of {len(means)} blocks {len(peaked)} vary by {EXTENT:g} or more; they peak at " + \
        ", ".join(f"the {name} third: {count}" for name, count in thirds.items())
    apart = 1 - max(thirds.values()) / max(len(peaked), 1)
    said = HOLDS if len(peaked) and apart >= SPREAD else FAILS
    return Finding(said, here, float(extent.median()), float(extent.min()), float(extent.max()))


def _frequencies(tables: Tables) -> Finding:
    """Whether later steps of the sampler change finer structure, by rank correlation."""
    table = tables.get("spectrum")
    if table is None:
        return Finding(ABSENT, "the spectrum has not been measured")
    centres = table[table["table"] == "centres"]
    rho = float(centres["cycles"].corr(centres["step"], method="spearman"))
    here = f"the mean frequency of what a step changes goes from {centres['cycles'].iloc[0]:.2g} " \
           f"to {centres['cycles'].iloc[-1]:.2g} cycles, rank correlation {rho:+.2f}"
    return Finding(HOLDS if rho > CLEAR else FAILS if rho < -CLEAR else OPEN, here, rho)


def _absent(tables: Tables) -> Finding:
    return Finding(ABSENT, "needs the public checkpoints and the Inception network")


CLAIMS = (
    Claim("1 steps, rel", "rel-FID to a one-step generator grows with the teacher's steps",
          "grows (Figure 2A)", _grows("A1", 2)),
    Claim("1 steps, abs", "while abs-FID hardly moves", "flat (Figure 2A)", _steady("A1", 2)),
    Claim("1 sigma, rel", "rel-FID grows with the middle sigma of a two-step teacher",
          "grows (Figure 2B)", _grows("B", 0)),
    Claim("1 sigma, abs", "while abs-FID hardly moves", "flat (Figure 2B)", _steady("B", 0)),
    Claim("2 instance", "a GAN loss alone beats instance-level distillation (CD)",
          "FID 1.54 against 3.55, CIFAR-10", _finals_check("GDD", "CD", LOWER)),
    Claim("2 teacher", "in one step it does better than its teacher's solver",
          "FID 1.54 against 1.98, CIFAR-10", _teacher),
    Claim("3 activity", "layers are active at different time steps", "Figure 3", _peaks),
    Claim("3 freezing", "freezing most convolutions does as well or better",
          "better on all sets but AFHQv2", _finals_check("GDD-I", "GDD", LOWER)),
    Claim("4 with CD", "a consistency loss beside the GAN loss does not help", "Figure 4B",
          _finals_check("GDD + CD", "GDD", HIGHER)),
    Claim("4 CD-I", "freezing helps consistency distillation too", "Figure 4A",
          _finals_check("CD-I", "CD", LOWER)),
    Claim("5 frequencies", "early steps work on low frequencies, late ones on high (2506.09376)",
          "sources disagree on the direction", _frequencies),
    Claim("headline CIFAR-10", "FID50k of one step, CIFAR-10", "1.54", _absent),
    Claim("headline AFHQv2", "FID50k of one step, AFHQv2 64x64", "1.23", _absent),
    Claim("headline FFHQ", "FID50k of one step, FFHQ 64x64", "0.85", _absent),
    Claim("headline ImageNet", "FID50k of one step, ImageNet 64x64", "1.16", _absent),
)  # yapf: disable


def scorecard(tables: Tables) -> pd.DataFrame:
    """A row per claim: its words, the paper's number, what came out here as a ratio with its
    interval over training seeds, and the verdict."""
    rows = []
    for claim in CLAIMS:
        try:
            found = claim.check(tables)
        except (LookupError, TypeError, ValueError) as error:  # a table that somebody changed
            found = Finding(ABSENT, f"its table is damaged: {quoted(error)}")
        rows.append({"claim": claim.key, "text": claim.text, "paper": claim.paper, **vars(found)})
    return pd.DataFrame(rows)
