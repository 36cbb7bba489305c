"""Images in: scikit-learn's digits, or the pictures of `gdd.data.pictures`; and the one rule from
uint8 to [-1,1] and back.

A data set is decoded once into one uint8 tensor (CIFAR-10: 154 MB), so that training never waits
for it; one that would take more than `IN_MEMORY` bytes is decoded as it is asked for.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from gdd.config import BUNDLED
from gdd.data.pictures import Pictures, describe_shape, open_pictures
from gdd.reading import quoted

IN_MEMORY = 4 << 30


def to_float(images: Tensor) -> Tensor:
    """uint8 -> float32 in [-1,1]."""
    return images.to(torch.float32) / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """float in [-1,1] -> uint8 by EDM's rule, x * 127.5 + 128 clipped: the inverse of
    `to_float`."""
    return (images.to(torch.float32) * 127.5 + 128).clip(0, 255).to(torch.uint8)


class Streamed:
    """uint8 images (N,C,H,W) decoded when indexed, by a slice or by indices (B,): `shape` and `len`
    as a tensor's."""
    def __init__(self, pictures: Pictures):
        self.pictures = pictures
        first = pictures.array(0)
        self.shape = torch.Size((len(pictures), *first.shape))

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        """Raises ValueError naming a file that cannot be decoded or is not of the first one's
        size."""
        chosen = range(len(self))[index] if isinstance(index, slice) else index.tolist()
        images = np.empty((len(chosen), *self.shape[1:]), np.uint8)
        # threads only get in each other's way: small pictures are mostly Python
        for place, source in enumerate(chosen):
            images[place] = self._decode(source)
        return torch.from_numpy(images)

    def _decode(self, index: int) -> np.ndarray:
        pixels, pictures = self.pictures.array(index), self.pictures
        if pixels.shape != self.shape[1:]:
            raise ValueError(
                f"{pictures.at(index)} is {describe_shape(pixels.shape)}, but "
                f"{quoted(pictures.names[0])} is {describe_shape(self.shape[1:])}; sizes must agree"
            )
        return pixels


@dataclass(frozen=True, eq=False)
class Images:
    """uint8 images (N,C,H,W), in memory or streamed, with class indices (N,) or None."""

    name: str
    images: Tensor | Streamed
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def label_dim(self) -> int:
        return 0 if self.labels is None else int(self.labels.max()) + 1


def open_images(spec: str, *, in_memory: int = IN_MEMORY) -> Images:
    """`digits`, a folder, a zip, or CIFAR-10's batches; kept in memory up to `in_memory` bytes,
    streamed beyond.

    Raises FileNotFoundError or ValueError with what is wrong and where; of a streamed set, when the
    picture is asked for.
    """
    if spec in BUNDLED:
        return load_digits()
    pictures = open_pictures(spec)
    streamed = Streamed(pictures)
    images = streamed[:] if streamed.shape.numel() <= in_memory else streamed
    return Images(pictures.path.stem, images,
                  None if pictures.labels is None else torch.tensor(pictures.labels))


def load_digits() -> Images:
    """scikit-learn's 1,797 handwritten digits, 8x8, 16 grey levels spread over 0..255, with their
    labels."""
    from sklearn.datasets import load_digits as load

    digits = load()
    # (1797,1,8,8)
    images = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8))[:, None]
    return Images("digits", images, torch.from_numpy(digits.target.astype(np.int64)))


def batch_indices(size: int, batch_size: int, step: int, seed: int) -> Tensor:
    """Data set indices (batch_size,) of training step `step`: seeded epochs without repeats, and no
    state to resume."""
    positions = range(step * batch_size, (step + 1) * batch_size)
    return torch.stack([
        _epoch_order(size, seed, position // size)[position % size] for position in positions])


@lru_cache(maxsize=4)
def _epoch_order(size: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
