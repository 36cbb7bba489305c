"""The sliced Wasserstein distance over patches of a Laplacian pyramid: a judge that has learnt
nothing (Karras et al. 2018, arXiv:1710.10196, section 5).

It sees texture and colour at each scale, and neither objects nor which of them are there.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

PATCH = 7  # pixels
SMALLEST = 8  # pixels of the coarsest level; the source stops at 16, of images of 1024
_BINOMIAL = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16


def laplacian_pyramid(images: Tensor) -> list[Tensor]:
    """Float images (N,C,H,W) -> their bands, fine to coarse, halving down to at least SMALLEST
    pixels; the last one is what is left."""
    levels = [images]
    while levels[-1].shape[-1] % 2 == 0 and levels[-1].shape[-1] // 2 >= SMALLEST:
        coarse = _blur(levels[-1])[..., ::2, ::2]
        levels[-1] = levels[-1] - _expand(coarse)
        levels.append(coarse)
    return levels


def _blur(x: Tensor) -> Tensor:
    kernel = torch.outer(_BINOMIAL, _BINOMIAL).to(x)
    weight = kernel.expand(x.shape[1], 1, 5, 5)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), weight, groups=x.shape[1])


def _expand(x: Tensor) -> Tensor:
    """Zeros between the pixels, blurred, times 4 (Burt & Adelson 1983)."""
    wide = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    wide[..., ::2, ::2] = x
    return 4 * _blur(wide)


def projected_patches(batches: Iterable[Tensor], *, patches: int = 16, directions: int = 128,
                      seed: int = 0) -> list[Tensor]:
    """uint8 batches (B,C,H,W) -> for each level of the pyramid the patches of all images, each
    channel normalised over them, on random directions, sorted: (directions, N * patches) float32.

    `patches` are drawn per image and level. Two sets are compared by the same `seed`.
    """
    stream = torch.Generator().manual_seed(seed)
    found: list[list[Tensor]] = []
    for images in batches:
        for level, band in enumerate(laplacian_pyramid(images.float())):
            found += [[]] if level == len(found) else []
            found[level].append(_patches(band, patches, stream))
    projected = []
    for parts in found:
        x = torch.cat(parts)  # (N * patches, C, PATCH, PATCH)
        x -= x.mean(dim=(0, 2, 3), keepdim=True)
        x /= x.std(dim=(0, 2, 3), keepdim=True).clip(min=1e-8)
        x = x.flatten(1)
        axes = torch.randn(x.shape[1], directions,
                           generator=torch.Generator().manual_seed(seed + 1))
        axes /= axes.norm(dim=0)
        projected.append((x @ axes).T.contiguous().sort(dim=1).values)
    return projected


def _patches(band: Tensor, count: int, stream: torch.Generator) -> Tensor:
    """(B * count, C, PATCH, PATCH) at random places."""
    n, _, height, width = band.shape
    windows = band.unfold(2, PATCH, 1).unfold(3, PATCH, 1)  # (B,C,h,w,PATCH,PATCH)
    rows = torch.randint(height - PATCH + 1, (n, count), generator=stream)
    columns = torch.randint(width - PATCH + 1, (n, count), generator=stream)
    picked = windows[torch.arange(n)[:, None], :, rows, columns]  # (B,count,C,PATCH,PATCH)
    return picked.flatten(0, 1)


def sliced_wasserstein(a: list[Tensor], b: list[Tensor]) -> float:
    """Mean over levels and directions of the Wasserstein-1 distance of two sets of projected
    patches, times 1000 as in the source. Raises ValueError if the sets differ in size."""
    if [x.shape for x in a] != [x.shape for x in b]:
        raise ValueError("sliced Wasserstein compares sets of equal n and size; got "
                         f"{[tuple(x.shape) for x in a]} and {[tuple(x.shape) for x in b]}")
    return 1000 * sum(float((x - y).abs().mean()) for x, y in zip(a, b, strict=True)) / len(a)
