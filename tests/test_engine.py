"""Micro-batches, processes, sharding and precision change how a step is computed, and not what
comes out."""

import dataclasses
import os

import pytest
import torch
import torch.multiprocessing as mp
from conftest import small_denoiser
from test_trainer import GDD, VARIANTS

from analysis.hooks import record
from gdd.backbones import DigitsBackbone
from gdd.config import Hardware
from gdd.data.images import load_digits
from gdd.training.engine import Engine
from gdd.training.sharding import is_sharded, local, whole
from gdd.training.trainer import init_state, train
from gdd.weights import checkpoint

SPLIT = dataclasses.replace(GDD, d_batch_norm_images=8, lr=1e-4, d_lr=1e-4)
CPU = Hardware(accelerator="cpu")


def trained(config, hardware):
    """Every tensor of the state after a whole run, and the last step's losses; the same models in
    every process."""
    start = small_denoiser()
    torch.manual_seed(0)
    engine = Engine(config, hardware)
    *_, state = train(config, load_digits(), start, [DigitsBackbone().eval()], engine=engine)
    return checkpoint.pack_state(state)[0], state.metrics


def has_effect(name):
    """Adam turns the rounding noise of gradients that are zero by construction into steps of their
    own: those of biases in front of a normalisation and of attention's keys, which a softmax does
    not see. They change no image and no logit."""
    return not (name.endswith("qkv.bias") or
                (name.startswith("discriminator.heads") and name.endswith("bias")))


def assert_same(found, expected):
    (tensors, metrics), (tensors_, metrics_) = found, expected
    assert tensors.keys() == tensors_.keys()
    weights = [name for name in tensors if "optimizer" not in name and has_effect(name)]
    assert len(weights) > 200
    assert max((tensors[name] - tensors_[name]).abs().max() for name in weights) < 1e-5
    assert metrics == pytest.approx(metrics_, rel=1e-5, abs=1e-5)


@pytest.fixture(scope="module")
def alone():
    return {
        name: trained(dataclasses.replace(SPLIT, **change), CPU)
        for name, change in VARIANTS.items()
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_accumulated_gradients_are_the_large_batchs(variant, alone):
    config = dataclasses.replace(SPLIT, **VARIANTS[variant])
    assert_same(trained(config, dataclasses.replace(CPU, micro_batch_size=8)), alone[variant])


def test_micro_batches_may_be_uneven(alone):
    config = dataclasses.replace(SPLIT, objective="edm")
    assert_same(trained(config, dataclasses.replace(CPU, micro_batch_size=7)), alone["edm"])


def _in_process(rank, port, hardware, variants, path):
    # as torchrun says it
    processes = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test"
    }
    os.environ |= {name: str(value) for name, value in processes.items()}
    torch.set_num_threads(1)
    found = {
        name: trained(dataclasses.replace(SPLIT, **VARIANTS[name]), hardware)
        for name in variants
    }
    if hardware.strategy == "fsdp":
        state = init_state(SPLIT, small_denoiser(), [DigitsBackbone().eval()],
                           Engine(SPLIT, hardware))
        held = [(local(p).numel(), p.numel()) for p in state.ema.parameters()]
        assert all(map(is_sharded, state.ema.parameters()))
        assert sum(a for a, _ in held) < 0.6 * sum(b for _, b in held)
        assert not any(map(is_sharded, whole(state.ema).parameters()))
        assert_resumes_sharded(hardware, path.with_name("state.safetensors"))
    if rank == 0:
        torch.save(found, path)


def assert_resumes_sharded(hardware, path):
    """A state gathered from two processes' shares and dealt out again goes on to the same bits."""
    engine, backbone = Engine(SPLIT, hardware), DigitsBackbone().eval()
    steps = train(SPLIT, load_digits(), small_denoiser(), [backbone], engine=engine)
    next(steps)
    tensors, counts = checkpoint.pack_state(next(steps))
    engine.by_zero(lambda: checkpoint.write_tensors(path, tensors, counts))
    *_, state = steps
    resumed = init_state(SPLIT, small_denoiser(), [backbone], engine)
    checkpoint.load_state(path, resumed)
    *_, resumed = train(SPLIT, load_digits(), small_denoiser(), [backbone], engine=engine,
                        state=resumed)
    (expected, _), (found, _) = checkpoint.pack_state(state), checkpoint.pack_state(resumed)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def free_port():
    import socket

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_give_what_one_gives(strategy, alone, tmp_path):
    variants = list(VARIANTS) if strategy == "ddp" else ["gdd-i", "gdd+cd", "k-step"]
    hardware, path = dataclasses.replace(CPU, strategy=strategy), tmp_path / "found.pt"
    mp.spawn(_in_process, (free_port(), hardware, variants, path), nprocs=2)
    found = torch.load(path, weights_only=True)
    for name in variants:
        assert_same(found[name], alone[name])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_stays_near_float32(precision):
    config = dataclasses.replace(SPLIT, total_images=16 * 12)
    tensors, metrics = trained(config, CPU)
    reduced, low = trained(dataclasses.replace(config, precision=precision), CPU)
    assert {tensor.dtype for tensor in reduced.values()} == {torch.float32}
    weights = [name for name in tensors if name.startswith("ema.")]
    distance = max((tensors[name] - reduced[name]).abs().max() for name in weights)
    assert 0 < distance < 0.01  # something was computed differently, and nothing went astray
    assert low["loss_d"] == pytest.approx(metrics["loss_d"], abs=0.05)


