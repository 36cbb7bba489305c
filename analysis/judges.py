"""Judges: what says how far two sets of images are apart. A profile names several that fail in
different ways, since one that is kin to the discriminator may be pleased where no other is.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch

from analysis import fid
from analysis.experiments import device
from analysis.extractors import extractor, stats_of
from analysis.fid.sources import Source, Statistics, open_source
from analysis.fid.summaries import Summaries, cache_folder
from analysis.fid.swd import projected_patches, sliced_wasserstein
from gdd.files import scratch
from gdd.profiles import Profile, profile

SWD = "swd"
SHARED = "GDD_SUMMARIES"  # names a folder through which processes share feature statistics


@dataclass(frozen=True)
class Judge:
    """The name of its distance, such as `FD10k[lite2@64]`, and how it is computed."""

    metric: str
    summarise: Callable[..., Any]  # of a source; `keep=True`: features of it are kept on disk
    distance: Callable[[Any, Any], float]
    equal_n: bool  # of both sets


@cache
def judges(profile_name: str) -> tuple[Judge, ...]:
    """Those of a profile, the first the usual one."""
    chosen = profile(profile_name)
    return tuple(_sliced(chosen) if name == SWD else _frechet(profile_name, name)
                 for name in chosen.extractors)  # yapf: disable


@cache
def summaries(profile_name: str, name: str, keep: bool = False) -> Summaries:
    """Where the feature statistics of a judge are kept while a process lives, or `SHARED` does; or
    in the cache of `analysis.fid`."""
    shared = os.environ.get(SHARED)
    folder = Path(shared) if shared else cache_folder() if keep else None
    return Summaries(extractor(name, profile(profile_name), device()), cache=folder)


@contextmanager
def sharing() -> Iterator[None]:
    """While it lasts, this process and those that it starts share feature statistics."""
    with scratch() as folder:
        os.environ[SHARED] = str(folder)
        try:
            yield
        finally:
            del os.environ[SHARED]


def _frechet(profile_name: str, name: str) -> Judge:
    def summarise(source: Source | Statistics, keep: bool = False) -> Any:
        return stats_of(source, summaries(profile_name, name, keep))

    metric = metric_of(name, profile(profile_name).n)
    return Judge(metric, summarise, fid.frechet_distance, False)


def _sliced(chosen: Profile) -> Judge:
    def summarise(source: Source | Statistics, keep: bool = False) -> Any:
        assert isinstance(source, Source), "sliced Wasserstein needs images"
        return projected_patches(source.batches(range(source.n), 512))

    return Judge(metric_of(SWD, chosen.n),
                 lru_cache(maxsize=8)(summarise), sliced_wasserstein, True)


def metric_of(name: str, n: int) -> str:
    """What distances by the judge called `name` are called."""
    return fid.label("", n, "SWD").removesuffix("[]") if name == SWD else fid.label(name, n)


def real(profile_name: str, judge: Judge, split: str) -> Any:
    """What a judge makes of the `data` or the `test` split, all of it, or n of it drawn; kept on
    disk where measuring takes hours, since every run is judged in a process of its own."""
    chosen = profile(profile_name)
    path = {"data": chosen.reference or chosen.data, "test": chosen.test}[split]
    source = _opened(path)
    if judge.equal_n and isinstance(source, Source) and source.n > chosen.n:
        source = _drawn(path, chosen.n)
    return judge.summarise(source, keep=not chosen.live)


@cache
def _opened(path: str) -> Source | Statistics:
    return open_source(path)


@cache
def _drawn(path: str, n: int) -> Source:
    source = _opened(path)
    assert isinstance(source, Source)
    order = torch.randperm(source.n, generator=torch.Generator().manual_seed(0)).tolist()
    return source.part(order[:n], f"{source.name}, n drawn")


def in_memory(source: Source) -> Source:
    """The same images, made once for all judges, and not before one looks."""
    made = cache(lambda: torch.cat(list(source.batches(range(source.n), 256))))
    return replace(source, batches=lambda indices, size: iter(made()[list(indices)].split(size)))
