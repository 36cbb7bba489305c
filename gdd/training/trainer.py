"""The trainer: `train(...)` is a generator that yields its state after every step; the caller logs,
measures and saves.

One signature for the EDM teacher, GDD, GDD-I, CD, CD-I, PD, CTM and GDD + CD, with one- to K-step
generators. Every random number of a step comes from streams seeded by (seed, images seen), drawn on
the CPU for the whole batch: a resumed run needs no random state, only its images count, and a step
is the same on any number of processes. A teacher's dropout alone draws from torch's global stream,
reseeded at every step, on its device and as its images come.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from gdd import losses
from gdd.backbones import Backbone, tap_distance
from gdd.config import OnNan, TrainConfig
from gdd.data.images import Images
from gdd.denoiser import GENERATOR_EPSILON, PRECISIONS, Denoiser
from gdd.discriminator import ProjectedDiscriminator
from gdd.freezing import freeze
from gdd.perceptual import Distance
from gdd.sampling import Denoise, parse_sampler
from gdd.training.batch import Batch, draw_batch
from gdd.training.engine import Engine, StepMetrics
from gdd.training.sharding import local

Term = tuple[float, Tensor]  # weight, loss (B,)
Features = list[list[Tensor]]  # of images: each backbone's taps


@dataclass
class TrainState:
    """What a checkpoint holds, the engine it is trained on, and the last step's losses."""

    config: TrainConfig
    engine: Engine
    generator: Denoiser
    ema: Denoiser
    optimizer: torch.optim.Optimizer
    discriminator: ProjectedDiscriminator | None = None
    d_optimizer: torch.optim.Optimizer | None = None
    images_seen: int = 0
    skipped: int = 0  # steps left out because a loss or gradient was not finite
    rollbacks: int = 0  # returns to the last saved state for that reason, each to other noise
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """Batches finished."""
        return self.images_seen // self.config.batch_size


@dataclass(frozen=True)
class Models:
    """What a step calls."""

    generator: Denoise  # the state's, perhaps compiled
    sample: Callable[..., Tensor]  # of (generator, latents, labels=)
    distillation: losses.Distillation | None  # with the teacher


def init_state(config: TrainConfig, start: Denoiser, backbones: Sequence[Backbone] = (),
               engine: Engine | None = None) -> TrainState:
    """The state before the first step. `start`, which is left as it is, is an untrained network
    (edm) or the teacher (all else), whose weights a student takes and whose dropout it does not."""
    if config.adversarial and not backbones:
        raise ValueError(f"objective {config.objective} needs at least one backbone; got none")
    engine = engine or Engine(config)
    if config.objective == "edm":
        generator = start.copy()
    else:
        generator = start.copy(epsilon=GENERATOR_EPSILON, dropout=0.0)
    generator.train().precision = PRECISIONS[config.precision]
    if freeze(generator, config.freeze).share == 1:
        raise ValueError(
            f"freeze must leave something to train; {config.freeze!r} freezes every weight")
    ema = generator.copy().eval().requires_grad_(False)
    generator, ema = (engine.shard(engine.to_device(network)) for network in (generator, ema))
    trained = [p for p in generator.parameters() if p.requires_grad]
    state = TrainState(config, engine, generator, ema, _adam(trained, config.lr, config.betas))
    if config.adversarial:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            widths = dict(zip(config.d_head_sizes, config.d_head_widths, strict=True))
            discriminator = ProjectedDiscriminator(backbones, channels=config.d_channels,
                                                   head_widths=widths, label_dim=start.label_dim,
                                                   norm_images=config.d_batch_norm_images)
        if start.dtype != torch.float32:  # tests compute in float64
            discriminator.to(start.dtype)
        state.discriminator = engine.to_device(discriminator.train())
        # R1 adds a step per interval, so lr and betas shrink alike (Karras et al. 2020, appendix B)
        lazy = _lazy(config)
        heads = [p for p in discriminator.parameters() if p.requires_grad]
        betas = config.betas[0]**lazy, config.betas[1]**lazy
        state.d_optimizer = _adam(heads, config.d_lr * lazy, betas)
    return state


def _adam(parameters: list[nn.Parameter], lr: float, betas: tuple[float, ...]) -> torch.optim.Adam:
    # torch refuses betas that mix int and float
    return torch.optim.Adam(parameters, lr=lr, betas=(float(betas[0]), float(betas[1])), eps=1e-8)


def _lazy(config: TrainConfig) -> float:
    return config.r1_interval / (config.r1_interval + 1)


