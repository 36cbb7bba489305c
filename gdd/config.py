"""The config of a training run and of what it is computed on, apart from torch so that `--help`
answers at once."""

import math
import re
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
BUNDLED = ("digits", )  # data sets that come with a package
SAMPLER = re.compile(r"one-step|k-step:([1-9]\d{0,2})|two-step:(\d*\.?\d+)")

Objective = Literal["edm", "gdd", "cd", "gdd+cd", "pd", "ctm"]
OnNan = Literal["stop", "skip", "rollback"]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]  # of sampling and measuring
# what numbers may be; every part of a tuple must be
_RANGES: dict[str, tuple[float, float]] = {
    "total_images": (1, 1e12), "batch_size": (1, 1_000_000), "lr": (1e-12, 1), "seed": (0, 2e9),
    "lr_warmup_images": (0, 1e12), "lr_decay_images": (0, 1e12), "betas": (0, 0.99999),
    "d_lr": (1e-12, 1), "d_channels": (1, 8192), "d_head_sizes": (1, 1024), "r1_gamma": (0, 1e6),
    "d_head_widths": (1, 8192), "d_image_size": (32, 4096), "d_batch_norm_images": (0, 1_000_000),
    "r1_interval": (1, 1e9), "cd_weight": (0, 1e6), "cd_steps": (2, 10_000),
    "ema_rampup": (0, 1e12), "ema_halflife_images": (0, 1e12),
}  # yapf: disable


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run's weights, with the models it starts from. Counts are images,
    never steps."""

    objective: Objective = "gdd"
    """edm trains a teacher; gdd the GAN loss alone; cd consistency, pd progressive, ctm trajectory
    distillation; gdd+cd a sum."""
    data: str = BUNDLED[0]
    """digits, a folder of images, a zip in EDM's layout, or CIFAR-10's python batches."""
    teacher: str = ""
    """What a student starts from: a run of the profile, a public checkpoint's name, or a path;
    `random` is an untrained network."""
    backbones: tuple[str, ...] = ()
    """What the discriminator looks through: a classifier of the profile, or networks of timm;
    `random:NAME` is one without its weights."""
    d_image_size: int = 224
    """Pixels to which images are resized for timm's networks, larger images too."""
    sampler: str = "one-step"
    """Generator: one-step, k-step:K or two-step:SIGMA; all calls share weights and are
    back-propagated together."""
    freeze: str = "none"
    """none, gdd-i, gdd-i+qkv, gdd-i+qkv+skip, inverse-gdd-i, norm-only, official-loss-rule, or
    comma-separated patterns of parameter names."""
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
    """Weight of the R1 penalty, a mean over images; against what, `reduction` says."""
    r1_interval: int = 16
    """After so many steps R1, weighted by as many, makes one of its own (lazy regularisation)."""
    reduction: Literal["mean", "sum"] = "mean"
    """Of the adversarial losses: mean over the batch, or sum over d_batch_norm_images (the batch,
    if that is 0), as the official code sums over a process's images; R1, cd are means in both."""
    reuse_fakes: bool = False
    """Train the discriminator on the generator step's fakes, which saves a generator pass; else on
    fakes of other latents, drawn after the generator's update."""
    cd_weight: float = 1.0
    """Weight of the consistency loss in gdd+cd."""
    cd_steps: int = 18
    """Intervals N of the ladder of cd, pd and ctm."""
    ema_halflife_images: int = 500_000
    """Half-life of the weight average."""
    ema_rampup: float = 0.05
    """The half-life never exceeds this share of the images before the batch; 0: no such limit."""
    seed: int = 42
    """Seeds weights, data order and noise."""
    gan_loss: Literal["non-saturating", "hinge"] = "non-saturating"
    """Adversarial losses of generator and discriminator."""
    d_batch_norm_images: int = 0
    """Images that share the statistics of the discriminator's BatchNorm, whatever processes and
    micro-batches; 0: the batch."""
    distance: Literal["backbone", "lpips"] = "backbone"
    """What cd, pd and ctm compare images by: the first backbone's features, or LPIPS."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the generator's UNet alone: float32, or autocast to bfloat16, or to float16 with scaled
    gradients. Backbones, heads, R1 and LPIPS are float32."""
    def __post_init__(self):
        for name, kind in get_type_hints(TrainConfig).items():
            _validate(name, getattr(self, name), kind)
        if not self.data:
            raise ValueError("data must be digits, or the path of a data set; got ''")
        if len(self.betas) != 2:
            raise ValueError(f"betas must be two numbers; got {self.betas}")
        if len(self.d_channels) != 4:
            raise ValueError(f"d_channels must be four widths; got {self.d_channels}")
        if not self.d_head_sizes or len(self.d_head_sizes) != len(self.d_head_widths):
            raise ValueError("d_head_widths must have one entry per d_head_sizes; "
                             f"got {self.d_head_widths}, {self.d_head_sizes}")
        asked = SAMPLER.fullmatch(self.sampler)
        if not asked or (asked[2] and not 0 < float(asked[2]) < SIGMA_MAX):
            raise ValueError("sampler must be one-step, k-step:K of K up to 999, or two-step:SIGMA "
                             f"below {SIGMA_MAX:g}; got {self.sampler!r}")
        if self.distillation and self.sampler != "one-step":
            raise ValueError(
                f"sampler must be one-step with objective {self.objective}; got {self.sampler!r}")
        if self.d_batch_norm_images and self.batch_size % self.d_batch_norm_images:
            raise ValueError(f"d_batch_norm_images must divide batch_size {self.batch_size}; "
                             f"got {self.d_batch_norm_images}")

    @property
    def terms(self) -> tuple[str, ...]:
        """The losses of the network in training, by name, that the objective joins with a +."""
        return tuple(self.objective.split("+"))

    @property
    def adversarial(self) -> bool:
        return "gdd" in self.terms

    @property
    def distillation(self) -> bool:
        """Whether the teacher is called while the student is trained."""
        return bool({"cd", "pd", "ctm"} & set(self.terms))


