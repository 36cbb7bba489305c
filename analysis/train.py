"""python -m analysis.train: `python -m gdd train`, with the distance to the data measured at every
tick.

The distance is a column of log.csv and a curve in TensorBoard, and decides best.safetensors. `gdd`
knows nothing of it: the measurement is handed in.
"""

import os
import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from gdd.cli import run_cli
from gdd.profiles import preset
from gdd.training.command import Train, parse, train


@dataclass
class MeasuredTrain(Train):
    """Train as `python -m gdd train` does, and measure the distance to the data at every tick."""

    features: str = ""
    """inception[:edm|:clean|:legacy_pytorch|:torchscript], clip, dinov2, lite2, timm:NAME, the last
    four also at @PIXELS, or a profile's classifier; default: the first that judges the profile."""
    n: Annotated[int, tyro.conf.arg(aliases=["--images"])] = 5_000
    """Images per measurement, from seeds 0 to n - 1; of a data set with fewer, as many as it
    has."""
    reference: str = ""
    """What to compare with: a data set, or an .npz of statistics; default: the profile's, else the
    training data, all of it."""


def main(args: MeasuredTrain) -> None:
    if args.dry_run:
        return train(args)
    if args.n < 2:
        raise ValueError(f"n must be at least 2; got {args.n}")

    from analysis.extractors import evaluator, extractor
    from analysis.fid.compare import shared_backbones
    from analysis.fid.summaries import cache_folder
    from gdd.sampling import available_device

    profile, config = preset(args.preset)[0], args.config
    kind = args.hardware.accelerator
    device = str(available_device("auto" if kind == "cuda" else kind))  # torchrun's: each its own
    name = args.features or profile.extractors[0]
    feature_extractor = extractor(name, profile if name in profile.classifiers else None, device)
    backbones = config.backbones if config.adversarial else ()
    if os.environ.get("LOCAL_RANK", "0") == "0":
        for line in shared_backbones(args.preset, backbones, feature_extractor):
            print(f"warning: {line}", file=sys.stderr)
    label, evaluate = evaluator(profile, feature_extractor, args.n, config, args.reference,
                                cache_folder())
    train(args, evaluate=evaluate, best_by=label)


if __name__ == "__main__":
    run_cli(MeasuredTrain, main, lambda words, prog: parse(MeasuredTrain, words, prog))
