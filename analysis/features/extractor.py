"""What a feature extractor is: uint8 images in, features out, whatever network stands behind it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Extractor:
    """Features (N,d), and where the network classifies, class probabilities (N,C), of uint8 images
    (N,C,H,W).

    `family` is what a discriminator must not share; `identity` names code, weights and precision,
    for the cache: None, and nothing is cached.
    """

    name: str
    family: str
    identity: str | None
    features: Callable[[Tensor], Tensor]
    probabilities: Callable[[Tensor], Tensor] | None = None
    precision: str = "fp32"
    device: str = "cpu"

    def __call__(self, images: Tensor) -> Tensor:
        """Features (N,d) float32, without gradient. Raises ValueError if `images` are not uint8
        (N,1 or 3,H,W)."""
        return self._run(self.features, images)

    def classify(self, images: Tensor) -> Tensor | None:
        return None if self.probabilities is None else self._run(self.probabilities, images)

    def _run(self, function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError("features take uint8 images (N,1 or 3,H,W); "
                             f"got {images.dtype} {tuple(images.shape)}")
        with torch.inference_mode(), computed_in(self.precision, self.device):
            return function(images).float().cpu()


def of_function(function: Callable[[Tensor], Any], name: str) -> Extractor:
    """One's own features: a function, or a module, of uint8 images (N,C,H,W) that returns (N,D), or
    a tuple whose first entry they are, as torch-fidelity's extractors do.

    Raises ValueError, when it is called, on another shape. A module is put into evaluation mode and
    given images on its own device. Nothing is cached, since nothing tells two functions apart.
    """
    if not callable(function):
        raise ValueError(f"a feature extractor must be a function of images; got {function!r}")
    device = "cpu"
    if isinstance(function, nn.Module):
        function.eval()
        device = str(next((p.device for p in function.parameters()), device))

    def features(images: Tensor) -> Tensor:
        found = function(images.to(device))
        x = found[0] if isinstance(found, (tuple, list)) and found else found
        if not isinstance(x, Tensor) or x.ndim != 2 or len(x) != len(images):
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"features {name} must be a tensor (N,D) for N images; got {got} for "
                             f"N = {len(images)}")
        return x

    return Extractor(name, family(name), None, features, device=device)


@contextmanager
def computed_in(precision: str, device: str) -> Iterator[None]:
    """fp32 in full, whatever was set before; tf32, or autocast to bf16 or fp16."""
    before, allow = torch.backends.cuda.matmul.allow_tf32, precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = allow
    dtype = _AUTOCAST.get(precision)
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=allow), torch.autocast(
                torch.device(device).type, dtype, enabled=dtype is not None):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


FAMILIES = ("inception", "clip", "dino", "deit", "efficientnet", "vgg", "resnet", "convnext",
            "swin")


def family(name: str) -> str:
    """The family of a network, by its name: a discriminator's backbone must not grade its own
    work."""
    return next((known for known in FAMILIES if known in name), name)


def rgb(images: Tensor) -> Tensor:
    """Float32 in 0..255 with three channels."""
    return images.to(torch.float32).expand(-1, 3, -1, -1)
