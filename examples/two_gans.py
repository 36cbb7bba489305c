"""How far apart are two GAN generators? Any function of latents that returns images in [-1,1]."""

import sys

import torch
from torch import nn

from analysis.extractors import extractor
from analysis.fid import of_generator, rel_fid


def generator(seed):  # put your own two here
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64),
                         nn.Tanh(), nn.Unflatten(1, (1, 8, 8)))  # yapf: disable


one, two = (of_generator(generator(seed), (16, ), f"gan{seed}") for seed in (0, 1))
n = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000  # image k of both is from the latent of seed k
print(rel_fid(one, two, extractor("digits"), n=n, bootstrap=50).to_string())
