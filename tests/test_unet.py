"""Networks and preconditioning against outputs of the official EDM code."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gdd import sampling
from gdd.denoiser import GENERATOR_EPSILON, Denoiser, scalings

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.npz"))


@pytest.fixture(params=GOLDEN, ids=lambda path: path.stem)
def golden(request):
    arrays = np.load(request.param)
    denoiser = Denoiser.from_config(json.loads(bytes(arrays["config_json"])))
    denoiser.load_state_dict({
        k.removeprefix("state/"): torch.from_numpy(arrays[k]) for k in arrays
        if k.startswith("state/")})
    return denoiser.eval(), {
        k: torch.from_numpy(arrays[k]) for k in arrays if k.startswith(("in/", "out/"))}


def difference(a, b):
    return float((a - b).abs().max())


@torch.no_grad()
def test_single_calls_agree_with_the_official_networks(golden):
    denoiser, arrays = golden
    call = (arrays["in/x"], arrays["in/sigma"], arrays.get("in/class_labels"))
    assert difference(denoiser(*call), arrays["out/denoised_without_augment_labels"]) < 1e-5
    assert difference(denoiser(*call, augment_labels=arrays.get("in/augment_labels")),
                      arrays["out/denoised"]) < 1e-5


@torch.no_grad()
def test_samplers_agree_with_the_official_ones(golden):
    denoiser, arrays = golden
    latents, _ = sampling.draw_latents(range(10, 14), arrays["in/x"].shape[1:])
    labels = arrays.get("in/class_labels")
    # torch draws the same streams everywhere, and rounds their logarithms as the processor does
    assert difference(latents, arrays["in/latents_seeds_10_13"]) < 1e-5
    latents = arrays["in/latents_seeds_10_13"]
    for steps in (5, 18):
        assert difference(sampling.heun(denoiser, latents, steps=steps, labels=labels),
                          arrays[f"out/heun{steps}"]) < 1e-3
    generator = denoiser.copy(epsilon=GENERATOR_EPSILON)
    assert difference(sampling.one_step(generator, latents, labels=labels),
                      arrays["out/one_step_sigma80_eps0.002"]) < 1e-3


@pytest.mark.parametrize("encoder", ["standard", "skip", "residual"])
@pytest.mark.parametrize("decoder", ["standard", "skip"])
@pytest.mark.parametrize("resample", [[1, 1], [1, 3, 3, 1]])
def test_every_song_variant_runs_and_uses_all_its_parameters(encoder, decoder, resample):
    config = dict(img_resolution=16, img_channels=2, label_dim=3, augment_dim=4,
                  model_type="SongUNet", model_channels=8, channel_mult=[
                      1, 2, 2], num_blocks=1, attn_resolutions=[
                          8], encoder_type=encoder, decoder_type=decoder, resample_filter=resample)
    denoiser = Denoiser.from_config(config)
    x = torch.randn(2, 2, 16, 16)
    out = denoiser(x, torch.tensor([0.5, 20.0]), torch.tensor([0, 2]), augment_labels=torch.randn(
        2, 4))
    assert out.shape == x.shape
    out.square().sum().backward()
    assert [name for name, p in denoiser.named_parameters() if p.grad is None] == []


def test_scalings_closed_forms():
    sigma = torch.tensor([0.002, 0.5, 80.0], dtype=torch.float64)
    c_skip, c_out, c_in, c_noise = scalings(sigma, 0.5, 0.0)
    assert torch.allclose(c_skip[1], torch.tensor(0.5, dtype=torch.float64))
    # EDM appendix B.6: the network's target (x0 - c_skip x) / c_out has unit variance for data of
    # variance sigma_data^2
    variance = ((1 - c_skip)**2 * 0.25 + c_skip**2 * sigma**2) / c_out**2
    assert torch.allclose(variance, torch.ones(3, dtype=torch.float64))
    assert torch.allclose(c_in**2 * (sigma**2 + 0.25), torch.ones(3, dtype=torch.float64))
    assert torch.allclose((4 * c_noise).exp(), sigma)
    # the generator's boundary: the identity at sigma = epsilon, EDM's c_out up to the shift
    b_skip, b_out, b_in, _ = scalings(sigma, 0.5, 0.002)
    assert b_skip[0] == 1
    assert b_out[0] == 0
    assert torch.equal(b_in, c_in)


def test_target_sigma_is_the_euler_jump(tiny):
    x, sigma, target = torch.randn(3, 1, 8, 8), torch.tensor([5.0, 1.0, 0.3]), torch.tensor([
        2.0, 0.5, 0.3])
    jumped = tiny(x, sigma, target_sigma=target)
    x0_hat = tiny(x, sigma)
    by_hand = x + (x - x0_hat) / sigma.view(-1, 1, 1, 1) * (target - sigma).view(-1, 1, 1, 1)
    assert torch.allclose(jumped, by_hand, atol=1e-5)
    assert torch.allclose(jumped[2], x[2], atol=1e-6)  # no time passes, nothing moves


@pytest.mark.parametrize(
    ("change", "message"),
    [({"model_type": "UViT"}, "UViT"), ({"depth": 3}, "depth"),
     ({"encoder_type": "wide", "model_type": "SongUNet"}, "wide")],
)
def test_a_wrong_config_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        Denoiser.from_config(dict(img_resolution=8, img_channels=1) | change)
    with pytest.raises(ValueError, match="img_channels"):
        Denoiser.from_config({"img_resolution": 8})
