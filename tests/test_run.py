"""A run's folder: what is in it, who may write to it, and what becomes of a run that cannot go
on."""

import dataclasses
import errno
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, small_backbone, small_denoiser
from PIL import Image
from test_trainer import GDD, tensors

from gdd import files, losses
from gdd.config import Keep
from gdd.data.images import load_digits
from gdd.denoiser import Denoiser
from gdd.profiles import profile
from gdd.training.engine import Engine
from gdd.training.folder import RunFolder
from gdd.training.run import run
from gdd.training.start import load_backbone, new_backbone, snapshot_name
from gdd.training.trainer import draw, init_state, train
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


def partial_of_the_dead(name="state.safetensors"):
    """What a process that is gone called the file it was writing."""
    code = "from gdd import files; print(files._owner())"
    owner = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                           cwd=Path(__file__).resolve().parents[1]).stdout.strip()
    return f".{name}.{owner}.gdd-partial"


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_a_run_goes_on_where_it_was_killed(tmp_path):
    whole, folder = go(tmp_path / "whole"), tmp_path / "killed"
    with pytest.raises(Killed):
        go(folder, evaluate=stop_after(32))
    assert names(folder) == ["config.json", "environment.json", "log.csv", "state.safetensors"]
    (folder / partial_of_the_dead()).write_text("left by a kill in the middle of a write")
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
    longer = dataclasses.replace(changed, total_images=128)
    with pytest.raises(ValueError, match=r"has seen 64 images, not 128; delete .* from nothing"):
        go(tmp_path, longer, keep=dataclasses.replace(QUARTERS, allow_change=("total_images", )))
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


def test_what_a_run_leaves_is_the_average(tmp_path, tiny, digits):
    """And not the network in training: its end, the best one, and one on the way."""
    averages = {}
    for state in train(GDD, digits, tiny, [small_backbone()]):
        averages[state.images_seen] = state.ema.copy()
    go(tmp_path, keep=Keep(ticks=4, snapshots=(32, )), evaluate=lambda _: {"FD": 1.0}, best_by="FD")
    left_behind = {"final.safetensors": 64, "best.safetensors": 64, snapshot_name(32): 32}
    for name, images in left_behind.items():
        left, _ = checkpoint.load_with_metadata(tmp_path / name)
        half = images == 32  # how it is kept
        for found, average in zip(left.parameters(), averages[images].parameters(), strict=True):
            assert torch.equal(found, average.half().float() if half else average), name
    trained, average = state.generator.parameters(), averages[64].parameters()
    assert not any(torch.equal(a, b) for a, b in zip(trained, average, strict=True))


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
    nan_at(6, 7)
    with pytest.raises(Killed):
        go(tmp_path / "killed", keep=keep, evaluate=stop_after(48))
    again = go(tmp_path / "killed", keep=keep)
    assert again.read_bytes() == (tmp_path / "two" / "final.safetensors").read_bytes()
    nan_at()
    with pytest.raises(
            FloatingPointError,
            match=r"stopped after 32 images: loss_g is nan, and 2 steps had been skipped before"):
        go(tmp_path / "more", keep=keep)


def test_a_gradient_that_is_not_finite_changes_nothing(tmp_path, monkeypatch, tiny, digits,
                                                       backbone):
    """In the second of four steps; the average goes on, and the spectral norms' vectors."""
    loss, calls = losses.generator_loss, []

    def steep(logits, kind):
        calls.append(1)
        x = logits[0].mean(dim=1)  # its value is fine, its slope is 0 * inf
        return loss(logits, kind) + (0 * (x - x.detach()).sqrt() if len(calls) == 2 else 0)

    monkeypatch.setattr(losses, "generator_loss", steep)
    with pytest.raises(FloatingPointError,
                       match="stopped after 16 images: the gradient is nan; last good state"):
        go(tmp_path)
    calls.clear()
    steps = train(GDD, digits, tiny, [backbone], on_nan="skip")
    before, after, later = (tensors(next(steps)) for _ in range(3))
    kept = [key for key in before if not key.startswith("e.") and key[-3:] not in ("._u", "._v")]
    assert [key for key in kept if not torch.equal(before[key], after[key])] == []
    assert all(later[key].isfinite().all() for key in later)
    assert not torch.equal(after["g.model.map_layer0.weight"], later["g.model.map_layer0.weight"])


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
    nan_at(8)  # again the third step of a run, after five calls of the one above
    with pytest.raises(Killed):
        go(tmp_path / "killed", keep=keep, evaluate=stop_after(48))
    assert go(tmp_path / "killed", keep=keep).read_bytes() == final.read_bytes()
    nan_at()
    with pytest.raises(FloatingPointError,
                       match=r"stopped after 0 images: loss_g is nan; last good state"):
        go(tmp_path / "always", keep=keep)

    state = init_state(GDD, tiny, [backbone])
    first = draw(state, digits)
    state.rollbacks = 1
    second = draw(state, digits)
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


