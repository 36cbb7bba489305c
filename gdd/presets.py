"""Named configurations, as data. `desk` is the paper at the scale of two CPU cores; `smoke` the same runs, a few steps each.

The paper's own five profiles (METHOD section 5) name a public teacher checkpoint, pretrained backbones and a prepared data set,
each with the place where it is expected.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gdd.config import Objective, TrainConfig

RECIPE = 1  # raise it when code, not config, changes what a run trains to: shipped weights then count as stale

# DDPM++ for 8x8 digits: three resolutions, so that its blocks have a depth to speak of
DESK_NETWORK: dict[str, Any] = dict(
    img_resolution=8, img_channels=1, model_type="SongUNet", model_channels=16, channel_mult=[1, 2, 1.5], num_blocks=1,
    channel_mult_emb=2, attn_resolutions=[4], dropout=0.0,
)  # fmt: skip

DESK_NETWORKS = {"teacher": DESK_NETWORK, "cond-teacher": DESK_NETWORK | {"label_dim": 10}}

DESK_TEACHER = TrainConfig(
    objective="edm", batch_size=128, total_images=300_032, lr=3e-3, lr_warmup_images=5_120, lr_decay_images=150_016,
    betas=(0.9, 0.999), ema_halflife_images=20_000, ema_rampup=0.1, seed=0,
)  # fmt: skip

# 1,797 images let a discriminator learn them by heart: R1 is 100 times the paper's, heads are small and see native resolution
DESK_GDD = TrainConfig(
    objective="gdd", batch_size=128, total_images=99_840, lr=2e-4, d_lr=1e-3, d_channels=(32, 32, 64, 64), d_head_sizes=(8, 4),
    d_head_widths=(64, 128), r1_gamma=1e-2, reuse_fakes=True, ema_halflife_images=10_000, ema_rampup=0.15, seed=0,
)  # fmt: skip
DESK_GDD_I = replace(DESK_GDD, freeze="gdd-i", lr=1e-3)
DESK_CD = replace(DESK_GDD, objective="cd", total_images=59_904, lr=5e-4, betas=(0.9, 0.99))

STEPS = (2, 3, 4, 6)
MIDDLE_SIGMAS = (0.2, 0.8, 3.0)

DESK: dict[str, TrainConfig] = {
    "teacher": DESK_TEACHER,
    "gdd": DESK_GDD,
    "gdd-i": DESK_GDD_I,
    "gdd+cd": replace(DESK_GDD, objective="gdd+cd"),
    "cd": DESK_CD,
    "cd-i": replace(DESK_CD, freeze="gdd-i", lr=1e-3),
    **{f"k-step-{k}": replace(DESK_GDD, sampler=f"k-step:{k}", total_images=29_952) for k in STEPS},
    **{f"two-step-{u:g}": replace(DESK_GDD, sampler=f"two-step:{u:g}", total_images=39_936) for u in MIDDLE_SIGMAS},
    "cond-teacher": DESK_TEACHER,
    "cond-gdd-i": DESK_GDD_I,
}
HEADLINE_SEEDS = (0, 1, 2)

SMOKE = {name: replace(config, total_images=256, batch_size=64, lr_decay_images=0) for name, config in DESK.items()}

PROFILES = {"desk": DESK, "smoke": SMOKE}


def teacher_of(run: str) -> str:
    """The desk run that a desk run starts from, itself if it is a teacher."""
    return "cond-teacher" if run.startswith("cond-") else "teacher"


@dataclass(frozen=True)
class Teacher:
    """A public EDM checkpoint: its network, the number of parameters, and GDD-I's frozen share in per cent (both measured)."""

    name: str
    network: dict[str, Any]
    parameters: int
    frozen_percent: float


_VP: dict[str, Any] = dict(model_type="SongUNet", augment_dim=9, model_channels=128)
_VE = _VP | dict(embedding_type="fourier", encoder_type="residual", channel_mult_noise=2, resample_filter=[1, 3, 3, 1])
_CIFAR: dict[str, Any] = dict(img_resolution=32, img_channels=3, channel_mult=[2, 2, 2])
_FACES: dict[str, Any] = dict(img_resolution=64, img_channels=3, channel_mult=[1, 2, 2, 2])
_ADM: dict[str, Any] = dict(img_resolution=64, img_channels=3, label_dim=1000, model_type="DhariwalUNet")

TEACHERS = {
    teacher.name: teacher
    for teacher in (
        Teacher("edm-cifar10-32x32-uncond-vp", _VP | _CIFAR, 55_733_891, 85.4),
        Teacher("edm-cifar10-32x32-uncond-ve", _VE | _CIFAR, 56_397_827, 84.4),
        Teacher("edm-cifar10-32x32-cond-ve", _VE | _CIFAR | dict(label_dim=10), 56_400_643, 84.4),
        Teacher("edm-afhqv2-64x64-uncond-ve", _VE | _FACES, 62_761_091, 83.8),
        Teacher("edm-ffhq-64x64-uncond-ve", _VE | _FACES, 62_761_091, 83.8),
        Teacher("edm-imagenet-64x64-cond-adm", _ADM, 295_899_267, 78.8),
    )
}


