"""The shipped runs are those of today's configs, and everything a run starts from addresses it."""

import dataclasses
import os
import re

import pandas as pd
import patches_profile
import pytest
import torch

from analysis import experiments, figures, measurements
from analysis.extractors import extractor
from analysis.fid.sources import open_source
from gdd.freezing import freeze
from gdd.profiles import digits, profile
from gdd.samplers import sampler_of
from gdd.training.start import any_finished, digest, finished, missing_files, shipped
from gdd.weights import checkpoint, zoo

DESK = profile("desk")
SHIPPED = [*DESK.classifiers, *DESK.runs]
SERVED = ["analysis.surveys"]  # what later tests of this process fork from
METRIC = "FD1797[digits]"


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_are_those_of_todays_config(name):
    path = shipped(DESK, name)
    metadata = checkpoint.read_metadata(path)
    assert metadata["digest"] == digest(DESK, name), "retrain and ship: CONTRIBUTING.md"
    if name not in DESK.classifiers:
        assert metadata["images_seen"] >= DESK.runs[name].total_images
        assert metadata["log"][-1]["images"] == metadata["images_seen"]
        assert metadata["log"][-1][METRIC] < 10


def test_the_classifiers_of_pictures_are_todays_and_know_them():
    chosen = profile("cifar10-16")
    for path in chosen.shipped.glob("*.safetensors"):
        metadata = checkpoint.read_metadata(path)
        assert metadata["digest"] == digest(chosen, path.stem), path.stem
        if path.stem in chosen.classifiers:
            assert metadata["accuracy"] > 0.78  # held out of the training pictures
    assert sum(path.stat().st_size for path in chosen.shipped.iterdir()) < 25e6


def test_the_zoo_is_small_and_holds_nothing_else():
    files = list(DESK.shipped.glob("*.safetensors"))
    assert sorted(file.stem for file in files) == sorted(SHIPPED)
    assert sum(file.stat().st_size for file in files) < 8e6
    tensors, _ = checkpoint.read_tensors(zoo.path("gdd"))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert zoo.path("desk/gdd") == zoo.path("gdd")
    with pytest.raises(FileNotFoundError, match="did you mean gdd"):
        zoo.path("gdg")


def test_shipped_frozen_generators_keep_the_teachers_weights():
    teacher, gdd_i = checkpoint.load(zoo.path("teacher")), checkpoint.load(zoo.path("gdd-i"))
    report = freeze(teacher, "gdd-i")
    assert report.share >= 0.75
    mine, theirs = dict(gdd_i.named_parameters()), dict(teacher.named_parameters())
    for name in mine:
        assert torch.equal(mine[name], theirs[name]) == (name in report.names), name


def test_a_digest_follows_everything_a_run_starts_from():
    before = {name: digest(DESK, name) for name in SHIPPED}
    other = dataclasses.replace(digits.TEACHER, lr=1e-3)
    changed = dataclasses.replace(DESK, runs=DESK.runs | {"teacher": other})
    kept = {name for name in SHIPPED if before[name] == digest(changed, name)}
    # these start from another teacher
    assert kept == {*DESK.classifiers, "cond-teacher", "cond-gdd-i"}
    network = dataclasses.replace(
        DESK, networks=DESK.networks | {"teacher": digits.NETWORK | {"dropout": 0.1}})
    assert digest(network, "teacher") != before["teacher"]
    judged = dataclasses.replace(DESK, extractors=("inception", ))
    assert digest(judged, "gdd") != before["gdd"]
    assert digest(DESK, "gdd@1") != before["gdd"]
    assert len({before[name] for name in SHIPPED}) == len(SHIPPED)
    own = dataclasses.replace(DESK, shipped=None)  # one's own: also what a classifier learns from
    for change in (dict(mirror=True), dict(holdout=9), dict(classes=11)):
        assert digest(dataclasses.replace(own, **change), "digits") != digest(own, "digits")
        assert digest(dataclasses.replace(own, **change), "gdd") != digest(own, "gdd")


