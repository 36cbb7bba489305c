"""A run's folder: what is in it, who may write to it, and what becomes of a run that cannot go
on."""

import dataclasses
import errno
import json
import math
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, small_backbone, small_denoiser
from PIL import Image
from test_trainer import GDD

from gdd import losses
from gdd.config import Keep
from gdd.data.images import load_digits
from gdd.denoiser import Denoiser
from gdd.training.engine import Engine
from gdd.training.folder import RunFolder
from gdd.training.run import run
from gdd.training.trainer import draw_batch, init_state
from gdd.weights import checkpoint

QUARTERS = Keep(ticks=4)  # GDD takes four steps


class Killed(BaseException):
    pass


def go(folder, config=GDD, **options):
    return run(folder, config, load_digits(), small_denoiser(), [small_backbone()],
               **{"keep": QUARTERS} | options)


def stop_after(images):
    def evaluate(state):
        if state.images_seen > images:
            raise Killed
        return {}

    return evaluate


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_a_run_goes_on_where_it_was_killed(tmp_path):
    whole, folder = go(tmp_path / "whole"), tmp_path / "killed"
    with pytest.raises(Killed):
        go(folder, evaluate=stop_after(32))
    assert names(folder) == ["config.json", "environment.json", "log.csv", "state.safetensors"]
    (folder /
     ".state.safetensors.12-34.partial").write_text("left by a kill in the middle of a write")
    killed = go(folder)
    assert whole.read_bytes() == killed.read_bytes()  # weights, log and config
    assert names(folder) == ["config.json", "environment.json", "final.safetensors", "log.csv"]
    starts = json.loads((folder / "environment.json").read_text())
    assert [start["images_seen"] for start in starts] == [0, 32]
    assert starts[0]["versions"]["torch"] == torch.__version__.split("+")[0]
    root = Path(__file__).resolve().parents[1]
    if (root / ".git").exists():
        head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True,
                              text=True, check=True).stdout.strip()
        assert starts[0]["git"].rstrip("+") == head
    assert json.loads((folder / "config.json").read_text()) == json.loads(
        json.dumps(dataclasses.asdict(GDD)))
    log = pd.read_csv(folder / "log.csv")
    assert log["images"].tolist() == [16, 32, 48, 64]
    assert (log["images_per_s"] > 0).all()
    assert go(folder) == killed  # finished: nothing is done again


def test_a_changed_config_is_named_field_by_field_and_refused_unless_asked_for(tmp_path):
    with pytest.raises(Killed):
        go(tmp_path, evaluate=stop_after(16))
    changed = dataclasses.replace(GDD, lr=0.5, r1_interval=3)
    with pytest.raises(
            ValueError, match=
            r"lr: 0.001 there, 0.5 now; r1_interval: 2 there, 3 now.* --allow-change lr r1_interval"
    ):
        go(tmp_path, changed)
    with pytest.raises(
            ValueError,
            match=r"freeze: 'none' there, 'gdd-i' now.*; name another folder or delete it$"):
        go(tmp_path, dataclasses.replace(changed, freeze="gdd-i"))  # other tensors: no way on
    with pytest.raises(ValueError, match=r"\(r1_interval: 2 there, 3 now\)"):
        go(tmp_path, changed, keep=dataclasses.replace(QUARTERS, allow_change=("lr", )))
    with pytest.raises(
            ValueError,
            match=r"allow_change takes fields of the config but objective, .*; got freeze, size"):
        go(tmp_path, changed, keep=dataclasses.replace(QUARTERS, allow_change=("freeze", "size")))
    final = go(tmp_path, changed, keep=dataclasses.replace(QUARTERS,
                                                           allow_change=("lr", "r1_interval")))
    assert checkpoint.read_metadata(final)["train"]["lr"] == 0.5
    assert json.loads((tmp_path / "config.json").read_text())["r1_interval"] == 3


def test_another_teacher_is_refused(tmp_path):
    with pytest.raises(Killed):
        go(tmp_path, evaluate=stop_after(16))
    other = Denoiser.from_config(TINY)
    with pytest.raises(ValueError, match="holds a run that started from another network"):
        run(tmp_path, GDD, load_digits(), other, [small_backbone()], keep=QUARTERS)
    wider = Denoiser.from_config(TINY | {"model_channels": 16})
    with pytest.raises(ValueError, match="does not fit the run's generator"):
        run(tmp_path, GDD, load_digits(), wider, [small_backbone()], keep=QUARTERS)


