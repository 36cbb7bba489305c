"""The tables of docs/pictures.md are what was measured of cifar10-16."""

import re
from pathlib import Path

import pandas as pd
import pytest

from analysis import tables, verdicts

PROFILE = "cifar10-16"
ROOT = Path(__file__).parents[1]
PAGE, FIGURES = (ROOT / "docs" / "pictures.md").read_text(), ROOT / "figures" / PROFILE
JUDGES = ("FD10k[cifar10-classifier]", "FD10k[lite2@64]", "SWD10k")
SAID = re.compile(r"; (holds|does not hold|not decided) by (\S+):")
QUARTER, HALF, ALL = 25_600, 51_200, 102_400  # images

# by the first cell of a table's header: after how many images, and the run of each row's first
TABLES = {
    "run": (ALL, {"GDD": "gdd", "GDD-I": "gdd-i", "CD": "cd", "CD-I": "cd-i",
                  "GDD + CD": "gdd+cd"}),
    "frozen": (HALF, {
        "nothing, GDD": "gdd",
        "convolutions, GDD-I": "gdd-i",
        "and attention's queries, keys, values": "gdd-i-qkv",
        "and the convolutions of skips": "gdd-i-qkv-skip",
        "all but normalisation's weights": "gdd-norm-only",
        "what GDD-I trains": "gdd-inverse",
        "what GDD-I trains, at GDD's rate": "gdd-inverse-2e-4", }),
    "through": (HALF, {
        "Lite0, GDD-I": "gdd-i",
        "a classifier of CIFAR-10": "gdd-i-sibling",
        "Lite0 and the classifier": "gdd-i-both",
        "Lite0, random weights": "gdd-i-untrained", }),
    "looks at": (QUARTER, {"64 pixels, GDD-I": "gdd-i", "224 pixels": "gdd-i-224"}),
    "start": (HALF, {
        "GDD, the full teacher": "gdd",
        "GDD, a tenth": "gdd-from-tenth",
        "GDD, random weights": "gdd-from-random",
        "GDD-I, the full teacher": "gdd-i",
        "GDD-I, a tenth": "gdd-i-from-tenth",
        "GDD-I, random weights": "gdd-i-from-random", }),
}  # yapf: disable


def number(x):
    digits = 0 if x >= 100 else 1 if x >= 10 else 2 if x >= 0.1 else 3
    return f"{x:,.{digits}f}"


def listed(values):
    return ", ".join(map(number, values))


def spanned(values):
    """Three as their mean with the least and the largest, fewer as they are."""
    if len(values) < 3:
        return listed(values)
    mean, low, high = sum(values) / len(values), min(values), max(values)
    return f"{number(mean)} ({number(low)} to {number(high)})"


def lines(first):
    """The rows of the first table whose header begins with a cell."""
    return PAGE.split(f"\n| {first} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]


def shown(first):
    """The further cells of a table's rows by the first of them."""
    rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines(first))
    return {cells[0]: cells[1:] for cells in rows}


def by_seed(rows):
    """The mean over ranges of sampling seeds of each training seed, in their order."""
    return list(rows.groupby("training_seed")["distance"].mean())


@pytest.fixture(scope="module")
def measured():
    table = verdicts.at_images(PROFILE)
    return table[table["against"] == "data"]


@pytest.fixture(scope="module")
def last(measured):
    of = measured[measured["images"].isin([ALL, 480_000])]
    return of.set_index(["run", "sampler", "metric"])


@pytest.mark.parametrize("first", TABLES)
def test_a_table_of_runs(first, measured):
    images, runs = TABLES[first]
    found = shown(first)
    assert list(found) == list(runs)
    of = measured[measured["images"] == images].set_index(["run", "metric"])
    for title, run in runs.items():
        values = [by_seed(of.loc[(run, judge)]) for judge in JUDGES]
        assert found[title][-4:] == [str(len(values[0])), *map(spanned, values)], title


def test_the_table_of_claims():
    """Those that compare distances, by judge; the others' verdicts stand in the first's words."""
    claims = pd.read_csv(FIGURES / "claims.csv")
    expected = []
    for row in claims[claims["training_seeds"] > 0].itertuples():
        others = {judge: said for said, judge in SAID.findall(row.here)}
        cells = [row.text, row.verdict, *(others.pop(judge) for judge in JUDGES[1:])]
        assert not others
        expected.append(f"| {' | '.join(cells)} |")
    assert lines("the paper says") == expected


def test_the_table_of_judges(last):
    floors = tables.read("floor", PROFILE).set_index(["of", "metric"])
    found = list(shown("judge").values())
    for cells, judge in zip(found, JUDGES, strict=True):
        teacher = list(last.loc[("teacher", "heun:18", judge)]["distance"])
        students = [listed(by_seed(last.loc[(run, "one-step", judge)])) for run in ("gdd", "gdd-i")]
        floor = number(floors.loc[("data", judge)]["distance"].mean())
        assert cells == [spanned(teacher), *students, floor], judge


def test_the_table_of_classes(last):
    runs = {
        "none, teacher, 35 calls": ("teacher", "heun:18"),
        "its class, teacher, 35 calls": ("cond-teacher", "heun:18"),
        "none, GDD-I, one call": ("gdd-i", "one-step"),
        "its class, GDD-I, one call": ("cond-gdd-i", "one-step"), }
    found = shown("told")
    assert list(found) == list(runs)
    for title, run in runs.items():
        values = [by_seed(last.loc[(*run, judge)]) for judge in JUDGES]
        assert found[title] == [str(len(values[0])), *map(spanned, values)], title


def test_the_table_of_images():
    curves = tables.read("curves", PROFILE).set_index(["images", "run"])
    found = shown("images")
    assert len(found) == 6
    for images, cells in found.items():
        at = int(images.replace(",", ""))
        assert cells == [listed(by_seed(curves.loc[(at, run)])) for run in ("gdd", "gdd-i")]


def test_the_table_of_steps():
    rows = tables.read("seeds", PROFILE).set_index(["run", "metric", "kind", "against"])
    found = shown("generator")
    runs = ("gdd", "k-step-2", "two-step-0.8", "k-step-4")
    for cells, run in zip(found.values(), runs, strict=True):
        values = [by_seed(rows.loc[(run, judge, *against)]) for judge in JUDGES
                  for against in (("abs", "data"), ("rel", "gdd"))]  # yapf: disable
        assert cells == [str(len(values[0])), *map(listed, values)], run
