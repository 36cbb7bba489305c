"""results.csv, and the parts of README and docs/speed.md that are made of it."""

import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from benchmarks import machine
from benchmarks.row import Row
from gdd.files import ROOT, write_atomically

RESULTS = ROOT / "benchmarks" / "results.csv"
FIGURES = ROOT / "figures" / "bench"
README, PAGE = ROOT / "README.md", ROOT / "docs" / "speed.md"
COLUMNS = ["work", "against", "ours", "theirs", "unit", "ratio", "target", "at_most", "met",
           "error", "reason", "torch", "processor", "threads", "date"]  # yapf: disable
SHARE = "GFLOP/s"  # the unit in which theirs is a ceiling
_DIGITS = {"ours": 4, "theirs": 4, "ratio": 3, "error": 2}


def frame(rows: Iterable[Row]) -> pd.DataFrame:
    table = pd.DataFrame([
        asdict(row) | dict(ratio=row.ratio, met=_answer(row.met), reason=_reason(row))
        | machine.describe() for row in rows])
    for name, digits in _DIGITS.items():
        table[name] = [float(f"{x:.{digits}g}") for x in table[name].astype(float)]
    return table[COLUMNS]


def _answer(met: bool | None) -> str:
    return "" if met is None else "yes" if met else "no"


def _reason(row: Row) -> str:
    return row.reason if row.met is False or row.ratio is None else ""


def write(table: pd.DataFrame, path: Path = RESULTS) -> None:
    write_atomically(path, table.to_csv(index=False, lineterminator="\n").encode())


def read(path: Path = RESULTS) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=True).fillna(
        dict.fromkeys(("reason", "met", "unit", "against"), ""))


def block(table: pd.DataFrame, *, every: bool) -> str:
    """Markdown: of each piece of work with a target the first peer, or every row with its times,
    error and what holds it back."""
    first = table.iloc[0]
    said = f"{first['processor']}, {first['threads']} threads, PyTorch {first['torch']}, " \
           f"{first['date']}"
    heads = ["work", "against", "times as fast", "wanted"]
    heads += ["ours", "theirs", "error", "what holds it back"] if every else []
    chosen = table if every else table[table["met"] != ""].drop_duplicates("work")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in chosen.to_dict("records"):
        cells = [row["work"], row["against"], times(row), wanted(row)]
        if every:
            error = "" if pd.isna(row["error"]) else f"{row['error']:g}"
            cells += [
                _value(row["ours"], row["unit"]),
                _value(row["theirs"], row["unit"]), error, row["reason"]]
        lines.append(f"| {' | '.join(cells)} |")
    met = (table["met"] == "yes").sum()
    asked = (table["met"] != "").sum()
    measured = f"Measured in one run of `make bench` on {said}; {met} of {asked} targets are met."
    return "\n".join([measured, "", *lines])


def times(row: dict) -> str:
    """How many times as fast, or which share of a ceiling."""
    if pd.isna(row["ratio"]):
        return "not measured"
    if row["unit"] == SHARE:
        return f"{row['ratio']:.0%} of it"
    return f"{row['ratio']:.3g}" + (" times less" if row["unit"] == "bytes" else "")


def wanted(row: dict) -> str:
    """The target, and whether it is missed; empty without one."""
    if row["met"] == "":
        return ""
    goal = f"{row['target']:g}" if pd.isna(row["at_most"]) else f"at most {row['at_most']:g} s"
    if row["unit"] == SHARE:
        goal = f"{row['target']:.0%}"
    return goal if row["met"] == "yes" else f"{goal}: falls short"


def _value(x: float, unit: str) -> str:
    if pd.isna(x):
        return ""
    if unit == "bytes":
        return f"{x / 1e6:.3g} MB"
    return f"{x:,.0f} {unit}" if x >= 1000 else f"{x:.3g} {unit}"


def roofline_block(table: pd.DataFrame) -> str:
    """Markdown: each piece of work, its share of the roof, and a sentence."""
    lines = [
        "| work | GFLOP/s | share of the roof | roof made by | what holds the rest back |",
        "|---|---|---|---|---|"]
    for row in table.itertuples():
        lines.append(f"| {row.work}, {row.dtype} | {row.gflop_per_second:.3g} | {row.share:.0%} | "
                     f"{row.bound_by} | {row.held_back_by} |")
    return "\n".join(lines)


def scaling_block(table: pd.DataFrame) -> str:
    """Markdown: fitted exponents beside those of theory."""
    lines = ["| grows | time | theory | memory | theory |", "|---|---|---|---|---|"]
    for name, rows in table.groupby("axis", sort=False):
        row = rows.iloc[0]
        lines.append(f"| {name} | {row['seconds_slope']:.2f} | {row['seconds_theory']:g} | "
                     f"{row['bytes_slope']:.2f} | {row['bytes_theory']:g} |")
    return "\n".join(lines)


def with_block(text: str, source: str, content: str) -> str:
    """The page with what stands between its marks of `source` replaced."""
    start, end = f"<!-- speed: made from {source} -->", f"<!-- end of {source} -->"
    pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.S)
    if not pattern.search(text):
        raise ValueError(f"there are no marks of {source}, {start} and {end}")
    return pattern.sub(lambda _: f"{start}\n\n{content}\n\n{end}", text)


def pages() -> dict[Path, str]:
    """README and docs/speed.md as the files that were measured make them."""
    results, name = read(), RESULTS.relative_to(ROOT).as_posix()
    drawn = {kind: pd.read_csv(FIGURES / f"{kind}.csv") for kind in ("scaling", "roofline")}
    page = with_block(PAGE.read_text(), name, block(results, every=True))
    page = with_block(page, "figures/bench/scaling.csv", scaling_block(drawn["scaling"]))
    page = with_block(page, "figures/bench/roofline.csv", roofline_block(drawn["roofline"]))
    return {README: with_block(README.read_text(), name, block(results, every=False)), PAGE: page}
