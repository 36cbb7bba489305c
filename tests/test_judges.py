"""Judges that have learnt nothing, nearest pictures, and what a comparison decides."""

from dataclasses import replace
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import convolve
from scipy.stats import wasserstein_distance

from analysis import (
    experiments,
    figures,
    judges,
    measurements,
    plots,
    surveys,
    tables,
    verdicts,
)
from analysis.fid import swd
from analysis.nearest import nearest
from gdd.profiles import profile, profiles
from gdd.profiles.digits import DESK
from gdd.training.start import digest


def pictures(n, size=16, seed=0):
    x = torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))
    return (torch.nn.functional.avg_pool2d(x, 3, 1, 1) * 255).to(torch.uint8)


def test_the_pyramid_adds_up_to_the_picture():
    images = pictures(4, 32).double()
    fine, middle, coarse = swd.laplacian_pyramid(images)
    assert [x.shape[-1] for x in (fine, middle, coarse)] == [32, 16, 8]
    again = swd._expand(swd._expand(coarse) + middle) + fine
    torch.testing.assert_close(again, images)


def test_a_flat_picture_has_no_bands():
    fine, coarse = swd.laplacian_pyramid(torch.full((1, 3, 16, 16), 7.0))
    torch.testing.assert_close(coarse, torch.full((1, 3, 8, 8), 7.0))
    torch.testing.assert_close(fine[..., 2:-2, 2:-2], torch.zeros(1, 3, 12, 12))


def test_the_pyramid_is_scipys():
    x = pictures(1, 16).double()
    fine, coarse = swd.laplacian_pyramid(x)
    row = np.array([1, 4, 6, 4, 1]) / 16
    for channel in range(3):

        def blur(image):
            return convolve(image, np.outer(row, row), mode="mirror")

        image, wide = x[0, channel].numpy(), np.zeros((16, 16))
        wide[::2, ::2] = blur(image)[::2, ::2]
        np.testing.assert_allclose(coarse[0, channel], wide[::2, ::2])
        np.testing.assert_allclose(fine[0, channel], image - 4 * blur(wide), atol=1e-10)


def test_projected_patches_have_unit_variance_whatever_the_contrast():
    """Each channel is normalised, directions are unit vectors, and patches lie anywhere."""
    noise = torch.randint(100, (400, 3, 8, 8), generator=torch.Generator().manual_seed(3))
    (found, ) = swd.projected_patches([noise.to(torch.uint8)])
    assert found.shape == (128, 400 * 16)
    assert float(found.var(dim=1).mean()) == pytest.approx(1, abs=0.03)
    brighter = swd.projected_patches([(2 * noise + 10).to(torch.uint8)])
    assert swd.sliced_wasserstein([found], brighter) < 0.01
    corners = torch.arange(16 * 16.0).view(1, 1, 16, 16)
    drawn = swd._patches(corners, 2000, torch.Generator().manual_seed(0))
    assert set(drawn[:, 0, 0, 0].tolist()) == set(corners[0, 0, :10, :10].flatten().tolist())
    first = int(drawn[0, 0, 0, 0])
    y, x = divmod(first, 16)
    assert torch.equal(drawn[0, 0], corners[0, 0, y:y + 7, x:x + 7])


def test_sliced_wasserstein_is_the_mean_over_directions():
    one, two = (swd.projected_patches([pictures(50, seed=seed)], patches=4, directions=8)
                for seed in (0, 1))
    wanted = [[wasserstein_distance(x.numpy(), y.numpy()) for x, y in zip(a, b, strict=True)]
              for a, b in zip(one, two, strict=True)]  # yapf: disable
    assert swd.sliced_wasserstein(one, two) == pytest.approx(
        1000 * torch.tensor(wanted).mean().item(), rel=1e-5)
    assert swd.sliced_wasserstein(one, one) == 0


def test_sliced_wasserstein_knows_blur_from_chance():
    one, two = pictures(400), pictures(400, seed=1)
    blurred = torch.nn.functional.avg_pool2d(two.float(), 3, 1, 1).to(torch.uint8)
    # another order and other batches are another draw of patches from the same pictures
    sharp, same, soft = (swd.projected_patches(x.split(64)) for x in (one, two, blurred))
    assert swd.sliced_wasserstein(sharp, soft) > 3 * swd.sliced_wasserstein(sharp, same)


