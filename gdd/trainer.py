"""The trainer: `train(...)` is a generator that yields its state after every step; the caller logs, measures and saves.

One signature for the EDM teacher, GDD, GDD-I, CD, CD-I and GDD+CD, with one- to K-step generators. Every random number of
a step comes from streams seeded by (seed, images seen), drawn on the CPU for the whole batch, so a resumed run needs no random
state, only its images count. `train` reseeds torch's global stream at every step.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from gdd import losses
from gdd.backbones import Backbone, tap_distance
from gdd.config import TrainConfig
from gdd.data import Images, batch_indices, to_float
from gdd.denoiser import GENERATOR_EPSILON, Denoiser
from gdd.discriminator import ProjectedDiscriminator
from gdd.freezing import freeze
from gdd.sampling import generator_ladder, parse_sampler


@dataclass
class TrainState:
    """Exactly what a checkpoint holds, and the last step's losses."""

    config: TrainConfig
    generator: Denoiser
    ema: Denoiser
    optimizer: torch.optim.Optimizer
    discriminator: ProjectedDiscriminator | None = None
    d_optimizer: torch.optim.Optimizer | None = None
    images_seen: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """The random draws of one step; leading dimension batch_size."""

    real: Tensor  # (B,C,H,W) in [-1,1]
    labels: Tensor | None  # (B,) class indices
    latents: Tensor  # (B,C,H,W) the generator's unit noise
    noise: Tensor  # (B,C,H,W) added to real images (edm, cd)
    sigma: Tensor  # (B,) edm's noise levels
    index: Tensor  # (B,) cd's ladder positions, 2..N
    uniform: Tensor  # (3,B) in [0,1), the positions of pd and ctm


@dataclass(frozen=True)
class _Engine:
    """The state's modules behind Fabric, and what a step needs beside them."""

    fabric: Fabric
    config: TrainConfig
    generator: Callable[..., Tensor]
    optimizer: Any
    teacher: Denoiser
    discriminator: Any = None
    d_optimizer: Any = None
    distillation: Callable[[Batch], Tensor] | None = None  # the loss (B,) of cd, pd or ctm


def init_state(config: TrainConfig, start: Denoiser, backbones: Sequence[Backbone] = ()) -> TrainState:
    """The state before the first step. `start` is an untrained network (edm) or the teacher (all else); it is left as it is."""
    if config.objective != "edm" and not backbones:
        raise ValueError(f"objective {config.objective} needs at least one backbone; got none")
    generator = start.copy(epsilon=0.0 if config.objective == "edm" else GENERATOR_EPSILON).train()
    freeze(generator, config.freeze)
    trained = [p for p in generator.parameters() if p.requires_grad]
    ema = generator.copy().eval().requires_grad_(False)
    state = TrainState(config, generator, ema, _adam(trained, config.lr, config.betas))
    if "gdd" in config.objective:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            state.discriminator = ProjectedDiscriminator(
                backbones,
                channels=config.d_channels,
                head_widths=dict(zip(config.d_head_sizes, config.d_head_widths, strict=True)),
                label_dim=start.label_dim,
            )
        # lazy R1 runs once per interval, so lr and betas shrink alike (Karras et al. 2020, appendix B)
        lazy = config.r1_interval / (config.r1_interval + 1)
        heads = [p for p in state.discriminator.parameters() if p.requires_grad]
        state.d_optimizer = _adam(heads, config.d_lr * lazy, (config.betas[0] ** lazy, config.betas[1] ** lazy))
    return state


def _adam(parameters: list[nn.Parameter], lr: float, betas: tuple[float, float]) -> torch.optim.Adam:
    # torch refuses betas that mix int and float
    return torch.optim.Adam(parameters, lr=lr, betas=(float(betas[0]), float(betas[1])), eps=1e-8)


