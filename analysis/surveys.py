"""What takes hours to train and to measure, kept as tables: `make seeds`.

seeds.csv      every run, with all its training seeds, by every judge
snapshots.csv  the averages of students along their training, likewise
memory.csv     how near their images are to the nearest training picture
floor.csv      what sampling noise alone amounts to
A profile whose figures measure live has seeds.csv alone, of further training seeds.

Runs are measured side by side, each into its folder, so an interrupted night goes on by the same
command.
"""

import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from analysis import measurements, tables
from analysis.experiments import side_by_side, train_missing
from analysis.figures import FIGURES
from analysis.judges import judges
from analysis.nearest import nearest_table
from gdd.files import digest_of, write_atomically
from gdd.profiles import Profile, profile
from gdd.sampling import sampler_of
from gdd.training.start import digest, run_folder

_VERSION = 1  # of what the tables hold


def survey(profile_name: str) -> None:
    """Train and measure what is missing, and write the tables."""
    chosen = profile(profile_name)
    names = chosen.further_seeds() if chosen.live else [*chosen.runs, *chosen.further_seeds()]
    train_missing(names, profile_name)
    seeds = _all(_seeds, names, profile_name)
    tables.write(seeds, "seeds", profile_name)
    keys = ["metric", "run", "training_seed", "kind"]
    print(seeds.groupby(keys, sort=False)["distance"].mean().unstack("kind").to_string())
    if chosen.live:
        return
    floor = measurements.measured_floor(profile_name, chosen.seed_ranges)
    tables.write(floor, "floor", profile_name)
    students = [name for name in names if name.partition("@")[0] in ("gdd", "gdd-i")]
    tables.write(_all(_snapshots, students, profile_name), "snapshots", profile_name)
    tables.write(_all(_memory, [chosen.teacher, *students], profile_name), "memory", profile_name)


def _all(measure: Callable[[str, str], tuple[str, Path]], names: list[str],
         profile_name: str) -> pd.DataFrame:
    """The tables of all names, made side by side, in the order of the names."""
    start, found = time.monotonic(), {}
    for name, path in side_by_side(measure, [names], profile_name):
        print(f"[{time.monotonic() - start:6.0f} s] measured {name}: {path.name}", flush=True)
        found[name] = pd.read_csv(path, keep_default_na=False)
    command = f"make seeds PROFILE={profile_name}"
    return pd.concat([found[name] for name in names], ignore_index=True).assign(command=command)


def _seeds(name: str, profile_name: str) -> tuple[str, Path]:
    chosen = profile(profile_name)
    samplers = [sampler_of(chosen.config(name))]
    if name == chosen.teacher:
        steps = FIGURES["fig02"].parameters["solver_steps"]
        samplers += [f"heun:{k}" for k in steps if f"heun:{k}" not in samplers]

    def measured() -> pd.DataFrame:
        student, ranges = measurements.student_of(chosen), chosen.seed_ranges
        return pd.DataFrame(
            row for index in range(ranges) for sampler in samplers for judge in judges(profile_name)
            for row in measurements.rows(judge, name, sampler, profile_name, index, student=student,
                                         ranges=ranges))  # yapf: disable

    return name, _kept("seeds", name, chosen, measured)


def _snapshots(name: str, profile_name: str) -> tuple[str, Path]:
    chosen = profile(profile_name)
    config = chosen.config(name)

    def measured() -> pd.DataFrame:
        return pd.DataFrame(
            {"images": images} | row for images in (*chosen.snapshots, config.total_images)
            for index in range(chosen.seed_ranges) for judge in judges(profile_name)
            for row in measurements.rows(judge, name, sampler_of(config), profile_name, index,
                                         images=images))  # yapf: disable

    return name, _kept("snapshots", name, chosen, measured)


def _memory(name: str, profile_name: str) -> tuple[str, Path]:
    chosen = profile(profile_name)
    return name, _kept("memory", name, chosen, lambda: nearest_table(name, profile_name))


def _kept(kind: str, name: str, chosen: Profile, measure: Callable[[], pd.DataFrame]) -> Path:
    """The file in the run's folder with what `measure` gives, made now if it is not there."""
    torch.set_num_threads(1)
    key = digest_of(_VERSION, chosen.extractors, chosen.n, chosen.seed_ranges, chosen.snapshots,
                    digest(chosen, measurements.student_of(chosen)))
    path = run_folder(chosen, name) / f"{kind}-{key}.csv"
    if not path.is_file():
        write_atomically(path, measure().to_csv(index=False).encode())
    return path
