"""Images in: scikit-learn's digits, a folder of pictures, or EDM's zip layout; and the one uint8 <-> [-1,1] rule.

A data set is held as one uint8 tensor in memory (CIFAR-10: 154 MB), decoded once, so that training never waits for it.
"""

import io
import json
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg")


def to_float(images: Tensor) -> Tensor:
    """uint8 -> float32 in [-1,1]."""
    return images.to(torch.float32) / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """float in [-1,1] -> uint8 by EDM's rule, x * 127.5 + 128 clipped: the inverse of `to_float`."""
    return (images.to(torch.float32) * 127.5 + 128).clip(0, 255).to(torch.uint8)


@dataclass(frozen=True, eq=False)
class Images:
    """uint8 images (N,C,H,W) with class indices (N,) or None."""

    name: str
    images: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def label_dim(self) -> int:
        return 0 if self.labels is None else int(self.labels.max()) + 1


def open_images(spec: str) -> Images:
    """`digits`, a folder, or a zip. Raises FileNotFoundError or ValueError with what is wrong and where."""
    if spec == "digits":
        return load_digits()
    path = Path(spec)
    if path.is_dir():
        return _load_folder(path)
    if not path.exists():
        raise FileNotFoundError(f"data must be digits, a folder or a zip; {spec!r} does not exist")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"data must be digits, a folder or a zip; {spec!r} is another kind of file")
    return _load_zip(path)


def load_digits() -> Images:
    """scikit-learn's 1,797 handwritten digits, 8x8, 16 grey levels spread over 0..255, with their labels."""
    from sklearn.datasets import load_digits as load

    digits = load()
    images = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8))[:, None]  # (1797,1,8,8)
    return Images("digits", images, torch.from_numpy(digits.target.astype(np.int64)))


def _load_folder(path: Path) -> Images:
    files = {str(f.relative_to(path)): f for f in sorted(path.rglob("*")) if f.suffix.lower() in SUFFIXES}
    parents = {name: Path(name).parent.as_posix() for name in files}
    classes = sorted(set(parents.values()))
    labels = {name: classes.index(parent) for name, parent in parents.items()} if len(classes) > 1 else None
    return _decode(path, files, lambda name: files[name].read_bytes(), labels)


def _load_zip(path: Path) -> Images:
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if Path(name).suffix.lower() in SUFFIXES)
        labels = None
        if "dataset.json" in archive.namelist():
            try:
                listed = json.loads(archive.read("dataset.json")).get("labels")
                labels = None if listed is None else {str(name): int(label) for name, label in listed}
            except (ValueError, TypeError, AttributeError) as error:
                raise ValueError(f'{path}: dataset.json is not {{"labels": [[name, class], ...]}}: {error}') from None
        return _decode(path, names, archive.read, labels)


def _decode(path: Path, names: Iterable[str], read: Callable[[str], bytes], labels: dict[str, int] | None) -> Images:
    """Decode every picture of `names`; all must share one size and be grey or RGB."""
    from PIL import Image, UnidentifiedImageError

    names = list(names)
    if not names:
        raise ValueError(f"{path} holds no images ({', '.join(SUFFIXES)})")
    if labels is not None and (unlabelled := [name for name in names if name not in labels]):
        raise ValueError(f"{path}: dataset.json has no label for {unlabelled[0]} and {len(unlabelled) - 1} more")
    stack: np.ndarray | None = None
    for index, name in enumerate(names):
        try:
            with Image.open(io.BytesIO(read(name))) as picture:
                if picture.mode not in ("L", "RGB"):
                    raise ValueError(f"{path}: {name} has mode {picture.mode}; images must be 8-bit grey (L) or RGB")
                pixels = np.asarray(picture)
        except (UnidentifiedImageError, OSError, zipfile.BadZipFile, Image.DecompressionBombError) as error:
            raise ValueError(f"{path}: {name} cannot be read as an image: {error}") from None
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)  # (C,H,W)
        if stack is None:
            stack = np.empty((len(names), *pixels.shape), np.uint8)
        if pixels.shape != stack.shape[1:]:
            raise ValueError(
                f"{path}: {name} is {_size(pixels.shape)}, but {names[0]} is {_size(stack.shape[1:])}; sizes must agree"
            )
        stack[index] = pixels
    return Images(path.stem, torch.from_numpy(stack), None if labels is None else torch.tensor([labels[n] for n in names]))


def _size(shape: tuple[int, ...]) -> str:
    channels, height, width = shape
    return f"{width}x{height} {'grey' if channels == 1 else 'RGB'}"


def batch_indices(size: int, batch_size: int, step: int, seed: int) -> Tensor:
    """Data set indices (batch_size,) of training step `step`: seeded epochs without repeats, and no state to resume."""
    positions = torch.arange(step * batch_size, (step + 1) * batch_size)
    orders = {epoch: torch.randperm(size, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
              for epoch in (positions // size).unique().tolist()}  # fmt: skip
    return torch.stack([orders[position // size][position % size] for position in positions.tolist()])
