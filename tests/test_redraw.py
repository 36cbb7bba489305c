"""Every committed figure comes out of the csv file beside it, and out of nothing else."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.image as mpimg
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from analysis import pixels

ROOT = Path(__file__).resolve().parents[1]
COMMITTED = ROOT / "figures"
PROFILES = ("desk", "cifar10-16")
PICTURES = sorted((name, f.stem) for name in PROFILES for f in (COMMITTED / name).glob("*.png"))
WITHOUT_TORCH = """
import sys
class Refused:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] == "torch":
            raise ImportError("a figure was measured again")
sys.meta_path.insert(0, Refused())
from analysis.figures import Figures, main
main(Figures(profile=sys.argv[1], redraw=True))
"""


def redraw(figures, profile="desk"):
    ran = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, profile], cwd=ROOT, check=False,
                         text=True, capture_output=True,
                         env=os.environ | {"GDD_FIGURES": str(figures)})
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    figures = tmp_path_factory.mktemp("figures")
    for name in PROFILES:
        (figures / name).mkdir()
        for file in (COMMITTED / name).glob("*.csv"):
            shutil.copy(file, figures / name)
        redraw(figures, name)
    return figures


@pytest.mark.parametrize(("profile", "name"), PICTURES)
def test_a_figure_is_redrawn_from_its_csv_alone(drawn, profile, name):
    before, after = (folder / profile / name for folder in (COMMITTED, drawn))
    for kind in ("csv", "txt"):
        assert after.with_suffix(f".{kind}").read_bytes() == before.with_suffix(
            f".{kind}").read_bytes()
    before, after = (mpimg.imread(file.with_suffix(".png")) for file in (before, after))
    assert before.shape == after.shape
    assert np.abs(before - after).max(axis=2).mean() < 1e-3  # another processor's rounding


def test_what_is_drawn_follows_the_csv(drawn, tmp_path):
    (tmp_path / "desk").mkdir()
    table = pd.read_csv(drawn / "desk" / "fig04_consistency.csv")
    table.loc[table["source"] == "final", "distance"] *= 2
    table.to_csv(tmp_path / "desk" / "fig04_consistency.csv", index=False)
    assert redraw(tmp_path) == "fig04: fig04_consistency\n"
    before, after = (mpimg.imread(folder / "fig04_consistency.png")
                     for folder in (drawn / "desk", tmp_path / "desk"))
    assert before.shape != after.shape or np.abs(before - after).max() > 0.5


def test_every_figure_has_cells_that_draw_it():
    found = []
    for file in (ROOT / "notebooks").glob("*.ipynb"):
        for cell in json.loads(file.read_text())["cells"]:
            kind, *table = cell["metadata"].get("tags", [""])
            found += table if kind == "draw" else []
            assert kind == "draw" or "save_figure" not in "".join(cell["source"])
    assert {name for _, name in PICTURES} <= set(found)


def test_a_damaged_csv_is_one_line(tmp_path):
    (tmp_path / "desk").mkdir()
    (tmp_path / "desk" / "fig04_consistency.csv").write_bytes(b"")
    ran = subprocess.run([sys.executable, "-m", "analysis.figures", "--redraw"], cwd=ROOT,
                         check=False, text=True, capture_output=True,
                         env=os.environ | {"GDD_FIGURES": str(tmp_path)})
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1
    assert "fig04_consistency.csv is no table: " in ran.stderr


@given(arrays(np.uint8, st.tuples(*[st.integers(1, 5)] * 4)))
def test_pictures_survive_a_csv_file(images):
    assert (pixels.unpacked(pixels.packed(images)) == images).all()


@pytest.mark.parametrize("text", ["", "1x2x2", "1x2x2:AAAA", "1x1x1:*", "ax1:AA=="])
def test_other_texts_are_no_pictures(text):
    with pytest.raises(ValueError, match=r"."):
        pixels.unpacked([text])
