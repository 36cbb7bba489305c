"""The trainer: `train(...)` is a generator that yields its state after every step; the caller logs, measures and saves.

One signature for the EDM teacher, GDD, GDD-I, CD, CD-I, PD, CTM and GDD + CD, with one- to K-step generators. Every random number
of a step comes from streams seeded by (seed, images seen), drawn on the CPU for the whole batch: a resumed run needs no random
state, only its images count, and a step is the same on any number of processes. Torch's global stream is reseeded at every step.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gdd import losses
from gdd.backbones import Backbone, tap_distance
from gdd.config import OnNan, TrainConfig
from gdd.data import Images, batch_indices, to_float
from gdd.denoiser import GENERATOR_EPSILON, Denoiser
from gdd.discriminator import ProjectedDiscriminator
from gdd.engine import Engine
from gdd.freezing import freeze
from gdd.sampling import generator_ladder, parse_sampler
from gdd.sharding import local

Distance = Callable[[Tensor, Tensor], Tensor]


@dataclass
class TrainState:
    """Exactly what a checkpoint holds, and the last step's losses."""

    config: TrainConfig
    generator: Denoiser
    ema: Denoiser
    optimizer: torch.optim.Optimizer
    discriminator: ProjectedDiscriminator | None = None
    d_optimizer: torch.optim.Optimizer | None = None
    scaler: Any = None  # torch's GradScaler, under fp16
    images_seen: int = 0
    skipped: int = 0  # steps left out because a loss or gradient was not finite
    rollbacks: int = 0  # returns to the last saved state for that reason; each takes other noise from there on
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """The random draws of one step, of this process's images; leading dimension B."""

    real: Tensor  # (B,C,H,W) in [-1,1]
    labels: Tensor | None  # (B,) class indices
    latents: Tensor  # (B,C,H,W) the generator's unit noise
    noise: Tensor  # (B,C,H,W) added to real images (edm, cd)
    sigma: Tensor  # (B,) edm's noise levels
    index: Tensor  # (B,) cd's ladder positions, 2..N
    uniform: Tensor  # (B,3) in [0,1), the positions of pd and ctm

    def part(self, rows: slice) -> "Batch":
        return Batch(**{name: None if tensor is None else tensor[rows] for name, tensor in vars(self).items()})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Parts:
    """What a step works with."""

    engine: Engine
    state: TrainState
    generator: Callable[..., Tensor]  # the state's, perhaps compiled
    teacher: Denoiser
    distance: Distance | None
    sample: Callable[..., Tensor]
    ladder: Tensor  # ascending sigma(0..N)


def init_state(
    config: TrainConfig, start: Denoiser, backbones: Sequence[Backbone] = (), engine: Engine | None = None
) -> TrainState:
    """The state before the first step. `start` is an untrained network (edm) or the teacher (all else); it is left as it is."""
    if "gdd" in config.objective and not backbones:
        raise ValueError(f"objective {config.objective} needs at least one backbone; got none")
    engine = engine or Engine(config)
    generator = start.copy(epsilon=0.0 if config.objective == "edm" else GENERATOR_EPSILON).train()
    if freeze(generator, config.freeze).share == 1:
        raise ValueError(f"freeze must leave something to train; {config.freeze!r} freezes every weight")
    ema = generator.copy().eval().requires_grad_(False)
    generator, ema = (engine.shard(engine.place(network)) for network in (generator, ema))
    trained = [p for p in generator.parameters() if p.requires_grad]
    state = TrainState(config, generator, ema, _adam(trained, config.lr, config.betas), scaler=engine.scaler)
    if "gdd" in config.objective:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            discriminator = ProjectedDiscriminator(
                backbones,
                channels=config.d_channels,
                head_widths=dict(zip(config.d_head_sizes, config.d_head_widths, strict=True)),
                label_dim=start.label_dim,
                norm_images=config.d_batch_norm_images,
            )
        state.discriminator = engine.place(discriminator.train())
        # lazy R1 runs once per interval, so lr and betas shrink alike (Karras et al. 2020, appendix B)
        lazy = config.r1_interval / (config.r1_interval + 1)
        heads = [p for p in discriminator.parameters() if p.requires_grad]
        state.d_optimizer = _adam(heads, config.d_lr * lazy, (config.betas[0] ** lazy, config.betas[1] ** lazy))
    return state


