"""scikit-learn's digits: the paper at the scale of two CPU cores, with nothing to download."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from gdd.config import TrainConfig
from gdd.profiles import Classifier, Profile

# DDPM++ for 8x8 pixels: three resolutions, so that its blocks have a depth to speak of
NETWORK: dict[str, Any] = dict(
    img_resolution=8, img_channels=1, model_type="SongUNet", model_channels=16, num_blocks=1,
    channel_mult=[1, 2, 1.5], channel_mult_emb=2, attn_resolutions=[4], dropout=0.0,
)  # yapf: disable

TEACHER = TrainConfig(
    objective="edm", batch_size=128, total_images=300_032, lr=3e-3, lr_warmup_images=5_120,
    lr_decay_images=150_016, betas=(0.9, 0.999), ema_halflife_images=20_000, ema_rampup=0.1, seed=0,
)  # yapf: disable

# 1,797 images let a discriminator learn them by heart: R1 is far above the paper's, heads are small
# and see native resolution
GDD = TrainConfig(
    objective="gdd", teacher="teacher", backbones=("digits-backbone", ), batch_size=128,
    total_images=99_840, lr=2e-4, d_lr=1e-3, d_channels=(32, 32, 64, 64), d_head_sizes=(8, 4),
    d_head_widths=(64, 128), r1_gamma=1e-2, reuse_fakes=True, ema_halflife_images=10_000,
    ema_rampup=0.15, seed=0,
)  # yapf: disable
GDD_I = replace(GDD, freeze="gdd-i", lr=1e-3)
CD = replace(GDD, objective="cd", total_images=59_904, lr=5e-4, betas=(0.9, 0.99))

STEPS = (1, 2, 3, 4, 6)
MIDDLE_SIGMAS = (0.2, 0.8, 3.0)
MULTI_STEP = replace(GDD, total_images=29_952)  # the same for every point of Figure 2, K = 1 too

RUNS = {
    "teacher": TEACHER,
    "gdd": GDD,
    "gdd-i": GDD_I,
    "gdd+cd": replace(GDD, objective="gdd+cd"),
    "cd": CD,
    "cd-i": replace(CD, freeze="gdd-i", lr=1e-3),
    **{f"k-step-{k}": replace(MULTI_STEP, sampler=f"k-step:{k}") for k in STEPS},
    **{f"two-step-{u:g}": replace(MULTI_STEP, sampler=f"two-step:{u:g}") for u in MIDDLE_SIGMAS},
    "cond-teacher": TEACHER,
    "cond-gdd-i": replace(GDD_I, teacher="cond-teacher"), }

DESK = Profile(
    name="desk",
    title="scikit-learn's digits, 8x8",
    real="digits",
    data="digits",
    classes=10,
    networks={"teacher": NETWORK, "cond-teacher": NETWORK | {"label_dim": 10}},
    runs=RUNS,
    extractors=("digits", ),
    n=1797,  # as many as there are
    training_seeds=(0, 1, 2),
    # they share neither architecture nor seed, so that no discriminator grades its own work
    classifiers={
        "digits-backbone": Classifier("backbone", epochs=15, lr=2e-3, seed=1),
        "digits": Classifier("features", epochs=60, lr=4e-3, seed=2), },
    shipped=Path(__file__).resolve().parents[1] / "weights" / "zoo" / "desk",
)

SMOKE = replace(
    DESK, name="smoke", n=256, n_activations=16, training_seeds=(0, 1),
    runs={name: replace(config, total_images=256, batch_size=64, lr_decay_images=0)
          for name, config in RUNS.items()},
)  # yapf: disable

PROFILES = (DESK, SMOKE)
