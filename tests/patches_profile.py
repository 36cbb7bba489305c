"""A profile of 12x12 colour patches cut from scikit-learn's two photographs, defined here alone:
other pixels, colours, classes, networks and runs than any that ships."""

import io
import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from gdd.config import TrainConfig
from gdd.profiles import Classifier, Profile

DATA = Path(os.environ.get("PATCHES", "patches.zip"))


def write_data(path: Path, n: int = 240, seed: int = 0) -> None:
    """Patches of both photographs in turn, as a zip in EDM's layout; the class is the
    photograph."""
    rng, labels = np.random.default_rng(seed), []
    photographs = load_sample_images().images
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(n):
            pixels = photographs[index % 2]
            y, x = (rng.integers(0, side - 48) for side in pixels.shape[:2])
            patch = Image.fromarray(pixels[y:y + 48, x:x + 48]).resize((12, 12))
            content, name = io.BytesIO(), f"00000/img{index:08d}.png"
            patch.save(content, "png")
            archive.writestr(name, content.getvalue())
            labels.append([name, index % 2])
        archive.writestr("dataset.json", json.dumps({"labels": labels}))


NETWORK = dict(img_resolution=12, img_channels=3, model_type="SongUNet", model_channels=8,
               num_blocks=1, channel_mult=[1, 2], attn_resolutions=[6], dropout=0.1)
TEACHER = TrainConfig(objective="edm", data=str(DATA), batch_size=40, total_images=160, lr=1e-3,
                      ema_halflife_images=100, seed=0)
GDD = replace(TEACHER, objective="gdd", teacher="edm", backbones=("looks", ),
              d_channels=(8, 8, 8, 8), d_head_sizes=(16, 8, 4), d_head_widths=(8, 8, 8),
              r1_interval=2)
PROFILE = Profile(
    name="patches",
    title="patches of two photographs, 12x12",
    real="patches",
    data=str(DATA),
    classes=2,
    networks={"edm": NETWORK, "edm-cond": NETWORK | {"label_dim": 2}},
    runs={
        "edm": TEACHER,
        "gdd": GDD,
        "gdd-i": replace(GDD, freeze="gdd-i"),
        "cd": replace(GDD, objective="cd"),
        "cd-i": replace(GDD, objective="cd", freeze="gdd-i"),
        "gdd+cd": replace(GDD, objective="gdd+cd"),
        "k-step-1": GDD,
        "k-step-2": replace(GDD, sampler="k-step:2"),
        "two-step-1": replace(GDD, sampler="two-step:1"),
        "edm-cond": TEACHER,
        "cond-gdd-i": replace(GDD, teacher="edm-cond", freeze="gdd-i"),
    },
    extractors=("judges", ),
    n=64,
    n_activations=8,
    seed_ranges=2,
    training_seeds=(0, 1),
    classifiers={
        "looks": Classifier("backbone", epochs=1, lr=2e-3, seed=1),
        "judges": Classifier("features", epochs=1, lr=4e-3, seed=2),
    },
)  # yapf: disable
