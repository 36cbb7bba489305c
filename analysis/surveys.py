"""What takes hours to train and to measure, kept as tables: `make seeds`.

seeds.csv       every run, with all its training seeds, by every judge
curves.csv      what Figure 4's runs logged while they were trained
snapshots.csv   the averages of students before the end of their training, by every judge
memory.csv      how near their images are to the nearest training picture
neighbours.csv  those that are nearest, beside that picture
branches.csv    which blocks matter when
floor.csv       what sampling noise alone amounts to
A profile whose figures measure what is missing has seeds.csv, curves.csv and floor.csv.

A part is what is measured at once, such as a run's images by one sampler from one range of seeds.
Parts share the cores, and a table is written after each: one with rows of today's digest is not
measured again, so an interrupted night goes on by the same command, on another machine too.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pandas as pd
import torch
from filelock import FileLock

from analysis import measurements, tables
from analysis.experiments import as_ready, obtain, train_missing
from analysis.figures import FIGURES
from analysis.importance import measured_branches
from analysis.judges import judges, sharing, summaries
from analysis.nearest import measured_neighbours, nearest_table
from gdd.profiles import Profile, profile, require
from gdd.samplers import sampler_of
from gdd.training.start import RUNS, digest

COLUMNS = {"seeds": ("sampler", "seeds"), "snapshots": ("images", "seeds")}
Part = tuple[Any, ...]  # the name of a run, and what it has in its table's columns
Measure = Callable[..., pd.DataFrame]  # of a name, a profile's name and the rest of a part


def survey(profile_name: str, runs: Sequence[str] = (), *, retrain: bool = False) -> None:
    """Train and measure what is missing, of `runs` such as gdd or gdd@1 or of all, and write the
    tables; `retrain` makes them anew, and without `runs` what they start from too. Raises
    ValueError on an unknown run."""
    chosen = profile(profile_name)
    every = _names(chosen)
    for name in runs:
        require(name, every, f"run that `make seeds PROFILE={profile_name}` measures,")
    names = [name for name in every if name in runs or not runs]
    missing = {part[0] for *_, todo in _todo(profile_name, names, retrain) for part in todo}
    anew = {*runs} if runs else {*chosen.classifiers, *chosen.runs, *every}
    if missing:
        train_missing([name for name in every if name in missing.difference(chosen.public)],
                      profile_name, anew=anew if retrain else ())
    measure(profile_name, names, anew=retrain)
    keys = ["metric", "run", "training_seed", "kind"]
    seeds = tables.read("seeds", profile_name)
    print(seeds.groupby(keys, sort=False)["distance"].mean().unstack("kind").to_string())


def measure(profile_name: str, names: Sequence[str], *, anew: bool = False) -> None:
    """Measure what the tables lack of trained runs, or with `anew` all of it, and write them; the
    student is trained first, if it is not yet."""
    chosen, todo = profile(profile_name), _todo(profile_name, names, anew)
    if any(missing for *_, missing in todo):  # and what rel-distances are taken to
        train_missing([measurements.student_of(chosen)], profile_name)
    else:
        print("distances: seeds.csv has them all", flush=True)
    with sharing() if chosen.live else nullcontext():  # else features are kept on disk for good
        for work in todo:
            _measure(*work, profile_name)
        if anew or not _has_floor(profile_name):
            floor = measurements.measured_floor(profile_name, chosen.seed_ranges)
            tables.write(floor, "floor", profile_name)


def _has_floor(profile_name: str) -> bool:
    """Whether floor.csv has all draws by every judge."""
    rows, draws = tables.read("floor", profile_name), range(profile(profile_name).seed_ranges)
    wanted = {(judge.metric, draw) for judge in judges(profile_name) for draw in draws}
    return not rows.empty and wanted <= set(zip(rows["metric"], rows["draw"], strict=True))


def _todo(profile_name: str, names: Sequence[str],
          anew: bool) -> list[tuple[str, Measure, list[Part], list[Part]]]:
    """Each table with its function, its parts, and those of them that are to be measured."""
    found = []
    for table, (function, parts) in _parts(profile(profile_name)).items():
        asked = [part for part in parts if part[0] in names]
        missing = asked if anew else _missing(table, asked, profile_name)
        found.append((table, function, parts, missing))
    return found


def _names(chosen: Profile) -> list[str]:
    """All that is measured, in the order of a table's rows."""
    return [*chosen.public, *chosen.runs, *chosen.further_seeds()]