def test_sliced_wasserstein_takes_equal_sets():
    with pytest.raises(ValueError, match="equal n and size"):
        swd.sliced_wasserstein(swd.projected_patches([pictures(3)]),
                               swd.projected_patches([pictures(4)]))


def test_nearest_is_brute_force():
    a, b = (torch.randn(n, 20, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
            for n in (70, 300))
    b[17] = a[3]
    distances, indices = nearest(a, b, chunk=32)
    wanted = torch.cdist(a, b).min(dim=1)
    torch.testing.assert_close(distances, wanted.values, atol=1e-6, rtol=1e-6)
    assert torch.equal(indices, wanted.indices)
    assert indices[3] == 17


def rows(run, *seeds, images=100, metric="FD", against="data"):
    """A table with the distances of some training seeds, each over two ranges."""
    return pd.DataFrame([
        dict(run=run, training_seed=k, sampler="one-step", metric=metric, against=against, n=10,
             images=images, distance=value + shift)
        for k, value in enumerate(seeds) for shift in (-0.5, 0.5)])  # yapf: disable


@pytest.mark.parametrize(("runs", "said"), [
    ([("gdd", 3)], "training seeds (3)"),
    ([("gdd", 3), ("cd", 1)], "training seeds (1 to 3), or of the only one ranges of sampling"),
    ([("cd", 1)], "ranges of sampling seeds of one training seed")])
def test_what_bars_span_is_said(runs, said):
    table = pd.concat(rows(run, *range(seeds)) for run, seeds in runs)
    assert verdicts.bars(table).startswith(said)
    assert verdicts.drawn(pd.Series(["data"])) == "two disjoint draws of n real images"
    assert "teacher" in verdicts.drawn(pd.Series(["teacher"]))


def test_an_interval_spans_the_means_of_training_seeds():
    found = verdicts.intervals(rows("gdd", 3.0, 5.0)).iloc[0]
    assert (found["mean"], found["low"], found["high"]) == (4, 3, 5)
    assert (found["training_seeds"], found["seed_ranges"]) == (2, 2)
    one = verdicts.intervals(rows("gdd", 3.0, float("nan"))).iloc[0]
    assert (one["mean"], one["training_seeds"]) == (3, 1)


def test_how_many_training_seeds_is_said_of_runs_that_differ():
    both = pd.concat([rows("gdd", 3.0, 5.0), rows("cd", 7.0)])
    assert verdicts.training_seeds(rows("gdd", 3.0, 5.0)) == "2"
    assert verdicts.training_seeds(both) == "1 to 2"


@pytest.mark.parametrize(("one", "other", "said"), [((1, 2), (3, 4), "lower"),
                                                    ((3, 4), (1, 2), "higher"),
                                                    ((1, 3), (2, 4), "not decided"),
                                                    ((1, 2), (2, 3), "not decided"),
                                                    ((1, ), (3, 4), "not decided"),
                                                    ((1, 2), (5, ), "not decided")])
def test_a_verdict_needs_two_seeds_and_a_gap(one, other, said):
    a, b = (verdicts.intervals(rows("x", *map(float, seeds))).iloc[0] for seeds in (one, other))
    assert verdicts.verdict(a, b) == said


@given(st.lists(st.floats(0, 10), min_size=1, max_size=4),
       st.lists(st.floats(0, 10), min_size=1, max_size=4))
def test_a_verdict_turns_with_its_sides(one, other):
    a, b = (verdicts.intervals(rows("x", *seeds)).iloc[0] for seeds in (one, other))
    turned = {"lower": "higher", "higher": "lower"}
    said = verdicts.verdict(a, b)
    assert verdicts.verdict(b, a) == turned.get(said, said)


def test_a_run_is_beside_the_first_that_is_frozen_as_it_is():
    chosen = profile("cifar10-16")
    for name, runs in chosen.ablations.items():
        assert {*runs} <= chosen.runs.keys()
        for run in runs:
            other = verdicts.beside(chosen, runs, run)
            assert (other == run) == (run == runs[0]), (name, run)
    runs = chosen.ablations["pre-training"]
    assert verdicts.beside(chosen, runs, "gdd-i-from-random") == "gdd-i"
    assert verdicts.beside(chosen, runs, "gdd-from-random") == "gdd"


@pytest.mark.parametrize("width", [1.5, 60])
def test_one_training_seed_is_hollow_and_numbers_on_a_long_axis_do_not_touch(width):
    table = pd.DataFrame({"run": ["a", "b"], "mean": [2.0, 2 * width], "low": [1.9, 2 * width],
                          "high": [2.2, 2 * width], "training_seeds": [3, 1]})  # yapf: disable
    figure, ax = plt.subplots(figsize=(plots.PAGE / 3, 1.5), layout="constrained")
    plots.plot_intervals(table, teacher=2.0, floor=1.0, ax=ax)
    figure.draw_without_rendering()
    (hollow, ) = [line for line in ax.lines if line.get_markerfacecolor() == "white"]
    assert hollow.get_xydata().tolist() == [[2 * width, 1]]
    low, high = ax.get_xlim()
    labels = [label for label in ax.get_xticklabels() if low < label.get_position()[0] < high]
    assert labels
    boxes = [label.get_window_extent() for label in labels]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
    plt.close(figure)


@pytest.mark.parametrize(("more", "shown"), [([], ["freezing"]),
                                             (["gdd-i-sibling"], ["backbone", "freezing"]),
                                             (["gdd-from-random"], ["freezing", "pre-training"]),
                                             (["gdd-i-224"], ["freezing"])])
def test_an_ablation_is_shown_once_it_compares_something_of_its_own(more, shown, monkeypatch):
    """GDD and GDD-I are in several of them."""
    known = pd.concat(rows(run, 1.0, 2.0).assign(images=51_200) for run in ("gdd", "gdd-i", *more))
    monkeypatch.setattr(verdicts, "at_images", lambda _: known)
    assert list(verdicts.ablations("cifar10-16")["ablation"].unique()) == shown


def test_an_ablation_judges_by_each_judge_at_equal_images(monkeypatch):
    """gdd-inverse-2e-4 stands beside the first that is frozen as it is, all others beside GDD."""
    values = {
        "one": {
            "gdd": (3, 4), "gdd-i": (1, 2), "gdd-inverse": (3.5, 6), "gdd-inverse-2e-4": (7, 8)},
        "other": {
            "gdd": (3, 4), "gdd-i": (5, 6), "gdd-inverse": (1, 2), "gdd-inverse-2e-4": (0.1, 0.2)}}
    known = [rows(run, *map(float, seeds), images=51_200, metric=metric)
             for metric, runs in values.items() for run, seeds in runs.items()]  # yapf: disable
    known.append(rows("gdd", 0.1, 0.2, images=102_400, metric="one"))
    monkeypatch.setattr(verdicts, "at_images", lambda _: pd.concat(known))
    found = verdicts.ablations("cifar10-16").set_index(["run", "metric"])
    assert set(found["ablation"]) == {"freezing"}
    assert set(found["images"]) == {51_200}
    assert found[["beside", "verdict"]].apply(tuple, axis=1).to_dict() == {
        ("gdd", "one"): ("gdd", ""), ("gdd", "other"): ("gdd", ""),
        ("gdd-i", "one"): ("gdd", "lower"), ("gdd-i", "other"): ("gdd", "higher"),
        ("gdd-inverse", "one"): ("gdd", "not decided"),
        ("gdd-inverse", "other"): ("gdd", "lower"),
        ("gdd-inverse-2e-4", "one"): ("gdd-inverse", "higher"),
        ("gdd-inverse-2e-4", "other"): ("gdd-inverse", "lower"), }  # yapf: disable


def test_no_average_that_is_gone_is_asked_for():
    """They stay where a run was trained: of shipped runs their rows must stand in the table."""
    _, parts = surveys._parts(profile("cifar10-16"))["snapshots"]
    assert parts
    assert surveys._missing("snapshots", parts, "cifar10-16") == []


@pytest.mark.parametrize(("content", "message"),
                         [(b"", "is no table"), (b"\xff\xfe\x00", "is no table"),
                          (b'a,b\n1,2,3\n"', "is no table"),
                          (b"digest,run\nx,gdd\n", "lacks the column training_seed")])
def test_what_is_no_table_is_one_line(content, message, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "FIGURES_FOLDER", tmp_path)
    (tmp_path / "desk").mkdir()
    (tmp_path / "desk" / "seeds.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        tables.read("seeds", "desk")
    assert str(raised.value).isprintable()


def test_rows_of_another_config_are_stale(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "FIGURES_FOLDER", tmp_path)
    assert tables.read("seeds", "desk").empty
    kept = rows("gdd", 1.0, 2.0).assign(digest=digest(DESK, "gdd@1"))
    tables.write(kept, "seeds", "desk")
    assert set(tables.read("seeds", "desk")["training_seed"]) == {1}


def test_what_one_process_has_looked_at_another_does_not_make_again(monkeypatch, tmp_path):
    monkeypatch.setattr(figures, "FIGURES_FOLDER", tmp_path)  # without a table it is measured
    monkeypatch.setattr(judges, "summaries", judges.summaries.__wrapped__)  # a process's own memory
    with judges.sharing():
        before = measurements.distances([("gdd", "one-step")], "desk", seed_ranges=1)
        monkeypatch.setattr("analysis.fid.sources.generate", None)
        measurements.generated.cache_clear()
        again = measurements.distances([("gdd", "one-step")], "desk", seed_ranges=1)
    pd.testing.assert_frame_equal(before, again)
    assert judges.SHARED not in judges.os.environ


def test_features_of_real_pictures_outlive_the_process(monkeypatch, tmp_path):
    monkeypatch.setenv("GDD_CACHE", str(tmp_path))
    monkeypatch.setattr(judges, "profile", lambda name: replace(DESK, live=False))
    monkeypatch.setattr(judges, "summaries", judges.summaries.__wrapped__)  # a process's own memory
    judge = judges._frechet("desk", DESK.extractors[0])
    before = judges.real("desk", judge, "data")
    monkeypatch.setattr("analysis.fid.summaries._pass", None)
    assert torch.equal(judges.real("desk", judge, "data").scatter, before.scatter)


def test_a_row_is_of_todays_reference():
    other = replace(DESK, reference="checkpoints/other.npz")
    stamps = {tables.stamp(chosen, "gdd", against) for chosen in (DESK, other)
              for against in ("data", "k-step-1")}  # yapf: disable
    assert len(stamps) == 3
    assert tables.stamp(other, "gdd", "test") == tables.stamp(DESK, "gdd", "data")


def test_what_a_table_has_is_not_measured_again(tmp_path, monkeypatch):
    """A point is whole with all ranges, of today's run against today's student; else it is measured
    anew, all of it."""
    chosen, student = profile("smoke"), "k-step-1"
    monkeypatch.setattr(figures, "FIGURES_FOLDER", tmp_path)
    stamps = {"data": tables.stamp(chosen, "gdd"), student: tables.stamp(chosen, "gdd", student)}
    kept = pd.DataFrame([{
        "run": "gdd", "training_seed": 0, "sampler": "one-step", "kind": kind, "against": against,
        "distance": 7.0, "metric": measurements.metric("smoke"), "n": chosen.n,
        "seeds": measurements.span(chosen, index), "digest": stamps[against]}
        for index in range(2) for kind, against in zip(
            measurements.KINDS, ("data", student, student), strict=True)])  # yapf: disable
    now = {"distance": 1.0, "against": "data"}
    monkeypatch.setattr(measurements, "rows", lambda *_, **__: [now])
    points = [("gdd", "one-step"), ("gdd", "k-step:2")]
    for change, ranges, wanted in (
            (kept, 2, [7.0] * 6 + [1.0] * 2), (kept, 1, [7.0] * 3 + [1.0]), (kept, 3, [1.0] * 6),
            (kept[kept["kind"] == "abs"], 2, [1.0] * 4), (kept.iloc[1:], 2, [1.0] * 4),
            (kept.assign(digest="another"), 2, [1.0] * 4),
            (kept.assign(metric="another"), 2, [1.0] * 4)):  # yapf: disable
        tables.write(change, "seeds", "smoke")
        found = measurements.distances(points, "smoke", student=student, seed_ranges=ranges)
        assert found["distance"].tolist() == wanted


def test_only_what_is_measured_over_all_ranges_is_shown(monkeypatch, tmp_path, capsys):
    """A night that ended between two ranges of a run shows the others, and names it."""
    rows = tables.read("seeds", "cifar10-16")
    monkeypatch.setattr(figures, "FIGURES_FOLDER", tmp_path)
    partial = rows[(rows["run"] != "gdd-i") | (rows["seeds"] != "0-9999")]
    tables.write(partial, "seeds", "cifar10-16")
    shown = experiments.at_hand("cifar10-16")
    assert "gdd" in shown
    assert "gdd-i" not in shown
    points = [("gdd", "one-step"), ("gdd-i", "one-step")]
    found = measurements.distances(points, "cifar10-16")
    assert found["run"].tolist() == ["gdd"] * 3
    assert "left out: gdd-i by one-step; `make seeds" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"has no rows of .* and 0 more as they are"):
        measurements.distances(points[1:], "cifar10-16")


def test_figures_of_some_runs_leave_out_the_ablations(monkeypatch, tmp_path, capsys):
    chosen = profile("cifar10-16")
    rows = tables.read("seeds", "cifar10-16")
    rows = rows[(rows["run"] == "gdd") & (rows["kind"] == "abs")]
    own = {"run": "teacher", "sampler": "heun:18", "digest": tables.stamp(chosen, "teacher")}
    monkeypatch.setattr(figures, "FIGURES_FOLDER", tmp_path)
    tables.write(pd.concat([rows, rows.assign(**own)]), "seeds", "cifar10-16")
    figures.main(figures.Figures(profile="cifar10-16", list=True))
    said = capsys.readouterr().out
    assert "left out: gdd-i, cd" in said
    assert "ablations: none of them is measured yet" in said
    assert "ablations: it" not in said
    assert "fig02: it has not been made yet" in said


def test_figures_without_their_run_are_left_out(monkeypatch, tmp_path, capsys):
    """As after a night that ended with the teacher."""
    rows = tables.read("seeds", "cifar10-16")
    monkeypatch.setattr(figures, "FIGURES_FOLDER", tmp_path)
    tables.write(rows[rows["run"] == "teacher"], "seeds", "cifar10-16")
    figures.main(figures.Figures(profile="cifar10-16", list=True))
    said = capsys.readouterr().out
    for key, run in (("fig01", "gdd"), ("fig02", "gdd"), ("fig04", "gdd"), ("editing", "gdd-i")):
        assert f"{key}: there is no {run} to draw, and it is left out" in said
        assert f"{key}: it has not" not in said
    assert "fig03: it has not been made yet" in said


def test_a_floor_lacks_what_a_new_judge_has_not_measured(monkeypatch, tmp_path):
    rows = tables.read("floor", "cifar10-16")
    monkeypatch.setattr(figures, "FIGURES_FOLDER", tmp_path)
    for kept, whole in ((rows, True), (rows[rows["metric"] != "SWD10k"], False),
                        (rows[rows["draw"] > 0], False)):
        tables.write(kept, "floor", "cifar10-16")
        assert surveys._has_floor("cifar10-16") == whole


def test_an_unknown_run_is_refused_before_anything_is_trained():
    with pytest.raises(ValueError, match="did you mean gdd@2 or gdd@1"):
        surveys.survey("desk", ["gdd@9"])


def test_surveys_at_once_keep_each_others_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "FIGURES_FOLDER", tmp_path)
    monkeypatch.setattr(surveys, "RUNS", tmp_path)
    chosen = profile("smoke")
    parts = [(name, "one-step", measurements.span(chosen, 0)) for name in ("gdd", "gdd-i", "cd")]

    def ready(_, arguments, preload):
        for _, part, name in arguments:
            if part == parts[0]:  # while it is measured, another command measures the others
                surveys._measure("seeds", None, parts, parts[1:], name)
            found = {"run": part[0], "training_seed": 0, "sampler": part[1], "seeds": part[2],
                     "digest": tables.stamp(chosen, part[0])}  # yapf: disable
            yield part, pd.DataFrame([found])

    monkeypatch.setattr(surveys, "as_ready", ready)
    surveys._measure("seeds", None, parts, parts[:1], "smoke")
    assert tables.read("seeds", "smoke")["run"].tolist() == ["gdd", "gdd-i", "cd"]


@pytest.mark.parametrize("name", profiles())
def test_every_profile_has_points_of_its_teacher_and_of_all_runs(name):
    chosen = profile(name)
    points = {part[:2] for part in surveys._parts(chosen)["seeds"][1]}
    steps = figures.FIGURES["fig02"].parameters["solver_steps"]
    assert {(chosen.teacher, f"heun:{k}") for k in steps} <= points
    assert {run for run, _ in points} == {
        *chosen.public, *chosen.runs, *chosen.further_seeds()}  # yapf: disable
