"""The steps whose speed is compared compute the same, and the GPU's command runs without one."""

import csv
import math

import pytest
import torch

from benchmarks import gpu, textbook
from gdd.training import trainer

# Lite0 at 32 pixels, whose BatchNorms the product folds
CHANGE = dict(batch_size=4, d_image_size=32, d_channels=(4, 4, 4, 4), d_head_sizes=(8, 4),
              d_head_widths=(4, 4), r1_gamma=0.1)  # yapf: disable


@pytest.fixture
def in_double():
    """Everything is made in float64, so that BatchNorms are folded in it too."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize(("name", "change"), [("desk", {"batch_size": 4}), ("cifar10-16", CHANGE)])
def test_the_textbooks_step_is_ours_with_fakes_drawn_afresh(name, change):
    made = textbook.bench(name, **change)
    state = made.state(reuse_fakes=False)
    book = textbook.Textbook(state, made.plain)
    step, r1_step = textbook.ours(state, trainer.models_of(state, made.teacher, made.backbones,
                                                           None))
    for _ in range(2):
        batch = trainer.draw(state, made.images)
        theirs, found = book.step(batch), dict(step(batch))
        for key, value in theirs.items():
            assert found[key] == pytest.approx(value, rel=1e-9), key
        penalty = book.r1_step(batch)
        assert penalty > 0
        assert r1_step(batch) == pytest.approx(penalty, rel=1e-9)
    for own, other in ((state.generator, book.generator), (state.ema, book.ema)):
        for a, b in zip(own.parameters(), other.parameters(), strict=True):
            assert torch.allclose(a, b, rtol=1e-6, atol=1e-9)
    heads = state.d_optimizer.param_groups[0]["params"]
    for a, b in zip(heads, book.heads, strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.usefixtures("in_double")
def test_a_trick_changes_no_loss_but_reused_fakes():
    made = textbook.bench("cifar10-16", **CHANGE)
    state = made.state()
    batch = trainer.draw(state, made.images)
    found = {}
    for name in ("reuse_fakes", "folded", "forward_mode", None):
        book = textbook.Textbook(state, made.plain,
                                 textbook.Tricks(**({name: True} if name else {})))
        found[name] = {**book.step(batch), "r1": book.r1_step(batch)}
    for name in ("folded", "forward_mode"):
        assert found[name] == pytest.approx(found[None], rel=1e-9), name
    assert found["reuse_fakes"]["loss_g"] == found[None]["loss_g"]
    assert found["reuse_fakes"]["loss_d"] != pytest.approx(found[None]["loss_d"], rel=1e-7)


@pytest.mark.slow
def test_the_gpus_command_runs_on_a_cpu(tmp_path):
    gpu.main(["--device", "cpu", "--tiny", "--csv", str(tmp_path / "gpu.csv")])
    with open(tmp_path / "gpu.csv") as file:
        rows = list(csv.DictReader(file))
    ways = {(row["work"], row["how"]) for row in rows}
    for work in ("GDD step", "one-step", "heun:18"):
        assert {(work, "eager"), (work, gpu.GRAPHS)} <= ways
    assert ("GDD step", "textbook") in ways
    for row in rows:
        assert row["note"] == ""
        assert float(row["images_per_s"]) > 0
        assert float(row["share_of_peak"]) > 0


def test_the_gpus_command_begins_nothing_when_its_time_is_over():
    lines = list(gpu.sampling(gpu.Card("cpu", -1.0), gpu.sizes(tiny=True), "one-step"))
    assert lines
    assert all(line.note == "no time left" and math.isnan(line.images_per_s) for line in lines)
