"""Features of a small classifier that a profile trains on its own data, to judge images by."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analysis.features.extractor import Extractor


class ClassifierFeatures(nn.Module):
    """uint8 (N,C,R,R) -> features (N,dim) float32; `classify` takes floats in [-1,1] and gives
    logits (N,classes).

    Other architectures (GELU, no batch norm), by its profile another seed, and no weight in common
    with `gdd.backbones.ClassifierBackbone`, so the discriminator's backbone never grades its own
    work.
    """
    def __init__(self, channels: int, resolution: int, classes: int, *, residual: bool = False):
        super().__init__()
        self.shape = (channels, resolution, resolution)
        layers = _residual(channels) if residual else _plain(channels, resolution)
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Linear(128 if residual else 64, classes)

    def forward(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.shape[1:] != self.shape:
            raise ValueError(f"these features take uint8 (N,{','.join(map(str, self.shape))}); "
                             f"got {images.dtype} {tuple(images.shape)}")
        return self.layers(images.to(torch.float32) / 127.5 - 1)

    def classify(self, x: Tensor) -> Tensor:
        return self.classifier(self.layers(x))


def _plain(channels: int, resolution: int) -> list[nn.Module]:
    """Three convolutions and a linear layer: 64 features that know where things are."""
    return [
        nn.Conv2d(channels, 32, 5, padding=2), nn.GELU(),
        nn.Conv2d(32, 48, 3, stride=2, padding=1), nn.GELU(),
        nn.Conv2d(48, 64, 3, padding=1), nn.GELU(), nn.Flatten(),
        nn.Linear(64 * (-(-resolution // 2))**2, 64), nn.GELU(),
    ]  # yapf: disable


def _residual(channels: int) -> list[nn.Module]:
    """Six residual blocks (He et al. 2016, arXiv:1603.05027) at three scales: 128 features averaged
    over the picture."""
    blocks = [
        _Residual(a, b, stride) for a, b, stride in ((32, 32, 1), (32, 32, 1), (32, 64, 2),
                                                     (64, 64, 1), (64, 128, 2), (128, 128, 1))]
    return [
        nn.Conv2d(channels, 32, 3, padding=1), *blocks,
        nn.GroupNorm(8, 128),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten()]


class _Residual(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.norm0 = nn.GroupNorm(8, in_channels)
        self.conv0 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(8, out_channels)
        self.conv1 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.skip = (nn.Identity() if in_channels == out_channels else nn.Conv2d(
            in_channels, out_channels, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv0(F.gelu(self.norm0(x)))
        return self.skip(x) + self.conv1(F.gelu(self.norm1(y)))


def classifier(network: ClassifierFeatures, name: str, identity: str, device: str = "cpu",
               precision: str = "fp32") -> Extractor:
    """A trained one as an extractor; `identity` names its weights."""
    network = network.eval().requires_grad_(False).to(device)
    return Extractor(name, name, identity if precision == "fp32" else f"{identity} {precision}",
                     lambda x: network(x.to(device)),
                     lambda x: network.classifier(network(x.to(device))).softmax(dim=1), precision,
                     device)