@pytest.mark.parametrize(("name", "way"), [
    ("looks", "classifier looks of profile patches is not trained yet: `python -m "
     "analysis.figures --profile tests/patches_profile.py` trains it"),
    ("edm", "`python -m gdd train tests/patches_profile.py-edm --folder FOLDER` makes it")])
def test_what_is_not_trained_is_told_with_a_command_that_makes_it(name, way):
    with pytest.raises(ValueError, match=re.escape(way)):
        any_finished(patches_profile.PROFILE, name, called="tests/patches_profile.py")
    with pytest.raises(ValueError, match="python -m gdd train cifar10-small-teacher --folder"):
        any_finished(profile("cifar10-small"), "teacher")


def test_the_judge_shares_nothing_with_the_discriminators_backbone():
    judge, backbone = (experiments.new_classifier(name, DESK)
                       for name in ("digits", "digits-backbone"))
    assert type(judge) is not type(backbone)
    settings = DESK.classifiers
    assert settings["digits"].seed != settings["digits-backbone"].seed
    with pytest.raises(ValueError, match="must not be a discriminator's backbone"):
        extractor("digits-backbone", DESK)


def test_unknown_runs_get_the_nearest_names():
    with pytest.raises(ValueError, match=r"run of profile desk must be one of .*got 'gdi'.*gdd-i"):
        experiments.obtain("gdi", "desk")
    with pytest.raises(ValueError, match="training seed is a number"):
        DESK.config("gdd@x")


def test_a_paper_profile_lists_all_that_it_lacks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lacking = missing_files(profile("cifar10"))
    text = "\n".join(lacking)
    for name in ("datasets/cifar10-32x32.zip", "checkpoints/cifar10-32x32.npz", "vgg16.safetensors",
                 "vgg16_bn.safetensors", "tf_efficientnet_lite0.safetensors",
                 "edm-cifar10-32x32-uncond-ve.pkl"):
        assert name in text
    assert len(lacking) == 6
    assert missing_files(DESK) == []
    assert finished(profile("cifar10"), "gdd") is None


@pytest.mark.slow
def test_the_conditional_generator_makes_the_class_it_is_asked_for(monkeypatch):
    for index in range(3):
        assert measurements.class_agreement("cond-gdd-i", "desk", index=index) >= 0.95
    run = experiments.obtain("gdd-i", "desk")
    run.denoiser.label_dim = 10  # asked in vain: the judge does tell classes apart
    monkeypatch.setattr(measurements, "obtain", lambda *_: run)
    assert measurements.class_agreement("gdd-i", "desk") < 0.2


@pytest.mark.slow
def test_headline_claims_hold_and_the_table_is_of_the_shipped_weights(monkeypatch, tmp_path):
    floor = measurements.floor("desk")["distance"].mean()
    points = [(name, sampler_of(DESK.config(name))) for name in ("teacher", "gdd", "gdd-i")]
    fd = measurements.distances(points, "desk").groupby("run")["distance"].mean()
    assert fd["teacher"] <= 1.5 * floor
    assert min(fd["gdd"], fd["gdd-i"]) <= 1.3 * fd["teacher"]
    points = [("gdd-i", "one-step"), ("k-step-2", "k-step:2"), ("teacher", "heun:2")]
    key = ["run", "sampler", "kind", "seeds"]
    table = measurements.distances(points, "desk", student="k-step-1").set_index(key)["distance"]
    monkeypatch.setattr(figures, "FIGURES_FOLDER", tmp_path)  # without a table it is measured
    now = measurements.distances(points, "desk", student="k-step-1", seed_ranges=1).set_index(key)
    assert len(now) == 3 * 3
    for row, distance in now["distance"].items():  # another processor's rounding
        assert distance == pytest.approx(table[row], rel=0.02), row


