"""What the paper's five profiles share (docs/method.md, section 5): public teachers, places,
rates."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gdd.config import Objective, TrainConfig
from gdd.profiles import Profile


@dataclass(frozen=True)
class Teacher:
    """A public EDM checkpoint: its network, the number of parameters, and GDD-I's frozen share in
    per cent (both measured)."""

    name: str
    network: dict[str, Any]
    parameters: int
    frozen_percent: float


VP: dict[str, Any] = dict(model_type="SongUNet", augment_dim=9, model_channels=128)
VE = VP | dict(embedding_type="fourier", encoder_type="residual", channel_mult_noise=2,
               resample_filter=[1, 3, 3, 1])
CIFAR: dict[str, Any] = dict(img_resolution=32, img_channels=3, channel_mult=[2, 2, 2])
_FACES: dict[str, Any] = dict(img_resolution=64, img_channels=3, channel_mult=[1, 2, 2, 2])
_ADM: dict[str, Any] = dict(img_resolution=64, img_channels=3, label_dim=1000,
                            model_type="DhariwalUNet")

TEACHERS = {
    teacher.name: teacher
    for teacher in (
        Teacher("edm-cifar10-32x32-uncond-vp", VP | CIFAR, 55_733_891, 85.4),
        Teacher("edm-cifar10-32x32-uncond-ve", VE | CIFAR, 56_397_827, 84.4),
        Teacher("edm-cifar10-32x32-cond-ve", VE | CIFAR | dict(label_dim=10), 56_400_643, 84.4),
        Teacher("edm-afhqv2-64x64-uncond-ve", VE | _FACES, 62_761_091, 83.8),
        Teacher("edm-ffhq-64x64-uncond-ve", VE | _FACES, 62_761_091, 83.8),
        Teacher("edm-imagenet-64x64-cond-adm", _ADM, 295_899_267, 78.8),
    )
}  # yapf: disable

# where files are expected, below the current folder
CHECKPOINTS, DATASETS = Path("checkpoints"), Path("datasets")
VGG, LITE, DEIT = "vgg16_bn", "tf_efficientnet_lite0", "deit_base_distilled_patch16_224"
LITE2 = "tf_efficientnet_lite2"  # judges, and is kin to LITE
BACKBONES = (VGG, LITE, LITE2, DEIT)
LPIPS = "vgg16"  # the network LPIPS looks through


def runs_of(gdd: TrainConfig) -> dict[str, TrainConfig]:
    """GDD, and with its rates what the paper compares it with."""
    objectives: tuple[Objective, ...] = ("cd", "gdd+cd", "pd", "ctm")
    others = {str(o): replace(gdd, objective=o, distance="lpips") for o in objectives}
    frozen = {"gdd-i": replace(gdd, freeze="gdd-i"), "cd-i": replace(others["cd"], freeze="gdd-i")}
    return {"gdd": gdd, **others, **frozen}


def paper_profile(name: str, title: str, data: str, teacher: str, backbone: str, *, pages: int,
                  official_images: int = 64, **changes: Any) -> Profile:
    """The official command's weights: of every 64 images, a process's (ImageNet: 128), the
    adversarial losses are summed, R1 (gamma 1e-4) and the consistency loss (1) are means, so that
    against a mean loss they weigh gamma/64 and 1/64; BatchNorm sees as many. However many processes
    train here, 64 it stays."""
    gdd = TrainConfig(
        data=str(DATASETS / f"{data}.zip"), teacher=teacher, backbones=(backbone, LITE),
        reduction="sum", r1_gamma=1e-4, cd_weight=1.0, d_batch_norm_images=official_images,
        precision="bf16", seed=42, **changes,
    )  # yapf: disable
    network = TEACHERS[teacher].network
    return Profile(
        name=name, title=title, real="training images", data=gdd.data,
        classes=network.get("label_dim", 0), networks={teacher: network}, runs=runs_of(gdd),
        extractors=("inception", "clip"), n=50_000, reference=str(CHECKPOINTS / f"{data}.npz"),
        training_seeds=(42, 43, 44), pages=pages,
    )  # yapf: disable
