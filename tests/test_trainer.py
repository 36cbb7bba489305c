import copy
import dataclasses
import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, small_backbone, small_denoiser

from gdd import losses
from gdd.backbones import tap_distance
from gdd.config import Hardware, TrainConfig
from gdd.denoiser import Denoiser
from gdd.freezing import freeze
from gdd.losses import Distillation
from gdd.profiles import profiles
from gdd.sampling import one_step, parse_sampler
from gdd.training import trainer
from gdd.training.engine import Engine
from gdd.training.state import load_state, save_state
from gdd.training.trainer import draw, init_state, r1_step, take_step, train, update_ema

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
}  # yapf: disable


def tensors(state):
    modules = {"g": state.generator, "e": state.ema}
    if state.discriminator:
        modules["d"] = state.discriminator
    found = {f"{k}.{n}": t for k, m in modules.items() for n, t in m.state_dict().items()}
    for name, optimizer in (("o", state.optimizer), ("p", state.d_optimizer)):
        for index, slots in (optimizer.state_dict()["state"] if optimizer else {}).items():
            found |= {f"{name}.{index}.{key}": value for key, value in slots.items()}
    return {key: tensor.clone() for key, tensor in found.items()}


def gradients(module):
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


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
    averages = dict(state.ema.named_parameters())
    assert all(torch.equal(averages[name], before[name]) for name in frozen)


@pytest.mark.parametrize(("variant", "dropout"), [("edm", 0.3), ("gdd", 0.0), ("gdd+cd", 0.0)])
def test_stopped_and_resumed_equals_uninterrupted(variant, dropout, digits, backbone, tmp_path):
    """Stopped after two of four batches; R1 has its step in the third."""
    config, start = dataclasses.replace(GDD, **VARIANTS[variant]), small_denoiser(dropout=dropout)
    *_, whole = train(config, digits, start, [backbone])

    stopped = train(config, digits, start, [backbone])
    next(stopped)
    save_state(tmp_path / "s.safetensors", next(stopped))
    stopped.close()
    torch.rand(7)  # whatever happened to the global random state in between
    resumed = init_state(config, start, [backbone])
    load_state(tmp_path / "s.safetensors", resumed)
    assert resumed.images_seen == 2 * config.batch_size
    *_, resumed = train(config, digits, start, [backbone], state=resumed)
    expected, found = tensors(whole), tensors(resumed)
    assert expected.keys() == found.keys()
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []


def test_seeds_decide_and_batches_are_fresh(tiny, digits, backbone):
    *_, a = train(GDD, digits, tiny, [backbone])
    *_, b = train(GDD, digits, tiny, [backbone])
    *_, c = train(dataclasses.replace(GDD, seed=4), digits, tiny, [backbone])

    def same(one, other):
        pairs = zip(one.ema.parameters(), other.ema.parameters(), strict=True)
        return all(torch.equal(x, y) for x, y in pairs)

    assert same(a, b)
    assert not same(a, c)


def test_not_finite_stops_before_weights_change(tiny, digits, backbone, monkeypatch):
    loss = losses.generator_loss
    monkeypatch.setattr(losses, "generator_loss", lambda *a: math.nan * loss(*a))
    state = init_state(GDD, tiny, [backbone])
    before = tensors(state)
    with pytest.raises(FloatingPointError, match="loss_g is nan"):
        next(train(GDD, digits, tiny, [backbone], state=state))
    after = tensors(state)
    assert before.keys() == after.keys()
    moved = [key for key in before if not torch.equal(before[key], after[key])]
    assert [key for key in moved if key[-3:] not in ("._u", "._v")] == []  # of spectral norms


# the student


def test_a_student_has_no_dropout_whatever_its_teachers(digits, backbone):
    teacher, x = small_denoiser(dropout=0.13), torch.randn(4, 1, 8, 8)
    assert not torch.equal(teacher.train()(x, 5.0), teacher.eval()(x, 5.0))  # there is some
    for change in (dict(), dict(objective="cd"), dict(objective="pd"), dict(objective="ctm")):
        config = dataclasses.replace(GDD, **change)
        for student in (init_state(config, teacher, [backbone]).generator,
                        next(train(config, digits, teacher, [backbone])).generator):
            assert torch.equal(student.train()(x, 5.0), student.eval()(x, 5.0))
            assert student.config["dropout"] == 0
            assert Denoiser.from_config(student.config).model.enc["8x8_block0"].dropout == 0
    assert teacher.config["dropout"] == 0.13
    assert not torch.equal(teacher.train()(x, 5.0), teacher.eval()(x, 5.0))


