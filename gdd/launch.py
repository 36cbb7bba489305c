"""The console commands of the measurements: `gdd-fid` is `python -m analysis.fid`, and so on.

They start here, where nothing of `analysis` is imported: the name is a common one, and what Python
finds first under it is to be named, not to fail halfway.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path


def fid() -> None:
    _start("analysis.fid.__main__")


def activations() -> None:
    _start("analysis.activations")


def figures() -> None:
    _start("analysis.figures")


def _start(module: str) -> None:
    package = module.partition(".")[0]
    if other := _in_the_way(package):
        sys.stderr.write(f"error: {other} is in the way of gdd-toolkit's own package {package}; "
                         "rename it, or take the folder it is in off PYTHONPATH\n")
        sys.exit(2)
    import_module(module).console()


def _in_the_way(package: str) -> str:
    """What Python finds under this name, unless it lies beside `gdd` as the toolkit's own does."""
    found = find_spec(package)
    places = (found.submodule_search_locations or [str(found.origin)]) if found else []
    own = Path(__file__).resolve().parents[1] / package
    return next((place for place in places if Path(place).resolve() != own), "")
