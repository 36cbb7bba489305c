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

from analysis import tables
from analysis.differences import mean_interval, rms
from analysis.experiments import obtain
from analysis.hooks import record
from gdd.profiles import profile
from gdd.samplers import sampler_of
from gdd.sampling import Step, draw_latents, sigma_ladder, solve
from gdd.training.start import digest

BRANCHES = ("model.*.conv1", "model.*.proj")
USUAL: dict[str, Any] = dict(n=0, steps=18, bands=6, factor=0.0, distance=None)  # in the figure
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
            batch_size: int = 128,
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
    answers, moved = [], []
    for step in along[span.start:span.stop]:
        with scaled(denoiser, factors):
            answers.append(denoiser(step.x.repeat(several, 1, 1, 1), step.sigma, repeated))
        own_way = step.x0_hat.clamp(-1, 1).repeat(several, 1, 1, 1)
        moved.append(rms(answers[-1].clamp(-1, 1), own_way))

    # from the step before the band, whose corrector looks at the band's first level; what the
    # network answers first is known
    first, levels = max(span.start - 1, 0), set(ladder[span.start:span.stop].tolist())
    known = iter([answers[0] if first == span.start else
                  along[first].x0_hat.repeat(several, 1, 1, 1)])  # yapf: disable

    def denoise(x: Tensor, sigma: float, labels: Tensor | None) -> Tensor:
        if (x0_hat := next(known, None)) is not None:
            return x0_hat
        with scaled(denoiser, factors) if sigma in levels else nullcontext():
            return denoiser(x, sigma, labels)

    state = (along[first].x / float(ladder[first])).repeat(several, 1, 1, 1)
    *_, last = solve(denoise, state, sigmas=ladder[first:], labels=repeated)
    found = last.x.clamp(-1, 1), torch.stack(moved).mean(dim=0)
    image, answer = (x.unflatten(0, (several, n)) for x in found)
    return image, answer


def branches(names: Sequence[str], profile_name: str, **options: Any) -> pd.DataFrame:
    """`measured_branches` of the runs; where figures are made from what is measured before, and
    with the usual options, those of branches.csv that are today's."""
    known = tables.read("branches", profile_name)
    before = not profile(profile_name).live and USUAL | options == USUAL
    parts = []
    for name in names:
        rows = known[(known["run"] == name) & before]
        parts.append(measured_branches(name, profile_name, **options) if rows.empty else rows)
    return pd.concat(parts, ignore_index=True).reindex(columns=COLUMNS)


def measured_branches(name: str, profile_name: str, **options: Any) -> pd.DataFrame:
    """`measure` of a run of a profile, by one step or by EDM's solver of so many `steps`, at the
    levels of so many `bands`; `n` images by one step, 0 being the profile's number, a sixteenth of
    it by the solver; a `distance` is of one step's images."""
    chosen, run, asked = profile(profile_name), obtain(name, profile_name), USUAL | options
    n, steps, bands, factor, distance = asked.values()
    n = n or chosen.n_activations
    if sampler_of(run.config) == "one-step":
        steps, bands = 1, 1
    else:
        n, distance = max(2, n // 16), None
    table = measure(run.denoiser, model=name, seeds=range(n), steps=steps, bands=bands,
                    factor=factor, distance=distance)
    return (table if distance else table.drop(columns="fd")).assign(
        run=name.partition("@")[0], training_seed=run.config.seed, digest=digest(chosen, name))
