import dataclasses

import pytest
import torch
from conftest import small_backbone, small_denoiser
from test_trainer import GDD, VARIANTS

from gdd.config import Hardware
from gdd.profiles.paper import TEACHERS
from gdd.training.engine import Engine
from gdd.training.memory import Peak, estimate
from gdd.training.trainer import init_state, train


def test_peak_counts_what_lives_at_once():
    start = torch.zeros(100)
    peak = Peak([start])
    assert peak.now == 400
    with peak:
        for _ in range(5):
            big = torch.ones(1000)  # the one before dies after this one is made
        view = big.view(10, 100)
        del big
        assert peak.now == 4400
        del view
        assert peak.now == 400
    assert peak.most == 400 + 2 * 4000


def measured(config, digits, start, backbone, micro):
    """Bytes of tensors at the worst moment of three real steps."""
    engine = Engine(config, Hardware(accelerator="cpu", micro_batch_size=micro))
    state = init_state(config, start, [backbone], engine)
    modules = [
        start, state.generator, state.ema, backbone,
        *([state.discriminator] if state.discriminator else [])]
    peak = Peak([t for module in modules for t in (*module.parameters(), *module.buffers())])
    with peak:
        for _ in train(config, digits, start, [backbone], state=state):
            pass
    return peak.most


@pytest.mark.parametrize(("variant", "micro"), [("edm", 64), ("gdd-i", 64), ("gdd-i", 32),
                                                ("k-step", 64), ("gdd+cd", 64), ("ctm", 32),
                                                ("gdd-sum-reuse", 16), ("gdd", 16)])
def test_the_estimate_is_what_a_real_run_takes(variant, micro, digits):
    config = dataclasses.replace(GDD, **VARIANTS[variant], batch_size=64, total_images=64 * 3,
                                 d_batch_norm_images=min(micro, 32))
    start = small_denoiser()
    real = measured(config, digits, start, small_backbone(), micro)
    found = estimate(config, start.config, [small_backbone()], micro_batch_size=micro)
    found = sum(found.values())
    assert found == pytest.approx(real, rel=0.05)


def test_the_largest_teacher_is_estimated_without_its_memory():
    """Adam's moments and three copies of 296 million weights: 3.55 GB and 2.37 GB, none of which is
    taken."""
    network = TEACHERS["edm-imagenet-64x64-cond-adm"]
    config = dataclasses.replace(GDD, objective="edm", batch_size=2)
    needs = estimate(config, network.network, micro_batch_size=1)
    copies, _, moments, rest = needs.values()
    assert copies == pytest.approx(3 * 4 * network.parameters, rel=1e-3)
    assert moments == pytest.approx(2 * 4 * network.parameters, rel=1e-3)
    assert rest > 4 * network.parameters  # the gradients, at least