def test_what_is_not_the_runs_own_stays(tmp_path):
    """Nothing is swept before the config is checked, and then only what killed writers left."""
    left = partial_of_the_dead()
    parts = left.split(".")[-2].split("-")
    ours = files._owner()
    with pytest.raises(Killed):
        go(tmp_path / "run", evaluate=stop_after(32))
    others = [
        ".a.b-1.0", ".state.safetensors.12-34.partial", ".notes.2024-01.partial", "gdd-partial",
        f".a.{ours}.gdd-partial", f".a.{'-'.join(['000000', *parts[1:]])}.gdd-partial",
        ".a.gdd-partial", ".a.x-1-1-1.gdd-partial"]
    for name in (left, *others):
        (tmp_path / "run" / name).write_text("mine")
    with pytest.raises(ValueError, match="holds a run of another config"):
        go(tmp_path / "run", dataclasses.replace(GDD, lr=0.5))
    assert {left, *others} <= {*names(tmp_path / "run")}
    go(tmp_path / "run")
    assert {left, *others} & {*names(tmp_path / "run")} == {*others}


BAD_CONFIGS = {
    "not JSON": (b"{", "config.json is not JSON"),
    "a list": (b"[]", "config.json must be a mapping of names"),
    "a number of text": (b'{"lr": "x"}', r"config.json: lr must be a finite number; got 'x'"),
    "NaN": (b'{"lr": NaN}', "NaN is no JSON"),
    "a list of anything": (b'{"backbones": [1, {}]}', r"config.json: backbones\[0\] must be text"),
    "depth": (b'{"lr": ' + b"[" * 100_000, "config.json is not JSON"),
    "zeros": (b"\0" * 1000, "config.json is not JSON"),
    "a long and strange one": (b'{"objective": "' + b"\\u001b[31m" * 9000 + b'"}',
                               "objective must be one of"),
    "another run's": (b'{"lr": 0.25}',
                      r"holds a run of another config .*; lr: 0.25 there, 0.001 now"),
}  # yapf: disable


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_a_config_of_wrong_kinds_is_one_line(case, tmp_path):
    content, message = BAD_CONFIGS[case]
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        go(tmp_path)
    assert str(caught.value).isprintable()
    assert names(tmp_path) == ["config.json"]


@pytest.mark.parametrize(
    "content",
    [b"{", b"{}", b"[1]", b'[{"images_seen": "x"}]', b'[{"images_seen": 1e400}]', b"\xff"])
def test_an_environment_of_wrong_kinds_is_one_line(content, tmp_path):
    (tmp_path / "environment.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"environment\.json"):
        go(tmp_path)
    assert names(tmp_path) == ["environment.json"]


@pytest.mark.parametrize("name", ["config.json", "environment.json"])
def test_a_pipe_in_a_run_folder_is_one_line(name, tmp_path):
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match="is a device, pipe or socket, not a file"):
        go(tmp_path)


def test_a_final_is_verified_before_the_state_goes(tmp_path):
    with pytest.raises(Killed):
        go(tmp_path / "run", evaluate=stop_after(32))
    whole = go(tmp_path / "whole")
    content = whole.read_bytes()
    other = go(tmp_path / "other", dataclasses.replace(GDD, lr=0.002)).read_bytes()
    state, final = (tmp_path / "run" / f"{name}.safetensors" for name in ("state", "final"))
    kept = state.read_bytes()
    early = go(tmp_path / "early", keep=Keep(ticks=4, snapshots=(32, )))
    snapshot = early.with_name("images-000000032.safetensors").read_bytes()
    for bad in (b"", content[:-1], content[:100], other, b"\0" * 500, kept, snapshot):
        final.write_bytes(bad)
        with pytest.raises(
                ValueError, match=r"delete .*final.safetensors, and the same command "
                "goes on from the state beside it"):
            go(tmp_path / "run")
        assert state.read_bytes() == kept
    final.write_bytes(content)
    assert go(tmp_path / "run") == final
    assert not state.exists()
    final.unlink()
    state.write_bytes(kept)
    assert go(tmp_path / "run").read_bytes() == content


def test_a_final_that_cannot_be_read_back_leaves_the_state(tmp_path, monkeypatch):
    """Half precision that overflows, for one."""
    monkeypatch.setattr(checkpoint, "load_with_metadata", broken)
    with pytest.raises(ValueError, match="not finite; delete "):
        go(tmp_path)
    assert {"state.safetensors", "final.safetensors"} <= {*names(tmp_path)}