def train(config: TrainConfig, dataset: Images, start: Denoiser, backbones: Sequence[Backbone] = (),
          *, distance: Distance | None = None, state: TrainState | None = None,
          on_nan: OnNan = "stop", max_skips: int = 100) -> Iterator[TrainState]:
    """Train until `config.total_images`, yielding the one `TrainState` after every step.

    `state` brings an engine of its own, or a loaded run. `distance` of two image batches, (N,), is
    what cd, pd and ctm compare by, by default the first backbone's. Raises ValueError at once if
    something does not fit, and while it runs FloatingPointError at a loss or gradient that is not
    finite, before it changes a weight; with `on_nan` "skip", the rest of that step is left out, at
    most `max_skips` times in a run.
    """
    expected = (start.channels, start.resolution, start.resolution)
    if (found := tuple(dataset.images.shape[1:])) != expected:
        raise ValueError(f"data {dataset.name} has images {found}, the network expects {expected}")
    if start.label_dim and not 0 < dataset.label_dim <= start.label_dim:
        raise ValueError(f"data {dataset.name} has {dataset.label_dim or 'no'} classes, "
                         f"the network expects {start.label_dim}")
    state = state or init_state(config, start, backbones)
    models = models_of(state, start, backbones, distance)
    return _loop(state, models, dataset, on_nan, max_skips)


def models_of(state: TrainState, teacher: Denoiser, backbones: Sequence[Backbone],
              distance: Distance | None) -> Models:
    """What `take_step` calls, on its device."""
    config, engine, distillation = state.config, state.engine, None
    generator = engine.compiled(state.generator)
    if config.distillation:
        if distance is None and config.distance == "backbone" and backbones:
            distance = partial(tap_distance, engine.to_device(backbones[0].eval()))
        if distance is None:
            raise ValueError(
                f"objective {config.objective} needs distance {config.distance}; none was handed in"
            )
        distance = engine.to_device(distance) if isinstance(distance, nn.Module) else distance
        teacher = engine.to_device(teacher.eval())
        distillation = losses.Distillation(generator, teacher, distance, config.cd_steps)
    return Models(generator, parse_sampler(config.sampler), distillation)


def _loop(state: TrainState, models: Models, dataset: Images, on_nan: OnNan,
          max_skips: int) -> Iterator[TrainState]:
    config = state.config
    while state.images_seen < config.total_images:
        torch.manual_seed(_step_seed(state) + state.engine.rank)  # dropout uses the global stream
        batch = draw(state, dataset)
        state.metrics = {}
        try:
            take_step(state, models, batch)
        except FloatingPointError as error:
            if on_nan != "skip":
                raise
            if state.skipped >= max_skips:
                skipped = f"{state.skipped} steps had been skipped before"
                raise FloatingPointError(f"{error}, and {skipped}") from None
            state.skipped += 1
        update_ema(state)
        state.images_seen += config.batch_size
        yield state


def take_step(state: TrainState, models: Models, batch: Batch) -> None:
    """The generator's update, the discriminator's, and on every so-manieth batch but the first one
    an update of the discriminator by R1 alone."""
    fakes = generator_step(state, models, batch)
    if state.discriminator is not None:
        discriminator_step(state, models, batch, fakes)
        if state.step > 0 and state.step % state.config.r1_interval == 0:
            r1_step(state, batch)


def generator_step(state: TrainState, models: Models, batch: Batch) -> list[Features]:
    """One update of the network in training: the sum of its objective's terms. Returns the features
    of each micro-batch's fakes, if the discriminator's step will use them."""
    config, engine = state.config, state.engine
    fakes: list[Features] = []
    metrics = StepMetrics(config.batch_size)
    engine.zero_grad(state.optimizer, config.lr * _lr_rate(state))
    _require_discriminator_grad(state, False)
    for rows in engine.micro_batches(len(batch.real)):
        part, features = batch.part(rows), None
        if state.discriminator is not None:
            state.discriminator.iterate(rows.start == 0)
            fake = models.sample(models.generator, part.latents, labels=part.labels)
            features = state.discriminator.features(fake)
            if config.reuse_fakes:
                fakes.append([[tap.detach() for tap in taps] for taps in features])
        loss = torch.zeros((), device=engine.device)
        for name in config.terms:
            weight, per_image = TERMS[name](state, models, part, features)
            label = "loss_g" if name == "gdd" else f"loss_{name}"
            loss = loss + weight * metrics.mean(label, per_image)
        engine.backward(loss)
    _require_discriminator_grad(state, True)
    state.metrics |= engine.step(state.optimizer, metrics)
    return fakes


def _require_discriminator_grad(state: TrainState, on: bool) -> None:
    for parameter in state.d_optimizer.param_groups[0]["params"] if state.d_optimizer else ():
        parameter.requires_grad_(on)


def _edm(state: TrainState, models: Models, part: Batch, fake: Features | None) -> Term:
    sigma_data = state.generator.sigma_data
    return 1.0, losses.edm_loss(models.generator, part.real, part.sigma, part.noise, part.labels,
                                sigma_data=sigma_data)


def _gan(state: TrainState, models: Models, part: Batch, fake: Features | None) -> Term:
    assert state.discriminator is not None
    assert fake is not None
    logits = state.discriminator.logits(fake, part.labels)
    return gan_weight(state.config), losses.generator_loss(logits, state.config.gan_loss)


