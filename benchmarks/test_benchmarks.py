"""Ours against named peers, as ratios within one run: `make bench`. Absolute times belong to the machine, ratios travel."""

import time
import warnings
from pathlib import Path

import numpy as np
import torch
from cleanfid.fid import frechet_distance as clean_fid
from PIL import Image

from analysis import experiments
from analysis.fid import FeatureStats, frechet_distance
from gdd import checkpoint, zoo
from gdd.data import to_uint8
from gdd.sampling import generate


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


def test_frechet_distance_against_clean_fid():
    for d in (256, 1024):
        generator = torch.Generator().manual_seed(0)
        a, b = (FeatureStats.of(torch.randn(2 * d, d, generator=generator) * scale) for scale in (1.0, 1.2))
        arrays = [x.numpy() for stats in (a, b) for x in (stats.mean, stats.covariance)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = seconds(lambda arrays=arrays: clean_fid(*arrays), repeats=1)
            ours = seconds(lambda a=a, b=b: frechet_distance(a, b), repeats=1)
            assert abs(frechet_distance(a, b) / clean_fid(*arrays) - 1) < 1e-6
        report(f"frechet_distance, d = {d}, against clean-fid", ours, theirs)
        assert ours < theirs


def test_generator_to_distance_against_png_files(tmp_path: Path):
    """The same network, seeds and features; the peers' way writes a PNG per image and reads it back."""
    generator, real = checkpoint.load(zoo.path("gdd-i")), experiments.real_stats("desk")

    def in_memory():
        return experiments.abs_fd(generator, "one-step", "desk")

    def through_files():
        for index, batch in enumerate(generate(generator, range(1797), sampler="one-step")):
            for k, image in enumerate(to_uint8(batch)):
                Image.fromarray(image[0].numpy()).save(tmp_path / f"{index:03}-{k:03}.png")
        read = torch.from_numpy(np.stack([np.asarray(Image.open(file)) for file in sorted(tmp_path.glob("*.png"))]))[:, None]
        return frechet_distance(experiments.image_stats(read, "desk"), real)

    assert in_memory() == through_files()
    ours, theirs = seconds(in_memory), seconds(through_files)
    report("one-step generator to FD1797[digits], against PNG files", ours, theirs)
    assert ours < theirs
