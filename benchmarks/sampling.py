"""A forward pass of the size of EDM's CIFAR-10 network, whole samplers, one-step images.

EDM's own code is non-commercial and not in here: the plain way is the same network in its layout,
NCHW, in float32, and its Algorithm 2 written down as the paper has it.
"""

from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import machine
from benchmarks.clock import FULL, as_command, medians, operations
from benchmarks.row import Row
from gdd.denoiser import Denoiser
from gdd.profiles import profile
from gdd.profiles.paper import TEACHERS
from gdd.sampling import draw_latents, generate, sigma_ladder
from gdd.weights import checkpoint, zoo

TINY: dict[str, Any] = dict(img_resolution=8, img_channels=3, model_type="SongUNet",
                            model_channels=8, channel_mult=[1, 1], num_blocks=1)
CIFAR = TEACHERS["edm-cifar10-32x32-uncond-vp"].network if FULL else TINY
SMALL = profile("cifar10-16").network("teacher") if FULL else TINY


def random_denoiser(network: dict[str, Any]) -> Denoiser:
    """Of random weights, none of them near zero, so that an error has all layers to grow in."""
    torch.manual_seed(0)
    denoiser = Denoiser.from_config(network).eval()
    for parameter in denoiser.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return denoiser


def rows() -> Iterator[Row]:
    with torch.inference_mode():
        denoiser = random_denoiser(CIFAR)
        yield from _forward(denoiser)
        yield from _forward_in_bf16(denoiser)
        yield from _whole_sampler()
        yield from _one_step()


def _relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.float() - theirs).std() / theirs.std())


def _forward(denoiser: Denoiser) -> Iterator[Row]:
    n = 16 if FULL else 2
    x = torch.randn(n, 3, denoiser.resolution, denoiser.resolution)
    weights = f"{denoiser.num_parameters() / 1e6:.1f}M weights"
    work = f"DDPM++ forward, {weights}, batch {n}, float32"
    last = denoiser.copy()
    last.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x_last = x.to(memory_format=torch.channels_last)
    name, theirs = _diffusers_network(denoiser)
    plain, channels_last, *peer = medians(lambda: denoiser(x, 1.0), lambda: last(x_last, 1.0),
                                          *([lambda: theirs(x, 1.0)] if theirs else []))
    rate = operations(lambda: denoiser(x, 1.0)) / 1e9 / plain
    ceiling = machine.convolution_rate(torch.float32)
    held = f"NCHW runs at {rate / ceiling:.0%} of this processor's 3x3 convolution already"
    yield Row(f"{work}, channels last", "the same in NCHW", channels_last, plain, target=1.3,
              error=_relative(last(x_last, 1.0), denoiser(x, 1.0)), reason=held)
    yield Row(work, "3x3 convolution, float32", rate, ceiling, "GFLOP/s", target=0.85,
              reason="normalisation, attention and layers of few pixels wait for memory")
    yield Row(work, name, plain, *peer, reason="not installed" if theirs is None else "")


def _forward_in_bf16(denoiser: Denoiser) -> Iterator[Row]:
    """In small batches where bf16 is emulated, which takes ten times as long."""
    n = (16 if machine.computes_bf16() else 1) if FULL else 2
    x = torch.randn(n, 3, denoiser.resolution, denoiser.resolution)
    last = denoiser.copy()
    last.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    last.precision = torch.bfloat16
    x_last = x.to(memory_format=torch.channels_last)
    plain, ours = medians(lambda: denoiser(x, 1.0), lambda: last(x_last, 1.0))
    rate = operations(lambda: denoiser(x, 1.0)) / 1e9 / ours
    work = f"DDPM++ forward, {denoiser.num_parameters() / 1e6:.1f}M weights, batch {n}, bf16"
    wanted = 4.5 if "amx_bf16" in machine.flags() else 2.4
    noise = torch.zeros(n)  # ln(sigma) / 4 of sigma 1
    error = _relative(_of_network(last, x_last, noise), _of_network(denoiser, x, noise))
    yield Row(f"{work}, channels last", "the same in float32, NCHW", ours, plain, target=wanted,
              error=error, reason=machine.bf16_reason())
    yield Row(f"{work}, channels last", "3x3 convolution, bf16", rate,
              machine.convolution_rate(torch.bfloat16), "GFLOP/s", target=0.85,
              reason="normalisation and attention are computed in float32, and wait for memory")


def _of_network(denoiser: Denoiser, x: Tensor, noise: Tensor) -> Tensor:
    """F, the network without its preconditioning, which hides errors behind c_skip."""
    with torch.autocast("cpu", torch.bfloat16, enabled=denoiser.precision is not None):
        return denoiser.model(x, noise)


