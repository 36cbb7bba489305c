import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from gdd import losses
from gdd.backbones import tap_distance
from gdd.losses import Distillation
from gdd.sampling import generator_ladder, ladder_sigma, solve


@pytest.fixture(autouse=True)
def _double():
    """Closed forms are held in float64, so that they are the same on every processor."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def gaussian(x, sigma, labels=None, *, target_sigma=None):
    sigma = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    return 0.25 / (0.25 + sigma**2) * x


def softplus(x):
    return math.log1p(math.exp(x))


def test_non_saturating_losses():
    zero, sure = ([torch.full((2, 5), x), torch.full((2, 3), x)] for x in (0.0, 30.0))
    assert torch.allclose(losses.generator_loss(zero), torch.full((2, ), 2 * math.log(2)))
    assert torch.allclose(losses.generator_loss(sure), torch.zeros(2), atol=1e-6)
    for real in (True, False):
        assert torch.allclose(losses.discriminator_loss(zero, real),
                              torch.full((2, ), 2 * math.log(2)))
        assert torch.allclose(losses.discriminator_loss(sure, real),
                              torch.full((2, ), 0.0 if real else 60.0), atol=1e-6)


def test_the_mean_stands_outside_softplus_and_the_sum_over_backbones():
    logits = [torch.tensor([[-9.0, 5.0], [1.0, 3.0]]), torch.tensor([[2.0], [-4.0]])]
    fakes = [(softplus(9) + softplus(-5)) / 2 + softplus(-2),
             (softplus(-1) + softplus(-3)) / 2 + softplus(4)]
    assert losses.generator_loss(logits).tolist() == pytest.approx(fakes)
    # a real image and a generator's want the same
    assert losses.discriminator_loss(logits, True).tolist() == pytest.approx(fakes)
    found = losses.discriminator_loss(logits, False).tolist()
    assert found == pytest.approx([(softplus(-9) + softplus(5)) / 2 + softplus(2),
                                   (softplus(1) + softplus(3)) / 2 + softplus(-4)])
    # the old formula, softplus of the mean logit, is far from these
    assert fakes[0] > 1.4 * (softplus(2) + softplus(-2))


def test_hinge_losses_of_every_logit():
    fake, real = [torch.tensor([[-3.0, 1.0], [0.5, 0.5]])], [torch.tensor([[2.0, 2.0], [0.0, 3.0]])]
    assert losses.generator_loss(fake, "hinge").tolist() == [1.0, -0.5]
    # of the mean logit they would be 0 and 1.5, and of the second real image 0
    assert losses.discriminator_loss(fake, False, "hinge").tolist() == [1.0, 1.5]
    assert losses.discriminator_loss(real, True, "hinge").tolist() == [0.0, 0.5]
    two = [*fake, torch.tensor([[-2.0], [-0.5]])]
    assert losses.generator_loss(two, "hinge").tolist() == [3.0, 0.0]
    assert losses.discriminator_loss(two, False, "hinge").tolist() == [1.0, 2.0]


def test_every_logit_has_the_gradient_of_its_own_sigmoid():
    logits = torch.tensor([[-9.0, 5.0, 0.0]], requires_grad=True)
    (gradient, ) = torch.autograd.grad(losses.generator_loss([logits]).sum(), logits)
    assert torch.allclose(gradient, -torch.sigmoid(-logits) / 3)


def test_r1_of_a_linear_discriminator_is_its_squared_weights():
    weight, learned = torch.randn(5, 12), torch.ones((), requires_grad=True)
    penalty = losses.r1_penalty(
        lambda x: [[x.flatten(1)]],
        lambda taps: [learned * taps[0][0] @ weight.T, 2 * learned * taps[0][0] @ weight.T],
        torch.randn(3, 3, 2, 2))
    expected = (3 * weight.sum(0)).square().sum()
    assert torch.allclose(penalty, expected.expand(3))
    # second order: the penalty trains the discriminator
    penalty.sum().backward()
    assert torch.allclose(learned.grad, 3 * 2 * expected)


def test_edm_loss_closed_form():
    x, noise, sigma = torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4), torch.tensor([0.1, 1., 10.])
    assert torch.equal(losses.edm_loss(lambda y, s, labels: x, x, sigma, noise), torch.zeros(3))
    off_by_one = losses.edm_loss(lambda y, s, labels: x + 1, x, sigma, noise)
    assert torch.allclose(off_by_one, 16 * (sigma**2 + 0.25) / (0.5 * sigma)**2)


def test_training_noise_levels():
    logs = losses.draw_sigma(20_000, torch.Generator().manual_seed(0)).log()
    assert logs.mean() == pytest.approx(-1.2, abs=0.03)
    assert logs.std() == pytest.approx(1.2, abs=0.03)


def test_heun_step_is_the_samplers():
    x = torch.randn(2, 1, 4, 4) * 80
    sigmas = torch.tensor([80.0, 20.0])
    *_, last = solve(gaussian, x / 80, sigmas=sigmas)
    ours = losses.heun_step(gaussian, x, sigmas[:1].expand(2), sigmas[1:].expand(2))
    assert torch.allclose(ours, last.x)


def l2(a, b):
    return (a - b).square().mean((1, 2, 3))


def jumps(x0_of):
    """A student: x0_of(x, sigma), and with a target level the Euler jump to it."""
    def student(x, sigma, labels=None, *, target_sigma=None):
        x0 = x0_of(x, sigma)
        ratio = 0 if target_sigma is None else losses.column(target_sigma / sigma)
        return ratio * x + (1 - ratio) * x0

    return student


gaussian_jumps = jumps(gaussian)


def sigma_at(index, steps):
    """The ladder's level (1,) at an index; 0.002 at 0."""
    return torch.tensor([ladder_sigma(index / steps)])


