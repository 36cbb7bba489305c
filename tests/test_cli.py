"""Every command as a user types it: bad input is one clear line and exit code 2, and nothing is
left behind."""

import contextlib
import io
import json
import os
import pickle
import platform
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path
from unittest import mock

import pandas as pd
import pytest
import torch
from test_data import png

from analysis import figures
from gdd import cli
from gdd.profiles import presets
from gdd.weights import checkpoint, zoo

ROOT = Path(__file__).resolve().parents[1]


def start(*arguments, cwd=ROOT):
    """`python -m ...` as a process of its own."""
    return subprocess.run([sys.executable, "-m", *map(str, arguments)], capture_output=True,
                          text=True, cwd=cwd, check=False)


def call(module, *arguments, cwd=ROOT):
    """The same in this process, which need not import torch again."""
    words, out, err, code = [module, *map(str, arguments)], io.StringIO(), io.StringIO(), 0
    with (contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
          mock.patch.object(sys, "argv", words), warnings.catch_warnings()):
        # of runpy: the module may have been imported before
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            code = stop.code
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    (folder / "notes.txt").write_text("no weights in here")
    with zipfile.ZipFile(folder / "empty.zip", "w") as archive:
        archive.writestr("readme.txt", "no images in here")
    with zipfile.ZipFile(folder / "plain.zip", "w") as archive:
        archive.writestr("a.png", png((8, 8), "L"))
        archive.writestr("b.png", png((8, 8), "L", value=7))
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