def test_a_folder_has_one_run_at_a_time(tmp_path):
    with RunFolder(tmp_path, Engine(GDD)), pytest.raises(BlockingIOError,
                                                         match="is in use by another run"):
        go(tmp_path)
    assert go(tmp_path).exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write in .*file/run: Not a directory"):
        go(tmp_path / "file" / "run")


def test_a_disk_too_small_for_the_states_is_found_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage",
                        lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(OSError, match=r"has 1e-06 GB free; a state takes"):
        go(tmp_path)
    assert names(tmp_path) == []


def test_a_disk_that_fills_up_leaves_the_last_state(tmp_path, monkeypatch):
    whole = go(tmp_path / "whole")
    written, save = [], checkpoint.save_file

    def full(tensors, path, metadata):
        written.append(path)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(tensors, path, metadata)

    folder = tmp_path / "full"
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_file", full)
        with pytest.raises(OSError,
                           match=r"cannot write .*state.safetensors: No space left on device"):
            go(folder)
    assert names(folder) == ["config.json", "environment.json", "log.csv", "state.safetensors"]
    assert checkpoint.read_metadata(folder / "state.safetensors")["images_seen"] == 32
    assert go(folder).read_bytes() == whole.read_bytes()


def test_each_tick_leaves_a_grid_from_the_same_seeds(tmp_path):
    keep = dataclasses.replace(QUARTERS, samples=12)
    for folder in ("a", "b"):
        go(tmp_path / folder, keep=keep)
    pictures = [sorted((tmp_path / folder / "samples").iterdir()) for folder in ("a", "b")]
    assert [path.name for path in pictures[0]] == [
        f"{images:012d}.png" for images in (16, 32, 48, 64)]
    assert [path.read_bytes() for path in pictures[0]] == [
        path.read_bytes() for path in pictures[1]]
    # the network changes, the seeds do not
    assert len({path.read_bytes() for path in pictures[0]}) == 4
    assert Image.open(pictures[0][0]).size == (4 * 10 * 8, 3 * 10 * 8)


def test_a_conditional_run_shows_a_class_per_column(tmp_path):
    config = dataclasses.replace(GDD, total_images=16)
    network = Denoiser.from_config(TINY | {"label_dim": 10})
    run(tmp_path, config, load_digits(), network, [small_backbone()], keep=Keep(
        ticks=1, samples=20))
    (picture, ) = (tmp_path / "samples").iterdir()
    assert Image.open(picture).size == (10 * 10 * 8, 2 * 10 * 8)


def test_tensorboard_has_the_logs_curves_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    keep = dataclasses.replace(QUARTERS, tensorboard=True, samples=4)
    with pytest.raises(Killed):
        go(tmp_path, keep=keep, evaluate=stop_after(32))
    go(tmp_path, keep=keep)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    log = pd.read_csv(tmp_path / "log.csv")
    curve = [(event.step, event.value) for event in events.Scalars("loss_g")]
    assert [step for step, _ in curve] == [16, 32, 48, 64]
    assert [value for _, value in curve] == pytest.approx(log["loss_g"].tolist(), rel=1e-5)
    assert events.Tags()["images"]


def test_without_tensorboard_a_run_says_so_and_goes_on(tmp_path, monkeypatch, capsys):
    def missing(*arguments, **options):
        raise ModuleNotFoundError("no tensorboard")

    monkeypatch.setattr("gdd.training.run.TensorBoardLogger", missing)
    assert go(tmp_path, keep=dataclasses.replace(QUARTERS, tensorboard=True)).exists()
    assert "TensorBoard is not installed: log.csv has the same curves" in capsys.readouterr().out


def test_the_best_weights_are_those_of_the_least_distance(tmp_path):
    seen = {}

    def evaluate(state):
        seen[state.images_seen] = {name: p.clone() for name, p in state.ema.named_parameters()}
        return {"FD": {16: 3.0, 32: 1.0, 48: 2.0, 64: 1.5}[state.images_seen]}

    go(tmp_path, evaluate=evaluate, best_by="FD")
    best, metadata = checkpoint.load_with_metadata(tmp_path / "best.safetensors")
    assert (metadata["images_seen"], metadata["FD"]) == (32, 1.0)
    assert all(torch.equal(p, seen[32][name]) for name, p in best.named_parameters())
    assert pd.read_csv(tmp_path / "log.csv")["FD"].tolist() == [3.0, 1.0, 2.0, 1.5]


