import math

import pytest
import torch

from gdd import losses
from gdd.backbones import tap_distance
from gdd.sampling import generator_ladder, ladder_sigma, solve


def gaussian(x, sigma, labels=None, *, target_sigma=None):
    sigma = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    return 0.25 / (0.25 + sigma**2) * x


def test_non_saturating_losses():
    zero, sure = [torch.zeros(2, 5),
                  torch.zeros(2, 3)], [torch.full((2, 5), 30.0),
                                       torch.full((2, 3), 30.0)]
    assert torch.allclose(losses.generator_loss(zero), torch.full((2, ), 2 * math.log(2)))
    assert torch.allclose(losses.generator_loss(sure), torch.zeros(2), atol=1e-6)
    for real in (True, False):
        assert torch.allclose(losses.discriminator_loss(zero, real),
                              torch.full((2, ), 2 * math.log(2)))
        assert torch.allclose(losses.discriminator_loss(sure, real),
                              torch.full((2, ), 0.0 if real else 60.0), atol=1e-6)
    mixed = [torch.tensor([[1.0, 3.0]])]  # the mean logit counts, not the mean of the losses
    assert losses.generator_loss(mixed).item() == pytest.approx(math.log1p(math.exp(-2)))


def test_hinge_losses():
    fake, real = [torch.tensor([[-3.0, 1.0], [0.5, 0.5]])], [torch.tensor([[2.0, 2.0], [0.0, 1.0]])]
    assert losses.generator_loss(fake, "hinge").tolist() == [1.0, -0.5]
    assert losses.discriminator_loss(fake, False, "hinge").tolist() == [0.0, 1.5]
    assert losses.discriminator_loss(real, True, "hinge").tolist() == [0.0, 0.5]


def test_r1_of_a_linear_discriminator_is_its_squared_weights():
    weight = torch.randn(5, 12)
    real = torch.randn(3, 3, 2, 2, requires_grad=True)
    logits = real.flatten(1) @ weight.T
    penalty = losses.r1_penalty([logits, 2 * logits], real)
    assert torch.allclose(penalty, (3 * weight.sum(0)).square().sum().expand(3), rtol=1e-4)
    learned = torch.ones((), requires_grad=True)
    # second order: the penalty trains the discriminator
    losses.r1_penalty([learned * logits], real).sum().backward()
    assert learned.grad.abs() > 0


def test_edm_loss_closed_form():
    x, noise, sigma = torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4,
                                                           4), torch.tensor([0.1, 1.0, 10.0])
    assert torch.equal(losses.edm_loss(lambda y, s, labels: x, x, sigma, noise), torch.zeros(3))
    off_by_one = losses.edm_loss(lambda y, s, labels: x + 1, x, sigma, noise)
    assert torch.allclose(off_by_one, 16 * (sigma**2 + 0.25) / (0.5 * sigma)**2)


def test_training_noise_levels():
    logs = losses.draw_sigma(20_000, torch.Generator().manual_seed(0)).log()
    assert logs.mean() == pytest.approx(-1.2, abs=0.03)
    assert logs.std() == pytest.approx(1.2, abs=0.03)


def test_heun_step_is_the_samplers():
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64) * 80
    sigmas = torch.tensor([80.0, 20.0], dtype=torch.float64)
    *_, last = solve(gaussian, x / 80, sigmas=sigmas)
    ours = losses.heun_step(gaussian, x, sigmas[:1].expand(2), sigmas[1:].expand(2))
    assert torch.allclose(ours, last.x)


def l2(a, b):
    return (a - b).square().mean((1, 2, 3))


def test_consistency_loss_vanishes_for_the_consistent_student():
    """For Gaussian data the map from any noise level to the flow's end is known: it is its own
    target."""

    def student(x, sigma, labels=None):
        return x * 0.5 / (0.25 + sigma.view(-1, 1, 1, 1)**2).sqrt()

    ladder = generator_ladder(200).flip(0).float()
    x, noise = 0.5 * torch.randn(64, 1, 4, 4), torch.randn(64, 1, 4, 4)
    index = torch.randint(2, 201, (64, ))
    loss = losses.consistency_loss(student, gaussian, l2, x, noise, index, ladder)
    assert loss.max() < 1e-5
    one_step_denoiser = losses.consistency_loss(gaussian, gaussian, l2, x, noise, index, ladder)
    assert one_step_denoiser.mean() > 10 * loss.mean()