BAD = {
    "missing checkpoint": (["analysis.activations", "--ckpt", "nowhere.safetensors"],
                           "nowhere.safetensors does not exist"),
    "near name": (["analysis.activations", "--ckpt", "gddi"],
                  "gddi does not exist, and no shipped weights are called so; did you mean gdd"),
    "text checkpoint": (["analysis.activations", "--ckpt", "{}/notes.txt"],
                        "notes.txt is not a safetensors checkpoint but a text file"),
    "unknown profile": (["analysis.activations", "--profile", "dsek"],
                        "got 'dsek'; did you mean desk?"),
    "profile file": (["analysis.activations", "--profile", "mine.py"],
                     "profile mine.py does not exist"),
    "lacking files": (["analysis.activations", "--profile", "cifar10"],
                      "profile cifar10 lacks 6 files: the data set datasets/cifar10-32x32.zip"),
    "zip without images": (["analysis.activations", "--ckpt", "teacher", "--data", "{}/empty.zip"],
                           "empty.zip holds no images"),
    "mixed sizes": (["analysis.activations", "--ckpt", "teacher", "--data", "{}/mixed-grey.zip"],
                    "b.png is 9x8 grey, but a.png is 8x8 grey"),
    "other images": (["analysis.activations", "--ckpt", "teacher", "--data", "{}/mixed.zip"],
                     "mixed.zip has images (3, 8, 8); the network takes (1, 8, 8)"),
    "no labels": (["analysis.activations", "--ckpt", "cond-teacher", "--data", "{}/plain.zip"],
                  "a network of 10 classes denoises images with their own labels"),
    "unknown statistic": (["analysis.activations", "--ckpt", "teacher", "--statistic", "x"],
                          "statistic must be one of"),
    "no such device": (["analysis.activations", "--ckpt", "teacher", "--device", "cuda:77"],
                       "device must be auto, cpu, or one that is here,"),
    "classifier": (["analysis.activations", "--ckpt", "digits-backbone"],
                   "holds a digits-backbone classifier, not a denoiser"),
    "figures profile": (["analysis.figures", "--profile", "moon"], "profile must be one of "),
    "unknown notebook": (["analysis.figures", "--only", "fig99"],
                         "got 'fig99'; did you mean fig0"),
    "unknown parameter": (["analysis.figures", "--only", "fig03", "-p", "stepz=3"],
                          "got 'stepz'; did you mean steps?"),
    "sampler": (["gdd", "sample", "--ckpt", "teacher", "--sampler", "dpm", "--out", "{}/s.png"],
                "sampler must be one of"),
    "sample device": (["gdd", "sample", "--ckpt", "gdd-i", "--device", "gpu", "--out", "{}/s.png"],
                      "device must be auto, cpu, or one that is here, such as cuda, cuda:1 or mps; "
                      "got 'gpu'"),
    "sample label": (["gdd", "sample", "--ckpt", "gdd-i", "--label", "3", "--out", "{}/s.png"],
                     "label must be a class of the network, which has none; got 3"),
    "describe": (["gdd", "describe", "{}/notes.txt"], "a text file"),
    "describe a name": (["gdd", "describe", "gdd-j"], "did you mean gdd-i"),
    "describe a folder": (["gdd", "describe", "{}"], "is a folder"),
    "pickle": (["gdd", "describe", "{}/evil.pkl"],
               "evil.pkl asks for posix.system, which is not on the list"),
    "convert": (["gdd", "convert", "{}/evil.pkl", "{}/out.safetensors"], "nothing of it was run"),
    "convert a zip": (["gdd", "convert", "{}/empty.zip", "{}/out.safetensors"], "a zip archive"),
    "download": (["gdd", "download", "edm-ffhq-64x64-ve"], "did you mean edm-ffhq-64x64-uncond-ve"),
    "data check": (["gdd", "data", "check", "{}/mixed.zip"],
                   "images differ in size or colour: 8x8 RGB, 9x8 RGB"),
    "data prepare": (["gdd", "data", "prepare", "{}/mixed.zip", "{}/out.zip"],
                     "b.png is 9x8 RGB, not square"),
    "data prepare over": (["gdd", "data", "prepare", "digits", "{}/empty.zip"], "empty.zip exists"),
    "missing teacher": (["gdd", "train", "ffhq-gdd-i", "--folder", "{}/run"],
                        "is not there; `python -m gdd download "),
    "fid: no source": (["analysis.fid", "{}/nothing.npz", "digits"], "nothing.npz does not exist"),
    "fid: near source": (["analysis.fid", "cdi", "digits"], "source cdi does not exist, and no"),
    "fid: no features": (["analysis.fid", "teacher", "digits", "--features", "vgg"],
                         "features must be one of inception,"),
    "fid: backbone": (["analysis.fid", "teacher", "digits", "--features", "digits-backbone"],
                      "features must not be a discriminator's backbone; got 'digits-backbone'"),
    "fid: no metric": (["analysis.fid", "teacher", "digits", "--metrics", "lpips"],
                       "metrics must be of fd, kid,"),
    "fid: other n": (["analysis.fid", "teacher", "digits", "--n", "100"],
                     "teacher@heun:18 has n = 100, digits n = 1,797"),
    "fid: device": (["analysis.fid", "teacher", "digits", "--device", "cuda:77"],
                    "device must be auto, cpu, or one that is here,"),
    "runs of no table": (["analysis.figures", "--runs", "gdd"], "--runs goes with --seeds"),
    "preset": (["gdd", "train", "desk-gddi", "--folder", "{}/run"],
               "got 'desk-gddi'; did you mean desk-gdd-i"),
    "no preset": (["gdd", "train", "--folder", "{}/run"], "a preset must be named first, as in"),
    "no preset at all": (["analysis.train"], "a preset must be named first, as in python -m "
                         "analysis.train desk-gdd-i"),
    "preset of a file": (["gdd", "train", "mine.py-gdd"], "profile mine.py does not exist"),
    "data": (["gdd", "train", "desk-teacher", "--folder", "{}/run", "--data", "{}/empty.zip"],
             "empty.zip holds no images"),
    "no run": (["gdd", "train", "desk-gdd-i"], "folder must be named, as in --folder runs/mine"),
    "no lpips": (["gdd", "train", "desk-cd", "--folder", "{}/run", "--distance", "lpips"],
                 "vgg16.safetensors is not there;"),
    "no teacher": (["gdd", "train", "cifar10-small-gdd-i", "--folder", "{}/run", "--backbones"],
                   "teacher teacher of profile cifar10-small is not trained yet"),
    "other backbone": (["gdd", "train", "desk-gdd-i", "--folder", "{}/run", "--backbones",
                        "resnet18"], "backbones must be of digits-backbone, digits, vgg16_bn, "),
    "other size of a vit": (["gdd", "train", "ffhq-gdd-i", "--dry-run", "--d-image-size", "128"],
                            "d_image_size 128 is not for backbone deit_base_distilled_patch16_224"),
    "other teacher": (["gdd", "train", "desk-gdd-i", "--folder", "{}/run", "--teacher", "gddi"],
                      "gddi does not exist, and no shipped weights are called so"),
    "micro batch": (["gdd", "train", "desk-gdd-i", "--folder", "{}/run", "--micro-batch-size", "32",
                     "--accelerator", "cpu"],
                    "d_batch_norm_images must divide the 32 images of a pass"),
    "zoom": (["gdd", "sample", "--ckpt", "gdd-i", "--zoom", "100000"],
             "n 64 and zoom 100000 make a picture of"),
    "many images": (["gdd", "sample", "--ckpt", "gdd-i", "--n", "100000000"],
                    "and zoom 4 make a picture of"),
    "ticks": (["gdd", "train", "desk-gdd-i", "--folder", "{}/run", "--ticks", "0"],
              "ticks must be at least 1; got 0"),
    "under a file": (["gdd", "train", "desk-gdd-i", "--folder", "{}/notes.txt/run",
                      "--accelerator", "cpu"], "cannot write in"),
    "curve features": (["analysis.train", "desk-gdd", "--folder", "{}/run", "--features", "vgg"],
                       "features must be one of inception,"),
    "curve n": (["analysis.train", "desk-gdd", "--folder", "{}/run", "--n", "1"],
                "n must be at least 2; got 1"),
    "curve reference": (["analysis.train", "desk-gdd", "--folder", "{}/run", "--reference",
                         "{}/notes.npz"], "notes.npz does not exist"),
}  # yapf: disable
# what tyro says, in a box that wraps
TYPES = {
    "range": (["gdd", "train", "desk-gdd", "--lr", "7"],
              "lr must be a number from 1e-12 to 1; got 7.0"),
    "kind": (["gdd", "train", "desk-gdd", "--lr", "fast"],
             "could not convert string to float: 'fast'"),
    "near option": (["gdd", "train", "desk-gdd", "--batchsize", "3"], "Perhaps you meant"),
    "choice": (["gdd", "sample", "--ckpt", "gdd-i", "--precision", "fp8"],
               "invalid choice 'fp8'"),
    "no sources": (["analysis.activations", "--ckppt", "gdd-i"], "--ckpt STR"),
    "gone": (["gdd", "train", "desk-gdd", "--set", "lr=1"], "Unrecognized options"),
}  # yapf: disable


