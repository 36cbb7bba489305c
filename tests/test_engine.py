"""Micro-batches, processes, sharding and precision change how a step is computed, and not what
comes out."""

import dataclasses
import os

import pytest
import torch
import torch.multiprocessing as mp
from conftest import small_backbone, small_denoiser
from test_trainer import GDD, VARIANTS

from analysis.hooks import record
from gdd.config import Hardware
from gdd.data.images import load_digits
from gdd.training.engine import Engine
from gdd.training.sharding import is_sharded, local, whole
from gdd.training.state import load_state, pack_state, save_state
from gdd.training.trainer import init_state, train
from gdd.weights import checkpoint

# four steps, and R1's in the third
SPLIT = dataclasses.replace(GDD, d_batch_norm_images=8, r1_gamma=1.0)
CPU = Hardware(accelerator="cpu")
CASES = VARIANTS | {"conditional": {}}


def fresh(config, hardware=CPU, dtype=torch.float64, **change):
    """A state before its first step, and what `train` takes besides; the same models in every
    process."""
    start, backbones = small_denoiser(**change).to(dtype), [small_backbone().to(dtype)]
    return init_state(config, start, backbones, Engine(config, hardware)), start, backbones


def go_on(state, start, backbones):
    return train(state.config, load_digits(), start, backbones, state=state)


def trained(config, hardware=CPU, dtype=torch.float64, **change):
    """Every tensor of the state after a whole run, and each step's losses."""
    state, start, backbones = fresh(config, hardware, dtype, **change)
    metrics = [dict(state.metrics) for state in go_on(state, start, backbones)]
    return pack_state(state)[0], metrics


def trained_case(name, hardware=CPU):
    classes = {"label_dim": 10} if name == "conditional" else {}
    return trained(dataclasses.replace(SPLIT, **CASES[name]), hardware, **classes)


def assert_same(found, expected):
    """To rounding in float64: weights, their average, and Adam's moments."""
    (tensors, metrics), (tensors_, metrics_) = found, expected
    assert tensors.keys() == tensors_.keys()
    assert len(tensors) > 200
    for name, tensor in tensors.items():
        # a bias in front of a BatchNorm has no gradient but rounding, which Adam makes steps of
        before_norm = name.replace(".bias", ".parametrizations.weight.original") in tensors
        atol = 1e-7 if name.endswith(".bias") and before_norm else 1e-11
        assert torch.allclose(tensor, tensors_[name], rtol=1e-9, atol=atol), name
    for one, other in zip(metrics, metrics_, strict=True):
        assert one == pytest.approx(other, rel=1e-9)


@pytest.fixture(scope="module")
def alone():
    return {name: trained_case(name) for name in CASES}


@pytest.mark.parametrize("variant", CASES)
def test_accumulated_gradients_are_the_large_batchs(variant, alone):
    config = dataclasses.replace(SPLIT, **CASES[variant])
    assert any("r1" in step for step in alone[variant][1]) == config.adversarial
    assert_same(trained_case(variant, dataclasses.replace(CPU, micro_batch_size=8)), alone[variant])


def test_micro_batches_may_be_uneven(alone):
    config = dataclasses.replace(SPLIT, objective="edm")
    assert_same(trained(config, dataclasses.replace(CPU, micro_batch_size=7)), alone["edm"])


def _in_process(rank, port, hardware, variants, path):
    # as torchrun says it
    processes = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= {name: str(value) for name, value in processes.items()}
    torch.set_num_threads(1)
    found = {name: trained_case(name, hardware) for name in variants}
    if hardware.strategy == "fsdp":
        state, *_ = fresh(SPLIT, hardware)
        held = [(local(p).numel(), p.numel()) for p in state.ema.parameters()]
        assert all(map(is_sharded, state.ema.parameters()))
        assert sum(a for a, _ in held) < 0.6 * sum(b for _, b in held)
        assert not any(map(is_sharded, whole(state.ema).parameters()))
        assert_resumes_sharded(hardware, path.with_name("state.safetensors"))
    if rank == 0:
        torch.save(found, path)