def test_a_teacher_keeps_its_dropout():
    config = dataclasses.replace(GDD, objective="edm")
    trained, x = init_state(config, small_denoiser(dropout=0.13)).generator, torch.ones(4, 1, 8, 8)
    assert not torch.equal(trained.train()(x, 5.0), trained.eval()(x, 5.0))
    assert trained.config["dropout"] == 0.13


def test_a_student_starts_as_its_teacher_with_the_generators_boundary(tiny, backbone):
    state = init_state(GDD, tiny, [backbone])
    for network in (state.generator, state.ema):
        assert network.epsilon == 0.002
        assert all(
            torch.equal(a, b) for a, b in zip(network.state_dict().values(),
                                              tiny.state_dict().values(), strict=True))
    assert init_state(dataclasses.replace(GDD, objective="edm"), tiny).generator.epsilon == 0


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_only_the_unet_computes_in_reduced_precision(precision, digits, monkeypatch):
    """A step of GDD with R1, and of CD: dtypes of what goes in and comes out, and whether autocast
    is on."""
    config = dataclasses.replace(GDD, objective="gdd+cd", precision=precision)
    low = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    unet, others, distances, penalties = set(), set(), set(), set()
    start, backbone = small_denoiser(), small_backbone()

    def note(found):
        def hook(module, inputs, output):
            result = output[0] if isinstance(output, list) else output
            found.add((inputs[0].dtype, result.dtype, torch.is_autocast_enabled("cpu")))

        return hook

    def distance(a, b):
        distances.add((a.dtype, b.dtype, torch.is_autocast_enabled("cpu")))
        return (a - b).square().mean((1, 2, 3))

    def r1_penalty(features, logits, real):
        penalty = original(features, logits, real)
        penalties.add((real.dtype, penalty.dtype))
        return penalty

    original = losses.r1_penalty
    monkeypatch.setattr(losses, "r1_penalty", r1_penalty)
    state = init_state(config, start, [backbone])
    for name, module in state.generator.model.named_modules():
        if name.endswith(("conv", "conv0", "conv1")):
            module.register_forward_hook(note(unet))
    for module in (start.model.enc["8x8_conv"], *backbone.modules(),
                   *state.discriminator.projections.modules(),
                   *state.discriminator.heads.modules()):
        if next(module.children(), None) is None:
            module.register_forward_hook(note(others))
    steps = train(config, digits, start, [backbone], distance=distance, state=state)
    for _ in range(3):
        next(steps)
    assert {(out, on) for _, out, on in unet} == {(low, True)}
    assert others == {(torch.float32, torch.float32, False)}
    assert distances == {(torch.float32, torch.float32, False)}
    assert penalties == {(torch.float32, torch.float32)}
    assert {p.dtype for p in state.generator.parameters()} == {torch.float32}
    assert state.generator(torch.zeros(1, 1, 8, 8), 1.0).dtype == torch.float32


# the discriminator's steps


def double(change=None, hardware=None, start=None, names=("small", "other")):
    """State, models and a batch of float64, over two backbones."""
    config = dataclasses.replace(GDD, **change or {})
    engine = Engine(config, hardware or Hardware(accelerator="cpu"))
    start = (start or small_denoiser()).double()
    backbones = [small_backbone(name).double() for name in names]
    state = init_state(config, start, backbones, engine)
    return state, trainer.models_of(state, start, backbones, None)


def seen_by(state):
    """The images whose features the discriminator computes, call by call."""
    seen, features = [], state.discriminator.features

    def note(images):
        seen.append(images)
        return features(images)

    state.discriminator.features = note
    return seen


def adam_steps(optimizer):
    (count, ) = {int(slots["step"]) for slots in optimizer.state.values()}
    return count


def test_r1_is_a_step_of_its_own_on_every_kth_batch_but_the_first(tiny, digits, backbone):
    config = dataclasses.replace(GDD, r1_interval=3, total_images=16 * 8)
    state, counts, with_r1, calls = init_state(config, tiny, [backbone]), [0], [], []
    seen = seen_by(state)
    for _ in train(config, digits, tiny, [backbone], state=state):
        counts.append(adam_steps(state.d_optimizer))
        with_r1.append("r1" in state.metrics)
        calls.append(len(seen))
        seen.clear()
    added = [b - a for a, b in pairwise(counts)]
    assert added == [1, 1, 1, 2, 1, 1, 2, 1]
    assert with_r1 == [n == 2 for n in added]
    # the generator's fakes, the discriminator's fakes and reals, and reals twice for R1
    assert calls == [3 if n == 1 else 5 for n in added]
    assert adam_steps(state.optimizer) == 8


