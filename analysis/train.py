"""python -m analysis.train: `python -m gdd train`, with the distance to the data measured at every
tick.

The distance is a column of log.csv and a curve in TensorBoard, and decides best.safetensors. `gdd`
knows nothing of it: the measurement is handed in.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import tyro

from gdd.cli import run_cli
from gdd.config import TrainConfig
from gdd.profiles import preset
from gdd.training.command import Train, changed, train


@dataclass
class MeasuredTrain(Train):
    """Train as `python -m gdd train` does, and measure the distance to the data at every tick."""

    features: str = ""
    """inception[:edm|:clean|:legacy_pytorch], clip, dinov2, timm:NAME, digits; default: digits on
    the digits, else inception."""
    n: Annotated[int, tyro.conf.arg(aliases=["--images"])] = 5_000
    """Images per measurement, from seeds 0 to n - 1; of a data set with fewer, as many as it
    has."""
    reference: str = ""
    """What to compare with: a data set, or an .npz of statistics; default: the training data, all
    of it."""


def main(args: MeasuredTrain) -> None:
    if args.n < 2:
        raise ValueError(f"n must be at least 2; got {args.n}")
    if args.dry_run:
        return train(args)
    chosen = preset(args.preset)
    label, evaluate = curve(args, changed(chosen.config, args.set), chosen.backbones
                            or ("digits", ))
    train(args, evaluate=evaluate, best_by=label)


def curve(args: MeasuredTrain, config: TrainConfig, backbones: tuple[str,
                                                                     ...]) -> tuple[str, Callable]:
    """The name of the distance, and the function of a training state that measures it, in all
    processes together."""
    import torch

    from analysis import fid
    from analysis.experiments import judge
    from analysis.fid.compare import check_pair, kinship
    from analysis.fid.sources import Source, of_denoiser, open_source
    from analysis.fid.summaries import Summaries, cache_folder
    from gdd.sampling import sampler_of

    local = os.environ.get("LOCAL_RANK", "0")
    device = f"cuda:{local}" if args.hardware.accelerator != "cpu" and torch.cuda.is_available(
    ) else "cpu"
    extractor = judge(args.features or ("digits" if config.data == "digits" else "inception"),
                      device)
    for line in kinship(args.preset, backbones,
                        extractor) if "gdd" in config.objective and local == "0" else ():
        print(f"warning: {line}", file=sys.stderr)
    reference, summaries = open_source(args.reference
                                       or config.data), Summaries(extractor, cache=cache_folder())
    # statistics of other features are refused now
    check_pair(reference, reference, extractor, different_n=True)
    n = min(args.n, reference.n or args.n)
    label = fid.label(extractor.name, n)

    def evaluate(state) -> dict[str, float]:
        source = of_denoiser(state.ema, sampler_of(config),
                             f"{state.images_seen:,} images")(range(n))
        real = summaries.of(reference).stats if isinstance(reference, Source) else reference.stats
        return {label: fid.frechet_distance(Summaries(extractor).of(source).stats, real)}

    return label, evaluate


if __name__ == "__main__":
    run_cli(MeasuredTrain, main)
