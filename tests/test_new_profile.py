"""Adding a data set is adding one file: a profile that nothing else knows is trained, measured,
drawn, explored and shipped, and what it keeps of that is enough for every notebook and the gallery.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from patches_profile import write_data

ROOT = Path(__file__).resolve().parents[1]
PROFILE = ROOT / "tests" / "patches_profile.py"
NOTEBOOKS = ("fig01_overview", "fig02_rel_fid", "fig03_activations", "fig04_consistency",
             "fig05_19_samples", "spectrum", "editing", "importance", "ablations")
MORE = ("fig05_19_samples_nearest", "editing_measured", "ablations_images")


def command(*arguments, cwd, **variables):
    done = subprocess.run([sys.executable, "-m", *map(str, arguments)], cwd=cwd, text=True,
                          capture_output=True, check=False, env=os.environ | variables)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_profile_of_ones_own_is_trained_drawn_and_explored(tmp_path, monkeypatch):
    names = {
        "PATCHES": str(tmp_path / "patches.zip"), "GDD_RUNS": str(tmp_path / "runs"), "GDD_FIGURES":
        str(tmp_path / "figures")}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    write_data(tmp_path / "patches.zip")
    shown = command("analysis.figures", "--profile", PROFILE, "--only", "fig03,fig05", cwd=tmp_path)
    assert re.search(r"trained gdd-i: 160 images in \d+ s, .*FD64\[judges\]", shown)
    folder = tmp_path / "figures" / "patches"
    pictures = ("fig03_activations", "fig05_19_samples", "fig05_19_samples_nearest")
    files = [f"{name}.{kind}" for name in pictures for kind in ("csv", "pdf", "png", "txt")]
    assert sorted(f.name for f in folder.iterdir()) == sorted([
        "claims.csv", "curves.csv", "floor.csv", "seeds.csv", "index.html", "notebooks", *files])
    assert set(pd.read_csv(folder / "seeds.csv")["metric"]) == {"FD64[judges]"}
    before = {f: f.read_bytes() for f in folder.glob("*.*")}
    explored = command("analysis.figures", "--profile", PROFILE, "--only", "fig03", "-p",
                       "run=gdd-i", "-p", "statistic=rms", cwd=tmp_path)
    assert "trained" not in explored
    other = folder / "explore" / "fig03_run-gdd-i_statistic-rms"
    assert sorted(f.name for f in other.iterdir()) == [
        *(f"fig03_activations-rms.{kind}" for kind in ("csv", "pdf", "png", "txt")), "index.html",
        "notebooks"]
    assert {f: f.read_bytes() for f in folder.glob("*.*")} == before
    trained = command("gdd", "train", f"{PROFILE}-edm-cond", "--folder", tmp_path / "run",
                      "--accelerator", "cpu", "--samples", "4", cwd=tmp_path)
    assert "final.safetensors" in trained


@pytest.mark.slow
def test_a_profile_whose_figures_read_what_was_measured(tmp_path, monkeypatch):
    """Trained, measured and shipped once; then every figure without data and without training."""
    names = {
        "PATCHES": str(tmp_path / "patches.zip"), "KEPT_SHIPPED": str(tmp_path / "shipped"),
        "GDD_RUNS": str(tmp_path / "runs"), "GDD_FIGURES": str(
            tmp_path / "figures"), "PYTHONPATH": str(ROOT / "tests")}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    write_data(tmp_path / "patches.zip")
    write_data(tmp_path / "others.zip", seed=1)
    kept, folder = ROOT / "tests" / "kept_profile.py", tmp_path / "figures" / "kept"
    shown = command("analysis.figures", "--profile", kept, "--seeds", cwd=tmp_path)
    assert shown.count(" trained ") == 2 + 12 + 6  # classifiers, runs, further seeds
    seeds, along, memory, floor = (pd.read_csv(folder / f"{name}.csv")
                                   for name in ("seeds", "snapshots", "memory", "floor"))
    assert set(seeds["metric"]) == {"FD64[judges]", "SWD64"} == set(floor["metric"])
    assert set(seeds["against"]) == {"data", "test", "gdd"}
    counted = seeds.groupby(["run", "training_seed", "sampler", "metric", "kind", "against"]).size()
    assert (counted == 2).all()  # ranges of sampling seeds
    assert along.groupby("images").size().to_dict() == {80: 32}
    assert set(memory["run"]) == {"edm", "gdd", "gdd-i"}
    assert memory[memory["of"] == "held-out"]["share_below"].between(0, 0.05).all()
    curves, near = (pd.read_csv(folder / f"{name}.csv") for name in ("curves", "neighbours"))
    assert set(curves["training_seed"]) == {0, 1}
    assert set(curves["run"]) == {"gdd", "gdd-i", "cd", "cd-i", "gdd+cd"}
    assert near.groupby("run").size().to_dict() == {"edm": 8, "gdd": 8, "gdd-i": 8}
    taken_out = pd.read_csv(folder / "branches.csv").groupby("run")
    counted = taken_out[["levels", "n"]].mean().T.to_dict("list")
    assert counted == {"edm": [3, 2], "gdd": [1, 8], "gdd-i": [1, 8]}
    before = {f: f.read_bytes() for f in folder.glob("*.csv")}
    # what has rows of today is neither trained nor measured, wherever its weights are
    (tmp_path / "runs" / "kept").rename(tmp_path / "elsewhere")
    again = command("analysis.figures", "--profile", kept, "--seeds", cwd=tmp_path)
    assert " trained " not in again
    assert " measured " not in again
    (tmp_path / "elsewhere").rename(tmp_path / "runs" / "kept")
    # a night that ended between two ranges of a run goes on with the second
    second = (seeds["training_seed"] == 0) & (seeds["seeds"] != "0-63")
    seeds[(seeds["run"] != "cd") | second].to_csv(folder / "seeds.csv", index=False)
    one = command("analysis.figures", "--profile", kept, "--seeds", "--runs", "cd,gdd",
                  cwd=tmp_path)
    assert " trained " not in one
    assert re.findall(r" measured (.*) for (.*)\.csv", one) == [("cd, one-step, 0-63", "seeds")]
    command("analysis.figures", "--profile", kept, "--seeds", "--runs", "cd@1", cwd=tmp_path)
    assert {f: f.read_bytes() for f in folder.glob("*.csv")} == before

    command("analysis.figures", "--profile", kept, "--ship", cwd=tmp_path)
    shipped = {f.name for f in (tmp_path / "shipped").iterdir()}
    assert {"real.npz", "real-judges.npz", "edm.safetensors", "looks.safetensors"} < shipped
    assert "gdd-i-short.safetensors" not in shipped
    for gone in ("runs", "patches.zip", "others.zip"):
        (tmp_path / gone).rename(tmp_path / f"{gone}-gone")
    made = command("analysis.figures", "--profile", kept, cwd=tmp_path)
    assert " trained " not in made
    table = pd.read_csv(folder / "ablations.csv", keep_default_na=False)
    assert set(table["images"]) == {80}
    assert set(table["verdict"]) <= {"", "lower", "higher", "not decided"}
    alone = table[table["run"] == "gdd-from-random"]
    assert set(alone["verdict"]) == {"not decided"}  # one training seed
    assert set(alone["beside"]) == {"gdd"}
    files = [f"{name}.{kind}" for name in (*NOTEBOOKS, *MORE) for kind in ("pdf", "png", "txt")]
    files += [f"table{k}.{kind}" for k in range(1, 7) for kind in ("csv", "md", "tex")]
    tables = [f"{name}.csv" for name in (*NOTEBOOKS, *MORE, "claims")]
    assert sorted(f.name for f in folder.iterdir()) == sorted([
        "index.html", "notebooks", *files, *tables, *(f.name for f in before)])
    table = pd.read_csv(folder / "fig03_activations.csv")
    assert set(table["resolution"]) == {12, 6}
    assert (table["n"] == 8).all()
    table = pd.read_csv(folder / "fig02_rel_fid.csv")
    assert set(table["metric"]) == {"FD64[judges]"}
    x = table.groupby("panel")["x"].unique().map(set)
    assert x["A1"] == {1, 2}
    assert x["B"] == {1, 2.515}  # a two-step generator, and K = 2
    control = table[(table["panel"] == "A1") & (table["run"] == "gdd") & (table["kind"] != "abs")]
    assert set(control["training_seed"]) == {1}  # not the one that it is compared with
    for name in NOTEBOOKS:
        assert f"{name}.csv" in (folder / "index.html").read_text()
        executed = nbformat.read(folder / "notebooks" / f"{name}.ipynb", as_version=4)
        assert "digits" not in str(executed)
        assert not any(str(ROOT) in str(cell.get("outputs")) for cell in executed.cells)
