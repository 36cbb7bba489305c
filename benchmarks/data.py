"""A zip of pictures to normalised batches, against torchvision's ImageFolder and a DataLoader over
the same files."""

import io
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks import machine
from benchmarks.clock import FULL, medians
from benchmarks.row import Row
from gdd.data.images import Images, batch_indices, open_images, to_float
from gdd.files import ROOT

# CIFAR-10's test pictures: as JPEGs, which the project's own machines have, or at 16x16 as
# docs/pictures.md makes them
ZIPS = (ROOT.parent / "shared" / "data" / "cifar10-test-jpeg.zip",
        ROOT / "datasets" / "cifar10-16x16-test.zip")
BATCH, WORKERS = 128, 2


def rows() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = next((path for path in ZIPS if FULL and path.exists()), None)
        source, kind = (found, found.stem) if found else (_drawn(folder), "drawn pictures")
        with zipfile.ZipFile(source) as archive:
            archive.extractall(folder / "files")  # one of the two sets above, or drawn here
        loader = _loader(folder / "files")
        images = open_images(str(source))
        theirs = f"{machine.peer('torchvision')}, ImageFolder and DataLoader, {WORKERS} workers"
        error = abs(_mean(_batches(images)) - _mean(loader()))
        work = f"{len(images):,} pictures to batches, {kind}"
        first, read = medians(lambda: list(_batches(open_images(str(source)))),
                              lambda: list(loader()))
        yield Row(f"{work}, first epoch", theirs, first, read, target=3, error=error,
                  reason="one process decodes every picture, after checks that ImageFolder lacks")
        again, read = medians(partial(_exhaust, partial(_batches, images)), partial(
            _exhaust, loader))
        yield Row(f"{work}, later epochs", theirs, again, read, target=3, error=error,
                  bar=3 if FULL else None)


def _drawn(folder: Path) -> Path:
    """A zip of noise as small JPEGs, in EDM's layout, where there is no data set."""
    rng, path = np.random.default_rng(0), folder / "drawn.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(5000 if FULL else 200):
            content = io.BytesIO()
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(content, "JPEG")
            archive.writestr(f"00000/img{index:08}.jpg", content.getvalue())
    return path


def _batches(images: Images) -> Iterator[Tensor]:
    for step in range(len(images) // BATCH):
        yield to_float(images.images[batch_indices(len(images), BATCH, step, seed=0)])


def _loader(folder: Path) -> Callable[[], Iterator[Tensor]]:
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import Compose, Normalize, ToTensor

    pictures = ImageFolder(str(folder), Compose([ToTensor(), Normalize(0.5, 0.5)]))
    loader = DataLoader(pictures, BATCH, shuffle=True, num_workers=WORKERS, drop_last=True)
    return lambda: (images for images, _ in loader)


def _exhaust(batches: Callable[[], Iterator[Tensor]]) -> None:
    for _ in batches():
        pass


def _mean(batches: Iterator[Tensor]) -> float:
    """Of all pixels: an epoch is shuffled, and leaves out what fills no batch."""
    return float(torch.stack([batch.mean() for batch in batches]).mean())
