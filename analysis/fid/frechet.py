"""Frechet distances between Gaussians fitted to features: streamed float64 moments, symmetric
eigenvalues, no square root of a matrix product.

A distance between features other than Inception-v3's is an FD, never a FID; `label` writes the name
with n and extractor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from scipy.linalg.lapack import dpstrf
from torch import Tensor

# by which a covariance may miss what it must be, of its largest eigenvalue: rounding to float32
# moves eigenvalues by at most 2.7e-6 of that at 2,048 dimensions, sqrt(d) / 2^24
TOLERANCE = 1e-5
_MOST = 1e100  # beyond which products of moments overflow


@dataclass
class FeatureStats:
    """Running mean and scatter of features (N,d) in float64; memory grows with d^2, not with n.
    Mergeable."""

    n: int
    mean: Tensor  # (d,)
    scatter: Tensor  # (d,d) sum of outer products of deviations

    @classmethod
    def empty(cls, dim: int) -> "FeatureStats":
        return cls(0, torch.zeros(dim, dtype=torch.float64),
                   torch.zeros(dim, dim, dtype=torch.float64))

    @classmethod
    def of(cls, features: Tensor) -> "FeatureStats":
        return cls.empty(features.shape[1]).update(features)

    @classmethod
    def weighted(cls, features: Tensor, weights: Tensor, n: int) -> "FeatureStats":
        """Of `n` images that are distributed over `features` (N,d) like `weights` (N,)."""
        x, share = features.to(torch.float64), weights.to(torch.float64) / float(weights.sum())
        mean = share @ x
        centred = x - mean
        return cls(n, mean, n * (centred * share[:, None]).T @ centred)

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
        between = torch.outer(delta, delta) * (self.n * other.n / n)
        self.scatter = self.scatter + other.scatter + between
        self.mean = self.mean + delta * (other.n / n)
        self.n = n
        return self

    @property
    def covariance(self) -> Tensor:
        """Unbiased, (d,d); needs n >= 2."""
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 images; got {self.n}")
        return self.scatter / (self.n - 1)


def check_moments(mean: Tensor, covariance: Tensor) -> None:
    """Raise ValueError saying why `mean` (d,) and `covariance` (d,d), float64, are none: not
    finite, or beyond TOLERANCE not symmetric or with a negative eigenvalue. Singular ones pass.

    Takes one Cholesky factorisation, and no second matrix of that size but its result.
    """
    for moment in (mean, covariance):
        # one pass: NaN and inf spread to both ends
        low, high = (float(end) for end in torch.aminmax(moment))
        if not -_MOST < low <= high < _MOST:
            raise ValueError(f"mu or sigma holds NaN, inf or a number beyond {_MOST:.0e}")
    largest = _largest_eigenvalue(covariance)
    for start in range(0, len(covariance), 256):
        rows, columns = covariance[start:start + 256], covariance[:, start:start + 256]
        if (skew := float((rows - columns.T).abs().max())) > TOLERANCE * largest:
            raise ValueError(f"sigma is not symmetric: entries differ by {skew:.3g}")
    diagonal, kept = covariance.diagonal(), covariance.diagonal().clone()
    diagonal += TOLERANCE * largest
    failed = largest > 0 and int(torch.linalg.cholesky_ex(covariance).info)
    diagonal.copy_(kept)
    if failed:
        raise ValueError("sigma has a negative eigenvalue, below "
                         f"{-TOLERANCE * largest:.3g}")


def _largest_eigenvalue(x: Tensor) -> float:
    """In size, of a symmetric matrix, to some per cent: thirty steps of power iteration."""
    v = torch.randn(len(x), dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    size = 0.0
    for _ in range(30):
        if not (norm := float(v.norm())):
            return 0.0
        v = x @ (v / norm)
        size = float(v.norm())
    return size


@dataclass(frozen=True)
class Root:
    """A factor of a covariance, `matrix @ matrix.T`: Cholesky's, with pivots if it is singular; of
    eigenvectors if it is not quite positive."""

    matrix: Tensor  # (d,r)
    definite: bool

    @classmethod
    def of(cls, covariance: Tensor) -> "Root":
        lower, info = torch.linalg.cholesky_ex(covariance)
        if not info:
            return cls(lower, True)
        if (factor := _pivoted(covariance)) is not None:
            return cls(factor, False)
        values, vectors = torch.linalg.eigh(covariance)
        if values[0] < -TOLERANCE * values.abs().max():
            raise ValueError(f"no covariance: it has a negative eigenvalue, {float(values[0]):.3g}")
        kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
        return cls(vectors[:, kept] * values[kept].sqrt(), False)


def _pivoted(covariance: Tensor) -> Tensor | None:
    """Cholesky's factor with pivots (d,rank) of a matrix that is singular and else exact, as that
    of fewer images than dimensions; None where it does not give the matrix back, as that of moments
    rounded to float32."""
    lower, order, rank, _ = dpstrf(covariance.numpy(), lower=1)
    factor = torch.empty(len(covariance), rank, dtype=covariance.dtype)
    factor[order.astype("int64") - 1] = torch.from_numpy(lower).tril()[:, :rank]
    missed = (covariance - factor @ factor.T).abs().max()
    accurate = 16 * len(covariance) * torch.finfo(covariance.dtype).eps
    return factor if missed <= accurate * covariance.abs().max() else None


def _trace_of_root(a: Root, b: Root) -> Tensor:
    """tr((A B)^(1/2)): the sum of the singular values of the product of the factors."""
    product = a.matrix.T @ b.matrix  # (r_a,r_b)
    # several times faster than singular values, and no zero among them to be drowned in rounding
    if a.definite and b.definite:
        return torch.linalg.eigvalsh(product @ product.T).clamp(min=0).sqrt().sum()
    return torch.linalg.svdvals(product).sum()


def frechet_distance(a: FeatureStats, b: FeatureStats) -> float:
    """|mu_a - mu_b|^2 + tr(A) + tr(B) - 2 tr((A B)^(1/2)) (Heusel et al. 2017, eq. 6).

    No root of a matrix product is taken, so it stays real on rank-deficient and near-singular
    covariances. Agrees with clean-fid to 1e-6 relative. Raises ValueError on different dimensions
    or a sample of one.
    """
    return float(frechet_distances([a, b])[0, 1])


def frechet_distances(stats: Sequence[FeatureStats]) -> Tensor:
    """All Frechet distances (K,K) between K samples, with K factorisations in all."""
    if len(dims := sorted({len(s.mean) for s in stats})) > 1:
        raise ValueError(f"statistics differ in dimension: {' and '.join(map(str, dims))}")
    covariances = [s.covariance for s in stats]
    roots = [Root.of(covariance) for covariance in covariances]
    distances = torch.zeros(len(stats), len(stats), dtype=torch.float64)
    for i, j in combinations(range(len(stats)), 2):
        means = (stats[i].mean - stats[j].mean).square().sum()
        traces = covariances[i].trace() + covariances[j].trace()
        distance = means + traces - 2 * _trace_of_root(roots[i], roots[j])
        distances[i, j] = distances[j, i] = distance.clamp(min=0)
    return distances


def fd_infinity(features: Tensor, reference: FeatureStats, *, points: int = 15,
                seed: int = 0) -> float:
    """The FD of a sample of endless size: a line through FD against 1/n, at 1/n = 0 (Chong &
    Forsyth 2020, arXiv:1911.07023).

    `features` (N,d) are drawn from without replacement, for `points` sizes from N/2 to N; small N
    biases FD upwards.
    """
    if len(features) < 2 * points:
        raise ValueError(f"an extrapolation over {points} sizes needs at least {2 * points} "
                         f"images; got {len(features)}")
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.linspace(len(features) // 2, len(features), points).long()
    values = []
    for size in sizes.tolist():
        chosen = torch.randperm(len(features), generator=generator)[:size]
        values.append(frechet_distance(FeatureStats.of(features[chosen]), reference))
    design = torch.stack([1 / sizes.double(), torch.ones(points, dtype=torch.float64)], dim=1)
    measured = torch.tensor(values, dtype=torch.float64)[:, None]
    return float(torch.linalg.lstsq(design, measured).solution[1])


def bootstrap_interval(a: Tensor, b: Tensor, *, draws: int, sizes: tuple[int, int] | None = None,
                       distance: float | None = None, level: float = 0.95,
                       seed: int = 0) -> tuple[float, float]:
    """Interval of the FD that other samples of the same sizes would give, from two samples (N,d);
    it holds `distance`, by default theirs.

    Percentiles (Efron & Tibshirani 1993, chapter 13) of draws whose mean is moved to `distance`:
    drawing with ties raises an FD by what it calls its bias (their chapter 10), which says nothing
    of the next sample. Of other `sizes` than N, so many are drawn. In simulation it covers the mean
    FD of such samples as often as it says, and more often where two distributions are equal; it is
    no interval of the FD of endless samples, which `fd_infinity` estimates.
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(x: Tensor, n: int) -> FeatureStats:
        chosen = torch.randint(len(x), (n, ), generator=generator)
        return FeatureStats.weighted(x, chosen.bincount(minlength=len(x)), n)

    n_a, n_b = sizes or (len(a), len(b))
    if distance is None:
        distance = frechet_distance(FeatureStats.of(a), FeatureStats.of(b))
    values = torch.tensor([frechet_distance(drawn(a, n_a), drawn(b, n_b)) for _ in range(draws)],
                          dtype=torch.float64)
    moved = (values - values.mean() + distance).clamp(min=0).sort().values
    # the k-th of B draws stands at k / (B + 1): nearer to their ends, which few draws never reach
    places = [(draws + 1) * (1 - level) / 2 - 1, (draws + 1) * (1 + level) / 2 - 1]
    low, high = (float(moved.quantile(min(max(place / max(draws - 1, 1), 0.0), 1.0)))
                 for place in places)
    # a few skewed draws may have all of their inner ones on one side of their mean
    return min(low, distance), max(high, distance)


def label(extractor: str, n: int | None = None, metric: str = "FD") -> str:
    """`FID50k` for Inception features, `FID50k[clean]` for another resize, `FD10k[lite2@64]` for
    any other; n may be unknown."""
    size = "" if n is None else f"{n // 1000}k" if n % 1000 == 0 else str(n)
    network, _, mode = extractor.partition(":")
    if network != "inception":
        return f"{metric}{size}[{extractor}]"
    return f"{'FID' if metric == 'FD' else metric}{size}{f'[{mode}]' if mode else ''}"
