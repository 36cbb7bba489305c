"""Draw figures again from the csv files beside them: no torch, no measuring, seconds.

A notebook's cells tagged `draw` take what is in their table and nothing else that was measured. A
second tag names the csv file of the table, which in the notebook is what the cells above made.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import tables
from gdd.notebooks import FOLDER


def redraw(notebook: str, profile_name: str, folder: Path) -> list[str]:
    """Write the pictures of a notebook into `folder` anew, from the csv files in it; returns their
    names. Raises ValueError if one cannot be read."""
    cells = json.loads((FOLDER / f"{notebook}.ipynb").read_text())["cells"]
    names: dict[str, Any] = {"display": lambda *shown: None}
    drawn: dict[str, pd.DataFrame] = {}
    for cell in cells:
        kind, *table = cell["metadata"].get("tags", [""])
        if kind == "parameters":
            exec("".join(cell["source"]), names)
            names |= {"profile": profile_name, "output": str(folder)}
        elif kind == "draw":
            for name in table:
                if name not in drawn:
                    drawn[name] = tables.load(folder / f"{name}.csv")
                    names["table"] = drawn[name]
            exec("".join(cell["source"]), names)
    return list(drawn)
