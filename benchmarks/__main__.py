"""The table of ours against named peers: `python -m benchmarks`, or some of it by name. All of it
writes results.csv, figures/bench, and what README and docs/speed.md show of them.

With CI in the environment everything is tiny, nothing is written and no bar holds.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import matplotlib as mpl

from analysis.figures import save_figure
from analysis.plots import paper_style
from benchmarks import (
    data,
    distances,
    recording,
    roofline,
    sampling,
    scaling,
    startup,
    table,
    textbook,
)
from benchmarks.clock import FULL
from benchmarks.row import Row
from gdd.files import write_atomically

PARTS: dict[str, Callable[[], Iterator[Row]]] = {
    "sampling": sampling.rows,
    "recording": recording.rows,
    "distances": distances.rows,
    "data": data.rows,
    "startup": startup.rows,
    "training": partial(textbook.rows, textbook.REPEATS if FULL else 1), }
DRAWN = {"scaling": scaling, "roofline": roofline}


def main(names: list[str]) -> int:
    """The exit code: 1 if a row stays below its bar."""
    if unknown := set(names) - PARTS.keys() - DRAWN.keys():
        print(f"parts are {', '.join([*PARTS, *DRAWN])}; got {', '.join(sorted(unknown))}")
        return 2
    whole, start, rows = not names and FULL, time.monotonic(), []
    for name, part in PARTS.items():
        for row in part() if not names or name in names else ():
            rows.append(row)
            print(_line(row), flush=True)
    with tempfile.TemporaryDirectory() as elsewhere:
        folder = table.FIGURES if whole else Path(elsewhere)
        for name in DRAWN:
            if not names or name in names:
                print(f"\n{_drawn(name, folder)}", flush=True)
    if whole:
        table.write(table.frame(rows))
        for page, text in table.pages().items():
            write_atomically(page, text.encode())
    below = [row for row in rows if not row.passes]
    print(f"\n{time.monotonic() - start:.0f} s, {len(rows)} rows" +
          "".join(f"\nbelow its bar of {row.bar:g}: {_line(row)}" for row in below))
    return int(bool(below))


def _line(row: Row) -> str:
    (record, ) = table.frame([row]).fillna({"reason": ""}).to_dict("records")
    cells = [row.work, row.against, table.times(record), table.wanted(record), record["reason"]]
    return " | ".join(cell for cell in cells if cell)


def _drawn(name: str, folder: Path) -> str:
    """Measure and draw; the table as Markdown."""
    mpl.use("agg")
    paper_style()
    part = DRAWN[name]
    measured = part.measure()
    save_figure(part.draw(measured), measured, folder, name, part.CAPTION)
    made = {"scaling": table.scaling_block, "roofline": table.roofline_block}
    return made[name](measured)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
