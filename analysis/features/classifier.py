"""Features of a small classifier that a profile trains on its own data, to judge images by."""

import torch
from torch import Tensor, nn

from analysis.features.extractor import Extractor


class ClassifierFeatures(nn.Module):
    """uint8 (N,C,R,R) -> features (N,dim) float32; `classify` takes floats in [-1,1] and gives
    logits (N,classes).

    Another architecture (5x5 kernels, GELU, no batch norm), by its profile another seed, and no
    weight in common with `gdd.backbones.ClassifierBackbone`, so the discriminator's backbone never
    grades its own work.
    """
    def __init__(self, channels: int, resolution: int, classes: int, dim: int = 64):
        super().__init__()
        self.shape = (channels, resolution, resolution)
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 32, 5, padding=2), nn.GELU(),
            nn.Conv2d(32, 48, 3, stride=2, padding=1), nn.GELU(),
            nn.Conv2d(48, 64, 3, padding=1), nn.GELU(), nn.Flatten(),
            nn.Linear(64 * (-(-resolution // 2))**2, dim), nn.GELU(),
        )  # yapf: disable
        self.classifier = nn.Linear(dim, classes)

    def forward(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.shape[1:] != self.shape:
            raise ValueError(f"these features take uint8 (N,{','.join(map(str, self.shape))}); "
                             f"got {images.dtype} {tuple(images.shape)}")
        return self.layers(images.to(torch.float32) / 127.5 - 1)

    def classify(self, x: Tensor) -> Tensor:
        return self.classifier(self.layers(x))


def classifier(network: ClassifierFeatures, name: str, identity: str, device: str = "cpu",
               precision: str = "fp32") -> Extractor:
    """A trained one as an extractor; `identity` names its weights."""
    network = network.eval().requires_grad_(False).to(device)
    return Extractor(name, name, identity if precision == "fp32" else f"{identity} {precision}",
                     lambda x: network(x.to(device)),
                     lambda x: network.classifier(network(x.to(device))).softmax(dim=1), precision,
                     device)