def drawn(t, u, s, steps):
    """The uniform numbers (3,1) from which cd and ctm take these indices."""
    return torch.tensor([[(t - 2 + 0.5) / (steps - 1)], [(u - 1 + 0.5) / (t - 1)], [(s + 0.5) / u]])


def target_of(loss, x, noise, uniform, steps, student=gaussian_jumps, teacher=gaussian):
    """What the student's image is compared with, and the student's image."""
    seen = []
    models = Distillation(student, teacher, lambda a, b: seen.append((a, b)) or l2(a, b), steps)
    loss(models, x, noise, uniform)
    ((prediction, target), ) = seen
    return target, prediction


def by_hand(x, *levels, heun=()):
    """From level to level by Euler jumps of the student, or, for moves whose number is in `heun`,
    by the teacher's Heun step."""
    for move, (here, there) in enumerate(pairwise(levels)):
        if move in heun:
            x = losses.heun_step(gaussian, x, here, there)
        else:
            x = gaussian_jumps(x, here, target_sigma=there)
    return x


@pytest.fixture
def images():
    return torch.randn(1, 1, 4, 4), torch.randn(1, 1, 4, 4)


def test_ladders_end_at_0_002_and_not_at_0():
    ladder = [float(sigma_at(k, 18)) for k in range(19)]
    assert ladder[0] == pytest.approx(0.002)
    assert ladder[18] == pytest.approx(80)
    found = ladder_sigma(torch.arange(7, -1, -1) / 7)
    assert torch.allclose(found, generator_ladder(7))


@pytest.mark.parametrize("t", [3, 9, 18])
def test_consistency_target_is_heun_then_the_jump_to_0_002(t, images):
    x, noise = images
    here, there, end = (sigma_at(k, 18) for k in (t, t - 1, 0))
    noisy = x + losses.column(here) * noise
    found, prediction = target_of(losses.consistency_loss, x, noise, drawn(t, 1, 0, 18), 18)
    expected = by_hand(noisy, here, there, end, heun=[0])
    assert torch.allclose(found, expected, atol=1e-12)
    assert torch.allclose(prediction, gaussian(noisy, here))
    # the jump to 0, the student's x0 itself, is another target
    short = gaussian(by_hand(noisy, here, there, heun=[0]), there)
    assert not torch.allclose(found, short, atol=1e-6)


def test_consistency_target_at_the_ladders_end_is_the_teachers(images):
    x, noise = images
    levels = [sigma_at(k, 18) for k in (2, 1, 0)]
    found, _ = target_of(losses.consistency_loss, x, noise, drawn(2, 1, 0, 18), 18)
    expected = by_hand(x + levels[0] * noise, *levels, heun=[0, 1])
    assert torch.allclose(found, expected, atol=1e-12)
    euler = by_hand(x + levels[0] * noise, *levels, heun=[0])
    assert not torch.allclose(euler, expected, atol=1e-6)


@pytest.mark.parametrize("reach", [losses.consistency_loss, losses.trajectory_loss])
def test_t_reaches_both_ends_of_the_ladder(reach):
    x, seen = torch.zeros(400, 1, 2, 2), []

    def student(x, sigma, labels=None, *, target_sigma=None):
        if target_sigma is None:
            seen.append(sigma)
        return x

    reach(Distillation(student, gaussian, l2, 5), x, x, torch.rand(3, 400))
    assert sorted({round(float(s), 9) for s in seen[0]}) == [
        round(float(sigma_at(t, 5)), 9) for t in (2, 3, 4, 5)]


