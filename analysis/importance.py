"""Which blocks matter when: a residual branch is scaled at some noise levels only, and the image
that comes out is compared with the one from the same seed by the unchanged network.

A block adds the output of its last convolution (`conv1`), and of its attention (`proj`), to what it
passes on: scaling that output scales the branch and nothing else (docs/method.md, section 6).
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from analysis.differences import mean_interval, rms
from analysis.hooks import record
from gdd.sampling import Step, draw_latents, sigma_ladder, solve

BRANCHES = ("model.*.conv1", "model.*.proj")
COLUMNS = ["model", "branch", "depth", "band", "sigma_high", "sigma_low", "levels", "factor", "n",
           "value", "spread", "low", "high", "at_once", "magnitude", "apart", "fd"]  # yapf: disable


@contextmanager
def scaled(module: nn.Module, factors: Mapping[str, float | Tensor]) -> Iterator[None]:
    """While it lasts, the output of each named submodule is multiplied by its factor: a number, or
    one per row of a batch (N,). Of a tuple the first item counts.

    Raises ValueError if there is no such submodule or it returns no tensor, and RuntimeError if one
    was never called. No hook is left behind, whatever happens.
    """
    modules, silent = dict(module.named_modules()), set(factors)
    if unknown := factors.keys() - modules.keys():
        raise ValueError(f"factors must name submodules of the {type(module).__name__}; got "
                         f"{', '.join(sorted(unknown))}")

    def scale(name: str, _module: nn.Module, _inputs: tuple, output: Any) -> Any:
        silent.discard(name)
        first, *rest = output if isinstance(output, tuple) else (output, )
        if not isinstance(first, Tensor):
            raise ValueError(f"{name} returns no tensor but {type(first).__name__}: leave it out")
        factor = torch.as_tensor(factors[name], dtype=first.dtype, device=first.device)
        first = first * factor.reshape(-1, *[1] * (first.ndim - 1))
        return (first, *rest) if isinstance(output, tuple) else first

    handles = []
    try:
        for name in factors:
            handles.append(modules[name].register_forward_hook(partial(scale, name)))
        yield
        if silent:
            raise RuntimeError(f"never called while scaled: {', '.join(sorted(silent))}")
    finally:
        for handle in handles:
            handle.remove()


def split_ladder(steps: int, bands: int) -> list[range]:
    """The noise levels 0 (largest) to `steps` - 1 in neighbouring bands, whose sizes differ by at
    most one. Raises ValueError if there are fewer levels than bands."""
    if not 1 <= bands <= steps:
        raise ValueError(f"bands must be from 1 to the number of steps, {steps}; got {bands}")
    edges = [-(-steps * band // bands) for band in range(bands + 1)]
    return [range(low, high) for low, high in pairwise(edges)]


@torch.inference_mode()
def measure(denoiser: Any, *, model: str, seeds: Sequence[int] = range(16), steps: int = 18,
            bands: int = 6, factor: float = 0.0, patterns: Sequence[str] = BRANCHES,
            batch_size: int = 256,
            distance: Callable[[Tensor], float] | None = None) -> pd.DataFrame:
    """A row per branch, in order of execution (`depth`), and band of noise levels: `value`, how far
    the image moves if the branch is scaled by `factor` at the levels of that band alone.

    The image is the one that EDM's solver of `steps` makes of each seed; `steps=1` is the one-step
    generator. `value` is the root mean square over pixels in [-1,1], mean over images, with their
    standard deviation (`spread`), the 95% t interval of the mean (`low`, `high`) and `n`. Beside it
    `at_once`, the same of the network's answer x0_hat at the band's levels, on the way of the
    unchanged sampling; `magnitude`, the branch's mean |a| there, as in Figure 3; `apart`, how far
    images of two seeds are from each other; and with a `distance` of images (N,C,H,W), the change
    of it, `fd`.

    `patterns` (shell wildcards) name the submodules whose output is added to what goes on. Raises
    ValueError on bands, seeds or patterns that do not fit.
    """
    if len(seeds) < 2:
        raise ValueError(f"seeds must be at least 2, for an interval; got {len(seeds)}")
    spans, ladder = split_ladder(steps, bands), sigma_ladder(steps)
    device = next(denoiser.parameters()).device
    shape = (denoiser.channels, denoiser.resolution, denoiser.resolution)
    originals: list[Tensor] = []
    cells: dict[tuple[str, int], dict[str, list[Tensor]]] = {}
    denoiser.eval()
    with tqdm(total=len(seeds) * bands, unit="image", desc=f"importance in {model}",
              disable=None) as bar:
        for start in range(0, len(seeds), batch_size):
            batch = seeds[start:start + batch_size]
            latents, labels = draw_latents(batch, shape, denoiser.label_dim)
            asked = None if labels is None else labels.to(device)
            along, sizes = _unchanged(denoiser, latents.to(device), asked, ladder, patterns)
            originals.append(along[-1].x.clamp(-1, 1))
            names, several = list(sizes), max(1, batch_size // len(batch))
            for band, span in enumerate(spans):
                for place in range(0, len(names), several):
                    some = names[place:place + several]
                    changed = _changed(denoiser, along, asked, ladder, span, some, factor)
                    for name, image, answer in zip(some, *changed, strict=True):
                        cell = cells.setdefault((name, band), defaultdict(list))
                        cell["value"].append(rms(image, originals[-1]))
                        cell["at_once"].append(answer)
                        cell["magnitude"].append(sizes[name][span.start:span.stop].mean(dim=0))
                        if distance:
                            cell["images"].append(image)
                bar.update(len(batch))

    unchanged = torch.cat(originals)
    apart = float(rms(unchanged, unchanged.roll(1, dims=0)).mean())
    before = distance(unchanged) if distance else math.nan
    rows = []
    for (name, band), cell in cells.items():
        found = {key: torch.cat(values) for key, values in cell.items()}
        moved = mean_interval(found["value"])
        levels = ladder[spans[band].start:spans[band].stop].tolist()
        rows.append([
            model, name, names.index(name), band, levels[0], levels[-1], len(levels), factor,
            len(seeds), *(moved[key] for key in ("mean", "spread", "low", "high")),
            float(found["at_once"].mean()), float(found["magnitude"].mean()), apart,
            distance(found["images"]) - before if distance else math.nan])  # yapf: disable
    return pd.DataFrame(rows, columns=COLUMNS).sort_values(["depth", "band"], ignore_index=True)


def _unchanged(denoiser: Any, latents: Tensor, labels: Tensor | None, ladder: Tensor,
               patterns: Sequence[str]) -> tuple[list[Step], dict[str, Tensor]]:
    """The solver's steps, and of each branch mean |a| (steps,N)."""
    along: list[Step] = []
    sizes: dict[str, list[Tensor]] = {}
    with record(denoiser, patterns, lambda x: x.abs().flatten(1).mean(dim=1).cpu()) as tape:
        for step in solve(denoiser, latents, sigmas=ladder, labels=labels):
            along.append(step)
            if step.sigma > 0:  # the last call is this step's first, not the corrector's
                for name, found in tape.items():
                    sizes.setdefault(name, []).append(found[-1])
    return along, {name: torch.stack(found) for name, found in sizes.items()}


