"""Time-step-dependent activations of a UNet (Figure 3 of the paper): the last convolution of every
block, at every noise level.

    python -m analysis.activations --ckpt gdd-i [--statistic mean_abs] [--part conv1]

Two processes are measured: `sampling`, while the model runs EDM's solver from pure noise, and
`denoising`, while it denoises real images with noise added at the same levels. `measure` takes any
network that is a denoiser, or that `analysis.adapters` makes one of, and its layers by name.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gdd.config import SIGMA_MAX, SIGMA_MIN, Precision
from gdd.profiles import profile
from gdd.weights import zoo

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

ADDRESS = re.compile(r"(?:model|unet)\.(enc|dec)\.((\d+)x\d+_\w+)\.(\w+)")
SIDES = {"enc": "encoder", "dec": "decoder"}
PARTS = ("conv1", "proj")
STATISTICS = ("mean_abs", "rms", "std", "channel", "bands")
COLUMNS = ["model", "process", "side", "block", "part", "depth", "resolution", "sigma", "step",
           "statistic", "index", "value", "spread", "n"]  # yapf: disable


def statistics() -> dict[str, Callable[["Tensor"], "Tensor"]]:
    """Name -> reduction of an activation to one row per image (N,K): of maps (N,C,H,W), tokens
    (N,T,C) or vectors (N,C)."""
    from analysis.spectrum import band_energy

    def all_but_first(x: "Tensor") -> tuple[int, ...]:
        return tuple(range(1, x.ndim))

    def channel(x: "Tensor") -> "Tensor":
        kept = 2 if x.ndim == 3 else 1
        others = [axis for axis in all_but_first(x) if axis != kept]
        return x.abs().mean(dim=others) if others else x.abs()

    def bands(x: "Tensor") -> "Tensor":
        if x.ndim != 4:
            raise ValueError(f"bands are of maps (N,C,H,W); got {tuple(x.shape)}")
        return band_energy(x)

    return {
        "mean_abs": lambda x: x.abs().mean(dim=all_but_first(x))[:, None],
        "rms": lambda x: x.square().mean(dim=all_but_first(x)).sqrt()[:, None],
        "std": lambda x: x.flatten(1).std(dim=1)[:, None],
        "channel": channel,
        "bands": bands, }


def _check_names(statistic: str, parts: Sequence[str]) -> None:
    if statistic not in STATISTICS:
        raise ValueError(f"statistic must be one of {', '.join(STATISTICS)}; got {statistic!r}")
    if unknown := set(parts) - set(PARTS):
        raise ValueError(f"parts must be of {', '.join(PARTS)}; got {', '.join(sorted(unknown))}")


def measure(denoiser: "nn.Module", *, model: str = "model", seeds: Sequence[int] = range(256),
            images: "Tensor | None" = None, labels: "Tensor | None" = None, steps: int = 18,
            parts: Sequence[str] = ("conv1", ), pattern: str | Sequence[str] = "",
            statistic: str = "mean_abs", batch_size: int = 128) -> "pd.DataFrame":
    """Tidy table, one row per (model, process, block, part, step, index): `value`, the statistic's
    mean over images, and `spread`, its standard deviation over them.

    `denoiser` is one of this project, one that `analysis.adapters` makes of another network, or a
    module of one's own, denoise(x, sigma, labels) -> x0_hat, with the attributes channels,
    resolution and label_dim. Of UNets with EDM's names the `parts` of each block are measured; of
    others the layers that fit `pattern`, or one of several: names in the module, with shell
    wildcards.

    `seeds` start the sampling, and draw its labels if the network is conditional; `images`
    (N,C,H,W) in [-1,1], if given, are denoised too, with noise from the first seeds, and by a
    conditional network with their own `labels` (N,). The noise levels are EDM's, within those that
    the network knows. A layer called several times in a network call counts by the first; its
    output is the first tensor of what it returns (see `analysis.hooks.record`), an image a row.

    Columns also hold side, depth (0 at the UNet's outside within its side's order of execution),
    resolution, sigma and n. A layer without EDM's name has its whole name as block, the side `all`,
    the part `output`, its place in the order of execution as depth, and as resolution the height of
    its maps, 0 if it makes none. `index` counts channels or bands, low to high; it is 0 for the
    scalar statistics. Raises ValueError on an unknown statistic or part, labels or outputs that do
    not fit, and as `record` does.
    """
    import pandas as pd
    import torch
    from tqdm.auto import tqdm

    from analysis.adapters import Adapted
    from analysis.hooks import evaluating, record
    from gdd.sampling import draw_latents, sigma_ladder, solve

    _check_names(statistic, parts)
    known = statistics()
    if lacking := [n for n in ("channels", "resolution", "label_dim") if not hasattr(denoiser, n)]:
        raise ValueError(f"a denoiser has channels, resolution and label_dim, and "
                         f"{type(denoiser).__name__} lacks {', '.join(lacking)}; of other networks "
                         "analysis.from_diffusers, from_edm and wrap make one")
    channels, resolution, classes = (int(getattr(denoiser, n))
                                     for n in ("channels", "resolution", "label_dim"))
    real = 0 if images is None else len(images)
    if classes and real and (labels is None or len(labels) != real or int(labels.max()) >= classes):
        raise ValueError(f"a network of {classes} classes denoises images with their own labels, "
                         f"of 0 to {classes - 1}; this data has others or none")
    device = next(denoiser.parameters()).device
    shape = (channels, resolution, resolution)
    network, ladder = denoiser, sigma_ladder(steps)
    if isinstance(denoiser, Adapted):
        network = denoiser.network
        ladder = sigma_ladder(steps, sigma_min=max(SIGMA_MIN, denoiser.sigma_min), sigma_max=min(
            SIGMA_MAX, denoiser.sigma_max))
    levels = ladder[:-1].tolist()
    # (process, layer, step) -> (3,K): sums over images of 1, the statistic and its square
    sums: dict[tuple[str, str, int], Tensor] = {}
    heights: dict[str, int] = {}
    bar = tqdm(total=(len(seeds) + real) * steps, unit="call", desc=f"activations of {model}",
               disable=None)

    batch, correcting = 0, False

    def reduce(x: "Tensor") -> tuple[int, "Tensor"] | None:
        if correcting:
            return None
        if x.ndim < 2 or len(x) != batch:
            raise ValueError(f"of {batch} images it makes {tuple(x.shape)}, not a row for each")
        if x.dtype in (torch.float16, torch.bfloat16):
            x = x.float()  # squares of half precision overflow
        return (x.shape[2] if x.ndim == 4 else 0), known[statistic](x)

    def call(x: "Tensor", sigma: float, labels: "Tensor | None") -> "Tensor":
        nonlocal batch, correcting
        tape.clear()
        batch = len(x)
        x0_hat = denoiser(x, sigma, labels)
        correcting = False
        return x0_hat

    def add(process: str, step: int) -> None:
        for layer, calls in tape.items():
            assert calls[0]
            heights[layer], found = calls[0]
            found = found.cpu().double()
            one, key = torch.ones_like(found), (process, layer, step)
            sums[key] = sums.get(key, 0) + torch.stack([one, found, found.square()]).sum(dim=1)
        bar.update(batch)

    wanted = pattern or [f"model.*.{part}" for part in parts]
    with torch.inference_mode(), evaluating(denoiser), bar, record(network, wanted, reduce) as tape:
        for start in range(0, len(seeds), batch_size):
            latents, drawn = draw_latents(seeds[start:start + batch_size], shape, classes)
            asked = None if drawn is None else drawn.to(device)
            for step in solve(call, latents.to(device), labels=asked, sigmas=ladder):
                if step.sigma > 0:
                    add("sampling", step.index)
                correcting = step.sigma > 0  # the next call is Heun's correction of this step
        for start in range(0, real, batch_size):
            chosen = slice(start, min(start + batch_size, real))
            noise = draw_latents(range(chosen.start, chosen.stop), shape)[0].to(device)
            x, own = images[chosen].to(device), None  # type: ignore[index]
            if classes and labels is not None:
                own = labels[chosen].to(device)
            for level, sigma in enumerate(levels):
                call(x + sigma * noise, sigma, own)
                add("denoising", level)

    depths: dict[tuple[str, str], int] = {}
    rows = []
    for (process, layer, level), value in sums.items():
        side, block, height, part = "all", layer, heights[layer], "output"
        if named := ADDRESS.fullmatch(layer):
            side, block, height, part = SIDES[named[1]], named[2], int(named[3]), named[4]
        deeper = sum(known_side == side for known_side, _ in depths)
        depth = depths.setdefault((side, block), deeper)
        n, (means, squares) = int(value[0, 0]), value[1:] / value[0]
        spreads = (squares - means.square()).clamp(min=0).sqrt()
        for index, (mean, spread) in enumerate(zip(means.tolist(), spreads.tolist(), strict=True)):
            rows.append((model, process, side, block, part, depth, height, levels[level], level,
                         statistic, index, mean, spread, n))
    return pd.DataFrame(rows, columns=COLUMNS)


@dataclass
class Activations:
    """Measure time-step-dependent activations of a checkpoint: tidy CSV and the plot of Figure
    3."""

    ckpt: str = ""
    """A shipped run's name, such as gdd-i; a checkpoint of this project; or a network pickle of
    EDM or GDD; default: the profile's teacher."""
    profile: str = "desk"
    """One of gdd/profiles, such as desk, or a Python file that defines PROFILE."""
    data: str = ""
    """Real images to denoise: a data set, such as a zip; default: what the checkpoint was trained
    on, else the profile's; none: only sampling."""
    statistic: str = "mean_abs"
    """mean_abs, rms, std, channel (mean_abs of each channel) or bands (shares of the spectrum's
    power, low to high)."""
    part: str = "conv1"
    """conv1, the last convolution of each block; proj, the attention's output; or conv1,proj."""
    steps: int = 18
    """Noise levels of EDM's ladder."""
    n: int = 0
    """Images; default: the profile's."""
    out: Path | None = None
    """Folder for activations-NAME.csv, .png and .pdf; default: figures/PROFILE/explore."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes a GPU if there is one."""
    precision: Precision = "fp32"
    """Of the UNet, whose activations are then of that precision."""


