"""Inception-v3 as the field computes it: NVIDIA's TorchScript detector, and pytorch-fid's port."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from analysis.features.extractor import Extractor, rgb

INCEPTION = "inception-2015-12-05.pt"
INCEPTION_PYTORCH = "pt_inception-2015-12-05-6726825d.pth"


def torchscript_inception(mode: str, device: torch.device, folder: Path) -> Extractor:
    """NVIDIA's TorchScript detector: `edm` hands it the bytes' values and lets it resize, `clean`
    resizes as clean-fid does."""
    from cleanfid.downloads_helper import inception_url
    from cleanfid.resize import build_resizer

    path = _fetched(inception_url, folder / INCEPTION)
    try:
        detector = torch.jit.load(path, map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{path} is not a TorchScript detector: {str(error).splitlines()[0]}") from None
    identity = f"inception:{mode} {_digest(path)}"
    if mode == "edm":
        return Extractor("inception", "inception", identity,
                         lambda x: detector(rgb(x).to(device), return_features=True).flatten(1),
                         lambda x: detector(rgb(x).to(device), no_output_bias=True))
    resize = build_resizer("clean")
    return Extractor(
        "inception:clean", "inception", identity, lambda x: detector.layers.forward(
            (_each(resize, x).to(device) - 128) / 128).flatten(1))


def pytorch_inception(device: torch.device, folder: Path) -> Extractor:
    """pytorch-fid's Inception as clean-fid builds it, after its bilinear resize."""
    from cleanfid import inception_pytorch
    from cleanfid.resize import build_resizer

    path = _fetched(inception_pytorch.FID_WEIGHTS_URL, folder / INCEPTION_PYTORCH)
    load = partial(torch.hub.load_state_dict_from_url, model_dir=str(folder), weights_only=True)
    try:
        # it would look elsewhere, and unpickle
        with mock.patch.object(inception_pytorch, "load_state_dict_from_url", load):
            network = inception_pytorch.InceptionV3(output_blocks=[3],
                                                    resize_input=False).to(device).eval()
    except Exception as error:  # whatever torch makes of another file
        raise ValueError(
            f"{path} does not hold pytorch-fid's Inception: {str(error).splitlines()[0]}") from None
    resize = build_resizer("legacy_pytorch")
    return Extractor("inception:legacy_pytorch", "inception",
                     f"inception:legacy_pytorch {_digest(path)}",
                     lambda x: network(_each(resize, x).to(device) / 255)[0].flatten(1))


def _each(resize: Callable[[np.ndarray], np.ndarray], images: Tensor) -> Tensor:
    """clean-fid's resizers take one picture (H,W,3) at a time; (N,3,299,299) float32 in 0..255."""
    arrays = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()
    return torch.from_numpy(np.stack([resize(array) for array in arrays])).permute(0, 3, 1,
                                                                                   2).contiguous()


def _fetched(url: str, path: Path) -> Path:
    """`path`, fetched from `url` if it is not there. Raises FileNotFoundError naming both."""
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), progress=False)
        except OSError as error:
            raise FileNotFoundError(
                f"{path} is not there and cannot be fetched ({error}); put {url} there") from None
    return path


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