@dataclass(frozen=True)
class Hardware:
    """What a run is computed on. It decides speed and memory, and of the weights the last digits
    only; a teacher with dropout drops others."""

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Kind of device."""
    devices: int = 0
    """Processes per machine; 0: as many as torchrun or SLURM started, else one."""
    nodes: int = 0
    """Machines; 0: as many as torchrun or SLURM started, else one."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """ddp: every process holds all weights; fsdp: a share of the generator's weights, average and
    Adam moments."""
    micro_batch_size: int = 0
    """Images that go through the networks of a process at once, gradients adding up; 0: its whole
    share of the batch."""
    compile: bool = False
    """torch.compile for the generator; while forward hooks listen it runs as it is, since compiled
    code skips them."""
    def validate(self) -> None:
        """Raise ValueError naming a field that is out of its range."""
        for name in ("devices", "nodes", "micro_batch_size"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0; got {getattr(self, name)}")
        if self.compile and self.strategy == "fsdp":
            raise ValueError("compile goes with strategy ddp; got fsdp")


ONE_CPU = Hardware(accelerator="cpu", devices=1, nodes=1)


@dataclass(frozen=True)
class Keep:
    """What a run does and leaves at each of its ticks, beside the log and the state."""

    ticks: int = 8
    """Equal parts of a run, after each of which the losses' means become a row of the log and the
    state is saved."""
    samples: int = 0
    """Images in each tick's grid."""
    snapshots: tuple[int, ...] = ()
    """Counts of images at which the weight average is kept, rounded up to whole batches."""
    tensorboard: bool = False
    """Curves and grids for TensorBoard, if it is installed."""
    on_nan: OnNan = "stop"
    """A loss or gradient that is not finite: stop, skip the rest of the step, or return to the last
    state with other noise."""
    max_skips: int = 100
    """Steps that may be skipped, and returns that may be made, in one run."""
    allow_change: tuple[str, ...] = ()
    """Fields of the config in which a run may go on with other values than it was started with."""
    def validate(self) -> None:
        """Raise ValueError naming a field that is out of its range."""
        for name, least in (("ticks", 1), ("samples", 0), ("max_skips", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}; got {getattr(self, name)}")
        if min(self.snapshots, default=1) < 1:
            raise ValueError(f"snapshots must be counts of images; got {self.snapshots}")


def _validate(name: str, value: Any, kind: Any) -> None:
    """Raise ValueError if the value of a field is not of its annotated kind, or out of its
    range."""
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}; got {value!r}")
        return
    if get_origin(kind) is tuple:
        if not isinstance(value, tuple):
            raise ValueError(f"{name} must be a tuple; got {value!r}")
        for part in value:
            _validate(name, part, get_args(kind)[0])
        return
    plain = type(value)
    if plain is not kind and not (kind is float and plain is int):
        raise ValueError(f"{name} must be {kind.__name__}; got {value!r}")
    if kind in (int, float):
        low, high = _RANGES[name]
        if not (math.isfinite(value) and low <= value <= high):
            wanted = "an integer" if kind is int else "a number"
            raise ValueError(f"{name} must be {wanted} from {low:g} to {high:g}; got {value}")
