"""The patches as a profile whose figures read what was measured before, with several judges,
ablations, snapshots and shipped weights; GDD is its generator of one step."""

import os
from dataclasses import replace
from pathlib import Path

import patches_profile
from patches_profile import GDD, TEACHER

RUNS = {name: run for name, run in patches_profile.PROFILE.runs.items() if name != "k-step-1"} | {
    "gdd-i-short": replace(GDD, freeze="gdd-i+qkv", total_images=80),
    "gdd-from-random": replace(GDD, teacher="random", total_images=80),
    "edm-cond": replace(TEACHER, total_images=80), }
PROFILE = replace(
    patches_profile.PROFILE, name="kept", live=False, runs=RUNS,
    test=str(patches_profile.DATA.with_name("others.zip")), extractors=("judges", "swd"),
    seeds_of={"k-step-2": 1, "two-step-1": 1, "gdd-i-short": 2, "gdd-from-random": 1},
    snapshots=(80, ),
    ablations={"freezing": ("gdd", "gdd-i", "gdd-i-short"),
               "pre-training": ("gdd", "gdd-from-random")},
    unshipped=("gdd-i-short", "gdd-from-random"),
    shipped=Path(os.environ.get("KEPT_SHIPPED", "shipped")),
)  # yapf: disable
