import dataclasses
import math

import pytest
import torch
from conftest import TINY

from gdd.config import TrainConfig
from gdd.denoiser import Denoiser
from gdd.freezing import freeze
from gdd.sampling import parse_sampler
from gdd.training.trainer import init_state, train, update_ema
from gdd.weights import checkpoint

GDD = TrainConfig(objective="gdd", batch_size=16, total_images=64, lr=1e-3, d_lr=1e-3,
                  d_channels=(8, 8, 8, 8), d_head_sizes=(8, 4), d_head_widths=(8, 8), r1_interval=2,
                  ema_halflife_images=100, ema_rampup=0.5, seed=3)
VARIANTS = {
    "edm": dict(objective="edm"),
    "gdd": {},
    "gdd-i": dict(freeze="gdd-i"),
    "gdd-sum-reuse": dict(reduction="sum", reuse_fakes=True),
    "k-step": dict(sampler="k-step:3"),
    "two-step": dict(sampler="two-step:0.8"),
    "cd": dict(objective="cd"),
    "cd-i": dict(objective="cd", freeze="gdd-i"),
    "gdd+cd": dict(objective="gdd+cd"),
    "hinge": dict(gan_loss="hinge"),
    "pd": dict(objective="pd"),
    "ctm": dict(objective="ctm", freeze="norm-only"),
}


def tensors(state):
    modules = {
        "g": state.generator,
        "e": state.ema
    } | ({
        "d": state.discriminator
    } if state.discriminator else {})
    found = {f"{k}.{n}": t for k, m in modules.items() for n, t in m.state_dict().items()}
    for name, optimizer in (("o", state.optimizer), ("p", state.d_optimizer)):
        for index, slots in (optimizer.state_dict()["state"] if optimizer else {}).items():
            found |= {f"{name}.{index}.{key}": value for key, value in slots.items()}
    return {key: tensor.clone() for key, tensor in found.items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_objective_trains_and_leaves_the_frozen_weights(variant, tiny, digits, backbone):
    config = dataclasses.replace(GDD, **VARIANTS[variant])
    before = {name: p.clone() for name, p in tiny.named_parameters()}
    for state in train(config, digits, tiny, [backbone]):
        assert all(math.isfinite(value) for value in state.metrics.values())
    assert state.images_seen == config.total_images
    frozen = set(freeze(tiny, config.freeze).names)
    assert bool(frozen) == (config.freeze != "none")
    for name, parameter in state.generator.named_parameters():
        assert torch.equal(parameter, before[name]) == (name in frozen), name
        assert (parameter.grad is None) == (name in frozen), name
    held = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in state.generator.parameters() if p.requires_grad}
    # the teacher is untouched
    assert all(torch.equal(p, before[name]) for name, p in tiny.named_parameters())
    assert all(
        torch.equal(dict(state.ema.named_parameters())[name], before[name]) for name in frozen)


@pytest.mark.parametrize(("variant", "dropout"), [("edm", 0.3), ("gdd", 0.0), ("gdd+cd", 0.0)])
def test_stopped_and_resumed_equals_uninterrupted(variant, dropout, tiny, digits, backbone,
                                                  tmp_path):
    config = dataclasses.replace(GDD, **VARIANTS[variant])
    for block in (*tiny.model.enc.values(), *tiny.model.dec.values()):
        block.dropout = dropout
    *_, whole = train(config, digits, tiny, [backbone])

    stopped = train(config, digits, tiny, [backbone])
    next(stopped)
    checkpoint.save_state(tmp_path / "s.safetensors", next(stopped))
    stopped.close()
    torch.rand(7)  # whatever happened to the global random state in between
    resumed = init_state(config, tiny, [backbone])
    checkpoint.load_state(tmp_path / "s.safetensors", resumed)
    assert resumed.images_seen == 2 * config.batch_size
    *_, resumed = train(config, digits, tiny, [backbone], state=resumed)
    expected, found = tensors(whole), tensors(resumed)
    assert expected.keys() == found.keys()
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []


def test_seeds_decide_and_batches_are_fresh(tiny, digits, backbone):
    *_, a = train(GDD, digits, tiny, [backbone])
    *_, b = train(GDD, digits, tiny, [backbone])
    *_, c = train(dataclasses.replace(GDD, seed=4), digits, tiny, [backbone])
    assert all(
        torch.equal(x, y) for x, y in zip(a.ema.parameters(), b.ema.parameters(), strict=True))
    assert not all(
        torch.equal(x, y) for x, y in zip(a.ema.parameters(), c.ema.parameters(), strict=True))