def _plain_heun(denoise: Callable[..., Tensor], latents: Tensor, steps: int) -> Tensor:
    """EDM Algorithm 2 as it is written, deterministic."""
    sigmas = sigma_ladder(steps)
    x = latents.to(torch.float64) * sigmas[0]
    for sigma, target in pairwise(sigmas):
        slope = (x - denoise(x, sigma)) / sigma
        x_next = x + (target - sigma) * slope
        if target > 0:
            slope_next = (x_next - denoise(x_next, target)) / target
            x_next = x + (target - sigma) * (slope + slope_next) / 2
        x = x_next
    return x


def _whole_sampler() -> Iterator[Row]:
    denoiser = random_denoiser(SMALL)
    n, steps = (32, 18) if FULL else (2, 3)
    shape = (denoiser.channels, denoiser.resolution, denoiser.resolution)
    latents, _ = draw_latents(range(n), shape)
    weights = f"{denoiser.num_parameters() / 1e6:.1f}M weights"
    work = f"EDM Heun {steps} steps, {n} images, {weights}, as a command"

    def ours() -> Tensor:
        return next(generate(denoiser, range(n), sampler=f"heun:{steps}"))

    def plain() -> Tensor:
        return _plain_heun(denoiser, latents, steps)

    name, pipeline = _diffusers_pipeline(denoiser)
    calls = 2 * steps - 1
    peers = [lambda: pipeline(batch_size=n, num_inference_steps=calls)] if pipeline else []
    seconds, textbook, call, *peer = medians(as_command(ours), plain,
                                             as_command(lambda: denoiser(latents, 1.0)), *peers,
                                             repeats=5)
    within = f"{calls} network calls take {min(calls * call / seconds, 1):.0%} of ours"
    yield Row(work, "textbook loop", seconds, textbook, target=1.3, reason=within, error=_relative(
        ours(), plain()))
    yield Row(work, f"{name}, DDIM of {calls} calls", seconds, *peer, target=2,
              reason=within if pipeline else "not installed")


def _one_step() -> Iterator[Row]:
    denoiser = checkpoint.load(zoo.path("gdd-i"))
    n, batch = (10_000, 256) if FULL else (64, 32)
    shape = (denoiser.channels, denoiser.resolution, denoiser.resolution)

    def ours() -> list[Tensor]:
        return list(generate(denoiser, range(n), sampler="one-step", batch_size=batch))

    def plain() -> list[Tensor]:
        return [
            denoiser(80 * torch.randn(len(part), *shape), 80.0)
            for part in torch.arange(n).split(batch)]

    def draw() -> None:
        for part in torch.arange(n).split(batch):
            draw_latents(part.tolist(), shape)

    name, pipeline = _diffusers_pipeline(denoiser)

    def theirs() -> None:
        for part in torch.arange(n).split(batch):
            pipeline(batch_size=len(part), num_inference_steps=1)

    peers = [theirs] if pipeline else []
    seconds, textbook, drawing, *peer = medians(as_command(ours), plain, draw, *peers)
    work = f"one-step generator, {n:,} images of {shape[-1]}x{shape[-1]}, as a command"
    held = f"a stream of noise per image takes {drawing / seconds:.0%}, the network the rest"
    yield Row(work, "textbook loop, one stream of noise", seconds, textbook, target=1.3,
              reason=held)
    yield Row(work, f"{name}, DDIM of 1 call", seconds, *peer, target=2,
              reason=held if pipeline else "not installed")


def _diffusers_network(denoiser: Denoiser) -> tuple[str, Any]:
    """A UNet2DModel of the same levels and about as many weights, as a function of (x, t); None if
    diffusers is not installed."""
    try:
        name = machine.peer("diffusers")
        from diffusers import UNet2DModel
    except (PackageNotFoundError, ImportError):
        return "diffusers", None
    config = dict(num_blocks=4, attn_resolutions=(16, )) | denoiser.config  # SongUNet's own
    widths = [int(config["model_channels"] * mult) for mult in config["channel_mult"]]
    attend = [
        denoiser.resolution >> level in config["attn_resolutions"] for level in range(len(widths))]
    groups = min(32, min(widths) // 4)
    torch.manual_seed(0)
    network: nn.Module = UNet2DModel(
        sample_size=denoiser.resolution, in_channels=denoiser.channels,
        out_channels=denoiser.channels, layers_per_block=config["num_blocks"],
        block_out_channels=widths, norm_num_groups=groups, attention_head_dim=None,
        down_block_types=["AttnDownBlock2D" if on else "DownBlock2D" for on in attend],
        up_block_types=["AttnUpBlock2D" if on else "UpBlock2D" for on in reversed(attend)],
    ).eval()  # yapf: disable
    count = sum(p.numel() for p in network.parameters())
    return f"{name}, UNet2DModel of {count / 1e6:.1f}M weights", network


def _diffusers_pipeline(denoiser: Denoiser) -> tuple[str, Any]:
    name, network = _diffusers_network(denoiser)
    if network is None:
        return name, None
    from diffusers import DDIMPipeline, DDIMScheduler

    pipeline = DDIMPipeline(network, DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)

    def run(**options: Any) -> Any:
        return pipeline(output_type="np", **options)

    return name, run