def train(config: TrainConfig, dataset: Images, start: Denoiser, backbones: Sequence[Backbone] = (), *,
          fabric: Fabric | None = None, state: TrainState | None = None) -> Iterator[TrainState]:  # fmt: skip
    """Train until `config.total_images`, yielding the one `TrainState` after every step.

    `state` resumes a loaded one. Raises ValueError at once if data and network do not fit, and while it runs FloatingPointError
    at a loss that is not finite, before any weight changes.
    """
    expected = (start.channels, start.resolution, start.resolution)
    if tuple(dataset.images.shape[1:]) != expected:
        raise ValueError(f"data {dataset.name} has images {tuple(dataset.images.shape[1:])}, the network expects {expected}")
    if start.label_dim and not 0 < dataset.label_dim <= start.label_dim:
        raise ValueError(f"data {dataset.name} has {dataset.label_dim or 'no'} classes, the network expects {start.label_dim}")
    fabric = fabric or Fabric(accelerator="cpu", devices=1)
    state = state or init_state(config, start, backbones)
    fabric.to_device(state.ema)
    generator, optimizer = fabric.setup(state.generator, state.optimizer)
    engine = _Engine(fabric, config, generator, optimizer, start)
    if state.discriminator is not None and state.d_optimizer is not None:
        discriminator, d_optimizer = fabric.setup(state.discriminator.train(), state.d_optimizer)
        engine = dataclasses.replace(engine, discriminator=discriminator, d_optimizer=d_optimizer)
    if config.objective not in ("edm", "gdd"):
        fabric.to_device(start.eval())
        distance = partial(tap_distance, fabric.to_device(backbones[0].eval()))
        engine = dataclasses.replace(engine, distillation=_distillation(config, generator, start, distance, fabric.device))

    return _loop(engine, state, dataset)


def _distillation(config: TrainConfig, student: Callable[..., Tensor], teacher: Denoiser,
                  distance: Callable[[Tensor, Tensor], Tensor], device: torch.device) -> Callable[[Batch], Tensor]:  # fmt: skip
    steps, ladder = config.cd_steps, generator_ladder(config.cd_steps).flip(0).to(device, torch.float32)  # ascending sigma(0..N)

    def loss(batch: Batch) -> Tensor:
        common = (student, teacher, distance, batch.real, batch.noise)
        if config.objective == "pd":
            return losses.progressive_loss(*common, batch.uniform, steps, batch.labels)
        if config.objective == "ctm":
            return losses.trajectory_loss(*common, batch.uniform, steps, batch.labels)
        return losses.consistency_loss(*common, batch.index, ladder, batch.labels)

    return loss