def check_bad_input(done, message, files, before):
    assert done.returncode == 2, done.stderr
    (line, ) = [line for line in done.stderr.splitlines() if line.strip()]
    assert line.startswith("error: ")
    assert message in line
    assert sorted(files.iterdir()) == before


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(case, files):
    arguments, message = BAD[case]
    before = sorted(files.iterdir())
    done = call(*[a.replace("{}", str(files)) for a in arguments], cwd=files)
    check_bad_input(done, message, files, before)


BEFORE_TORCH = """
import json, runpy, sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        assert name != "torch"
sys.meta_path.insert(0, NoTorch())
for words in json.loads(sys.argv[1]):
    sys.argv = words
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        print("code", stop.code, file=sys.stderr)
"""


def test_what_needs_no_torch_is_refused_before_it_is_imported(files):
    cases = [
        "missing checkpoint", "near name", "unknown profile", "unknown statistic", "sampler",
        "figures profile", "unknown notebook", "unknown parameter", "describe a name", "download",
        "data check", "fid: no source", "fid: near source", "fid: no metric", "preset", "no run",
        "other teacher", "ticks"]
    asked = [[a.replace("{}", str(files)) for a in BAD[case][0]] for case in cases]
    asked += [["analysis.activations", "--data", "none.zip"],
              ["gdd", "train", "desk-gdd", "--folder", "run", "--data", "none.zip"],
              ["gdd", "convert", "none.pkl", "out.safetensors"],
              ["analysis.fid", "gdd-i@dpm", "digits"]]  # yapf: disable
    said = [BAD[case][1] for case in cases]
    said += ["none.zip does not exist", "none.zip does not exist", "none.pkl does not exist",
             "sampler must be one of"]  # yapf: disable
    done = subprocess.run(
        [sys.executable, "-c", BEFORE_TORCH, json.dumps(asked)], cwd=files, capture_output=True,
        text=True, check=False)
    assert done.stderr.count("code 2\n") == len(asked), done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == len(asked), done.stderr
    assert [line for line, words in zip(lines, said, strict=True) if words not in line] == []


