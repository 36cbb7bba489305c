"""The tables of a profile that are measured once and read by the figures: figures/PROFILE/NAME.csv.

A row whose `digest` is not that of the run as it would be trained today, and of the run that it is
compared with, is stale, and left out.
"""

import io
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import figures
from gdd.files import digest_of, write_atomically
from gdd.profiles import Profile, profile
from gdd.reading import open_regular, quoted

# by `make seeds`
MEASURED = ("seeds", "curves", "snapshots", "memory", "neighbours", "branches", "floor")
_MOST = 1 << 27  # bytes of a table


def path(name: str, profile_name: str) -> Path:
    return figures.FIGURES_FOLDER / profile(profile_name).name / f"{name}.csv"


def write(table: pd.DataFrame, name: str, profile_name: str) -> None:
    content = figures.rounded(table).to_csv(index=False, lineterminator="\n").encode()
    write_atomically(path(name, profile_name), content)


def read(name: str, profile_name: str) -> pd.DataFrame:
    """The rows that are today's; none, with the columns that every table has, if there is no such
    file."""
    chosen, file = profile(profile_name), path(name, profile_name)
    if not file.exists():
        words = ["run", "sampler", "kind", "against", "metric", "seeds", "digest"]
        numbers = dict.fromkeys(("training_seed", "n", "draw"), int) | {"distance": float}
        return pd.DataFrame(columns=[*words, *numbers]).astype(numbers)  # else no number would be
    table = load(file, keep_default_na=False)
    if "digest" not in table:
        return table
    if lacking := {"run", "training_seed"} - set(table):
        raise ValueError(f"{quoted(file)} lacks the column {lacking.pop()}")
    names = table["run"].astype(str) + "@" + table["training_seed"].astype(str)
    against = table["against"] if "against" in table else pd.Series("", table.index)
    known, pairs = {*chosen.runs, *chosen.networks}, list(zip(names, against, strict=True))
    todays = {pair: stamp(chosen, *pair) for pair in set(pairs)
              if pair[0].partition("@")[0] in known}  # yapf: disable
    fresh = [todays.get(pair) == found for pair, found in zip(pairs, table["digest"], strict=True)]
    return table[pd.Series(fresh, table.index, dtype=bool)].reset_index(drop=True)


def stamp(chosen: Profile, name: str, against: str = "") -> str:
    """What a row of the run `name`, measured against images or against another run, is made of."""
    from gdd.training.start import digest  # imports torch, which who only loads does without

    parts = [digest(chosen, name)]
    if against in chosen.runs:
        parts.append(digest(chosen, against))
    elif against == "data" and chosen.reference:  # else the data are the run's own
        parts.append(digest_of(Path(chosen.reference).name))
    return "+".join(parts)


def load(file: Path, **options: Any) -> pd.DataFrame:
    """A csv file. Raises ValueError if it is none."""
    with open_regular(file) as opened:
        content = opened.read(_MOST + 1)
    try:
        if len(content) > _MOST:
            raise ValueError(f"more than {_MOST:,} bytes")
        return pd.read_csv(io.BytesIO(content), **options)
    except (ValueError, OverflowError, MemoryError) as error:  # pandas' own are ValueErrors
        raise ValueError(f"{quoted(file)} is no table: {quoted(error)}") from None


def of_figures(profile_name: str, *needed: str) -> dict[str, pd.DataFrame]:
    """The tables beside the profile's figures, by their names. Raises ValueError if one that is
    needed is not there."""
    folder = path("", profile_name).parent
    files = [*sorted(folder.glob("fig*.csv")), *folder.glob("spectrum.csv")]
    found = {file.stem: load(file) for file in files}
    if lacking := [f"{name}.csv" for name in needed if name not in found]:
        raise ValueError(f"{folder} has no {' and no '.join(lacking)} yet; "
                         "`python -m analysis.figures` makes all")
    return found
