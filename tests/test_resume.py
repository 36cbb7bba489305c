"""train(2N) is train(N), kill -9 and resume(N), bit for bit, wherever the kill strikes, steps of R1
among them: one process and two."""

import dataclasses
import itertools
import math
import os
import random
import shutil
import signal
import time
from multiprocessing import get_context

import pytest
import torch
from conftest import small_backbone, small_denoiser
from test_engine import free_port
from test_trainer import GDD

from gdd.config import Hardware, Keep
from gdd.data.images import load_digits
from gdd.training.run import run
from gdd.training.state import checksum, save_state
from gdd.weights import checkpoint

CONFIG = dataclasses.replace(GDD, total_images=16 * 40, freeze="gdd-i", d_batch_norm_images=8)
KEEP = Keep(ticks=20)
KILLS = 20


def train_until(folder, processes, dies_in_write):
    """A process's whole life. `dies_in_write` is (n, share): it kills itself when `share` of the
    n-th state lies on the disk."""
    torch.set_num_threads(1)
    os.environ |= processes
    if dies_in_write and processes.get("RANK", "0") == "0":
        nth, share = dies_in_write
        writes, save = itertools.count(1), checkpoint.save_file

        def torn(tensors, path, metadata):
            save(tensors, path, metadata)
            if next(writes) == nth:
                os.truncate(path, int(share * path.stat().st_size))
                os.kill(os.getpid(), signal.SIGKILL)

        checkpoint.save_file = torn

    def keep_all(state):
        if state.images_seen == CONFIG.total_images and processes.get("RANK", "0") == "0":
            save_state(folder / "all.safetensors", state)
        return {}

    run(folder, CONFIG, load_digits(), small_denoiser(), [small_backbone()], keep=KEEP,
        hardware=Hardware(accelerator="cpu"), evaluate=keep_all)


@pytest.fixture(scope="module")
def server():
    """Processes that start with torch imported, and without what this one has done."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["gdd.training.run", "sklearn.datasets", "test_resume"])
    return context


def live(server, folder, world, seconds=None, dies_in_write=None):
    """Start a run and kill -9 it after `seconds`, or in a write; returns whether it finished
    before."""
    port, environments = str(free_port()), [{}]
    if world > 1:
        common = {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE":
            "2"}
        environments = [
            common | {"RANK": str(k), "LOCAL_RANK": str(k), "TORCHELASTIC_RUN_ID": "t"}
            for k in range(world)]
    processes = [
        server.Process(target=train_until, args=(folder, e, dies_in_write)) for e in environments]
    for process in processes:
        process.start()
    deadline = time.monotonic() + (math.inf if seconds is None else seconds)

    def go_on():
        exits = [process.exitcode for process in processes]
        return None in exits and not any(exits)  # neither all finished nor one dead

    while time.monotonic() < deadline and go_on():
        time.sleep(0.005)
    killed = any(process.exitcode != 0 for process in processes)
    for process in processes:
        process.kill()
        process.join()
    if killed and seconds is None and dies_in_write is None:
        raise AssertionError(f"the run ended with {[process.exitcode for process in processes]}")
    return not killed


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_killed_anywhere_it_resumes_to_the_same_bits(world, server, tmp_path):
    start = time.monotonic()
    assert live(server, tmp_path / "whole", world)
    life = time.monotonic() - start
    expected, _ = checkpoint.read_tensors(tmp_path / "whole" / "all.safetensors")
    parts = {name.split(".")[0] for name in expected}
    assert parts == {"generator", "ema", "discriminator", "optimizer", "d_optimizer"}

    chance, kills, in_writes = random.Random(world), 0, 0
    for attempt in itertools.count():
        folder, finished = tmp_path / f"killed-{attempt}", False
        while not finished:
            if chance.random() < 0.4:
                finished = live(server, folder, world, dies_in_write=(chance.randint(
                    1, 12), chance.random()))
                in_writes += not finished
            else:
                finished = live(server, folder, world, seconds=chance.uniform(0.1, 0.6) * life)
            kills += not finished
        found, _ = checkpoint.read_tensors(folder / "all.safetensors")
        assert found.keys() == expected.keys()
        assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
        assert (folder / "final.safetensors").read_bytes() == (tmp_path / "whole" /
                                                               "final.safetensors").read_bytes()
        assert not list(folder.glob(".*safetensors*"))  # nothing of the torn writes is left
        if kills >= KILLS:
            break
    assert in_writes >= 4


def halfway(folder):
    """The state of a run that was killed after its first tick, and the run's `load_state`."""
    class Killed(BaseException):
        pass

    def stop(state):
        if state.images_seen > 32:
            raise Killed
        return {}

    with pytest.raises(Killed):
        run(folder, CONFIG, load_digits(), small_denoiser(), [small_backbone()], keep=KEEP,
            evaluate=stop)
    return folder / "state.safetensors"


def resume(folder):
    return run(folder, CONFIG, load_digits(), small_denoiser(), [small_backbone()], keep=KEEP)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    return halfway(tmp_path_factory.mktemp("killed") / "run").parent