def test_fp16_scales_gradients_leaves_out_what_overflows_and_remembers_the_scale(
        tiny, digits, backbone, tmp_path):
    config = dataclasses.replace(SPLIT, precision="fp16", total_images=16 * 12)
    engine = Engine(config, CPU)
    engine.scaler._init_scale = 2.0**24  # gradients of this scale overflow at first
    before = [p.clone() for p in tiny.parameters()]
    steps = train(config, digits, tiny, [backbone], engine=engine)
    state = next(steps)
    # the step was left out
    assert all(torch.equal(a, b) for a, b in zip(before, state.generator.parameters(), strict=True))
    for _ in range(5):
        state = next(steps)
    assert state.scaler.get_scale() < 2.0**20
    checkpoint.save_state(tmp_path / "s.safetensors", state)
    scale = state.scaler.state_dict()
    *_, state = steps
    assert any(not torch.equal(a, b)
               for a, b in zip(before, state.generator.parameters(), strict=True))

    again = Engine(config, CPU)
    resumed = init_state(config, tiny, [backbone], again)
    checkpoint.load_state(tmp_path / "s.safetensors", resumed)
    assert resumed.scaler.state_dict() == scale
    *_, resumed = train(config, digits, tiny, [backbone], engine=again, state=resumed)
    (expected, _), (found, _) = checkpoint.pack_state(state), checkpoint.pack_state(resumed)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


@pytest.mark.slow
def test_compiled_training_is_the_same_and_never_passes_a_hook(monkeypatch, alone, tiny, digits,
                                                               backbone):
    compiled, calls = [], []

    def compiling(network):
        compiled.append(network)
        # traced as ever, and not translated, which takes a minute
        traced = compile_(network, backend="eager")
        return lambda *arguments, **options: calls.append(1) or traced(*arguments, **options)

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", compiling)
    assert_same(trained(SPLIT, dataclasses.replace(CPU, compile=True)), alone["gdd"])
    assert len(compiled) == 1
    assert calls
    calls.clear()
    engine = Engine(SPLIT, dataclasses.replace(CPU, compile=True))
    state = init_state(SPLIT, tiny, [backbone], engine)
    steps = train(SPLIT, digits, tiny, [backbone], engine=engine, state=state)
    with record(state.generator, "model.dec.*.conv1", lambda a: a.abs().mean()) as tape:
        next(steps)
    assert tape
    assert not calls
    next(steps)
    assert calls


@pytest.mark.parametrize(
    ("change", "hardware", "message"),
    [
        (dict(), dict(micro_batch_size=8),
         "d_batch_norm_images must divide the 8 images of a pass"),
        (dict(d_batch_norm_images=8), dict(micro_batch_size=6),
         "d_batch_norm_images must divide the 6 images"),
        (dict(d_batch_norm_images=5), dict(),
         "d_batch_norm_images must divide batch_size 16; got 5"),
        (dict(precision="fp16"), dict(strategy="fsdp"), "precision fp16 goes with strategy ddp"),
        (dict(), dict(strategy="fsdp", compile=True), "compile goes with strategy ddp"),
        (dict(), dict(devices=-1), "devices must be at least 0; got -1"),
    ],
)
def test_what_does_not_go_together_is_refused(change, hardware, message):
    with pytest.raises(ValueError, match=message):
        Engine(dataclasses.replace(GDD, **change), dataclasses.replace(CPU, **hardware))


def test_a_process_that_is_meant_to_be_alone_is_so_in_a_job_of_many(monkeypatch):
    """A notebook, or the desk's pool, in a SLURM job of eight tasks, or under a torchrun of
    eight."""
    for name, value in {
            "NTASKS": 8,
            "NTASKS_PER_NODE": 8,
            "NNODES": 1,
            "JOB_NAME": "lab",
            "PROCID": 3,
            "LOCALID": 3
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    engine = Engine(GDD)
    assert (engine.world, engine.rank) == (1, 0)
    assert engine.share() == slice(0, GDD.batch_size)


def test_batch_norm_of_groups_is_that_of_each_alone():
    from gdd.discriminator import BatchNorm

    x = torch.randn(12, 3, 4, 4) * torch.arange(1, 13).view(-1, 1, 1, 1)
    found = BatchNorm(3, 4)(x)
    expected = torch.cat([torch.nn.BatchNorm2d(3)(group) for group in x.split(4)])
    assert torch.equal(found, expected)
    assert torch.equal(BatchNorm(3, 0)(x), torch.nn.BatchNorm2d(3)(x))
    assert not torch.allclose(found, BatchNorm(3, 0)(x))