def _loop(engine: _Engine, state: TrainState, dataset: Images) -> Iterator[TrainState]:
    config = engine.config
    while state.images_seen < config.total_images:
        torch.manual_seed(_step_seed(config, state.images_seen))  # dropout draws from the global stream
        batch = draw_batch(config, dataset, state.images_seen, engine.teacher.label_dim, engine.fabric.device)
        rate = _lr_rate(config, state.images_seen)
        state.metrics = {}
        fake = generator_step(engine, batch, rate, state.metrics)
        if fake is not None:
            with_r1 = (state.images_seen // config.batch_size) % config.r1_interval == 0
            discriminator_step(engine, batch, fake, rate, with_r1, state.metrics)
        state.images_seen += config.batch_size
        update_ema(state)
        yield state


def generator_step(engine: _Engine, batch: Batch, rate: float, metrics: dict[str, float]) -> Tensor | None:
    """One update of the network in training; returns the fakes (B,C,H,W) the adversarial loss saw, if any."""
    config, fake, total = engine.config, None, torch.zeros((), device=engine.fabric.device)
    if config.objective == "edm":
        sigma_data = engine.teacher.sigma_data
        loss = losses.edm_loss(engine.generator, batch.real, batch.sigma, batch.noise, batch.labels, sigma_data=sigma_data)
        total = total + _note(metrics, "loss_edm", loss).mean()
    if engine.discriminator is not None:
        trained = engine.d_optimizer.param_groups[0]["params"]
        _require_grad(trained, False)
        fake = parse_sampler(config.sampler)(engine.generator, batch.latents, labels=batch.labels)
        loss = _note(metrics, "loss_g", losses.generator_loss(engine.discriminator(fake, batch.labels), config.gan_loss))
        total = total + (loss.mean() if config.reduction == "mean" else loss.sum())
        _require_grad(trained, True)
    if engine.distillation is not None:
        weight = config.cd_weight if config.objective == "gdd+cd" else 1.0
        name = "loss_cd" if config.objective == "gdd+cd" else f"loss_{config.objective}"
        total = total + weight * _note(metrics, name, engine.distillation(batch)).mean()
    _descend(engine, engine.optimizer, total, config.lr * rate)
    return None if fake is None else fake.detach()


def discriminator_step(
    engine: _Engine, batch: Batch, fake: Tensor, rate: float, with_r1: bool, metrics: dict[str, float]
) -> None:
    """One update of the discriminator's heads on the step's fakes, drawn again after the generator's update by default."""
    config = engine.config
    if not config.reuse_fakes:
        with torch.no_grad():
            fake = parse_sampler(config.sampler)(engine.generator, batch.latents, labels=batch.labels)
    real = batch.real.requires_grad_(with_r1)
    fake_logits, real_logits = engine.discriminator(fake, batch.labels), engine.discriminator(real, batch.labels)
    loss = _note(metrics, "loss_d", losses.discriminator_loss(fake_logits, real_logits, config.gan_loss))
    total = loss.mean() if config.reduction == "mean" else loss.sum()
    if with_r1:
        penalty = _note(metrics, "r1", losses.r1_penalty(real_logits, real))
        total = total + config.r1_gamma / 2 * config.r1_interval * penalty.mean()
    lr = config.d_lr * config.r1_interval / (config.r1_interval + 1)
    _descend(engine, engine.d_optimizer, total, lr * rate)
    metrics["sign_real"] = float(torch.cat([x.detach().mean(1) for x in real_logits]).sign().mean())
    metrics["sign_fake"] = float(torch.cat([x.detach().mean(1) for x in fake_logits]).sign().mean())


def _note(metrics: dict[str, float], name: str, loss: Tensor) -> Tensor:
    metrics[name] = float(loss.detach().mean())
    if not math.isfinite(metrics[name]):
        raise FloatingPointError(f"{name} is {metrics[name]}")
    return loss


def _descend(engine: _Engine, optimizer: Any, loss: Tensor, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad()
    engine.fabric.backward(loss)
    optimizer.step()


def _require_grad(parameters: list[nn.Parameter], on: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(on)


def _lr_rate(config: TrainConfig, images_seen: int) -> float:
    rise = (images_seen + config.batch_size) / max(config.lr_warmup_images, 1)
    fall = (config.total_images - images_seen) / max(config.lr_decay_images, 1)
    return min(rise, fall, 1.0)


def _step_seed(config: TrainConfig, images_seen: int) -> int:
    return config.seed * 1_000_000_007 + images_seen


def draw_batch(config: TrainConfig, dataset: Images, images_seen: int, label_dim: int, device: torch.device) -> Batch:
    """The step's images and noise, a function of (seed, images seen) only."""
    stream = torch.Generator().manual_seed(_step_seed(config, images_seen))
    picked = batch_indices(len(dataset), config.batch_size, images_seen // config.batch_size, config.seed)
    real = to_float(dataset.images[picked])
    labels = dataset.labels[picked].to(device) if label_dim and dataset.labels is not None else None
    latents, noise = torch.randn(2, *real.shape, generator=stream)
    sigma = losses.draw_sigma(len(real), stream)
    index = torch.randint(2, config.cd_steps + 1, (len(real),), generator=stream)
    uniform = torch.rand(3, len(real), generator=stream)  # drawn last: the streams of older runs stay what they were
    drawn = (t.to(device) for t in (latents, noise, sigma, index, uniform))
    return Batch(real.to(device), labels, *drawn)


@torch.no_grad()
def update_ema(state: TrainState) -> None:
    """EDM's average: beta = 0.5^(batch / min(half-life, rampup * images seen))."""
    config = state.config
    halflife = min(config.ema_halflife_images, config.ema_rampup * state.images_seen)
    beta = 0.5 ** (config.batch_size / max(halflife, 1e-8))
    torch._foreach_lerp_(list(state.ema.parameters()), list(state.generator.parameters()), 1 - beta)
    for average, buffer in zip(state.ema.buffers(), state.generator.buffers(), strict=True):
        average.copy_(buffer)
