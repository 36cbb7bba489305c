"""Finished statistics: EDM's mu and sigma as .npz, read without belief and written whole."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch

from analysis.fid.arrays import Header, read_array
from analysis.fid.frechet import FeatureStats, check_moments
from gdd.files import write_atomically
from gdd.reading import Budget, quoted, read_json, typed

_COUNT = 1 << 53  # above which a float64 counts no more
_NAME = 100  # characters of a name of features


class Provenance(TypedDict):
    """What of an .npz's provenance is used. The rest is for people."""

    n: NotRequired[int | None]
    extractor: NotRequired[str | None]


@dataclass(frozen=True)
class Statistics:
    """Moments from a file: EDM's mu and sigma, whose n and extractor are not known, or ours with
    provenance."""

    name: str
    stats: FeatureStats
    n: int | None = None
    extractor: str | None = None


def read_statistics(path: Path, headers: Mapping[str, Header]) -> Statistics:
    """Of `mu` (d,), `sigma` (d,d), both real floats, and `provenance`, JSON as bytes, if there is
    one. Raises ValueError naming the file and what is wrong with it."""
    mu, sigma = headers["mu"], headers["sigma"]
    if {mu.dtype.kind, sigma.dtype.kind} != {"f"}:
        raise ValueError(f"{quoted(path)}: mu and sigma must be real floats; got "
                         f"{quoted(str(mu.dtype))} and {quoted(str(sigma.dtype))}")
    if len(mu.shape) != 1 or not mu.shape[0] or sigma.shape != mu.shape * 2:
        raise ValueError(f"{quoted(path)}: mu and sigma must be (d,) and (d,d); got "
                         f"{quoted(str(mu.shape))} and {quoted(str(sigma.shape))}")
    # 4,096 dimensions, or what the file holds when unpacked: a bomb unpacks to a thousand times
    dim, most = mu.shape[0], max(1 << 27, 2 * path.stat().st_size)
    if 8 * dim**2 > most:
        raise ValueError(f"{quoted(path)} is too small a file for {dim:,} dimensions")
    mean, covariance = (torch.from_numpy(
        np.ascontiguousarray(read_array(path, name, Budget(bytes=2 * most)), np.float64))
                        for name in ("mu", "sigma"))
    try:
        check_moments(mean, covariance)
        known = _provenance(path, headers["provenance"]) if "provenance" in headers else {}
    except ValueError as error:
        raise ValueError(f"{quoted(path)}: {error}") from None
    n = known.get("n")
    # only the covariance matters to a distance
    stats = FeatureStats(n or 2, mean, covariance.mul_((n or 2) - 1))
    return Statistics(quoted(path.name), stats, n, known.get("extractor"))


def _provenance(path: Path, header: Header) -> Provenance:
    if header.dtype != np.uint8 or len(header.shape) != 1:
        raise ValueError(f"its provenance is damaged: no JSON as bytes but {quoted(str(header))}")
    content = read_array(path, "provenance", Budget(bytes=1 << 24)).tobytes()
    try:
        known = typed(read_json(content, dict[str, Any], "it"), Provenance, "it")
    except ValueError as error:
        raise ValueError(f"its provenance is damaged: {error}") from None
    n, name = known.get("n"), known.get("extractor")
    if n is not None and not 2 <= n < _COUNT:
        raise ValueError(
            f"its provenance is damaged: n must be a count of 2 or more; got {quoted(n)}")
    if name is not None and quoted(name, _NAME) != name:
        raise ValueError(
            f"its provenance is damaged: extractor is no name of features, {quoted(name)}")
    return known


def save_statistics(path: Path, stats: FeatureStats, provenance: dict[str, Any]) -> None:
    """Write EDM's layout, mu and sigma float64, with `provenance` as JSON bytes beside them; whole
    or not at all."""
    check_target(path)
    text = np.frombuffer(json.dumps(provenance | {"n": stats.n}).encode(), np.uint8)

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez(file, mu=stats.mean.numpy(), sigma=stats.covariance.numpy(), provenance=text)

    write_atomically(path, write)


def check_target(path: Path) -> None:
    """Raise ValueError if statistics cannot be called so: said before hours are spent."""
    if path.suffix != ".npz":
        raise ValueError(f"statistics are written as .npz; got {quoted(path)}")
