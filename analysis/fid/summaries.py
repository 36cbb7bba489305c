"""One pass over a source gives all that any metric needs; summaries are cached by content, and
merge across processes.

Under torchrun every process takes every so-many-th block of images. Blocks have a fixed size, so
neither the batch size nor the number of processes decides what is summed with what but in the last
bits.
"""

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm.auto import tqdm

from analysis.features import Extractor
from analysis.fid.frechet import FeatureStats, check_moments
from analysis.fid.samples import ClassScores
from analysis.fid.sources import Source
from gdd.reading import quoted, typed
from gdd.weights import checkpoint

BLOCK = 1024
SAMPLE = 10_000  # features kept for the metrics that need them one by one
_VERSION = 2  # of what a cached summary means


class Cached(TypedDict):
    """Metadata of a cached summary: all that decides it, and the SHA-256 of its tensors."""

    asked: dict[str, Any]
    sha256: str


@dataclass
class Summary:
    """Moments of all features, a sample of at most `SAMPLE` of them in index order, and, if asked
    for, parts of the IS."""

    stats: FeatureStats
    sample: Tensor  # (m,d) float32
    scores: ClassScores | None


def cache_folder() -> Path:
    return Path(os.environ.get("GDD_CACHE") or Path.home() / ".cache" / "gdd")


@dataclass
class Summaries:
    """Summaries of sources under one extractor: each made once, and kept in `cache`, a folder, if
    one is given."""

    extractor: Extractor
    batch_size: int = 256
    cache: Path | None = None

    def __post_init__(self) -> None:
        self.made: dict[str, tuple[dict[str, Any], Summary]] = {}  # with where it comes from

    def of(self, source: Source, *, classify: bool = False) -> Summary:
        """`classify` adds the Inception Score's parts, for a second pass through the extractor.
        Raises ValueError naming the source if it has fewer than 2 images, only equal ones, or
        features that are not finite.
        """
        if source.n < 2:
            raise ValueError(f"{source.name} has n = {source.n}; statistics need at least 2 images")
        if source.identity is None or self.extractor.identity is None:
            # nothing says whether it is the same as another one
            return _gathered(_pass(source, self.extractor, self.batch_size, classify), source)
        asked = {"version": _VERSION, "source": source.identity, "n": source.n,
                 "extractor": self.extractor.identity, "block": BLOCK, "sample": SAMPLE,
                 "classify": classify and self.extractor.probabilities is not None}  # yapf: disable
        text = json.dumps(asked, sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:32]
        if key not in self.made:
            origin = source.identity | {"source": source.name, "extractor": self.extractor.name}
            self.made[key] = origin, self._cached(source, key, json.loads(text))
        return self.made[key][1]

    def first(self) -> tuple[FeatureStats, dict[str, Any]]:
        """Moments and provenance of the source that was summarised first. Raises ValueError if none
        was."""
        if not self.made:
            raise ValueError("no moments were made that could be saved: give a source of images")
        origin, summary = next(iter(self.made.values()))
        return summary.stats, origin

    def _cached(self, source: Source, key: str, asked: dict[str, Any]) -> Summary:
        path = self.cache / f"{key}.safetensors" if self.cache else None
        found = [_read(path, asked) if path and _rank() == 0 else None]
        if _world() > 1:  # one process decides, or another writer could make them disagree
            dist.broadcast_object_list(found, src=0)
        if found[0] is not None:
            return found[0]
        summary = _gathered(_pass(source, self.extractor, self.batch_size, asked["classify"]),
                            source)
        if path and _rank() == 0:
            _write(path, summary, asked)
        return summary


def kept_indices(n: int) -> list[int]:
    """Which of n images are those of `Summary.sample`, in order."""
    chosen = np.random.default_rng(0).choice(n, min(SAMPLE, n), replace=False)
    return sorted(chosen.tolist())


def _pass(source: Source, extractor: Extractor, batch_size: int, classify: bool) -> "_Partial":
    """This process's share of the images, block by block."""
    kept = np.zeros(source.n, bool)
    kept[kept_indices(source.n)] = True
    blocks = [range(start, min(start + BLOCK, source.n)) for start in range(0, source.n, BLOCK)]
    part = _Partial()
    bar = tqdm(total=sum(map(len, blocks[_rank()::_world()])), unit="image", desc=source.name,
               disable=None)
    with bar:
        for block in blocks[_rank()::_world()]:
            features, probabilities = [], []
            for images in source.batches(block, batch_size):
                try:
                    features.append(extractor(images))
                    if classify and (classes := extractor.classify(images)) is not None:
                        probabilities.append(classes)
                except ValueError as error:
                    raise ValueError(f"{source.name}: {error}") from None
                part.see(images)
                bar.update(len(images))
            part.add(source, block, torch.cat(features),
                     torch.cat(probabilities) if probabilities else None, kept)
    return part


