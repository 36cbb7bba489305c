"""ImageNet at 64x64, class-conditional."""

from gdd.profiles.paper import DEIT, paper_profile

PROFILES = (paper_profile("imagenet64", "ImageNet, 64x64, class-conditional", "imagenet-64x64",
                          "edm-imagenet-64x64-cond-adm", DEIT, pages=17, official_images=128,
                          batch_size=512, lr=8e-6, d_lr=4e-5, total_images=10_000_000,
                          ema_halflife_images=50_000_000), )
