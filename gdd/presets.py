"""Named configurations, as data. `desk` is the paper at the scale of two CPU cores; `smoke` the same runs, a few steps each."""

from dataclasses import replace
from typing import Any

from gdd.config import TrainConfig

RECIPE = 1  # raise it when code, not config, changes what a run trains to: shipped weights then count as stale

# DDPM++ for 8x8 digits: three resolutions, so that its blocks have a depth to speak of
DESK_NETWORK: dict[str, Any] = dict(
    img_resolution=8, img_channels=1, model_type="SongUNet", model_channels=16, channel_mult=[1, 2, 1.5], num_blocks=1,
    channel_mult_emb=2, attn_resolutions=[4], dropout=0.0,
)  # fmt: skip

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
}
HEADLINE_SEEDS = (0, 1, 2)

SMOKE = {name: replace(config, total_images=256, batch_size=64, lr_decay_images=0) for name, config in DESK.items()}

PROFILES = {"desk": DESK, "smoke": SMOKE}


def profile(name: str) -> dict[str, TrainConfig]:
    """The runs of a profile by name. Raises ValueError listing what there is."""
    if name not in PROFILES:
        raise ValueError(f"profile must be one of {', '.join(PROFILES)}; got {name!r}")
    return PROFILES[name]


def preset(name: str) -> TrainConfig:
    """`desk-gdd-i` is run gdd-i of profile desk. Raises ValueError listing what there is."""
    presets = {f"{prefix}-{run}": config for prefix, runs in PROFILES.items() for run, config in runs.items()}
    if name not in presets:
        raise ValueError(f"preset must be one of {', '.join(presets)}; got {name!r}")
    return presets[name]