def test_consistency_loss_vanishes_for_the_consistent_student():
    """For Gaussian data the map from any noise level to the flow's end is known: it is its own
    target."""
    end = (0.25 + ladder_sigma(0.0)**2)**0.5

    def student(x, sigma, labels=None, *, target_sigma=None):
        # where the flow ends, at 0.002; what an exact jump there would need as x0
        at_end = x * end / losses.column((0.25 + sigma**2).sqrt())
        if target_sigma is None:
            return at_end
        return torch.where(losses.column(target_sigma < 0.0021), at_end, x)

    x, noise = 0.5 * torch.randn(64, 1, 4, 4), torch.randn(64, 1, 4, 4)
    uniform = torch.rand(3, 64)
    loss = losses.consistency_loss(Distillation(student, gaussian, l2, 200), x, noise, uniform)
    assert loss.max() < 1e-5
    one_step = Distillation(gaussian_jumps, gaussian, l2, 200)
    assert losses.consistency_loss(one_step, x, noise, uniform).mean() > 10 * loss.mean()


@pytest.mark.parametrize(
    ("t", "u", "s", "heun"),
    [(9, 5, 2, []), (9, 8, 2, [0]), (9, 5, 4, [1]), (9, 5, 1, [2]), (3, 2, 1, [0, 1, 2])],
    ids=["Euler jumps alone", "t-u", "u-s", "s-0", "three Heun steps"],
)
def test_trajectory_moves_over_one_index_are_heuns_and_longer_ones_the_students(
        t, u, s, heun, images):
    x, noise = images
    levels = [sigma_at(k, 18) for k in (t, u, s, 0)]
    found, prediction = target_of(losses.trajectory_loss, x, noise, drawn(t, u, s, 18), 18)
    noisy = x + losses.column(levels[0]) * noise
    assert torch.allclose(found, by_hand(noisy, *levels, heun=heun), atol=1e-12)
    assert torch.allclose(prediction, gaussian(noisy, levels[0]))


def test_a_trajectory_that_is_at_the_end_stays_there(images):
    x, noise = images
    levels = [sigma_at(k, 18) for k in (9, 5, 0)]
    found, _ = target_of(losses.trajectory_loss, x, noise, drawn(9, 5, 0, 18), 18)
    assert torch.allclose(found, by_hand(x + levels[0] * noise, *levels), atol=1e-12)


def test_trajectory_positions_are_nested_with_gaps_of_every_size():
    seen, steps, n = [], 6, 4000

    def student(x, sigma, labels=None, *, target_sigma=None):
        seen.append((sigma, target_sigma))
        return x

    x = torch.zeros(n, 1, 2, 2)
    losses.trajectory_loss(Distillation(student, gaussian, l2, steps), x, x, torch.rand(3, n))
    (t, u), (u_again, s), (s_again, end), (t_again, none) = seen
    levels = torch.tensor([ladder_sigma(k / steps) for k in range(steps + 1)])
    index = [torch.searchsorted(levels, v * (1 - 1e-9)) for v in (t, u, s)]
    assert torch.equal(u, u_again)
    assert torch.equal(s, s_again)
    assert torch.equal(t, t_again)
    assert none is None
    assert torch.allclose(end, levels[:1])
    found = set(zip(*(i.tolist() for i in index), strict=True))
    assert found == {(t, u, s) for t in range(2, steps + 1) for u in range(1, t) for s in range(u)}


def point(x, sigma):
    """Data of a single image, 0.3: its denoiser is constant, and Euler jumps follow the flow
    exactly."""
    return torch.full_like(x, 0.3)


def test_progressive_and_trajectory_losses_vanish_where_every_jump_is_exact():
    x, noise, uniform = torch.full((64, 1, 4, 4), 0.3), torch.randn(64, 1, 4, 4), torch.rand(3, 64)
    right, wrong = jumps(point), jumps(lambda x, sigma: 0.3 + 0.1 * x)
    found = losses.progressive_loss(Distillation(right, right, l2, 16), x, noise, uniform)
    assert found.max() < 1e-12
    found = losses.progressive_loss(Distillation(wrong, right, l2, 16), x, noise, uniform)
    assert found.mean() > 1e-3
    # its target lies at 0.002, where a point's flow still has that much noise
    found = losses.trajectory_loss(Distillation(right, right, l2, 16), x, noise, uniform)
    assert found.max() < 0.002**2 * 10
    found = losses.trajectory_loss(Distillation(wrong, right, l2, 16), x, noise, uniform)
    assert found.mean() > 1e-3


