"""Metrics of samples against torch-fidelity on the same features, and against their definitions."""

import numpy as np
import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from analysis.fid.samples import ClassScores, density_coverage, kid, precision_recall


def pair(n=300, m=260, d=16, shift=0.5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(
        n, d, generator=generator,
        dtype=dtype), torch.randn(m, d, generator=generator, dtype=dtype) * 1.2 + shift


def test_kid_is_torch_fidelitys():
    a, b = pair()
    theirs = kid_features_to_metric(a, b, kid_subsets=20, kid_subset_size=100, rng_seed=2020,
                                    verbose=False)
    value, spread = kid(a, b, subsets=20, subset_size=100)
    assert value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)
    theirs = theirs["kernel_inception_distance_std"]  # of numpy, which divides by 20
    assert spread == pytest.approx(theirs * (20 / 19)**0.5, rel=1e-9)


def test_subsets_that_are_everything_have_no_spread():
    a, b = pair(n=90, m=90)
    assert np.isnan(kid(a, b, subsets=3)[1])
    assert kid(a, b[:80], subsets=3)[1] > 0


def test_kid_is_unbiased():
    """Over many pairs of samples of one distribution its mean is 0, while the biased estimate's is
    not."""
    values = []
    for seed in range(200):
        x, y = torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(seed))
        values.append(kid(x, y, subsets=1, subset_size=30)[0])
    assert abs(np.mean(values)) < 3 * np.std(values) / len(values)**0.5


@pytest.mark.parametrize("size", [260, 3000], ids=["one block", "several blocks"])
def test_precision_and_recall_are_torch_fidelitys(size):
    a, b = pair(n=size, m=size - 10)
    theirs = prc_features_to_metric(a, b, prc_neighborhood=3, prc_batch_size=1000,
                                    save_cpu_ram=False, verbose=False)
    assert precision_recall(a, b) == pytest.approx((theirs["precision"], theirs["recall"]),
                                                   abs=1e-6)


def test_density_and_coverage_are_their_definitions():
    fake, real = pair(n=70, m=50, d=3)
    k = 5
    distance = (fake[:, None] - real[None]).norm(dim=2)
    own = (real[:, None] - real[None]).norm(dim=2).sort(dim=1).values[:, k]
    assert density_coverage(fake, real, k=k) == pytest.approx((float(
        (distance < own).sum()) / (k * 70), float((distance.min(dim=0).values
                                                   < own).double().mean())))
    same = density_coverage(real, real, k=k)
    assert same[1] == 1  # every ball holds its own centre


def test_too_few_neighbours_are_refused():
    x = torch.randn(4, 2)
    with pytest.raises(ValueError,
                       match="5 neighbours need more than 5 images of each; got 4 and 4"):
        density_coverage(x, x)
    with pytest.raises(ValueError, match="3 neighbours need"):
        precision_recall(x[:3], x)
    with pytest.raises(ValueError, match="KID needs at least 2 images"):
        kid(x[:1], x)


def test_inception_score_is_torch_fidelitys():
    logits = torch.randn(503, 12, generator=torch.Generator().manual_seed(0),
                         dtype=torch.float64) * 3
    theirs = isc_features_to_metric(logits, splits=10, shuffle=False)
    split = torch.empty(503, dtype=torch.long)
    for index in range(10):
        split[index * 503 // 10:(index + 1) * 503 // 10] = index
    one, two = ClassScores.empty(12), ClassScores.empty(12)
    one.update(logits[:200].softmax(1), split[:200])
    two.update(logits[200:].softmax(1), split[200:])
    found = one.merge(two).score()
    assert found == pytest.approx((theirs["inception_score_mean"], theirs["inception_score_std"]),
                                  rel=1e-9)
    uniform = ClassScores.empty(4, splits=1).update(torch.eye(4), torch.zeros(4, dtype=torch.long))
    # each image sure of its class, all classes alike: the greatest score
    assert uniform.score() == pytest.approx((4.0, 0.0))
    with pytest.raises(ValueError, match="needs images in each"):
        ClassScores.empty(4).score()
