"""Is it memory? How near generated images are to the nearest training picture, beside the same for
real pictures that no training saw.

A generator that repeats training pictures has more images than held-out pictures have below their
own first percentile; a share of 1% there is what chance gives.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analysis import tables
from analysis.experiments import device, obtain
from analysis.fid.sources import Source, of_checkpoint, open_source
from analysis.judges import in_memory, summaries
from analysis.measurements import generated
from analysis.pixels import packed
from gdd.profiles import profile
from gdd.sampling import sampler_of
from gdd.training.start import digest

PERCENTILE = 1.0


def nearest(a: Tensor, b: Tensor, *, chunk: int = 512) -> tuple[Tensor, Tensor]:
    """Of each row of `a` (N,d) the Euclidean distance to the nearest row of `b` (M,d), and which it
    is; (N,) each."""
    squares = b.square().sum(dim=1)
    distances, indices = [], []
    for part in a.split(chunk):
        # |a|^2 is the same for all rows of b
        near = (squares - 2 * part @ b.T).min(dim=1)
        distances.append((near.values + part.square().sum(dim=1)).clip(min=0).sqrt())
        indices.append(near.indices)
    return torch.cat(distances), torch.cat(indices)


def nearest_table(name: str, profile_name: str) -> pd.DataFrame:
    """A row for the images of a run, and one for the held-out pictures, in pixels (root mean square
    difference, of values from -1 to 1) and in the features of the profile's usual judge."""
    chosen = profile(profile_name)
    sampler = sampler_of(chosen.config(name))
    train, test = (open_source(path) for path in (chosen.data, chosen.test))
    assert isinstance(train, Source)
    assert isinstance(test, Source)
    sets = {"held-out": test, "generated": generated(name, sampler, profile_name, 0)}
    rows = []
    for space in ("pixels", chosen.extractors[0]):
        known = _points(in_memory(train), space, profile_name)
        found = {which: nearest(_points(source, space, profile_name), known)[0]
                 for which, source in sets.items()}  # yapf: disable
        limit = found["held-out"].quantile(PERCENTILE / 100)
        rows += [{
            "run": name.partition("@")[0], "training_seed": chosen.config(name).seed,
            "sampler": sampler, "space": space, "of": which, "n": len(distances),
            "median": float(distances.median()), "least": float(distances.min()),
            "share_below": float((distances < limit).float().mean()),
            "limit": float(limit), "digest": digest(chosen, name),
        } for which, distances in found.items()]  # yapf: disable
    return pd.DataFrame(rows)


def neighbours(names: Sequence[str], profile_name: str) -> pd.DataFrame:
    """`measured_neighbours` of the runs; those measured before, where the data may not be at
    hand."""
    if profile(profile_name).live:
        return pd.concat([measured_neighbours(name, profile_name) for name in names])
    table = tables.read("neighbours", profile_name)
    return table[table["run"].isin(names)]


def measured_neighbours(name: str, profile_name: str, n: int = 1000, most: int = 8) -> pd.DataFrame:
    """Of a run's images from seeds 0 to n - 1 the `most` that lie nearest to a training picture, in
    pixels, a row each: both pictures (`analysis.pixels`), seed, distance, and the place of the
    training picture in the data."""
    chosen = profile(profile_name)
    train, config = open_source(chosen.data), chosen.config(name)
    assert isinstance(train, Source)
    known = in_memory(train)
    run = of_checkpoint(obtain(name, profile_name).path, sampler_of(config), device())
    made = in_memory(run(range(n)))
    distances, places = nearest(_points(made, "pixels", profile_name),
                                _points(known, "pixels", profile_name))
    seeds = distances.argsort(stable=True)[:most].tolist()
    picked = [
        np.concatenate([x.numpy() for x in source.batches(rows, most)])
        for source, rows in ((made, seeds), (known, places[seeds].tolist()))]
    return pd.DataFrame({
        "run": name.partition("@")[0], "training_seed": config.seed, "place": range(len(seeds)),
        "seed": seeds, "distance": distances[seeds].tolist(), "nearest": places[seeds].tolist(),
        "n": n, "pixels": packed(picked[0]), "nearest_pixels": packed(picked[1]),
        "digest": digest(chosen, name),
    })  # yapf: disable


def _points(source: Source, space: str, profile_name: str) -> Tensor:
    return torch.cat(list(_batches(source, space, profile_name)))


def _batches(source: Source, space: str, profile_name: str) -> Iterator[Tensor]:
    for images in source.batches(range(source.n), 256):
        if space == "pixels":
            pixels = images.flatten(1).float() / 127.5 - 1
            yield pixels / pixels.shape[1]**0.5
        else:
            yield summaries(profile_name, space).extractor(images)
