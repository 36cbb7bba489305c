"""Projected discriminator (Sauer et al. 2021, arXiv:2111.01007): frozen backbone -> fixed random
mixing -> trained heads."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from gdd.backbones import Backbone

# trained head width at each nominal map size (docs/method.md, section 3)
HEAD_WIDTHS = {64: 64, 32: 128, 16: 256, 8: 512}
CLASS_CHANNELS = 64


class RandomProjection(nn.Module):
    """Cross-channel then cross-scale mixing by 1x1 convolutions that are drawn once, by
    PyTorch's default initialisation, and never trained.

    Four taps, fine to coarse, in; four maps out, fine to coarse, each twice its tap's size, with
    `(c0, c0, c1, c2)` channels for `channels = (c0, c1, c2, c3)`.
    """
    def __init__(self, tap_channels: Sequence[int], channels: Sequence[int]):
        super().__init__()
        self.out_channels = (channels[0], *channels[:-1])
        self.across_channels = nn.ModuleList(
            nn.Conv2d(a, b, 1) for a, b in zip(tap_channels, channels, strict=True))
        self.across_scales = nn.ModuleList(
            nn.Conv2d(a, b, 1) for a, b in zip(channels, self.out_channels, strict=True))
        self.requires_grad_(False)

    def forward(self, taps: Sequence[Tensor]) -> list[Tensor]:
        mixed = [conv(tap) for conv, tap in zip(self.across_channels, taps, strict=True)]
        finest = mixed[0].shape[-1]
        sizes = [2 * finest, *(x.shape[-1] for x in mixed[:-1])]  # doubled, where taps are halves
        maps: list[Tensor] = []
        x = None
        for features, conv, size in zip(*map(reversed, (mixed, list(self.across_scales), sizes)),
                                        strict=True):
            x = features if x is None else x + features
            x = conv(F.interpolate(x, size=(size, size), mode="bilinear", align_corners=True))
            maps.insert(0, x)
        return maps


class BatchNorm(nn.BatchNorm2d):
    """Batch statistics of every `images` consecutive images by themselves, as if each group lay on
    a GPU of its own.

    So a step is the same however its batch is split over processes and micro-batches. 0: of all at
    once. Running statistics are not kept, since a discriminator is never evaluated.
    """
    def __init__(self, channels: int, images: int):
        super().__init__(channels, track_running_stats=False)
        self.images = images

    def forward(self, x: Tensor) -> Tensor:
        groups = x.split(self.images or len(x))
        return super().forward(x) if len(groups) == 1 else torch.cat([
            super(BatchNorm, self).forward(g) for g in groups])


def _head(in_channels: int, size: int, widths: Mapping[int, int], out_channels: int,
          norm_images: int) -> nn.Sequential:
    """Stride-2 convolutions down to the smallest size in `widths`, then one convolution to a map of
    logits."""
    layers: list[nn.Module] = []
    channels, smallest = in_channels, min(widths)
    while size > smallest:
        size //= 2
        if size not in widths:
            raise ValueError(f"d_head_sizes must include {size}; got {', '.join(map(str, widths))}")
        layers += [
            spectral_norm(nn.Conv2d(channels, widths[size], 4, 2, 1)),
            BatchNorm(widths[size], norm_images)]
        layers += [nn.LeakyReLU(0.2)]
        channels = widths[size]
    kernel = min(4, size)
    return nn.Sequential(*layers,
                         spectral_norm(nn.Conv2d(channels, out_channels, kernel, bias=False)))


class ProjectedDiscriminator(nn.Module):
    """Images (N,C,H,W) in [-1,1], and with `label_dim` their classes (N,), -> one tensor of logits
    (N,L) per backbone.

    With classes a head ends in `CLASS_CHANNELS` channels, whose product with a trained embedding of
    the class, over the root of their number, is the logit (Miyato & Koyama 2018, arXiv:1802.05637).
    The backbones stay frozen and in eval mode whatever `train()` is asked for.
    """
    def __init__(
            self, backbones: Sequence[Backbone], *, channels: Sequence[int] = (64, 128, 256, 512),
            head_widths: Mapping[int, int] = HEAD_WIDTHS, label_dim: int = 0, norm_images: int = 0):
        super().__init__()
        self.backbones = nn.ModuleList(backbones).requires_grad_(False)
        projections = [RandomProjection(backbone.tap_channels, channels) for backbone in backbones]
        self.projections = nn.ModuleList(projections)
        self.heads = nn.ModuleList()
        for backbone, projection in zip(backbones, projections, strict=True):
            sizes = zip(projection.out_channels, backbone.map_sizes, strict=True)
            last = CLASS_CHANNELS if label_dim else 1
            self.heads.append(
                nn.ModuleList(
                    _head(width, size, head_widths, last, norm_images) for width, size in sizes))
        self.classes = nn.Embedding(label_dim, CLASS_CHANNELS) if label_dim else None

    def train(self, mode: bool = True) -> "ProjectedDiscriminator":
        super().train(mode)
        self.backbones.eval()
        return self

    def iterate(self, on: bool) -> None:
        """Whether the next call takes the spectral norms' power iteration further: one per pass
        over a batch, not per call."""
        for module in self.heads.modules():
            if parametrize.is_parametrized(module):
                module.parametrizations.train(on)  # type: ignore[union-attr]

    def forward(self, x: Tensor, labels: Tensor | None = None) -> list[Tensor]:
        return self.logits(self.features(x), labels)

    def features(self, x: Tensor) -> list[list[Tensor]]:
        """Each backbone's taps."""
        return [backbone(x) for backbone in self.backbones]

    def logits(self, features: Sequence[Sequence[Tensor]],
               labels: Tensor | None = None) -> list[Tensor]:
        logits = []
        for taps, project, heads in zip(features, self.projections, self.heads, strict=True):
            maps = zip(heads.children(), project(taps), strict=True)
            heads_logits = [self._logits(head(x), labels) for head, x in maps]
            logits.append(torch.cat(heads_logits, dim=1))  # (N,L)
        return logits

    def _logits(self, x: Tensor, labels: Tensor | None) -> Tensor:
        if self.classes is None:
            return x.flatten(1)
        if labels is None:
            raise ValueError("a class-conditional discriminator needs labels")
        return torch.einsum("nchw,nc->nhw", x,
                            self.classes(labels)).flatten(1) / CLASS_CHANNELS**0.5
