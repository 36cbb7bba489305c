"""The GDD step as a textbook has it, in the official order and precision, against the product's:
`python -m benchmarks.textbook`. Random weights and pictures, since speed asks for no others.

Official order: Adam for the generator; fakes anew from other latents, their features, and those of
the reals, for the discriminator; every sixteenth time a third pass of the reals, differentiated
twice through the backbone, for R1. Each trick of the product's can be given to it alone.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.clock import FULL, as_command, operations
from benchmarks.row import Row
from gdd import losses
from gdd.backbones import Backbone, TimmBackbone
from gdd.config import TrainConfig
from gdd.data.images import Images
from gdd.denoiser import Denoiser
from gdd.profiles import profile
from gdd.sampling import parse_sampler
from gdd.training import trainer
from gdd.training.batch import Batch
from gdd.training.start import new_backbone, new_timm_backbone
from gdd.training.trainer import TrainState, gan_weight, init_state, models_of

# images: the desk's own, and an eighth of the other's
BATCH = {"desk": 128, "cifar10-16": 16} if FULL else {"desk": 8}
REPEATS = 3 if FULL else 1
SEED = 0  # of random weights: those of a network and of its plain twin


@dataclass(frozen=True)
class Tricks:
    """What of the product's step the textbook's takes over."""

    reuse_fakes: bool = False  # another loss of the discriminator, of the same expectation
    folded: bool = False  # BatchNorms inside convolutions, channels last: the product's backbones
    forward_mode: bool = False  # R1 without a second backward pass through the backbone


class PlainBackbone(Backbone):
    """timm's network as it comes, BatchNorms apart and channels first, with the taps of the
    product's of the same weights."""

    network: Any
    mean: Tensor
    std: Tensor

    def __init__(self, like: TimmBackbone, weights: str = ""):
        super().__init__()
        self.name, self.image_size, self.taps = like.name, like.image_size, like.taps
        self.tap_channels, self.map_sizes = like.tap_channels, like.map_sizes
        name = like.name.removeprefix("random:")
        self.network = timm.create_model(name, pretrained=False, checkpoint_path=weights).eval()
        self.network.prune_intermediate_layers(self.taps, prune_norm=True, prune_head=True)
        for key in ("mean", "std"):
            self.register_buffer(key, getattr(like, key), persistent=False)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = ((x + 1) / 2 - self.mean) / self.std
        x = F.interpolate(x, size=(self.image_size, self.image_size), mode="bilinear")
        return self.network.forward_intermediates(x, indices=self.taps, intermediates_only=True)


