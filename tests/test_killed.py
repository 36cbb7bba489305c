"""kill -9 at random moments: what lies there afterwards is whole, and the same command ends well
and leaves nothing behind. A few moments by default; GDD_KILLS=20 tries as many of each command,
and of `figures`, which takes minutes."""

import csv
import itertools
import json
import multiprocessing
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from patches_profile import write_data
from PIL import Image
from test_data import png

from gdd import cli
from gdd.weights import checkpoint

ROOT = Path(__file__).resolve().parents[1]
KILLS = int(os.environ.get("GDD_KILLS", 2))
MANY = "GDD_KILLS" in os.environ


def one_width(text):
    """Rows of a table, the last one too, have as many cells as its head."""
    assert text.endswith("\n")
    assert len({len(row) for row in csv.reader(text.splitlines(), strict=True)}) == 1


READERS = {
    ".safetensors": checkpoint.read_tensors, ".zip": lambda path: zipfile.ZipFile(path).testzip()
    and 1 / 0,
    ".png": lambda path: Image.open(path).load(),
    ".json": lambda path: json.loads(path.read_text()),
    ".ipynb": lambda path: json.loads(path.read_text()),
    ".csv": lambda path: one_width(path.read_text()),
    ".npz": lambda path: [np.load(path, allow_pickle=False)[name] for name in np.load(path).files],
    ".pdf": lambda path: path.read_bytes().rstrip().endswith(b"%%EOF") or 1 / 0,
    ".html": lambda path: path.read_text()[-1]}  # yapf: disable
COMMANDS = {
    "prepare": ("gdd", "data", "prepare", "../pictures.zip", "out/set.zip"),
    "fid": ("analysis.fid", "digits", "gdd-i", "--n", "512", "--ranges", "1", "--allow-different-n",
            "--features", "digits", "--save-statistics", "out/digits.npz"),
    "train": ("gdd", "train", "smoke-gdd-i", "--folder", "out", "--total-images", "512", "--ticks",
              "8", "--samples", "16", "--no-tensorboard", "--accelerator", "cpu"),
}  # yapf: disable


def command(words, folder):
    """A process's whole life."""
    torch.set_num_threads(1)
    os.environ["GDD_CACHE"] = str(folder / "cache")
    os.chdir(folder)
    sys.argv = list(words)
    with (folder / "said").open("w") as said, redirect_stdout(said), redirect_stderr(said):
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)


@pytest.fixture(scope="module")
def server():
    """Processes that start with the modules imported, and without what this one has done."""
    context = get_context("forkserver")
    context.set_forkserver_preload([
        "gdd.training.run", "analysis.fid.compare", "sklearn.datasets", "test_killed"])
    return context


def live(server, words, folder, seconds=None):
    """Run a command and kill -9 it after `seconds`; returns its exit code and how long it took."""
    process, start = server.Process(target=command, args=(words, folder)), time.monotonic()
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode, time.monotonic() - start


def check_whole(folder):
    """Every file that has its own name can be read to its end."""
    found = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    for path in found:
        if not path.name.startswith(".") and path.suffix in READERS:
            READERS[path.suffix](path)
    return found


def write_pictures(path):
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(600):
            archive.writestr(f"{number}.png", png((24, 24), "RGB", value=number % 256))


def leftovers(folder):
    return [path for path in folder.rglob("*") if "partial" in path.name or ".part" in path.name]


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_any_moment_all_is_whole_and_the_same_command_ends_well(name, server, tmp_path):
    words, chance = COMMANDS[name], random.Random(0)
    write_pictures(tmp_path / "pictures.zip")
    (tmp_path / "whole").mkdir()
    live(server, words, tmp_path / "whole")  # the server is warm from here on
    (tmp_path / "timed").mkdir()
    code, life = live(server, words, tmp_path / "timed")
    assert code == 0, (tmp_path / "timed" / "said").read_text()
    expected = {path.relative_to(tmp_path / "whole") for path in check_whole(tmp_path / "whole")}
    kills = 0
    for attempt in itertools.count():
        folder, code = tmp_path / f"killed-{attempt}", None
        folder.mkdir()
        while code != 0 and kills < KILLS:
            code, _ = live(server, words, folder, chance.uniform(0.05, 1) * life)
            assert code in (0, -signal.SIGKILL), (folder / "said").read_text()
            check_whole(folder)
            kills += code != 0
            if name == "prepare" and (folder / "out" / "set.zip").exists():
                code = 0  # it is there, whole; the command would not write over it
        if code != 0:
            code, _ = live(server, words, folder)
        assert code == 0, (folder / "said").read_text()
        assert {path.relative_to(folder) for path in check_whole(folder)} == expected
        assert leftovers(folder) == []
        if kills >= KILLS:
            return


