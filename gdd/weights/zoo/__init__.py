"""Weights that come with the package, a folder a profile: fp16 safetensors with their config, its
digest and their training log.

They are made by `make figures RETRAIN=1` followed by `python -m analysis.figures --ship`.
"""

import difflib
from pathlib import Path

from gdd.reading import open_regular

FOLDER = Path(__file__).parent
PICKLES = (".pkl", ".pickle")
SUFFIXES = (".safetensors", *PICKLES)  # of network files


def path(name: str) -> Path:
    """The shipped file of a run, such as `gdd-i` or `desk/gdd-i`; of a name that several profiles
    ship, that of desk. Raises FileNotFoundError with the nearest names."""
    files = {f"{f.parent.name}/{f.stem}": f for f in sorted(FOLDER.glob("*/*.safetensors"))}
    found = [full for full in files if name in (full, full.partition("/")[2])]
    if not found:
        known = sorted({full.partition("/")[2] for full in files})
        near = difflib.get_close_matches(name, known, n=3)
        nearest = f"did you mean {' or '.join(near)}? " if near else ""
        raise FileNotFoundError(f"{name} does not exist, and no shipped weights are called so; "
                                f"{nearest}there are: {', '.join(known) or 'none'}")
    return files[f"desk/{name}" if f"desk/{name}" in found else found[0]]


def locate(name: Path | str) -> Path:
    """The file at a path, or shipped under a name such as gdd-i, whatever folder is called so.
    Raises FileNotFoundError, with the nearest names, or ValueError for what is no regular file."""
    found = Path(name)
    if found.is_file() or found.suffix in SUFFIXES:
        open_regular(found).close()
        return found
    try:
        return path(str(name))
    except FileNotFoundError:
        if found.exists():
            return found
        raise
