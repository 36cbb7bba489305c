"""Every command as a user types it: bad input is one clear line and exit code 2, and nothing is
left behind."""

import json
import os
import pickle
import re
import shlex
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import torch
from test_data import png

from gdd.weights import checkpoint, zoo

ROOT = Path(__file__).resolve().parents[1]


def call(*arguments, cwd=ROOT):
    return subprocess.run([sys.executable, "-m", *map(str, arguments)], capture_output=True,
                          text=True, cwd=cwd, check=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    (folder / "notes.txt").write_text("no weights in here")
    with zipfile.ZipFile(folder / "empty.zip", "w") as archive:
        archive.writestr("readme.txt", "no images in here")
    for name, mode in (("mixed.zip", "RGB"), ("mixed-grey.zip", "L")):
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("a.png", png((8, 8), mode))
            archive.writestr("b.png", png((9, 8), mode))
    (folder / "evil.pkl").write_bytes(pickle.dumps({"ema": Evil(folder)}))
    return folder


class Evil:

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.system, (f"touch {self.folder}/ran", )


TEACHER = zoo.FOLDER / "teacher.safetensors"
BAD = {
    "missing checkpoint": (
        ["analysis.activations", "--ckpt", "nowhere.safetensors"],
        "checkpoint nowhere.safetensors does not exist",
    ),
    "text checkpoint": (
        ["analysis.activations", "--ckpt", "{}/notes.txt"],
        "notes.txt is not a safetensors checkpoint but a text file",
    ),
    "unknown profile": (
        ["analysis.activations", "--ckpt", TEACHER, "--profile", "moon"],
        "profile must be one of desk, smoke; got 'moon'",
    ),
    "zip without images": (["analysis.activations", "--ckpt", TEACHER, "--data",
                            "{}/empty.zip"], "empty.zip holds no images"),
    "mixed sizes": (
        ["analysis.activations", "--ckpt", TEACHER, "--data", "{}/mixed-grey.zip"],
        "b.png is 9x8 grey, but a.png is 8x8 grey",
    ),
    "other images": (
        ["analysis.activations", "--ckpt", TEACHER, "--data", "{}/mixed.zip"],
        "mixed.zip has images (3, 8, 8); the network takes (1, 8, 8)",
    ),
    "unknown statistic": (
        ["analysis.activations", "--ckpt", TEACHER, "--profile", "smoke", "--statistic", "x"],
        "statistic must be one of",
    ),
    "classifier": (
        ["analysis.activations", "--ckpt", zoo.FOLDER / "digits-backbone.safetensors"],
        "holds a digits-backbone classifier, not a denoiser",
    ),
    "figures profile": (["analysis.figures", "--profile",
                         "moon"], "profile must be one of desk, smoke; got 'moon'"),
    "unknown notebook": (["analysis.figures", "--only",
                          "fig99"], "--only takes fig02, fig03, fig04; got 'fig99'"),
    "unknown parameter": (
        ["analysis.figures", "--only", "fig03", "-p", "stepz=3"],
        "fig03 has no parameter 'stepz'; it has profile,",
    ),
    "sampler": (["gdd", "sample", "--ckpt", TEACHER, "--sampler", "dpm", "--out",
                 "{}/s.png"], "sampler must be one of"),
    "describe": (["gdd", "describe", "{}/notes.txt"], "a text file"),
    "pickle": (["gdd", "describe",
                "{}/evil.pkl"], "evil.pkl asks for posix.system, which is not on the list"),
    "convert": (["gdd", "convert", "{}/evil.pkl", "{}/out.safetensors"], "nothing of it was run"),
    "convert a zip": (["gdd", "convert", "{}/empty.zip", "{}/out.safetensors"], "a zip archive"),
    "download": (["gdd", "download", "edm"], "name must be one of edm-cifar10-32x32-uncond-vp,"),
    "data check": (["gdd", "data", "check",
                    "{}/mixed.zip"], "images differ in size or colour: 8x8 RGB, 9x8 RGB"),
    "data prepare": (["gdd", "data", "prepare", "{}/mixed.zip",
                      "{}/out.zip"], "b.png is 9x8 RGB, not square"),
    "data prepare over": (["gdd", "data", "prepare", "digits", "{}/empty.zip"], "empty.zip exists"),
    "missing teacher": (
        ["gdd", "train", "--folder", "{}/run", "--preset", "ffhq-gdd-i"],
        "edm-ffhq-64x64-uncond-ve.pkl is not there; `python -m gdd download edm-ffhq-64x64-uncond-ve` fetches it from https://",
    ),
    "fid: no source": (["analysis.fid", "{}/nothing.npz", "digits"], "nothing.npz does not exist"),
    "fid: no features": (["analysis.fid", TEACHER, "digits", "--features",
                          "vgg"], "features must be one of inception,"),
    "fid: no metric": (["analysis.fid", TEACHER, "digits", "--metrics",
                        "lpips"], "metrics must be of fd, kid,"),
    "fid: other n": (["analysis.fid", TEACHER, "digits", "--n",
                      "100"], "teacher@heun:18 has n = 100, digits n = 1,797"),
    "preset": (["gdd", "train", "--folder", "{}/run", "--preset",
                "cifar"], "preset must be one of desk-teacher"),
    "set": (["gdd", "train", "--folder", "{}/run", "--set", "lr=fast"], "lr must be float like"),
    "data": (["gdd", "train", "--folder", "{}/run", "--set",
              "data={}/empty.zip"], "empty.zip holds no images"),
    "no run": (["gdd", "train"], "folder must be named"),
    "sets": (
        ["gdd", "train", "--folder", "{}/run", "-s", "lr=7", "-s", "seed=1"],
        "lr must be a number from 1e-12 to 1; got 7.0",
    ),
    "no lpips": (
        ["gdd", "train", "--folder", "{}/run", "-s", "objective=cd", "-s", "distance=lpips"],
        "vgg16.safetensors is not there;",
    ),
    "no teacher": (
        ["gdd", "train", "--folder", "{}/run", "--preset", "cifar10-small-gdd-i"],
        "teacher must be named: train it first",
    ),
    "micro batch": (
        ["gdd", "train", "--folder", "{}/run", "--micro-batch-size", "32", "--accelerator", "cpu"],
        "d_batch_norm_images must divide the 32 images of a pass",
    ),
    "ticks": (["gdd", "train", "--folder", "{}/run", "--ticks",
               "0"], "ticks must be at least 1; got 0"),
    "under a file": (["gdd", "train", "--folder", "{}/notes.txt/run", "--accelerator",
                      "cpu"], "cannot write in"),
    "curve features": (["analysis.train", "--folder", "{}/run", "--features",
                        "vgg"], "features must be one of inception,"),
    "curve n": (["analysis.train", "--folder", "{}/run", "--n",
                 "1"], "n must be at least 2; got 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(case, files):
    arguments, message = BAD[case]
    before = sorted(files.iterdir())
    done = call(*[str(a).replace("{}", str(files)) for a in arguments], cwd=files)
    assert done.returncode == 2, done.stderr
    (line, ) = [line for line in done.stderr.splitlines() if line.strip()]
    assert line.startswith("error: ")
    assert message in line
    assert sorted(files.iterdir()) == before


@pytest.mark.parametrize(
    "command",
    ["gdd", "analysis.activations", "analysis.figures", "analysis.fid", "analysis.train"])
def test_help_answers_in_a_second(command):
    seconds = []
    for _ in range(3):
        start = time.monotonic()
        done = call(command, "--help")
        seconds.append(time.monotonic() - start)
        assert done.returncode == 0
        assert "usage" in done.stdout
    assert min(seconds) < 1


@pytest.mark.slow
def test_activations_of_a_shipped_generator(tmp_path):
    done = call("analysis.activations", "--ckpt", zoo.path("gdd-i"), "--profile", "smoke", "--out",
                tmp_path, "--part", "conv1,proj")
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"activations-gdd-i.{kind}" for kind in ("csv", "pdf", "png")
    ]
    assert done.stderr == ""  # no progress bar where nobody watches


@pytest.mark.slow
def test_a_signal_saves_and_the_printed_command_goes_on(tmp_path):
    quiet = ["--accelerator", "cpu", "--ticks", "2", "--samples", "0", "--no-tensorboard"]
    options = ["train", "--preset", "smoke-gdd-i", "--set", "total_images=1280", *quiet, "--folder"]
    command = [sys.executable, "-u", "-m", "gdd", *options, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               cwd=ROOT)
    while not (tmp_path / "run" / "config.json").exists():
        time.sleep(0.05)
    time.sleep(0.5)  # in the middle of a tick
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "of 1,280 images, saved in" in out
    resume = shlex.split(out.split("go on with: ")[1])
    assert resume[:3] == ["python", "-m", "gdd"]
    assert call("gdd", *resume[3:]).returncode == 0
    assert call("gdd", *options, tmp_path / "whole").returncode == 0
    one, two = (checkpoint.read_tensors(tmp_path / run / "final.safetensors")
                for run in ("run", "whole"))
    assert all(torch.equal(tensor, two[0][name]) for name, tensor in one[0].items())
    assert one[1]["log"] == two[1]["log"]


def test_a_dry_run_tells_what_a_profile_takes_and_needs_no_file(tmp_path):
    options = [
        "--preset", "cifar10-small-teacher", "-s", "batch_size=64", "-s", "precision=fp32",
        "--micro-batch-size", "8"
    ]
    done = call("gdd", "train", *options, "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    config = json.loads(done.stdout[:done.stdout.index("}") + 1])
    assert (config["batch_size"], config["precision"], config["objective"]) == (64, "fp32", "edm")
    assert "freeze=none: 0 of 13,956,355 weights frozen (0.0%)" in done.stdout
    assert "  enc.32x32_block0: 0 of " in done.stdout
    assert "memory of one of 1 processes, 8 images at once:" in done.stdout
    assert "  generator, its average, the teacher: 167.5 MB" in done.stdout
    assert re.search(r"in all, beside PyTorch itself: [\d.]+ [MG]B\n$", done.stdout)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_distance_is_measured_in_training_by_two_processes_as_by_one(tmp_path):
    """torchrun's own start, the curve in the log, the best weights, and what one process measures
    of them afterwards."""
    options = [
        "--preset",
        "smoke-gdd-i",
        "-s",
        "d_batch_norm_images=32",
        "--ticks",
        "2",
        "--accelerator",
        "cpu",
        "--samples",
        "0",
    ]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m",
        "analysis.train"
    ]
    two = subprocess.run([*command, *options, "--folder", tmp_path / "two"], capture_output=True,
                         text=True, cwd=ROOT, check=False)
    assert two.returncode == 0, two.stderr
    assert call("analysis.train", *options, "--folder", tmp_path / "one").returncode == 0
    logs = [pd.read_csv(tmp_path / run / "log.csv") for run in ("one", "two")]
    assert logs[0]["FD1797[digits]"].tolist() == pytest.approx(logs[1]["FD1797[digits]"].tolist(),
                                                               rel=1e-3)
    assert json.loads((tmp_path / "two" / "environment.json").read_text())[0]["processes"] == 2
    best = checkpoint.read_metadata(tmp_path / "two" / "best.safetensors")
    measured = call("analysis.fid", tmp_path / "two" / "best.safetensors", "digits", "--ranges",
                    "1", "--json", "--no-cache")
    assert json.loads(measured.stdout)[0]["value"] == pytest.approx(best["FD1797[digits]"],
                                                                    rel=1e-4)


@pytest.mark.slow
def test_train_then_describe_then_sample(tmp_path):
    run, picture = tmp_path / "run", tmp_path / "grid.png"
    done = call(
        "gdd",
        "train",
        "--folder",
        run,
        "--preset",
        "smoke-gdd-i",
        "--set",
        "total_images=128",
        "--accelerator",
        "cpu",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "weights frozen (85.1%)" in done.stdout
    described = call("gdd", "describe", run / "final.safetensors")
    assert "trained on 128 images" in described.stdout
    assert call("gdd", "sample", "--ckpt", run / "final.safetensors", "--out", picture, "--n",
                "6").returncode == 0
    assert picture.stat().st_size > 100
