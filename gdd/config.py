"""The config of a training run, apart from torch so that `--help` answers at once."""

import re
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

SAMPLER = re.compile(r"one-step|k-step:[1-9]\d*|two-step:\d*\.?\d+")

Objective = Literal["edm", "gdd", "cd", "gdd+cd", "pd", "ctm"]
LATER = ("gan_loss",)  # fields younger than the shipped runs: at their default they are left out of a run's identity


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run's weights, with the models it starts from. Counts are images, never steps."""

    objective: Objective = "gdd"
    """edm trains a teacher; gdd the GAN loss alone; cd consistency, pd progressive, ctm trajectory distillation; gdd+cd a sum."""
    data: str = "digits"
    """digits, a folder of images, a zip in EDM's layout, or CIFAR-10's python batches."""
    sampler: str = "one-step"
    """Generator: one-step, k-step:K or two-step:SIGMA; all calls share weights and are back-propagated together."""
    freeze: str = "none"
    """none, gdd-i, gdd-i+qkv, gdd-i+qkv+skip, norm-only, official-loss-rule, or comma-separated patterns of parameter names."""
    total_images: int = 5_000_000
    """Length of the run, in training images."""
    batch_size: int = 256
    """Images per step."""
    lr: float = 1e-4
    """Adam learning rate of the network in training."""
    lr_warmup_images: int = 0
    """Learning rates rise linearly over this many images."""
    lr_decay_images: int = 0
    """Learning rates fall linearly to zero over the last so many images."""
    betas: tuple[float, float] = (0.0, 0.99)
    """Adam betas of the network in training, and of the discriminator."""
    d_lr: float = 1e-4
    """Adam learning rate of the discriminator, before the lazy-R1 correction."""
    d_channels: tuple[int, int, int, int] = (64, 128, 256, 512)
    """Widths of the discriminator's fixed random mixing, fine to coarse."""
    d_head_sizes: tuple[int, ...] = (64, 32, 16, 8)
    """Map sizes at which the discriminator's heads are convolved; the last one ends the head."""
    d_head_widths: tuple[int, ...] = (64, 128, 256, 512)
    """Channels of the heads at those sizes."""
    r1_gamma: float = 1e-4
    """Weight of the R1 penalty; against the mean loss, or the sum, as `reduction` says."""
    r1_interval: int = 16
    """R1 is computed every so many steps and weighted by as many (lazy regularisation)."""
    reduction: Literal["mean", "sum"] = "mean"
    """Over the batch, of the adversarial losses; the official code sums them and averages R1."""
    reuse_fakes: bool = False
    """Train the discriminator on the generator step's fakes: saves one generator pass; else recomputed after the update."""
    cd_weight: float = 1.0
    """Weight of the consistency loss in gdd+cd."""
    cd_steps: int = 18
    """Intervals N of the ladder of cd, pd and ctm."""
    ema_halflife_images: int = 500_000
    """Half-life of the weight average."""
    ema_rampup: float = 0.05
    """The half-life never exceeds this share of the images seen."""
    seed: int = 42
    """Seeds weights, data order and noise."""
    gan_loss: Literal["non-saturating", "hinge"] = "non-saturating"
    """Adversarial losses of generator and discriminator."""

    def __post_init__(self):
        for name in ("total_images", "batch_size", "r1_interval", "cd_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        for name in ("lr", "d_lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0; got {getattr(self, name)}")
        for name in ("ema_halflife_images", "ema_rampup", "r1_gamma", "cd_weight", "lr_warmup_images", "lr_decay_images"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0; got {getattr(self, name)}")
        if not all(0 <= beta < 1 for beta in self.betas) or len(self.betas) != 2:
            raise ValueError(f"betas must be two numbers in [0, 1); got {self.betas}")
        if self.reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be mean or sum; got {self.reduction!r}")
        if self.gan_loss not in ("non-saturating", "hinge"):
            raise ValueError(f"gan_loss must be non-saturating or hinge; got {self.gan_loss!r}")
        if self.objective not in get_args(Objective):
            raise ValueError(f"objective must be one of {', '.join(get_args(Objective))}; got {self.objective!r}")
        if self.objective in ("pd", "ctm") and self.cd_steps < 2:
            raise ValueError(f"cd_steps must be at least 2 with objective {self.objective}; got {self.cd_steps}")
        if self.objective in ("cd", "gdd+cd", "pd", "ctm") and self.sampler != "one-step":
            raise ValueError(f"sampler must be one-step with objective {self.objective}; got {self.sampler!r}")
        if not SAMPLER.fullmatch(self.sampler):
            raise ValueError(f"sampler must be one-step, k-step:K or two-step:SIGMA; got {self.sampler!r}")
        if len(self.d_head_sizes) != len(self.d_head_widths):
            raise ValueError(f"d_head_widths must have one entry per d_head_sizes; got {self.d_head_widths}, {self.d_head_sizes}")

    def identity(self) -> dict[str, Any]:
        """The fields that tell this run from others, and from those of older versions."""
        default = TrainConfig.__dataclass_fields__
        return {name: value for name, value in asdict(self).items() if name not in LATER or value != default[name].default}
