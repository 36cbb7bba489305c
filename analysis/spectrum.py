"""Frequency content of images and activations."""

import torch
from torch import Tensor


def band_energy(x: Tensor, bands: int = 4) -> Tensor:
    """Share of the spectral power of (N,C,H,W) in equal radial frequency bands, low to high:
    (N,bands), each row sums to 1.

    Power is the squared magnitude of the 2-D FFT, averaged over channels; the constant term is left
    out, radii run to the corner of the spectrum. A map of one pixel, or a constant one, has no
    frequencies: zeros.
    """
    n, _, height, width = x.shape
    power = torch.fft.fft2(x.to(torch.float32), norm="ortho").abs().square().mean(dim=1)  # (N,H,W)
    fy, fx = torch.fft.fftfreq(height, device=x.device), torch.fft.fftfreq(width, device=x.device)
    # cycles per pixel, at most sqrt(1/2)
    radius = (fy[:, None].square() + fx[None, :].square()).sqrt()
    band = (radius / 0.5**0.5 * bands).long().clamp(max=bands - 1)  # (H,W)
    power = power * (radius > 0)
    energy = torch.zeros(n, bands, device=x.device).index_add_(1, band.flatten(), power.flatten(1))
    return energy / energy.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def radial_power(x: Tensor) -> Tensor:
    """Mean spectral power of (N,C,H,W), square maps, at each whole number of cycles per picture
    from 1 to half its size: (N,H//2).

    Power is the squared magnitude of the 2-D FFT in orthonormal scaling, averaged over channels and
    over the modes nearest to a radius: white noise of variance 1 has 1 everywhere.
    """
    size = x.shape[-1]
    power = torch.fft.fft2(x.to(torch.float32), norm="ortho").abs().square().mean(dim=1)  # (N,H,W)
    cycles = torch.fft.fftfreq(size, device=x.device) * size
    radius = (cycles[:, None].square() + cycles[None, :].square()).sqrt().round().long().flatten()
    modes = torch.bincount(radius, minlength=size)
    sums = torch.zeros(len(x), len(modes), device=x.device)
    sums.index_add_(1, radius, power.flatten(1))
    return sums[:, 1:size // 2 + 1] / modes[1:size // 2 + 1]


def band_modes(size: int, bands: int = 4) -> Tensor:
    """Share of a map's modes in each band of `band_energy`, which is what white noise has there:
    (bands,)."""
    delta = torch.zeros(1, 1, size, size)
    delta[..., 0, 0] = 1.0  # its spectrum is flat
    return band_energy(delta, bands)[0]
