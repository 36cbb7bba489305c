"""Denoisers made of other people's networks: `denoise(x, sigma, labels=None) -> x0_hat`, images x =
x0 + sigma * noise as EDM has them, whatever the network itself predicts of which input.

    denoiser = from_diffusers(UNet2DModel(...), DDPMScheduler())
    denoiser = from_edm(network)                                   # of EDM, EDM2 or GDD
    denoiser = wrap(lambda x, sigma: x - column(sigma) * net(x, sigma.log()), (3, 32, 32),
                    network=net)                                   # gdd.losses.column

Nothing of diffusers is imported: what it builds is known by its attributes.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

Function = Callable[[Tensor, Tensor, Tensor | None], Tensor]
EDM_ATTRIBUTES = ("img_channels", "img_resolution", "label_dim")
# x0_hat = c_skip * x + c_out * output, of sigma
PREDICTIONS: dict[str, Callable[[Tensor], tuple[Tensor | float, Tensor | float]]] = {
    "epsilon": lambda sigma: (1.0, -sigma),
    "v_prediction": lambda sigma: (1 / (1 + sigma**2), -sigma / (1 + sigma**2).sqrt()),
    "sample": lambda sigma: (0.0, 1.0), }


class Adapted(nn.Module):
    """`denoise(x, sigma, labels=None) -> x0_hat`: images (N,C,H,W), sigma (N,) or () in their
    units, labels class indices (N,).

    `function(x, sigma, labels)` gets x in float32, or float64 if `network` is of it, sigma (N,) of
    the same, and labels or None. Layers of `network` go by the names that they have in it; it knows
    the noise levels from `sigma_min` to `sigma_max`.
    """
    def __init__(self, function: Function, network: nn.Module, shape: Sequence[int],
                 label_dim: int = 0, *, sigma_min: float = 0.0, sigma_max: float = math.inf):
        super().__init__()
        if len(shape) != 3 or shape[1] != shape[2]:
            raise ValueError(f"shape must be (C,H,W) of square images; got {tuple(shape)}")
        self.channels, self.resolution = int(shape[0]), int(shape[1])
        self.function, self.network, self.label_dim = function, network, label_dim
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.precision: torch.dtype | None = None
        if next(network.parameters(), None) is None:  # samplers ask it for the device
            self.place = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None, *,
                target_sigma: Tensor | float | None = None) -> Tensor:
        """The clean image x0_hat (N,C,H,W); with `target_sigma`, the Euler jump from `sigma` to it
        along (x - x0_hat)/sigma. Raises ValueError if the network answers with anything else."""
        x = x.to(torch.promote_types(next(self.parameters()).dtype, torch.float32))
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x))
        with torch.autocast(x.device.type, self.precision) if self.precision else nullcontext():
            x0_hat = self.function(x, sigma, labels if self.label_dim else None)
        found = getattr(x0_hat, "shape", type(x0_hat).__name__)
        if found != x.shape:
            raise ValueError(
                f"a denoiser answers x {tuple(x.shape)} with x0_hat of the same shape; "
                f"got {found if isinstance(found, str) else tuple(found)}")
        x0_hat = x0_hat.to(x.dtype)
        if target_sigma is None:
            return x0_hat
        target = torch.as_tensor(target_sigma, dtype=x.dtype, device=x.device).expand(len(x))
        ratio = (target / sigma).view(-1, 1, 1, 1)
        return ratio * x + (1 - ratio) * x0_hat


def wrap(function: Callable[..., Tensor], shape: Sequence[int], label_dim: int = 0, *,
         network: nn.Module | None = None) -> Adapted:
    """Any `function(x, sigma) -> x0_hat`, or with `label_dim` classes `function(x, sigma, labels)`,
    as a denoiser of images `shape` (C,H,W).

    It gets sigma (N,) and class indices (N,) or None. `network` is the module whose layers can be
    recorded and whose device it runs on; default: `function`, if it is one.
    """
    if network is None:
        network = function if isinstance(function, nn.Module) else nn.Module()

    def denoise(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        return function(x, sigma, labels) if label_dim else function(x, sigma)

    return Adapted(denoise, network, shape, label_dim)


def from_edm(network: Any) -> Adapted:
    """A preconditioned network of EDM, EDM2 or GDD, `network(x, sigma, class_labels) -> x0_hat`
    with one-hot labels, known by its attributes. Raises ValueError naming those that it lacks."""
    if missing := [name for name in EDM_ATTRIBUTES if not hasattr(network, name)]:
        raise ValueError(f"network must have the attributes of EDM's preconditioning; "
                         f"{type(network).__name__} lacks {', '.join(missing)}")
    size, classes = network.img_resolution, network.label_dim

    def denoise(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        if labels is None:
            return network(x, sigma)
        return network(x, sigma, nn.functional.one_hot(labels, classes).to(x.dtype))

    low, high = getattr(network, "sigma_min", 0.0), getattr(network, "sigma_max", math.inf)
    shape = (network.img_channels, size, size)
    return Adapted(denoise, network, shape, classes, sigma_min=low, sigma_max=high)


def from_diffusers(network: Any, scheduler: Any) -> Adapted:
    """An image network of diffusers, such as UNet2DModel, with the scheduler it was trained for:
    one of DDPM's kind (with `alphas_cumprod`) or of EDM's (with `precondition_outputs`), that
    predicts epsilon, v or the sample.

    x0_hat is what the scheduler calls `pred_original_sample`, clipped as it clips. At a sigma
    between two of the scheduler's levels a network of DDPM's kind gets the time step between them,
    linear in log sigma, or the nearest, if it learned an embedding for each; beyond all of them the
    outermost. Raises ValueError naming what is not supported.
    """
    config, options = network.config, scheduler.config
    size, prediction = config.get("sample_size"), options.get("prediction_type")
    if not isinstance(size, int):
        raise ValueError(f"the network's sample_size must be a number; got {size}")
    if config.get("class_embed_type") is not None:
        raise ValueError("the network's class_embed_type must be None, for class indices; got "
                         f"{config['class_embed_type']!r}")
    edm = hasattr(scheduler, "precondition_outputs")
    if not edm and not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError("scheduler must be of DDPM's kind, with alphas_cumprod, or of EDM's, with "
                         f"precondition_outputs; got {type(scheduler).__name__}")
    known = [name for name in PREDICTIONS if not edm or name != "sample"]
    if prediction not in known:
        raise ValueError(f"the scheduler's prediction_type must be one of {', '.join(known)}; got "
                         f"{prediction!r}")
    if options.get("thresholding"):
        raise ValueError("the scheduler's thresholding must be False: it makes a pixel depend on "
                         "all others of its image")
    classes = config.get("num_class_embeds") or config.get("num_embeds_ada_norm") or 0
    channels = config["in_channels"]

    def answer(x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        if classes and labels is None:
            raise ValueError(f"a network of {classes} classes needs labels (N,); got None")
        given = {"class_labels": labels} if classes else {}
        output = network(x.to(network.dtype), time, **given).sample.to(x.dtype)
        return output[:, :channels]  # the variance behind it, if there is one, is not asked for

    def with_edm(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        wide = sigma.view(-1, 1, 1, 1)
        output = answer(scheduler.precondition_inputs(x, wide), scheduler.precondition_noise(sigma),
                        labels)
        return scheduler.precondition_outputs(x, output, wide)

    def with_ddpm(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        time = _time_step(sigma, log_levels.to(sigma))
        if config.get("time_embedding_type") == "learned":
            time = time.round().long()
        wide = sigma.view(-1, 1, 1, 1)
        c_skip, c_out = PREDICTIONS[prediction](wide)
        # DDPM's x_t = sqrt(alpha) x0 + sqrt(1 - alpha) noise has alpha = 1 / (1 + sigma^2)
        x0_hat = c_skip * x + c_out * answer(x / (1 + wide**2).sqrt(), time, labels)
        limit = options.get("clip_sample_range", 1.0) if options.get("clip_sample") else math.inf
        return x0_hat.clamp(-limit, limit)

    shape = (channels, size, size)
    if edm:
        return Adapted(with_edm, network, shape, classes, sigma_min=options["sigma_min"],
                       sigma_max=options["sigma_max"])
    alphas = scheduler.alphas_cumprod.double()
    alphas = alphas[alphas > 0]  # a last level without any signal is at no sigma
    log_levels = ((1 - alphas) / alphas).log() / 2
    low, high = log_levels.exp()[[0, -1]].tolist()
    return Adapted(with_ddpm, network, shape, classes, sigma_min=low, sigma_max=high)


def _time_step(sigma: Tensor, log_levels: Tensor) -> Tensor:
    """The position (N,) of each sigma (N,) among ascending levels (T,), 0 to T - 1, between two of
    them linear in log sigma."""
    found = sigma.log().clamp(log_levels[0], log_levels[-1])
    above = torch.searchsorted(log_levels, found).clamp(1, len(log_levels) - 1)
    low, high = log_levels[above - 1], log_levels[above]
    return above - 1 + (found - low) / (high - low)
