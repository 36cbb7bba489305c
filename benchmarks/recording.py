"""Recording every block while sampling: against bare sampling, keeping all tensors, nnsight."""

from collections.abc import Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError
from typing import Any

import torch
from torch import Tensor, nn

from analysis.hooks import record
from benchmarks import machine
from benchmarks.clock import FULL, medians
from benchmarks.row import Row
from benchmarks.sampling import SMALL, random_denoiser
from gdd.denoiser import Denoiser
from gdd.sampling import draw_latents, heun

BLOCKS = "model.*.conv1"  # the last convolution of each, as in Figure 3
STEPS = 18 if FULL else 2


def rows() -> Iterator[Row]:
    with torch.inference_mode():
        denoiser = random_denoiser(SMALL)
        for n in (16, 1) if FULL else (2, ):
            yield from _at_batch(denoiser, n)


def magnitude(x: Tensor) -> Tensor:
    return x.abs().mean(dim=(1, 2, 3))


def _at_batch(denoiser: Denoiser, n: int) -> Iterator[Row]:
    latents, _ = draw_latents(range(n),
                              (denoiser.channels, denoiser.resolution, denoiser.resolution))
    run = partial(heun, denoiser, latents, steps=STEPS)
    kept, stored = _recorded(denoiser, run), _stored(denoiser, run)
    error = max(
        float((a - magnitude(b)).abs().max() / a.abs().max()) for name, values in kept.items()
        for a, b in zip(values, stored[name], strict=True))
    name, trace = _nnsight(denoiser, list(kept), latents)
    works = [run, partial(_recorded, denoiser, run), partial(_stored, denoiser, run)]
    bare, ours, storing, *peer = medians(*works, *([trace] if trace else []), repeats=9)
    work = f"recording {len(kept)} blocks over {2 * STEPS - 1} calls, batch {n}"
    yield Row(work, "bare sampling", ours, bare, target=0.95,
              reason="a mean of magnitudes reads each activation once more")
    yield Row(work, "a hook that stores everything", ours, storing, error=error)
    yield Row(work, "a hook that stores everything", _bytes(kept), _bytes(stored), "bytes",
              target=100)
    yield Row(
        work, name, ours, *peer, target=3,
        reason=f"sampling itself takes {min(bare / ours, 1):.0%} of ours, and is the same for "
        "both" if trace else "not installed")


def _recorded(denoiser: nn.Module, run: Any) -> dict[str, list[Tensor]]:
    with record(denoiser, BLOCKS, magnitude) as tape:
        run()
    return tape


def _stored(denoiser: nn.Module, run: Any) -> dict[str, list[Tensor]]:
    with record(denoiser, BLOCKS, Tensor.clone) as tape:
        run()
    return tape


def _bytes(tape: dict[str, list[Tensor]]) -> int:
    return sum(tensor.nbytes for tensors in tape.values() for tensor in tensors)


def _nnsight(denoiser: nn.Module, names: list[str], latents: Tensor) -> tuple[str, Any]:
    """The same sampler with each call of the network traced, which is how nnsight intervenes; None
    if it is not installed."""
    try:
        name = machine.peer("nnsight")
        import nnsight
    except (PackageNotFoundError, ImportError):
        return "nnsight", None
    traced = nnsight.NNsight(denoiser)
    parts = [traced.get(name) for name in names]

    def denoise(x: Tensor, sigma: float, labels: None = None) -> Tensor:
        with traced.trace(x, sigma):
            tape = nnsight.save([magnitude(part.output) for part in parts])  # noqa: F841
            out = nnsight.save(traced.output)
        return out

    return name, partial(heun, denoise, latents, steps=STEPS)
