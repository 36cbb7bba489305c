"""Frozen feature networks with four taps, from fine to coarse, for the projected discriminator.

A backbone maps images (N,C,H,W) in [-1,1] to four maps. It declares their channels, `tap_channels`,
and `map_sizes`, the nominal sizes of the projected maps made of them, which decide the depth of the
discriminator's heads.
"""

import copy
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


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
    """What the discriminator needs of a feature network: images (N,C,H,W) in [-1,1] -> four maps,
    fine to coarse."""

    name: str
    tap_channels: Sequence[int]
    map_sizes: Sequence[int]


class ClassifierBackbone(Backbone):
    """VGG-like classifier of small images (N,channels,R,R), four stages of which all but the first
    halve R; the taps are their ends. It is for profiles that train their own; it never grades its
    own work."""
    def __init__(self, name: str, channels: int, resolution: int, classes: int,
                 tap_channels: Sequence[int] = (32, 64, 96, 128)):
        super().__init__()
        self.name, self.tap_channels = name, tap_channels
        sizes = [-(-resolution // 2**k) for k in range(4)]
        # each map has the size of the next finer tap, the first twice its own; as powers of two
        self.map_sizes = [2**int(math.log2(size)) for size in (2 * resolution, *sizes[:-1])]
        widths = pairwise((channels, *tap_channels))
        self.stages = nn.ModuleList(_stage(a, b, 1 + (k > 0)) for k, (a, b) in enumerate(widths))
        self.classifier = nn.Linear(tap_channels[-1] * sizes[-1]**2, classes)

    def forward(self, x: Tensor) -> list[Tensor]:
        taps = []
        for stage in self.stages:
            x = stage(x)
            taps.append(x)
        return taps

    def classify(self, x: Tensor) -> Tensor:
        """Class logits (N,classes)."""
        return self.classifier(self(x)[-1].flatten(1))


def nominal_size(tap_size: int) -> int:
    """The power of two by which heads know the map made of a tap, which is twice its size."""
    return 2**math.ceil(math.log2(2 * tap_size))


class TimmBackbone(Backbone):
    """An ImageNet network of timm, CNN or ViT, by its last four feature levels; images are resized
    to `image_size`, larger ones too.

    For VGG16-BN and EfficientNet-lite0 these are the paper's taps. A ViT's maps all have one size:
    those of four evenly spread blocks are resized to a pyramid. `weights` is a safetensors file of
    timm's; None leaves random weights.
    """

    network: Any
    mean: Tensor
    std: Tensor

    def __init__(self, name: str, weights: Path | str | None = None, image_size: int = 224):
        super().__init__()
        self.name, self.image_size = name, image_size
        import timm

        try:
            path = str(weights or "")
            self.network = timm.create_model(name, pretrained=False, checkpoint_path=path)
        # an unknown name, or weights that are not its own
        except (RuntimeError, OSError, SafetensorError) as error:
            raise ValueError(f"backbone {name}: {str(error).splitlines()[0]}") from None
        levels = self.network.feature_info
        self.pyramid = len({level["reduction"] for level in levels}) == 1
        if self.pyramid:
            self.taps = [len(levels) * k // 4 - 1 for k in (1, 2, 3, 4)]
        else:  # VGG's last level is a pooling, which the paper leaves out
            modules = [self.network.get_submodule(level["module"]) for level in levels]
            self.taps = [
                k for k, module in enumerate(modules) if not isinstance(module, nn.MaxPool2d)][-4:]
        self.tap_channels = [levels[k]["num_chs"] for k in self.taps]
        # the paper's, at 224 pixels 128, 64, 32, 16; VGG's maps are twice as large and keep theirs
        self.sizes = [image_size // reduction for reduction in (4, 8, 16, 32)]
        self.map_sizes = [nominal_size(size) for size in self.sizes]
        self.network.prune_intermediate_layers(self.taps, prune_norm=True, prune_head=True)
        for module in self.network.modules():
            # fused attention has no second derivative, which R1 takes
            if hasattr(module, "fused_attn"):
                module.fused_attn = False
        for key in ("mean", "std"):
            value = torch.tensor(self.network.pretrained_cfg[key])[:, None, None]
            self.register_buffer(key, value, persistent=False)
        try:
            self.network = fold_batch_norms(self.network.eval(), image_size)
        except AssertionError as error:  # most ViTs take images of one size
            raise ValueError(
                f"d_image_size {image_size} is not for backbone {name}: {error}") from None
        self.network.to(memory_format=torch.channels_last)  # on a CPU 1.4x faster

    def forward(self, x: Tensor) -> list[Tensor]:
        x = ((x + 1) / 2 - self.mean) / self.std
        x = _resize(x, self.image_size).contiguous(memory_format=torch.channels_last)
        taps = self.network.forward_intermediates(x, indices=self.taps, intermediates_only=True)
        if self.pyramid:  # a ViT's maps all have 1/16 of the image's size
            taps = [_resize(tap, size) for tap, size in zip(taps, self.sizes, strict=True)]
        return taps


@torch.no_grad()
def fold_batch_norms(network: nn.Module, image_size: int) -> nn.Module:
    """The network in eval mode, each BatchNorm's scale and shift inside the convolution whose
    output it takes, found by a run. Where that is another function of images (N,3,R,R), as if the
    output went elsewhere too, the network as it was.

    A GDD step through EfficientNet-lite0 takes 0.84 of the time.
    """
    folded, made, pairs = copy.deepcopy(network), {}, {}

    def note(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            made[id(output)] = module, output  # held, so that no other output takes its id
        elif isinstance(module, nn.BatchNorm2d) and id(inputs[0]) in made:
            pairs[module] = made[id(inputs[0])][0]

    hooks = [module.register_forward_hook(note) for module in folded.modules()]
    x = torch.linspace(-2, 2, 3 * image_size**2).view(1, 3, image_size, image_size)
    x = x.to(next(network.parameters()).dtype)
    folded(x)
    for hook in hooks:
        hook.remove()
    for name, norm in list(folded.named_modules()):
        if conv := pairs.get(norm):
            conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, norm.running_mean,
                                                          norm.running_var, norm.eps, norm.weight,
                                                          norm.bias)
            # timm's BatchNorm ends in an activation
            folded.set_submodule(name, getattr(norm, "act", nn.Identity()))
    return folded if torch.allclose(folded(x), network(x), rtol=1e-3, atol=1e-3) else network


def _resize(x: Tensor, size: int) -> Tensor:
    if x.shape[-2:] == (size, size):
        return x
    return F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)


def tap_distance(backbone: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    """LPIPS-like distance (N,): per tap, squared difference of channel-normalised features,
    averaged over pixels, summed."""
    distance = a.new_zeros(len(a))
    for tap_a, tap_b in zip(backbone(a), backbone(b), strict=True):
        difference = F.normalize(tap_a, dim=1, eps=1e-6) - F.normalize(tap_b, dim=1, eps=1e-6)
        distance = distance + difference.square().sum(dim=1).mean(dim=(1, 2))
    return distance