def test_a_flipped_bit_anywhere_is_noticed(killed, tmp_path):
    """In tensors, in counts, in the log: refused in one line, before anything is trained."""
    content, chance = (killed / "state.safetensors").read_bytes(), random.Random(0)
    header = 8 + int.from_bytes(content[:8], "little")
    places = [*(chance.randrange(8, header) for _ in range(12)),
              *(chance.randrange(header, len(content)) for _ in range(12))]  # yapf: disable
    for number, place in enumerate(places):
        folder = shutil.copytree(killed, tmp_path / str(number))
        torn = bytearray(content)
        torn[place] ^= 1 << chance.randrange(7)
        (folder / "state.safetensors").write_bytes(torn)
        with pytest.raises(ValueError, match=r"state\.safetensors"):
            resume(folder)
        assert (folder / "state.safetensors").read_bytes() == torn  # nothing is thrown away


def change_counts(**change):
    def edit(tensors, metadata):
        return tensors, metadata | change

    return edit


def without(name):
    def edit(tensors, metadata):
        return {key: x for key, x in tensors.items() if key != name}, metadata

    return edit


def with_tensor(name, tensor):
    def edit(tensors, metadata):
        return tensors | {name: tensor}, metadata

    return edit


def lacking(name):
    def edit(tensors, metadata):
        return tensors, {key: value for key, value in metadata.items() if key != name}

    return edit


# what is said of a state without a checksum, or whose checksum was made anew
ODD = {
    "a negative count": (change_counts(images_seen=-1), "images_seen must be a count"),
    "an absurd count": (change_counts(images_seen=10**14), "images_seen must be a count"),
    "beyond the end": (change_counts(images_seen=10**6), "has seen 1,000,000 images; the run has"),
    "a count of text": (change_counts(images_seen="32"), "images_seen must be an integer"),
    "a true count": (change_counts(skipped=True), "skipped must be an integer"),
    "no count": (lacking("rollbacks"), "lacks rollbacks"),
    "no teacher": (lacking("teacher"), "it lacks teacher"),
    "a scaler": (change_counts(scaler={"scale": 1.0}), "scaler must have _growth_tracker, "),
    "a scaler of text": (change_counts(scaler="x"), "scaler must be a mapping"),
    "a log of text": (change_counts(log="x"), "log must be a list"),
    "a log of numbers": (change_counts(log=[1, 2]), r"log\[0\] must be a mapping"),
    "a log of words": (change_counts(log=[{"images": "x"}]), r"log\[0\].images must be a finite"),
    "a log of later": (change_counts(log=[{"images": 64}]), "has a log that is not of its 32"),
    "sums of text": (change_counts(sums={"loss_g": "x"}), "sums.loss_g must be a list"),
    "no slot": (without("optimizer.3.exp_avg"), "lacks a slot of optimizer for parameter 3"),
    "no weight": (without("ema.model.dec.8x8_aux_conv.bias"), "does not fit the run's ema"),
    "a slot too many": (with_tensor("optimizer.99999.step", torch.zeros(())), "is no slot"),
    "a slot of no number": (with_tensor("optimizer.-1.step", torch.zeros(())), "is no slot"),
    "another shape": (with_tensor("optimizer.3.exp_avg", torch.zeros(7)), "does not fit the run's"),
    "absurd steps": (with_tensor("optimizer.3.step", torch.tensor(1e9)), "does not fit the run's"),
    "another part": (with_tensor("evil\x1b.x", torch.zeros(1)), r"no part of the run.*evil\\x1b"),
    "another type": (with_tensor("generator.model.dec.8x8_aux_conv.bias", torch.zeros(1).long()),
                     "does not fit the run's generator"),
    "not a number": (with_tensor("optimizer.3.exp_avg", torch.full((7, ), math.nan)),
                     "holds values that are not finite in optimizer.3.exp_avg"),
}  # yapf: disable


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("case", ODD)
def test_an_odd_state_is_one_line(case, signed, killed, tmp_path):
    edit, message = ODD[case]
    folder = shutil.copytree(killed, tmp_path / "run")
    path = folder / "state.safetensors"
    tensors, metadata = edit(*checkpoint.read_tensors(path))
    metadata.pop("checksum")
    checkpoint.write_tensors(
        path, tensors, metadata | ({"checksum": checksum(tensors, metadata)} if signed else {}))
    with pytest.raises(ValueError, match=message) as caught:
        resume(folder)
    assert str(caught.value).isprintable()
    assert path.exists()


def test_a_state_of_an_older_version_has_no_checksum_and_is_taken(killed, tmp_path):
    folder = shutil.copytree(killed, tmp_path / "old")
    tensors, metadata = checkpoint.read_tensors(folder / "state.safetensors")
    assert len(metadata.pop("checksum")) == 32
    checkpoint.write_tensors(folder / "state.safetensors", tensors, metadata)
    newer = shutil.copytree(killed, tmp_path / "new")
    assert resume(folder).read_bytes() == resume(newer).read_bytes()


def test_a_changed_checksum_is_noticed(killed, tmp_path):
    folder = shutil.copytree(killed, tmp_path / "run")
    tensors, metadata = checkpoint.read_tensors(folder / "state.safetensors")
    for told in ("", "0" * 32, metadata["checksum"].upper()):
        checkpoint.write_tensors(folder / "state.safetensors", tensors,
                                 metadata | {"checksum": told})
        with pytest.raises(ValueError, match="is damaged: its checksum is of other tensors"):
            resume(folder)
