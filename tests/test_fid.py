import numpy as np
import pytest
import torch
from cleanfid.fid import frechet_distance as clean_fid
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.fid import (
    FeatureStats,
    bootstrap_interval,
    fd_infinity,
    frechet_distance,
    frechet_distances,
    label,
)
from analysis.fid.frechet import Root


def gaussian(mean, covariance, n=1000):
    mean, covariance = torch.as_tensor(mean, dtype=torch.float64), torch.as_tensor(
        covariance, dtype=torch.float64)
    return FeatureStats(n, mean, covariance * (n - 1))


def features(seed, n, d, rank=None):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(rank or d, d, generator=generator)
    return torch.randn(n, rank or d, generator=generator) @ mixing + torch.randn(
        d, generator=generator)


def test_closed_forms():
    a, b = gaussian([0.0, 0.0], [[1.0, 0.0], [0.0, 4.0]]), gaussian([3.0, 4.0],
                                                                    [[4.0, 0.0], [0.0, 9.0]])
    # commuting covariances
    assert frechet_distance(a, b) == pytest.approx(25 + (1 - 2)**2 + (2 - 3)**2)
    scale = gaussian(torch.zeros(5), 4 * torch.eye(5))
    assert frechet_distance(gaussian(torch.zeros(5), torch.eye(5)), scale) == pytest.approx(
        5 * (2 - 1)**2)
    point = gaussian([1.0], [[0.0]])
    assert frechet_distance(point, gaussian([3.0], [[0.0]])) == pytest.approx(4)


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), d=st.integers(2, 24), n=st.integers(30, 80))
def test_agrees_with_clean_fid(seed, d, n):
    a, b = FeatureStats.of(features(seed, n, d)), FeatureStats.of(features(seed + 1, n, d))
    theirs = clean_fid(a.mean.numpy(), a.covariance.numpy(), b.mean.numpy(), b.covariance.numpy())
    assert frechet_distance(a, b) == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize(("n", "rank"), [(400, 6), (12, None)], ids=[
    "rank-deficient", "fewer images than dimensions"])
def test_singular_covariances_agree_with_an_eigenvalue_reference(n, rank):
    """scipy's root of a singular product is inexact, so the reference is the spectrum of the
    product itself."""
    a, b = FeatureStats.of(features(1, n, 20, rank)), FeatureStats.of(features(2, n, 20, rank))
    spectrum = np.linalg.eigvals(a.covariance.numpy() @ b.covariance.numpy())
    trace = np.sqrt(np.maximum(spectrum.real, 0)).sum()
    reference = float((a.mean - b.mean).square().sum() + a.covariance.trace() +
                      b.covariance.trace()) - 2 * trace
    assert frechet_distance(a, b) == pytest.approx(reference, rel=1e-5)


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), d=st.integers(1, 24), n=st.integers(2, 60))
def test_distance_to_itself_and_symmetry(seed, d, n):
    a, b = FeatureStats.of(features(seed, n, d)), FeatureStats.of(features(seed + 1, n, d))
    size = float(a.covariance.trace() + b.covariance.trace())
    assert frechet_distance(a, a) < 1e-6 * max(size, 1)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-7,
                                                   abs=1e-9 * size)


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), cuts=st.lists(st.integers(1, 49), max_size=5, unique=True))
def test_streaming_does_not_depend_on_the_batches(seed, cuts):
    x = features(seed, 50, 7) + 1e4  # a large mean punishes naive sums of squares
    streamed = FeatureStats.empty(7)
    for part in torch.tensor_split(x, sorted(cuts)):
        streamed.update(part)
    assert streamed.n == 50
    assert torch.allclose(streamed.mean, x.double().mean(0), rtol=1e-12)
    assert torch.allclose(streamed.covariance, torch.cov(x.double().T), rtol=1e-8, atol=1e-9)


def test_merging_equals_one_pass():
    x = features(0, 90, 5)
    merged = FeatureStats.of(x[:20]).merge(FeatureStats.of(x[20:]))
    assert torch.allclose(merged.covariance, FeatureStats.of(x).covariance, rtol=1e-10)
    assert merged.merge(FeatureStats.empty(5)).n == 90


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"features must be \(N,3\); got \(4, 2\)"):
        FeatureStats.empty(3).update(torch.zeros(4, 2))
    with pytest.raises(ValueError, match="NaN"):
        FeatureStats.of(torch.tensor([[float("nan")]]))
    with pytest.raises(ValueError, match="at least 2 images; got 1"):
        frechet_distance(FeatureStats.of(torch.zeros(1, 3)), FeatureStats.of(torch.zeros(5, 3)))
    with pytest.raises(ValueError, match="dimension: 2 and 3"):
        frechet_distance(FeatureStats.of(torch.zeros(5, 2)), FeatureStats.of(torch.zeros(5, 3)))


def test_only_inception_makes_a_fid():
    assert label("inception", 50_000) == "FID50k"
    assert label("inception:clean", 5_000) == "FID5k[clean]"
    assert label("inception", 10_000, "KID") == "KID10k"
    assert label("clip", 50_000) == "FD50k[clip]"
    assert label("digits", 1797) == "FD1797[digits]"


