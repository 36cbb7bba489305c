"""CIFAR-10 at 32x32: the paper's two profiles, and a small one with a teacher of one's own."""

from dataclasses import replace

from gdd.profiles.paper import CIFAR, VGG, VP, paper_profile, runs_of

UNCONDITIONAL = paper_profile("cifar10", "CIFAR-10, 32x32", "cifar10-32x32",
                              "edm-cifar10-32x32-uncond-ve", VGG, pages=5)
CONDITIONAL = paper_profile("cifar10-cond", "CIFAR-10, 32x32, class-conditional", "cifar10-32x32",
                            "edm-cifar10-32x32-cond-ve", VGG, pages=8)

# a quarter of the paper's weights: an evening on one GPU, and no checkpoint to fetch
_GDD = replace(UNCONDITIONAL.runs["gdd"], teacher="teacher", total_images=2_000_000)
_TEACHER = replace(_GDD, objective="edm", teacher="", total_images=10_000_000, lr=5e-4,
                   lr_warmup_images=250_000, betas=(0.9, 0.999))
SMALL = replace(
    UNCONDITIONAL, name="cifar10-small", pages=0, runs={"teacher": _TEACHER} | runs_of(_GDD),
    networks={"teacher": VP | CIFAR | dict(model_channels=64, augment_dim=0)},
)  # yapf: disable

PROFILES = (UNCONDITIONAL, CONDITIONAL, SMALL)
