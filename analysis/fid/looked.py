"""What a report needs beside the distances: images and features of both sources, the floor of the
distances, nearest neighbours, and what of them is class statistics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analysis.features import Extractor
from analysis.fid.frechet import FeatureStats, frechet_distance
from analysis.fid.matched import Matched, matched_fd
from analysis.fid.neighbours import beside_held_out, nearest, pixels
from analysis.fid.sources import Source
from analysis.fid.summaries import Summaries, kept_indices

_PIXELS = 1 << 28  # of each source that are held in memory to be looked at
_PAIRS = 8
Floor = tuple[int, float, float]  # m, distance of A to a half of B, distance of B's halves
Pairs = tuple[Tensor, Tensor, Tensor]  # distances, images of A, images of B


@dataclass(frozen=True)
class Looked:
    """A source, its images that are looked at, and their features by each extractor."""

    source: Source
    images: Tensor  # (m,C,H,W) uint8
    features: Mapping[str, Tensor]  # (m,d)

    @classmethod
    def at(cls, source: Source, summaries: Sequence[Summaries]) -> "Looked":
        kept = kept_indices(source.n)
        # evenly, since the images of a data set may lie class by class
        most = max(_PIXELS // int(np.prod(source.shape)), 2)
        places = range(0, len(kept), -(-len(kept) // most))
        images = torch.cat(list(source.batches([kept[place] for place in places], 256)))
        return cls(source, images,
                   {s.extractor.name: s.of(source).sample[list(places)] for s in summaries})


def floor_of(one: Looked, two: Looked, name: str) -> Floor:
    """In the features called `name`; NaN if B is too small to be halved."""
    fake, real = one.features[name], two.features[name]
    m = min(len(real) // 2, len(fake))
    if m < 2:
        return m, float("nan"), float("nan")
    stream = torch.Generator().manual_seed(0)
    order = torch.randperm(len(real), generator=stream)
    chosen = torch.randperm(len(fake), generator=stream)[:m]
    half, other, ours = (FeatureStats.of(x)
                         for x in (real[order[:m]], real[order[m:2 * m]], fake[chosen]))
    return m, frechet_distance(ours, half), frechet_distance(other, half)


def neighbours_of(one: Looked, two: Looked, control: Looked | None) -> tuple[pd.DataFrame, Pairs]:
    """Rows of `beside_held_out` for each space, and the pairs nearest in the first one, pixels if
    both sources are of one size. Without `control` a random half of B stands for it."""
    order = torch.randperm(len(two.images), generator=torch.Generator().manual_seed(1))
    half = len(order) // 2
    known, kept = (order, order[:0]) if control else (order[:half], order[half:])
    spaces = [(name, one.features[name], two.features[name],
               control.features[name] if control else two.features[name][kept])
              for name in one.features]
    if one.images.shape[1:] == two.images.shape[1:]:
        held = control.images if control else two.images[kept]
        spaces.insert(0, ("raw pixels", pixels(one.images), pixels(two.images), pixels(held)))
    rows = []
    for space, ours, theirs, held in spaces:
        found = {"held-out": nearest(held, theirs[known])[0],
                 "generated": nearest(ours, theirs[known])[0]}  # yapf: disable
        rows.append(beside_held_out(found).assign(space=space))
    _, ours, theirs, _ = spaces[0]
    distances, places = nearest(ours, theirs)  # all of B: pictures to look at
    closest = distances.argsort(stable=True)[:_PAIRS]
    pairs = distances[closest], one.images[closest], two.images[places[closest]]
    return pd.concat(rows, ignore_index=True), pairs


def matched_of(one: Looked, two: Looked,
               summaries: Sequence[Summaries]) -> tuple[dict[str, Matched], str]:
    """By features, and what names the classes: the first extractor that classifies."""
    judge = next((s for s in summaries if s.extractor.probabilities), None)
    if judge is None:
        return {}, ""
    ours, theirs = (torch.cat([
        _classes(judge.extractor, part) for part in looked.images.split(judge.batch_size)])
                    for looked in (one, two))
    top = 1 if ours.shape[1] < 100 else 5
    found = {name: matched_fd(one.features[name], two.features[name], ours, theirs, top=top)
             for name in one.features}  # yapf: disable
    return found, f"Top-{top} of the {ours.shape[1]:,} classes of {judge.extractor.name}"


def _classes(extractor: Extractor, images: Tensor) -> Tensor:
    found = extractor.classify(images)
    assert found is not None
    return found
