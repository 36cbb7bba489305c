"""Which frequencies are worked on when: of block inputs, backbone and skip apart, and of the image
that a sampler has in mind at each step (after arXiv:2506.09376).
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from analysis.spectrum import band_energy, band_modes, radial_power
from gdd.denoiser import Denoiser
from gdd.sampling import draw_latents, solve

BANDS = 4
BATCH = 128  # images of 32x32 and less in a processor's cache: faster than 256


def measure_blocks(denoiser: Denoiser, images: Tensor, sigmas: Sequence[float], *, model: str,
                   labels: Tensor | None = None) -> pd.DataFrame:
    """A row per decoder block that takes a skip, part (backbone or skip), noise level and band,
    low to high: `share` of the part's spectral power, mean over images, and that of white noise,
    which is the band's share of modes, `white`.

    Real images (N,C,H,W) in [-1,1] are denoised with added noise.
    """
    found: dict[tuple[str, str, int], list[Tensor]] = {}
    network: Any = denoiser.model
    level, handles = 0, []

    def note(name: str, width: int) -> None:
        def hook(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
            for part, x in split(inputs[0], width).items():
                shares = band_energy(x, BANDS).cpu()
                found.setdefault((name, part, level), []).append(shares)

        handles.append(network.dec[name].register_forward_pre_hook(hook))

    for name, width in skip_widths(network).items():
        note(name, width)
    noise = draw_latents(range(len(images)), images.shape[1:])[0].to(images)
    try:
        with torch.inference_mode():
            for level in range(len(sigmas)):
                for some in torch.arange(len(images)).split(BATCH):
                    x = images[some] + sigmas[level] * noise[some]
                    denoiser(x, sigmas[level], None if labels is None else labels[some])
    finally:
        for handle in handles:
            handle.remove()
    rows = []
    for (name, part, step), shares in found.items():
        white = band_modes(int(name.partition("x")[0]), BANDS)
        rows += [{
            "model": model, "block": name, "part": part, "step": step, "sigma": sigmas[step],
            "band": band, "share": float(share), "white": float(white[band]), "n": len(images)}
            for band, share in enumerate(torch.cat(shares).mean(dim=0))]  # yapf: disable
    return pd.DataFrame(rows)


def skip_widths(network: Any) -> dict[str, int]:
    """Of each decoder block that takes a skip how many channels that has, the last of its input."""
    skips = [module.out_channels for name, module in network.enc.items() if "aux" not in name]
    previous, found = skips[-1], {}
    for name, module in network.dec.items():
        if "aux" in name:
            continue
        if module.in_channels != previous:
            found[name] = skips.pop()
        previous = module.out_channels
    return found


def split(x: Tensor, width: int) -> dict[str, Tensor]:
    """A decoder block's input (N,C,H,W) by where it comes from."""
    return {"backbone": x[:, :-width], "skip": x[:, -width:]}


def measure_steps(denoiser: Denoiser, seeds: Sequence[int], *, model: str,
                  steps: int = 18) -> tuple[pd.DataFrame, Tensor]:
    """A row per step of EDM's solver and number of cycles: mean power of the image that the network
    has in mind, `x0`, and of what the step changed in it, `change`. Beside it the images
    (N,C,H,W)."""
    shape = (denoiser.channels, denoiser.resolution, denoiser.resolution)
    walks = []
    for start in range(0, len(seeds), BATCH):
        latents, labels = draw_latents(seeds[start:start + BATCH], shape, denoiser.label_dim)
        walks.append(solve(denoiser, latents, steps=steps, labels=labels))
    rows: list[dict[str, Any]] = []
    before: Tensor | None = None
    with torch.inference_mode():
        for step, *others in zip(*walks, strict=True):
            if step.sigma == 0:
                return pd.DataFrame(rows), torch.cat([one.x for one in (step, *others)])
            after = torch.cat([one.x0_hat for one in (step, *others)])
            change = None if before is None else radial_power(after - before).mean(dim=0)
            for place, power in enumerate(radial_power(after).mean(dim=0).tolist()):
                rows.append({
                    "model": model, "step": step.index, "sigma": step.sigma, "cycles": place + 1,
                    "x0": power, "n": len(seeds), "change":
                    float("nan") if change is None else float(change[place])})
            before = after
    raise AssertionError


def image_power(images: Tensor, *, model: str) -> pd.DataFrame:
    """A row per number of cycles: mean power of images (N,C,H,W) in [-1,1]."""
    power = radial_power(images).mean(dim=0).tolist()
    return pd.DataFrame([{"model": model, "cycles": place + 1, "x0": value, "n": len(images)}
                         for place, value in enumerate(power)])  # yapf: disable


def direction(steps: pd.DataFrame) -> pd.DataFrame:
    """Of each step the mean number of cycles of what it changed, weighted by power times modes; the
    sign of its rank correlation with the step says whether fine structure comes last."""
    changed = steps.dropna(subset=["change"])
    power = changed["change"] * changed["cycles"]  # a ring has about as many modes as cycles
    keys = [changed["model"], changed["step"], changed["sigma"]]
    centre = (power * changed["cycles"]).groupby(keys).sum() / power.groupby(keys).sum()
    return centre.rename("cycles").reset_index()
