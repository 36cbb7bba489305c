"""How far a profile's generators are from its data and from each other: tidy tables for the
figures.

Everything is measured by `analysis.fid`: images of a generator are a `Source`, whose features an
extractor gives and a `Summaries` keeps.
"""

from collections.abc import Sequence
from functools import cache

import pandas as pd
import torch

from analysis import fid
from analysis.experiments import obtain, train_missing
from analysis.extractors import extractor, stats_of
from analysis.fid.sources import Source, of_checkpoint, of_denoiser, open_source
from analysis.fid.summaries import Summaries
from gdd.profiles import Profile, profile
from gdd.sampling import sampler_of
from gdd.training.start import digest

KINDS = ("abs", "rel", "rel, disjoint seeds")


@cache
def summaries_of(profile_name: str) -> Summaries:
    """Where the figures' feature statistics are kept while a process lives."""
    chosen = profile(profile_name)
    return Summaries(extractor(chosen.extractors[0], chosen))


def metric(profile_name: str) -> str:
    """The name of every distance of a profile, such as `FD1797[digits]`."""
    chosen = profile(profile_name)
    return fid.label(summaries_of(profile_name).extractor.name, chosen.n)


@cache
def generated(name: str, sampler: str, profile_name: str, index: int) -> fid.FeatureStats:
    """Feature statistics of a run's images from the `index`-th range of n seeds."""
    n = profile(profile_name).n
    source = of_checkpoint(obtain(name, profile_name).path, sampler)(range(
        index * n, (index + 1) * n))
    return summaries_of(profile_name).of(source).stats


@cache
def real_stats(profile_name: str) -> fid.FeatureStats:
    chosen = profile(profile_name)
    return stats_of(open_source(chosen.reference or chosen.data), summaries_of(profile_name))


def distances(points: Sequence[tuple[str, str]], profile_name: str, *, student: str = "",
              seed_ranges: int = 0) -> pd.DataFrame:
    """Distances of generators, (run, sampler) each; one row per point, kind and range of n seeds.

    Kinds: `abs`, to the data; with a `student`, also `rel`, to its images from the same seeds, and
    from other seeds, since shared seeds remove noise that abs keeps. The student's own distance to
    itself over disjoint seeds is the floor of sampling noise; over shared seeds it is 0 and left
    out.
    """
    chosen, rows = profile(profile_name), []
    ranges, n = seed_ranges or chosen.seed_ranges, chosen.n
    own = sampler_of(chosen.config(student)) if student else ""
    for index in range(ranges):
        for name, sampler in points:
            stats = generated(name, sampler, profile_name, index)
            others = {"abs": real_stats(profile_name)}
            if student:
                other = (index + 1) % max(ranges, 2)
                others[KINDS[1]] = generated(student, own, profile_name, index)
                others[KINDS[2]] = generated(student, own, profile_name, other)
            if (name, sampler) == (student, own):
                del others[KINDS[1]]
            run, config = name.partition("@")[0], chosen.config(name)
            for kind, reference in others.items():
                rows.append((run, config.seed, sampler, kind, student if "rel" in kind else "data",
                             fid.frechet_distance(stats, reference), metric(profile_name), n,
                             f"{index * n}-{(index + 1) * n - 1}", digest(chosen, name)))
    columns = ["run", "training_seed", "sampler", "kind", "against", "distance", "metric", "n",
               "seeds", "digest"]  # yapf: disable
    return pd.DataFrame(rows, columns=columns)


def floor(profile_name: str, *, seed_ranges: int = 0) -> pd.DataFrame:
    """What sampling noise alone amounts to at n: two disjoint draws of n from the data, or where it
    has fewer than 2n images, from the first teacher by its own sampler."""
    chosen = profile(profile_name)
    ranges = seed_ranges or chosen.seed_ranges
    real, summaries = open_source(chosen.data), summaries_of(profile_name)
    if isinstance(real, Source) and real.n >= 2 * chosen.n:
        pairs = [(summaries.of(a).stats, summaries.of(b).stats)
                 for a, b in (real.disjoint(chosen.n, seed) for seed in range(ranges))]
        name = "data"
    else:
        name = chosen.teacher
        stats = [
            generated(name, sampler_of(chosen.config(name)), profile_name, index)
            for index in range(max(ranges, 2))]
        pairs = [(stats[index], stats[(index + 1) % len(stats)]) for index in range(len(stats))]
    values = [fid.frechet_distance(a, b) for a, b in pairs]
    return pd.DataFrame({
        "of": name, "distance": values, "metric": metric(profile_name), "n": chosen.n})


def spearman(table: pd.DataFrame, x: str = "x") -> pd.DataFrame:
    """Rank correlation of the mean distance with `x` for each kind, over the points that all kinds
    have, with their number; none below 5 points."""
    means = table.groupby(["kind", x])["distance"].mean().unstack("kind").dropna().reset_index()
    kinds = [kind for kind in KINDS if kind in means]
    enough = len(means) >= 5
    rho = [means[x].corr(means[kind], method="spearman") if enough else float("nan")
           for kind in kinds]  # yapf: disable
    return pd.DataFrame({"kind": kinds, "spearman": rho, "points": len(means)})


def class_agreement(name: str, profile_name: str, *, index: int = 0) -> float:
    """Share of a class-conditional run's images, from the `index`-th range of n seeds, that the
    feature extractor, which no training sees, takes for the class asked for."""
    run, chosen = obtain(name, profile_name), profile(profile_name)
    seeds = range(index * chosen.n, (index + 1) * chosen.n)
    labels = torch.arange(chosen.n) % run.denoiser.label_dim
    source = of_denoiser(run.denoiser, sampler_of(run.config), name, labels=labels)(seeds)
    classifier, hits = summaries_of(profile_name).extractor, 0
    for start in range(0, chosen.n, 256):
        part = range(start, min(start + 256, chosen.n))
        for images in source.batches(part, 256):
            classes = classifier.classify(images)
            assert classes is not None, f"{classifier.name} does not classify"
            hits += int((classes.argmax(dim=1) == labels[part.start:part.stop]).sum())
    return hits / chosen.n


def seeds_table(profile_name: str) -> pd.DataFrame:
    """Train every run with the profile's further training seeds, and measure them: what cannot be
    measured live from shipped weights."""
    chosen = profile(profile_name)
    names = chosen.further_seeds()
    train_missing(names, profile_name)
    points = [(name, sampler_of(chosen.config(name))) for name in names]
    table = distances(points, profile_name, student=student_of(chosen))
    return table.assign(command=f"make seeds PROFILE={profile_name}")


def student_of(chosen: Profile) -> str:
    """The one-step generator that rel-distances are taken to: of as many images as the multi-step
    ones, if there is such a run."""
    return "k-step-1" if "k-step-1" in chosen.runs else "gdd"
