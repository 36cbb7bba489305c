"""Frozen feature networks with four taps, from fine to coarse, for the projected discriminator.

A backbone maps images (N,C,H,W) in [-1,1] to four maps. It declares their channels, `tap_channels`, and `map_sizes`, the
nominal sizes of the projected maps made of them, which decide the depth of the discriminator's heads. The desk profile's
backbone is a small digits classifier; it never grades its own work (see analysis/features.py).
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from gdd.checkpoint import read_tensors
from gdd.data import to_float


def _stage(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
        nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


class Backbone(nn.Module):
    """What the discriminator needs of a feature network: images (N,C,H,W) in [-1,1] -> four maps, fine to coarse."""

    name: str
    tap_channels: Sequence[int]
    map_sizes: Sequence[int]


class DigitsBackbone(Backbone):
    """VGG-like classifier of 8x8 digits; taps at 8, 4, 2 and 1 pixels."""

    name = "digits"
    tap_channels = (32, 64, 96, 128)
    map_sizes = (16, 8, 4, 2)

    def __init__(self, classes: int = 10):
        super().__init__()
        widths = (1, *self.tap_channels)
        self.stages = nn.ModuleList(_stage(a, b, 1 if a == 1 else 2) for a, b in pairwise(widths))
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> list[Tensor]:
        taps = []
        for stage in self.stages:
            x = stage(x)
            taps.append(x)
        return taps

    def classify(self, x: Tensor) -> Tensor:
        """Class logits (N,10)."""
        return self.classifier(self(x)[-1].flatten(1))


class TimmBackbone(Backbone):
    """An ImageNet network of timm, CNN or ViT, by its last four feature levels; images are brought to 224 pixels.

    For VGG16-BN and EfficientNet-lite0 these are the paper's taps. A ViT's maps all have one size: those of four evenly spread
    blocks are resized to a pyramid. `weights` is a safetensors file of timm's; None leaves random weights.
    """

    map_sizes = (128, 64, 32, 16)
    network: Any
    mean: Tensor
    std: Tensor

    def __init__(self, name: str, weights: Path | str | None = None):
        super().__init__()
        self.name = name
        import timm

        try:
            self.network = timm.create_model(name, pretrained=False, checkpoint_path=str(weights or ""))
        except (RuntimeError, OSError, SafetensorError) as error:  # an unknown name, or weights that are not its own
            raise ValueError(f"backbone {name}: {str(error).splitlines()[0]}") from None
        levels = self.network.feature_info
        self.pyramid = len({level["reduction"] for level in levels}) == 1
        if self.pyramid:
            self.taps = [len(levels) * k // 4 - 1 for k in (1, 2, 3, 4)]
        else:  # VGG's last level is a pooling, which the paper leaves out
            modules = [self.network.get_submodule(level["module"]) for level in levels]
            self.taps = [k for k, module in enumerate(modules) if not isinstance(module, nn.MaxPool2d)][-4:]
        self.tap_channels = [levels[k]["num_chs"] for k in self.taps]
        self.network.prune_intermediate_layers(self.taps, prune_norm=True, prune_head=True)
        for module in self.network.modules():
            if hasattr(module, "fused_attn"):  # fused attention has no second derivative, which R1 takes
                module.fused_attn = False
        for key in ("mean", "std"):
            self.register_buffer(key, torch.tensor(self.network.pretrained_cfg[key])[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = ((x + 1) / 2 - self.mean) / self.std
        if x.shape[-1] < 224:
            x = F.interpolate(x, size=(224, 224), mode="bilinear", align_corners=False)
        taps = self.network.forward_intermediates(x, indices=self.taps, intermediates_only=True)
        if self.pyramid:
            scales = (4, 2, 1, 0.5)
            taps = [tap if scale == 1 else F.interpolate(tap, scale_factor=scale, mode="bilinear", align_corners=False)
                    for tap, scale in zip(taps, scales, strict=True)]  # fmt: skip
        return taps


def tap_distance(backbone: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    """LPIPS-like distance (N,): per tap, squared difference of channel-normalised features, averaged over pixels, summed."""
    distance = torch.zeros(len(a), device=a.device)
    for tap_a, tap_b in zip(backbone(a), backbone(b), strict=True):
        difference = F.normalize(tap_a, dim=1, eps=1e-6) - F.normalize(tap_b, dim=1, eps=1e-6)
        distance = distance + difference.square().sum(dim=1).mean(dim=(1, 2))
    return distance


def train_classifier(network: Any, images: Tensor, labels: Tensor, *, epochs: int, seed: int, batch_size: int = 128,
                     lr: float = 2e-3, holdout: int = 5) -> float:  # fmt: skip
    """Train `network.classify` in place, leave it frozen in eval mode, return its accuracy on every `holdout`-th image.

    Images uint8 (N,C,H,W), shifted by up to a pixel as augmentation, lr decayed to zero by a cosine.
    """
    generator = torch.Generator().manual_seed(seed)
    x, held = to_float(images), torch.arange(len(images)) % holdout == 0
    train_x, train_y = x[~held], labels[~held]
    steps = epochs * (len(train_x) // batch_size)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    network.requires_grad_(True).train()
    for _ in range(steps):
        picked = torch.randint(len(train_x), (batch_size,), generator=generator)
        shift = torch.randint(-1, 2, (2,), generator=generator).tolist()
        batch = F.pad(train_x[picked], (1, 1, 1, 1), value=-1.0)
        batch = batch.roll(shift, dims=(2, 3))[:, :, 1:-1, 1:-1]
        loss = F.cross_entropy(network.classify(batch), train_y[picked], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval().requires_grad_(False)
    with torch.no_grad():
        return float((network.classify(x[held]).argmax(1) == labels[held]).float().mean())


def load_digits_backbone(path: Path | str) -> DigitsBackbone:
    """A trained digits backbone from its file, frozen, in eval mode."""
    tensors, _ = read_tensors(path)
    backbone = DigitsBackbone()
    backbone.load_state_dict({name: tensor.to(backbone.state_dict()[name].dtype) for name, tensor in tensors.items()})
    return backbone.eval().requires_grad_(False)