@pytest.mark.slow
@pytest.mark.skipif(not MANY, reason="takes minutes; GDD_KILLS=20 asks for it")
def test_figures_killed_at_any_moment(tmp_path):
    """The command and all processes that it started, as a shell or the memory killer does it."""
    words = [sys.executable, "-m", "analysis.figures", "--profile", "smoke", "--only", "fig01"]
    places = {"GDD_RUNS": "runs", "GDD_FIGURES": "figures", "GDD_CACHE": "cache",
              "JUPYTER_RUNTIME_DIR": "runtime"}  # yapf: disable
    own = {name: str(tmp_path / folder) for name, folder in places.items()}
    short = tempfile.mkdtemp()  # for sockets
    environment = os.environ | own | {"OMP_NUM_THREADS": "1", "TMPDIR": short}

    def start(seconds=None):
        process = subprocess.Popen(words, cwd=ROOT, env=environment, start_new_session=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            said, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said, _ = process.communicate()
        return process.returncode, said

    chance, kills = random.Random(1), 0
    while kills < KILLS:
        # early and late: half of the kills strike what was started before, and goes on
        code, said = start(chance.uniform(1, 40))
        assert code in (0, -signal.SIGKILL), said
        check_whole(tmp_path)
        kills += code != 0
        if code == 0:  # from nothing again
            subprocess.run(["rm", "-r", own["GDD_FIGURES"], own["GDD_RUNS"]], check=True)
    code, said = start()
    assert code == 0, said
    assert any(path.name == "fig01_overview.png" for path in check_whole(tmp_path))
    assert leftovers(tmp_path) == []
    assert [path.name for path in Path(short).iterdir() if "gdd" in path.name] == []
    shutil.rmtree(short)


def test_save_figure_by_many_at_once_and_killed_leaves_whole_files(server, tmp_path):
    """Four processes write one figure over and over, and are killed; a fifth has the last word."""
    processes = [server.Process(target=draw, args=(tmp_path, number)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        deadline = time.monotonic() + 60
        while not (tmp_path / f"{process.pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert len(check_whole(tmp_path)) >= 4
    last = server.Process(target=draw, args=(tmp_path, 9, 1))
    last.start()
    last.join()
    assert last.exitcode == 0
    assert (tmp_path / "f.csv").read_text() == "x\n9\n"
    assert leftovers(tmp_path) == []


def draw(folder, number, times=1 << 30):
    import matplotlib as mpl

    mpl.use("Agg")
    import pandas as pd
    from matplotlib.figure import Figure

    from analysis.figures import save_figure

    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([0, number])
    for done in range(times):
        save_figure(figure, pd.DataFrame({"x": [float(number)]}), folder, "f")
        if done == 0:
            (folder / f"{os.getpid()}").touch()


def test_a_worker_ends_with_its_parent(server):
    """However the parent ends: it does not wait for work forever."""
    reader, writer = server.Pipe(duplex=False)
    parent = server.Process(target=parent_of_one, args=(writer, ))
    parent.start()
    child = reader.recv()
    assert alive(child)
    parent.kill()
    parent.join()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and alive(child):
        time.sleep(0.05)
    assert not alive(child)


def parent_of_one(writer):
    child = multiprocessing.get_context("fork").Process(target=wait_for_work)
    child.start()
    writer.send(child.pid)
    child.join()


def wait_for_work():
    cli.end_with_parent()
    time.sleep(600)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize(("number", "everyone"), [
    (signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGINT, True)])  # yapf: disable
def test_a_profiles_training_that_is_stopped_keeps_its_last_step(number, everyone, tmp_path):
    """By a signal to the command alone, or as a terminal or batch system sends it, to its processes
    too; long before the first tick."""
    write_data(tmp_path / "patches.zip")
    (tmp_path / "long.py").write_text(
        "from dataclasses import replace\n"
        "from patches_profile import PROFILE as SHORT\n"
        "runs = SHORT.runs | {'edm': replace(SHORT.runs['edm'], total_images=10**7)}\n"
        "PROFILE = replace(SHORT, name='long', runs=runs)\n")
    own = {"GDD_RUNS": "runs", "GDD_FIGURES": "figures", "GDD_CACHE": "cache",
           "PATCHES": "patches.zip"}  # yapf: disable
    environment = os.environ | {name: str(tmp_path / place) for name, place in own.items()}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    words = ["--profile", str(tmp_path / "long.py"), "--seeds", "--runs", "edm"]
    process = subprocess.Popen(
        [sys.executable, "-m", "analysis.figures", *words], cwd=ROOT, env=environment,
        start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # yapf: disable
    begun = wait_for(lambda: [*(tmp_path / "runs").glob("*/edm-*/environment.json")], process)
    time.sleep(1)
    (os.killpg if everyone else os.kill)(process.pid, number)
    said, _ = process.communicate(timeout=60)  # of the workers, too: they hold its output
    state = begun[0].with_name("state.safetensors")
    images = checkpoint.read_metadata(state)["images_seen"]
    assert 0 < images < 10**7 / 8, said
    assert "Traceback" not in said


def wait_for(found, process):
    deadline = time.monotonic() + 120
    while not found() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert found(), process.communicate()[0]
    return found()


def test_two_that_prepare_one_file_at_once_leave_a_whole_one(server, tmp_path):
    """Each writes under a name of its own; the later one is refused, or has the last word."""
    write_pictures(tmp_path / "pictures.zip")
    folder = tmp_path / "both"
    folder.mkdir()
    processes = [
        server.Process(target=command, args=(COMMANDS["prepare"], folder)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    codes = {process.exitcode for process in processes}
    assert 0 in codes
    assert codes <= {0, 2}, (folder / "said").read_text()
    assert (folder / "out" / "set.zip") in check_whole(folder)
    assert leftovers(folder) == []