def broken(path):
    raise ValueError("not finite")


def test_a_distance_that_is_not_finite_is_an_empty_place(tmp_path):
    def evaluate(state):
        return {"FD": {16: math.nan, 32: 2.0, 48: math.inf, 64: 3.0}[state.images_seen]}

    final = go(tmp_path, evaluate=evaluate, best_by="FD")
    log = pd.read_csv(tmp_path / "log.csv")["FD"]
    assert log.isna().tolist() == [True, False, True, False]
    assert checkpoint.read_metadata(tmp_path / "best.safetensors")["images_seen"] == 32
    assert "NaN" not in json.dumps(checkpoint.read_metadata(final)["log"])


@pytest.mark.parametrize("other", ["folder", "link", "dangling link", "pipe", "device"])
def test_what_is_no_plain_file_is_never_replaced(other, tmp_path):
    target, kept = tmp_path / "out.png", tmp_path / "kept"
    kept.write_bytes(b"kept")
    if other == "device":
        target = Path("/dev/null")
    else:
        {"folder": lambda: target.mkdir(), "link": lambda: target.symlink_to(kept),
         "dangling link": lambda: target.symlink_to("nowhere"),
         "pipe": lambda: os.mkfifo(target)}[other]()  # yapf: disable
    before = target.lstat()
    for content in (b"new", lambda path: path.write_bytes(b"new")):
        with pytest.raises(OSError, match=rf"cannot write {target}: a \w+ is there"):
            files.write_atomically(target, content)
    assert (target.lstat().st_ino, target.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert kept.read_bytes() == b"kept"
    assert sorted(
        tmp_path.iterdir()) == sorted({kept, target} if target.parent == tmp_path else {kept})


def test_what_becomes_a_folder_or_link_meanwhile_is_not_replaced(tmp_path):
    target = tmp_path / "out"

    def write(partial):
        partial.write_bytes(b"new")
        target.symlink_to("nowhere")

    with pytest.raises(OSError, match="a link is there"):
        files.write_atomically(target, write)
    assert target.is_symlink()
    assert list(tmp_path.iterdir()) == [target]


def test_a_writer_sweeps_what_dead_ones_left_in_the_same_folder(tmp_path):
    left = tmp_path / partial_of_the_dead("x.png")
    left.write_text("torn")
    seen = []
    files.write_atomically(tmp_path / "y.png",
                           lambda path: seen.extend(tmp_path.iterdir()) or path.write_text("y"))
    assert left not in seen
    assert len(seen) == 1  # its own
    long = tmp_path / ("\N{SNOWMAN}" * 80)  # 240 bytes, of 255
    files.write_atomically(long, b"x")
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "y.png", long])


def test_scratch_folders_are_ones_own_and_swept(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_MOST_SOCKET", 1000)
    monkeypatch.setattr(files.tempfile, "gettempdir", lambda: str(tmp_path))
    owner = partial_of_the_dead().split(".")[-2]
    (tmp_path / f"gdd-scratch-{owner}").mkdir()
    (tmp_path / "gdd-scratch-mine").mkdir()
    with files.scratch() as one, files.scratch() as two:
        assert one != two
        assert one.stat().st_mode & 0o777 == 0o700
        assert {*tmp_path.iterdir()} == {one, two, tmp_path / "gdd-scratch-mine"}
    assert [path.name for path in tmp_path.iterdir()] == ["gdd-scratch-mine"]


def test_a_scratch_folder_has_room_for_a_sockets_name(tmp_path, monkeypatch):
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr(files.tempfile, "gettempdir", lambda: str(deep))
    with files.scratch() as folder, socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(folder / "kernel-ipc-99"))


@pytest.mark.parametrize("change", ["another shape", "one too few", "one too many", "infinite"])
def test_a_classifier_of_other_weights_is_one_line(change, tmp_path):
    desk = profile("desk")
    tensors = dict(new_backbone(desk, "digits-backbone").state_dict())
    first = next(iter(tensors))
    path = tmp_path / "c.safetensors"
    checkpoint.write_tensors(path, tensors, {})
    load_backbone(desk, "digits-backbone", path)
    odd = {
        "another shape": {first: torch.zeros(3)}, "one too few": {}, "one too many": {
            "x\x1b": torch.zeros(1)}, "infinite": {first: tensors[first] * math.inf}}[change]
    if not odd:
        tensors.pop(first)
    checkpoint.write_tensors(path, tensors | odd, {})
    with pytest.raises(ValueError, match=r"c\.safetensors (does not fit|holds values)") as caught:
        load_backbone(desk, "digits-backbone", path)
    assert str(caught.value).isprintable()
