"""Distances between generators, data sets, arrays and statistics. `python -m analysis.fid --help`
is the command.

`from analysis.fid import rel_fid, of_generator, ...` gives what the modules here define.
"""

# ruff: noqa: F401
from typing import TYPE_CHECKING

from gdd.extras import public

if TYPE_CHECKING:
    from analysis.fid.compare import abs_fid, matrix, measure, rel_fid
    from analysis.fid.frechet import (
        FeatureStats,
        bootstrap_interval,
        fd_infinity,
        frechet_distance,
        frechet_distances,
        label,
    )
    from analysis.fid.own import of_generator, of_images
    from analysis.fid.sources import of_denoiser, open_source

_HOME = {
    "FeatureStats": "frechet", "abs_fid": "compare", "bootstrap_interval": "frechet",
    "fd_infinity": "frechet", "frechet_distance": "frechet", "frechet_distances": "frechet",
    "label": "frechet", "matrix": "compare", "measure": "compare", "of_denoiser": "sources",
    "of_generator": "own", "of_images": "own", "open_source": "sources", "rel_fid": "compare",
}  # yapf: disable
__all__ = list(_HOME)
__getattr__ = public(__name__, _HOME)
