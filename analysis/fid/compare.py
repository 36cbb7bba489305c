"""Distances between sources as a tidy table: every metric, every pair, over several ranges of
seeds.

    abs_fid("gdd-i", "data.zip", extractor)             # a generator against a data set
    rel_fid("gdd-i", "mine.pkl@heun:18", extractor)     # two generators, the same seeds
    rel_fid(denoiser, of_generator(gan, (512, ), "gan"), of_function(network, "mine"))
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import pandas as pd
from torch import Tensor

from analysis.features import Extractor, family
from analysis.fid.asked import check_metrics
from analysis.fid.frechet import bootstrap_interval, fd_infinity, frechet_distances, label
from analysis.fid.own import as_source
from analysis.fid.samples import density_coverage, kid, precision_recall
from analysis.fid.sources import Source, Statistics
from analysis.fid.summaries import Summaries, Summary

RANGES = 3  # the convention of EDM and its kin, who report the least of three; here all three are
Row = dict[str, Any]
Metric = str | Callable[[Tensor, Tensor], float]


def measure(sources: Sequence[Any], summaries: Summaries, *, metrics: Iterable[Metric] = ("fd", ),
            n: int | None = None, ranges: int = RANGES, first_seed: int = 0,
            allow_different_n: bool = False, bootstrap: int = 0) -> pd.DataFrame:
    """Rows a, b, features, seeds, n_a, n_b, metric, value, spread, low, high; of a pair the first
    is judged by the second.

    Sources are what `analysis.fid.own.as_source` knows. Metrics are of `analysis.fid.asked`, or
    functions of two samples of features (m,d), at most 10,000 of each source, that return a number.
    `spread` is over the subsets of a KID or the splits of an IS; `low` and `high` are of
    `bootstrap_interval`.

    Generators make `n` images, by default as many as the data set beside them has, else 50,000,
    from the same seeds, once per range of seeds; what has no seeds is compared once. Raises
    ValueError or FileNotFoundError naming what does not fit.
    """
    wanted = list(dict.fromkeys(metrics))
    check_metrics(name for name in wanted if isinstance(name, str))
    if len(sources) < 2 or ranges < 1 or (n is not None and n < 2):
        raise ValueError("two sources, one range and n = 2 are the least; "
                         f"got {len(sources)} sources, {ranges} ranges, n = {n}")
    sources = [as_source(source) for source in sources]
    tables = []
    for index in range(ranges if any(isinstance(s, Source) and s.reseed for s in sources) else 1):
        seeded = with_seeds(sources, n, first_seed, index)
        tables.append(
            compare(seeded, summaries, wanted, bootstrap=bootstrap,
                    allow_different_n=allow_different_n))
    table = pd.concat(tables, ignore_index=True)
    return table.drop_duplicates(ignore_index=True)  # data sets among themselves, once per range


def with_seeds(sources: Sequence[Source | Statistics], n: int | None = None, first_seed: int = 0,
               index: int = 0) -> list[Source | Statistics]:
    """The sources with the seeds of a range, generators with `n` images as `measure` has them, and
    with a number behind a name that others have, too: rows are known by names."""
    n = n or max(s.n or 0 for s in sources) or 50_000
    seeds = range(first_seed + index * n, first_seed + (index + 1) * n)
    seen: Counter[str] = Counter()
    found = []
    for source in sources:
        seen[source.name] += 1
        count = seen[source.name]
        name = source.name if count == 1 else f"{source.name} ({count})"
        if isinstance(source, Source) and source.reseed:
            source = source.reseed(seeds)
        found.append(replace(source, name=name))
    return found


def over_ranges(table: pd.DataFrame) -> pd.DataFrame:
    """One row per pair and metric: mean, min and max over the ranges of seeds, and how many there
    were."""
    keys = ["a", "b", "features", "metric", "n_a", "n_b"]
    groups = table.groupby(keys, sort=False, dropna=False)
    found = groups["value"].agg(mean="mean", min="min", max="max", ranges="size")
    return found.join(groups[["spread", "low", "high"]].mean()).reset_index()


def certainty(row: Mapping[str, Any]) -> str:
    """What a row of `over_ranges` says of its mean beside min and max: its interval; the spread of
    a KID or an IS, which is of parts of one sample, as such; or nothing."""
    if row["low"] == row["low"]:
        return f"95%: {row['low']:.4g} to {row['high']:.4g}"
    if row["spread"] == row["spread"]:
        parts = "splits" if row["metric"].startswith("IS") else "subsets"
        return f"spread of {parts} {row['spread']:.2g}"
    return ""


def abs_fid(generator: Any, reference: Any, extractor: Extractor, **options: Any) -> pd.Series:
    """FD of a generator against a data set or statistics: mean, min and max over three ranges of
    seeds. Sources and options are those of `measure`."""
    return _first([generator, reference], extractor, options)


def rel_fid(generator: Any, other: Any, extractor: Extractor, **options: Any) -> pd.Series:
    """FD between two generators from the same seeds: mean, min and max over three ranges of seeds.
    Sources and options are those of `measure`."""
    sources = [as_source(generator), as_source(other)]
    for source in sources:
        if not isinstance(source, Source) or not source.reseed:
            raise ValueError(f"rel-FID is between two generators; {source.name} is none")
    return _first(sources, extractor, options)


def matrix(sources: Sequence[Any], extractor: Extractor, **options: Any) -> pd.DataFrame:
    """FD of every pair, mean over the ranges of seeds: square and symmetric, names of the sources
    as rows and columns. Sources and options are those of `measure`."""
    rows = over_ranges(measure(sources, _summaries(extractor), metrics=("fd", ), **options))
    names = list(dict.fromkeys([*rows["a"], *rows["b"]]))
    found = pd.DataFrame(0.0, names, names)
    for row in rows.itertuples():
        found.loc[row.a, row.b] = found.loc[row.b, row.a] = row.mean
    return found


def _first(sources: Sequence[Any], extractor: Extractor, options: dict[str, Any]) -> pd.Series:
    return over_ranges(measure(sources, _summaries(extractor), **options)).iloc[0]


def _summaries(extractor: Extractor) -> Summaries:
    if not isinstance(extractor, Extractor):
        raise ValueError("an extractor must be analysis.extractor(NAME), or of_function(f, NAME) "
                         f"of one's own; got {extractor!r}")
    return Summaries(extractor)


def compare(sources: Sequence[Source | Statistics], summaries: Summaries, metrics: Sequence[Metric],
            *, allow_different_n: bool = False, bootstrap: int = 0) -> pd.DataFrame:
    """The rows of one range of seeds. K sources cost K passes and K factorisations."""
    extractor = summaries.extractor
    for a, b in combinations(sources, 2):
        check_pair(a, b, extractor, allow_different_n or list(metrics) == ["fd-infinity"])
    _check_channels(sources)
    classify = "is" in metrics
    found = [
        summaries.of(source, classify=classify) if isinstance(source, Source) else None
        for source in sources]
    stats = [(known or s).stats for known, s in zip(found, sources, strict=True)]  # type: ignore
    if len({len(moments.mean) for moments in stats}) > 1:
        listed = ", ".join(
            f"{s.name} {len(moments.mean)}" for s, moments in zip(sources, stats, strict=True))
        raise ValueError(
            f"statistics differ in dimension ({listed}); the features are {extractor.name}")
    distances = frechet_distances(stats) if "fd" in metrics else None

    rows: list[Row] = []
    for i, j in combinations(range(len(sources)), 2):
        pair: list[Row] = []
        if distances is not None:
            sizes = {source.n for source in (sources[i], sources[j]) if source.n}
            name = label(extractor.name, min(sizes, default=None))
            row: Row = {"metric": name, "value": float(distances[i, j])}
            if bootstrap:
                one, two = (_sample(sources[k], found[k], "a bootstrap") for k in (i, j))
                row["low"], row["high"] = bootstrap_interval(one.sample, two.sample,
                                                             draws=bootstrap, distance=row["value"],
                                                             sizes=(one.stats.n, two.stats.n))
            pair.append(row)
        if "fd-infinity" in metrics:
            value = fd_infinity(_sample(sources[i], found[i], "fd-infinity").sample, stats[j])
            pair.append({"metric": f"{label(extractor.name)}-infinity", "value": value})
        if {"kid", "pr", "dc"} & set(metrics) or any(not isinstance(m, str) for m in metrics):
            fake, real = (_sample(sources[k], found[k], "a metric of samples").sample
                          for k in (i, j))
            pair += _sample_rows(fake, real, extractor, metrics)
        rows += [_where(sources[i], sources[j], extractor) | row for row in pair]
    if "is" in metrics:
        rows += [_inception_score(*pair, extractor) for pair in zip(sources, found, strict=True)]
    columns = ["a", "b", "features", "seeds", "n_a", "n_b", "metric", "value", "spread", "low",
               "high"]  # yapf: disable
    return pd.DataFrame(rows, columns=columns)


def _where(a: Source | Statistics, b: Source | Statistics | None, extractor: Extractor) -> Row:
    seeds = [s.seeds for s in (a, b) if isinstance(s, Source) and s.seeds]
    text = f"{seeds[0].start}-{seeds[0].stop - 1}" if seeds else ""
    return dict(a=a.name, b=b.name if b else "", features=extractor.name, seeds=text, n_a=a.n,
                n_b=b.n if b else None)


def _sample_rows(fake: Tensor, real: Tensor, extractor: Extractor,
                 metrics: Sequence[Metric]) -> list[Row]:
    size, values, spreads = min(len(fake), len(real)), {}, {}
    if "kid" in metrics:
        values["KID"], spreads["KID"] = kid(fake, real)
    if "pr" in metrics:
        values["precision"], values["recall"] = precision_recall(fake, real)
    if "dc" in metrics:
        values["density"], values["coverage"] = density_coverage(fake, real)
    for own in (metric for metric in metrics if not isinstance(metric, str)):
        values[getattr(own, "__name__", type(own).__name__)] = float(own(fake, real))
    return [
        dict(metric=label(extractor.name, size, name), value=value, spread=spreads.get(
            name, float("nan"))) for name, value in values.items()]


def _inception_score(source: Source | Statistics, summary: Summary | None,
                     extractor: Extractor) -> Row:
    if summary is None or summary.scores is None:
        raise ValueError("is needs images, and features that classify (inception, a profile's own);"
                         f" not {source.name} by {extractor.name}")
    value, spread = summary.scores.score()
    metric = label(extractor.name, source.n, "IS")
    return _where(source, None, extractor) | {"metric": metric, "value": value, "spread": spread}


def _sample(source: Source | Statistics, summary: Summary | None, metric: str) -> Summary:
    if summary is None:
        raise ValueError(f"{metric} needs images; {source.name} holds statistics")
    return summary


def check_pair(a: Source | Statistics, b: Source | Statistics, extractor: Extractor,
               different_n: bool) -> None:
    """Raise ValueError if statistics are of other features, or n differs where it must not."""
    for one in (a, b):
        if isinstance(one, Statistics) and one.extractor not in (None, extractor.name):
            raise ValueError(
                f"{one.name} holds statistics of {one.extractor} features, not of {extractor.name}")
    if a.n and b.n and a.n != b.n and not different_n:
        raise ValueError(
            f"{a.name} has n = {a.n:,}, {b.name} n = {b.n:,}, and the distance depends on n: give "
            "--n, or --metrics fd-infinity, or --allow-different-n, as for a FID50k against a "
            "whole training set")


def _check_channels(sources: Sequence[Source | Statistics]) -> None:
    channels = {source.shape[0]: source.name for source in sources if isinstance(source, Source)}
    if len(channels) > 1:
        kinds = {1: "grey", 3: "RGB"}
        listed = " and ".join(f"{name} is {kinds.get(count, f'of {count} channels')}"
                              for count, name in channels.items())
        raise ValueError(f"{listed}; they cannot be compared")


def shared_backbones(generator: str, backbones: Iterable[str], extractor: Extractor) -> list[str]:
    """A warning for each backbone that a generator's discriminator looked through and that is of
    the family of the network which grades it."""
    return [
        f"the discriminator of {generator} looked through {name}, which is of the family of the "
        f"features {extractor.name} that grade it here; believe another family's features rather"
        for name in backbones if family(name) == extractor.family]