def test_the_step_of_r1_has_the_gradient_of_its_weighted_mean_over_reals_alone(digits):
    state, models = double(dict(r1_gamma=0.3, r1_interval=5))
    state.images_seen = 5 * 16
    batch, seen, before = draw(state, digits), seen_by(state), []
    penalise = trainer.r1_step

    def r1(state, batch):
        before.append(copy.deepcopy(state.discriminator))
        penalise(state, batch)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trainer, "r1_step", r1)
        take_step(state, models, batch)
    assert torch.equal(seen[-1], batch.real)
    (network, ) = before
    network.zero_grad()
    network.iterate(True)
    x = batch.real.clone().requires_grad_()
    (slope, ) = torch.autograd.grad(sum(y.sum() for y in network(x)), x, create_graph=True)
    penalty = slope.flatten(1).square().sum(1)
    (5 * 0.3 / 2 * penalty.mean()).backward()
    found, expected = gradients(state.discriminator), gradients(network)
    assert {n for n in found if found[n].any()} == {n for n in expected if expected[n].any()}
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-9, atol=1e-14), name
    assert state.metrics["r1"] == pytest.approx(float(penalty.detach().mean()), rel=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_r1s_step_moves_the_heads_by_gamma_alone(gamma, digits):
    state, models = double(dict(r1_gamma=gamma))
    batch = draw(state, digits)
    take_step(state, models, batch)
    generator = tensors(state)
    before = [p.clone() for p in state.d_optimizer.param_groups[0]["params"]]
    r1_step(state, batch)
    moved = [(a - b).abs().max() > 1e-6
             for a, b in zip(before, state.d_optimizer.param_groups[0]["params"], strict=True)]
    assert any(moved) == bool(gamma)
    assert adam_steps(state.d_optimizer) == 2
    # nothing but the discriminator
    after = tensors(state)
    assert all(torch.equal(after[k], generator[k]) for k in after if k[0] in "geo")


def test_adams_rates_are_corrected_for_the_steps_of_r1(tiny, backbone):
    """With 16 batches to an interval there are 17 steps of the discriminator."""
    config = dataclasses.replace(GDD, r1_interval=16, betas=(0.0, 0.99), d_lr=4e-5)
    (group, ) = init_state(config, tiny, [backbone]).d_optimizer.param_groups
    assert group["lr"] == pytest.approx(4e-5 * 16 / 17)
    assert group["betas"] == pytest.approx((0.0, 0.99**(16 / 17)))
    assert group["eps"] == 1e-8


@pytest.mark.parametrize("sampler", ["one-step", "k-step:2"])
def test_the_discriminator_sees_fakes_of_other_latents_after_the_generators_update(sampler, digits):
    state, models = double(dict(sampler=sampler, lr=1e-2))
    batch, seen, sample = draw(state, digits), seen_by(state), parse_sampler(sampler)
    before = copy.deepcopy(state.generator)
    take_step(state, models, batch)
    for_generator, fakes, reals = seen
    with torch.no_grad():
        assert torch.equal(for_generator, sample(before, batch.latents))
        assert torch.equal(fakes, sample(state.generator, batch.d_latents))
        # neither of the same latents nor by the weights of before
        assert not torch.allclose(fakes, sample(state.generator, batch.latents), atol=1e-3)
        assert not torch.allclose(fakes, sample(before, batch.d_latents), atol=1e-3)
    assert torch.equal(reals, batch.real)
    assert not fakes.requires_grad


def test_reused_fakes_are_the_generator_steps(digits):
    state, models = double(dict(reuse_fakes=True, lr=1e-2))
    batch, seen = draw(state, digits), seen_by(state)
    with torch.no_grad():
        expected = one_step(state.generator, batch.latents)
    heads, judged = state.discriminator, []
    logits = heads.logits
    heads.logits = lambda taps, labels=None: judged.append(taps) or logits(taps, labels)
    take_step(state, models, batch)
    for_generator, reals = seen  # features of the fakes are computed once
    assert torch.equal(for_generator, expected)
    assert torch.equal(reals, batch.real)
    first, fakes, _ = judged
    for one, again in zip(first[0], fakes[0], strict=True):
        assert torch.equal(one, again)
        assert one.requires_grad
        assert not again.requires_grad


def test_latents_of_a_step_are_unlike_one_another_and_those_of_others(digits):
    state, _ = double()
    first = draw(state, digits)
    assert torch.equal(draw(state, digits).d_latents, first.d_latents)
    state.images_seen += 16
    second = draw(state, digits)
    drawn = [first.latents, first.d_latents, first.noise, second.latents, second.d_latents]
    for index, a in enumerate(drawn):
        assert a.std() == pytest.approx(1, abs=0.1)
        for b in drawn[:index]:
            assert abs(float((a * b).mean())) < 0.1


# weights of the terms, against the official command's by hand

GROUP = 8  # b: images over which one process of the official command sums


def groups(x):
    return x.split(GROUP)


@pytest.mark.parametrize("micro", [0, GROUP], ids=["whole", "micro-batches"])
@pytest.mark.parametrize("objective", ["gdd", "gdd+cd"])
@pytest.mark.parametrize("kind", ["non-saturating", "hinge"])
def test_summed_losses_are_the_official_ones_of_processes_of_b_images(kind, objective, micro,
                                                                      digits):
    """The official command, by hand: each process sums over its b images the means over logits,
    adds the mean of the consistency loss, and gradients are averaged over processes."""
    change = dict(objective=objective, gan_loss=kind, reduction="sum", d_batch_norm_images=GROUP,
                  freeze="gdd-i", cd_weight=0.7)
    start = small_denoiser().double()
    state, models = double(change, Hardware(accelerator="cpu", micro_batch_size=micro), start)
    batch, generator = draw(state, digits), copy.deepcopy(state.generator)
    network = copy.deepcopy(state.discriminator)
    fakes = trainer.generator_step(state, models, batch)

    total = 0.0
    distance = lambda a, b: tap_distance(network.backbones[0], a, b)  # noqa: E731
    cd = Distillation(generator, start, distance, state.config.cd_steps)
    for index, rows in enumerate(groups(torch.arange(16))):
        part = batch.part(slice(rows[0], rows[-1] + 1))
        network.iterate(index == 0)
        logits = network(one_step(generator, part.latents))
        values = [-y if kind == "hinge" else F.softplus(-y) for y in logits]
        loss = sum(value.mean(dim=1).sum() for value in values)
        if objective == "gdd+cd":
            loss = loss + 0.7 * losses.consistency_loss(cd, part.real, part.noise,
                                                        part.uniform.T).mean()
        total = total + loss / len(groups(batch.real))
    total.backward()
    expected, found = gradients(generator), gradients(state.generator)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-9, atol=1e-12), name

    network = copy.deepcopy(state.discriminator)
    network.zero_grad()
    trainer.discriminator_step(state, models, batch, fakes)
    total = 0.0
    for real in (False, True):
        for index, rows in enumerate(groups(torch.arange(16))):
            part = batch.part(slice(rows[0], rows[-1] + 1))
            with torch.no_grad():
                fake = one_step(state.generator, part.d_latents)
            network.iterate(index == 0)
            logits = network(part.real if real else fake)
            signed = [-y if real else y for y in logits]
            values = [F.relu(1 + y) if kind == "hinge" else F.softplus(y) for y in signed]
            total = total + sum(value.mean(dim=1).sum() for value in values) / 2
    total.backward()
    expected, found = gradients(network), gradients(state.discriminator)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-9, atol=1e-12), name


