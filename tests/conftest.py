import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from gdd.backbones import ClassifierBackbone
from gdd.data.images import load_digits
from gdd.denoiser import Denoiser

# of the project's own machines; a user does not have it
SHARED = Path(__file__).resolve().parents[2] / "shared"
TINY = dict(img_resolution=8, img_channels=1, model_type="SongUNet", model_channels=8,
            channel_mult=[1, 2], num_blocks=1, attn_resolutions=[4], dropout=0.0)

pytest_plugins = ["pytester"]

settings.register_profile("shared cores", deadline=None)
settings.load_profile("shared cores")
torch.set_num_threads(1)  # tiny networks gain nothing from more, and suffer where cores are shared
os.environ.setdefault("OMP_NUM_THREADS", "1")  # nor do the commands that tests start


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def small_denoiser(**change):
    """An untrained denoiser whose zero-initialised layers are shaken, so that nothing hides behind
    zeros."""
    torch.manual_seed(0)
    denoiser = Denoiser.from_config(TINY | change)
    for parameter in denoiser.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return denoiser.eval()


def small_backbone(name="small", taps=(8, 8, 8, 8)):
    """A frozen classifier of random weights for the discriminator to look through."""
    torch.manual_seed(len(name))
    backbone = ClassifierBackbone(name, 1, 8, 10, taps)
    return backbone.eval().requires_grad_(False)


@pytest.fixture
def tiny():
    return small_denoiser()


@pytest.fixture(scope="session")
def digits():
    return load_digits()


@pytest.fixture(scope="session")
def backbone():
    torch.manual_seed(0)
    return ClassifierBackbone("digits-backbone", 1, 8, 10).eval()