def test_consistency_target_at_the_ladders_end_is_the_teachers():
    ladder = generator_ladder(18).flip(0).float()
    x, noise, index = torch.randn(4, 1, 4, 4), torch.randn(4, 1, 4, 4), torch.full((4, ), 2)
    seen = []
    losses.consistency_loss(gaussian, gaussian, lambda a, b: seen.append(b) or l2(a, b), x, noise,
                            index, ladder)
    noisy = x + ladder[2] * noise
    by_hand = losses.heun_step(gaussian, noisy, ladder[2].expand(4), ladder[1].expand(4))
    by_hand = losses.heun_step(gaussian, by_hand, ladder[1].expand(4), ladder[0].expand(4))
    assert torch.allclose(seen[0], by_hand, atol=1e-6)


def test_tap_distance_is_a_distance(backbone):
    a, b = torch.randn(2, 3, 1, 8, 8).unbind(0)
    assert torch.allclose(tap_distance(backbone, a, a), torch.zeros(3), atol=1e-7)
    assert torch.allclose(tap_distance(backbone, a, b), tap_distance(backbone, b, a))
    assert (tap_distance(backbone, a, b) > 0).all()
    # four taps of unit vectors, each at most 2 apart
    assert (tap_distance(backbone, a, b) <= 4 * 4 + 1e-5).all()


def point(x, sigma, labels=None, *, target_sigma=None):
    """Data of a single image, 0.3: its denoiser is constant, and Euler jumps follow the flow
    exactly."""
    target = torch.full_like(x, 0.3)
    if target_sigma is None:
        return target
    ratio = (target_sigma / sigma).view(-1, 1, 1, 1)
    return ratio * x + (1 - ratio) * target


def test_progressive_and_trajectory_losses_vanish_where_every_jump_is_exact():
    x, noise, uniform = torch.full((64, 1, 4, 4), 0.3), torch.randn(64, 1, 4, 4), torch.rand(3, 64)
    for loss in (losses.progressive_loss, losses.trajectory_loss):
        assert loss(point, point, l2, x, noise, uniform, 16).max() < 1e-6

        def wrong(x, sigma, labels=None, *, target_sigma=None):
            x0 = 0.3 + 0.1 * x
            ratio = 0 if target_sigma is None else (target_sigma / sigma).view(-1, 1, 1, 1)
            return ratio * x + (1 - ratio) * x0

        assert loss(wrong, point, l2, x, noise, uniform, 16).mean() > 1e-3


def test_progressive_target_is_two_half_steps_of_the_teacher():
    """On the finest level, by hand: N = 4 has coarse grids of 1 and 2 steps; here m = 2, t = 2."""
    x, noise = torch.randn(2, 3, 1, 4, 4)
    uniform, seen = torch.tensor([[0.9] * 3, [0.9] * 3, [0.0] * 3]), []

    def teacher(x, sigma, labels=None, *, target_sigma=None):
        x0 = gaussian(x, sigma)
        ratio = (target_sigma / sigma).view(-1, 1, 1, 1)
        return ratio * x + (1 - ratio) * x0

    def student(x, sigma, labels=None, *, target_sigma=None):
        return torch.zeros_like(x)

    losses.progressive_loss(student, teacher, lambda a, b: seen.append(b) or l2(a, b), x, noise,
                            uniform, 4)
    sigma = [ladder_sigma(torch.tensor([r] * 3)) for r in (1.0, 0.75, 0.5)]
    start = x + sigma[0].view(-1, 1, 1, 1) * noise
    end = teacher(teacher(start, sigma[0], target_sigma=sigma[1]), sigma[1], target_sigma=sigma[2])
    ratio = (sigma[2] / sigma[0]).view(-1, 1, 1, 1)
    # one step with this x0 ends there too
    assert torch.allclose(ratio * start + (1 - ratio) * seen[0], end, atol=1e-4)


def test_trajectory_positions_are_nested():
    seen = []

    def student(x, sigma, labels=None, *, target_sigma=None):
        seen.append((sigma, target_sigma))
        return x

    x, uniform = torch.zeros(500, 1, 2, 2), torch.rand(3, 500)
    losses.trajectory_loss(student, gaussian, l2, x, x, uniform, 18)
    (u, s), _, (t, s_again), _ = seen
    assert (t > u).all()
    assert (u >= s).all()
    assert torch.equal(s, s_again)
    assert s.min() < 0.01  # sometimes all the way


def test_ladder_sigma_is_the_generators_ladder():
    steps = 7
    found = ladder_sigma(torch.arange(steps, -1, -1, dtype=torch.float64) / steps)
    assert torch.allclose(found, generator_ladder(steps))
