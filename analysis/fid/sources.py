"""What can be compared: a generator with its sampler and seeds, a data set, an array of images, or
finished statistics."""

import hashlib
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analysis.fid.arrays import array_headers, mapped_array, read_array
from analysis.fid.asked import ARRAYS, locate
from analysis.fid.statistics import Statistics, read_statistics
from analysis.fid.statistics import save_statistics as save_statistics
from gdd.data.images import Images, open_images, to_uint8
from gdd.denoiser import Denoiser
from gdd.reading import Budget, open_regular, quoted
from gdd.sampling import generate, parse_sampler, to_device
from gdd.weights import checkpoint, zoo


@dataclass(frozen=True, eq=False)
class Source:
    """`n` uint8 images (N,C,H,W), produced in any order of indices; `identity` decides them, and
    addresses the cache."""

    name: str
    n: int
    shape: tuple[int, ...]  # (C,H,W)
    identity: dict[str, Any] | None  # None: it is not known what decides them
    batches: Callable[[Sequence[int], int], Iterator[Tensor]]  # of (indices, batch size)
    seeds: range | None = None  # of a generator
    reseed: "Callable[[range], Source] | None" = None  # the same generator from other seeds
    backbones: tuple[str, ...] = ()  # that a generator's discriminator looked through
    lossy: bool = False  # some of its files are compressed with loss

    def part(self, indices: Sequence[int], name: str) -> "Source":
        """Some of the images, in the order of `indices`, as a source of its own."""
        def batches(chosen: Sequence[int], batch_size: int) -> Iterator[Tensor]:
            yield from self.batches([indices[index] for index in chosen], batch_size)

        identity = self.identity and self.identity | {"indices": list(indices)}
        return replace(self, name=name, n=len(indices), identity=identity, batches=batches,
                       seeds=None, reseed=None)

    def disjoint(self, n: int, seed: int) -> "tuple[Source, Source]":
        """Two random draws of `n` images that share none. Raises ValueError if they are too few."""
        if self.n < 2 * n:
            raise ValueError(f"{self.name} has {self.n:,} images; two draws need {2 * n:,}")
        order = torch.randperm(self.n, generator=torch.Generator().manual_seed(seed)).tolist()
        one, two = order[:n], order[n:2 * n]
        return self.part(one, f"{self.name}, draw 0"), self.part(two, f"{self.name}, draw 1")


def open_source(spec: str, *, device: str = "cpu", precision: str = "fp32") -> Source | Statistics:
    """`CHECKPOINT[@SAMPLER]`, a path or a shipped run's name; a data set; an .npy or .npz of
    images, or an .npz of statistics.

    A generator makes one image per seed; `reseed` sets them. Raises FileNotFoundError or ValueError
    with what is wrong.
    """
    path, (name, at, sampler) = locate(spec), spec.partition("@")
    if path is None:
        dataset = open_images(name)
        return _dataset(name, dataset, {name: len(dataset)})
    if path.suffix in ARRAYS and not at:
        return _arrays(path)
    if at or path.suffix in zoo.SUFFIXES:
        return of_checkpoint(path, sampler, device, precision)(range(0))
    opened = _dataset(name, open_images(name), {"files": content_digest(path)})
    return replace(opened, lossy=_is_lossy(path))


def of_checkpoint(path: Path, sampler: str = "", device: str = "cpu",
                  precision: str = "fp32") -> Callable[[range], Source]:
    """The network of a file with its sampler, by default that which it was trained for, as a source
    once its seeds are given."""
    denoiser, metadata = checkpoint.load_with_metadata(path)
    sampler = sampler or checkpoint.sampler_of(denoiser, metadata)
    parse_sampler(sampler)  # a wrong one is refused now
    # every run folder has a final one
    name = f"{path.parent.name}/{path.stem}" if path.stem == "final" else path.stem
    return of_denoiser(to_device(denoiser, device, precision), sampler, quoted(f"{name}@{sampler}"),
                       weights=[content_digest(path),
                                metadata.get("base_digest"), precision], backbones=tuple(
                                    metadata.get("backbones", ())))


