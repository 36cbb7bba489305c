"""Other people's networks as denoisers: each adapter against the original."""

import math

import pytest
import torch
from conftest import small_denoiser
from torch import nn

import analysis
from gdd.sampling import draw_latents, generate, solve, to_device

SHAPE = (3, 8, 8)


@pytest.fixture(scope="module")
def diffusers():
    return pytest.importorskip("diffusers")


def unet(diffusers, **change):
    torch.manual_seed(0)
    options = dict(sample_size=8, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2,
                   attention_head_dim=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                   up_block_types=("AttnUpBlock2D", "UpBlock2D"))
    return diffusers.UNet2DModel(**options | change).double().eval()


def in_double(scheduler):
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    return scheduler


def noised(sigmas, seed=0):
    stream = torch.Generator().manual_seed(seed)
    image = 2 * torch.rand(1, *SHAPE, generator=stream, dtype=torch.float64) - 1
    noise = torch.randn(len(sigmas), *SHAPE, generator=stream, dtype=torch.float64)
    return image + sigmas.view(-1, 1, 1, 1) * noise


@pytest.mark.parametrize(("kind", "prediction", "options"), [
    ("DDPMScheduler", "epsilon", {}),
    ("DDPMScheduler", "epsilon", {"clip_sample": False, "variance_type": "learned_range",
                                  "num_train_timesteps": 200}),
    ("DDPMScheduler", "sample", {"beta_schedule": "squaredcos_cap_v2", "clip_sample_range": 0.3,
                                 "num_train_timesteps": 200}),
    ("DDIMScheduler", "epsilon", {"clip_sample": False, "beta_schedule": "scaled_linear"}),
    ("DDIMScheduler", "v_prediction", {"clip_sample": False, "num_train_timesteps": 200}),
    ("DDIMScheduler", "v_prediction", {"clip_sample": False, "rescale_betas_zero_snr": True}),
])  # yapf: disable
def test_x0_is_the_schedulers_at_every_time_step(diffusers, kind, prediction, options):
    learned = "variance_type" in options
    network = unet(diffusers, out_channels=6 if learned else 3)
    scheduler = in_double(getattr(diffusers, kind)(prediction_type=prediction, **options))
    scheduler.set_timesteps(len(scheduler))
    alphas = scheduler.alphas_cumprod[scheduler.alphas_cumprod > 0]
    assert len(alphas) == len(scheduler) - options.get("rescale_betas_zero_snr", False)
    sigmas, times = ((1 - alphas) / alphas).sqrt(), torch.arange(len(alphas))
    x = noised(sigmas)
    inputs = x * alphas.sqrt().view(-1, 1, 1, 1)
    denoiser = analysis.from_diffusers(network, scheduler)
    with torch.inference_mode():
        outputs = network(inputs, times).sample
        wanted = torch.cat([
            scheduler.step(out[None], int(t), x_t[None]).pred_original_sample
            for t, x_t, out in zip(times, inputs, outputs, strict=True)])
        found = denoiser(x, sigmas)
    assert (found - wanted).abs().max() < 1e-6
    assert wanted.std() > 0.1
    assert (denoiser.sigma_min, denoiser.sigma_max) == pytest.approx((float(
        sigmas[0]), float(sigmas[-1])))
    assert (denoiser.channels, denoiser.resolution, denoiser.label_dim) == (3, 8, 0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_edms_schedulers_step_for_step(diffusers, prediction):
    network = unet(diffusers)
    scheduler = diffusers.EDMEulerScheduler(prediction_type=prediction)
    scheduler.set_timesteps(18)
    denoiser = analysis.from_diffusers(network, scheduler)
    latents = draw_latents(range(2), SHAPE)[0].double()
    ours = solve(denoiser, latents, sigmas=scheduler.sigmas.double(), second_order=False)
    x = latents * scheduler.sigmas[0]
    with torch.inference_mode():
        for time, step in zip(scheduler.timesteps, ours, strict=False):
            out = network(scheduler.scale_model_input(x, time), time).sample
            done = scheduler.step(out, time, x)
            assert (denoiser(x, step.sigma) - done.pred_original_sample).abs().max() < 1e-6
            assert torch.allclose(step.x, x, atol=1e-4)
            x = done.prev_sample
        (last, ) = ours
    assert torch.allclose(last.x, x, atol=1e-5)
    assert (denoiser.sigma_min, denoiser.sigma_max) == (0.002, 80)


def test_ddims_trajectory_is_eulers_in_sigma(diffusers):
    network = unet(diffusers)
    scheduler = in_double(diffusers.DDIMScheduler(clip_sample=False))
    scheduler.set_timesteps(12)
    denoiser = analysis.from_diffusers(network, scheduler)
    alphas = scheduler.alphas_cumprod[scheduler.timesteps]
    sigmas = torch.cat([((1 - alphas) / alphas).sqrt(), torch.zeros(1)])
    x = start = draw_latents(range(3), SHAPE)[0].double()
    with torch.inference_mode():
        for time in scheduler.timesteps:
            x = scheduler.step(network(x, time).sample, time, x).prev_sample
        *_, last = solve(denoiser, start / alphas[0].sqrt() / sigmas[0], sigmas=sigmas,
                         second_order=False)
    assert (last.x - x).abs().max() < 1e-6


@pytest.mark.parametrize("embedding", ["positional", "learned"])
def test_a_level_between_two_gets_the_time_between_them(diffusers, embedding):
    network = unet(diffusers, time_embedding_type=embedding, num_train_timesteps=1000)
    scheduler = in_double(diffusers.DDPMScheduler())
    denoiser = analysis.from_diffusers(network, scheduler)
    asked = []
    network.register_forward_pre_hook(lambda module, given: asked.append(given[1]))
    levels = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt()
    quarter = levels[400]**0.75 * levels[401]**0.25
    sigmas = torch.stack([levels[7], quarter, levels[0] / 9, levels[-1] * 9])
    denoiser(torch.zeros(4, *SHAPE), sigmas)
    wanted = [7, 400.25, 0, 999] if embedding == "positional" else [7, 400, 0, 999]
    assert asked[0].tolist() == pytest.approx(wanted, abs=1e-6)


def test_classes_reach_the_network(diffusers):
    network = unet(diffusers, num_class_embeds=5)
    denoiser = analysis.from_diffusers(network, in_double(diffusers.DDPMScheduler()))
    assert denoiser.label_dim == 5
    x, labels = torch.randn(3, *SHAPE).double(), torch.tensor([4, 0, 2])
    sigma = denoiser.sigma_min
    noise = network(x / math.hypot(1, sigma), torch.tensor(0), labels).sample
    wanted = (x - sigma * noise).clamp(-1, 1)
    assert torch.allclose(denoiser(x, sigma, labels), wanted)
    assert not torch.allclose(denoiser(x, sigma, labels.flip(0)), wanted)
    with pytest.raises(ValueError, match=r"a network of 5 classes needs labels \(N,\); got None"):
        denoiser(x, sigma)
    images = next(generate(denoiser, range(3), sampler="two-step:0.8"))
    assert images.shape == (3, *SHAPE)


def test_a_network_in_half_precision_gets_its_own_and_gives_float32(diffusers):
    network, scheduler = unet(diffusers), diffusers.DDIMScheduler()
    x = noised(torch.tensor([3.0, 0.1])).float()
    sigma = torch.tensor([3.0, 0.1])
    exact = analysis.from_diffusers(network, scheduler)(x, sigma)
    half = analysis.from_diffusers(network.to(torch.bfloat16), scheduler)(x, sigma)
    assert (exact.dtype, half.dtype) == (torch.float64, torch.float32)
    assert 0 < (half - exact).abs().max() < 0.1
    cast = to_device(analysis.from_diffusers(network.float(), scheduler), "cpu", "bf16")(x, sigma)
    assert cast.dtype == torch.float32
    assert 0 < (cast - exact).abs().max() < 0.1


def test_what_diffusers_has_beside_is_refused(diffusers):
    network, ddpm = unet(diffusers), diffusers.DDPMScheduler()
    flow = diffusers.FlowMatchEulerDiscreteScheduler()
    for other, scheduler, message in [
        (network, flow, "of EDM's, with precondition_outputs; got FlowMatchEulerDiscreteScheduler"),
        (network, diffusers.DDPMScheduler(thresholding=True), "thresholding must be False"),
        (network, diffusers.DDPMScheduler(prediction_type="flow"),
         "one of epsilon, v_prediction, sample; got 'flow'"),
        (network, diffusers.EDMEulerScheduler(prediction_type="sample"),
         "one of epsilon, v_prediction; got 'sample'"),
        (unet(diffusers, sample_size=None), ddpm, "sample_size must be a number; got None"),
        (unet(diffusers, class_embed_type="timestep"), ddpm, "got 'timestep'"),
    ]:  # yapf: disable
        with pytest.raises(ValueError, match=message):
            analysis.from_diffusers(other, scheduler)


class Preconditioned(nn.Module):
    """EDM2's interface: float32, one-hot labels, zeros if there are none."""
    def __init__(self, denoiser):
        super().__init__()
        self.unet = denoiser.model
        self.img_resolution, self.img_channels = denoiser.resolution, denoiser.channels
        self.label_dim, self.sigma_data = denoiser.label_dim, denoiser.sigma_data

    def forward(self, x, sigma, class_labels=None, force_fp32=False):
        assert class_labels is None or class_labels.shape == (len(x), self.label_dim)
        x, sigma = x.float(), sigma.float().reshape(-1, 1, 1, 1)
        labels = None
        if self.label_dim:
            labels = torch.zeros(1,
                                 self.label_dim) if class_labels is None else class_labels.float()
            labels = labels.expand(len(x), -1)
        total = (sigma**2 + self.sigma_data**2).sqrt()
        out = self.unet(x / total, sigma.flatten().log() / 4, class_labels=labels)
        return (self.sigma_data / total)**2 * x + sigma * self.sigma_data / total * out


@pytest.mark.parametrize("classes", [0, 10])
def test_networks_of_edm_and_edm2(classes):
    own = small_denoiser(label_dim=classes)
    network = Preconditioned(own)
    denoiser = analysis.from_edm(network)
    latents, labels = draw_latents(range(4), (1, 8, 8), classes)
    sigma = torch.tensor([80.0, 3.0, 0.5, 0.002])
    x = latents * sigma.view(-1, 1, 1, 1)
    for given in (labels, None):
        hot = None if given is None else nn.functional.one_hot(given, classes)
        assert torch.equal(denoiser(x, sigma, given), network(x, sigma, hot))
        assert torch.allclose(denoiser(x, sigma, given), own(x, sigma, given), atol=1e-5)
    for sampler in ("heun:3", "k-step:3"):
        ours, theirs = (next(generate(d, range(4), sampler=sampler)) for d in (denoiser, own))
        assert torch.allclose(ours, theirs, atol=1e-4)
    with pytest.raises(ValueError, match=r"Linear lacks img_channels, img_resolution, label_dim"):
        analysis.from_edm(nn.Linear(1, 1))


def test_any_function_is_a_denoiser():
    denoiser = analysis.wrap(lambda x, sigma: x / (1 + sigma.view(-1, 1, 1, 1)**2), SHAPE)
    x = torch.randn(2, *SHAPE).double()
    sigma = torch.tensor([3.0, 0.5])
    wanted = x.float() / torch.tensor([10, 1.25]).view(-1, 1, 1, 1)
    assert torch.allclose(denoiser(x, sigma), wanted)
    jump = denoiser(x, sigma, target_sigma=0.25)
    slope = (x.float() - wanted) / sigma.view(-1, 1, 1, 1)
    assert torch.allclose(jump, x.float() + (0.25 - sigma).view(-1, 1, 1, 1) * slope, atol=1e-6)
    # data of unit variance are made exactly: EDM eq. 6, D(x) = x / (1 + sigma^2)
    images = next(generate(denoiser, range(2), sampler="heun:60"))
    assert torch.allclose(images, draw_latents(range(2), SHAPE)[0], rtol=0.02)

    labels, given = torch.tensor([1, 3]), []
    classes = analysis.wrap(lambda x, sigma, labels: given.append(labels) or x, SHAPE, label_dim=4)
    classes(x, 1.0, labels)
    assert given == [labels]


def test_what_is_no_denoiser_is_refused():
    with pytest.raises(ValueError,
                       match=r"shape must be \(C,H,W\) of square images; got \(3, 8, 9\)"):
        analysis.wrap(nn.Identity(), (3, 8, 9))
    for answer, found in ((lambda x, sigma: x[:, :1], r"\(2, 1, 8, 8\)"), (lambda x, sigma:
                                                                           (x, x), "tuple")):
        with pytest.raises(ValueError,
                           match=rf"\(2, 3, 8, 8\) with x0_hat of the same shape; got {found}"):
            analysis.wrap(answer, SHAPE)(torch.zeros(2, *SHAPE), 1.0)


def test_a_transformer_of_diffusers_with_its_learned_variance(diffusers):
    torch.manual_seed(0)
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, out_channels=8, num_layers=2,
        sample_size=8, num_embeds_ada_norm=10).double().eval()
    scheduler = in_double(diffusers.DDIMScheduler(clip_sample=False))
    denoiser = analysis.from_diffusers(network, scheduler)
    x, labels = torch.randn(2, 4, 8, 8).double(), torch.tensor([3, 9])
    alpha = scheduler.alphas_cumprod[500]
    scheduler.set_timesteps(1000)
    with torch.inference_mode():
        noise = network(x, torch.tensor([500, 500]), labels).sample[:, :4]
        wanted = scheduler.step(noise, 500, x).pred_original_sample
        sigma = ((1 - alpha) / alpha).sqrt()
        assert (denoiser(x / alpha.sqrt(), sigma, labels) - wanted).abs().max() < 1e-6
    table = analysis.measure(denoiser, pattern="transformer_blocks.?", seeds=range(2), steps=2)
    assert list(table["block"].unique()) == ["transformer_blocks.0", "transformer_blocks.1"]