def test_a_summed_loss_is_b_times_the_mean_ones_gradient(digits):
    """And R1's and a consistency loss's are the same: they weigh gamma/b and 1/b against it."""
    found = {}
    for reduction in ("mean", "sum"):
        state, models = double(dict(reduction=reduction, d_batch_norm_images=GROUP))
        batch = draw(state, digits)
        before = copy.deepcopy(state.discriminator.state_dict())
        trainer.generator_step(state, models, batch)
        fakes = state.discriminator.features(one_step(state.ema, batch.d_latents))
        trainer.discriminator_step(state, models, batch, [fakes])
        both = gradients(state.generator) | gradients(state.discriminator)
        state.discriminator.load_state_dict(before)
        r1_step(state, batch)
        found[reduction] = both, gradients(state.discriminator)
    (mean, r1), (summed, r1_beside_sum) = found["mean"], found["sum"]
    assert len(mean) > 60
    for name in mean:
        assert torch.allclose(summed[name], GROUP * mean[name], rtol=1e-9, atol=1e-12), name
    for name in r1:
        assert torch.allclose(r1[name], r1_beside_sum[name], rtol=1e-9, atol=1e-12), name


@pytest.mark.parametrize(("name", "b"), [("cifar10", 64), ("cifar10-cond", 64), ("afhqv2", 64),
                                         ("ffhq", 64), ("imagenet64", 128), ("cifar10-small", 64)])
