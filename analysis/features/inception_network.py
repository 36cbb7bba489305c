"""Inception-v3 as it was published on 2015-12-05, which FID is defined by, in modules of our own:
the graph of TensorFlow's inception-2015-12-05.tgz (Szegedy et al. 2015, arXiv:1512.00567).

The names of the modules are those of pytorch-fid's and torch-fidelity's file, so that its tensors
load as they are. Two things tell it from torchvision's Inception: averages leave out the padding,
and the last block takes a maximum where all others average.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEATURES, CLASSES, PIXELS = 2048, 1008, 299
Kernel = int | tuple[int, int]
# name, channels, kernel; of a step's convolutions, side by side
Step = Sequence[tuple[str, int, Kernel]]


class InceptionV3(nn.Module):
    """Images (N,3,299,299), normalised -> features (N,2048)."""
    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, 3)
        self.Conv2d_2b_3x3 = _Convolution(32, 64, 3, padding=(1, 1))
        self.Conv2d_3b_1x1 = _Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = _Convolution(80, 192, 3)
        self.Mixed_5b = _grid35(192, 32)
        self.Mixed_5c = _grid35(256, 64)
        self.Mixed_5d = _grid35(288, 64)
        self.Mixed_6a = _Mixed(288, "halve", [[("branch3x3", 384, 3)]], _double3x3())
        self.Mixed_6b = _grid17(128)
        self.Mixed_6c = _grid17(160)
        self.Mixed_6d = _grid17(160)
        self.Mixed_6e = _grid17(192)
        self.Mixed_7a = _Mixed(
            768, "halve", [[("branch3x3_1", 192, 1)], [("branch3x3_2", 320, 3)]],
            [[("branch7x7x3_1", 192, 1)], [("branch7x7x3_2", 192, (1, 7))],
             [("branch7x7x3_3", 192, (7, 1))], [("branch7x7x3_4", 192, 3)]])  # yapf: disable
        self.Mixed_7b = _grid8(1280, "average")
        self.Mixed_7c = _grid8(2048, "maximum")
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # (N,64,147,147)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))  # (N,192,71,71)
        x = F.max_pool2d(x, 3, 2)  # (N,192,35,35)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))  # (N,288,35,35)
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))  # (N,768,17,17)
        x = self.Mixed_6e(self.Mixed_6d(x))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # (N,2048,8,8)
        return F.adaptive_avg_pool2d(x, 1).flatten(1)  # (N,2048)

    def probabilities(self, features: Tensor) -> Tensor:
        """Of classes (N,1008), without the bias, as the Inception Score has been computed since its
        first code."""
        return F.linear(features, self.fc.weight).softmax(dim=1)


class _Convolution(nn.Module):
    def __init__(self, in_channels: int, channels: int, kernel: Kernel, stride: int = 1,
                 padding: tuple[int, int] = (0, 0)):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class _Mixed(nn.Module):
    """Branches and a pool side by side. A branch is a list of steps; what `halve`s the resolution
    does so in each branch's last one, and has no convolution after its pool."""
    def __init__(self, in_channels: int, pool: str, *branches: Sequence[Step], pooled: int = 0):
        super().__init__()
        self.pool = pool
        self.branches = [[[name for name, _, _ in step] for step in branch] for branch in branches]
        for branch in branches:
            width = in_channels
            for step in branch:
                halved = pool == "halve" and step is branch[-1]
                for name, channels, kernel in step:
                    tall, wide = (kernel, kernel) if isinstance(kernel, int) else kernel
                    padding = (0, 0) if halved else (tall // 2, wide // 2)
                    self.add_module(
                        name, _Convolution(width, channels, kernel, 2 if halved else 1, padding))
                width = sum(channels for _, channels, _ in step)
        self.branch_pool = _Convolution(in_channels, pooled, 1) if pooled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for branch in self.branches:
            y = x
            for names in branch:
                parts = [self.get_submodule(name)(y) for name in names]
                y = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
            found.append(y)
        return torch.cat([*found, self.branch_pool(self._pooled(x))], dim=1)

    def _pooled(self, x: Tensor) -> Tensor:
        if self.pool == "halve":
            return F.max_pool2d(x, 3, 2)
        if self.pool == "maximum":
            return F.max_pool2d(x, 3, 1, 1)
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def _grid35(in_channels: int, pooled: int) -> _Mixed:
    return _Mixed(in_channels, "average", [[("branch1x1", 64, 1)]],
                  [[("branch5x5_1", 48, 1)], [("branch5x5_2", 64, 5)]], _double3x3(), pooled=pooled)


def _double3x3() -> list[Step]:
    return [[("branch3x3dbl_1", 64, 1)], [("branch3x3dbl_2", 96, 3)], [("branch3x3dbl_3", 96, 3)]]


def _grid17(width: int) -> _Mixed:
    return _Mixed(
        768, "average", [[("branch1x1", 192, 1)]],
        [[("branch7x7_1", width, 1)], [("branch7x7_2", width, (1, 7))],
         [("branch7x7_3", 192, (7, 1))]],
        [[("branch7x7dbl_1", width, 1)], [("branch7x7dbl_2", width, (7, 1))],
         [("branch7x7dbl_3", width, (1, 7))], [("branch7x7dbl_4", width, (7, 1))],
         [("branch7x7dbl_5", 192, (1, 7))]], pooled=192)  # yapf: disable


def _grid8(in_channels: int, pool: str) -> _Mixed:
    return _Mixed(
        in_channels, pool, [[("branch1x1", 320, 1)]],
        [[("branch3x3_1", 384, 1)],
         [("branch3x3_2a", 384, (1, 3)), ("branch3x3_2b", 384, (3, 1))]],
        [[("branch3x3dbl_1", 448, 1)], [("branch3x3dbl_2", 384, 3)],
         [("branch3x3dbl_3a", 384, (1, 3)), ("branch3x3dbl_3b", 384, (3, 1))]],
        pooled=192)  # yapf: disable
