"""What a one-step and a K-step generator can be asked for beside new images: to complete a picture,
to follow a rough one, to walk between two seeds, to change the class.

A one-step generator is edited through its latents, which are optimised; a K-step one, like its
teacher, through its denoised image, part of which is held at what is known. Measured, not only
shown: functions return images, and those named `measure_` a tidy table of how good they are.
"""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise

import pandas as pd
import torch
from torch import Tensor

from analysis.differences import mean_interval, psnr, rms
from analysis.fid.frechet import FeatureStats, frechet_distance
from gdd.data.images import to_uint8
from gdd.sampling import Denoise, chain, ladder_sigma

MASKS = ("right", "bottom", "centre")
Make = Callable[[Tensor], Tensor]  # latents (N,C,H,W) -> images


def missing(kind: str, size: int) -> Tensor:
    """Which pixels (1,1,H,W) are to be completed: the right or the bottom half, or a square in the
    centre of half the width. Raises ValueError on another word."""
    if kind not in MASKS:
        raise ValueError(f"mask must be one of {', '.join(MASKS)}; got {kind!r}")
    mask, middle, inner = torch.zeros(1, 1, size, size, dtype=torch.bool), size // 2, size // 4
    if kind == "right":
        mask[..., middle:] = True
    elif kind == "bottom":
        mask[..., middle:, :] = True
    else:
        mask[..., inner:size - inner, inner:size - inner] = True
    return mask


def held(denoise: Denoise, images: Tensor, mask: Tensor) -> Denoise:
    """The denoiser whose image is `images` outside the mask: with it, every sampler completes them.

    The known part of its state then stays the picture plus the sampler's own noise at each level,
    the replacement of Song et al. 2021 (arXiv:2011.13456, appendix I.2) with one noise for all.
    """
    def masked(x: Tensor, sigma: float, labels: Tensor | None = None, *,
               target_sigma: float | None = None) -> Tensor:
        x0_hat = torch.where(mask, denoise(x, sigma, labels), images)
        if target_sigma is None:
            return x0_hat
        ratio = target_sigma / sigma
        return ratio * x + (1 - ratio) * x0_hat

    return masked


def optimise(make: Make, images: Tensor, mask: Tensor, latents: Tensor, *, steps: int = 50,
             lr: float = 0.3, noise: float = 10.0) -> Tensor:
    """Latents (N,C,H,W) whose images have the least squared error outside the mask, by Adam from
    `latents`. A network knows no latents but noise: after a step each channel has mean 0 and
    variance 1, and `noise` weighs how unlike noise they are. Every image is optimised by itself: a
    batch changes nothing."""
    z = latents.clone().requires_grad_()
    adam, best, least = torch.optim.Adam([z], lr=lr), latents, latents.new_full((len(z), ),
                                                                                math.inf)
    for step in range(steps + 1):
        error = ((make(z) - images).square() * ~mask).sum(dim=(1, 2, 3))
        cost = error + noise * unlike_noise(z)
        better = (cost < least).view(-1, 1, 1, 1)
        best, least = torch.where(better, z.detach(), best), torch.minimum(cost.detach(), least)
        if step == steps:
            return best
        (z.grad, ) = torch.autograd.grad(cost.sum(), z)
        adam.step()
        with torch.no_grad():
            z.sub_(z.mean(dim=(2, 3), keepdim=True))
            z.div_(z.std(dim=(2, 3), keepdim=True, correction=0))
    raise AssertionError


def unlike_noise(latents: Tensor) -> Tensor:
    """How unlike white noise latents (N,C,H,W) are, (N,): the squared mean products of neighbours,
    across and down, of each channel at its own size and at halved ones down to 4, summed (Karras et
    al. 2020, arXiv:1912.04958, appendix D)."""
    down, across = ((latents * latents.roll(1, dims=side)).mean(dim=(2, 3)) for side in (2, 3))
    found = (down.square() + across.square()).sum(dim=1)
    if min(latents.shape[2:]) < 8:
        return found
    return found + unlike_noise(2 * torch.nn.functional.avg_pool2d(latents, 2))


