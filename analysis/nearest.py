"""Is it memory? Of a profile's runs what `analysis.fid.neighbours` measures, and the pictures that
are nearest."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analysis import tables
from analysis.experiments import device, obtain
from analysis.fid.neighbours import beside_held_out, nearest, pixels
from analysis.fid.sources import Source, of_checkpoint, open_source
from analysis.judges import in_memory, summaries
from analysis.measurements import generated
from analysis.pixels import packed
from gdd.profiles import profile
from gdd.samplers import sampler_of
from gdd.training.start import digest


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
        rows.append(beside_held_out(found).assign(space=space))
    return pd.concat(rows, ignore_index=True).assign(
        run=name.partition("@")[0], training_seed=chosen.config(name).seed, sampler=sampler,
        digest=digest(chosen, name))


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
        yield (pixels(images)
               if space == "pixels" else summaries(profile_name, space).extractor(images))