@pytest.mark.parametrize("case", ["missing checkpoint", "preset", "fid: no source"])
def test_so_it_is_in_a_process_of_its_own(case, files):
    arguments, message = BAD[case]
    before = sorted(files.iterdir())
    done = start(*[a.replace("{}", str(files)) for a in arguments], cwd=files)
    check_bad_input(done, message, files, before)


@pytest.mark.parametrize("case", TYPES)
def test_wrong_options_are_named(case, tmp_path):
    arguments, message = TYPES[case]
    done = call(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in " ".join(re.sub(r"[^\x20-\x7e]", " ", done.stderr).split())
    assert not list(tmp_path.iterdir())


HELP = {
    "gdd": ("train", "sample", "describe", "convert", "download", "data"),
    "gdd train": tuple(run for _, run in presets().values()),
    "gdd train desk-gdd-i": ("--lr FLOAT", "(default: 0.001)", "--teacher", "--backbones",
                             "digits-backbone", "--micro-batch-size", "--folder"),
    "gdd sample": ("--device", "{fp32,tf32,bf16,fp16}"),
    "analysis.train": ("imagenet64",),
    "analysis.train desk-gdd-i": ("--features", "--reference", "--lr FLOAT"),
    "analysis.activations": ("--device", "{fp32,tf32,bf16,fp16}"),
    "analysis.figures": ("--retrain", ),
    "analysis.fid": ("--device", "{fp32,tf32,bf16,fp16}"),
}  # yapf: disable


@pytest.mark.parametrize("command", HELP)
def test_help_tells_all_and_imports_nothing_heavy(command):
    """torch alone takes seconds; what is left answers in a fifth of one."""
    module, *words = command.split()
    code = ("import runpy, sys\n"
            f"sys.argv = {[module, *words, '--help']}\n"
            f"try: runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
            "except SystemExit: pass\n"
            "print(*({'torch', 'numpy', 'pandas'} & sys.modules.keys()), file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT,
                          check=True)
    assert "usage: python -m " + command in done.stdout
    assert all(word in done.stdout for word in HELP[command])
    assert done.stderr.strip() == ""


def test_measuring_imports_no_engine():
    """What only training needs would double the seconds before each of a dozen processes
    measures."""
    code = ("import sys, analysis.surveys, analysis.notebooks, analysis.figures\n"
            "print(*({'lightning_fabric', 'torch._dynamo', 'timm', 'lpips', 'seaborn'}"
            " & sys.modules.keys()))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT,
                          check=True)
    assert done.stdout.strip() == ""


def test_activations_of_a_shipped_generator(tmp_path, monkeypatch):
    """By its name and profile, in a folder where exploring overwrites nothing."""
    monkeypatch.setattr(figures, "FIGURES_FOLDER", tmp_path)
    done = call("analysis.activations", "--ckpt", "gdd-i", "--profile", "smoke", "--part",
                "conv1,proj", "--steps", "3")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no progress bar where nobody watches
    folder = tmp_path / "smoke" / "explore"
    assert sorted(path.name for path in folder.iterdir()) == [
        f"activations-gdd-i.{kind}" for kind in ("csv", "pdf", "png", "txt")]
    table = pd.read_csv(folder / "activations-gdd-i.csv")
    assert set(table["n"]) == {16}  # the profile's


def test_activations_of_a_profile_of_ones_own(tmp_path):
    """A Python file's; a conditional teacher denoises images with their own labels."""
    (tmp_path / "mine.py").write_text(
        "from dataclasses import replace\nfrom gdd.profiles.digits import DESK\n"
        "PROFILE = replace(DESK, name='mine', n_activations=5)\n")
    done = call("analysis.activations", "--ckpt", "cond-teacher", "--profile", "mine.py", "--out",
                "here", "--steps", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert set(pd.read_csv(tmp_path / "here" / "activations-cond-teacher.csv")["n"]) == {5}


@pytest.mark.slow
def test_a_signal_saves_and_the_printed_command_goes_on(tmp_path):
    options = [
        "train", "smoke-gdd-i", "--total-images", "1280", "--accelerator", "cpu", "--ticks", "2",
        "--samples", "0", "--no-tensorboard", "--folder"]
    command = [sys.executable, "-u", "-m", "gdd", *options, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               cwd=ROOT)
    while process.poll() is None and not (tmp_path / "run" / "config.json").exists():
        time.sleep(0.05)
    time.sleep(0.5)  # in the middle of a tick
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "of 1,280 images, saved in" in out
    resume = shlex.split(out.split("go on with: ")[1])
    assert resume == ["python", "-m", "gdd", *options, str(tmp_path / "run")]
    assert call("gdd", *resume[3:]).returncode == 0
    assert call("gdd", *options, tmp_path / "whole").returncode == 0
    one, two = (checkpoint.read_tensors(tmp_path / run / "final.safetensors")
                for run in ("run", "whole"))
    assert all(torch.equal(tensor, two[0][name]) for name, tensor in one[0].items())
    assert one[1]["log"] == two[1]["log"]


def test_a_dry_run_tells_what_a_profile_takes_and_needs_no_file(tmp_path):
    done = call("gdd", "train", "cifar10-small-teacher", "--batch-size", "64",
                "--d-batch-norm-images", "0", "--precision", "fp32", "--micro-batch-size", "8",
                "--dry-run", cwd=tmp_path)
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
def test_the_distance_is_measured_in_training_by_two_processes_as_by_one(tmp_path, monkeypatch):
    """torchrun's own start, the curve in the log, the best weights, and what one process measures
    of them afterwards."""
    monkeypatch.setenv("GDD_CACHE", str(tmp_path / "cache"))
    options = [
        "smoke-gdd-i", "--d-batch-norm-images", "32", "--ticks", "2", "--accelerator", "cpu",
        "--samples", "0", "--no-tensorboard", "--folder"]
    two = start("torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m",
                "analysis.train", *options, tmp_path / "two")
    assert two.returncode == 0, two.stderr
    assert "warning" not in two.stderr  # the judge shares no backbone with the discriminator
    assert call("analysis.train", *options, tmp_path / "one").returncode == 0
    one, two = (pd.read_csv(tmp_path / run / "log.csv")["FD1797[digits]"].tolist()
                for run in ("one", "two"))
    assert one == pytest.approx(two, rel=1e-3)
    assert json.loads((tmp_path / "two" / "environment.json").read_text())[0]["processes"] == 2
    best = checkpoint.read_metadata(tmp_path / "two" / "best.safetensors")
    measured = call("analysis.fid", tmp_path / "two" / "best.safetensors", "digits", "--ranges",
                    "1", "--json", "--no-cache")
    assert json.loads(measured.stdout)[0]["value"] == pytest.approx(best["FD1797[digits]"],
                                                                    rel=1e-4)


def test_train_then_describe_then_sample(tmp_path):
    run, picture = tmp_path / "run", tmp_path / "grid.png"
    done = call("gdd", "train", "smoke-gdd-i", "--folder", run, "--total-images", "128", "--lr",
                "3e-4", "--accelerator", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "weights frozen (85.1%)" in done.stdout
    described = call("gdd", "describe", run / "final.safetensors")
    assert "trained on 128 images" in described.stdout
    assert "lr: 0.0003" in described.stdout
    sampled = call("gdd", "sample", "--ckpt", run / "final.safetensors", "--out", picture, "--n",
                   "6", "--precision", "bf16", "--device", "cpu")
    assert sampled.stdout == f"{picture}: 6 images, seeds 0 to 5, one-step\n"
    assert picture.stat().st_size > 100


def test_another_teacher_is_a_flag(tmp_path):
    """A shipped run's name, of another profile's or one's own file."""
    done = call("gdd", "train", "smoke-gdd", "--teacher", "desk/gdd-i", "--total-images", "64",
                "--accelerator", "cpu", "--samples", "0", "--folder", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    started = checkpoint.load("gdd-i").state_dict()
    trained, metadata = checkpoint.load_with_metadata(tmp_path / "run" / "final.safetensors")
    assert metadata["train"]["teacher"] == "desk/gdd-i"
    moved = [float((x - started[name]).abs().max()) for name, x in trained.state_dict().items()]
    assert 0 < max(moved) < 0.01  # one step away


def test_shipped_runs_are_found_by_name(tmp_path):
    described = call("gdd", "describe", "gdd", cwd=ROOT)  # where a folder is called so, too
    assert str(zoo.path("gdd")) in described.stdout
    assert zoo.locate("desk/two-step-0.2") == zoo.path("two-step-0.2")
    (tmp_path / "mine").touch()
    assert zoo.locate(tmp_path / "mine") == tmp_path / "mine"


def stop(command, *arguments, after, cwd, times=1):
    """Ctrl-C, so many times, once `after` exists; what a person would read."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", command, *map(str, arguments)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        # what a shell starts in the background has it ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    deadline = time.monotonic() + 120
    while process.poll() is None and not after() and time.monotonic() < deadline:
        time.sleep(0.02)
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.mark.slow
def test_ctrl_c_says_what_is_true_of_the_command(tmp_path):
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(15_000):
            archive.writestr(f"{number}.png", png((8, 8), "L", value=number % 256))
    done = stop("gdd", "data", "prepare", "many.zip", "out/set.zip", cwd=tmp_path, after=lambda:
                (tmp_path / "out").exists() and any((tmp_path / "out").iterdir()))
    # the signal itself, if it came in an exec() of Python's own; a shell shows 130 of both
    assert done.returncode in (130, -signal.SIGINT)
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1] == "stopped; nothing was written by halves"
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []

    run = tmp_path / "run"
    options = ["train", "smoke-gdd-i", "--folder", run, "--total-images", "128000", "--ticks", "1",
               "--samples", "0", "--no-tensorboard", "--accelerator", "cpu"]  # yapf: disable
    done = stop("gdd", *options, cwd=tmp_path, after=(run / "config.json").exists, times=2)
    assert done.returncode in (0, 130), done.stderr  # a step may end between the two
    if done.returncode:
        assert done.stderr.splitlines()[-1] == (
            "stopped at once, before a state was saved; the same command begins anew")
        assert not (run / "state.safetensors").exists()
    assert "Traceback" not in done.stderr


def fails_with(error, monkeypatch, capsys):
    def fail(_):
        raise error

    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(SystemExit) as stopped:
        cli.run_cli(cli.Any, fail, lambda words, prog: None)
    (line, ) = capsys.readouterr().err.splitlines()
    return stopped.value.code, line


@pytest.mark.parametrize("kind", [ValueError, OSError, RuntimeError, KeyboardInterrupt])
def test_a_message_is_one_printable_line_below_500_characters(kind, monkeypatch, capsys):
    _, line = fails_with(kind("a\n\x1b[31mb\u202e\x00\r" * 300 + " the way on"), monkeypatch,
                         capsys)
    assert line.isprintable()
    assert len(line) < 500
    assert line.endswith("the way on")
    assert "a \\x1b[31mb\\u202e\\x00" in line


def test_what_memory_cannot_hold_is_one_line(monkeypatch, capsys):
    assert fails_with(MemoryError(), monkeypatch, capsys) == (1, "error: not enough memory")
    assert fails_with(RecursionError("too deep"), monkeypatch, capsys) == (1, "error: too deep")
    assert fails_with(ValueError(), monkeypatch, capsys) == (2, "error: ValueError")


def test_the_innermost_word_on_a_stop_counts(monkeypatch, capsys):
    with pytest.raises(KeyboardInterrupt, match=r"^inner$"):  # noqa: SIM117
        with cli.on_interrupt(lambda: "outer"), cli.on_interrupt(lambda: "inner"):
            raise KeyboardInterrupt
    assert fails_with(KeyboardInterrupt(), monkeypatch,
                      capsys) == (130, "stopped; nothing was written by halves")
    assert fails_with(KeyboardInterrupt("said"), monkeypatch, capsys) == (130, "said")


OUTS = {
    "sample": ["gdd", "sample", "--ckpt", "gdd-i", "--n", "1", "--device", "cpu", "--out"],
    "convert": ["gdd", "convert", "gdd-i.safetensors"],
    "prepare": ["gdd", "data", "prepare", "digits.zip"],
}  # yapf: disable


@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
@pytest.mark.parametrize("name", OUTS)
def test_an_out_that_is_no_plain_file_is_left_as_it_is(name, kind, tmp_path):
    shutil.copy(zoo.path("teacher"), tmp_path / "teacher.safetensors")
    shutil.copy(zoo.path("gdd-i"), tmp_path / "gdd-i.safetensors")
    with zipfile.ZipFile(tmp_path / "digits.zip", "w") as archive:
        archive.writestr("a.png", png((8, 8), "L"))
    target = tmp_path / "target.zip"
    {"folder": target.mkdir, "link": lambda: target.symlink_to("nowhere"),
     "pipe": lambda: os.mkfifo(target)}[kind]()  # yapf: disable
    before = target.lstat()
    done = call(*OUTS[name], target, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    (line, ) = done.stderr.splitlines()
    assert "target.zip" in line
    assert (target.lstat().st_ino, target.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.parametrize(("name", "kept"), [("", True), ("MALLOC_MMAP_THRESHOLD_", False)])
def test_a_command_keeps_freed_memory_unless_a_variable_says_otherwise(name, kept):
    code = """if True:
        import ctypes, resource
        from gdd import cli
        libc = ctypes.CDLL(None)
        libc.malloc.restype = ctypes.c_void_p
        def fill():
            place = ctypes.c_void_p(libc.malloc(1 << 26))
            libc.memset(place, 1, ctypes.c_size_t(1 << 26))
            libc.free(place)
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        def command(_):
            before = fill()
            print([fill() for _ in range(4)][-1] - before)
        cli.run_cli(None, command, lambda words, prog: None)"""
    variables = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    variables |= {name: "131072"} if name else {}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT,
                          env=variables, check=True)
    pages = 4 * (1 << 26) // os.sysconf("SC_PAGE_SIZE")
    assert (int(done.stdout) < pages / 10) == kept, done.stdout
