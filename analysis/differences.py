"""How far images are from others, pixel by pixel, and the interval of such a mean over images."""

import math

import torch
from scipy.special import stdtrit
from torch import Tensor


def rms(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """Root mean square difference (N,) of images in [-1,1], of all pixels or of those in the
    mask."""
    squares = (a - b).square()
    if mask is None:
        return squares.mean(dim=(1, 2, 3)).sqrt()
    inside = mask.expand_as(squares)
    return ((squares * inside).sum(dim=(1, 2, 3)) / inside.sum(dim=(1, 2, 3))).sqrt()


def psnr(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio (N,) in dB of images in [-1,1], whose peak is 2."""
    return 20 * torch.log10(2 / rms(a, b, mask).clamp(min=1e-6))


def mean_interval(values: Tensor) -> dict[str, float]:
    """mean, low, high (95%, Student's t), spread (standard deviation) and n of values (N,); of one
    value there is no interval."""
    values, n = values.cpu().double(), len(values)  # mps knows no double
    mean, spread = float(values.mean()), float(values.std()) if n > 1 else math.nan
    half = float(stdtrit(n - 1, 0.975)) * spread / n**0.5
    return {"mean": mean, "low": mean - half, "high": mean + half, "spread": spread, "n": n}
