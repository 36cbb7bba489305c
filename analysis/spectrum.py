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
