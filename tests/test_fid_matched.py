"""Distances with classes made as frequent, and shares beside held-out images."""

import pytest
import torch

from analysis.fid.matched import matched_fd, matching_weights, top_classes
from analysis.fid.neighbours import beside_held_out, nearest, pixels

CLASSES, DIM = 8, 12
CENTRES = 4 * torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(9))
EVEN, SKEWED = torch.ones(CLASSES), torch.arange(1.0, CLASSES + 1)


def sample(shares, n, seed, shift=0.0):
    """(features, class probabilities): a Gaussian a class."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.multinomial(shares, n, replacement=True, generator=generator)
    x = CENTRES[classes] + torch.randn(n, DIM, generator=generator) + shift
    return x, 0.01 + torch.nn.functional.one_hot(classes, CLASSES) * 0.92


def matched(fake, real, **options):
    return matched_fd(fake[0], real[0], fake[1], real[1], **options)


def test_a_distance_of_class_frequencies_goes():
    real = sample(EVEN, 2000, 0)
    found = matched(sample(SKEWED, 2000, 1), real)
    floor = matched(sample(EVEN, 2000, 2), real).before
    assert found.before > 20 * floor
    assert found.drop > 0.97
    assert found.after < 2 * floor
    assert found.off[0] > 0.15
    assert found.off[1] < 0.005
    assert 0.5 * 2000 < found.effective_n < 0.95 * 2000


def test_another_distance_stays():
    found = matched(sample(EVEN, 2000, 1, shift=0.7), sample(EVEN, 2000, 0))
    assert abs(found.drop) < 0.05
    assert found.effective_n > 0.98 * 2000


def test_of_both_the_other_stays():
    real = sample(EVEN, 2000, 0)
    found = matched(sample(SKEWED, 2000, 1, shift=0.7), real)
    alone = matched(sample(EVEN, 2000, 2, shift=0.7), real).before
    assert found.after == pytest.approx(alone, rel=0.1)


def test_weights_of_one_class_are_quotients_of_shares():
    _, ours = sample(SKEWED, 3000, 0)
    rows, target = top_classes(ours, 1), torch.full((CLASSES, ), 1 / CLASSES).double()
    weights = matching_weights(rows, target)
    assert weights.sum() == pytest.approx(1)
    wanted = (target / rows.mean(dim=0))[rows.argmax(dim=1)] / len(rows)
    assert torch.allclose(weights, wanted, rtol=0.02)


def test_weights_of_several_classes_match_what_can_be_matched():
    generator = torch.Generator().manual_seed(1)
    ours, theirs = (top_classes(torch.randn(1500, CLASSES, generator=generator) + tilt, 3)
                    for tilt in (torch.linspace(0, 1, CLASSES), torch.zeros(CLASSES)))
    weights = matching_weights(ours, theirs.mean(dim=0))
    assert (ours.mean(dim=0) - theirs.mean(dim=0)).abs().max() > 0.1
    assert (weights @ ours - theirs.mean(dim=0)).abs().max() < 0.002
    # a class that none of the generated images has: finite weights, and as near as they come
    lacking = ours.clone()
    lacking[:, 0] = 0
    weights = matching_weights(lacking, theirs.mean(dim=0))
    assert weights.isfinite().all()
    assert weights.sum() == pytest.approx(1)


@pytest.mark.parametrize("top", [0, CLASSES])
def test_as_many_classes_as_there_are_say_nothing(top):
    with pytest.raises(ValueError, match=f"top must be 1 to 7, fewer .*; got {top}"):
        top_classes(torch.rand(5, CLASSES), top)


# --- nearest neighbours ---


def test_a_generator_that_repeats_its_data_has_more_below_the_limit():
    train, held_out, fresh = torch.randn(3, 1000, 10, generator=torch.Generator().manual_seed(0))
    copies = torch.cat([train[:100] + 0.01, fresh[100:]])
    table = beside_held_out({
        which: nearest(points, train)[0]
        for which, points in dict(zip(("held-out", "fresh", "copies"),
                                      (held_out, fresh, copies), strict=True)).items()
    }).set_index("of")  # yapf: disable
    assert table.loc["held-out", "share_below"] == pytest.approx(0.01)
    assert table.loc["fresh", "share_below"] < 0.02  # 0.01, and three standard errors of 1000
    assert 0.1 <= table.loc["copies", "share_below"] < 0.12
    assert table.loc["copies", "least"] == pytest.approx(0.01 * 10**0.5, rel=1e-2)


def test_pixels_are_compared_by_their_root_mean_square():
    a, b = torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.full((1, 3, 4, 4), 255).to(torch.uint8)
    assert nearest(pixels(a), pixels(b))[0] == pytest.approx(2.0)
