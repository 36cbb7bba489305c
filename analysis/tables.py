"""The tables of a profile that are measured once and read by the figures: figures/PROFILE/NAME.csv.

A row whose `digest` is not that of the run as it would be trained today is stale, and left out.
"""

from pathlib import Path

import pandas as pd

from analysis import figures
from gdd.files import write_atomically
from gdd.profiles import profile
from gdd.training.start import digest


def path(name: str, profile_name: str) -> Path:
    return figures.FIGURES_FOLDER / profile(profile_name).name / f"{name}.csv"


def rounded(table: pd.DataFrame) -> pd.DataFrame:
    """The table with numbers to four significant digits: what is drawn and what is written, so
    that another processor's rounding changes neither."""
    floats = table.select_dtypes("float").columns
    exact = {name: table[name].map(lambda x: float(f"{x:.4g}")) for name in floats}
    return table.assign(**exact)


def write(table: pd.DataFrame, name: str, profile_name: str) -> None:
    content = rounded(table).to_csv(index=False, lineterminator="\n").encode()
    write_atomically(path(name, profile_name), content)


def read(name: str, profile_name: str) -> pd.DataFrame:
    """The rows that are today's; none, with the columns that every table has, if there is no such
    file."""
    chosen, file = profile(profile_name), path(name, profile_name)
    if not file.exists():
        return pd.DataFrame(columns=[
            "run", "training_seed", "sampler", "kind", "against", "distance", "metric", "n",
            "seeds", "digest", "draw"])
    table = pd.read_csv(file, keep_default_na=False)
    if "digest" not in table:
        return table
    names = table["run"] + "@" + table["training_seed"].astype(str)
    known = {*chosen.runs, *chosen.networks}
    todays = {name: digest(chosen, name) for name in set(names) if name.partition("@")[0] in known}
    return table[names.map(todays) == table["digest"]].reset_index(drop=True)


def of_figures(profile_name: str) -> dict[str, pd.DataFrame]:
    """The tables beside the profile's figures, by their names. Raises ValueError if there are
    none."""
    folder = path("", profile_name).parent
    files = [*sorted(folder.glob("fig*.csv")), *folder.glob("spectrum.csv")]
    found = {file.stem: pd.read_csv(file) for file in files}
    if not found:
        raise ValueError(f"{folder} has no figures yet; `python -m analysis.figures` makes them")
    return found