def test_not_finite_stops_before_weights_change(tiny, digits, backbone):
    broken = tiny.copy()
    broken.model.map_layer0.weight.data[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="loss_g is nan"):
        next(train(GDD, digits, broken, [backbone]))


def test_ema_halves_per_halflife(tiny, backbone):
    config = dataclasses.replace(GDD, ema_halflife_images=32, ema_rampup=1e9)
    state = init_state(config, tiny, [backbone])
    start = [p.clone() for p in state.ema.parameters()]
    for parameter in state.generator.parameters():
        parameter.data += 1
    for _ in range(2):  # two steps of 16 images: one half-life
        state.images_seen += config.batch_size
        update_ema(state)
    for average, before in zip(state.ema.parameters(), start, strict=True):
        assert torch.allclose(average, before + 0.5, atol=1e-5)


def test_summing_the_losses_only_weakens_r1_by_the_batch_size(tiny, digits, backbone):
    """Adam does not see the scale of a loss, so the official reduction is the mean with gamma /
    batch (METHOD section 5)."""

    def last_losses(**change):
        *_, state = train(dataclasses.replace(GDD, r1_interval=1, total_images=16 * 8, **change),
                          digits, tiny, [backbone])
        return [state.metrics[name] for name in ("loss_g", "loss_d", "r1")]

    mean = last_losses(r1_gamma=1.0)
    assert last_losses(reduction="sum", r1_gamma=16.0) == pytest.approx(mean, rel=0.01)
    assert last_losses(reduction="sum", r1_gamma=1.0) != pytest.approx(mean, rel=0.1)


@pytest.mark.slow
def test_the_teachers_loss_falls(digits):
    config = dataclasses.replace(GDD, objective="edm", total_images=64 * 50, batch_size=64, lr=3e-3)
    curve = [
        state.metrics["loss_edm"] for state in train(config, digits, Denoiser.from_config(TINY))
    ]
    assert sum(curve[-10:]) < 0.8 * sum(curve[:10])


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        dict(objective="cd"),
        dict(objective="cd", freeze="gdd-i"),
        dict(objective="pd"),
        dict(objective="ctm"),
        dict(objective="gdd+cd", cd_weight=10.0)
    ],
    ids=["cd", "cd-i", "pd", "ctm", "gdd+cd"],
)
def test_fifty_steps_bring_student_and_teacher_together(change, digits, backbone):
    config = dataclasses.replace(GDD, total_images=64 * 50, batch_size=64, betas=(0.9, 0.99),
                                 **change)
    name = "loss_cd" if "cd" in config.objective else f"loss_{config.objective}"
    torch.manual_seed(0)
    curve = [
        state.metrics[name]
        for state in train(config, digits, Denoiser.from_config(TINY), [backbone])
    ]
    assert sum(curve[-10:]) < 0.5 * sum(curve[:10])


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["gdd", "gdd-i", "hinge", "k-step", "two-step"])
def test_fifty_steps_of_the_gan_loss_alone_move_fakes_towards_the_data(
        variant, tiny, digits, backbone):
    config = dataclasses.replace(GDD, total_images=64 * 50, batch_size=64, r1_interval=16, lr=2e-3,
                                 d_lr=4e-3, **VARIANTS[variant])
    real = digits.images.float().mean() / 127.5 - 1
    latents, sample = torch.randn(128, 1, 8, 8), parse_sampler(config.sampler)
    start = init_state(config, tiny, [backbone]).generator
    *_, state = train(config, digits, tiny, [backbone])
    with torch.no_grad():
        gap_before, gap_after = ((sample(net, latents).clamp(-1, 1).mean() - real).abs()
                                 for net in (start, state.generator))
    assert gap_after < 0.5 * gap_before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(objective="wgan"), "objective must be one of"),
        (dict(batch_size=0), "batch_size must be an integer from 1 to 1e\\+06; got 0"),
        (dict(lr=-1.0), "lr must be a number from 1e-12 to 1; got -1.0"),
        (dict(betas=(0.0, 1.0)), "betas must be a number from 0 to 0.99999; got 1.0"),
        (dict(reduction="max"), "reduction must be one of mean, sum; got 'max'"),
        (dict(sampler="k-step:0"), "sampler must be"),
        (dict(objective="cd", sampler="k-step:2"), "sampler must be one-step"),
        (dict(d_head_sizes=(8, )), "d_head_widths"),
    ],
)
def test_contradictory_configs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(GDD, **change)
