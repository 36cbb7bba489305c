"""Features and a metric of one's own: energy distance (Szekely & Rizzo 2013) of row sums."""

import torch

from analysis.features import of_function
from analysis.fid import measure
from analysis.fid.summaries import Summaries


def sums(images):  # uint8 (N,C,H,W) -> (N,D)
    return images.float().sum(dim=3).flatten(1)


def energy(a, b):  # features (N,D) and (M,D) -> a number
    return 2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean()


table = measure(["gdd-i", "gdd", "digits"], Summaries(of_function(sums, "sums")), n=500, ranges=1,
                metrics=["fd", energy], allow_different_n=True)  # yapf: disable
print(table[["a", "b", "metric", "value"]].to_string(index=False))