@dataclass(frozen=True)
class Profile:
    """A data set at paper scale: what GDD starts from, what it is trained on, and what judges it."""

    teacher: str  # a public checkpoint, of TEACHERS; "" if it is to be trained first
    network: dict[str, Any]  # the teacher's
    backbones: tuple[str, ...]  # timm names
    reference: str  # name of EDM's reference statistics
    runs: dict[str, TrainConfig]


CHECKPOINTS, DATASETS = Path("checkpoints"), Path("datasets")  # where files are expected, below the current folder
VGG, LITE, DEIT = "vgg16_bn", "tf_efficientnet_lite0", "deit_base_distilled_patch16_224"
LPIPS = "vgg16"  # the network LPIPS looks through


def _runs(gdd: TrainConfig) -> dict[str, TrainConfig]:
    """GDD as in METHOD's table, and with its rates what the paper compares it with."""
    objectives: tuple[Objective, ...] = ("cd", "gdd+cd", "pd", "ctm")
    others = {str(objective): replace(gdd, objective=objective, distance="lpips") for objective in objectives}
    frozen = {f"{name}-i": replace(config, freeze="gdd-i") for name, config in (("gdd", gdd), ("cd", others["cd"]))}
    return {"gdd": gdd, **others, **frozen}


def _paper(teacher: str, backbone: str, data: str, **changes: Any) -> Profile:
    # BatchNorm over 32 images: a GPU's share of 256 on the paper's eight
    config = TrainConfig(data=str(DATASETS / f"{data}.zip"), precision="bf16", d_batch_norm_images=32, **changes)
    name = f"edm-{teacher}"
    return Profile(name, TEACHERS[name].network, (backbone, LITE), data, _runs(config))


_FACES_RATES: dict[str, Any] = dict(lr=2e-5, d_lr=4e-5, total_images=10_000_000)
PAPER = {
    "cifar10": _paper("cifar10-32x32-uncond-ve", VGG, "cifar10-32x32"),
    "cifar10-cond": _paper("cifar10-32x32-cond-ve", VGG, "cifar10-32x32"),
    "afhqv2": _paper("afhqv2-64x64-uncond-ve", DEIT, "afhqv2-64x64", **_FACES_RATES),
    "ffhq": _paper("ffhq-64x64-uncond-ve", DEIT, "ffhq-64x64", **_FACES_RATES),
    "imagenet64": _paper("imagenet-64x64-cond-adm", DEIT, "imagenet-64x64", batch_size=512, lr=8e-6, d_lr=4e-5,
                         total_images=10_000_000, ema_halflife_images=50_000_000),
}  # fmt: skip

# CIFAR-10 with a quarter of the paper's weights and a teacher of one's own: an evening on one GPU, and no checkpoint to fetch
_SMALL = PAPER["cifar10"].runs["gdd"]
_SMALL_TEACHER = replace(_SMALL, objective="edm", total_images=10_000_000, lr=5e-4, lr_warmup_images=250_000, betas=(0.9, 0.999))
SMALL = {"cifar10-small": replace(PAPER["cifar10"], teacher="", network=_VP | _CIFAR | dict(model_channels=64, augment_dim=0),
                                  runs={"teacher": _SMALL_TEACHER} | _runs(replace(_SMALL, total_images=2_000_000)))}  # fmt: skip


@dataclass(frozen=True)
class Preset:
    """One run of a profile: its config, and what it starts from and looks through."""

    config: TrainConfig
    network: dict[str, Any]  # the teacher's
    teacher: str = ""  # a shipped run, or a public checkpoint of TEACHERS; "" if it is to be trained first
    backbones: tuple[str, ...] = ()  # timm names; none on the desk, where it is the shipped classifier


def profile(name: str) -> dict[str, TrainConfig]:
    """The runs of a profile by name. Raises ValueError listing what there is."""
    if name not in PROFILES:
        raise ValueError(f"profile must be one of {', '.join(PROFILES)}; got {name!r}")
    return PROFILES[name]


def preset(name: str) -> Preset:
    """`desk-gdd-i` is run gdd-i of profile desk, `ffhq-gdd` run gdd of the paper's profile ffhq; GDD is D2O, GDD-I D2O-F.

    Raises ValueError listing what there is.
    """
    known = {f"{prefix}-{run}": Preset(config, DESK_NETWORKS[teacher_of(run)], teacher_of(run))
             for prefix, runs in PROFILES.items() for run, config in runs.items()}  # fmt: skip
    for prefix, row in (PAPER | SMALL).items():
        known |= {f"{prefix}-{run}": Preset(config, row.network, row.teacher, row.backbones) for run, config in row.runs.items()}
    plain = name.replace("d2o-f", "gdd-i").replace("d2o", "gdd")
    if plain not in known:
        raise ValueError(f"preset must be one of {', '.join(known)}; got {name!r}")
    return known[plain]