def assert_resumes_sharded(hardware, path):
    """A state gathered from two processes' shares and dealt out again goes on to the same bits."""
    whole_run, *models = fresh(SPLIT, hardware)
    steps = go_on(whole_run, *models)
    next(steps)
    tensors, counts = pack_state(next(steps))
    whole_run.engine.on_rank_zero(lambda: checkpoint.write_tensors(path, tensors, counts))
    *_, whole_run = steps
    resumed, *models = fresh(SPLIT, hardware)
    load_state(path, resumed)
    *_, resumed = go_on(resumed, *models)
    (expected, _), (found, _) = pack_state(whole_run), pack_state(resumed)
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
    variants = list(CASES) if strategy == "ddp" else ["gdd-i", "gdd+cd", "k-step"]
    hardware, path = dataclasses.replace(CPU, strategy=strategy), tmp_path / "found.pt"
    mp.spawn(_in_process, (free_port(), hardware, variants, path), nprocs=2)
    found = torch.load(path, weights_only=True)
    for name in variants:
        assert_same(found[name], alone[name])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_stays_near_float32(precision):
    config = dataclasses.replace(SPLIT, total_images=16 * 12, lr=1e-4, d_lr=1e-4)
    _, metrics = trained(config, dtype=torch.float32)
    low = dataclasses.replace(config, precision=precision)
    reduced, metrics_low = trained(low, dtype=torch.float32)
    assert {tensor.dtype for tensor in reduced.values()} == {torch.float32}
    assert metrics_low[-1]["loss_d"] == pytest.approx(metrics[-1]["loss_d"], abs=0.05)
    gradients = []
    for one in (config, low):
        state, *models = fresh(one, dtype=torch.float32)
        next(go_on(state, *models))
        gradients.append(torch.cat([p.grad.flatten() for p in state.generator.parameters()]))
    cosine = float(torch.nn.functional.cosine_similarity(*gradients, dim=0))
    assert 0.99 < cosine < 1 - 1e-9  # something was computed differently, and none went astray


def test_fp16_scales_gradients_leaves_out_what_overflows_and_remembers_the_scale(tmp_path):
    config = dataclasses.replace(SPLIT, precision="fp16", total_images=16 * 12)
    state, *models = fresh(config, dtype=torch.float32)
    state.engine.scaler._init_scale = 2.0**24  # gradients of this scale overflow at first
    before = [p.clone() for p in state.generator.parameters()]

    def is_unmoved():
        return all(
            torch.equal(a, b) for a, b in zip(before, state.generator.parameters(), strict=True))

    steps = go_on(state, *models)
    next(steps)
    assert is_unmoved()  # the step was left out
    save_state(tmp_path / "first.safetensors", state)  # Adam has nothing to tell
    load_state(tmp_path / "first.safetensors", fresh(config, dtype=torch.float32)[0])
    for _ in range(5):
        next(steps)
    assert state.engine.scaler.get_scale() < 2.0**24
    save_state(tmp_path / "s.safetensors", state)
    scale = state.engine.scaler.state_dict()
    *_, state = steps
    assert not is_unmoved()

    resumed, *models = fresh(config, dtype=torch.float32)
    load_state(tmp_path / "s.safetensors", resumed)
    assert resumed.engine.scaler.state_dict() == scale
    *_, resumed = go_on(resumed, *models)
    (expected, _), (found, _) = pack_state(state), pack_state(resumed)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


@pytest.mark.slow
def test_compiled_training_is_the_same_and_never_passes_a_hook(monkeypatch, alone):
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
    state, *models = fresh(SPLIT, dataclasses.replace(CPU, compile=True))
    steps = go_on(state, *models)
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
        (dict(), dict(devices=-1), "devices must be at least 0; got -1"), ],
)
def test_what_does_not_go_together_is_refused(change, hardware, message):
    with pytest.raises(ValueError, match=message):
        Engine(dataclasses.replace(GDD, **change), dataclasses.replace(CPU, **hardware))


def test_a_process_that_is_meant_to_be_alone_is_so_in_a_job_of_many(monkeypatch):
    """A notebook, or the desk's pool, in a SLURM job of eight tasks, or under a torchrun of
    eight."""
    for name, value in {
            "NTASKS": 8, "NTASKS_PER_NODE": 8, "NNODES": 1, "JOB_NAME": "lab", "PROCID": 3,
            "LOCALID": 3}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    engine = Engine(GDD)
    assert (engine.world, engine.rank) == (1, 0)
    assert engine.share() == slice(0, GDD.batch_size)
