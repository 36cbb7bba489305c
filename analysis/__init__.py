"""The measurements. `import analysis` gives what a script needs, and torch only once it is asked
for:

    table = analysis.measure(gdd.load("gdd-i"), model="gdd-i", seeds=range(64))     # activations
    distance = analysis.rel_fid("gdd-i", "teacher", analysis.extractor("inception"))
"""

# ruff: noqa: F401
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.activations import measure
    from analysis.extractors import extractor
    from analysis.features import Extractor
    from analysis.fid.compare import abs_fid, rel_fid
    from analysis.fid.frechet import FeatureStats, frechet_distance
    from analysis.fid.sources import open_source
    from analysis.hooks import record

_HOME = {
    "Extractor": "features", "FeatureStats": "fid.frechet", "abs_fid": "fid.compare",
    "extractor": "extractors", "frechet_distance": "fid.frechet", "measure": "activations",
    "open_source": "fid.sources", "record": "hooks", "rel_fid": "fid.compare",
}  # yapf: disable
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