@pytest.mark.slow
def test_distances_are_tidy():
    points = [("k-step-1", "k-step:1"), ("cd", "one-step"), ("cd", "k-step:2")]
    table = measurements.distances(points, "smoke", student="k-step-1", seed_ranges=2)
    assert len(table) == 2 * (2 + 3 + 3)
    assert set(table["seeds"]) == {"0-255", "256-511"}
    assert set(table["metric"]) == {"FD256[digits]"}
    assert set(table["n"]) == {256}
    own = table[(table["run"] == "k-step-1") & (table["kind"] != "abs")]
    assert set(own["kind"]) == {"rel, disjoint seeds"}  # the floor; over shared seeds it is 0
    assert (table["distance"] > 0).all()
    other = measurements.floor("smoke", seed_ranges=2)
    assert set(other["n"]) == {256}
    assert other["of"].tolist() == ["data"] * 2  # 1,797 digits hold two draws of 256, desk's not
    source = open_source("digits")
    one, two = (set(draw.identity["indices"]) for draw in source.disjoint(256, 0))
    assert len(one) == len(two) == 256
    assert not one & two
    with pytest.raises(ValueError, match="two draws need 3,594"):
        source.disjoint(1797, 0)


def test_correlations_are_over_the_points_that_all_kinds_have_and_none_below_five():
    rows = [(kind, x, seed, sign * x + 0.01 * seed) for kind, sign in (("abs", 1), ("rel", -1))
            for x in range(1, 7) for seed in range(2)]
    table = pd.DataFrame(rows, columns=["kind", "x", "training_seed", "distance"])
    found = measurements.spearman(table)
    assert found["spearman"].tolist() == [1.0, -1.0]
    assert found["points"].tolist() == [6, 6]
    fewer = table[(table["kind"] == "abs") | (table["x"] > 1)]  # rel lacks a point
    assert measurements.spearman(fewer)["points"].tolist() == [5, 5]
    few = table[table["x"] < 5]
    assert measurements.spearman(few)["points"].tolist() == [4, 4]
    assert measurements.spearman(few)["spearman"].isna().all()


def test_intervals_of_correlations_are_those_of_the_single_seeds():
    rows = [("abs", x, seed, y) for seed, ys in enumerate(([1, 2, 3, 4, 5], [1, 2, 3, 5, 4]))
            for x, y in enumerate(ys)]
    table = pd.DataFrame(rows, columns=["kind", "x", "training_seed", "distance"])
    (found, ) = measurements.spearman(table).to_dict("records")
    assert (found["low"], found["high"]) == (pytest.approx(0.9), pytest.approx(1.0))
    assert found["of"] == 2
    ranges = table.rename(columns={"training_seed": "seeds"}).assign(training_seed=0)
    (alone, ) = measurements.spearman(ranges).to_dict("records")
    assert (alone["low"], alone["of"]) == (pytest.approx(0.9), 2)
    lacking = table[(table["training_seed"] == 0) | (table["x"] > 0)]  # one seed has all points
    assert measurements.spearman(lacking)["of"].tolist() == [1]


def test_a_process_sees_the_environment_of_today(monkeypatch):
    """Also one that forks from an earlier one's server."""
    for value in ("one", "two"):
        monkeypatch.setenv("GDD_TRIED", value)
        assert list(experiments.as_ready(os.getenv, [("GDD_TRIED", )], preload=SERVED)) == [value]
    monkeypatch.delenv("GDD_TRIED")
    assert list(experiments.as_ready(os.getenv, [("GDD_TRIED", )], preload=SERVED)) == [None]


@pytest.mark.parametrize(("system", "device", "start"), [("linux", "cpu", "forkserver"),
                                                         ("linux", "cuda:0", "spawn"),
                                                         ("darwin", "cpu", "spawn")])
def test_processes_fork_only_where_that_is_safe(system, device, start, monkeypatch):
    monkeypatch.setattr(experiments.sys, "platform", system)
    monkeypatch.setattr(experiments, "device", lambda: device)
    assert experiments._context(SERVED).get_start_method() == start