def test_the_papers_runs_have_the_official_commands_weights(name, b):
    """R1 weighs 1e-4/b against a mean loss, the consistency loss 1/b; nothing that says how a step
    is computed has a part in it."""
    for run in profiles()[name].runs.values():
        assert run.reduction == "sum"
        assert trainer.gan_weight(run) == run.d_batch_norm_images == b
        assert run.r1_gamma / trainer.gan_weight(run) == pytest.approx(1e-4 / b)
        assert run.cd_weight / trainer.gan_weight(run) == pytest.approx(1 / b)
        assert run.batch_size % b == 0
        assert not run.reuse_fakes


def test_without_groups_the_sum_is_over_the_batch():
    assert trainer.gan_weight(dataclasses.replace(GDD, reduction="sum")) == 16
    assert trainer.gan_weight(GDD) == 1


# the weight average


def shifted(config, tiny, backbone):
    """A state whose generator's weights are 1 above its average's."""
    state = init_state(config, tiny, [backbone])
    for parameter in state.generator.parameters():
        parameter.data += 1
    return state


def gap(state):
    """How far the average is behind the generator; 1 before it moves."""
    pairs = zip(state.ema.parameters(), state.generator.parameters(), strict=True)
    gaps = torch.stack([(b - a).mean() for a, b in pairs])
    assert torch.allclose(gaps, gaps[:1], atol=1e-5)
    return float(gaps[0].detach())


def test_ema_halves_per_halflife(tiny, backbone):
    config = dataclasses.replace(GDD, ema_halflife_images=32, ema_rampup=1e9)
    state = shifted(config, tiny, backbone)
    state.images_seen = 16
    for _ in range(2):  # two steps of 16 images: one half-life
        update_ema(state)
        state.images_seen += config.batch_size
    assert gap(state) == pytest.approx(0.5, abs=1e-5)


def test_emas_halflife_is_limited_by_the_images_before_the_batch(tiny, backbone):
    config = dataclasses.replace(GDD, ema_halflife_images=1000, ema_rampup=0.5)
    state = shifted(config, tiny, backbone)
    update_ema(state)  # no images before the first batch: the weights are copied
    assert gap(state) == pytest.approx(0, abs=1e-6)
    state = shifted(config, tiny, backbone)
    state.images_seen = 64
    update_ema(state)
    assert gap(state) == pytest.approx(0.5**(16 / 32), abs=1e-5)
    state.images_seen = 10**6  # long after, the half-life is the config's
    before = gap(state)
    update_ema(state)
    assert gap(state) == pytest.approx(before * 0.5**(16 / 1000), abs=1e-5)


def test_a_rampup_of_0_is_none(tiny, backbone):
    config = dataclasses.replace(GDD, ema_halflife_images=32, ema_rampup=0.0)
    state = shifted(config, tiny, backbone)
    update_ema(state)
    assert gap(state) == pytest.approx(0.5**0.5, abs=1e-5)


def test_the_first_batch_of_a_run_counts_no_images(tiny, digits, backbone):
    state = next(train(GDD, digits, tiny, [backbone]))
    for average, current in zip(state.ema.parameters(), state.generator.parameters(), strict=True):
        assert torch.equal(average, current)


# what comes of it


@pytest.mark.slow
def test_the_teachers_loss_falls(digits):
    config = dataclasses.replace(GDD, objective="edm", total_images=64 * 50, batch_size=64, lr=3e-3)
    curve = [
        state.metrics["loss_edm"] for state in train(config, digits, Denoiser.from_config(TINY))]
    assert sum(curve[-10:]) < 0.8 * sum(curve[:10])


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        dict(objective="cd"),
        dict(objective="cd", freeze="gdd-i"),
        dict(objective="pd"),
        dict(objective="ctm"),
        dict(objective="gdd+cd", cd_weight=10.0)],
    ids=["cd", "cd-i", "pd", "ctm", "gdd+cd"],
)
def test_fifty_steps_bring_student_and_teacher_together(change, digits, backbone):
    config = dataclasses.replace(GDD, total_images=64 * 50, batch_size=64, betas=(0.9, 0.99),
                                 **change)
    name = "loss_cd" if "cd" in config.objective else f"loss_{config.objective}"
    torch.manual_seed(0)
    start = Denoiser.from_config(TINY)
    curve = [state.metrics[name] for state in train(config, digits, start, [backbone])]
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
        (dict(d_head_sizes=(8, )), "d_head_widths"), ],
)
def test_contradictory_configs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(GDD, **change)
