"""How far a profile's generators are from its data and from each other: tidy tables for the
figures.

Everything is measured by `analysis.judges`: images of a generator are a `Source`, which a judge
summarises. What `make seeds` has measured, of runs as they are trained today, is read from
figures/PROFILE/seeds.csv and floor.csv.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import pandas as pd
import torch

from analysis import tables
from analysis.experiments import device, obtain, obtain_at
from analysis.fid.sources import Source, of_checkpoint, of_denoiser, open_source
from analysis.judges import Judge, in_memory, judges, metric_of, real, summaries
from gdd.profiles import Profile, profile
from gdd.samplers import sampler_of

KINDS = ("abs", "rel", "rel, disjoint seeds")
_POINT = ["run", "training_seed", "sampler"]


def metric(profile_name: str) -> str:
    """The name of a profile's usual distance, such as `FD10k[lite2@64]`."""
    chosen = profile(profile_name)
    return metric_of(chosen.extractors[0], chosen.n)


def span(chosen: Profile, index: int) -> str:
    """The `index`-th range of n seeds, as tables name it: 0-9999."""
    return f"{index * chosen.n}-{(index + 1) * chosen.n - 1}"


@lru_cache(maxsize=8)
def generated(name: str, sampler: str, profile_name: str, index: int, images: int = 0) -> Source:
    """A run's images from the `index`-th range of n seeds; of its average after so many training
    images, if a number is given."""
    n = profile(profile_name).n
    path = obtain_at(name, profile_name, images)
    return in_memory(of_checkpoint(path, sampler, device())(range(index * n, (index + 1) * n)))


def distances(points: Sequence[tuple[str, str]], profile_name: str, *, student: str = "",
              seed_ranges: int = 0) -> pd.DataFrame:
    """Distances by the profile's usual judge of generators, (run, sampler) each; one row per point,
    kind and range of n seeds.

    Kinds: `abs`, to the data; with a `student`, also `rel`, to its images from the same seeds, and
    from other seeds, since shared seeds remove noise that abs keeps. The student's own distance to
    itself over disjoint seeds is the floor of sampling noise; over shared seeds it is 0 and left
    out.

    A point that seeds.csv has over all ranges comes from there. Others are measured now; where that
    takes hours they are left out, and named, and ValueError is raised if those are all.
    """
    chosen = profile(profile_name)
    ranges = seed_ranges or chosen.seed_ranges
    before = _measured_before(points, profile_name, student, ranges)
    others = _without(points, before, chosen)
    if not chosen.live:
        _say_lacking(others, before.empty, profile_name)
        return before
    now = pd.DataFrame(
        row for index in range(ranges) for name, sampler in others
        for row in rows(judges(profile_name)[0], name, sampler, profile_name, index,
                        student=student, ranges=ranges)
        if row["against"] != "test")  # yapf: disable
    return pd.concat([part for part in (before, now) if len(part)], ignore_index=True)


def further(profile_name: str) -> pd.DataFrame:
    """The rows of seeds.csv by the usual judge of runs with further training seeds, as they are
    trained today; empty if there are none."""
    table, names = tables.read("seeds", profile_name), profile(profile_name).further_seeds()
    kept = (table["run"] + "@" + table["training_seed"].astype(str)).isin(names)
    kept &= (table["against"] != "test") & (table["metric"] == metric(profile_name))
    return table[kept].reset_index(drop=True)


def rows(judge: Judge, name: str, sampler: str, profile_name: str, index: int, *, student: str = "",
         ranges: int = 1, images: int = 0) -> Iterator[dict[str, Any]]:
    """The rows of one generator, one judge and one range of seeds."""
    chosen = profile(profile_name)
    n, run, config = chosen.n, name.partition("@")[0], chosen.config(name)
    found = generated(name, sampler, profile_name, index, images)
    kept = not chosen.live and name == student  # on disk, for all that are compared with it
    seen = judge.summarise(found, keep=kept)
    others = {("abs", split): real(profile_name, judge, split) for split in chosen.splits}
    if student:
        own = sampler_of(chosen.config(student))
        theirs = [judge.summarise(generated(student, own, profile_name, k), keep=not chosen.live)
                  for k in (index, (index + 1) % max(ranges, 2))]  # yapf: disable
        others |= {
            (kind, student): summary for kind, summary in zip(KINDS[1:], theirs, strict=True)}
        if (name, sampler) == (student, own):
            del others[KINDS[1], student]
    for (kind, against), reference in others.items():
        distance = judge.distance(seen, reference)
        yield {
            "run": run, "training_seed": config.seed, "sampler": sampler, "kind": kind,
            "against": against, "distance": distance, "metric": judge.metric, "n": n,
            "seeds": span(chosen, index), "digest": tables.stamp(chosen, name, against),
        }  # yapf: disable


def _measured_before(points: Sequence[tuple[str, str]], profile_name: str, student: str,
                     ranges: int) -> pd.DataFrame:
    """The rows of seeds.csv that `distances` would measure, of points with all ranges of seeds."""
    chosen, table = profile(profile_name), tables.read("seeds", profile_name)
    kept = (table["metric"] == metric(profile_name)) & (table["against"] != "test")
    kept &= (table["kind"] == "abs") | (bool(student) & (table["against"] == student))
    kept &= table["seeds"].isin({span(chosen, index) for index in range(ranges)})
    found = table[kept]
    whole = {_key(chosen, *point) for point in points}
    for kind in ("abs", *KINDS[2:])[:2 if student else 1]:
        counts = found[found["kind"] == kind].groupby(_POINT)["seeds"].nunique()
        whole &= set(counts.index[counts == ranges])
    there = [key in whole for key in found[_POINT].itertuples(index=False, name=None)]
    return found[pd.Series(there, found.index, dtype=bool)].reset_index(drop=True)


