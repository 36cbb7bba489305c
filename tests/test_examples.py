"""The examples run from any folder, and write and print what they say."""

import runpy
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run_example(name, *arguments, cwd, monkeypatch):
    monkeypatch.chdir(cwd)
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_the_whole_method_in_one_script(tmp_path, monkeypatch, capsys):
    name = "gdd_on_digits.py"
    run_example(name, "--images", 128, "--n", 64, cwd=tmp_path, monkeypatch=monkeypatch)
    folder = tmp_path / "gdd_on_digits"
    assert [f.name for f in tmp_path.iterdir()] == [folder.name]
    files = ["distances.csv", "gdd-i.png", "teacher.png"]
    assert sorted(f.name for f in folder.iterdir()) == files
    with Image.open(folder / "gdd-i.png") as grid:
        assert grid.size == (8 * 10 * 4, 8 * 10 * 4)  # 64 digits in frames, four times enlarged
    table = pd.read_csv(folder / "distances.csv")
    pairs = [("teacher", "gdd-i"), ("teacher", "digits"), ("gdd-i", "digits")]
    assert list(zip(table["a"], table["b"], strict=True)) == pairs
    assert set(table["metric"]) == {"FD64[digits]"}
    assert (table["value"] > 0).all()
    shown = capsys.readouterr().out
    assert "203,896 of 239,601 weights frozen (85.1%)" in shown
    assert "FD64[digits]" in shown
    assert len((EXAMPLES / name).read_text().splitlines()) <= 80


def test_a_denoiser_of_ones_own(tmp_path, monkeypatch, capsys):
    arguments = "--images", 1_000, "--n", 64, "--folder", "mine"
    run_example("own_denoiser.py", *arguments, cwd=tmp_path, monkeypatch=monkeypatch)
    files = ["activations.csv", "samples.png"]
    assert sorted(f.name for f in (tmp_path / "mine").iterdir()) == files
    table = pd.read_csv(tmp_path / "mine" / "activations.csv")
    assert list(table) == ["layer", "step", "sigma", "mean_abs"]
    assert len(table) == 4 * 18  # layers, noise levels
    assert table["sigma"].max() == 80
    assert table["sigma"].min() == pytest.approx(0.002)
    shown = capsys.readouterr().out
    assert "where each layer is strongest" in shown
    assert "FD64[digits]" in shown
