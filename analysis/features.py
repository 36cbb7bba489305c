"""uint8 images -> features, by those who grade: Inception as the field computes it, CLIP, DINOv2, any timm network, digits.

Weights come from `checkpoints/` first, then from the library's own download; without a network the error names the file that is
wanted and its place. TF32 is switched off while features are computed.
"""

import hashlib
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

FOLDER = Path("checkpoints")
INCEPTION = "inception-2015-12-05.pt"
INCEPTION_PYTORCH = "pt_inception-2015-12-05-6726825d.pth"
TIMM_NAMES = {"clip": "vit_base_patch32_clip_224.openai", "dinov2": "vit_large_patch14_dinov2.lvd142m"}
NAMES = ("inception", "inception:edm", "inception:clean", "inception:legacy_pytorch", "clip", "dinov2", "timm:NAME", "digits")


class DigitsFeatures(nn.Module):
    """uint8 (N,1,8,8) -> features (N,64) float32; `classify` takes floats in [-1,1] and gives logits (N,10).

    Another seed, another architecture (5x5 kernels, GELU, no batch norm) and no weight in common with
    `gdd.backbones.DigitsBackbone`, so the discriminator's backbone never grades its own work.
    """

    def __init__(self, dim: int = 64, classes: int = 10):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 5, padding=2), nn.GELU(), nn.Conv2d(32, 48, 3, stride=2, padding=1), nn.GELU(),
            nn.Conv2d(48, 64, 3, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(64 * 16, dim), nn.GELU(),
        )  # fmt: skip
        self.classifier = nn.Linear(dim, classes)

    def forward(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.shape[1:] != (1, 8, 8):
            raise ValueError(f"digits features take uint8 (N,1,8,8); got {images.dtype} {tuple(images.shape)}")
        return self.layers(images.to(torch.float32) / 127.5 - 1)

    def classify(self, x: Tensor) -> Tensor:
        return self.classifier(self.layers(x))


@dataclass(frozen=True)
class Extractor:
    """Features (N,d), and where the network classifies, class probabilities (N,C), of uint8 images (N,C,H,W).

    `family` is what a discriminator must not share; `identity` names code and weights, for the cache.
    """

    name: str
    family: str
    identity: str
    features: Callable[[Tensor], Tensor]
    probabilities: Callable[[Tensor], Tensor] | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Features (N,d) float32, without gradient. Raises ValueError if `images` are not uint8 (N,1 or 3,H,W)."""
        return self._without_tf32(self.features, images)

    def classify(self, images: Tensor) -> Tensor | None:
        return None if self.probabilities is None else self._without_tf32(self.probabilities, images)

    def _without_tf32(self, function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"features take uint8 images (N,1 or 3,H,W); got {images.dtype} {tuple(images.shape)}")
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return function(images).float().cpu()


def digits(network: DigitsFeatures, identity: str) -> Extractor:
    """The desk profile's judge, from its trained network."""
    return Extractor("digits", "digits", identity, network, lambda x: network.classifier(network(x)).softmax(dim=1))


def extractor(name: str, *, device: torch.device | str = "cpu", folder: Path = FOLDER) -> Extractor:
    """The extractor called `name`, one of NAMES but digits. Raises ValueError, or FileNotFoundError for weights out of reach."""
    if name == "inception":
        name = "inception:edm"
    if name in ("inception:edm", "inception:clean"):
        return _torchscript_inception(name.removeprefix("inception:"), torch.device(device), folder)
    if name == "inception:legacy_pytorch":
        return _pytorch_inception(torch.device(device), folder)
    if name in TIMM_NAMES or name.startswith("timm:"):
        return _timm(name, torch.device(device), folder)
    raise ValueError(f"features must be one of {', '.join(NAMES)}; got {name!r}")


def _torchscript_inception(mode: str, device: torch.device, folder: Path) -> Extractor:
    """NVIDIA's TorchScript detector: `edm` hands it the bytes' values and lets it resize, `clean` resizes as clean-fid does."""
    from cleanfid.downloads_helper import inception_url
    from cleanfid.resize import build_resizer

    path = _fetched(inception_url, folder / INCEPTION)
    try:
        detector = torch.jit.load(path, map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is not a TorchScript detector: {str(error).splitlines()[0]}") from None
    identity = f"inception:{mode} {_digest(path)}"
    if mode == "edm":
        return Extractor("inception", "inception", identity,
                         lambda x: detector(_rgb(x).to(device), return_features=True).flatten(1),
                         lambda x: detector(_rgb(x).to(device), no_output_bias=True))  # fmt: skip
    resize = build_resizer("clean")
    return Extractor("inception:clean", "inception", identity,
                     lambda x: detector.layers.forward((_each(resize, x).to(device) - 128) / 128).flatten(1))  # fmt: skip


def _pytorch_inception(device: torch.device, folder: Path) -> Extractor:
    """pytorch-fid's Inception as clean-fid builds it, after its bilinear resize."""
    from cleanfid import inception_pytorch
    from cleanfid.resize import build_resizer

    path = _fetched(inception_pytorch.FID_WEIGHTS_URL, folder / INCEPTION_PYTORCH)
    load = partial(torch.hub.load_state_dict_from_url, model_dir=str(folder), weights_only=True)
    try:
        with mock.patch.object(inception_pytorch, "load_state_dict_from_url", load):  # it would look elsewhere, and unpickle
            network = inception_pytorch.InceptionV3(output_blocks=[3], resize_input=False).to(device).eval()
    except Exception as error:  # whatever torch makes of another file
        raise ValueError(f"{path} does not hold pytorch-fid's Inception: {str(error).splitlines()[0]}") from None
    resize = build_resizer("legacy_pytorch")
    return Extractor("inception:legacy_pytorch", "inception", f"inception:legacy_pytorch {_digest(path)}",
                     lambda x: network(_each(resize, x).to(device) / 255)[0].flatten(1))  # fmt: skip


def _timm(name: str, device: torch.device, folder: Path) -> Extractor:
    """A timm network's pooled features, of CLIP its embedding, after an antialiased bicubic resize to its input size."""
    import timm

    model = TIMM_NAMES.get(name, name.removeprefix("timm:"))
    options: dict[str, Any] = {} if name == "clip" else {"num_classes": 0} | ({"img_size": 224} if "dinov2" in model else {})
    path = folder / f"{model}.safetensors"
    network: Any
    try:
        if path.is_file():
            network = timm.create_model(model, pretrained=True, pretrained_cfg_overlay={"file": str(path)}, **options)
        else:
            if where := (timm.get_pretrained_cfg(model) or timm.models.PretrainedCfg()).hf_hub_id:
                _reach("huggingface.co", f"{path} (model.safetensors of https://huggingface.co/{where})")
            network = timm.create_model(model, pretrained=True, **options)
    except RuntimeError as error:  # an unknown name, or weights of another network
        raise ValueError(f"features {name}: {str(error).splitlines()[0]}") from None
    network = network.to(device).eval()
    size = 224 if "img_size" in options else network.pretrained_cfg["input_size"][-1]
    mean, std = (torch.tensor(network.pretrained_cfg[key])[:, None, None] * 255 for key in ("mean", "std"))

    def features(images: Tensor) -> Tensor:
        x = F.interpolate(_rgb(images), size=(size, size), mode="bicubic", antialias=True).clip(0, 255)
        return network(((x - mean) / std).to(device)).flatten(1)

    state = hashlib.sha256()
    for tensor in network.state_dict().values():
        state.update(tensor.cpu().contiguous().numpy().tobytes())
    return Extractor(name, family(model), f"{model} {size} {state.hexdigest()[:16]}", features)


FAMILIES = ("inception", "clip", "dino", "deit", "efficientnet", "vgg", "resnet", "convnext", "swin", "digits")


def family(name: str) -> str:
    """What a network is kin to, by its name: a discriminator's backbone must not grade its own work."""
    return next((known for known in FAMILIES if known in name), name)


def _rgb(images: Tensor) -> Tensor:
    """Float32 in 0..255 with three channels."""
    return images.to(torch.float32).expand(-1, 3, -1, -1)


def _each(resize: Callable[[np.ndarray], np.ndarray], images: Tensor) -> Tensor:
    """clean-fid's resizers take one picture (H,W,3) at a time; (N,3,299,299) float32 in 0..255."""
    arrays = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()
    return torch.from_numpy(np.stack([resize(array) for array in arrays])).permute(0, 3, 1, 2).contiguous()


def _fetched(url: str, path: Path) -> Path:
    """`path`, fetched from `url` if it is not there. Raises FileNotFoundError naming both."""
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), progress=False)
        except OSError as error:
            raise FileNotFoundError(f"{path} is not there and cannot be fetched ({error}); put {url} there") from None
    return path


def _reach(host: str, wanted: str) -> None:
    """Ask for the host before a library does, which would try for most of a minute."""
    try:
        socket.create_connection((host, 443), timeout=5).close()
    except OSError as error:
        raise FileNotFoundError(f"{wanted} is not there and {host} cannot be reached ({error}); put the file there") from None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