@pytest.fixture
def nan_at(monkeypatch):
    """Make the generator loss of the given calls, counted from 1, or of all, not a number."""
    loss, calls = losses.generator_loss, []

    def patch(*bad):
        def broken(logits, kind):
            calls.append(1)
            return loss(logits, kind) * (math.nan if not bad or len(calls) in bad else 1)

        monkeypatch.setattr(losses, "generator_loss", broken)

    return patch


def test_not_finite_stops_by_default_and_the_same_command_goes_on(tmp_path, nan_at):
    whole = go(tmp_path / "whole")
    nan_at(3)
    with pytest.raises(
            FloatingPointError,
            match=r"stopped after 32 images: loss_g is nan; last good state: .*state.safetensors"):
        go(tmp_path / "nan")
    assert go(tmp_path / "nan").read_bytes() == whole.read_bytes()
    nan_at()
    with pytest.raises(FloatingPointError,
                       match=r"stopped after 0 images: loss_g is nan; no state had been saved yet"):
        go(tmp_path / "at once")


def test_skipped_steps_are_counted_and_bounded(tmp_path, nan_at):
    keep = dataclasses.replace(QUARTERS, on_nan="skip", max_skips=2)
    nan_at(2, 3)
    go(tmp_path / "two", keep=keep)
    log = pd.read_csv(tmp_path / "two" / "log.csv")
    assert log["skipped"].fillna(0).tolist() == [0, 1, 2, 2]
    assert log["loss_g"].isna().tolist() == [False, True, True, False]
    nan_at()
    with pytest.raises(
            FloatingPointError,
            match=r"stopped after 32 images: loss_g is nan, and 2 steps had been skipped before"):
        go(tmp_path / "more", keep=keep)


def test_a_gradient_that_is_not_finite_changes_nothing(tmp_path, monkeypatch):
    loss = losses.generator_loss

    def steep(logits, kind):
        x = logits[0].mean(dim=1)
        return loss(logits, kind) + 0 * (x - x.detach()).sqrt()

    monkeypatch.setattr(losses, "generator_loss", steep)  # its value is fine, its slope is 0 * inf
    with pytest.raises(FloatingPointError, match="the gradient is nan"):
        go(tmp_path)


def test_rollback_goes_on_from_the_last_state_with_other_noise(tmp_path, nan_at, tiny, digits,
                                                               backbone):
    keep = dataclasses.replace(QUARTERS, on_nan="rollback", max_skips=3)
    go(tmp_path / "whole")
    nan_at(3)
    final = go(tmp_path / "back", keep=keep)
    logs = [pd.read_csv(tmp_path / name / "log.csv") for name in ("whole", "back")]
    assert logs[1]["images"].tolist() == [16, 32, 48, 64]
    assert logs[1]["rollbacks"].fillna(0).tolist() == [0, 0, 1, 1]
    assert np.array_equal(logs[0]["loss_g"][:2], logs[1]["loss_g"][:2])
    assert logs[0]["loss_g"][2] != logs[1]["loss_g"][2]
    assert final.exists()
    nan_at()
    with pytest.raises(FloatingPointError,
                       match=r"stopped after 0 images: loss_g is nan; last good state"):
        go(tmp_path / "always", keep=keep)

    state = init_state(GDD, tiny, [backbone])
    first = draw_batch(state, digits)
    state.rollbacks = 1
    second = draw_batch(state, digits)
    assert torch.equal(first.real, second.real)
    assert not torch.equal(first.latents, second.latents)


def test_a_run_leaves_signals_to_its_caller(tmp_path):
    """A pool's workers must die of Ctrl-C: only the command that asked for it saves first."""
    seen = []
    go(tmp_path, keep=Keep(ticks=1),
       evaluate=lambda state: seen.append(signal.getsignal(signal.SIGINT)) or {})
    assert seen == [signal.getsignal(signal.SIGINT)]


def test_data_of_another_size_is_refused(tiny, digits, backbone, tmp_path):
    wide = dataclasses.replace(digits, images=torch.zeros(4, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"\(3, 8, 8\), the network expects \(1, 8, 8\)"):
        run(tmp_path / "run", GDD, wide, tiny, [backbone])
    assert not (tmp_path / "run").exists()
