"""What a network does at one noise level, computed when asked for, in the time a hand waits: for
the explorer's notebook and for scripts.

    probe = Probe(gdd.load("gdd-i"), "heun:18", seeds=range(16))
    probe.curves("mean_abs")            # block x step
    probe.look("dec.8x8_block0", step=3).channels
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from analysis.activations import statistics
from analysis.frequencies import BANDS, skip_widths, split
from analysis.hooks import record
from analysis.spectrum import band_energy, band_modes
from gdd.denoiser import Denoiser
from gdd.sampling import Denoise, draw_latents, parse_sampler, solve

PATTERN = "model.*.conv1"  # every block's last convolution, as in Figure 3


@dataclass(frozen=True)
class Visit:
    """A call of the network on a sampler's way: its noise level, the state (N,C,H,W) and the image
    that the network has in mind there."""

    sigma: float
    x: Tensor
    x0_hat: Tensor


@dataclass(frozen=True)
class Look:
    """A block at one visit: the channels (C,H,W) of one image's activation, and shares of spectral
    power, low to high (bands,), of the output, of the two parts of the input where the block takes
    a skip, and of white noise; means over images."""

    channels: Tensor
    bands: dict[str, Tensor]


def visits(denoise: Denoise, sampler: str, latents: Tensor,
           labels: Tensor | None = None) -> list[Visit]:
    """Every call of a sampler in turn; of Heun's steps the first call alone."""
    kind, _, steps = sampler.partition(":")
    if kind in ("heun", "euler"):
        walk = solve(denoise, latents, steps=int(steps or 18), labels=labels,
                     second_order=kind == "heun")
        return [Visit(step.sigma, step.x, step.x0_hat) for step in walk if step.sigma > 0]
    found: list[Visit] = []

    def note(x: Tensor, sigma: float, labels: Tensor | None = None, **options: Any) -> Tensor:
        found.append(Visit(float(sigma), x, denoise(x, sigma, labels)))
        return denoise(x, sigma, labels, **options) if options else found[-1].x0_hat

    parse_sampler(sampler)(note, latents, labels=labels)
    return found


class Probe:
    """A network on its way from noise to images by a sampler, from `seeds`, one image each; a
    conditional one draws its labels from them. Raises ValueError if its blocks have other names
    than EDM's."""
    def __init__(self, denoiser: Denoiser, sampler: str, seeds: Sequence[int] = range(16)):
        self.denoiser, self.sampler, self.seeds = denoiser.eval(), sampler, seeds
        device = next(denoiser.parameters()).device
        shape = (denoiser.channels, denoiser.resolution, denoiser.resolution)
        latents, labels = draw_latents(seeds, shape, denoiser.label_dim)
        self.labels = None if labels is None else labels.to(device)
        with torch.inference_mode():
            self.visits = visits(denoiser, sampler, latents.to(device), self.labels)
        self.skips = skip_widths(denoiser.model)
        self._curves = cache(self._measured)
        self.blocks = list(self.curves("mean_abs")["block"].unique())

    def curves(self, statistic: str) -> pd.DataFrame:
        """Rows block, step, sigma, value in order of execution: a scalar statistic of
        `analysis.activations`, mean over images. Raises ValueError on another one."""
        scalar = [name for name in statistics() if name not in ("channel", "bands")]
        if statistic not in scalar:
            raise ValueError(f"statistic must be one of {', '.join(scalar)}; got {statistic!r}")
        return self._curves(statistic)

    def _measured(self, statistic: str) -> pd.DataFrame:
        rows = []
        for step, visit in enumerate(self.visits):
            with torch.inference_mode(), record(self.denoiser, PATTERN,
                                                statistics()[statistic]) as tape:
                self.denoiser(visit.x, visit.sigma, self.labels)
            rows += [(name.removeprefix("model.").removesuffix(".conv1"), step, visit.sigma,
                      float(values[0].mean())) for name, values in tape.items()]
        return pd.DataFrame(rows, columns=["block", "step", "sigma", "value"])

    def look(self, block: str, step: int, image: int = 0) -> Look:
        """The block's last convolution at a visit, by one call of the network."""
        visit, (side, name) = self.visits[step], block.split(".", 1)
        parts: dict[str, Tensor] = {}

        def before(module: Any, inputs: tuple[Tensor, ...]) -> None:
            width = self.skips[name]
            parts.update({part: bands(x) for part, x in split(inputs[0], width).items()})

        handles = []
        if side == "dec" and name in self.skips:
            module = self.denoiser.get_submodule(f"model.{block}")
            handles.append(module.register_forward_pre_hook(before))
        try:
            with torch.inference_mode(), record(self.denoiser, f"model.{block}.conv1",
                                                torch.clone) as tape:
                self.denoiser(visit.x, visit.sigma, self.labels)
        finally:
            for handle in handles:
                handle.remove()
        ((output, ), ) = tape.values()
        white = {"white noise": band_modes(output.shape[-1], BANDS)}
        return Look(output[image].cpu(), {"output": bands(output)} | parts | white)


def bands(x: Tensor) -> Tensor:
    return band_energy(x, BANDS).mean(dim=0).cpu()
