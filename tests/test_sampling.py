from itertools import pairwise

import pytest
import torch
from conftest import small_denoiser
from hypothesis import given, settings
from hypothesis import strategies as st

from gdd import samplers, sampling
from gdd.data.images import to_uint8

DATA_STD = 0.5


def gaussian(x, sigma, labels=None, *, target_sigma=None):
    """The exact denoiser of N(0, DATA_STD^2) data, whose probability flow has a closed form."""
    sigma = torch.as_tensor(sigma, dtype=x.dtype)
    x0_hat = DATA_STD**2 / (DATA_STD**2 + sigma**2) * x
    return x0_hat if target_sigma is None else x + (x - x0_hat) / sigma * (target_sigma - sigma)


def exact(latents):
    return latents * sampling.SIGMA_MAX * DATA_STD / (DATA_STD**2 + sampling.SIGMA_MAX**2)**0.5


def test_ladder_is_edms():
    ladder = sampling.sigma_ladder(18)
    assert len(ladder) == 19
    assert ladder[0] == pytest.approx(80)
    assert ladder[-2] == pytest.approx(0.002)
    assert ladder[-1] == 0
    roots = ladder[:-1]**(1 / 7)
    assert torch.allclose(roots.diff(), roots.diff()[0].expand(17))
    assert sampling.sigma_ladder(1).tolist() == pytest.approx([80, 0])
    assert sampling.generator_ladder(4).tolist() == pytest.approx(
        sampling.sigma_ladder(5)[:-1].tolist())
    with pytest.raises(ValueError, match="steps"):
        sampling.sigma_ladder(0)


@pytest.mark.parametrize(("second_order", "order"), [(True, 2), (False, 1)])
def test_solvers_converge_at_their_order_to_the_closed_form(second_order, order):
    latents, _ = sampling.draw_latents(range(4), (1, 4, 4))
    latents = latents.double()
    errors = []
    for steps in (80, 160):
        # a ladder without the final jump to 0, so that the last step does not mix another order in
        sigmas = sampling.sigma_ladder(steps, sigma_min=1.0)[:-1]
        *_, last = sampling.solve(gaussian, latents, sigmas=sigmas, second_order=second_order)
        truth = latents * 80 * ((DATA_STD**2 + 1) / (DATA_STD**2 + 80**2))**0.5
        errors.append(float((last.x - truth).abs().max()))
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)


def test_heun_and_one_step_on_gaussian_data():
    latents, _ = sampling.draw_latents(range(4), (1, 4, 4))
    assert torch.allclose(sampling.heun(gaussian, latents, steps=64), exact(latents), rtol=1e-2)
    assert torch.allclose(sampling.one_step(gaussian, latents), gaussian(latents * 80, 80.0))
    assert torch.allclose(sampling.k_step(gaussian, latents, steps=1),
                          sampling.one_step(gaussian, latents))


def test_k_step_and_two_step_follow_their_definition(tiny):
    latents, _ = sampling.draw_latents(range(2), (1, 8, 8))
    v, levels = latents * 80, sampling.generator_ladder(3).tolist()
    for sigma, target in pairwise(levels):
        x0 = tiny(v, sigma)
        v = v + (x0 - v) / sigma * (sigma - target)
    assert torch.allclose(sampling.k_step(tiny, latents, steps=3), x0, atol=1e-4)
    middle = tiny(latents * 80, 80.0, target_sigma=0.8)
    assert torch.allclose(sampling.two_step(tiny, latents, middle_sigma=0.8), tiny(middle, 0.8),
                          atol=1e-5)


@pytest.mark.parametrize(("spec", "middle"), [("k-step:2", 2.515), ("two-step:0.8", 0.8),
                                              ("two-step", 0.8), ("two-step:3", 3.0)])
def test_both_generators_of_two_steps_have_their_own_middle_sigma(spec, middle):
    """Figure 2A's K = 2 on the ladder, and what the official code takes instead, 0.8."""
    seen = []

    def noted(x, sigma, labels=None, *, target_sigma=None):
        seen.append((float(sigma), target_sigma))
        return gaussian(x, sigma, labels, target_sigma=target_sigma)

    sampling.parse_sampler(spec)(noted, torch.randn(1, 1, 4, 4))
    (first, target), (second, last) = seen
    assert first == pytest.approx(80)
    assert target == second == pytest.approx(middle, abs=5e-4)
    assert last is None


@pytest.mark.parametrize(("sampler", "calls"), [("heun:5", 9), ("euler:5", 5), ("one-step", 1),
                                                ("k-step:4", 4), ("two-step", 2), ("heun:90", 179),
                                                ("heun:1", 1)])
def test_network_calls_are_what_the_name_says(sampler, calls):
    count = 0

    def counted(*args, **kwargs):
        nonlocal count
        count += 1
        return gaussian(*args, **kwargs)

    sampling.parse_sampler(sampler)(counted, torch.randn(1, 1, 4, 4))
    assert count == calls == samplers.network_calls(sampler)


@settings(max_examples=8)
@given(first=st.integers(0, 2**40), sampler=st.sampled_from([
    "heun:3", "one-step", "k-step:2", "two-step:0.8"]))
def test_image_k_is_a_function_of_its_seed(first, sampler):
    from conftest import TINY

    from gdd.denoiser import Denoiser

    torch.manual_seed(0)
    denoiser = Denoiser.from_config(TINY | {"label_dim": 10})
    # an untrained network answers every seed with almost the same image
    for parameter in denoiser.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    seeds = range(first, first + 8)
    runs = [
        torch.cat(list(sampling.generate(denoiser, seeds, sampler=sampler, batch_size=size)))
        for size in (1, 3, 8)]
    for images in runs[1:]:
        assert torch.allclose(images, runs[0], atol=1e-4)
        assert (to_uint8(images).int() - to_uint8(runs[0]).int()).abs().max() <= 1
    assert not torch.allclose(runs[0][0], runs[0][1], atol=1e-2)


def test_labels_go_with_their_seeds_whatever_the_batch():
    network, seeds, labels = small_denoiser(label_dim=10), range(7), torch.arange(7)
    small, whole = (torch.cat(
        list(sampling.generate(network, seeds, sampler="one-step", labels=labels, batch_size=size)))
        for size in (3, 7))  # yapf: disable
    assert torch.allclose(small, whole, atol=1e-5)
    (others, ) = sampling.generate(network, seeds, sampler="one-step", labels=labels.roll(3))
    assert (whole - others).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_latents_do_not_depend_on_their_neighbours():
    alone, label = sampling.draw_latents([7], (3, 8, 8), 10)
    among, labels = sampling.draw_latents([3, 7, 5], (3, 8, 8), 10)
    assert torch.equal(alone[0], among[1])
    assert label[0] == labels[1]


@pytest.mark.parametrize(
    "spec", ["heun:x", "heun:0", "heun:1000", "k-step", "two-step:90", "one-step:3", "dpm", ""])
def test_unknown_samplers_are_refused(spec):
    with pytest.raises(ValueError, match="sampler must be one of"):
        sampling.parse_sampler(spec)