def _parts(chosen: Profile) -> dict[str, tuple[Measure, list[Part]]]:
    """Each table's function and all its parts, in the order of its rows."""
    every = _names(chosen)
    spans = [measurements.span(chosen, index) for index in range(chosen.seed_ranges)]
    plain = {name: name.partition("@")[0] for name in every}
    samplers = {name: [sampler_of(chosen.config(name))] for name in every}
    steps, own = FIGURES["fig02"].parameters["solver_steps"], samplers[chosen.teacher]
    own += [f"heun:{k}" for k in steps if f"heun:{k}" not in own]
    seeds = [(name, sampler, span) for name in every for sampler in samplers[name]
             for span in spans]  # yapf: disable
    curves = _curves, [(name, ) for name in every if plain[name] in FIGURES["fig04"].runs]
    if chosen.live:
        return {"curves": curves, "seeds": (_seeds, seeds)}
    students = [name for name in every if plain[name] in ("gdd", "gdd-i")]
    shown = [(name, ) for name in (chosen.teacher, *students)]
    snapshots = [(name, images, span) for name in students for images in chosen.snapshots
                 for span in spans]  # yapf: disable
    first = [part for part in shown if part[0] in chosen.runs]
    return {  # what takes minutes first: figures of a run with all its distances need it
        "curves": curves,
        "neighbours": (measured_neighbours, first),
        "branches": (measured_branches, [part for part in shown if "@" not in part[0]]),
        "seeds": (_seeds, seeds),
        "snapshots": (_snapshots, snapshots),
        # beside pictures that nobody trained on
        "memory": (nearest_table, shown if chosen.test else []), }


def _missing(table: str, parts: Sequence[Part], profile_name: str) -> list[Part]:
    """Those without rows, by all judges where the table has judges."""
    rows, wanted = tables.read(table, profile_name), set()
    if table in COLUMNS:
        wanted = {judge.metric for judge in judges(profile_name)}
    known: dict[Part, set[str]] = {}
    metrics = rows["metric"] if "metric" in rows else [""] * len(rows)
    for key, metric in zip(_keys(table, rows), metrics, strict=True):
        known.setdefault(key, set()).add(metric)
    keys = (_key(part, profile_name) for part in parts)
    return [part for part, key in zip(parts, keys, strict=True)
            if key not in known or not wanted <= known[key]]  # yapf: disable


def _key(part: Part, profile_name: str) -> Part:
    """What the rows of a part have in common: run, training seed and the table's own columns."""
    name, *rest = part
    return name.partition("@")[0], profile(profile_name).config(name).seed, *rest


def _keys(table: str, rows: pd.DataFrame) -> list[Part]:
    if rows.empty:
        return []
    columns = ("run", "training_seed", *COLUMNS.get(table, ()))
    return list(rows[list(columns)].itertuples(index=False, name=None))


def _measure(table: str, measure: Measure, parts: Sequence[Part], todo: Sequence[Part],
             profile_name: str) -> None:
    """Measure the parts `todo` side by side; after each the table, in the order of `parts`, is
    written with what it has of the others, from another such command, too."""
    start, order = time.monotonic(), {_key(x, profile_name): k for k, x in enumerate(parts)}
    guard = RUNS / profile(profile_name).name / ".tables.lock"  # of another such command
    guard.parent.mkdir(parents=True, exist_ok=True)
    for part, found in as_ready(_measured, [(measure, part, profile_name) for part in todo],
                                preload=["analysis.surveys"]):
        found = found.assign(command=f"make seeds PROFILE={profile_name}")
        key = _key(part, profile_name)
        with FileLock(guard):
            kept = tables.read(table, profile_name)
            others = kept[[other != key for other in _keys(table, kept)]] if len(kept) else kept
            kept = pd.concat([others, found], ignore_index=True) if len(others) else found
            places = [order.get(key, len(order)) for key in _keys(table, kept)]
            kept = kept.iloc[pd.Series(places).argsort(kind="stable")].reset_index(drop=True)
            tables.write(kept, table, profile_name)
        said = ", ".join(map(str, part))
        print(f"[{time.monotonic() - start:6.0f} s] measured {said} for {table}.csv", flush=True)


def _measured(measure: Measure, part: Part, profile_name: str) -> tuple[Part, pd.DataFrame]:
    """In a process of its own, which goes on with another part; of hundreds none leaves its
    features."""
    torch.set_num_threads(1)
    name, *rest = part
    try:
        return part, measure(name, profile_name, *rest)
    finally:
        summaries.cache_clear()


def _seeds(name: str, profile_name: str, sampler: str, seeds: str) -> pd.DataFrame:
    chosen = profile(profile_name)
    student, index = measurements.student_of(chosen), int(seeds.partition("-")[0]) // chosen.n
    return pd.DataFrame(
        row for judge in judges(profile_name)
        for row in measurements.rows(judge, name, sampler, profile_name, index, student=student,
                                     ranges=chosen.seed_ranges))  # yapf: disable


def _snapshots(name: str, profile_name: str, images: int, seeds: str) -> pd.DataFrame:
    chosen = profile(profile_name)
    sampler, index = sampler_of(chosen.config(name)), int(seeds.partition("-")[0]) // chosen.n
    return pd.DataFrame(
        {"images": images} | row for judge in judges(profile_name)
        for row in measurements.rows(judge, name, sampler, profile_name, index,
                                     images=images))  # yapf: disable


def _curves(name: str, profile_name: str) -> pd.DataFrame:
    run, metric = obtain(name, profile_name), measurements.metric(profile_name)
    logged = run.log[["images", metric]].rename(columns={metric: "distance"})
    return logged.assign(run=name.partition("@")[0], training_seed=run.config.seed, metric=metric,
                         digest=digest(profile(profile_name), name))