def _without(points: Sequence[tuple[str, str]], measured: pd.DataFrame,
             chosen: Profile) -> list[tuple[str, str]]:
    known = set(measured[_POINT].itertuples(index=False, name=None))
    return [point for point in points if _key(chosen, *point) not in known]


def _key(chosen: Profile, name: str, sampler: str) -> tuple[str, int, str]:
    return name.partition("@")[0], chosen.config(name).seed, sampler


def _say_lacking(points: Sequence[tuple[str, str]], all_of_them: bool, profile_name: str) -> None:
    command = f"`make seeds PROFILE={profile_name}`"
    if points and all_of_them:
        raise ValueError(
            f"figures/{profile(profile_name).name}/seeds.csv has no rows of {points[0]} and "
            f"{len(points) - 1} more as they are trained today; {command} measures "
            "them")
    if points:
        said = ", ".join(f"{run} by {sampler}" for run, sampler in points)
        print(f"not measured yet, and left out: {said}; {command} goes on with them")


def floor(profile_name: str, *, seed_ranges: int = 0) -> pd.DataFrame:
    """What sampling noise alone amounts to at n, by every judge: two disjoint draws of n from the
    data, or where it has fewer than 2n images, from the first teacher by its own sampler."""
    chosen = profile(profile_name)
    ranges, table = seed_ranges or chosen.seed_ranges, tables.read("floor", profile_name)
    before = table[table["draw"] < ranges].reset_index(drop=True)
    if chosen.live and before["draw"].nunique() < ranges:
        return measured_floor(profile_name, ranges)
    return before


def measured_floor(profile_name: str, ranges: int) -> pd.DataFrame:
    """The same, measured now."""
    return pd.concat([_floor(judge, profile_name, ranges) for judge in judges(profile_name)],
                     ignore_index=True)


def _floor(judge: Judge, profile_name: str, ranges: int) -> pd.DataFrame:
    chosen = profile(profile_name)
    found = open_source(chosen.data)
    if isinstance(found, Source) and found.n >= 2 * chosen.n:
        pairs = [found.disjoint(chosen.n, seed) for seed in range(ranges)]
        made: dict[str, Any] = {"of": "data"}
    else:
        name = chosen.teacher
        own = sampler_of(chosen.config(name))
        drawn = [generated(name, own, profile_name, index) for index in range(max(ranges, 2))]
        pairs = [(drawn[index], drawn[(index + 1) % len(drawn)]) for index in range(len(drawn))]
        made = {"of": name, "run": name, "training_seed": chosen.config(name).seed,
                "digest": tables.stamp(chosen, name)}  # yapf: disable
    values = [judge.distance(*(judge.summarise(source) for source in pair)) for pair in pairs]
    return pd.DataFrame({**made, "distance": values, "metric": judge.metric, "n": chosen.n,
                         "draw": range(len(values))})  # yapf: disable


def spearman(table: pd.DataFrame, x: str = "x") -> pd.DataFrame:
    """Rank correlation of the mean distance with `x` for each kind, over the points that all kinds
    have, with their number; none below 5 points. `low` and `high` are those of the single training
    seeds, or of the ranges of sampling seeds where there is one training seed; `of` counts them."""
    means = table.groupby(["kind", x])["distance"].mean().unstack("kind").dropna()
    kinds = [kind for kind in KINDS if kind in means]
    enough, points = len(means) >= 5, table[table[x].isin(means.index)]
    repeated = "training_seed" if points["training_seed"].nunique() > 1 else "seeds"
    rows = []
    for kind in kinds:
        rho = means.index.to_series().corr(means[kind], method="spearman")
        single = points[points["kind"] == kind].groupby([repeated, x])["distance"].mean()
        apart = single.unstack(x).dropna()  # of those that have all the points
        each = pd.Series([row.index.to_series().corr(row, method="spearman")
                          for _, row in apart.iterrows()], dtype=float)  # yapf: disable
        found = [rho, each.min(), each.max()] if enough else [float("nan")] * 3
        rows.append([kind, *found, len(means), len(apart)])
    return pd.DataFrame(rows, columns=["kind", "spearman", "low", "high", "points", "of"])


def class_agreement(name: str, profile_name: str, *, index: int = 0) -> float:
    """Share of a class-conditional run's images, from the `index`-th range of n seeds, that the
    feature extractor, which no training sees, takes for the class asked for."""
    run, chosen = obtain(name, profile_name), profile(profile_name)
    seeds = range(index * chosen.n, (index + 1) * chosen.n)
    labels = torch.arange(chosen.n) % run.denoiser.label_dim
    source = of_denoiser(run.denoiser, sampler_of(run.config), name, labels=labels)(seeds)
    classifier, hits = summaries(profile_name, chosen.extractors[0]).extractor, 0
    for start in range(0, chosen.n, 256):
        part = range(start, min(start + 256, chosen.n))
        for images in source.batches(part, 256):
            classes = classifier.classify(images)
            assert classes is not None, f"{classifier.name} does not classify"
            hits += int((classes.argmax(dim=1) == labels[part.start:part.stop]).sum())
    return hits / chosen.n


def student_of(chosen: Profile) -> str:
    """The one-step generator that rel-distances are taken to: of as many images as the multi-step
    ones, if there is such a run."""
    return "k-step-1" if "k-step-1" in chosen.runs else "gdd"