class Textbook:
    """A state's networks, copied, and their training; `backbones` in place of its own."""
    def __init__(self, state: TrainState, backbones: Sequence[Backbone], tricks: Tricks = Tricks()):
        assert state.discriminator is not None
        assert state.d_optimizer is not None
        self.config, self.tricks = state.config, tricks
        self.generator, self.ema = state.generator.copy().train(), state.ema.copy()
        self.generator.precision = state.generator.precision
        self.discriminator = copy.deepcopy(state.discriminator)
        if not tricks.folded:
            self.discriminator.backbones = nn.ModuleList(backbones).requires_grad_(False)
        self.heads = [p for p in self.discriminator.parameters() if p.requires_grad]
        trained = [p for p in self.generator.parameters() if p.requires_grad]
        self.optimizer = _adam_like(state.optimizer, trained)
        self.d_optimizer = _adam_like(state.d_optimizer, self.heads)
        self.sample = parse_sampler(self.config.sampler)
        self.images_seen = state.images_seen

    def step(self, batch: Batch) -> dict[str, float]:
        """The generator's update, the discriminator's, the average's; the losses."""
        loss_g, fakes = self._generator_step(batch)
        found = {"loss_g": loss_g, "loss_d": self._discriminator_step(batch, fakes)}
        self._update_ema()
        self.images_seen += self.config.batch_size
        return found

    def _generator_step(self, batch: Batch) -> tuple[float, list[list[Tensor]]]:
        self.optimizer.zero_grad()
        self._train_heads(False)
        fakes = self.discriminator.features(self._fakes(batch.latents, batch.labels))
        loss = self._loss(self.discriminator.logits(fakes, batch.labels), -1)
        loss.backward()
        self._train_heads(True)
        _apply(self.optimizer)
        return float(loss.detach()), [[tap.detach() for tap in taps] for taps in fakes]

    def _discriminator_step(self, batch: Batch, fakes: list[list[Tensor]]) -> float:
        self.d_optimizer.zero_grad()
        if not self.tricks.reuse_fakes:
            with torch.no_grad():
                fake = self._fakes(batch.d_latents, batch.labels)
            fakes = self.discriminator.features(fake)
        on_fakes = self._loss(self.discriminator.logits(fakes, batch.labels), 1)
        on_fakes.backward()
        on_reals = self._loss(self.discriminator(batch.real, batch.labels), -1)
        on_reals.backward()
        _apply(self.d_optimizer)
        return float((on_fakes + on_reals).detach())

    def r1_step(self, batch: Batch) -> float:
        """The discriminator's update by R1 alone; the mean penalty."""
        self.d_optimizer.zero_grad()
        D = self.discriminator
        if self.tricks.forward_mode:
            penalty = losses.r1_penalty(D.features, lambda taps: D.logits(taps, batch.labels),
                                        batch.real)
        else:
            real = batch.real.detach().requires_grad_()
            total = torch.stack([logits.sum() for logits in D(real, batch.labels)]).sum()
            (gradient, ) = torch.autograd.grad(total, real, create_graph=True)
            penalty = gradient.square().sum(dim=(1, 2, 3))  # (B,)
        (self.config.r1_interval * self.config.r1_gamma / 2 * penalty.mean()).backward()
        _apply(self.d_optimizer)
        return float(penalty.detach().mean())

    def _fakes(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        return self.sample(self.generator, latents, labels=labels)

    def _loss(self, logits: Sequence[Tensor], sign: int) -> Tensor:
        """softplus(sign l), mean over an image's logits, summed over backbones; over images mean or
        sum."""
        per_image = sum(F.softplus(sign * x).mean(dim=1) for x in logits)
        return gan_weight(self.config) * torch.as_tensor(per_image).mean()

    def _train_heads(self, on: bool) -> None:
        for parameter in self.heads:
            parameter.requires_grad_(on)

    @torch.no_grad()
    def _update_ema(self) -> None:
        config = self.config
        halflife = min(config.ema_halflife_images, config.ema_rampup * self.images_seen)
        beta = 0.5**(config.batch_size / max(halflife, 1e-8))
        pairs = zip(self.ema.parameters(), self.generator.parameters(), strict=True)
        for average, current in pairs:
            average.copy_(current.lerp(average, beta))


def _adam_like(other: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> torch.optim.Adam:
    options = {key: other.defaults[key] for key in ("lr", "betas", "eps")}
    return torch.optim.Adam(parameters, **options)


def _apply(optimizer: torch.optim.Optimizer) -> None:
    """As the official code: what is not finite in a gradient is replaced, one tensor at a time."""
    for parameter in optimizer.param_groups[0]["params"]:
        if parameter.grad is not None:
            torch.nan_to_num(parameter.grad, nan=0, posinf=1e5, neginf=-1e5, out=parameter.grad)
    optimizer.step()


@dataclass(frozen=True)
class Bench:
    """A profile's GDD at the start, with random weights and pictures."""

    config: TrainConfig
    teacher: Denoiser
    backbones: list[Backbone]
    plain: list[Backbone]  # of the same weights
    images: Images

    def state(self, **change: Any) -> TrainState:
        return init_state(replace(self.config, **change), self.teacher, self.backbones)


def bench(name: str, run: str = "gdd", **change: Any) -> Bench:
    """Of a profile's run, whose backbones get random weights."""
    found = profile(name)
    config = replace(found.config(run), **change)
    torch.manual_seed(SEED)
    teacher = Denoiser.from_config(found.network("teacher")).eval()
    for parameter in teacher.parameters():  # blocks that end in zeros would hide behind them
        parameter.data += 0.02 * torch.randn_like(parameter)
    backbones, plain = zip(*(_twins(name, found, config) for name in config.backbones), strict=True)
    pixels = torch.randint(256, (4 * config.batch_size, *found.shape), dtype=torch.uint8)
    return Bench(config, teacher, list(backbones), list(plain), Images("random", pixels))


def _twins(name: str, found, config: TrainConfig) -> tuple[Backbone, Backbone]:
    torch.manual_seed(SEED)
    if name in found.classifiers:
        own = new_backbone(found, name).eval().requires_grad_(False)
        return own, copy.deepcopy(own)
    folded = new_timm_backbone(name, config)
    torch.manual_seed(SEED)
    return folded, PlainBackbone(folded)


def ours(state: TrainState, models: trainer.Models) -> tuple[Callable, Callable]:
    """The product's step of a batch, and its step by R1, as a command runs them."""
    def step(batch: Batch) -> dict[str, float]:
        fakes = trainer.generator_step(state, models, batch)
        trainer.discriminator_step(state, models, batch, fakes)
        trainer.update_ema(state)
        state.images_seen += state.config.batch_size
        return state.metrics

    def r1_step(batch: Batch) -> float:
        trainer.r1_step(state, batch)
        return state.metrics["r1"]

    return as_command(step), as_command(r1_step)


def variants(made: Bench) -> dict[str, tuple[Callable, Callable]]:
    """What is timed, by name: two functions of a batch."""
    given = {
        "textbook": Tricks(),
        "fakes reused": Tricks(reuse_fakes=True),
        "BatchNorms folded, channels last": Tricks(folded=True),
        "R1 by forward mode": Tricks(forward_mode=True), }
    if not any(isinstance(backbone, TimmBackbone) for backbone in made.backbones):
        del given["BatchNorms folded, channels last"]  # has none that are folded
    books = {name: Textbook(made.state(), made.plain, tricks) for name, tricks in given.items()}
    found: dict[str, tuple[Callable, Callable]] = {
        name: (book.step, book.r1_step) for name, book in books.items()}
    for reuse in (False, True):
        state = made.state(reuse_fakes=reuse)
        name = "ours" if reuse else "ours, fakes drawn afresh"
        found[name] = ours(state, models_of(state, made.teacher, made.backbones, None))
    return found


def agreement(made: Bench, batch: Batch) -> float:
    """How far the losses and R1 of one step are apart, ours with fakes drawn afresh, relative to
    the textbook's."""
    state = made.state(reuse_fakes=False)
    book = Textbook(state, made.plain)
    theirs = book.step(batch) | {"r1": book.r1_step(batch)}
    step, r1_step = ours(state, models_of(state, made.teacher, made.backbones, None))
    found = dict(step(batch)) | {"r1": r1_step(batch)}
    return max(abs(found[key] / value - 1) for key, value in theirs.items())


def seconds(made: Bench, batch: Batch, repeats: int = REPEATS) -> dict[str, float]:
    """CPU seconds of a batch by each variant, R1 at its share, all in turn; medians."""
    timed = variants(made)
    spent: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in timed}
    for repeat in range(repeats + 1):  # the first warms up
        for name, pair in timed.items():
            for function, times in zip(pair, spent[name], strict=True):
                start = time.process_time()
                function(batch)
                if repeat:
                    times.append(time.process_time() - start)
    share = 1 / made.config.r1_interval
    return {name: median(step) + share * median(r1) for name, (step, r1) in spent.items()}


def operations_left_out(made: Bench, batch: Batch) -> float:
    """Share of the floating-point operations of the textbook's step, without R1, that ours does
    not do."""
    timed = variants(made)
    counted = [operations(partial(timed[name][0], batch)) for name in ("textbook", "ours")]
    return 1 - counted[1] / counted[0]


def rows(repeats: int = REPEATS) -> Iterator[Row]:
    """Images/s of every variant against the textbook's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # CPU time is that of the work only where no thread waits for another
    try:
        for name, size in BATCH.items():
            made = bench(name, batch_size=size)
            batch = trainer.draw(made.state(), made.images)
            error, spent = agreement(made, batch), seconds(made, batch, repeats)
            reason = f"{operations_left_out(made, batch):.0%} of the operations are left out, " \
                     "R1 is a step in 16, and what remains are the same convolutions in float32"
            theirs = size / spent.pop("textbook")
            for variant, time_taken in spent.items():
                own = variant.startswith("ours")
                yield Row(work=f"GDD step, {name}, batch {size}: {variant}{own * ', as a command'}",
                          against="textbook step, official order", ours=size / time_taken,
                          theirs=theirs, unit="images/s", target=3 if variant == "ours" else None,
                          error=error if own else None, reason=reason)
    finally:
        torch.set_num_threads(threads)


def main() -> None:
    for row in rows():
        print(
            f"{row.work}: {row.ours:.1f} images/s, textbook {row.theirs:.1f}: {row.ratio:.2f}x"
            f"{'' if row.error is None else f', error {row.error:.1e}'}", flush=True)


if __name__ == "__main__":
    main()