def main(args: Activations) -> None:
    if args.n < 0 or args.steps < 2:
        raise ValueError(f"n must be at least 1 and steps at least 2; got {args.n}, {args.steps}")
    chosen, parts = profile(args.profile), args.part.split(",")
    _check_names(args.statistic, parts)
    located = zoo.locate(args.ckpt) if args.ckpt else None
    if args.data not in ("", "none"):
        from gdd.data.pictures import check_path

        check_path(args.data)

    import torch

    from analysis.activation_plots import describe, plot_page
    from analysis.experiments import obtain
    from analysis.figures import FIGURES_FOLDER, rounded, save_figure
    from analysis.plots import paper_style
    from gdd.data.images import open_images, to_float
    from gdd.sampling import to_device
    from gdd.training.start import missing_files
    from gdd.weights import checkpoint

    if not args.ckpt and (lacking := missing_files(chosen)):
        raise FileNotFoundError(f"profile {chosen.name} lacks {len(lacking)} files: " +
                                "; ".join(lacking))
    path = located or obtain(chosen.teacher, args.profile).path
    denoiser, metadata = checkpoint.load_with_metadata(path)
    shape = (denoiser.channels, denoiser.resolution, denoiser.resolution)
    data = args.data or metadata.get("train", {}).get("data") or chosen.data
    n, images, labels = args.n or chosen.n_activations, None, None
    if data != "none":
        found = open_images(data, in_memory=0)  # only n of them are looked at
        if tuple(found.images.shape[1:]) != shape:
            raise ValueError(f"data {data} has images {tuple(found.images.shape[1:])}; the network "
                             f"takes {shape}")
        picked = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))[:n]
        images = to_float(found.images[picked])
        labels = None if found.labels is None else found.labels[picked]
    name = path.stem if path.stem != "final" else path.parent.name
    denoiser = to_device(denoiser, args.device, args.precision)
    table = measure(denoiser, model=name, seeds=range(n), images=images, labels=labels,
                    steps=args.steps, parts=parts, statistic=args.statistic)
    folder = args.out or FIGURES_FOLDER / chosen.name / "explore"
    paper_style()
    table = rounded(table)
    file = f"activations-{name}" + (f"-{args.statistic}" if args.statistic != "mean_abs" else "")
    save_figure(plot_page(table), table, folder, file, describe(table))
    blocks = len(table.drop_duplicates(["side", "block"]))
    print(f"{folder / file}.csv, .png, .pdf, .txt: {len(table)} rows, {blocks} blocks, n = {n}")


def console() -> None:
    from gdd.cli import run_cli

    run_cli(Activations, main)


if __name__ == "__main__":
    console()
