"""AFHQv2 at 64x64."""

from gdd.profiles.paper import DEIT, paper_profile

PROFILES = (paper_profile("afhqv2", "AFHQv2, 64x64", "afhqv2-64x64", "edm-afhqv2-64x64-uncond-ve",
                          DEIT, pages=11, lr=2e-5, d_lr=4e-5, total_images=10_000_000), )
