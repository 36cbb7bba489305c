import numpy as np
import pytest
import torch
from cleanfid.fid import frechet_distance as clean_fid
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.fid import FeatureStats, frechet_distance, label


def gaussian(mean, covariance, n=1000):
    mean, covariance = torch.as_tensor(mean, dtype=torch.float64), torch.as_tensor(covariance, dtype=torch.float64)
    return FeatureStats(n, mean, covariance * (n - 1))


def features(seed, n, d, rank=None):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(rank or d, d, generator=generator)
    return torch.randn(n, rank or d, generator=generator) @ mixing + torch.randn(d, generator=generator)


def test_closed_forms():
    a, b = gaussian([0.0, 0.0], [[1.0, 0.0], [0.0, 4.0]]), gaussian([3.0, 4.0], [[4.0, 0.0], [0.0, 9.0]])
    assert frechet_distance(a, b) == pytest.approx(25 + (1 - 2) ** 2 + (2 - 3) ** 2)  # commuting covariances
    scale = gaussian(torch.zeros(5), 4 * torch.eye(5))
    assert frechet_distance(gaussian(torch.zeros(5), torch.eye(5)), scale) == pytest.approx(5 * (2 - 1) ** 2)
    point = gaussian([1.0], [[0.0]])
    assert frechet_distance(point, gaussian([3.0], [[0.0]])) == pytest.approx(4)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), d=st.integers(2, 24), n=st.integers(30, 80))
def test_agrees_with_clean_fid(seed, d, n):
    a, b = FeatureStats.of(features(seed, n, d)), FeatureStats.of(features(seed + 1, n, d))
    theirs = clean_fid(a.mean.numpy(), a.covariance.numpy(), b.mean.numpy(), b.covariance.numpy())
    assert frechet_distance(a, b) == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize(("n", "rank"), [(400, 6), (12, None)], ids=["rank-deficient", "fewer images than dimensions"])
def test_singular_covariances_agree_with_an_eigenvalue_reference(n, rank):
    """scipy's root of a singular product is inexact, so the reference is the spectrum of the product itself."""
    a, b = FeatureStats.of(features(1, n, 20, rank)), FeatureStats.of(features(2, n, 20, rank))
    spectrum = np.linalg.eigvals(a.covariance.numpy() @ b.covariance.numpy())
    trace = np.sqrt(np.maximum(spectrum.real, 0)).sum()
    reference = float((a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace()) - 2 * trace
    assert frechet_distance(a, b) == pytest.approx(reference, rel=1e-5)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), d=st.integers(1, 24), n=st.integers(2, 60))
def test_distance_to_itself_and_symmetry(seed, d, n):
    a, b = FeatureStats.of(features(seed, n, d)), FeatureStats.of(features(seed + 1, n, d))
    size = float(a.covariance.trace() + b.covariance.trace())
    assert frechet_distance(a, a) < 1e-6 * max(size, 1)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-7, abs=1e-9 * size)


@settings(deadline=None, max_examples=25)
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
    assert label("inception", 50_000) == "FID50000"
    assert label("digits", 1797) == "FD1797[digits]"
