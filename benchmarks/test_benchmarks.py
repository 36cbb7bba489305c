"""Ours against named peers, as ratios within one run: `make bench`. Absolute times belong to the
machine, ratios travel."""

import os
import time
import warnings
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from cleanfid.fid import frechet_distance as clean_fid
from PIL import Image

from analysis import judges
from analysis.fid import FeatureStats, frechet_distance, frechet_distances
from gdd.data.images import to_uint8
from gdd.sampling import generate
from gdd.weights import checkpoint, zoo

FULL = "CI" not in os.environ  # in CI small and without bars: it shows that the command runs
DIMENSIONS = {1024: 1, 2048: 8} if FULL else {256: 0, 512: 0}  # and how many times as fast at least


def seconds(work, repeats=3):
    """Median wall time, after one warm-up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return sorted(times)[repeats // 2]


def report(what, ours, theirs):
    print(f"\n{what}: ours {ours:.3f} s, theirs {theirs:.3f} s, {theirs / ours:.1f}x faster")


def moments(seed, d, n=None):
    """Of features with Inception's kind of spectrum: variances over three orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n or 3 * d, d, generator=generator) * torch.logspace(0, -1.5, d)
    return FeatureStats.of(
        x @ torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(99)))[0] +
        0.1 * seed)


def clean_fids(a, b):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return clean_fid(*(x.numpy() for stats in (a, b) for x in (stats.mean, stats.covariance)))


def test_frechet_distance_against_clean_fid():
    for d, wanted in DIMENSIONS.items():
        a, b = moments(0, d), moments(1, d)
        assert abs(frechet_distance(a, b) / clean_fids(a, b) - 1) < 1e-6
        theirs, ours = seconds(lambda a=a, b=b: clean_fids(a, b),
                               repeats=1), seconds(lambda a=a, b=b: frechet_distance(a, b))
        report(f"frechet_distance, d = {d}, against clean-fid", ours, theirs)
        assert theirs > wanted * ours


def test_matrix_against_clean_fid_pair_by_pair():
    """All 28 pairs of 8 sources at 2,048 dimensions, each of clean-fid's calls run."""
    d = max(DIMENSIONS)
    stats = [moments(seed, d) for seed in range(8)]
    start = time.perf_counter()
    found = frechet_distances(stats)
    ours, start = time.perf_counter() - start, time.perf_counter()
    for i, j in combinations(range(8), 2):
        assert abs(float(found[i, j]) / clean_fids(stats[i], stats[j]) - 1) < 1e-6
    theirs = time.perf_counter() - start
    report(f"matrix of 8 sources, d = {d}, against 28 calls of clean-fid", ours, theirs)
    assert not FULL or theirs > 8 * ours  # half of what was measured: processors differ


def test_generator_to_distance_against_png_files(tmp_path: Path):
    """The same network, seeds and features; the peers' way writes a PNG per image and reads it
    back."""
    generator = checkpoint.load(zoo.path("gdd-i"))
    real = judges.real("desk", judges.judges("desk")[0], "data")
    extractor = judges.summaries("desk", "digits").extractor

    def in_memory():
        batches = generate(generator, range(1797), sampler="one-step")
        stats = FeatureStats.of(torch.cat([extractor(to_uint8(batch)) for batch in batches]))
        return frechet_distance(stats, real)

    def through_files():
        for index, batch in enumerate(generate(generator, range(1797), sampler="one-step")):
            for k, image in enumerate(to_uint8(batch)):
                Image.fromarray(image[0].numpy()).save(tmp_path / f"{index:03}-{k:03}.png")
        read = torch.from_numpy(
            np.stack([
                np.asarray(Image.open(file)) for file in sorted(tmp_path.glob("*.png"))]))[:, None]
        return frechet_distance(FeatureStats.of(extractor(read)), real)

    assert abs(in_memory() - through_files()) < 1e-9
    ours, theirs = seconds(in_memory), seconds(through_files)
    report("one-step generator to FD1797[digits], against PNG files", ours, theirs)
    assert not FULL or theirs > 2 * ours
