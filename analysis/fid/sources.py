"""What can be compared: a generator with its sampler and seeds, a data set, an array of images, or
finished statistics."""

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analysis.fid.frechet import FeatureStats
from gdd.data.images import BUNDLED, Images, open_images, to_uint8
from gdd.denoiser import Denoiser
from gdd.files import digest, write_atomically
from gdd.sampling import generate, parse_sampler, to_device
from gdd.weights import checkpoint


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


@dataclass(frozen=True)
class Statistics:
    """Moments from a file: EDM's mu and sigma, whose n and extractor are not known, or ours with
    provenance."""

    name: str
    stats: FeatureStats
    n: int | None = None
    extractor: str | None = None


def open_source(spec: str, *, device: str = "cpu", precision: str = "fp32") -> Source | Statistics:
    """`CHECKPOINT[@SAMPLER]`, a path or a shipped run's name; a data set; an .npy or .npz of
    images, or an .npz of statistics.

    A generator makes one image per seed; `reseed` sets them. Raises FileNotFoundError or ValueError
    with what is wrong.
    """
    name, at, sampler = spec.partition("@")
    if name in BUNDLED and not at:
        dataset = open_images(name)
        return _dataset(name, dataset, {name: len(dataset)})
    if Path(name).suffix in (".npy", ".npz") and not at:
        return _arrays(Path(name))
    try:
        path = checkpoint.locate(name)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"source {error}") from None
    if at or path.suffix in checkpoint.SUFFIXES:
        return of_checkpoint(path, sampler, device, precision)(range(0))
    return _dataset(name, open_images(name), {"files": _digest_of_files(path)})


def of_checkpoint(path: Path, sampler: str = "", device: str = "cpu",
                  precision: str = "fp32") -> Callable[[range], Source]:
    """The network of a file with its sampler, by default that which it was trained for, as a source
    once its seeds are given."""
    denoiser, metadata = checkpoint.load_with_metadata(path)
    sampler = sampler or checkpoint.sampler_of(denoiser, metadata)
    parse_sampler(sampler)  # a wrong one is refused now
    # every run folder has a final one
    name = f"{path.parent.name}/{path.stem}" if path.stem == "final" else path.stem
    return of_denoiser(to_device(denoiser, device, precision), sampler,
                       f"{name}@{sampler}", weights=[
                           digest(path), metadata.get("base_digest"), precision], backbones=tuple(
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

    return Source(Path(name).name, len(dataset), tuple(dataset.images.shape[1:]), identity, batches)


def _arrays(path: Path) -> Source | Statistics:
    if not path.is_file():
        raise FileNotFoundError(f"source {path} does not exist")
    try:
        opened = np.load(path, mmap_mode="r", allow_pickle=False)
        alone = isinstance(opened, np.ndarray)
        found = {"": opened} if alone else {name: opened[name] for name in opened.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a plain {path.suffix} file: {error}") from None
    if {"mu", "sigma"} <= found.keys():
        return _statistics(path, found)
    images = [array for array in found.values() if array.dtype == np.uint8 and array.ndim in (3, 4)]
    if len(images) != 1:
        listed = [f"{name or 'array'} {a.dtype} {list(a.shape)}" for name, a in found.items()]
        raise ValueError(f"{path} holds neither one uint8 array of images nor mu and sigma; "
                         f"it holds {', '.join(listed) or 'nothing'}")
    array = images[0] if images[0].ndim == 4 else images[0][:, None]
    if array.shape[1] not in (1, 3):
        if array.shape[3] not in (1, 3):
            raise ValueError(f"{path}: images must be (N,H,W,C) or (N,C,H,W) with 1 or 3 channels; "
                             f"got {list(array.shape)}")
        array = array.transpose(0, 3, 1, 2)

    def batches(indices: Sequence[int], batch_size: int) -> Iterator[Tensor]:
        for start in range(0, len(indices), batch_size):
            part = array[list(indices[start:start + batch_size])]
            yield torch.from_numpy(np.ascontiguousarray(part))

    return Source(path.name, len(array), array.shape[1:], {"files": digest(path)}, batches)


def _statistics(path: Path, found: dict[str, np.ndarray]) -> Statistics:
    mean, covariance = (torch.from_numpy(np.array(found[name], np.float64))
                        for name in ("mu", "sigma"))
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(f"{path}: mu and sigma must be (d,) and (d,d); got {list(mean.shape)} "
                         f"and {list(covariance.shape)}")
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise ValueError(f"{path}: mu or sigma holds NaN or inf")
    provenance: dict[str, Any] = {}
    if "provenance" in found:
        try:
            provenance = json.loads(bytes(found["provenance"]))
        except ValueError as error:
            raise ValueError(f"{path}: its provenance is damaged: {error}") from None
    n = provenance.get("n")
    # only the covariance matters to a distance
    stats = FeatureStats(n or 2, mean, covariance * ((n or 2) - 1))
    return Statistics(path.name, stats, n, provenance.get("extractor"))


def save_statistics(path: Path, stats: FeatureStats, provenance: dict[str, Any]) -> None:
    """Write EDM's layout, mu and sigma float64, with `provenance` as JSON bytes beside them; whole
    or not at all."""
    text = np.frombuffer(json.dumps(provenance | {"n": stats.n}).encode(), np.uint8)
    if path.suffix != ".npz":
        raise ValueError(f"statistics are written as .npz; got {path}")

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez(file, mu=stats.mean.numpy(), sigma=stats.covariance.numpy(), provenance=text)

    write_atomically(path, write)


def _digest_of_files(path: Path) -> str:
    """A zip by its bytes; of a folder the names, sizes and times of its files."""
    if path.is_file():
        return digest(path)
    files = [(f.relative_to(path).as_posix(), f.stat().st_size, f.stat().st_mtime_ns)
             for f in sorted(path.rglob("*")) if f.is_file()]
    return hashlib.sha256(json.dumps([str(path.resolve()), files]).encode()).hexdigest()[:16]
