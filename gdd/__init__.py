"""The method. `import gdd` gives what a script needs, and torch only once it is asked for:

    generator = gdd.load("gdd-i")  # a shipped run, a file, a network pickle of EDM
    for images in gdd.generate(generator, range(64), sampler="one-step"): ...
"""

# ruff: noqa: F401
from typing import TYPE_CHECKING

from gdd.extras import public

if TYPE_CHECKING:
    from gdd.config import Hardware, Keep, TrainConfig
    from gdd.data.images import open_images, to_float, to_uint8
    from gdd.denoiser import Denoiser
    from gdd.freezing import freeze
    from gdd.profiles import Profile, profile
    from gdd.sampling import generate, to_device
    from gdd.training.run import run
    from gdd.training.trainer import init_state, train
    from gdd.weights.checkpoint import load, save_denoiser

_HOME = {
    "Denoiser": "denoiser", "Hardware": "config", "Keep": "config", "Profile": "profiles",
    "TrainConfig": "config", "freeze": "freezing", "generate": "sampling",
    "init_state": "training.trainer", "load": "weights.checkpoint", "open_images": "data.images",
    "profile": "profiles", "run": "training.run", "save_denoiser": "weights.checkpoint",
    "to_device": "sampling", "to_float": "data.images", "to_uint8": "data.images",
    "train": "training.trainer",
}  # yapf: disable
__all__ = list(_HOME)
__getattr__ = public(__name__, _HOME)
