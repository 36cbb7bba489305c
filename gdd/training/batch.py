"""What a training step draws: images, labels and noise, from a stream of the step's own."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gdd.config import TrainConfig
from gdd.data.images import Images, batch_indices, to_float
from gdd.losses import draw_sigma


@dataclass(frozen=True)
class Batch:
    """The random draws of one step, of this process's images; leading dimension B."""

    real: Tensor  # (B,C,H,W) in [-1,1]
    labels: Tensor | None  # (B,) class indices
    latents: Tensor  # (B,C,H,W) the generator's unit noise in its own step
    d_latents: Tensor  # (B,C,H,W) the same in the discriminator's step
    noise: Tensor  # (B,C,H,W) added to real images (edm, cd, pd, ctm)
    sigma: Tensor  # (B,) edm's noise levels
    uniform: Tensor  # (B,3) in [0,1), the ladder positions of cd, pd and ctm

    def part(self, rows: slice) -> "Batch":
        cut = {name: None if x is None else x[rows] for name, x in vars(self).items()}
        return Batch(**cut)  # type: ignore[arg-type]


def draw_batch(dataset: Images, config: TrainConfig, step: int, seed: int, *, share: slice,
               labelled: bool, device: torch.device, dtype: torch.dtype) -> Batch:
    """A process's share of the batch of a step, a function of (seed, step): all processes draw the
    whole batch's noise, so that it is the same however it is shared."""
    stream = torch.Generator().manual_seed(seed)
    picked = batch_indices(len(dataset), config.batch_size, step, config.seed)
    noise = torch.randn(3, len(picked), *dataset.images.shape[1:], generator=stream)
    sigma = draw_sigma(len(picked), stream)
    uniform = torch.rand(len(picked), 3, generator=stream)
    real, labels = to_float(dataset.images[picked[share]]), None
    if labelled and dataset.labels is not None:
        labels = dataset.labels[picked[share]].to(device)
    drawn = real, *(tensor[share] for tensor in (*noise, sigma, uniform))
    real, latents, d_latents, added, sigma, uniform = (x.to(device, dtype) for x in drawn)
    return Batch(real, labels, latents, d_latents, added, sigma, uniform)