def _distillation(loss: Callable[..., Tensor]) -> Callable[..., Term]:
    def term(state: TrainState, models: Models, part: Batch, fake: Features | None) -> Term:
        per_image = loss(models.distillation, part.real, part.noise, part.uniform.T, part.labels)
        return state.config.cd_weight if state.config.adversarial else 1.0, per_image

    return term


# the terms of an objective, by the names that it joins with +: weight and loss (B,)
TERMS: dict[str, Callable[..., Term]] = {
    "edm": _edm,
    "gdd": _gan,
    "cd": _distillation(losses.consistency_loss),
    "pd": _distillation(losses.progressive_loss),
    "ctm": _distillation(losses.trajectory_loss),
}  # yapf: disable


def gan_weight(config: TrainConfig) -> float:
    """What the mean adversarial loss of a batch is multiplied by: 1, or as in the official code the
    number b of images over which a process sums, while R1 and consistency losses are means."""
    if config.reduction == "mean":
        return 1.0
    return config.d_batch_norm_images or config.batch_size


def discriminator_step(state: TrainState, models: Models, batch: Batch,
                       fakes: Sequence[Features]) -> None:
    """One update of the discriminator's heads on the updated generator's fakes from other latents,
    or on those of the generator's step, and on reals."""
    config, engine, discriminator = state.config, state.engine, state.discriminator
    assert discriminator is not None
    assert state.d_optimizer is not None
    metrics, weight = StepMetrics(config.batch_size), gan_weight(config)
    engine.zero_grad(state.d_optimizer, config.d_lr * _lazy(config) * _lr_rate(state))
    for real in (False, True):
        for index, rows in enumerate(engine.micro_batches(len(batch.real))):
            part = batch.part(rows)
            discriminator.iterate(index == 0)
            if fakes and not real:
                features = fakes[index]
            else:
                features = discriminator.features(part.real if real else _fakes(models, part))
            logits = discriminator.logits(features, part.labels)
            per_image = losses.discriminator_loss(logits, real, config.gan_loss)
            engine.backward(weight * metrics.mean("loss_d", per_image))
            metrics.sign("sign_real" if real else "sign_fake", logits)
    state.metrics |= engine.step(state.d_optimizer, metrics)


@torch.no_grad()
def _fakes(models: Models, part: Batch) -> Tensor:
    return models.sample(models.generator, part.d_latents, labels=part.labels)


def r1_step(state: TrainState, batch: Batch) -> None:
    """One more update of the discriminator's heads, by R1 on the reals (docs/method.md, section
    3)."""
    config, engine, discriminator = state.config, state.engine, state.discriminator
    assert discriminator is not None
    assert state.d_optimizer is not None
    metrics = StepMetrics(config.batch_size)
    engine.zero_grad(state.d_optimizer, config.d_lr * _lazy(config) * _lr_rate(state))
    for rows in engine.micro_batches(len(batch.real)):
        part = batch.part(rows)
        discriminator.iterate(rows.start == 0)
        logits = partial(discriminator.logits, labels=part.labels)
        penalty = losses.r1_penalty(discriminator.features, logits, part.real)
        weight = config.r1_interval * config.r1_gamma / 2
        engine.backward(weight * metrics.mean("r1", penalty))
    state.metrics |= engine.step(state.d_optimizer, metrics)


def _lr_rate(state: TrainState) -> float:
    config = state.config
    rise = (state.images_seen + config.batch_size) / max(config.lr_warmup_images, 1)
    fall = (config.total_images - state.images_seen) / max(config.lr_decay_images, 1)
    return min(rise, fall, 1.0)


def _step_seed(state: TrainState) -> int:
    return state.config.seed * 1_000_000_007 + state.images_seen + state.rollbacks * 10**15


def draw(state: TrainState, dataset: Images) -> Batch:
    network, engine = state.generator, state.engine
    return draw_batch(dataset, state.config, state.step, _step_seed(state), share=engine.share(),
                      labelled=bool(network.label_dim), device=engine.device, dtype=network.dtype)


@torch.no_grad()
def update_ema(state: TrainState) -> None:
    """EDM's average: beta = 0.5^(batch / min(half-life, rampup * images before this batch)); a
    rampup of 0 means none."""
    config = state.config
    longest = config.ema_rampup * state.images_seen if config.ema_rampup else float("inf")
    halflife = min(config.ema_halflife_images, longest)
    beta = 0.5**(config.batch_size / max(halflife, 1e-8))
    average, current = ([local(p) for p in network.parameters()]
                        for network in (state.ema, state.generator))
    torch._foreach_lerp_(average, current, 1 - beta)
    for mean, buffer in zip(state.ema.buffers(), state.generator.buffers(), strict=True):
        mean.copy_(buffer)
