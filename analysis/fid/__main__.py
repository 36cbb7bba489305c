"""python -m analysis.fid SOURCE SOURCE [...]: every distance between generators, data sets, arrays
and statistics, in memory."""

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional

from gdd.cli import run_cli


@dataclass
class Fid:
    """Distances between sources: checkpoints with a sampler, digits, folders, zips, .npy/.npz
    images, .npz statistics.

    Two sources: the first is judged by the second, over three ranges of seeds. More: the distance
    of every pair.
    """

    sources: Positional[list[str]]
    """PATH@SAMPLER (heun:18, euler:18, one-step, k-step:4, two-step:0.8) of a checkpoint; else a
    data set or .npz."""
    features: list[str] = field(default_factory=list)
    """inception[:edm|:clean|:legacy_pytorch], clip, dinov2, timm:NAME, digits; default: digits for
    8x8 grey images, else inception and clip."""
    metrics: list[str] = field(default_factory=lambda: ["fd"])
    """fd, kid, pr (precision, recall), dc (density, coverage), is, fd-infinity."""
    n: Annotated[int | None, tyro.conf.arg(aliases=["--images"])] = None
    """Images per generator; default: as many as the data set beside it has, else 50,000. Under
    torchrun: --images."""
    ranges: int = 3
    """Ranges of n seeds each; mean, min and max are reported."""
    first_seed: int = 0
    """Where the first range starts."""
    allow_different_n: bool = False
    """Compare sources of different n, such as 50,000 images with a larger training set."""
    bootstrap: int = 0
    """Draws for a 95 per cent interval of the distance."""
    batch_size: int = 256
    """Images per call of generator and extractor."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes a GPU if there is one. Under torchrun each process takes
    its own."""
    cache: Annotated[bool,
                     tyro.conf.arg(
                         help="Keep and use summaries in ~/.cache/gdd, or $GDD_CACHE.")] = True
    save_statistics: Path | None = None
    """Write the first source's moments as .npz (mu, sigma, provenance), for the first features."""
    json: bool = False
    """Print the rows of every range as JSON instead of a table."""
    csv: bool = False
    """Print the rows of every range as CSV instead of a table."""


def main(args: Fid) -> None:
    import torch
    import torch.distributed as dist

    from analysis.experiments import judge
    from analysis.fid.compare import leakage, measure
    from analysis.fid.sources import open_source, save_statistics
    from analysis.fid.summaries import Summaries, cache_folder

    local = int(os.environ.get("LOCAL_RANK", 0))
    device = (f"cuda:{local}"
              if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} is not to be had: {error}") from None
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        if device.startswith("cuda"):
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    leads = not dist.is_initialized() or dist.get_rank() == 0
    try:
        sources = [open_source(spec, device=device) for spec in args.sources]
        tables = []
        for name in args.features or _default_features(sources):
            extractor = judge(name, device)
            for line in leakage(sources, extractor) if leads else ():
                print(f"warning: {line}", file=sys.stderr)
            summaries = Summaries(extractor, args.batch_size,
                                  cache_folder() if args.cache else None)
            options: dict[str, Any] = dict(n=args.n, ranges=args.ranges, first_seed=args.first_seed,
                                           bootstrap=args.bootstrap)
            tables.append(
                measure(sources, summaries, metrics=args.metrics,
                        allow_different_n=args.allow_different_n, **options))
            if args.save_statistics and len(tables) == 1 and leads:
                save_statistics(args.save_statistics, *summaries.first())
        if leads:
            _report(args, tables)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _default_features(sources) -> list[str]:
    from analysis.fid.sources import Statistics

    finished = [
        source.extractor or "inception" for source in sources if isinstance(source, Statistics)
    ]
    if finished:
        return finished[:1]
    return ["digits"] if all(source.shape == (1, 8, 8)
                             for source in sources) else ["inception", "clip"]


def _report(args: Fid, tables) -> None:
    import pandas as pd

    from analysis.fid.compare import over_ranges

    table = pd.concat(tables, ignore_index=True)
    if args.json:
        print(json.dumps(json.loads(table.to_json(orient="records")), indent=1))
    elif args.csv:
        print(table.to_csv(index=False), end="")
    else:
        _print_table(over_ranges(table))


def _print_table(rows) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    shown = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("", "against", "metric"):
        shown.add_column(title, overflow="fold")
    errors = rows[["error", "low"]].notna().any(axis=None)
    for title in ("mean", f"min to max of {rows['ranges'].max()}", *(["error"] if errors else [])):
        shown.add_column(title, justify="right", min_width=6, no_wrap=True)
    for row in rows.to_dict("records"):
        error = f"{row['error']:.2g}" if row["error"] == row["error"] else ""
        error = f"{row['low']:.4g} to {row['high']:.4g}" if row["low"] == row["low"] else error
        names = [escape(row[name]) for name in ("a", "b", "metric")]
        shown.add_row(*names, f"{row['mean']:.4g}", f"{row['min']:.4g} to {row['max']:.4g}",
                      *([error] if errors else []))
    console = Console()
    (console if console.is_terminal else Console(width=140)).print(shown)


if __name__ == "__main__":
    run_cli(Fid, main)