def _changed(denoiser: Any, along: Sequence[Step], labels: Tensor | None, ladder: Tensor,
             span: range, names: Sequence[str], factor: float) -> tuple[Tensor, Tensor]:
    """Of each of the branches, scaled at the levels of `span`, all in one batch: the images
    (branches,N,C,H,W), and how far the answers at these levels move (branches,N)."""
    n, several = len(along[0].x), len(names)
    repeated = None if labels is None else labels.repeat(several)
    own = torch.eye(several, device=along[0].x.device).repeat_interleave(n, dim=1)
    factors = dict(zip(names, 1 + (factor - 1) * own, strict=True))  # each (branches * N,)
    answers = []
    for step in along[span.start:span.stop]:
        with scaled(denoiser, factors):
            x0_hat = denoiser(step.x.repeat(several, 1, 1, 1), step.sigma, repeated)
        answers.append(rms(x0_hat.clamp(-1, 1), step.x0_hat.clamp(-1, 1).repeat(several, 1, 1, 1)))

    levels = set(ladder[span.start:span.stop].tolist())

    def denoise(x: Tensor, sigma: float, labels: Tensor | None) -> Tensor:
        with scaled(denoiser, factors) if sigma in levels else nullcontext():
            return denoiser(x, sigma, labels)

    # from the step before the band, whose corrector looks at the band's first level
    first = max(span.start - 1, 0)
    state = (along[first].x / float(ladder[first])).repeat(several, 1, 1, 1)
    *_, last = solve(denoise, state, sigmas=ladder[first:], labels=repeated)
    moved = torch.stack(answers).mean(dim=0).unflatten(0, (several, n))
    return last.x.clamp(-1, 1).unflatten(0, (several, n)), moved
