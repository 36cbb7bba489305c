"""Distances between generators, data sets, arrays and statistics. `python -m analysis.fid --help`
is the command.

`from analysis.fid import frechet_distance, matrix, ...` gives what `analysis.fid.frechet` defines.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.fid.frechet import (
        FeatureStats,
        bootstrap_interval,
        fd_infinity,
        frechet_distance,
        label,
        matrix,
    )

__all__ = [
    "FeatureStats", "bootstrap_interval", "fd_infinity", "frechet_distance", "label", "matrix"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    # late: torch takes seconds to import, and --help must not wait
    return getattr(import_module("analysis.fid.frechet"), name)
