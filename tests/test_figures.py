"""What the figures command writes, where, and what it leaves alone."""

import re
from fnmatch import fnmatch
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest

from analysis import activation_plots, figures, gallery, labels, notebooks, plots, published
from gdd.profiles import presets, profile, profiles
from gdd.profiles.paper import TEACHERS

mpl.use("Agg")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def test_saved_figures_are_reproducible_files_with_four_digits(tmp_path):
    for folder, off in (("a", 0.0), ("b", 1e-7)):  # as another processor would round
        table = figures.rounded(pd.DataFrame({"x": [1.23456 + off, 2e-9], "n": [12345, 1]}))
        figure, ax = plt.subplots()
        ax.plot(table["x"])
        figures.save_figure(figure, table, tmp_path / folder, "f")
        plt.close(figure)
    for kind in ("png", "pdf", "csv"):
        assert (tmp_path / "a" / f"f.{kind}").read_bytes() == (tmp_path / "b" /
                                                               f"f.{kind}").read_bytes()
    assert (tmp_path / "a" / "f.csv").read_text() == "x,n\n1.235,12345\n2e-09,1\n"


def test_only_the_committed_figures_parameters_write_to_its_folder(tmp_path):
    usual = figures.FIGURES["fig03"].parameters
    assert figures.output_folder("fig03", "desk", **usual) == figures.FIGURES_FOLDER / "desk"
    explored = figures.output_folder("fig03", "desk", **usual | {"run": "gdd-i", "part": "../proj"})
    assert explored.parent == figures.FIGURES_FOLDER / "desk" / "explore"
    assert explored.name == "fig03_run-gdd-i_part-..-proj"
    assert figures.output_folder("fig03", "desk", str(tmp_path), **usual) == tmp_path


@pytest.mark.parametrize("key", figures.FIGURES)
def test_notebooks_have_the_parameters_that_the_command_knows(key):
    figure = figures.FIGURES[key]
    notebook = nbformat.read(notebooks.source(figure.notebook), as_version=4)
    (cell, ) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    found: dict = {}
    exec(cell.source, found)  # literals only, as tests/test_structure.py asserts
    found = {name: value for name, value in found.items() if not name.startswith("__")}
    assert found == {"profile": "desk", "output": ""} | dict(figure.parameters)


def test_a_grid_has_every_image():
    images = np.full((5, 1, 2, 2), 7, np.uint8)
    (shown, ) = plots.plot_images(images, columns=3).get_images()
    grid = np.asarray(shown.get_array())
    assert (grid == 7).sum() == images.size
    assert grid.shape == (5, 8)  # two rows of three, a pixel apart


def test_a_notebook_is_stale_once_a_table_that_it_reads_has_changed(tmp_path, monkeypatch):
    """Wherever its own figure goes."""
    monkeypatch.setattr(figures, "FIGURES_FOLDER", tmp_path)
    (tmp_path / "smoke").mkdir()
    task = notebooks.Task("tables", "smoke", {}, [], tmp_path / "elsewhere", ["fig04_consistency"])
    seen = []
    for name in ("seeds", "fig04_consistency", "fig02_rel_fid"):
        (tmp_path / "smoke" / f"{name}.csv").write_text("a\n1\n")
        seen.append(notebooks.inputs(task)["a measured table"])
    assert seen[0] != seen[1] == seen[2]


def test_parameters_are_read_as_literals():
    chosen = {"fig03": figures.FIGURES["fig03"]}
    assert figures._parameters(["steps=9", "run=gdd-i"], chosen) == {"steps": 9, "run": "gdd-i"}
    with pytest.raises(ValueError, match="name=value"):
        figures._parameters(["steps"], chosen)
    with pytest.raises(ValueError, match=r"parameter of fig03 must be one of .*did you mean steps"):
        figures._parameters(["stepz=3"], chosen)