def test_matrix_is_every_pair_and_names_a_wrong_dimension():
    stats = [
        FeatureStats.of(features(seed, 60, 12, rank))
        for seed, rank in ((0, None), (1, 5), (2, None), (3, 5))]
    found = frechet_distances(stats)
    assert torch.equal(found, found.T)
    assert torch.equal(found.diagonal(), torch.zeros(4, dtype=torch.float64))
    for i in range(4):
        for j in range(i):
            assert float(found[i, j]) == pytest.approx(frechet_distance(stats[i], stats[j]),
                                                       rel=1e-7)
    with pytest.raises(ValueError, match="differ in dimension: 3 and 12"):
        frechet_distances([*stats, FeatureStats.of(features(4, 10, 3))])


@pytest.mark.parametrize("d", [64, 256])
def test_nearly_singular_covariances_keep_their_closed_form(d):
    """Spectra over 16 orders of magnitude in a common basis, where the distance is known and
    scipy's root goes complex."""
    basis = torch.linalg.qr(
        torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    one, two = torch.logspace(0, -16, d, dtype=torch.float64), torch.logspace(
        0, -12, d, dtype=torch.float64)
    a, b = (gaussian(torch.zeros(d), (basis * spectrum) @ basis.T) for spectrum in (one, two))
    closed = float((one.sqrt() - two.sqrt()).square().sum())
    assert frechet_distance(a, b) == pytest.approx(closed, rel=1e-4)
    assert frechet_distance(a, a) < 1e-6


def test_a_singular_covariance_has_a_factor_of_its_rank():
    """And one that rounding made indefinite a factor all the same."""
    exact = FeatureStats.of(features(0, 20, 50)).covariance
    root = Root.of(exact)
    assert root.matrix.shape == (50, 19)
    assert torch.allclose(root.matrix @ root.matrix.T, exact, atol=1e-13)
    rounded = exact.float().double()
    assert torch.linalg.eigvalsh(rounded)[0] < 0
    again = Root.of(rounded).matrix
    assert torch.allclose(again @ again.T, exact, atol=1e-6)


def test_many_more_dimensions_than_images():
    """Both covariances singular: zero eigenvalues must not add up to a distance."""
    x = torch.randn(40, 500, generator=torch.Generator().manual_seed(0))
    a, b = FeatureStats.of(x), FeatureStats.of(x + 1)
    assert frechet_distance(a, a) < 1e-6
    assert frechet_distance(a, b) == pytest.approx(500, rel=1e-6)


def test_infinity_removes_the_bias_of_small_samples():
    """Two samples of one distribution: FD falls like 1/n, and the line through it ends near 0."""
    x, y = torch.randn(2, 3000, 24, generator=torch.Generator().manual_seed(1))
    reference = FeatureStats.of(y)
    plain, extrapolated = frechet_distance(FeatureStats.of(x), reference), fd_infinity(x, reference)
    assert abs(extrapolated) < 0.7 * plain
    assert fd_infinity(x, reference) == extrapolated
    assert fd_infinity(x + 1, reference) == pytest.approx(24, rel=0.03)  # |mean|^2
    with pytest.raises(ValueError, match="at least 30 images; got 20"):
        fd_infinity(x[:20], reference)


def test_a_bootstrap_interval_covers_as_often_as_it_says():
    """Of Gaussians whose distance is known, within three standard errors of the share; each holds
    its estimate."""
    generator, hits, pairs = torch.Generator().manual_seed(2), 0, 100
    for _ in range(pairs):
        x, y = torch.randn(2, 400, 3, generator=generator)
        low, high = bootstrap_interval(x, y + 1, draws=40, level=0.9)
        assert 0 <= low <= frechet_distance(FeatureStats.of(x), FeatureStats.of(y + 1)) <= high
        hits += low <= 3.03 <= high  # |mean|^2, and what n = 400 adds
    assert abs(hits / pairs - 0.9) < 3 * (0.9 * 0.1 / pairs)**0.5


def test_an_interval_is_of_the_distance_at_its_n():
    """8 dimensions and n = 60 are all bias: the mean of many such distances is what it covers, and
    the estimate never lies outside."""
    generator = torch.Generator().manual_seed(3)

    def pair():
        x, y = torch.randn(2, 60, 8, generator=generator)
        return x, 1.3 * y + 0.3

    mean = np.mean([frechet_distance(*map(FeatureStats.of, pair())) for _ in range(300)])
    assert mean > 1.5 * (8 * 0.3**2 + 8 * 0.3**2)  # far above that of endless samples
    hits = 0
    for _ in range(40):
        x, y = pair()
        low, high = bootstrap_interval(x, y, draws=40, level=0.9)
        assert low <= frechet_distance(FeatureStats.of(x), FeatureStats.of(y)) <= high
        hits += low <= mean <= high
    assert hits >= 32  # 36, less two standard errors


def test_an_interval_is_as_wide_as_its_sizes_say():
    """Features of a part of the images stand for all of them: the spread is that of all."""
    x, y = torch.randn(2, 300, 3, generator=torch.Generator().manual_seed(4))
    few, many = (bootstrap_interval(x, y + 1, draws=80, sizes=(n, n), distance=3.3)
                 for n in (300, 30_000))
    assert few[0] < many[0] < 3.3 < many[1] < few[1]
    assert (few[1] - few[0]) / (many[1] - many[0]) == pytest.approx(10, rel=0.35)


def test_weights_are_repetitions():
    x = features(5, 40, 6)
    counts = torch.arange(40) % 4
    repeated = FeatureStats.of(x.repeat_interleave(counts, dim=0))
    weighted = FeatureStats.weighted(x, counts, int(counts.sum()))
    assert torch.allclose(weighted.mean, repeated.mean)
    assert torch.allclose(weighted.covariance, repeated.covariance)
