"""What takes hours to train and to measure, kept as tables: `make seeds`.

seeds.csv       every run, with all its training seeds, by every judge
curves.csv      what Figure 4's runs logged while they were trained
snapshots.csv   the averages of students along their training, by every judge
memory.csv      how near their images are to the nearest training picture
neighbours.csv  those that are nearest, beside that picture
floor.csv       what sampling noise alone amounts to
A profile whose figures measure live has the first two alone, of further training seeds.

A run with rows of today's digest is neither trained nor measured again, and tables are written as
each run is measured: an interrupted night goes on by the same command, on another machine too.
"""

import time
from collections.abc import Callable, Sequence

import pandas as pd
import torch

from analysis import measurements, tables
from analysis.experiments import obtain, side_by_side, train_missing
from analysis.figures import FIGURES
from analysis.judges import judges
from analysis.nearest import measured_neighbours, nearest_table
from analysis.plots import TITLES
from gdd.profiles import profile, require
from gdd.samplers import sampler_of
from gdd.training.start import digest

Measure = Callable[[str, str], tuple[str, pd.DataFrame]]


def survey(profile_name: str, runs: Sequence[str] = (), *, retrain: bool = False) -> None:
    """Train and measure what is missing, of `runs` such as gdd or gdd@1 or of all, and write the
    tables; `retrain` makes them anew, and without `runs` what they start from too. Raises
    ValueError on an unknown run."""
    chosen = profile(profile_name)
    every = chosen.further_seeds() if chosen.live else [*chosen.runs, *chosen.further_seeds()]
    for name in runs:
        require(name, every, f"run that `make seeds PROFILE={profile_name}` measures,")
    names = [name for name in every if name in runs or not runs]
    plain = {name: name.partition("@")[0] for name in names}
    students = [name for name in names if plain[name] in ("gdd", "gdd-i")]
    wanted: dict[str, tuple[Measure, list[str]]] = {
        "seeds": (_seeds, names),
        "curves": (_curves, [name for name in names if plain[name] in TITLES]), }
    if not chosen.live:
        shown = [name for name in (chosen.teacher, *students) if name in names]
        first = [name for name in shown if name in chosen.runs]
        wanted |= {"snapshots": (_snapshots, students), "memory": (_memory, shown),
                   "neighbours": (_neighbours, first)}  # yapf: disable
    todo = {table: asked if retrain else _missing(table, asked, profile_name)
            for table, (_, asked) in wanted.items()}  # yapf: disable
    missing = {name for asked in todo.values() for name in asked}
    anew = {*runs} if runs else {*chosen.classifiers, *chosen.runs, *every}
    if missing:  # and the student, whose images rel-distances are taken to
        train_missing([name for name in every if name in missing], profile_name,
                      anew=anew if retrain else ())
        train_missing([measurements.student_of(chosen)], profile_name)
    for table, (measure, _) in wanted.items():
        _measure(table, measure, todo[table], every, profile_name)
    if not chosen.live and (retrain or tables.read("floor", profile_name).empty):
        floor = measurements.measured_floor(profile_name, chosen.seed_ranges)
        tables.write(floor, "floor", profile_name)
    keys = ["metric", "run", "training_seed", "kind"]
    seeds = tables.read("seeds", profile_name)
    print(seeds.groupby(keys, sort=False)["distance"].mean().unstack("kind").to_string())


def _missing(table: str, names: list[str], profile_name: str) -> list[str]:
    """Those without rows of all judges and ranges of seeds."""
    chosen, rows, kept = profile(profile_name), tables.read(table, profile_name), []
    for name in names:
        run, seed = name.partition("@")[0], chosen.config(name).seed
        own = rows[(rows["run"] == run) & (rows["training_seed"] == seed)]
        whole = table not in ("seeds", "snapshots") or (set(own["metric"]) == {
            judge.metric
            for judge in judges(profile_name)} and own["seeds"].nunique() == chosen.seed_ranges)
        if own.empty or not whole:
            kept.append(name)
    return kept


def _measure(table: str, measure: Measure, names: list[str], every: list[str],
             profile_name: str) -> None:
    """Measure the names side by side; after each the table, in the order of `every`, is written
    with what it had of the others."""
    chosen, start = profile(profile_name), time.monotonic()
    order = {(name.partition("@")[0], chosen.config(name).seed): k for k, name in enumerate(every)}
    kept = tables.read(table, profile_name)
    for name, found in side_by_side(measure, [names], profile_name):
        found = found.assign(command=f"make seeds PROFILE={profile_name}")
        again = kept["run"].eq(found["run"][0]) & kept["training_seed"].eq(
            found["training_seed"][0])
        kept = pd.concat([kept[~again], found], ignore_index=True) if len(kept) else found
        places = [order.get(key, len(order)) for key in zip(
            kept["run"], kept["training_seed"], strict=True)]  # yapf: disable
        kept = kept.iloc[pd.Series(places).argsort(kind="stable")].reset_index(drop=True)
        tables.write(kept, table, profile_name)
        print(f"[{time.monotonic() - start:6.0f} s] measured {name} for {table}.csv", flush=True)


def _seeds(name: str, profile_name: str) -> tuple[str, pd.DataFrame]:
    torch.set_num_threads(1)
    chosen = profile(profile_name)
    samplers = [sampler_of(chosen.config(name))]
    if name == chosen.teacher:
        steps = FIGURES["fig02"].parameters["solver_steps"]
        samplers += [f"heun:{k}" for k in steps if f"heun:{k}" not in samplers]
    student, ranges = measurements.student_of(chosen), chosen.seed_ranges
    return name, pd.DataFrame(
        row for index in range(ranges) for sampler in samplers for judge in judges(profile_name)
        for row in measurements.rows(judge, name, sampler, profile_name, index, student=student,
                                     ranges=ranges))  # yapf: disable


def _snapshots(name: str, profile_name: str) -> tuple[str, pd.DataFrame]:
    torch.set_num_threads(1)
    chosen = profile(profile_name)
    config = chosen.config(name)
    return name, pd.DataFrame(
        {"images": images} | row for images in (*chosen.snapshots, config.total_images)
        for index in range(chosen.seed_ranges) for judge in judges(profile_name)
        for row in measurements.rows(judge, name, sampler_of(config), profile_name, index,
                                     images=images))  # yapf: disable


def _curves(name: str, profile_name: str) -> tuple[str, pd.DataFrame]:
    run, metric = obtain(name, profile_name), measurements.metric(profile_name)
    logged = run.log[["images", metric]].rename(columns={metric: "distance"})
    return name, logged.assign(run=name.partition("@")[0], training_seed=run.config.seed,
                               metric=metric, digest=digest(profile(profile_name), name))


def _neighbours(name: str, profile_name: str) -> tuple[str, pd.DataFrame]:
    torch.set_num_threads(1)
    return name, measured_neighbours(name, profile_name)


def _memory(name: str, profile_name: str) -> tuple[str, pd.DataFrame]:
    torch.set_num_threads(1)
    return name, nearest_table(name, profile_name)
