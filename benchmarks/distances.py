"""Fréchet distances against three peers, a matrix of them, and the whole way from a generator."""

import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError
from itertools import combinations
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from analysis import judges
from analysis.fid import FeatureStats, frechet_distance, frechet_distances
from analysis.fid.frechet import Root
from benchmarks import machine
from benchmarks.clock import FULL, medians, timed
from benchmarks.row import Row
from gdd.data.images import to_uint8
from gdd.sampling import generate
from gdd.weights import checkpoint, zoo

Distance = Callable[[FeatureStats, FeatureStats], float]
DIMENSION = 2048 if FULL else 128
SOURCES, CALLED = 8, 3  # of the peer's calls for all pairs so many are timed


def rows() -> Iterator[Row]:
    few = DIMENSION // 2 - 24  # 1,000 of 2,048
    yield from _one_distance(3 * DIMENSION, "full rank", target=14, bar=6)
    yield from _one_distance(few, f"n = {few:,}", target=14, bar=2)
    yield _matrix()
    yield _from_generator()


def moments(seed: int, d: int, n: int) -> FeatureStats:
    """Of features with Inception's kind of spectrum: variances over three orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator) * torch.logspace(0, -1.5, d)
    turn, _ = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(99)))
    return FeatureStats.of(x @ turn + 0.1 * seed)


def _arrays(a: FeatureStats, b: FeatureStats) -> list[np.ndarray]:
    return [x.numpy() for stats in (a, b) for x in (stats.mean, stats.covariance)]


def clean_fid(a: FeatureStats, b: FeatureStats) -> float:
    from cleanfid.fid import frechet_distance as distance

    return distance(*_arrays(a, b))


def pytorch_fid(a: FeatureStats, b: FeatureStats) -> float:
    from pytorch_fid.fid_score import calculate_frechet_distance as distance

    return distance(*_arrays(a, b))


def torch_fidelity(a: FeatureStats, b: FeatureStats) -> float:
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    one, other = (dict(mu=s.mean.numpy(), sigma=s.covariance.numpy()) for s in (a, b))
    return fid_statistics_to_metric(one, other, False)[KEY_METRIC_FID]


PEERS: dict[str, Distance] = {
    "clean-fid": clean_fid, "pytorch-fid": pytorch_fid, "torch-fidelity": torch_fidelity}


def _one_distance(n: int, kind: str, *, target: float, bar: float) -> Iterator[Row]:
    """The bar is clean-fid's alone: what it computes has not changed in years."""
    a, b = moments(0, DIMENSION, n), moments(1, DIMENSION, n)
    (ours, ) = medians(partial(frechet_distance, a, b), repeats=2)
    held = _held_back(a, b, ours)
    value, work = frechet_distance(a, b), f"Fréchet distance, d = {DIMENSION:,}, {kind}"
    for name, distance in PEERS.items():
        try:
            peer = machine.peer(name)
        except PackageNotFoundError:
            yield Row(work, name, ours, target=target, reason="not installed")
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            distance(*[moments(0, 8, 24)] * 2)  # imports take time, too
            theirs, found = timed(partial(distance, a, b))
        yield Row(work, peer, ours, theirs, target=target, error=abs(value / found - 1),
                  reason=held, bar=bar if FULL and name == "clean-fid" else None)


def _held_back(a: FeatureStats, b: FeatureStats, seconds: float) -> str:
    covariances = [stats.covariance for stats in (a, b)]
    factors, roots = timed(lambda: [Root.of(covariance) for covariance in covariances])
    whole = all(root.definite for root in roots)
    way = "Cholesky's method" if whole else "Cholesky's method with pivots"
    return f"{min(factors / seconds, 1):.0%} of ours is factors of the two covariances by {way}, " \
           f"the rest {'symmetric eigenvalues' if whole else 'singular values'} of their product"


def _matrix() -> Row:
    """All pairs; of the peer's calls some are timed, and all counted at their median."""
    stats = [moments(seed, DIMENSION, 3 * DIMENSION) for seed in range(SOURCES)]
    pairs = list(combinations(range(SOURCES), 2))
    ours, found = timed(partial(frechet_distances, stats))
    work = f"all {len(pairs)} pairs of {SOURCES} sources, d = {DIMENSION:,}"
    try:
        peer = machine.peer("clean-fid")
    except PackageNotFoundError:
        return Row(work, "clean-fid", ours, target=19, reason="not installed")
    calls = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i, j in pairs[:CALLED]:
            seconds, value = timed(partial(clean_fid, stats[i], stats[j]))
            calls.append((seconds, abs(float(found[i, j]) / value - 1)))
    theirs = len(pairs) * median(seconds for seconds, _ in calls)
    return Row(work, f"{peer}, {len(pairs)} calls, {CALLED} of them timed", ours, theirs, target=19,
               error=max(error for _, error in calls), bar=8 if FULL else None,
               reason="the symmetric eigenvalues of each pair take most of it")


def _from_generator() -> Row:
    """The same network, seeds and features; the peers' way writes a PNG per image and reads it
    back."""
    generator = checkpoint.load(zoo.path("gdd-i"))
    real = judges.real("desk", judges.judges("desk")[0], "data")
    extractor = judges.summaries("desk", "digits").extractor
    n = 1797 if FULL else 64

    def in_memory() -> float:
        batches = generate(generator, range(n), sampler="one-step")
        return frechet_distance(
            FeatureStats.of(torch.cat([extractor(to_uint8(batch)) for batch in batches])), real)

    def through_files(folder: Path) -> float:
        for index, batch in enumerate(generate(generator, range(n), sampler="one-step")):
            for k, image in enumerate(to_uint8(batch)):
                Image.fromarray(image[0].numpy()).save(folder / f"{index:03}-{k:03}.png")
        files = sorted(folder.glob("*.png"))
        read = np.stack([np.asarray(Image.open(file)) for file in files])
        return frechet_distance(FeatureStats.of(extractor(torch.from_numpy(read)[:, None])), real)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        error = abs(in_memory() / through_files(folder) - 1)
        ours, theirs = medians(in_memory, partial(through_files, folder))
    return Row(
        f"one-step generator to FD{n}[digits]", "PNG files in between", ours, theirs, target=4,
        error=error, bar=1.5 if FULL else None,
        reason="images of 8x8 pixels make small files; the network, its features and one "
        "distance take the rest")
