"""Distances and scores of samples of features: KID, precision and recall, density and coverage,
Inception Score.

Features are (N,d), generated first, real second; everything is computed in float64 unless said.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_BLOCK = 2048


def kid(a: Tensor, b: Tensor, *, subsets: int = 100, subset_size: int = 1000,
        seed: int = 2020) -> tuple[float, float]:
    """`(KID, spread)`: the unbiased squared MMD with kernel (x.y/d + 1)^3, mean and standard
    deviation over random subsets of both samples.

    Binkowski et al. 2018 (arXiv:1801.01401). Subsets are drawn as torch-fidelity draws them. The
    spread is of subsets that share images: no standard error, and it falls with their size, not
    with n. NaN where every subset is all there is.
    """
    size = min(subset_size, len(a), len(b))
    if size < 2:
        raise ValueError(f"KID needs at least 2 images of each; got {len(a)} and {len(b)}")
    rng = np.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        x = a[rng.choice(len(a), size, replace=False)].double()
        y = b[rng.choice(len(b), size, replace=False)].double()
        xx, yy, xy = (((p @ q.T) / a.shape[1] + 1)**3 for p, q in ((x, x), (y, y), (x, y)))
        within = (xx.sum() - xx.trace() + yy.sum() - yy.trace()) / (size * (size - 1))
        values.append(float(within - 2 * xy.mean()))
    same = subsets == 1 or size == max(len(a), len(b))
    return float(np.mean(values)), float("nan" if same else np.std(values, ddof=1))


def _radii(x: Tensor, k: int) -> Tensor:
    """Distance (N,) of each point to its k-th neighbour among the others."""
    return torch.cat([torch.cdist(part, x).kthvalue(k + 1).values for part in x.split(_BLOCK)])


def _check_neighbours(fake: Tensor, real: Tensor, k: int) -> None:
    if min(len(fake), len(real)) <= k:
        raise ValueError(
            f"{k} neighbours need more than {k} images of each; got {len(fake)} and {len(real)}")


def precision_recall(fake: Tensor, real: Tensor, *, k: int = 3) -> tuple[float, float]:
    """Shares of fakes inside the real manifold and of reals inside the fake one (Kynkaanniemi et
    al. 2019, arXiv:1904.06991).

    A manifold is the union of balls around its points that reach the `k`-th neighbour. Computed in
    the features' own precision.
    """
    _check_neighbours(fake, real, k)
    return _inside(fake, real, _radii(real, k)), _inside(real, fake, _radii(fake, k))


def _inside(points: Tensor, centres: Tensor, radii: Tensor) -> float:
    hits = sum(
        int((torch.cdist(part, centres) <= radii).any(dim=1).sum())
        for part in points.split(_BLOCK))
    return hits / len(points)


def density_coverage(fake: Tensor, real: Tensor, *, k: int = 5) -> tuple[float, float]:
    """Real balls a fake lies in, over k; and the share of real balls that hold a fake (Naeem et al.
    2020, arXiv:2002.09797)."""
    _check_neighbours(fake, real, k)
    radii, inside, covered = _radii(real, k), 0, torch.zeros(len(real), dtype=torch.bool)
    for part in fake.split(_BLOCK):
        within = torch.cdist(part, real) < radii
        inside += int(within.sum())
        covered |= within.any(dim=0)
    return inside / (k * len(fake)), float(covered.double().mean())


@dataclass
class ClassScores:
    """Streamed parts of the Inception Score: per split, the number of images, sum of p, and sum of
    p log p."""

    count: Tensor  # (S,)
    total: Tensor  # (S,C)
    negentropy: Tensor  # (S,)

    @classmethod
    def empty(cls, classes: int, splits: int = 10) -> "ClassScores":
        zeros = torch.zeros(splits, dtype=torch.float64)
        return cls(zeros, torch.zeros(splits, classes, dtype=torch.float64), zeros.clone())

    def update(self, probabilities: Tensor, split: Tensor) -> "ClassScores":
        """Add class probabilities (N,C) of images that belong to the splits (N,)."""
        p = probabilities.to("cpu", torch.float64)
        self.count = self.count.index_add(0, split, torch.ones(len(p), dtype=torch.float64))
        self.total = self.total.index_add(0, split, p)
        self.negentropy = self.negentropy.index_add(0, split, torch.special.xlogy(p, p).sum(dim=1))
        return self

    def merge(self, other: "ClassScores") -> "ClassScores":
        """Union of two disjoint samples."""
        self.count, self.total = self.count + other.count, self.total + other.total
        self.negentropy = self.negentropy + other.negentropy
        return self

    def score(self) -> tuple[float, float]:
        """`(mean, standard deviation)` over the splits of exp(E KL(p(y|x) | p(y))) (Salimans et al.
        2016, arXiv:1606.03498)."""
        if not (self.count > 0).all():
            raise ValueError(f"an Inception Score over {len(self.count)} splits needs images in "
                             f"each; got {self.count.tolist()}")
        mean = self.total / self.count[:, None]
        values = (self.negentropy / self.count - torch.special.xlogy(mean, mean).sum(dim=1)).exp()
        return float(values.mean()), float(values.std(correction=0))
