"""uint8 images -> features. `digits`: the penultimate layer of a small classifier trained apart from the discriminator's.

Another seed, another architecture (5x5 kernels, GELU, no batch norm) and no weight in common with
`gdd.backbones.DigitsBackbone`, so the discriminator's backbone never grades its own work.
"""

import torch
from torch import Tensor, nn


class DigitsFeatures(nn.Module):
    """uint8 (N,1,8,8) -> features (N,64) float32; `classify` takes floats in [-1,1] and gives logits (N,10)."""

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
