"""CIFAR-10's 50,000 pictures at 16x16: the claims where nothing saturates, on two CPU cores."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from gdd.config import TrainConfig
from gdd.profiles import Classifier, Profile
from gdd.profiles.paper import DATASETS, LITE, LITE2

# DDPM++ of 1.2M weights, three resolutions: 16, 8, 4
NETWORK: dict[str, Any] = dict(
    img_resolution=16, img_channels=3, model_type="SongUNet", model_channels=32, num_blocks=1,
    channel_mult=[1, 2, 2], channel_mult_emb=2, attn_resolutions=[8], dropout=0.0,
)  # yapf: disable

TEACHER = TrainConfig(
    objective="edm", data=str(DATASETS / "cifar10-16x16.zip"), batch_size=128,
    total_images=480_000, lr=2e-3, lr_warmup_images=10_240, lr_decay_images=240_000,
    betas=(0.9, 0.999), ema_halflife_images=50_000, ema_rampup=0.1, seed=0,
)  # yapf: disable

# Lite0 with its ImageNet weights, at 64 pixels for the paper's 224: a sixth of the time
GDD = TrainConfig(
    objective="gdd", data=TEACHER.data, teacher="teacher", backbones=(LITE, ), d_image_size=64,
    batch_size=128, total_images=102_400, lr=2e-4, d_lr=5e-4, d_channels=(32, 64, 128, 128),
    d_head_sizes=(16, 8, 4), d_head_widths=(64, 128, 256), r1_gamma=1e-3, reuse_fakes=True,
    ema_halflife_images=10_000, ema_rampup=0.15, seed=0,
)  # yapf: disable
GDD_I = replace(GDD, freeze="gdd-i", lr=5e-4)
CD = replace(GDD, objective="cd", betas=(0.9, 0.99))

# half of the images, against the same half of GDD and GDD-I
SHORT, SHORT_I = (replace(config, total_images=51_200) for config in (GDD, GDD_I))
BACKBONES = {
    "gdd-i-sibling": ("cifar10-backbone", ),
    "gdd-i-both": (LITE, "cifar10-backbone"),
    "gdd-i-untrained": (f"random:{LITE}", ), }
FREEZING = {
    "gdd-i-qkv": "gdd-i+qkv",
    "gdd-i-qkv-skip": "gdd-i+qkv+skip",
    "gdd-norm-only": "norm-only",
    "gdd-inverse": "inverse-gdd-i", }

# the paper's image size. Maps of 112 to 14 pixels want one convolution more, before the others; R1,
# of the sum of 64 logits, not 4, is as strong against their mean with gamma / 16^2
GDD_I_224 = replace(GDD_I, d_image_size=224, d_head_sizes=(64, 32, 16, 8),
                    d_head_widths=(32, *GDD_I.d_head_widths), r1_gamma=GDD_I.r1_gamma / 16**2,
                    total_images=25_600)
MORE = {
    **{name: replace(SHORT_I, backbones=seen) for name, seen in BACKBONES.items()},
    **{name: replace(SHORT_I, freeze=policy) for name, policy in FREEZING.items()},
    # with the rate of GDD, which trains about as many weights
    "gdd-inverse-2e-4": replace(SHORT, freeze="inverse-gdd-i"),
    "teacher-tenth": replace(TEACHER, total_images=48_000, lr_decay_images=24_000),
    "gdd-from-tenth": replace(SHORT, teacher="teacher-tenth"),
    "gdd-i-from-tenth": replace(SHORT_I, teacher="teacher-tenth"),
    "gdd-from-random": replace(SHORT, teacher="random"),
    "gdd-i-from-random": replace(SHORT_I, teacher="random"),
    "gdd-i-224": GDD_I_224, }
RUNS = {
    "teacher": TEACHER,
    "gdd": GDD,
    "gdd-i": GDD_I,
    "cd": CD,
    "cd-i": replace(CD, freeze="gdd-i", lr=5e-4),
    "gdd+cd": replace(GDD, objective="gdd+cd"),
    "k-step-2": replace(GDD, sampler="k-step:2"),
    "k-step-4": replace(GDD, sampler="k-step:4"),
    "two-step-0.8": replace(GDD, sampler="two-step:0.8"),
    "cond-teacher": TEACHER,
    "cond-gdd-i": replace(GDD_I, teacher="cond-teacher"),
    **MORE, }

PROFILE = Profile(
    name="cifar10-16",
    title="CIFAR-10, 16x16",
    real="training images",
    data=TEACHER.data,
    classes=10,
    networks={"teacher": NETWORK, "cond-teacher": NETWORK | {"label_dim": 10}},
    runs=RUNS,
    # one that has learnt the classes, one kin to the discriminator, one that has learnt nothing
    extractors=("cifar10-classifier", "lite2@64", "swd"),
    test=str(DATASETS / "cifar10-16x16-test.zip"),
    files=(LITE2, ),
    live=False,
    n=10_000,
    training_seeds=(0, 1, 2),
    seeds_of={name: 2 for name, config in RUNS.items() if config.objective != "edm"}
    | {"gdd": 3, "gdd-i": 3, "cond-gdd-i": 1, "gdd-i-224": 1},
    ablations={
        "backbone": ("gdd-i", *BACKBONES),
        "freezing": ("gdd", "gdd-i", *FREEZING, "gdd-inverse-2e-4"),
        "pre-training": ("gdd", "gdd-from-tenth", "gdd-from-random", "gdd-i", "gdd-i-from-tenth",
                         "gdd-i-from-random"),
        "image size": ("gdd-i", "gdd-i-224"), },
    snapshots=(25_600, 51_200),
    classifiers={
        "cifar10-backbone": Classifier("backbone", epochs=15, lr=2e-3, seed=1),
        "cifar10-classifier": Classifier("residual features", epochs=20, lr=2e-3, seed=2), },
    unshipped=tuple(MORE),
    shipped=Path(__file__).resolve().parents[1] / "weights" / "zoo" / "cifar10-16",
    mirror=True,
    holdout=7,  # picture k of the archive is of class k % 10
)  # yapf: disable

PROFILES = (PROFILE, )