def _adam(parameters: list[nn.Parameter], lr: float, betas: tuple[float, float]) -> torch.optim.Adam:
    # torch refuses betas that mix int and float
    return torch.optim.Adam(parameters, lr=lr, betas=(float(betas[0]), float(betas[1])), eps=1e-8)


def train(config: TrainConfig, dataset: Images, start: Denoiser, backbones: Sequence[Backbone] = (), *,
          distance: Distance | None = None, engine: Engine | None = None, state: TrainState | None = None,
          on_nan: OnNan = "stop", max_skips: int = 100) -> Iterator[TrainState]:  # fmt: skip
    """Train until `config.total_images`, yielding the one `TrainState` after every step.

    `state` resumes a loaded one. `distance` of two image batches, (N,), is what cd, pd and ctm compare by, by default the first
    backbone's. Raises ValueError at once if something does not fit, and while it runs FloatingPointError at a loss or gradient
    that is not finite, before it changes a weight; with `on_nan` "skip", the rest of that step is left out, at most `max_skips`
    times in a run.
    """
    engine = engine or Engine(config)
    expected = (start.channels, start.resolution, start.resolution)
    if tuple(dataset.images.shape[1:]) != expected:
        raise ValueError(f"data {dataset.name} has images {tuple(dataset.images.shape[1:])}, the network expects {expected}")
    if start.label_dim and not 0 < dataset.label_dim <= start.label_dim:
        raise ValueError(f"data {dataset.name} has {dataset.label_dim or 'no'} classes, the network expects {start.label_dim}")
    return _loop(gather(config, start, backbones, distance, engine, state), dataset, on_nan, max_skips)


def gather(config: TrainConfig, start: Denoiser, backbones: Sequence[Backbone], distance: Distance | None, engine: Engine,
           state: TrainState | None = None) -> Parts:  # fmt: skip
    """All that `take_step` works with, on its device."""
    if config.objective not in ("edm", "gdd"):
        distance = engine.place(distance) if isinstance(distance, nn.Module) else distance
        distance = distance or _backbone_distance(config, backbones, engine)
        engine.place(start.eval())
    state = state or init_state(config, start, backbones, engine)
    ladder = generator_ladder(config.cd_steps).flip(0).to(engine.device, torch.float32)
    return Parts(engine, state, engine.callable(state.generator), start, distance, parse_sampler(config.sampler), ladder)


def _backbone_distance(config: TrainConfig, backbones: Sequence[Backbone], engine: Engine) -> Distance:
    if config.distance != "backbone" or not backbones:
        raise ValueError(f"objective {config.objective} needs distance {config.distance}; it was not handed in")
    return partial(tap_distance, engine.place(backbones[0].eval()))


def _loop(parts: Parts, dataset: Images, on_nan: OnNan, max_skips: int) -> Iterator[TrainState]:
    engine, state, config = parts.engine, parts.state, parts.state.config
    while state.images_seen < config.total_images:
        torch.manual_seed(_step_seed(state) + engine.rank)  # dropout draws from the global stream
        batch = draw_batch(state, dataset, parts.teacher.label_dim, engine)
        state.metrics = {}
        try:
            take_step(parts, batch)
        except FloatingPointError as error:
            if on_nan != "skip":
                raise
            if state.skipped >= max_skips:
                raise FloatingPointError(f"{error}, and {state.skipped} steps had been skipped before") from None
            state.skipped += 1
        state.images_seen += config.batch_size
        update_ema(state)
        yield state


