"""The first ten steps of every objective, number by number: moving code must not change them.

    python tests/test_trace.py     # writes golden/trace.json anew, when the method was changed

Everything is float64, and no value comes from torch's random numbers or float32 functions, whose
last digits differ between processors: weights and noise are drawn by numpy.
"""

import dataclasses
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_backbone, small_denoiser
from test_trainer import GDD, VARIANTS

from gdd.data.images import load_digits
from gdd.training.trainer import init_state, train

GOLDEN = Path(__file__).parent / "golden" / "trace.json"
STEPS = 10
# rates that rise and fall, R1 in the fifth and ninth step, groups of half a batch
CONFIG = dataclasses.replace(GDD, batch_size=8, total_images=8 * STEPS, lr_warmup_images=24,
                             lr_decay_images=40, d_batch_norm_images=4, r1_interval=4, r1_gamma=0.1,
                             cd_steps=8)
TRACED = VARIANTS | {
    "conditional": {}, "conditional edm": VARIANTS["edm"], "conditional cd": VARIANTS["cd"],
    "edm-no-rampup": dict(objective="edm", ema_rampup=0.0, betas=(0.9, 0.99))}  # yapf: disable


@torch.no_grad()
def fill(module, name=""):
    """Weights that depend on their name and shape alone."""
    for key, tensor in module.state_dict().items():
        drawn = np.random.default_rng(zlib.crc32(f"{name}.{key}".encode()))
        values = torch.from_numpy(np.asarray(drawn.standard_normal(tuple(tensor.shape))))
        part = key.rsplit(".", 1)[-1]
        if part in ("running_mean", "running_var", "resample_filter", "num_batches_tracked"):
            continue
        if part in ("_u", "_v"):  # of a spectral norm, unit vectors
            values = values / values.norm()
        elif tensor.ndim > 1:
            values = values / tensor[0].numel()**0.5
        elif part == "weight":  # of a normalisation
            values = 1 + 0.1 * values
        elif part == "bias":
            values = 0.1 * values
        tensor.copy_(values)
    return module


def numpys(draw, torchs, counts):
    """A function like torch's that draws from a generator's seed with numpy, in float64."""
    def random(*size, generator=None, **options):
        if generator is None:
            return torchs(*size, **options)
        seed = generator.initial_seed()
        counts[seed] = counts.get(seed, 0) + 1
        return torch.from_numpy(draw(np.random.default_rng([seed, counts[seed]]), size))

    return random


def trace(variant):
    """The metrics of ten steps, and how far the average has come."""
    config = dataclasses.replace(CONFIG, **TRACED[variant])
    labels = dict(label_dim=10) if variant.startswith("conditional") else {}
    start = small_denoiser(embedding_type="fourier", **labels).double()
    backbones = [fill(small_backbone(name).double(), name) for name in ("small", "other")]
    counts, found = {}, {}
    with pytest.MonkeyPatch.context() as patched:
        for name, draw in (("randn", np.random.Generator.standard_normal),
                           ("rand", np.random.Generator.random)):
            patched.setattr(torch, name, numpys(draw, getattr(torch, name), counts))
        state = init_state(config, fill(start, "start"), backbones)
        if state.discriminator is not None:
            for part in (state.discriminator.projections, state.discriminator.heads):
                fill(part, "discriminator")
            if state.discriminator.classes is not None:
                fill(state.discriminator.classes, "classes")
        for step, _ in enumerate(train(config, load_digits(), start, backbones, state=state)):
            for name, value in state.metrics.items():
                found.setdefault(name, {})[str(step)] = float(f"{value:.12g}")
    assert state.step == STEPS
    assert set(counts.values()) == {3}  # noise, levels and positions, once a step
    pairs = zip(state.ema.parameters(), start.parameters(), strict=True)
    moved = sum(float((a - b).detach().square().sum()) for a, b in pairs)
    return found | {"average": {str(STEPS): float(f"{moved:.12g}")}}


@pytest.mark.parametrize("variant", TRACED)
def test_ten_steps_are_what_they_were(variant):
    golden, found = json.loads(GOLDEN.read_text())[variant], trace(variant)
    assert found.keys() == golden.keys()
    for name, values in golden.items():
        assert found[name] == pytest.approx(values, rel=1e-6, abs=1e-12), name


def test_all_that_is_traced_differs():
    """But for frozen weights, which change no first loss: not two variants are one."""
    golden = json.loads(GOLDEN.read_text())
    assert golden.keys() == TRACED.keys()
    assert len({json.dumps(values) for values in golden.values()}) == len(golden)
    assert set(golden["gdd"]["r1"]) == {"4", "8"}
    assert set(golden["gdd"]["loss_g"]) == {str(step) for step in range(STEPS)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = {variant: trace(variant) for variant in TRACED}
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
