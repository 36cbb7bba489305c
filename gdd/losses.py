"""The losses, pure and unreduced: each returns one value per image, (N,), and the trainer reduces.

Logits come as a list with one tensor (N,L) per backbone, as `ProjectedDiscriminator` gives them.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def edm_loss(denoise: Callable[..., Tensor], x: Tensor, sigma: Tensor, noise: Tensor, labels: Tensor | None = None, *,
             sigma_data: float = 0.5) -> Tensor:  # fmt: skip
    """Karras et al. 2022, eq. 2 and table 1: weighted squared error of D(x + sigma noise; sigma), summed over pixels, (N,)."""
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    error = denoise(x + sigma.view(-1, 1, 1, 1) * noise, sigma, labels) - x
    return weight * error.square().sum(dim=(1, 2, 3))


def draw_sigma(n: int, generator: torch.Generator, *, mean: float = -1.2, std: float = 1.2) -> Tensor:
    """Training noise levels (n,): ln sigma ~ N(-1.2, 1.2^2)."""
    return (torch.randn(n, generator=generator) * std + mean).exp()


def generator_loss(fake_logits: Sequence[Tensor]) -> Tensor:
    """Non-saturating: softplus(-l_fake), l the mean logit of an image over one backbone; summed over backbones."""
    return torch.stack([F.softplus(-logits.mean(dim=1)) for logits in fake_logits]).sum(dim=0)


def discriminator_loss(fake_logits: Sequence[Tensor], real_logits: Sequence[Tensor]) -> Tensor:
    """softplus(l_fake) + softplus(-l_real), summed over backbones."""
    terms = [F.softplus(f.mean(dim=1)) + F.softplus(-r.mean(dim=1)) for f, r in zip(fake_logits, real_logits, strict=True)]
    return torch.stack(terms).sum(dim=0)


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
        last = index == 2
        if last.any():
            finished = heun_step(teacher, stepped, middle, ladder[0].expand_as(middle), labels)
            target = torch.where(last.view(-1, 1, 1, 1), finished, target)
    return distance(student(noisy, sigma, labels), target)


def heun_step(denoise: Callable[..., Tensor], x: Tensor, sigma: Tensor, target: Tensor, labels: Tensor | None = None) -> Tensor:
    """One step of EDM Algorithm 2 with per-image levels (N,); `target` must be above 0."""
    sigma_, target_ = sigma.view(-1, 1, 1, 1), target.view(-1, 1, 1, 1)
    slope = (x - denoise(x, sigma, labels)) / sigma_
    euler = x + (target_ - sigma_) * slope
    slope_next = (euler - denoise(euler, target, labels)) / target_
    return x + (target_ - sigma_) * (slope + slope_next) / 2
