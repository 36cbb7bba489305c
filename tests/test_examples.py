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


def test_two_gans_in_twenty_lines(tmp_path, monkeypatch, capsys):
    run_example("two_gans.py", 200, cwd=tmp_path, monkeypatch=monkeypatch)
    shown = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert (shown["a"], shown["b"], shown["metric"]) == ("gan0", "gan1", "FD200[digits]")
    assert 0 < float(shown["low"]) <= float(shown["mean"]) <= float(shown["high"])
    assert len((EXAMPLES / "two_gans.py").read_text().splitlines()) <= 20


def test_a_metric_of_ones_own_in_twenty_lines(tmp_path, monkeypatch, capsys):
    run_example("own_metric.py", cwd=tmp_path, monkeypatch=monkeypatch)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    found = {(a, b, metric): float(value) for a, b, metric, value in rows}
    generators = "gdd-i@one-step", "gdd@one-step"
    assert len(found) == 3 * 2
    # two generators of one teacher are nearer to one another than either to the data
    for metric in ("FD500[sums]", "energy500[sums]"):
        assert found[(*generators, metric)] < min(
            found[name, "digits", metric] for name in generators)
    assert len((EXAMPLES / "own_metric.py").read_text().splitlines()) <= 20


def test_figure_3_of_a_unet_of_diffusers(tmp_path, monkeypatch, capsys):
    pytest.importorskip("diffusers")
    run_example("diffusers_figure3.py", cwd=tmp_path, monkeypatch=monkeypatch)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["figure3.csv", "figure3.png"]
    table = pd.read_csv(tmp_path / "figure3.csv")
    assert len(table) == 22 * 18  # residual blocks, noise levels
    assert table["block"].iloc[0] == "down_blocks.0.resnets.0.conv2"
    assert (table["value"] > 0).all()
    assert "UNet2DModel: mean_abs of each block's output" in capsys.readouterr().out
    assert len((EXAMPLES / "diffusers_figure3.py").read_text().splitlines()) <= 20
