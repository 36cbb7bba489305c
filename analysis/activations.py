"""Time-step-dependent activations of a UNet (Figure 3 of the paper): the last convolution of every
block, at every noise level.

    python -m analysis.activations --ckpt gdd-i [--statistic mean_abs] [--part conv1]

Two processes are measured: `sampling`, while the model runs EDM's solver from pure noise, and
`denoising`, while it denoises real images with noise added at the same levels.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gdd.config import Precision
from gdd.profiles import profile

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from gdd.denoiser import Denoiser

ADDRESS = re.compile(r"model\.(enc|dec)\.((\d+)x\d+_\w+)\.(\w+)")
SIDES = {"enc": "encoder", "dec": "decoder"}
PARTS = ("conv1", "proj")
COLUMNS = ["model", "process", "side", "block", "part", "depth", "resolution", "sigma", "step",
           "statistic", "index", "value", "spread", "n"]  # yapf: disable


def statistics() -> dict[str, Callable[["Tensor"], "Tensor"]]:
    """Name -> reduction of an activation (N,C,H,W) to one row per image (N,K)."""
    from analysis.spectrum import band_energy

    return {
        "mean_abs": lambda x: x.abs().mean(dim=(1, 2, 3))[:, None],
        "rms": lambda x: x.square().mean(dim=(1, 2, 3)).sqrt()[:, None],
        "std": lambda x: x.flatten(1).std(dim=1)[:, None],
        "channel": lambda x: x.abs().mean(dim=(2, 3)),
        "bands": band_energy, }


def measure(denoiser: "Denoiser", *, model: str, seeds: Sequence[int] = range(256),
            images: "Tensor | None" = None, labels: "Tensor | None" = None, steps: int = 18,
            parts: Sequence[str] = ("conv1", ), statistic: str = "mean_abs",
            batch_size: int = 256) -> "pd.DataFrame":
    """Tidy table, one row per (model, process, block, part, step, index): `value`, the statistic's
    mean over images, and `spread`, its standard deviation over them.

    `seeds` start the sampling, and draw its labels if the network is conditional; `images`
    (N,C,H,W) in [-1,1], if given, are denoised too, with noise from the first seeds, and by a
    conditional network with their own `labels` (N,). Columns also hold side, depth (0 at the UNet's
    outside within its side's order of execution), resolution, sigma and n. `index` counts channels
    or bands, low to high; it is 0 for the scalar statistics. Raises ValueError on an unknown
    statistic or part, or labels that do not fit.
    """
    import pandas as pd
    import torch
    from tqdm.auto import tqdm

    from analysis.hooks import record
    from gdd.sampling import draw_latents, sigma_ladder, solve

    known = statistics()
    if statistic not in known:
        raise ValueError(f"statistic must be one of {', '.join(known)}; got {statistic!r}")
    if unknown := set(parts) - set(PARTS):
        raise ValueError(f"parts must be of {', '.join(PARTS)}; got {', '.join(sorted(unknown))}")
    classes, real = denoiser.label_dim, 0 if images is None else len(images)
    if classes and real and (labels is None or len(labels) != real or int(labels.max()) >= classes):
        raise ValueError(f"a network of {classes} classes denoises images with their own labels, "
                         f"of 0 to {classes - 1}; this data has others or none")
    device = next(denoiser.parameters()).device
    shape = (denoiser.channels, denoiser.resolution, denoiser.resolution)
    sigmas = sigma_ladder(steps)[:-1].tolist()
    # (process, address, step) -> (2,K): sums of the statistic and of its square
    sums: dict[tuple[str, str, int], Tensor] = {}
    counts = {"sampling": len(seeds), "denoising": real}
    bar = tqdm(total=sum(counts.values()) * steps * len(parts), unit="call",
               desc=f"activations of {model}", disable=None)

    def add(process: str, step: int, tape: dict[str, list["Tensor"]], count: int) -> None:
        for address, values in tape.items():
            key = (process, address, step)
            found = values[-1].cpu().double()
            sums[key] = sums.get(key, 0) + torch.stack([found.sum(0), found.square().sum(0)])
            values.clear()
        bar.update(count)

    with torch.inference_mode(), bar:
        for part in parts:
            pattern = f"model.*.{part}"
            for start in range(0, len(seeds), batch_size):
                latents, drawn = draw_latents(seeds[start:start + batch_size], shape, classes)
                asked = None if drawn is None else drawn.to(device)
                with record(denoiser, pattern, known[statistic]) as tape:
                    for step in solve(denoiser, latents.to(device), steps=steps, labels=asked):
                        # the tape's last entry is this step's first call, not the corrector's
                        if step.sigma > 0:
                            add("sampling", step.index, tape, len(latents))
            for start in range(0, real, batch_size):
                chosen = slice(start, min(start + batch_size, real))
                noise = draw_latents(range(chosen.start, chosen.stop), shape)[0].to(device)
                x, own = images[chosen].to(device), None  # type: ignore[index]
                if classes and labels is not None:
                    own = labels[chosen].to(device)
                with record(denoiser, pattern, known[statistic]) as tape:
                    for level, sigma in enumerate(sigmas):
                        denoiser(x + sigma * noise, sigma, own)
                        add("denoising", level, tape, len(x))

    depths: dict[tuple[str, str], int] = {}
    rows = []
    for (process, address, level), value in sums.items():
        found = ADDRESS.fullmatch(address)
        assert found, address
        side, block, resolution, part = SIDES[found[1]], found[2], int(found[3]), found[4]
        deeper = sum(known_side == side for known_side, _ in depths)
        depth = depths.setdefault((side, block), deeper)
        means, squares = value / counts[process]
        spreads = (squares - means.square()).clamp(min=0).sqrt()
        for index, (mean, spread) in enumerate(zip(means.tolist(), spreads.tolist(), strict=True)):
            rows.append((model, process, side, block, part, depth, resolution, sigmas[level], level,
                         statistic, index, mean, spread, counts[process]))
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
    chosen = profile(args.profile)

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
    path = checkpoint.locate(args.ckpt) if args.ckpt else obtain(chosen.teacher, args.profile).path
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
    table = measure(to_device(denoiser, args.device, args.precision), model=name, seeds=range(n),
                    images=images, labels=labels, steps=args.steps, parts=args.part.split(","),
                    statistic=args.statistic)
    folder = args.out or FIGURES_FOLDER / chosen.name / "explore"
    paper_style()
    table = rounded(table)
    file = f"activations-{name}" + (f"-{args.statistic}" if args.statistic != "mean_abs" else "")
    save_figure(plot_page(table), table, folder, file, describe(table))
    blocks = len(table.drop_duplicates(["side", "block"]))
    print(f"{folder / file}.csv, .png, .pdf, .txt: {len(table)} rows, {blocks} blocks, n = {n}")


if __name__ == "__main__":
    from gdd.cli import run_cli

    run_cli(Activations, main)