@pytest.mark.parametrize("steps", [4, 5])  # the largest power of two in N counts
@pytest.mark.parametrize(("level", "finest"), [(0, False), (1, True)])
def test_progressive_target_is_two_half_steps_of_heun_on_the_finest_grid(
        level, finest, steps, images):
    """N = 4 has coarse grids of 1 and 2 steps, by hand: the last step of each; the finer one's half
    steps are the teacher's, the coarser one's the student's."""
    x, noise = images
    m = 2**level
    uniform = torch.tensor([[(level + 0.5) / 2], [0.5 / m], [0.0]])
    levels = [torch.tensor([ladder_sigma(r / m)]) for r in (1, 0.5, 0)]
    start = x + losses.column(levels[0]) * noise
    teacher = jumps(lambda x, sigma: 0.9 * gaussian(x, sigma))
    at = start
    for here, there in pairwise(levels):
        at = losses.heun_step(teacher, at, here, there) if finest else gaussian_jumps(
            at, here, target_sigma=there)
    found, prediction = target_of(losses.progressive_loss, x, noise, uniform, steps,
                                  teacher=teacher)
    ratio = losses.column(levels[2] / levels[0])
    # one step with this x0 ends there too
    assert torch.allclose(ratio * start + (1 - ratio) * found, at, atol=1e-12)
    assert torch.allclose(prediction, gaussian(start, levels[0]))


@pytest.mark.parametrize("loss",
                         [losses.consistency_loss, losses.trajectory_loss, losses.progressive_loss])
def test_the_teacher_is_called_for_the_images_it_moves_each_with_its_label(loss):
    """A batch has the losses of its images alone, though the teacher sees part of it."""
    def scaled(x, sigma, labels):
        return losses.column(0.5 + labels.argmax(dim=1) / n) * gaussian(x, sigma)

    def teacher(x, sigma, labels=None):
        seen.append(len(x))
        return scaled(x, sigma, labels)

    def student(x, sigma, labels=None, *, target_sigma=None):
        return jumps(lambda x, sigma: scaled(x, sigma, labels))(x, sigma, target_sigma=target_sigma)

    n, seen = 48, []
    models = Distillation(student, teacher, l2, 8)
    batch = (torch.randn(n, 1, 2, 2), torch.randn(n, 1, 2, 2), torch.rand(3, n), torch.eye(n))
    found = loss(models, *batch)
    assert min(seen) < n / 2
    x, noise, uniform, labels = batch
    alone = [loss(models, x[[k]], noise[[k]], uniform[:, [k]], labels[[k]]) for k in range(n)]
    assert torch.allclose(found, torch.cat(alone), atol=1e-12)


def test_targets_carry_no_gradient(images):
    x, noise = images
    scale, grads = torch.ones((), requires_grad=True), []
    student = jumps(lambda x, sigma: scale * gaussian(x, sigma))
    for loss in (losses.consistency_loss, losses.trajectory_loss, losses.progressive_loss):
        models = Distillation(
            student, gaussian, lambda a, b: grads.append(
                (a.requires_grad, b.requires_grad)) or l2(a, b), 16)
        loss(models, x, noise, torch.rand(3, 1))
    assert grads == [(True, False)] * 3


def test_tap_distance_is_a_distance(backbone):
    torch.set_default_dtype(torch.float32)
    a, b = torch.randn(2, 3, 1, 8, 8).unbind(0)
    assert torch.allclose(tap_distance(backbone, a, a), torch.zeros(3), atol=1e-7)
    assert torch.allclose(tap_distance(backbone, a, b), tap_distance(backbone, b, a))
    assert (tap_distance(backbone, a, b) > 0).all()
    # four taps of unit vectors, each at most 2 apart
    assert (tap_distance(backbone, a, b) <= 4 * 4 + 1e-5).all()


def test_r1_sees_each_image_alone():
    """Per image, not of the batch: another image in the batch changes nothing."""
    real = torch.randn(3, 1, 2, 2)

    def penalty(x):
        return losses.r1_penalty(lambda x: [[x]],
                                 lambda taps: [F.softplus(taps[0][0].flatten(1)).square()], x)

    assert torch.allclose(penalty(real)[0], penalty(real[:1])[0])