def take_step(parts: Parts, batch: Batch) -> None:
    """The generator's update, then the discriminator's."""
    fakes = generator_step(parts, batch)
    if parts.state.discriminator is not None:
        discriminator_step(parts, batch, fakes)


def generator_step(parts: Parts, batch: Batch) -> list[Tensor]:
    """One update of the network in training; returns each micro-batch's fakes (B,C,H,W), if the discriminator will use them."""
    engine, state, config = parts.engine, parts.state, parts.state.config
    heads = state.d_optimizer.param_groups[0]["params"] if state.d_optimizer else []
    fakes, notes = [], _Notes(config)
    engine.begin(state.optimizer, config.lr * _lr_rate(state))
    _require_grad(heads, False)
    for rows in engine.micro_batches(len(batch.real)):
        part, loss = batch.part(rows), torch.zeros((), device=engine.device)
        with engine.autocast():
            if config.objective == "edm":
                per_image = losses.edm_loss(parts.generator, part.real, part.sigma, part.noise, part.labels,
                                            sigma_data=parts.teacher.sigma_data)  # fmt: skip
                loss = loss + notes.mean("loss_edm", per_image)
            if state.discriminator is not None:
                state.discriminator.iterate(rows.start == 0)
                fake = parts.sample(parts.generator, part.latents, labels=part.labels)
                per_image = losses.generator_loss(state.discriminator(fake, part.labels), config.gan_loss)
                loss = loss + notes.mean("loss_g", per_image, summed=config.reduction == "sum")
                if config.reuse_fakes:
                    fakes.append(fake.detach())
            if config.objective not in ("edm", "gdd"):
                weight = config.cd_weight if config.objective == "gdd+cd" else 1.0
                name = "loss_cd" if config.objective == "gdd+cd" else f"loss_{config.objective}"
                loss = loss + weight * notes.mean(name, distillation_loss(parts, part))
        engine.backward(loss)
    _require_grad(heads, True)
    state.metrics |= engine.descend(state.optimizer, notes)
    return fakes


def distillation_loss(parts: Parts, part: Batch) -> Tensor:
    """The loss (B,) between student and teacher of cd, pd or ctm."""
    assert parts.distance is not None
    common, config = (parts.generator, parts.teacher, parts.distance, part.real, part.noise), parts.state.config
    if config.objective == "pd":
        return losses.progressive_loss(*common, part.uniform.T, config.cd_steps, part.labels)
    if config.objective == "ctm":
        return losses.trajectory_loss(*common, part.uniform.T, config.cd_steps, part.labels)
    return losses.consistency_loss(*common, part.index, parts.ladder, part.labels)


