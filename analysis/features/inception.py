"""Inception-v3 as the field computes it: one network in modules of our own, three ways to resize.

The weights are pytorch-fid's and torch-fidelity's file, a dictionary of tensors, taken only if its
SHA-256 is the published one. Nothing else is ever run: NVIDIA's detector is TorchScript, a program
that may write files, and is opened by the name `inception:torchscript` alone, again only with the
published SHA-256.

With random weights in both, features agree with torch-fidelity's, which is held to TensorFlow's
own, to 1e-6 (tests/test_features.py). What could not be tried without the files: the published
weights themselves, and NVIDIA's translation of the same graph, which resizes by a sampling grid.
"""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analysis.features.extractor import Extractor, rgb
from analysis.features.inception_network import PIXELS, InceptionV3

WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"
TORCHSCRIPT = "inception-2015-12-05.pt"
MODES = ("edm", "clean", "legacy_pytorch", "torchscript")
URLS = {
    WEIGHTS: f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{WEIGHTS}",
    TORCHSCRIPT: "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
                 f"{TORCHSCRIPT}"}  # yapf: disable
SHA256 = {
    # the head is in its name; the whole is pinned alike by ten public repositories that were looked
    # at, 95,628,359 bytes
    WEIGHTS: "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    # pinned alike by k-diffusion's evaluation code and by eight others, 95,607,719 bytes
    TORCHSCRIPT: "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"}
_MOST = 1 << 27  # bytes; both files are of 96 MB


def inception_extractor(mode: str, device: torch.device, folder: Path) -> Extractor:
    """Features of `mode`, one of MODES: `edm` resizes as TensorFlow 1 did and EDM does, `clean` and
    `legacy_pytorch` as clean-fid does. Raises ValueError for a file that is not the published one,
    FileNotFoundError for one out of reach."""
    if mode == "torchscript":
        return _torchscript(device, folder)
    content = _published(folder / WEIGHTS)
    try:  # `weights_only` builds tensors and nothing else
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        network = InceptionV3()
        network.load_state_dict(state)
    except Exception as error:  # whatever torch makes of another file
        raise ValueError(f"{folder / WEIGHTS} does not hold pytorch-fid's Inception: "
                         f"{_first_line(error)}") from None
    network = network.eval().requires_grad_(False).to(device)
    prepare = _preparation(mode, device)
    name = "inception" if mode == "edm" else f"inception:{mode}"
    return Extractor(name, "inception", f"inception:{mode} {SHA256[WEIGHTS]}",
                     lambda x: network(prepare(x)),
                     lambda x: network.probabilities(network(prepare(x))))


def _preparation(mode: str, device: torch.device) -> Callable[[Tensor], Tensor]:
    """uint8 (N,C,H,W) -> what the network takes, (N,3,299,299)."""
    if mode == "edm":
        return lambda x: (resized_as_tensorflow1(rgb(x).to(device)) - 128) / 128
    from cleanfid.resize import build_resizer

    resize = build_resizer(mode)
    if mode == "clean":
        return lambda x: (_each(resize, x).to(device) - 128) / 128
    return lambda x: 2 * (_each(resize, x).to(device) / 255) - 1


def resized_as_tensorflow1(images: Tensor) -> Tensor:
    """Bilinear (N,C,299,299) of float images (N,C,H,W): corners not aligned, no half-pixel centres,
    no antialias."""
    for dim in (3, 2):
        size = images.shape[dim]
        at = torch.arange(PIXELS, dtype=torch.float32, device=images.device) * torch.tensor(
            size / PIXELS, dtype=torch.float32)
        low = at.long()
        first = images.index_select(dim, low)
        second = images.index_select(dim, (low + 1).clamp(max=size - 1))
        images = first + (second - first) * (at - low).view(-1, *[1] * (3 - dim))
    return images


def _torchscript(device: torch.device, folder: Path) -> Extractor:
    """NVIDIA's detector, which resizes by itself: the published file and no other is run."""
    content = _published(folder / TORCHSCRIPT)
    try:
        detector: Any = torch.jit.load(io.BytesIO(content), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{folder / TORCHSCRIPT} is not a TorchScript detector: "
                         f"{_first_line(error)}") from None
    return Extractor("inception:torchscript", "inception",
                     f"inception:torchscript {SHA256[TORCHSCRIPT]}",
                     lambda x: detector(rgb(x).to(device), return_features=True).flatten(1),
                     lambda x: detector(rgb(x).to(device), no_output_bias=True))


def _each(resize: Callable[[np.ndarray], np.ndarray], images: Tensor) -> Tensor:
    """clean-fid's resizers take one picture (H,W,3) at a time; (N,3,299,299) float32 in 0..255."""
    arrays = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()
    return torch.from_numpy(np.stack([resize(array) for array in arrays])).permute(0, 3, 1,
                                                                                   2).contiguous()


def _published(path: Path) -> bytes:
    """The content of `path`, fetched if it is not there, once its SHA-256 is the published one:
    what is run is what was looked at."""
    url, wanted = URLS[path.name], SHA256[path.name]
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=wanted, progress=False)
        except (OSError, RuntimeError) as error:  # no network, or another content
            raise FileNotFoundError(f"{path} is not there and cannot be fetched "
                                    f"({_first_line(error)}); put {url} there") from None
    if not path.is_file() or path.stat().st_size > _MOST:
        raise ValueError(f"{path} is no file, or above {_MOST:,} bytes; put {url} there")
    content = path.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != wanted:
        raise ValueError(f"{path} is not the published file and is not opened: its SHA-256 is "
                         f"{found}, not {wanted}; put {url} there")
    return content


def _first_line(error: Exception) -> str:
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return "".join(c for c in line if c.isprintable())[:200]
