"""FFHQ at 64x64."""

from gdd.profiles.paper import DEIT, paper_profile

PROFILES = (paper_profile("ffhq", "FFHQ, 64x64", "ffhq-64x64", "edm-ffhq-64x64-uncond-ve", DEIT,
                          pages=14, lr=2e-5, d_lr=4e-5, total_images=10_000_000), )
