"""uint8 images -> features, by those who grade: Inception as the field computes it, CLIP, DINOv2,
any timm network, a profile's own classifier. A leaf: it knows no runs and no profiles.

Weights come from `checkpoints/` first, then from the library's own download; without a network the
error names the file that is wanted and its place.
"""

from dataclasses import replace
from pathlib import Path

import torch

from analysis.features.classifier import ClassifierFeatures, classifier
from analysis.features.extractor import Extractor, family, of_function
from analysis.features.inception import MODES, inception_extractor
from analysis.features.timm_networks import TIMM_NAMES, timm_network

__all__ = ["FOLDER", "NAMES", "ClassifierFeatures", "Extractor", "classifier", "extractor",
           "family", "of_function"]  # yapf: disable

FOLDER = Path("checkpoints")
NAMES = ("inception", *(f"inception:{mode}" for mode in MODES), "clip", "dinov2", "lite2",
         "timm:NAME", "NAME@PIXELS")  # yapf: disable


def extractor(name: str, *, device: str = "cpu", precision: str = "fp32",
              folder: Path = FOLDER) -> Extractor:
    """The extractor called `name`, one of NAMES. Raises ValueError, or FileNotFoundError for
    weights out of reach."""
    on, (network, colon, mode) = torch.device(device), name.partition(":")
    if network == "inception" and (mode in MODES or not colon):
        found = inception_extractor(mode or "edm", on, folder)
    elif name.partition("@")[0] in TIMM_NAMES or name.startswith("timm:"):
        found = timm_network(name, on, folder)
    else:
        raise ValueError(f"features must be one of {', '.join(NAMES)}, or a classifier of a "
                         f"profile; got {name!r}")
    identity = found.identity if precision == "fp32" else f"{found.identity} {precision}"
    return replace(found, identity=identity, device=device, precision=precision)
