"""Editing against closed forms: denoisers, generators and pictures whose answers are known."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from scipy import stats

from analysis import editing, editing_plots, pixels
from analysis.differences import psnr, rms
from analysis.fid.frechet import FeatureStats, frechet_distance
from gdd.data.images import to_uint8
from gdd.sampling import draw_latents, heun, k_step, ladder_sigma

SHAPE = (1, 4, 4)


def gaussian(x, sigma, labels=None, *, target_sigma=None):
    """The denoiser of white Gaussian images of variance 1/4: D = x / (1 + 4 sigma^2)."""
    x0_hat = x / (1 + 4 * sigma**2)
    if target_sigma is None:
        return x0_hat
    return x0_hat + target_sigma / sigma * (x - x0_hat)


def latents(n, shape=SHAPE):
    return draw_latents(range(n), shape)[0].double()


@pytest.mark.parametrize("sampler", [heun, lambda d, z: k_step(d, z, steps=4)])
@pytest.mark.parametrize("kind", editing.MASKS)
def test_a_held_image_is_completed_and_its_known_part_stays(sampler, kind):
    """Pixels of this denoiser are independent, so what is missing is what it makes alone."""
    images, mask, z = latents(3) / 2, editing.missing(kind, 4), latents(3)
    made, alone = sampler(editing.held(gaussian, images, mask), z), sampler(gaussian, z)
    known = ~mask.expand_as(images)
    assert torch.allclose(made[known], images[known].to(made.dtype), atol=1e-6)
    assert torch.allclose(made[~known], alone[~known])


def test_masks_are_what_they_are_called():
    right, bottom, centre = (editing.missing(kind, 8)[0, 0] for kind in editing.MASKS)
    assert right.sum() == bottom.sum() == 32
    assert right[:, 4:].all()
    assert bottom[4:].all()
    assert centre.sum() == 16
    assert centre[2:6, 2:6].all()
    with pytest.raises(ValueError, match="mask must be one of right, bottom, centre; got 'left'"):
        editing.missing("left", 8)


def test_optimised_latents_reach_a_known_picture_and_stay_noise():
    torch.manual_seed(0)
    mix = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64))[0]  # a rotation

    def make(z):
        return (z.flatten(1) @ mix).view_as(z)

    start, truth = latents(5), latents(9)[4:]
    truth -= truth.mean(dim=(2, 3), keepdim=True)
    truth /= truth.std(dim=(2, 3), keepdim=True, correction=0)
    images, mask = make(truth), editing.missing("right", 4)
    exact = partial(editing.optimise, make, steps=300, lr=0.1, noise=0)
    found = exact(images, mask, start)
    before, after = (rms(make(z), images, ~mask) for z in (start, found))
    assert (after < 0.02 * before).all()
    assert found.mean(dim=(2, 3)).abs().max() < 1e-12
    assert torch.allclose(found.square().mean(dim=(2, 3)), torch.ones(5, 1).double())
    # each by itself
    alone = exact(images[2:3], mask, start[2:3])
    assert torch.allclose(alone, found[2:3], atol=1e-9)
    like = editing.optimise(make, images, mask, start, steps=300, lr=0.1, noise=1e3)
    assert (editing.unlike_noise(like) < 0.01 * editing.unlike_noise(found)).all()


def test_noise_is_like_noise_at_every_size_and_a_flat_picture_is_not():
    flat = torch.full((2, 3, 8, 8), 0.5).double()
    # products of neighbours 1/4; halved, and doubled for variance 1, they are 1
    expected = torch.full((2, ), 3 * 2 * (1 / 16 + 1)).double()
    assert torch.allclose(editing.unlike_noise(flat), expected)
    noise = draw_latents(range(50), (3, 8, 8))[0].double()
    # a mean of 64 products of variance 1, of 16 at the half size
    assert editing.unlike_noise(noise).mean() == pytest.approx(3 * 2 * (1 / 64 + 1 / 16), rel=0.25)


def test_optimisation_never_ends_worse_than_it_began():
    start = latents(4)
    found = editing.optimise(lambda z: z, start, editing.missing("bottom", 4), start, steps=5,
                             lr=10.0, noise=0)
    assert torch.equal(found, start)


def test_a_guided_generator_starts_from_the_picture_and_noise_at_its_level():
    calls = []

    def denoise(x, sigma, labels=None, *, target_sigma=None):
        calls.append((sigma, target_sigma, x.clone()))
        return gaussian(x, sigma, target_sigma=target_sigma)

    picture, z = latents(2), latents(4)[2:]
    editing.guided(denoise, picture, z, 4, 2)
    levels = [ladder_sigma(2 / 4), ladder_sigma(1 / 4)]
    assert [call[:2] for call in calls] == [(levels[0], levels[1]), (levels[1], None)]
    assert torch.allclose(calls[0][2], picture + levels[0] * z)
    for first in (0, 4):
        with pytest.raises(ValueError, match=f"first must be from 1 to 3 of 4 steps; got {first}"):
            editing.guided(denoise, picture, z, 4, first)


@given(st.floats(0, 1), st.integers(0, 1000))
def test_slerp_stays_on_the_sphere_and_is_symmetric(t, seed):
    a, b = draw_latents([seed, seed + 1], SHAPE)[0].double().split(1)
    b = b * a.norm() / b.norm()
    found = editing.slerp(a, b, t)
    assert float(found.norm()) == pytest.approx(float(a.norm()), rel=1e-9)
    assert torch.allclose(found, editing.slerp(b, a, 1 - t))
    angle = torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1)).arccos()
    here = torch.nn.functional.cosine_similarity(a.flatten(1), found.flatten(1)).clamp(max=1)
    assert float(here.arccos()) == pytest.approx(float(t * angle), abs=1e-6)


def test_a_walk_begins_and_ends_at_its_seeds_and_its_evenness_is_known():
    a, b = latents(4).split(2)
    walk = editing.walk(lambda z: 3 * z, a, b, points=5)
    assert walk.shape == (5, 2, *SHAPE)
    assert torch.allclose(walk[0], 3 * a)
    assert torch.allclose(walk[-1], 3 * b)
    ramp = torch.linspace(0, 1, 5).view(5, 1, 1, 1, 1).expand(5, 2, *SHAPE)
    assert torch.allclose(editing.evenness(ramp), torch.ones(2))
    assert torch.allclose(editing.evenness((ramp > 0.6).float()), torch.full((2, ), 4.0))


def test_psnr_and_rms_count_the_masked_pixels_alone():
    a, b, mask = torch.zeros(2, *SHAPE), torch.zeros(2, *SHAPE), editing.missing("right", 4)
    b[..., 2:], b[..., :2] = 0.2, 5.0
    assert torch.allclose(rms(a, b, mask), torch.tensor(0.2))
    assert torch.allclose(psnr(a, b, mask), torch.tensor(20.0))  # 20 log10(2 / 0.2)
    assert torch.allclose(rms(a, b), torch.tensor((0.04 / 2 + 25 / 2)**0.5))


def test_completions_are_measured_against_their_own_originals():
    images = (latents(6) / 4).clamp(-1, 1).float()
    mask, reference = editing.missing("right", 4), latents(40) * 100 + 128
    reference = FeatureStats.of(reference.flatten(1))

    def features(x):
        return x.flatten(1).float()

    made = {"same": images, "others": images.roll(1, dims=0)}
    table = editing.measure_completions(made, images, mask, features, reference)
    found = table.set_index(["method", "statistic"])["mean"]
    assert found["same", "feature"] == 0
    assert found["others", "feature"] == pytest.approx(1)
    expected = psnr(made["others"], images, mask).double().mean()
    assert found["others", "psnr"] == pytest.approx(float(expected))
    own = frechet_distance(FeatureStats.of(features(to_uint8(images))), reference)
    assert [found[method, "fd"] for method in made] == pytest.approx([own, own])
    interval = table[table["statistic"] == "psnr"].iloc[1]
    values = psnr(made["others"], images, mask).double()
    low, high = stats.t.interval(0.95, 5, loc=values.mean(), scale=stats.sem(values))
    assert (interval["low"], interval["high"]) == pytest.approx((low, high))
    assert set(table["n"]) == {6}


def test_classes_are_counted_by_what_was_asked_for():
    """A generator whose class is its brightness, and a classifier that mistakes the last."""
    def make(z, labels):
        return z * 0 + labels.view(-1, 1, 1, 1) / 2 - 1 + 0.001 * z

    images = editing.switch_classes(make, latents(4).float(), 3)
    assert images.shape == (3, 4, *SHAPE)

    def classify(x):
        level = ((x.float().mean(dim=(1, 2, 3)) - 0.5) / 63.75).round().long().clamp(max=1)
        return torch.eye(3)[level]

    found = editing.measure_classes(images, classify).set_index("statistic")["mean"]
    assert found["agreement"] == pytest.approx(2 / 3)
    assert found["class_change"] == pytest.approx(0.5, abs=1e-3)
    assert 0 < found["latent_change"] < 0.003


def test_a_rough_picture_keeps_the_means_of_its_squares():
    images = latents(2)
    rough = editing.rough(images, 2)
    assert torch.allclose(rough[0, 0, :2, 2:], images[0, 0, :2, 2:].mean().expand(2, 2))
    assert torch.allclose(editing.rough(rough, 2), rough)


def test_rows_of_pictures_are_in_the_order_of_the_table():
    values = {"b": 10, "a": 200}
    table = pd.DataFrame({
        "method": name, "place": place, "pixels": pixels.packed(
            np.full((1, 1, 2, 2), value + place, np.uint8))[0]}
                         for name, value in values.items() for place in (1, 0))  # yapf: disable
    ax = editing_plots.plot_rows(table, ax=plt.subplots()[1])
    shown = ax.images[0].get_array()
    assert [int(shown[0, 0]), int(shown[0, 3]), int(shown[3, 0])] == [10, 11, 200]
    assert [text.get_text() for text in ax.texts] == ["b", "a"]
    plt.close("all")


def test_scores_show_every_method_and_the_originals_as_a_line():
    table = pd.DataFrame({
        "method": ["GDD-I, latents", "mean picture", "original"], "statistic": "fd",
        "mean": [3.0, 8.0, 1.0], "low": [2.0, None, None],
        "high": [4.0, None, None]})  # yapf: disable
    ax = editing_plots.plot_scores(table, "fd", ax=plt.subplots()[1])
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "GDD-I, latents", "mean picture"]
    lines = [line.get_xdata() for line in ax.lines]
    assert [1.0, 1.0] in [list(x) for x in lines]
    plt.close("all")