def of_denoiser(denoiser: Denoiser, sampler: str, name: str, *, weights: Any = None,
                backbones: tuple[str, ...] = (),
                labels: Tensor | None = None) -> Callable[[range], Source]:
    """A denoiser with its sampler as a source, once its seeds are given. `weights` names its
    weights: without it nothing of the source is ever cached. `labels` (N,) asks for classes."""
    shape = (denoiser.channels, denoiser.resolution, denoiser.resolution)

    def of(seeds: range) -> Source:
        def batches(indices: Sequence[int], batch_size: int) -> Iterator[Tensor]:
            asked = None if labels is None else labels[list(indices)]
            for images in generate(denoiser, [seeds[index] for index in indices], sampler=sampler,
                                   labels=asked, batch_size=batch_size):
                yield to_uint8(images).cpu()

        identity = None
        if weights is not None and labels is None:
            identity = {"weights": weights, "sampler": sampler, "seeds": [seeds.start, seeds.stop]}
        return Source(name, len(seeds), shape, identity, batches, seeds, of, backbones)

    return of


def _dataset(name: str, dataset: Images, identity: dict[str, Any]) -> Source:
    def batches(indices: Sequence[int], batch_size: int) -> Iterator[Tensor]:
        for part in torch.tensor(indices, dtype=torch.long).split(batch_size):
            yield dataset.images[part]

    return Source(quoted(Path(name).name), len(dataset), tuple(dataset.images.shape[1:]), identity,
                  batches)


def _is_lossy(path: Path) -> bool:
    """Of a folder or zip that has been opened."""
    if path.is_dir():
        names = [file.name for file in path.rglob("*")]
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    else:
        names = []
    return any(name.lower().endswith((".jpg", ".jpeg", ".webp")) for name in names)


def _arrays(path: Path) -> Source | Statistics:
    headers = array_headers(path)
    if {"mu", "sigma"} <= headers.keys():
        return read_statistics(path, headers)
    if any(header.dtype.hasobject for header in headers.values()):
        raise ValueError(f"{quoted(path)}: Object arrays cannot be loaded")
    found = {name: header for name, header in headers.items()
             if header.dtype == np.uint8 and len(header.shape) in (3, 4)}  # yapf: disable
    if len(found) != 1:
        listed = quoted(", ".join(f"{name or 'array'} {x}" for name, x in headers.items()))
        raise ValueError(f"{quoted(path)} holds neither one uint8 array of images nor mu and "
                         f"sigma; it holds {listed or 'nothing'}")
    ((name, header), ) = found.items()
    if name:  # up to 512 MiB, or what a file unpacks to that holds more than one colour
        budget = Budget(bytes=max(1 << 29, 4 * path.stat().st_size))
        array = read_array(path, name, budget)
    else:
        array = mapped_array(path, header)
    array = channels_first(array, quoted(path))

    def batches(indices: Sequence[int], batch_size: int) -> Iterator[Tensor]:
        for start in range(0, len(indices), batch_size):
            part = array[list(indices[start:start + batch_size])]
            yield torch.from_numpy(np.ascontiguousarray(part))

    identity = {"files": content_digest(path)}
    return Source(quoted(path.name), len(array), array.shape[1:], identity, batches)


def channels_first(array: np.ndarray, name: str) -> np.ndarray:
    """Images (N,H,W), (N,H,W,C) or (N,C,H,W) as (N,C,H,W). Raises ValueError naming them."""
    array = array if array.ndim == 4 else array[:, None]
    if array.shape[1] not in (1, 3):
        if array.shape[3] not in (1, 3):
            raise ValueError(f"{name}: images must be (N,H,W,C) or (N,C,H,W) with 1 or 3 "
                             f"channels; got {list(array.shape)}")
        array = array.transpose(0, 3, 1, 2)
    if not array.size:
        raise ValueError(f"{name} holds no images: {list(array.shape)}")
    return array


def content_digest(path: Path) -> str:
    """32 digits of the SHA-256 of a file, or of the names and contents of a folder's files: of
    their bytes alone, since times and sizes can be set."""
    def of_file(file: Path) -> str:
        with open_regular(file) as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()  # type: ignore[arg-type]

    if not path.is_dir():
        return of_file(path)[:32]
    found = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file():
            name = os.fsencode(file.relative_to(path))  # any bytes, but a zero
            found.update(name + b"\0" + of_file(file).encode())
    return found.hexdigest()[:32]
