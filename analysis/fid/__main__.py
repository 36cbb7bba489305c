"""python -m analysis.fid SOURCE SOURCE [...]: every distance between generators, data sets, arrays
and statistics, in memory."""

import json
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from analysis.fid.asked import check_metrics, check_numbers, locate
from gdd.cli import run_cli
from gdd.config import Precision


@dataclass
class Fid:
    """Distances between sources: generators with a sampler, data sets, images as .npy or .npz,
    statistics as .npz.

    Two sources: the first is judged by the second, over three ranges of seeds. More: the distance
    of every pair.
    """

    sources: Positional[list[str]]
    """A shipped run such as gdd-i or a checkpoint, with its sampler if not the usual one:
    gdd-i@k-step:2 (heun:18, euler:18, one-step, k-step:4, two-step:0.8); a data set: its name,
    a folder or zip of images; an .npz. A folder that is called like a shipped run: ./gdd-i."""
    features: list[str] = field(default_factory=list)
    """Several with spaces or commas: inception[:edm|:clean|:legacy_pytorch|:torchscript], clip,
    dinov2, timm:NAME, or a profile's classifier; default: that of a profile for images of this
    shape, else inception and clip."""
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
    """Draws for a 95 per cent interval of the distance at its n; a report makes 100."""
    batch_size: int = 256
    """Images per call of generator and extractor."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes a GPU if there is one, under torchrun each process its
    own."""
    precision: Precision = "fp32"
    """Of the generators' UNets and of the feature extractor. On the shipped networks bf16 moves the
    distance by less than 1 per cent, fp16 by less than 0.1."""
    cache: bool = True
    """Keep and use summaries in ~/.cache/gdd, or $GDD_CACHE."""
    report: Path | None = None
    """Write a page, .html, about two sources: distances with intervals, images, nearest neighbours,
    what of the distance is class statistics, and warnings."""
    held_out: str | None = None
    """Real images that no training saw, for the report's nearest neighbours; default: a half of the
    second source stands for them."""
    save_statistics: Path | None = None
    """Write the first source's moments as .npz (mu, sigma, provenance), for the first features."""
    json: bool = False
    """Print the rows of every range as JSON instead of a table."""
    csv: bool = False
    """Print the rows of every range as CSV instead of a table."""


def main(args: Fid) -> None:
    check_numbers(args)
    check_metrics(args.metrics)
    for spec in [*args.sources, *([args.held_out] if args.held_out else [])]:
        locate(spec)
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    if args.report and several:
        raise ValueError("--report is made by one process; what torchrun measured is in the cache, "
                         "so run it again without")
    if args.held_out and not args.report:
        raise ValueError(f"--held-out is of a --report; got {args.held_out} without one")

    import pandas as pd
    import torch
    import torch.distributed as dist

    from analysis.extractors import extractor
    from analysis.fid.compare import measure, shared_backbones, with_seeds
    from analysis.fid.report import BOOTSTRAP, METRICS, check_report, write_report
    from analysis.fid.sources import Source, open_source
    from analysis.fid.statistics import check_target, save_statistics
    from analysis.fid.summaries import Summaries, cache_folder
    from gdd.sampling import available_device

    if args.save_statistics:
        check_target(args.save_statistics)
    place = available_device(args.device)
    device, precision = str(place), args.precision
    if several:
        if place.type == "cuda":
            torch.cuda.set_device(place)
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    is_rank_zero = not dist.is_initialized() or dist.get_rank() == 0
    try:
        opened = [
            open_source(spec, device=device, precision=precision)
            for spec in [*args.sources, *([args.held_out] if args.held_out else [])]]
        sources, held_out = opened[:len(args.sources)], opened[len(args.sources):]
        metrics, bootstrap = args.metrics, args.bootstrap
        if args.report:
            check_report(args.report, sources, *held_out)
            metrics, bootstrap = [*METRICS, *metrics], bootstrap or BOOTSTRAP
        tables, judges = [], []
        for name in _named(args.features) or _default_features(sources):
            feature_extractor = extractor(name, device=device, precision=precision)
            for source in sources if is_rank_zero else ():
                if isinstance(source, Source):
                    for line in shared_backbones(source.name, source.backbones, feature_extractor):
                        print(f"warning: {line}", file=sys.stderr)
            summaries = Summaries(feature_extractor, args.batch_size,
                                  cache_folder() if args.cache else None)
            table = measure(sources, summaries, metrics=metrics, n=args.n, ranges=args.ranges,
                            first_seed=args.first_seed, bootstrap=bootstrap,
                            allow_different_n=args.allow_different_n)
            tables.append(table)
            judges.append(summaries)
            if args.save_statistics and len(tables) == 1 and is_rank_zero:
                save_statistics(args.save_statistics, *summaries.first())
        table = pd.concat(tables, ignore_index=True)
        if args.report:
            seeded = with_seeds(sources, args.n, args.first_seed)
            write_report(args.report, seeded, judges, table, *held_out)
        if is_rank_zero:
            _show(args, table)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _named(features: list[str]) -> list[str]:
    return list(dict.fromkeys(name for word in features for name in word.split(",") if name))


def _default_features(sources) -> tuple[str, ...]:
    from analysis.extractors import default_extractors
    from analysis.fid.sources import Statistics

    finished = [s.extractor or "inception" for s in sources if isinstance(s, Statistics)]
    # a file may name what is here, but nothing that would be fetched from a place of its choice
    if odd := [name for name in finished if not re.fullmatch(r"(\w+:)?[\w.@-]+", name)]:
        raise ValueError(f"{odd[0]} are features that a file asks for; give --features yourself")
    if finished:
        return tuple(finished[:1])
    shapes = {source.shape for source in sources}
    return default_extractors(shapes.pop() if len(shapes) == 1 else ())


def _show(args: Fid, table) -> None:
    from analysis.fid.compare import over_ranges

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

    from analysis.fid.compare import certainty

    shown = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("", "against", "metric"):
        shown.add_column(title, overflow="fold")
    known = rows[["spread", "low"]].notna().any(axis=None)
    titles = ("mean", f"min to max of {rows['ranges'].max()}", *(["interval"] if known else []))
    for title in titles:
        shown.add_column(title, justify="right", min_width=6, no_wrap=True)
    for row in rows.to_dict("records"):
        names = [escape(row[name]) for name in ("a", "b", "metric")]
        spread = f"{row['min']:.4g} to {row['max']:.4g}"
        shown.add_row(*names, f"{row['mean']:.4g}", spread, *([certainty(row)] if known else []))
    console = Console()
    (console if console.is_terminal else Console(width=140)).print(shown)


def console() -> None:
    run_cli(Fid, main)


if __name__ == "__main__":
    console()
