"""train(2N) is train(N), kill -9 and resume(N), bit for bit, wherever the kill strikes, steps of R1
among them: one process and two."""

import dataclasses
import itertools
import math
import os
import random
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
from gdd.training.state import save_state
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
