"""The losses, pure and unreduced: each returns one value per image, (N,), and the trainer reduces.

Logits come as a list with one tensor (N,L) per backbone, as `ProjectedDiscriminator` gives them.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual

from gdd.sampling import Denoise, ladder_sigma

Taps = Sequence[Sequence[Tensor]]  # of images: each backbone's feature maps


def edm_loss(denoise: Callable[..., Tensor], x: Tensor, sigma: Tensor, noise: Tensor,
             labels: Tensor | None = None, *, sigma_data: float = 0.5) -> Tensor:
    """Karras et al. 2022, eq. 2 and table 1: weighted squared error of D(x + sigma noise; sigma),
    summed over pixels, (N,)."""
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data)**2
    error = denoise(x + column(sigma) * noise, sigma, labels) - x
    return weight * error.square().sum(dim=(1, 2, 3))


def draw_sigma(n: int, generator: torch.Generator, *, mean: float = -1.2,
               std: float = 1.2) -> Tensor:
    """Training noise levels (n,): ln sigma ~ N(-1.2, 1.2^2)."""
    return (torch.randn(n, generator=generator) * std + mean).exp()


def generator_loss(fake_logits: Sequence[Tensor], kind: str = "non-saturating") -> Tensor:
    """softplus(-l), or for `hinge` -l, of every logit l of the fakes: mean over an image's logits,
    summed over backbones; (N,). The mean stands outside softplus."""
    values = [-x if kind == "hinge" else F.softplus(-x) for x in fake_logits]
    return torch.stack([value.mean(dim=1) for value in values]).sum(dim=0)


def discriminator_loss(logits: Sequence[Tensor], real: bool,
                       kind: str = "non-saturating") -> Tensor:
    """softplus(-l) of every logit on real images and softplus(l) on fakes, or for `hinge`
    relu(1 - l) and relu(1 + l): mean over an image's logits, summed over backbones; (N,)."""
    signed = [-x if real else x for x in logits]
    values = [F.relu(1 + x) if kind == "hinge" else F.softplus(x) for x in signed]
    return torch.stack([value.mean(dim=1) for value in values]).sum(dim=0)


def r1_penalty(features: Callable[[Tensor], Taps], logits: Callable[[Taps], Sequence[Tensor]],
               real: Tensor) -> Tensor:
    """|d sum(logits(features(x))) / d x|^2 on real images x (Mescheder et al. 2018), (N,), before
    gamma/2. It trains what `logits` depends on; `features` are frozen.

    With J = d features / d x and slopes v = d sum / d features it is |J'v|^2, whose gradient is
    that of 2 (J J'v) v at fixed J J'v: forward mode gives it, where a second backward pass would go
    through a frozen network for its weights too, group by group of depthwise convolutions.
    """
    made = features(real := real.detach().requires_grad_())
    leaves = [[tap.detach().requires_grad_() for tap in taps] for taps in made]
    total = torch.stack([x.sum() for x in logits(leaves)]).sum()
    slopes = torch.autograd.grad(total, [*chain(*leaves)], create_graph=True)
    (gradient, ) = torch.autograd.grad([*chain(*made)], real, [v.detach() for v in slopes])
    with warnings.catch_warnings(), dual_level():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, of torch.jit
        moved = chain(*features(make_dual(real.detach(), gradient)))
        changes = [unpack_dual(tap).tangent for tap in moved]
    products = [(u * v).flatten(1).sum(dim=1) for u, v in zip(changes, slopes, strict=True)]
    twice = 2 * torch.stack(products).sum(dim=0)  # in value twice the penalty
    return gradient.square().sum(dim=(1, 2, 3)) + twice - twice.detach()


def heun_step(denoise: Callable[..., Tensor], x: Tensor, sigma: Tensor, target: Tensor,
              labels: Tensor | None = None) -> Tensor:
    """One step of EDM Algorithm 2 with per-image levels (N,); `target` must be above 0."""
    sigma_, target_ = column(sigma), column(target)
    slope = (x - denoise(x, sigma, labels)) / sigma_
    euler = x + (target_ - sigma_) * slope
    slope_next = (euler - denoise(euler, target, labels)) / target_
    return x + (target_ - sigma_) * (slope + slope_next) / 2


