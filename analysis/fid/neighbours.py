"""Is it memory? How near images lie to the nearest training picture, beside real pictures that no
training saw.

A generator that repeats training pictures has more images than held-out pictures have below their
own first percentile; a share of 1% there is what chance gives.
"""

from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor

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


def pixels(images: Tensor) -> Tensor:
    """uint8 images (N,C,H,W) as rows whose distance is the root mean square difference of values
    from -1 to 1."""
    rows = images.flatten(1).float() / 127.5 - 1
    return rows / rows.shape[1]**0.5


def beside_held_out(distances: Mapping[str, Tensor], *,
                    percentile: float = PERCENTILE) -> pd.DataFrame:
    """A row for each set of distances to the nearest training picture (N,), `held-out` among them:
    of, n, median, least, and share_below `limit`, that percentile of the held-out ones."""
    limit = distances["held-out"].quantile(percentile / 100)
    return pd.DataFrame([{
        "of": which, "n": len(found), "median": float(found.median()), "least": float(found.min()),
        "share_below": float((found < limit).float().mean()), "limit": float(limit),
    } for which, found in distances.items()])  # yapf: disable