class _Partial:
    """What one process has seen so far."""
    def __init__(self) -> None:
        self.stats: FeatureStats | None = None
        self.scores: ClassScores | None = None
        self.sample = torch.empty(0)  # (m,d) of the whole source, zero where other processes look
        self.first: Tensor | None = None
        self.varies = False

    def see(self, images: Tensor) -> None:
        if self.first is None:
            self.first = images[:1].cpu().clone()
        self.varies = self.varies or bool((images.cpu() != self.first).any())

    def add(self, source: Source, block: range, features: Tensor, probabilities: Tensor | None,
            kept: np.ndarray) -> None:
        self.stats = self.stats or FeatureStats.empty(features.shape[1])
        try:
            self.stats.update(features)
        except ValueError as error:
            raise ValueError(f"{source.name}: {error}") from None
        # once: many small tensors between large ones would keep the heap from shrinking
        if not len(self.sample):
            self.sample = torch.zeros(int(kept.sum()), features.shape[1])
        chosen = features[torch.from_numpy(kept[block.start:block.stop])]
        first = int(kept[:block.start].sum())
        self.sample[first:first + len(chosen)] = chosen
        if probabilities is not None:
            self.scores = self.scores or ClassScores.empty(probabilities.shape[1])
            splits = len(self.scores.count)
            self.scores.update(probabilities,
                               torch.tensor([index * splits // source.n for index in block]))


def _gathered(part: _Partial, source: Source) -> Summary:
    """The summary of all processes' parts, the same in each."""
    parts: list[Any] = [part]
    if _world() > 1:
        parts = [None] * _world()
        dist.all_gather_object(parts, part)
    seen = [p for p in parts if p.stats is not None]
    first = seen[0]
    if not any(p.varies or not torch.equal(p.first, first.first) for p in seen):
        raise ValueError(f"{source.name}: all {source.n} images are equal")
    for other in seen[1:]:
        first.stats.merge(other.stats)
        first.sample += other.sample
        if first.scores is not None:
            first.scores.merge(other.scores)
    return Summary(first.stats, first.sample, first.scores)


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _write(path: Path, summary: Summary, asked: dict[str, Any]) -> None:
    """Keep a summary. What cannot be kept is not lost: a warning says why."""
    tensors = {
        "mean": summary.stats.mean, "scatter": summary.stats.scatter, "sample": summary.sample}
    if summary.scores is not None:
        tensors |= {f"scores.{name}": value for name, value in vars(summary.scores).items()}
    try:
        checkpoint.write_tensors(path, tensors, Cached(asked=asked, sha256=_checksum(tensors)))
    except (OSError, ValueError) as error:  # a full disk, a read-only folder, a file in its place
        _warn(f"{quoted(path)} is not kept: {quoted(error)}")


def _read(path: Path, asked: dict[str, Any]) -> Summary | None:
    """What is cached, if it is whole and that which is asked for; None if it is to be made."""
    if not path.exists():
        return None
    try:
        tensors, metadata = checkpoint.read_tensors(path)
        return _checked(tensors, metadata, asked)
    except (OSError, ValueError, RuntimeError) as error:
        _warn(f"{quoted(path)} is made again: {quoted(error)}")
        return None


def _checked(tensors: Mapping[str, Tensor], metadata: Any, asked: dict[str, Any]) -> Summary:
    """The summary of a file's content. Raises ValueError saying what of it cannot be."""
    if typed(metadata, Cached, "its metadata")["asked"] != asked:
        raise ValueError("it is of another source")
    n, dim = asked["n"], len(tensors["mean"].flatten()) if "mean" in tensors else 0
    wanted = {
        "mean": ((dim, ), torch.float64), "scatter": ((dim, dim), torch.float64),
        "sample": ((min(SAMPLE, n), dim), torch.float32)}  # yapf: disable
    if asked["classify"]:
        classes = tensors.get("scores.total", torch.empty(0)).shape[-1]
        splits = len(ClassScores.empty(1).count)
        wanted |= {"scores.count": ((splits, ), torch.float64),
                   "scores.total": ((splits, classes), torch.float64),
                   "scores.negentropy": ((splits, ), torch.float64)}  # yapf: disable
    found = {name: (tuple(x.shape), x.dtype) for name, x in tensors.items()}
    if found != wanted or not dim:
        raise ValueError(f"its tensors are not those of {n} images: {quoted(str(found))}")
    if not all(x.isfinite().all() for x in tensors.values()):
        raise ValueError("it holds NaN or inf")
    if metadata["sha256"] != _checksum(tensors):
        raise ValueError("its tensors are not those that were written")
    check_moments(tensors["mean"], tensors["scatter"])
    scores = {name.removeprefix("scores."): tensors[name] for name in sorted(wanted)
              if name.startswith("scores.")}  # yapf: disable
    return Summary(FeatureStats(n, tensors["mean"], tensors["scatter"]), tensors["sample"],
                   ClassScores(**scores) if scores else None)


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].contiguous().numpy().data)
    return found.hexdigest()


def _warn(text: str) -> None:
    print(f"warning: the cached summary {text}", file=sys.stderr)