@dataclass(frozen=True)
class Distillation:
    """What the instance-level losses share: student, teacher, a distance of images (N,), and the
    `steps` N of the ladder sigma(0..N), whose last level is 0.002."""

    student: Denoise
    teacher: Denoise
    distance: Callable[[Tensor, Tensor], Tensor]
    steps: int

    def sigma(self, index: Tensor) -> Tensor:
        return ladder_sigma(index / self.steps)

    def noisy(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return x + column(self.sigma(t)) * noise

    def move(self, v: Tensor, a: Tensor, b: Tensor, labels: Tensor | None) -> Tensor:
        """From ladder index a (N,) to b: nowhere if they are equal, over one index by the teacher's
        Heun step, over more by the student's Euler jump."""
        moved = self.step(v, self.sigma(a), self.sigma(b), a - b == 1, labels)
        return torch.where(column(a == b), v, moved)

    def step(self, v: Tensor, sigma: Tensor, target: Tensor, near: Tensor,
             labels: Tensor | None) -> Tensor:
        """Between levels (N,): by the teacher's Heun step for the images that are `near` (N,), by
        the student's Euler jump for the others."""
        moved = self.student(v, sigma, labels, target_sigma=target)
        if len(rows := self.rows(near)):  # one in seventeen of consistency distillation's
            some = None if labels is None else labels[rows]
            stepped = heun_step(self.teacher, v[rows], sigma[rows], target[rows], some)
            moved = moved.index_put((rows, ), stepped)
        return moved

    def rows(self, near: Tensor) -> Tensor:
        """Indices (M,) of the images for which the teacher is called."""
        return near.nonzero().flatten()

    def heun(self, v: Tensor, a: Tensor, b: Tensor, labels: Tensor | None) -> Tensor:
        return heun_step(self.teacher, v, self.sigma(a), self.sigma(b), labels)

    def compare(self, noisy: Tensor, t: Tensor, target: Tensor, labels: Tensor | None) -> Tensor:
        """Distance (N,) of the student's image, by one call with gradient, from the target."""
        return self.distance(self.student(noisy, self.sigma(t), labels), target)


def consistency_loss(models: Distillation, x: Tensor, noise: Tensor, uniform: Tensor,
                     labels: Tensor | None = None) -> Tensor:
    """Consistency distillation (Song et al. 2023, arXiv:2303.01469; docs/method.md, section 4): t
    in 2..N from `uniform` (3,N); the target is where a move t -> t-1 and one from there to 0
    end."""
    steps = models.steps
    t = (uniform[0] * (steps - 1)).floor() + 2
    noisy = models.noisy(x, noise, t)
    with torch.no_grad():
        target = models.move(models.heun(noisy, t, t - 1, labels), t - 1, 0 * t, labels)
    return models.compare(noisy, t, target, labels)


def trajectory_loss(models: Distillation, x: Tensor, noise: Tensor, uniform: Tensor,
                    labels: Tensor | None = None) -> Tensor:
    """Consistency trajectory distillation (Kim et al. 2023, arXiv:2310.02279; docs/method.md,
    section 4): t in 2..N, u in 1..t-1, s in 0..u-1; the target is where t -> u -> s -> 0 ends."""
    steps = models.steps
    t = (uniform[0] * (steps - 1)).floor() + 2
    u = (uniform[1] * (t - 1)).floor() + 1
    s = (uniform[2] * u).floor()
    noisy = models.noisy(x, noise, t)
    with torch.no_grad():
        at = models.move(models.move(noisy, t, u, labels), u, s, labels)
        target = models.move(at, s, 0 * s, labels)
    return models.compare(noisy, t, target, labels)


def progressive_loss(models: Distillation, x: Tensor, noise: Tensor, uniform: Tensor,
                     labels: Tensor | None = None) -> Tensor:
    """Progressive distillation, all its levels at once (Salimans & Ho 2022, arXiv:2202.00512;
    docs/method.md, section 4).

    A grid of m = 2^k coarse steps, 2m <= N, and a step t -> s of it are drawn from `uniform` (3,N).
    The target is the x0 whose Euler jump t -> s ends where two half steps end: the teacher's Heun
    steps on the finest grid, the student's jumps on those above it.
    """
    levels = int(math.log2(models.steps))
    m = 2.0**(uniform[0] * levels).floor()
    t = (uniform[1] * m).floor() + 1
    sigma_t, sigma_u, sigma_s = (ladder_sigma(r / m) for r in (t, t - 0.5, t - 1))
    noisy = x + column(sigma_t) * noise
    with torch.no_grad():
        finest, at = 2 * m >= 2**levels, noisy
        for here, there in ((sigma_t, sigma_u), (sigma_u, sigma_s)):
            at = models.step(at, here, there, finest, labels)
        ratio = column(sigma_s / sigma_t)
        target = (at - ratio * noisy) / (1 - ratio)
    return models.distance(models.student(noisy, sigma_t, labels), target)


def column(x: Tensor) -> Tensor:
    """(N,) -> (N,1,1,1), to go with images."""
    return x.view(-1, 1, 1, 1)
