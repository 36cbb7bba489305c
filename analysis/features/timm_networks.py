"""Any network of timm as a feature extractor, CLIP and DINOv2 among them."""

import hashlib
import socket
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from analysis.features.extractor import Extractor, family, rgb

TIMM_NAMES = {"clip": "vit_base_patch32_clip_224.openai",
              "dinov2": "vit_large_patch14_dinov2.lvd142m",
              "lite2": "tf_efficientnet_lite2"}  # yapf: disable
AT_ONCE = 64  # images; a CPU's cache holds the maps of no more


def timm_network(name: str, device: torch.device, folder: Path) -> Extractor:
    """A timm network's pooled features, of CLIP its embedding, after an antialiased bicubic resize
    to its input size, or to SIZE pixels of NAME@SIZE. Raises ValueError on a wrong size."""
    import timm

    plain, at, pixels = name.partition("@")
    if at and not (pixels.isdecimal() and 32 <= int(pixels) <= 1024):
        raise ValueError(f"features {name}: the size after @ must be 32 to 1024 pixels")
    model = TIMM_NAMES.get(plain, plain.removeprefix("timm:"))
    options: dict[str, Any] = {} if plain == "clip" else {"num_classes": 0}
    if "dinov2" in model:
        options["img_size"] = 224
    path = folder / f"{model}.safetensors"
    network: Any
    try:
        if path.is_file():
            network = timm.create_model(model, pretrained=True, pretrained_cfg_overlay={
                "file": str(path)}, **options)
        else:
            if where := (timm.get_pretrained_cfg(model) or timm.models.PretrainedCfg()).hf_hub_id:
                _reach("huggingface.co",
                       f"{path} (model.safetensors of https://huggingface.co/{where})")
            network = timm.create_model(model, pretrained=True, **options)
    except RuntimeError as error:  # an unknown name, or weights of another network
        raise ValueError(f"features {name}: {str(error).splitlines()[0]}") from None
    network = network.to(device, memory_format=torch.channels_last).eval()
    size = 224 if "img_size" in options else network.pretrained_cfg["input_size"][-1]
    if at:
        size = int(pixels)
    mean, std = (torch.tensor(network.pretrained_cfg[key])[:, None, None] * 255
                 for key in ("mean", "std"))

    def features(images: Tensor) -> Tensor:
        x = F.interpolate(rgb(images), size=(size, size), mode="bicubic", antialias=True).clip(
            0, 255)
        x = ((x - mean) / std).to(device, memory_format=torch.channels_last)
        parts = x.split(AT_ONCE) if device.type == "cpu" else [x]
        return torch.cat([network(part).flatten(1) for part in parts])

    state = hashlib.sha256()
    for tensor in network.state_dict().values():
        state.update(tensor.cpu().contiguous().numpy().tobytes())
    return Extractor(name, family(model), f"{model} {size} {state.hexdigest()[:16]}", features)


def _reach(host: str, wanted: str) -> None:
    """Ask for the host before a library does, which would try for most of a minute."""
    try:
        socket.create_connection((host, 443), timeout=5).close()
    except OSError as error:
        raise FileNotFoundError(
            f"{wanted} is not there and {host} cannot be reached ({error}); put the file there"
        ) from None