def guided(denoise: Denoise, images: Tensor, latents: Tensor, steps: int, first: int, *,
           labels: Tensor | None = None) -> Tensor:
    """A K-step generator from the picture plus noise at its `first` level on (1: the second of K),
    in place of noise alone at 80: SDEdit (Meng et al. 2022, arXiv:2108.01073). Raises ValueError if
    there is no such level."""
    if not 0 < first < steps:
        raise ValueError(f"first must be from 1 to {steps - 1} of {steps} steps; got {first}")
    sigmas = [ladder_sigma(k / steps) for k in range(steps - first, 0, -1)]
    return chain(denoise, latents + images / sigmas[0], sigmas, labels=labels)


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """The latents (N,C,H,W) a fraction t of the way from `a` to `b` along the sphere, so that they
    are as far from zero as noise is."""
    flat_a, flat_b = a.flatten(1), b.flatten(1)
    cosine = torch.nn.functional.cosine_similarity(flat_a, flat_b).clamp(-1 + 1e-7, 1 - 1e-7)
    angle = cosine.arccos().view(-1, 1, 1, 1)
    return (((1 - t) * angle).sin() * a + (t * angle).sin() * b) / angle.sin()


def walk(make: Make, a: Tensor, b: Tensor, points: int) -> Tensor:
    """Images (points,N,C,H,W) from those of latents `a` to those of `b`."""
    return torch.stack([make(slerp(a, b, k / (points - 1))) for k in range(points)])


def evenness(images: Tensor) -> Tensor:
    """Of a walk (points,N,C,H,W) the largest change between neighbours over the mean one, (N,): 1
    if every step changes as much, points - 1 if one does everything."""
    moved = torch.stack([rms(one, other) for one, other in pairwise(images)])
    return moved.amax(dim=0) / moved.mean(dim=0).clamp(min=1e-12)


def measure_completions(completed: Mapping[str, Tensor], images: Tensor, mask: Tensor,
                        features: Callable[[Tensor],
                                           Tensor], reference: FeatureStats) -> pd.DataFrame:
    """Rows method, statistic, mean, low, high, spread, n: completions (N,C,H,W) of `images` by each
    method.

    `psnr` in dB inside the mask; `feature` the distance of the features of uint8 images from the
    original's, over the mean distance of two different originals, so that 1 is another picture;
    `fd` of the completions to the reference, which has no interval.
    """
    def seen(x: Tensor) -> Tensor:
        return features(to_uint8(x)).double()

    own = seen(images)
    apart = (own - own.roll(1, dims=0)).norm(dim=1).mean()
    rows = []
    for method, made in completed.items():
        found = seen(made)
        per_image = {"psnr": psnr(made, images, mask), "feature": (found - own).norm(dim=1) / apart}
        rows += [{"method": method, "statistic": name, **mean_interval(values)}
                 for name, values in per_image.items()]  # yapf: disable
        distance = frechet_distance(FeatureStats.of(found), reference)
        rows.append({"method": method, "statistic": "fd", "mean": distance, "n": len(made)})
    return pd.DataFrame(rows)


def switch_classes(make: Callable[[Tensor, Tensor], Tensor], latents: Tensor,
                   classes: int) -> Tensor:
    """Images (classes,N,C,H,W) of the same latents asked for each class in turn; `make` takes
    latents and labels (N,)."""
    return torch.stack([make(latents, torch.full((len(latents), ), k)) for k in range(classes)])


def measure_classes(images: Tensor, classify: Callable[[Tensor], Tensor]) -> pd.DataFrame:
    """Rows statistic, mean, low, high, spread, n of `switch_classes`' images (classes,N,C,H,W).

    `agreement`: the share that a classifier of uint8 images takes for the class asked for;
    `class_change`: how far two classes of the same latents are apart (rms); `latent_change`: how
    far two latents of the same class are.
    """
    count, n = images.shape[:2]
    found = classify(to_uint8(images.flatten(0, 1))).argmax(dim=1).view(count, n)
    values = {
        "agreement":
        (found == torch.arange(count)[:, None]).double().mean(dim=0), "class_change": torch.stack([
            rms(a, b) for a, b in pairwise(images)]).mean(dim=0), "latent_change": torch.stack([
                rms(one, one.roll(1, dims=0)) for one in images]).mean(dim=0)}
    return pd.DataFrame([{"statistic": name, **mean_interval(x)} for name, x in values.items()])


def rough(images: Tensor, block: int) -> Tensor:
    """What a hand might paint: every `block` x `block` square of images (N,C,H,W) in its mean."""
    small = torch.nn.functional.avg_pool2d(images, block)
    return small.repeat_interleave(block, dim=2).repeat_interleave(block, dim=3)