@pytest.mark.slow
def test_a_failed_execution_leaves_the_last_good_one(tmp_path, monkeypatch):
    good = tmp_path / "smoke" / "notebooks" / "broken.ipynb"
    good.parent.mkdir(parents=True)
    good.write_text("the last good one")
    kernel = {"kernelspec": {"name": "python3", "display_name": "", "language": "python"}}
    notebook = nbformat.v4.new_notebook(
        metadata=kernel, cells=[
            nbformat.v4.new_code_cell("profile = 'desk'", metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell("1 / 0")])
    source = tmp_path / "broken.ipynb"
    nbformat.write(notebook, source)
    monkeypatch.setattr(notebooks, "source", lambda name: source)
    with pytest.raises(RuntimeError, match="broken failed in cell 3: ZeroDivisionError"):
        notebooks.execute(notebooks.Task("broken", "smoke", {}, [], tmp_path / "smoke"))
    assert good.read_text() == "the last good one"
    assert "ZeroDivisionError" in good.with_name("broken.failed.ipynb").read_text()


def test_the_gallery_shows_a_folders_figures(tmp_path):
    (tmp_path / "notebooks").mkdir()
    cells = [nbformat.v4.new_markdown_cell("# Figure 2: why?\nBecause.")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbformat.write(notebook, tmp_path / "notebooks" / "fig02_rel_fid.ipynb")
    (tmp_path / "fig02_rel_fid.txt").write_text("Three panels. n = 9.\n")
    pd.DataFrame({"a": [1.5]}).to_csv(tmp_path / "table1.csv", index=False)
    claims = {"text": ["it <grows>"], "paper": ["1.54"], "here": ["2"], "verdict": ["holds"]}
    pd.DataFrame(claims).to_csv(tmp_path / "claims.csv", index=False)
    for name in ("fig02_rel_fid", "fig<"):
        (tmp_path / f"{name}.png").write_bytes(b"")
    gallery.write_page(tmp_path, "Figures")
    page = (tmp_path / "index.html").read_text()
    assert '<img src="fig02_rel_fid.png" alt="Three panels"' in page
    assert "Figure 2: why?</h2>" in page
    assert "n = 9." in page
    assert '<td class="said holds">holds</td>' in page
    assert "it &lt;grows&gt;" in page
    assert '<details id="table1">' in page
    assert 'href="notebooks/fig02_rel_fid.ipynb"' in page
    assert "fig&lt;.csv" in page


def test_the_gallery_names_all_of_the_papers_pages_and_how_to_make_them(tmp_path):
    folder = tmp_path / "desk"
    folder.mkdir()
    gallery.write_page(folder, "Figures")
    page = (folder / "index.html").read_text()
    for number in range(5, 20):
        assert f"<td>Figure {number}</td>" in page
    assert page.count("not made here") == 15
    named = set(re.findall(r"gdd train ([\w-]+)", page))
    assert len(named) == 10
    assert named <= set(presets())
    assert set(re.findall(r"gdd download ([\w-]+)", page)) <= set(TEACHERS)
    assert set(re.findall(r"PROFILE=([\w-]+) ONLY=fig05", page)) < set(profiles())
    (tmp_path / "ffhq").mkdir()
    (tmp_path / "ffhq" / "fig05_19_samples.png").write_bytes(b"")
    gallery.write_page(folder, "Figures")
    page = (folder / "index.html").read_text()
    assert page.count("not made here") == 12
    assert 'href="../ffhq/index.html#fig05_19_samples"' in page


def test_seeds_of_another_config_are_not_read(tmp_path, monkeypatch):
    from analysis import measurements
    from gdd.profiles import profile
    from gdd.training.start import digest

    monkeypatch.setattr(figures, "FIGURES_FOLDER", tmp_path)
    assert measurements.further("desk").empty
    (tmp_path / "desk").mkdir()
    todays = digest(profile("desk"), "gdd@1")
    both = f"{todays}+{digest(profile('desk'), 'k-step-1')}"
    rows = [("gdd", 1, "data", todays, 1.0), ("gdd", 2, "data", "another", 2.0),
            ("gdd-i", 1, "data", todays, 3.0), ("gdd", 1, "k-step-1", both, 4.0),
            ("gdd", 1, "k-step-1", f"{todays}+another", 5.0)]  # of another student
    columns = ["run", "training_seed", "against", "digest", "distance"]
    table = pd.DataFrame(rows, columns=columns).assign(metric=measurements.metric("desk"))
    table.to_csv(tmp_path / "desk" / "seeds.csv", index=False)
    assert measurements.further("desk")["distance"].tolist() == [1.0, 4.0]


def test_activation_plot_runs_from_red_to_blue_and_from_0_to_1():
    rows = [(f"b{depth}", depth, step, 10.0 - step, depth + (step - 3)**2) for depth in range(4)
            for step in range(6)]
    columns = ["block", "depth", "step", "sigma", "value"]
    lines = activation_plots.plot_lines(pd.DataFrame(rows, columns=columns)).get_lines()
    assert [line.get_label() for line in lines] == ["b0", "b1", "b2", "b3"]
    assert all(line.get_ydata().min() == 0 and line.get_ydata().max() == 1 for line in lines)
    first, last = (mpl.colors.to_rgb(line.get_color()) for line in (lines[0], lines[-1]))
    assert first[0] > 0.7 > first[2]
    assert last[2] > 0.6 > last[0]


def test_bars_span_training_seeds_or_the_ranges_of_a_single_one():
    rows = [("abs", 1.0, 0, 1.0), ("abs", 1.0, 0, 3.0), ("abs", 1.0, 1, 4.0), ("abs", 1.0, 1, 6.0),
            ("abs", 2.0, 0, 1.0), ("abs", 2.0, 0, 5.0), ("rel", 2.0, 0, 2.0)]
    table = pd.DataFrame(rows, columns=["kind", "x", "training_seed", "distance"])
    ax = plots.plot_distances(table.assign(metric="FD9[x]"))
    (points, _, (bars, )), (rel, *_) = ax.containers
    assert points.get_ydata().tolist() == [3.5, 3.0]
    spans = [segment[:, 1].tolist() for segment in bars.get_segments()]
    assert spans == [[2.0, 5.0], [1.0, 5.0]]  # means of two seeds; the ranges of one
    assert rel.get_xdata()[0] > points.get_xdata()[1]  # a little apart
    assert ax.get_ylabel() == "FD9[x]"


def test_a_point_beside_another_has_a_tick_but_no_number():
    table = pd.DataFrame({
        "x": [0.8, 2.515, 3.0, 18.0], "kind": "abs", "training_seed": 0, "distance": 1.0, "metric":
        "FD9[x]"})
    ax = plots.plot_distances(table)
    assert ax.get_xticks().tolist() == [0.8, 2.515, 3.0, 18.0]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0.8", "2.5", "", "18"]


ODD = {
    "steps=x": "steps must be an integer; got 'x'", "steps=1.5": "steps must be an integer; got 1",
    "steps=True": "steps must be an integer", "steps=0": "steps must be from 1 to 1,000,000; got",
    "steps=10**9": "steps must be an integer", "steps=1e9": "steps must be an integer",
    "steps=99999999": "steps must be from 1 to", "n_images=-1": "n_images must be from 0 to",
    "n_images=None": "n_images must be an integer", "n_images=": "n_images must be an integer",
    "n_images={[]: 1}": "n_images must be an integer",
    "n_images=" + "(" * 900: "n_images must be an integer",
    "n_images=" + "9" * 5000: "n_images must have at most 1,000 characters",
    "n_images=\x1b[31m\n": r"got '\\x1b\[31m",
}  # yapf: disable
ODD_LISTS = {
    "solver_steps=2": "solver_steps must be a list; got 2", "solver_steps=[]": "must be from 1 to",
    "solver_steps=[2, 'x']": r"solver_steps\[1\] must be an integer; got 'x'",
    "solver_steps=[[2]]": r"solver_steps\[0\] must be an integer",
    "solver_steps=[0]": "solver_steps must be from 1 to",
}  # yapf: disable


@pytest.mark.parametrize(("key", "pair", "message"), [("fig03", *case) for case in ODD.items()] + [
    ("fig02", *case) for case in ODD_LISTS.items()], ids=lambda value: value[:20])
def test_a_parameter_of_a_wrong_kind_is_one_line(key, pair, message):
    with pytest.raises(ValueError, match=message) as caught:
        figures._parameters([pair], {key: figures.FIGURES[key]})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_text_stays_text_and_lists_are_lists():
    chosen = {key: figures.FIGURES[key] for key in ("fig02", "fig03")}
    only = {"fig03": chosen["fig03"]}
    assert figures._parameters(["run=9", "part='a b'", "output=True"], only) == {
        "run": "9", "part": "a b", "output": "True"}
    assert figures._parameters(["solver_steps=(2, 9)"], {"fig02": chosen["fig02"]}) == {
        "solver_steps": [2, 9]}


def test_an_explored_folder_has_a_name_that_fits(tmp_path):
    usual = figures.FIGURES["fig02"].parameters
    names = {
        figures.output_folder("fig02", "desk", **usual | {"solver_steps": [*range(1, most)]}).name
        for most in (150, 151)}
    assert len(names) == 2
    assert max(map(len, names)) < 100


@pytest.mark.parametrize(("options", "measured"), [
    ({}, ("fig02", "fig04", "fig05")), ({"only": "fig04"}, ("fig04", )), ({"only": "fig03"}, ()),
    ({"list": True}, ()), ({"profile": "cifar10-16"}, ()),
    ({"profile": "cifar10-16", "fresh": True}, ()),
    ({"fresh": True}, ("fig02", "fig04", "fig05")), ({"retrain": True}, None),
    ({"only": "fig03", "retrain": True}, ("fig03", ))])  # yapf: disable
def test_distances_are_measured_before_notebooks_that_show_them(options, measured, monkeypatch):
    """What tables lack, or with --fresh and --retrain all of it; where that takes hours, only `make
    seeds` measures."""
    from analysis import experiments, surveys

    calls = []
    monkeypatch.setattr(experiments, "train_missing", lambda *_, **__: None)
    monkeypatch.setattr(surveys, "measure", lambda *given, anew: calls.append((*given, anew)))
    monkeypatch.setattr(figures, "_execute", lambda *_: None)
    figures.main(figures.Figures(**{"profile": "smoke"} | options))
    runs = profile("smoke").runs
    patterns = [p for key in measured or () for p in figures.FIGURES[key].runs]
    names = [run for run in runs if any(fnmatch(run, p) for p in patterns)]
    anew = bool(options.keys() & {"fresh", "retrain"})
    wanted = list(runs) if measured is None else names
    assert calls == ([("smoke", wanted, anew)] if wanted else [])


def test_no_name_hides_another_or_a_point():
    table = published.against_images()
    figure, ax = plt.subplots(figsize=(4, 3))
    plots.plot_published(table, ax=ax)
    labels.label_published(table, ax=ax)
    renderer = figure.canvas.get_renderer()
    boxes = {text.get_text(): text.get_window_extent(renderer) for text in ax.texts
             if text.get_text()}  # yapf: disable
    assert set(boxes) == set(table["method"])
    points = ax.transData.transform(table[["train_images_millions", "fid"]].to_numpy())
    for name, box in boxes.items():
        assert not [other for other, its in boxes.items() if other != name and box.overlaps(its)]
        assert not any(box.contains(*point) for point in points)
