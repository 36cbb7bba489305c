"""Time-step-dependent activations of a UNet (Figure 3 of the paper): the last convolution of every
block, at every noise level.

    python -m analysis.activations --ckpt PATH [--profile desk] [--statistic mean_abs] [--part
    conv1]

Two processes are measured: `sampling`, while the model runs EDM's solver from pure noise, and
`denoising`, while it denoises real images with noise added at the same levels.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from gdd.denoiser import Denoiser

ADDRESS = re.compile(
    r"^model\.(?P<side>enc|dec)\.(?P<block>(?P<resolution>\d+)x\d+_\w+)\.(?P<part>\w+)$")
SIDES = {"enc": "encoder", "dec": "decoder"}
PARTS = ("conv1", "proj")
COLUMNS = [
    "model", "process", "side", "block", "part", "depth", "resolution", "sigma", "step",
    "statistic", "index", "value", "n"
]


def statistics() -> dict[str, Callable[["Tensor"], "Tensor"]]:
    """Name -> reduction of an activation (N,C,H,W) to one row per image (N,K)."""
    from analysis.spectrum import band_energy

    return {
        "mean_abs": lambda x: x.abs().mean(dim=(1, 2, 3))[:, None],
        "rms": lambda x: x.square().mean(dim=(1, 2, 3)).sqrt()[:, None],
        "std": lambda x: x.flatten(1).std(dim=1)[:, None],
        "channel": lambda x: x.abs().mean(dim=(2, 3)),
        "bands": band_energy,
    }


def measure(denoiser: "Denoiser", *, model: str, seeds: Sequence[int] = range(256),
            images: "Tensor | None" = None, steps: int = 18, parts: Sequence[str] = ("conv1", ),
            statistic: str = "mean_abs", batch_size: int = 256) -> "pd.DataFrame":
    """Tidy table, one row per (model, process, block, part, step, index): the statistic's mean over
    images.

    `seeds` start the sampling; `images` (N,C,H,W) in [-1,1], if given, are denoised too, with noise
    from the first seeds. Columns also hold side, depth (0 at the UNet's outside within its side's
    order of execution), resolution, sigma and n. `index` counts channels or bands, low to high; it
    is 0 for the scalar statistics. Raises ValueError on an unknown statistic or part.
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
    device = next(denoiser.parameters()).device
    shape = (denoiser.channels, denoiser.resolution, denoiser.resolution)
    sigmas = sigma_ladder(steps)[:-1].tolist()
    sums: dict[tuple[str, str, int], Tensor] = {}  # (process, address, step) -> (K,)
    real = () if images is None else images.split(batch_size)
    counts = {"sampling": len(seeds), "denoising": sum(map(len, real))}

    def latents_of(chosen: Sequence[int]) -> tuple["Tensor", "Tensor | None"]:
        latents, labels = draw_latents(chosen, shape, denoiser.label_dim)
        return latents.to(device), None if labels is None else labels.to(device)

    def add(process: str, step: int, tape: dict[str, list["Tensor"]]) -> None:
        for address, values in tape.items():
            key = (process, address, step)
            sums[key] = sums.get(key, 0) + values[-1].sum(dim=0).to("cpu", torch.float64)
            values.clear()

    bar = tqdm(total=sum(counts.values()) * steps * len(parts), unit="call",
               desc=f"activations of {model}", disable=None)
    with torch.inference_mode(), bar:
        for part in parts:
            for start in range(0, len(seeds), batch_size):
                latents, labels = latents_of(seeds[start:start + batch_size])
                with record(denoiser, f"model.*.{part}", known[statistic]) as tape:
                    for step in solve(denoiser, latents, steps=steps, labels=labels):
                        # the tape's last entry is this step's first call, not the corrector's
                        if step.sigma > 0:
                            add("sampling", step.index, tape)
                            bar.update(len(latents))
            for chunk, batch in enumerate(real):
                noise, labels = latents_of(
                    range(chunk * batch_size, chunk * batch_size + len(batch)))
                with record(denoiser, f"model.*.{part}", known[statistic]) as tape:
                    for level, sigma in enumerate(sigmas):
                        denoiser(batch.to(device) + sigma * noise, sigma, labels)
                        add("denoising", level, tape)
                        bar.update(len(batch))

    depths: dict[tuple[str, str], int] = {}
    rows = []
    for (process, address, level), value in sums.items():
        place = ADDRESS.match(address)
        assert place, address
        side = SIDES[place["side"]]
        depth = depths.setdefault((side, place["block"]),
                                  sum(known_side == side for known_side, _ in depths))
        for index, mean in enumerate((value / counts[process]).tolist()):
            rows.append((model, process, side, place["block"], place["part"], depth,
                         int(place["resolution"]), sigmas[level], level, statistic, index, mean,
                         counts[process]))
    return pd.DataFrame(rows, columns=COLUMNS)


@dataclass
class Activations:
    """Measure time-step-dependent activations of a checkpoint: tidy CSV and the plot of Figure
    3."""

    ckpt: Path
    """Checkpoint of this project, for example gdd/weights/zoo/teacher.safetensors."""
    profile: str = "desk"
    """desk or smoke: where the output goes, and how many images are measured (256 or 16)."""
    data: str = ""
    """Real images to denoise: digits, a folder or a zip; default: what the checkpoint was trained
    on; none: only sampling."""
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
    """Folder for activations-NAME.csv, .png and .pdf; default: figures/PROFILE."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, mps."""


def main(args: Activations) -> None:
    from gdd.profiles import profile

    profile(args.profile)
    n = args.n or {"desk": 256, "smoke": 16}[args.profile]
    if n < 1 or args.steps < 2:
        raise ValueError(f"n must be at least 1 and steps at least 2; got {n} and {args.steps}")

    import torch

    from analysis.plots import paper_style, plot_activations_page, save_figure
    from gdd.data.images import open_images, to_float
    from gdd.weights import checkpoint

    denoiser, metadata = checkpoint.load_with_metadata(args.ckpt)
    data = args.data or metadata.get("train", {}).get("data", "none")
    images = None
    if data != "none":
        found = open_images(data, in_memory=0).images  # only n of them are looked at
        if tuple(found.shape[1:]) != (denoiser.channels, denoiser.resolution, denoiser.resolution):
            raise ValueError(f"data {data} has images {tuple(found.shape[1:])}; the network takes "
                             f"{(denoiser.channels, denoiser.resolution, denoiser.resolution)}")
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
        images = to_float(found[order[:n]])
    try:
        denoiser = denoiser.to(args.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {args.device!r} is not to be had: {error}") from None
    name = args.ckpt.stem if args.ckpt.stem != "final" else args.ckpt.parent.name
    table = measure(denoiser, model=name, seeds=range(n), images=images, steps=args.steps,
                    parts=args.part.split(","), statistic=args.statistic)
    folder = args.out or Path("figures") / args.profile
    paper_style()
    save_figure(plot_activations_page(table), table, folder, f"activations-{name}")
    blocks = len(table.drop_duplicates(["side", "block"]))
    print(
        f"{folder / f'activations-{name}'}.csv, .png, .pdf: {len(table)} rows, {blocks} blocks, n = {n}"
    )


if __name__ == "__main__":
    from gdd.cli import run_cli

    run_cli(Activations, main)