def discriminator_step(parts: Parts, batch: Batch, fakes: Sequence[Tensor]) -> None:
    """One update of the discriminator's heads: all fakes, by default drawn again after the generator's update, then all reals."""
    engine, state, config = parts.engine, parts.state, parts.state.config
    discriminator, optimizer = state.discriminator, state.d_optimizer
    assert discriminator is not None
    assert optimizer is not None
    summed, notes = config.reduction == "sum", _Notes(config)
    with_r1 = (state.images_seen // config.batch_size) % config.r1_interval == 0
    engine.begin(optimizer, config.d_lr * config.r1_interval / (config.r1_interval + 1) * _lr_rate(state))
    pieces = [batch.part(rows) for rows in engine.micro_batches(len(batch.real))]
    of_fakes: Tensor | None = None
    for k, part in enumerate(pieces):
        with engine.autocast():
            if config.reuse_fakes:
                fake = fakes[k]
            else:
                with torch.no_grad():
                    fake = parts.sample(parts.generator, part.latents, labels=part.labels)
            discriminator.iterate(k == 0)
            logits = discriminator(fake, part.labels)
            loss = notes.mean("loss_d", losses.discriminator_loss(logits, False, config.gan_loss), summed=summed)
        notes.signs("sign_fake", logits)
        if len(pieces) == 1:  # one backward pass does for both
            of_fakes = loss
        else:
            engine.backward(loss)
    for k, part in enumerate(pieces):
        real = part.real.requires_grad_(with_r1)
        with engine.autocast(not (with_r1 and config.precision == "fp16")):  # unscaled, the penalty's gradients would vanish
            discriminator.iterate(k == 0)
            logits = discriminator(real, part.labels)
            loss = notes.mean("loss_d", losses.discriminator_loss(logits, True, config.gan_loss), summed=summed)
            if with_r1:
                loss = loss + config.r1_gamma / 2 * config.r1_interval * notes.mean("r1", losses.r1_penalty(logits, real))
        notes.signs("sign_real", logits)
        engine.backward(loss if of_fakes is None else loss + of_fakes)
    state.metrics |= engine.descend(optimizer, notes)


class _Notes(dict[str, Tensor]):
    """What a step reports, as means over the whole batch that micro-batches and processes add their part to."""

    def __init__(self, config: TrainConfig):
        super().__init__()
        self.batch_size = config.batch_size

    def mean(self, name: str, per_image: Tensor, *, summed: bool = False) -> Tensor:
        """This part (B,) of a batch's mean loss, or `summed`, of its sum; noted as mean."""
        total = per_image.to(torch.float32).sum()
        self.add(name, total / self.batch_size)
        return total if summed else total / self.batch_size

    def signs(self, name: str, logits: Sequence[Tensor]) -> None:
        """The mean sign of the images' mean logits over all backbones."""
        self.add(name, torch.stack([x.mean(dim=1).sign().sum() for x in logits]).float().sum() / (self.batch_size * len(logits)))

    def add(self, name: str, value: Tensor) -> None:
        self[name] = self.get(name, 0) + value.detach()


def _require_grad(parameters: Sequence[nn.Parameter], on: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(on)


def _lr_rate(state: TrainState) -> float:
    config = state.config
    rise = (state.images_seen + config.batch_size) / max(config.lr_warmup_images, 1)
    fall = (config.total_images - state.images_seen) / max(config.lr_decay_images, 1)
    return min(rise, fall, 1.0)


def _step_seed(state: TrainState) -> int:
    return state.config.seed * 1_000_000_007 + state.images_seen + state.rollbacks * 10**15


def draw_batch(state: TrainState, dataset: Images, label_dim: int, engine: Engine) -> Batch:
    """This process's share of the step's images and noise, a function of (seed, images seen) only."""
    config, share = state.config, engine.share()
    stream = torch.Generator().manual_seed(_step_seed(state))
    picked = batch_indices(len(dataset), config.batch_size, state.images_seen // config.batch_size, config.seed)
    latents, noise = torch.randn(2, len(picked), *dataset.images.shape[1:], generator=stream)
    sigma = losses.draw_sigma(len(picked), stream)
    index = torch.randint(2, config.cd_steps + 1, (len(picked),), generator=stream)
    uniform = torch.rand(3, len(picked), generator=stream).T  # drawn last: the streams of older runs stay what they were
    real = to_float(dataset.images[picked[share]])
    labels = dataset.labels[picked[share]].to(engine.device) if label_dim and dataset.labels is not None else None
    drawn = (tensor[share].to(engine.device) for tensor in (latents, noise, sigma, index, uniform))
    return Batch(real.to(engine.device), labels, *drawn)


@torch.no_grad()
def update_ema(state: TrainState) -> None:
    """EDM's average: beta = 0.5^(batch / min(half-life, rampup * images seen))."""
    config = state.config
    halflife = min(config.ema_halflife_images, config.ema_rampup * state.images_seen)
    beta = 0.5 ** (config.batch_size / max(halflife, 1e-8))
    average, current = ([local(p) for p in network.parameters()] for network in (state.ema, state.generator))
    torch._foreach_lerp_(average, current, 1 - beta)
    for mean, buffer in zip(state.ema.buffers(), state.generator.buffers(), strict=True):
        mean.copy_(buffer)
