"""The losses, pure and unreduced: each returns one value per image, (N,), and the trainer reduces.

Logits come as a list with one tensor (N,L) per backbone, as `ProjectedDiscriminator` gives them.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gdd.sampling import ladder_sigma


def edm_loss(denoise: Callable[..., Tensor], x: Tensor, sigma: Tensor, noise: Tensor, labels: Tensor | None = None, *,
             sigma_data: float = 0.5) -> Tensor:  # fmt: skip
    """Karras et al. 2022, eq. 2 and table 1: weighted squared error of D(x + sigma noise; sigma), summed over pixels, (N,)."""
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    error = denoise(x + sigma.view(-1, 1, 1, 1) * noise, sigma, labels) - x
    return weight * error.square().sum(dim=(1, 2, 3))


def draw_sigma(n: int, generator: torch.Generator, *, mean: float = -1.2, std: float = 1.2) -> Tensor:
    """Training noise levels (n,): ln sigma ~ N(-1.2, 1.2^2)."""
    return (torch.randn(n, generator=generator) * std + mean).exp()


def generator_loss(fake_logits: Sequence[Tensor], kind: str = "non-saturating") -> Tensor:
    """softplus(-l_fake), or for `hinge` -l_fake; l is the mean logit of an image over one backbone; summed over backbones."""
    means = [logits.mean(dim=1) for logits in fake_logits]
    return torch.stack([-mean if kind == "hinge" else F.softplus(-mean) for mean in means]).sum(dim=0)


def discriminator_loss(logits: Sequence[Tensor], real: bool, kind: str = "non-saturating") -> Tensor:
    """softplus(-l) on real images and softplus(l) on fakes, or for `hinge` relu(1 - l) and relu(1 + l); summed over backbones."""
    means = [-x.mean(dim=1) if real else x.mean(dim=1) for x in logits]
    return torch.stack([F.relu(1 + mean) if kind == "hinge" else F.softplus(mean) for mean in means]).sum(dim=0)


def r1_penalty(real_logits: Sequence[Tensor], real: Tensor) -> Tensor:
    """|d sum(logits) / d image|^2 on real images (Mescheder et al. 2018), (N,), before gamma/2; `real` must require grad."""
    total = torch.stack([logits.sum() for logits in real_logits]).sum()
    (gradient,) = torch.autograd.grad(total, real, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3))


def consistency_loss(student: Callable[..., Tensor], teacher: Callable[..., Tensor],
                     distance: Callable[[Tensor, Tensor], Tensor], x: Tensor, noise: Tensor, index: Tensor, ladder: Tensor,
                     labels: Tensor | None = None) -> Tensor:  # fmt: skip
    """Consistency distillation (METHOD section 5) between neighbours of `ladder`, ascending sigma(0..N); (N,).

    `index` (N,) holds each image's t in 2..N. One teacher Heun step goes t -> t-1; the target is the student's answer
    there, or at t-1 = 1 the teacher's Heun step to sigma(0); the prediction is the student's answer at t.
    """
    sigma, middle = ladder[index], ladder[index - 1]
    noisy = x + sigma.view(-1, 1, 1, 1) * noise
    with torch.no_grad():
        stepped = heun_step(teacher, noisy, sigma, middle, labels)
        target = student(stepped, middle, labels)
        finished = heun_step(teacher, stepped, middle, ladder[0].expand_as(middle), labels)
        target = torch.where((index == 2).view(-1, 1, 1, 1), finished, target)
    return distance(student(noisy, sigma, labels), target)


def progressive_loss(student: Callable[..., Tensor], teacher: Callable[..., Tensor],
                     distance: Callable[[Tensor, Tensor], Tensor], x: Tensor, noise: Tensor, uniform: Tensor, steps: int,
                     labels: Tensor | None = None) -> Tensor:  # fmt: skip
    """Progressive distillation, all its levels at once (Salimans & Ho 2022; METHOD section 5); (N,).

    A level of m = 2^k coarse steps, 2m <= `steps`, and a step t -> s of it are drawn from `uniform` (3,N). Two half steps
    through the midpoint, of the teacher on the finest level and of the student above it, say where one step should end; the
    target is the x0 that takes it there.
    """
    levels = int(math.log2(steps))
    coarse = 2.0 ** (uniform[0] * levels).floor()  # m
    t = (uniform[1] * coarse).floor() + 1
    sigma_t, sigma_u, sigma_s = (ladder_sigma(r / coarse) for r in (t, t - 0.5, t - 1))
    noisy = x + sigma_t.view(-1, 1, 1, 1) * noise
    with torch.no_grad():
        finest = (2 * coarse >= 2**levels).view(-1, 1, 1, 1)
        at = noisy
        for here, there in ((sigma_t, sigma_u), (sigma_u, sigma_s)):
            of_teacher = teacher(at, here, labels, target_sigma=there)
            at = torch.where(finest, of_teacher, student(at, here, labels, target_sigma=there))
        ratio = (sigma_s / sigma_t).view(-1, 1, 1, 1)
        target = (at - ratio * noisy) / (1 - ratio)
    return distance(student(noisy, sigma_t, labels), target)


def trajectory_loss(student: Callable[..., Tensor], teacher: Callable[..., Tensor],
                    distance: Callable[[Tensor, Tensor], Tensor], x: Tensor, noise: Tensor, uniform: Tensor, steps: int,
                    labels: Tensor | None = None) -> Tensor:  # fmt: skip
    """Consistency trajectory (Kim et al. 2023): a jump t -> s agrees with a teacher's Heun step t -> u and a jump u -> s; (N,).

    t in 2..`steps`, u = t - 1 and s in 0..u are drawn from `uniform` (3,N). Both ends at s are compared as the images the student
    makes of them.
    """
    t = (uniform[0] * (steps - 1)).floor() + 2
    s = (uniform[1] * t).floor()
    sigma_t, sigma_u, sigma_s = (ladder_sigma(r / steps) for r in (t, t - 1, s))
    noisy = x + sigma_t.view(-1, 1, 1, 1) * noise
    with torch.no_grad():
        stepped = heun_step(teacher, noisy, sigma_t, sigma_u, labels)
        target = student(student(stepped, sigma_u, labels, target_sigma=sigma_s), sigma_s, labels)
    return distance(student(student(noisy, sigma_t, labels, target_sigma=sigma_s), sigma_s, labels), target)


def heun_step(denoise: Callable[..., Tensor], x: Tensor, sigma: Tensor, target: Tensor, labels: Tensor | None = None) -> Tensor:
    """One step of EDM Algorithm 2 with per-image levels (N,); `target` must be above 0."""
    sigma_, target_ = sigma.view(-1, 1, 1, 1), target.view(-1, 1, 1, 1)
    slope = (x - denoise(x, sigma, labels)) / sigma_
    euler = x + (target_ - sigma_) * slope
    slope_next = (euler - denoise(euler, target, labels)) / target_
    return x + (target_ - sigma_) * (slope + slope_next) / 2
